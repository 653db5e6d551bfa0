"""Whether a picture still shows what the title says: scores by CLIP, SigLIP or MOON2.0, and what they drop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pickle import UnpicklingError
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

from .model_failures import ModelFailures, described

DUAL_ENCODERS = ("clip", "siglip", "siglip2", "chinese_clip", "align", "altclip", "metaclip_2")


Encode = Callable[[list], Tensor]


class Verdict(NamedTuple):
    """Which variants stay; the three exclude each other.

    Attributes:
        kept: (N, K) bool.
        under_threshold: (N, K) bool, dropped because the score is too low.
        under_original: (N, K) bool, dropped because the original's score is better by more than the margin.
    """

    kept: np.ndarray
    under_threshold: np.ndarray
    under_original: np.ndarray


class Scorer:
    """Cosine similarity of pictures and titles in the space of a model that has both.

    Args:
        model_id: folder or Hub id of a CLIP-like dual encoder or of a MOON2.0 model. The latter brings its own code,
            which is run.
        device: "cuda", "cpu" …; the accelerator if there is one when None.
        batch_size: pictures or titles at a time.

    Raises:
        ValueError: there is no such model, or it is of another kind.

    Example:
        >>> Scorer("openai/clip-vit-base-patch32").score([photo, photo], ["red mug", "blue shoes"])
        array([0.29, 0.14], dtype=float32)
    """

    def __init__(self, model_id: str, device: str | None = None, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; give 1 or more")
        try:
            config = AutoConfig.from_pretrained(model_id, trust_remote_code=True)
            if config.model_type not in (*DUAL_ENCODERS, "moon2"):
                raise ValueError(f"it is a {config.model_type} model")
            self.model = AutoModel.from_pretrained(model_id, trust_remote_code=True, use_safetensors=True).eval()
            self.processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
        except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
            raise ValueError(
                f"scorer {model_id}: cannot be used ({' '.join(str(error).split())[:300]}); give a folder or Hub id "
                f"of a MOON2.0 model or of a dual encoder ({', '.join(DUAL_ENCODERS)}), with weights in safetensors"
            ) from error
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        self.model.to(device)
        self.batch_size = batch_size
        self.failures = ModelFailures(f"scorer {model_id}")
        self.is_moon2 = config.model_type == "moon2"

    def score(self, images: Sequence[Image.Image], titles: Sequence[str]) -> np.ndarray:
        """Score every picture against its title; a title that comes several times is encoded once.

        Args:
            images: N pictures.
            titles: N titles.

        Returns:
            (N,) float32, −1 to 1; NaN where the title is blank, or the model failed, for the reason in
            `failures.reasons`.

        Raises:
            ValueError: there are not as many titles as pictures, or the model fails at every one.
        """
        if len(images) != len(titles):
            raise ValueError(f"{len(images)} pictures but {len(titles)} titles; give one title for each")
        scores = np.full(len(images), np.nan, dtype=np.float32)
        rows = [row for row, title in enumerate(titles) if title.strip()]
        distinct = list(dict.fromkeys(titles[row] for row in rows))
        with self.failures.batch():
            texts = dict(zip(distinct, self._encode(distinct, self._encode_texts), strict=True))
            pictures = self._encode([images[row].convert("RGB") for row in rows], self._encode_images)
            for row, picture in zip(rows, pictures, strict=True):
                both = picture, texts[titles[row]]
                if failed := [vector for vector in both if isinstance(vector, str)]:
                    self.failures.failure(row, failed[0])
                    continue
                scores[row] = float(both[0] @ both[1])
                if np.isnan(scores[row]):
                    self.failures.failure(row, "the score is not a number")
                else:
                    self.failures.success()
        return scores

    def _encode(self, items: list, encode: Encode) -> list[Tensor | str]:
        """For every item its vector (D,), float32 on the CPU and normalised, or what went wrong with it.

        A batch that fails is tried again item by item.
        """
        vectors: list[Tensor | str] = []
        for start in range(0, len(items), self.batch_size):
            batch = items[start : start + self.batch_size]
            tried = self._try(batch, encode)
            if isinstance(tried, str) and len(batch) > 1:
                for item in batch:
                    alone = self._try([item], encode)
                    vectors += [alone] if isinstance(alone, str) else alone
            else:
                vectors += [tried] if isinstance(tried, str) else tried
        return vectors

    @torch.inference_mode()
    def _try(self, batch: list, encode: Encode) -> list[Tensor] | str:
        try:
            return list(normalize(encode(batch).float().cpu(), dim=-1))
        except Exception as error:  # whatever a model's own code raises; it must not cost a run of days
            return described(error)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        if self.is_moon2:
            return self.model(**self._on_device(self.processor(text=texts, images=[None] * len(texts)))).embeddings
        return text_features(self.model, self.processor, texts)

    def _encode_images(self, images: list[Image.Image]) -> Tensor:
        if self.is_moon2:
            return self.model(**self._on_device(self.processor(text=[None] * len(images), images=images))).embeddings
        return image_features(self.model, self.processor, images)

    def _on_device(self, inputs: BatchFeature) -> BatchFeature:
        return inputs.to(self.model.device)


def text_features(model: PreTrainedModel, processor: ProcessorMixin, texts: list[str]) -> Tensor:
    """(N, D) vectors of N texts, not normalised, from a dual encoder; what is longer than it reads is cut off."""
    longest = model.config.get_text_config().max_position_embeddings  # not every tokenizer knows its model's limit
    longest = min(longest, processor.tokenizer.model_max_length)
    # SigLIP was trained on texts padded to the full length
    inputs = processor(text=texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
    return model.get_text_features(**inputs.to(model.device)).pooler_output


def image_features(model: PreTrainedModel, processor: ProcessorMixin, images: list[Image.Image]) -> Tensor:
    """(N, D) vectors of N RGB pictures, not normalised, from a dual encoder."""
    return model.get_image_features(**processor(images=images, return_tensors="pt").to(model.device)).pooler_output


def keep_consistent(original: np.ndarray, variants: np.ndarray, threshold: float | None, margin: float) -> Verdict:
    """Decide which variants still show what the title says.

    Args:
        original: (N,) scores of the original pictures; one that is NaN drops nothing.
        variants: (N, K) scores of the variants; NaN where there is none, which is neither kept nor dropped.
        threshold: a variant under it is dropped; None for no such limit.
        margin: a variant that is worse than its original by more than this is dropped.
    """
    made = ~np.isnan(variants)
    under_threshold = made & (variants < (-np.inf if threshold is None else threshold))
    under_original = made & ~under_threshold & (variants < original[:, None] - margin)
    return Verdict(made & ~under_threshold & ~under_original, under_threshold, under_original)
