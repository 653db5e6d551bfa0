"""Any image-text-to-text model of transformers as one call: prompts and pictures in, the model's answers out."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from .model_failures import ModelFailures

BATCHES_PER_WINDOW = 64  # items are sorted by size within a window; its pictures are all in memory anyway


class VisionLanguageModel:
    """A generative model that answers prompts about pictures, greedily and in batches.

    Args:
        model_id: folder or Hub id of a checkpoint that `AutoModelForImageTextToText` loads.
        device: "cuda", "cuda:1", "mps", "cpu"; the accelerator if there is one when None.
        dtype: of the weights and the computation, a torch dtype or its name; "auto" is bfloat16 on an accelerator and
            float32 on a CPU.
        batch_size: prompts at a time.
        max_new_tokens: longest answer, where `generate` is not told.
        thinking_tokens: for what a model writes before its answer, beside those of the answer.

    Attributes:
        cut: of the latest call, numbers of the prompts whose answers were not at their end after so many tokens.

    Raises:
        ValueError: there is no such model, it is of another kind, or its processor cannot be made.

    Example:
        >>> vlm = VisionLanguageModel("Qwen/Qwen3-VL-2B-Instruct")
        >>> vlm.generate(["What is this?"], [[photo]])
        ['A red mug on a table.']
    """

    def __init__(
        self,
        model_id: str,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        batch_size: int = 8,
        max_new_tokens: int = 64,
        thinking_tokens: int = 0,
    ) -> None:
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(f"batch_size={batch_size}, max_new_tokens={max_new_tokens}; give 1 or more")
        self.device = torch.device(device or _accelerator())
        self.batch_size = batch_size
        self.max_new_tokens, self.thinking_tokens = max_new_tokens, thinking_tokens
        self.cut: set[int] = set()
        self.failures = ModelFailures(f"vlm {model_id}")
        try:
            self.processor = load_processor(model_id)
            dtype = _dtype(dtype, self.device)
            model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
            raise ValueError(
                f"{model_id}: cannot be loaded as an image-text-to-text model ({error}); give a folder or Hub id that "
                "AutoModelForImageTextToText and AutoProcessor load"
            ) from error
        self.model = model.to(self.device).eval()
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"  # or answers would start behind the padding of their prompt
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or next(iter(self.tokenizer.get_vocab()))
        if self.processor.chat_template is None:
            self.processor.chat_template = self.tokenizer.chat_template
        self.greedy = copy.deepcopy(model.generation_config)
        self.greedy.update(
            do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, min_p=None, max_length=None,
            forced_eos_token_id=None, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        if self.greedy.eos_token_id is None:
            self.greedy.eos_token_id = self.tokenizer.eos_token_id
        control = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        self._control_tokens = re.compile("|".join(map(re.escape, control)) or r"(?!)")

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        max_new_tokens: Sequence[int] | None = None,
    ) -> list[str]:
        """Answer every prompt.

        A batch that fails is tried again item by item. An item that fails alone is answered "", and
        `failures.reasons` says why. Control tokens of the model within a prompt are broken up, so that a product's
        text cannot pose as a picture or as another speaker.

        Args:
            prompts: N texts.
            images: N lists of pictures, which the prompt is about; a list may be empty.
            max_new_tokens: N lengths of the longest answers; None for that of the model.

        Returns:
            N answers without prompt and control tokens, in the order of the prompts. Those of `cut` are what there
            was of them.

        Raises:
            ValueError: there are not as many lists of pictures as prompts, or the model fails at every item.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts but pictures for {len(images)}; give one list for each prompt")
        answers, self.cut = [""] * len(prompts), set()
        longest = [self.max_new_tokens] * len(prompts) if max_new_tokens is None else max_new_tokens
        window = self.batch_size * BATCHES_PER_WINDOW
        with self.failures.batch():
            for start in range(0, len(prompts), window):
                rows = range(start, min(start + window, len(prompts)))
                rows = sorted(rows, key=lambda i: _size(prompts[i], images[i]))
                with_pictures = [row for row in rows if len(images[row])]
                without = [row for row in rows if not len(images[row])]  # many processors take no batch of both
                for kind in (with_pictures, without):
                    for first in range(0, len(kind), self.batch_size):
                        self._answer(kind[first : first + self.batch_size], prompts, images, longest, answers)
        return answers

    def resized(self, image: Image.Image) -> tuple[int, int]:
        """Width and height, in pixels, of a picture as a Qwen-VL model sees it."""
        image_processor = self.processor.image_processor
        grid = image_processor(images=[image.convert("RGB")], return_tensors="pt")["image_grid_thw"]  # (1, 3)
        _, rows, columns = (grid[0] * image_processor.patch_size).tolist()
        return columns, rows

    def _answer(
        self,
        rows: list[int],
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        longest: Sequence[int],
        answers: list[str],
    ) -> None:
        try:
            found = self._batch(*([of_all[row] for row in rows] for of_all in (prompts, images, longest)))
        except Exception as error:  # whatever a model's own code raises; it must not cost a run of days
            if len(rows) == 1:
                self.failures.failure(rows[0], error)
                return
            found = None
        if found is None:  # out of the except clause, which holds on to the failed batch's memory
            for row in rows:
                self._answer([row], prompts, images, longest, answers)
            return
        self.failures.success(len(rows))
        for row, (text, is_cut) in zip(rows, found, strict=True):
            answers[row] = text
            if is_cut:
                self.cut.add(row)

    @torch.inference_mode()
    def _batch(
        self, prompts: list[str], images: list[Sequence[Image.Image]], longest: list[int]
    ) -> list[tuple[str, bool]]:
        """The answers of a batch, each with whether it is cut; they are the same in any other batch."""
        pictures = [[image.convert("RGB") for image in of_item] for of_item in images]
        prompts = [self._control_tokens.sub(lambda found: " ".join(found.group()), prompt) for prompt in prompts]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if self.processor.chat_template is not None:
            texts = [self._chat(prompt, len(of_item)) for prompt, of_item in zip(prompts, pictures, strict=True)]
            if self.tokenizer.bos_token and texts[0].startswith(self.tokenizer.bos_token):
                options["add_special_tokens"] = False
        else:
            image_token = getattr(self.processor, "image_token", "")  # BLIP-like processors need none
            texts = [image_token * len(of_item) + prompt for prompt, of_item in zip(prompts, pictures, strict=True)]
        inputs = self.processor(text=texts, images=pictures if pictures[0] else None, **options)
        inputs = inputs.to(self.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        longest = [tokens + self.thinking_tokens for tokens in longest]
        self.greedy.max_new_tokens = max(longest)
        output = self.model.generate(**inputs, generation_config=self.greedy)
        start = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        answers = [tokens[:most] for tokens, most in zip(output[:, start:].tolist(), longest, strict=True)]
        end = self.greedy.eos_token_id
        ends = {self.greedy.pad_token_id, *(end if isinstance(end, list) else [end])}  # the last token of a whole one
        cut = [len(tokens) == most and tokens[-1] not in ends for tokens, most in zip(answers, longest, strict=True)]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [(text.strip(), is_cut) for text, is_cut in zip(texts, cut, strict=True)]

    def _chat(self, prompt: str, num_images: int) -> str:
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def load_processor(model_id: str) -> ProcessorMixin:
    """The processor of a checkpoint; where its video part needs a package that is missing, one for pictures alone.

    Args:
        model_id: folder or Hub id.
    """
    try:
        return AutoProcessor.from_pretrained(model_id)
    except ImportError:  # video processors need torchvision
        kind = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(model_id)), None)
        if kind is None or "video_processor" not in kind.get_attributes():
            raise
    return _without_video(kind).from_pretrained(model_id)


def _without_video(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class made of image processor and tokenizer alone; transformers reads that off `__init__`."""

    class PicturesOnly(kind):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **options):
            super().__init__(image_processor, tokenizer, chat_template=chat_template, **options)

    PicturesOnly.__name__ = kind.__name__
    return PicturesOnly


def _accelerator() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    given = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(given, torch.dtype):
        raise ValueError(f'dtype={dtype!r}; give "auto", "float32", "bfloat16" or "float16"')
    return given


def _size(prompt: str, images: Sequence[Image.Image]) -> tuple[int, int]:
    """What items of one batch should have in common, or padding is wasted: pixels and characters."""
    return sum(getattr(image, "width", 0) * getattr(image, "height", 0) for image in images), len(prompt)
