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
        max_new_tokens: longest answer.

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
    ) -> None:
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(f"batch_size={batch_size}, max_new_tokens={max_new_tokens}; give 1 or more")
        self.device = torch.device(device or _accelerator())
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
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
            max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        control = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        self._control_tokens = re.compile("|".join(map(re.escape, control)) or r"(?!)")

    def generate(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[str]:
        """Answer every prompt.

        A batch that fails is tried again item by item. An item that fails alone is answered "", and
        `failures.reasons` says why. Control tokens of the model within a prompt are broken up, so that a product's
        text cannot pose as a picture or as another speaker.

        Args:
            prompts: N texts.
            images: N lists of pictures, which the prompt is about; a list may be empty.

        Returns:
            N answers without prompt and control tokens, in the order of the prompts.

        Raises:
            ValueError: there are not as many lists of pictures as prompts, or the model fails at every item.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts but pictures for {len(images)}; give one list for each prompt")
        answers = [""] * len(prompts)
        window = self.batch_size * BATCHES_PER_WINDOW
        with self.failures.batch():
            for start in range(0, len(prompts), window):
                rows = range(start, min(start + window, len(prompts)))
                rows = sorted(rows, key=lambda i: _size(prompts[i], images[i]))
                with_pictures = [row for row in rows if len(images[row])]
                without = [row for row in rows if not len(images[row])]  # many processors take no batch of both
                for kind in (with_pictures, without):
                    for first in range(0, len(kind), self.batch_size):
                        self._answer(kind[first : first + self.batch_size], prompts, images, answers)
        return answers

    def _answer(
        self, rows: list[int], prompts: Sequence[str], images: Sequence[Sequence[Image.Image]], answers: list[str]
    ) -> None:
        try:
            texts = self._batch([prompts[row] for row in rows], [images[row] for row in rows])
        except Exception as error:  # whatever a model's own code raises; it must not cost a run of days
            if len(rows) == 1:
                self.failures.failure(rows[0], error)
                return
            texts = None
        if texts is None:  # out of the except clause, which holds on to the failed batch's memory
            for row in rows:
                self._answer([row], prompts, images, answers)
            return
        self.failures.success(len(rows))
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text

    @torch.inference_mode()
    def _batch(self, prompts: list[str], images: list[Sequence[Image.Image]]) -> list[str]:
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
        output = self.model.generate(**inputs, generation_config=self.greedy)
        start = 0 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts = self.tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
        return [text.strip() for text in texts]

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
