"""An encoder as it was saved: loading it, and telling it from others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from modeling_moon2 import Moon2Config

from .checksums import check_checksums, find_unreadable
from .non_finite import non_finite_weight
from .plain_files import plain_weights

# What differs between a model in memory and the same one saved and loaded; the weights tell their types themselves.
NOT_IN_FINGERPRINT = ("_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "transformers_version")


def load_encoder(model_id: str | os.PathLike, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model, in evaluation mode, and its processor onto the accelerator, or the CPU where there is none.

    On a CPU the weights become float32 unless `dtype` is given: in bfloat16 most CPUs take several times as long.

    Args:
        model_id: folder of a saved model, or its id on the Hub.
        options: for `AutoModel.from_pretrained`, such as attn_implementation.

    Raises:
        FileNotFoundError: there is no model in the folder, or none of that name on the Hub.
        ValueError: it is a model of another kind, a file of it is damaged, its weights are not in safetensors, or one
            is not finite.
    """
    if Path(model_id).is_dir():
        if not (Path(model_id) / "config.json").is_file():
            raise FileNotFoundError(f"{model_id}: no config.json there; give the folder of a saved model")
        check_checksums(model_id)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cpu" or options.get("device_map") == "cpu":
        options.setdefault("dtype", torch.float32)
    with _naming_damage(model_id):
        try:
            config = AutoConfig.from_pretrained(model_id, trust_remote_code=True)
        except OSError as error:
            if Path(model_id).is_dir():
                raise
            raise FileNotFoundError(f"{model_id}: no such folder, and no model of that name on the Hub") from error
        if config.model_type != Moon2Config.model_type:
            raise ValueError(f"{model_id}: holds a {config.model_type} model; give a MOON2.0 one")
        with plain_weights(model_id):
            model = AutoModel.from_pretrained(model_id, trust_remote_code=True, use_safetensors=True, **options)
        processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
    if "device_map" not in options:
        model = model.to(device)
    weight = non_finite_weight(model)
    if weight is not None:
        raise ValueError(
            f"{model_id}: the weight {weight} holds NaN or infinity as {model.dtype}; give an earlier checkpoint, or "
            "download it again"
        )
    return model.eval(), processor


@contextmanager
def _naming_damage(model_id: str | os.PathLike) -> Iterator[None]:
    """Say of whatever libraries raise over a damaged folder which file it is."""
    try:
        yield
    except Exception as error:
        if not Path(model_id).is_dir() or (found := find_unreadable(model_id)) is None:
            raise
        raise ValueError(f"{found[0]}: damaged ({found[1]}); save the model again, or download it again") from error


def encoder_fingerprint(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """Hash what an embedding depends on: the weights with their names, the configuration, the processor.

    The same for a model in memory, saved and loaded again, wherever it stands, in float32 and in bfloat16, whose
    vectors differ by about a thousandth: a catalogue that was encoded on a GPU is searched on a CPU. So weights are
    hashed as they are in bfloat16.

    Args:
        model: a Moon2Model.
        processor: its Moon2Processor.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    tokenizer = processor.tokenizer
    parts = [model.config.to_dict(), processor.image_processor.to_dict()]
    parts += [tokenizer.backend_tokenizer.to_str(), tokenizer.model_max_length, processor.chat_template]
    digest.update(json.dumps([_told(part) for part in parts], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().to("cpu", torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _told(part: Any) -> Any:
    """A part of a configuration without what says where it came from."""
    if isinstance(part, Mapping):
        return {str(key): _told(value) for key, value in part.items() if key not in NOT_IN_FINGERPRINT}
    return part
