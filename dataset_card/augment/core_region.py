"""The box of the product on sale (MOON's core product detection): from its mask, or by a grounding model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .subject import Subject

if TYPE_CHECKING:  # torch is not for the worker processes that ask for masks' boxes alone
    from .vision_language import VisionLanguageModel

PROMPT = (
    'Find the product on sale in this picture: "{title}". Answer with its bounding box alone, as JSON: '
    '[{{"bbox_2d": [x1, y1, x2, y2], "label": "product"}}]'
)
LEAST_AREA = 0.01  # share of the picture; a smaller box is no product
MOST_AREA = 0.98  # a larger one would only repeat the picture
RELATIVE = 1000  # Qwen2-VL, Qwen3-VL and most others count in thousandths of the picture
IN_PIXELS = ("qwen2_5_vl",)  # model types that count in pixels, of the picture as it is resized for them


def subject_box(subject: Subject) -> list[float]:
    """The box around a subject's mask.

    Args:
        subject: as `extract_subject` finds it.

    Returns:
        [left, top, right, bottom] in shares of width and height; [] where nothing was found or the box is the picture.
    """
    if subject.method == "none":
        return []
    inside = subject.mask > 0.5
    height, width = inside.shape
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return []
    left, right = columns[0] / width, (columns[-1] + 1) / width
    top, bottom = rows[0] / height, (rows[-1] + 1) / height
    return _checked([float(side) for side in (left, top, right, bottom)])


def crop(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The part of a picture in a box.

    Args:
        image: the picture.
        box: left, top, right, bottom in shares; [] for all of it.
    """
    if not len(box):
        return image
    left, top, right, bottom = box
    return image.crop(
        (
            math.floor(left * image.width),
            math.floor(top * image.height),
            math.ceil(right * image.width),
            math.ceil(bottom * image.height),
        )
    )


class GroundingDetector:
    """Asks a vision-language model where the product is.

    Args:
        vlm: the model; its type says what the numbers of its answers are.
    """

    def __init__(self, vlm: VisionLanguageModel) -> None:
        self.vlm = vlm

    def boxes(self, images: Sequence[Image.Image], titles: Sequence[str]) -> list[list[float]]:
        """The product's box in every picture.

        Args:
            images: N pictures.
            titles: N titles of the products to look for.

        Returns:
            N boxes [left, top, right, bottom] in shares; [] where the answer has none that can be used, or the model
            failed, for the reason in `vlm.failures.reasons`.

        Raises:
            ValueError: the model fails at every picture.
        """
        prompts = [PROMPT.format(title=" ".join(title.split())) for title in titles]
        answers = self.vlm.generate(prompts, [[image] for image in images])
        in_pixels = self.vlm.model.config.model_type in IN_PIXELS
        boxes = []
        for image, answer in zip(images, answers, strict=True):
            # a picture that the model failed at, and so has no answer, may have no size for it
            width, height = self.vlm.resized(image) if in_pixels and answer else (RELATIVE, RELATIVE)
            boxes.append(parse_box(answer, width, height))
        return boxes


def parse_box(answer: str, width: float, height: float) -> list[float]:
    """The largest usable box in a model's answer.

    Args:
        answer: JSON, perhaps in a code fence, with words around it, behind thoughts, or cut short.
        width, height: what the numbers count up to.

    Returns:
        [left, top, right, bottom] in shares; [] if there is none.
    """
    answer = answer.rpartition("</think>")[2]
    found = [_checked(_in_shares(numbers, width, height)) for numbers in _boxes(answer)]
    return max((box for box in found if box), key=_area, default=[])


def _boxes(answer: str) -> Iterator[list[float]]:
    """All lists of four numbers under bbox_2d; from answers that are no JSON, as they stand."""
    try:
        yield from _within(json.loads(re.sub(r"^\s*```\w*|```\s*$", "", answer.strip())))
    except (ValueError, RecursionError):
        number = r"\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*"
        for match in re.finditer(rf"\[{number},{number},{number},{number}\]", answer):
            yield [float(value) for value in match.groups()]


def _within(parsed: Any) -> Iterator[list[float]]:
    if isinstance(parsed, dict):
        for value in parsed.values():
            yield from _within(value)
    elif isinstance(parsed, list):
        if len(parsed) == 4 and all(isinstance(value, int | float) and math.isfinite(value) for value in parsed):
            yield [float(value) for value in parsed]
        else:
            for value in parsed:
                yield from _within(value)


def _in_shares(numbers: Sequence[float], width: float, height: float) -> list[float]:
    x1, y1, x2, y2 = numbers
    sides = sorted((x1 / width, x2 / width)), sorted((y1 / height, y2 / height))
    (left, right), (top, bottom) = ([min(max(end, 0.0), 1.0) for end in side] for side in sides)
    return [left, top, right, bottom]


def _checked(box: list[float]) -> list[float]:
    return box if LEAST_AREA <= _area(box) <= MOST_AREA else []


def _area(box: Sequence[float]) -> float:
    left, top, right, bottom = box
    return max(0.0, right - left) * max(0.0, bottom - top)
