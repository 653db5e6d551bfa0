"""A dense Qwen3-VL as it was saved, which `moon2 convert` and `moon2 adapt` start from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_moon2 import Moon2Processor

from .non_finite import holds_non_finite

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SOURCE_TYPE = "qwen3_vl"
MAX_PIXELS = 512 * 512  # 256 visual tokens; the budget that a Qwen3-VL brings is 64 times that


def resolve_source(source: str) -> Path:
    """The folder of a checkpoint: itself, or a download from the Hub.

    Raises:
        FileNotFoundError: neither a folder nor a model on the Hub.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(
            snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja", "README.md"])
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(f"{source}: neither a folder nor a model on the Hub that can be reached") from error


class SourceWeights:
    """The tensors of a checkpoint in safetensors, read one by one; names as in a bare Qwen3-VL model.

    Args:
        folder: of the checkpoint.

    Attributes:
        names: name of every tensor -> as it stands in the files.
        files: name as it stands there -> file.
        shapes: name as it stands there -> shape.
        dtype: of the first tensor.

    Raises:
        ValueError: a shard is missing or damaged, or (when it is read) a tensor is not finite; names it.
    """

    def __init__(self, folder: Path) -> None:
        if (folder / INDEX).is_file():
            files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        else:
            with _open(folder / SINGLE) as tensors:
                files = dict.fromkeys(tensors.keys(), SINGLE)
        if not files:
            raise ValueError(f"{folder}: holds no tensors; the checkpoint is incomplete")
        self.folder = folder
        # an lm_head has no place in an encoder; the prefix is there where it was saved with one
        self.names = {name.removeprefix("model."): name for name in files if not name.startswith("lm_head.")}
        self.files = files
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(files.values())):
            names = [name for name, its_file in files.items() if its_file == file]
            with _open(folder / file) as tensors:
                if missing := set(names) - set(tensors.keys()):
                    raise ValueError(f"{folder / file}: lacks {min(missing)}, which the index puts there")
                self.shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        first = next(iter(files))
        with _open(folder / files[first]) as tensors:
            self.dtype = tensors.get_slice(first)[:0].dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        original = self.names[name]
        file = self.folder / self.files[original]
        with _open(file) as tensors:
            tensor = tensors.get_tensor(original)
        if holds_non_finite(tensor):
            raise ValueError(f"{file}: {original} holds NaN or infinity; download it again, or give another source")
        return tensor


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file}: cannot be read as safetensors ({error}); download it again. Pickles (.bin, .pt) could run code "
            "and are not read"
        ) from error


def load_source_processor(folder: Path, max_pixels: int) -> Moon2Processor:
    """The checkpoint's image processor and its tokenizer, with its chat template.

    Args:
        folder: of the checkpoint.
        max_pixels: most pixels of a picture; the checkpoint's own where those are fewer.

    Raises:
        ValueError: a file is missing, or the tokenizer is not of a Qwen3-VL.
    """
    try:
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{folder}: image processor or tokenizer files are missing ({error})") from error
    least, most = (min(image_processor.size[edge], max_pixels) for edge in ("shortest_edge", "longest_edge"))
    image_processor.size = {"shortest_edge": least, "longest_edge": most}
    return Moon2Processor(image_processor=image_processor, tokenizer=tokenizer)
