"""Where the product is in its picture: by transparency, against its background, or by a segmentation model."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from .model_failures import ModelFailures

WORKING_SIDE = 192  # pixels; enough to see an outline, small enough for GrabCut
LEAST_AREA, MOST_AREA = 0.01, 0.98  # shares of the picture; outside of them nothing was found
LEAST_PART = 0.06  # of the largest part's area; smaller parts are dirt, larger ones are the other shoe
LEAST_DISTANCE = 3.5  # Lab units between product and background; JPEG noise stays under it
CLEAN_SPREAD = 1.5  # Lab units; a background under it is a studio's, and needs no GrabCut
CLEAN_RIM = 0.6  # share of the border that such a background must fill
GRABCUT_ROUNDS = 4
BAND = 3  # pixels of border, at the working size
BORDER_SAMPLES = 500
FAR = 25.0  # Lab units that the length of the picture counts as


class Subject(NamedTuple):
    """A product in its picture.

    Attributes:
        mask: (H, W) float32, 1 on the product, 0 behind it; ones where nothing was found.
        method: "alpha", "background", "segmenter", or "none" where nothing was found.
        confidence: 0 to 1.
    """

    mask: np.ndarray
    method: str
    confidence: float


def extract_subject(image: Image.Image, segmenter: Segmenter | None = None) -> Subject:
    """Find the product in a picture; the same for the same pixels.

    A picture with transparency says itself what is product. Else a smooth background is fitted to the picture's
    border, robustly, since the product may reach into it. Before a plain one, what differs from it is the product.
    Before any other, GrabCut (Rother et al., 2004) decides, begun from what has no like near it on the border.

    Args:
        image: RGB, or RGBA.
        segmenter: finds the product instead, where the picture has no transparency.

    Returns:
        The subject, as large as the picture.

    Raises:
        ValueError: OpenCV is not installed.
    """
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float32) / 255
        if LEAST_AREA <= (alpha > 0.5).mean() <= MOST_AREA:
            return Subject(alpha, "alpha", 1.0)
        image = image.convert("RGB")
    if segmenter is not None:
        mask = segmenter.mask(image)
        if LEAST_AREA <= (mask > 0.5).mean() <= MOST_AREA:
            return Subject(mask, "segmenter", float(np.abs(2 * mask - 1).mean()))
    return _before_background(image.convert("RGB"))


def _before_background(image: Image.Image) -> Subject:
    try:
        import cv2
    except ImportError as error:
        raise ValueError('products are found with OpenCV; pip install "moon2[augment]"') from error
    width, height = image.size
    scale = min(1.0, WORKING_SIDE / max(width, height))
    small = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    pixels = np.ascontiguousarray(small)
    nothing = Subject(np.ones((height, width), dtype=np.float32), "none", 0.0)
    if min(pixels.shape[:2]) < 8:
        return nothing
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)  # (h, w, 3)
    distance, spread = background_distance(lab)
    least = max(LEAST_DISTANCE, 3 * spread)
    product = _connected_to(distance > least, distance > 2.5 * least)
    product = _filled(cv2.morphologyEx(product.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)
    rim = np.concatenate(
        [distance[:BAND].ravel(), distance[-BAND:].ravel(), distance[:, :BAND].ravel(), distance[:, -BAND:].ravel()]
    )
    plain = spread <= CLEAN_SPREAD and (rim <= 1.5 * least).mean() >= CLEAN_RIM
    if not plain or not LEAST_AREA <= product.mean() <= 0.9:
        distance = border_unlikeness(lab)
        product, least = _grab_cut(pixels, distance), LEAST_DISTANCE
    elif (narrow := _without_fringe(product, distance)).mean() >= LEAST_AREA:
        product = narrow
    product = _largest_parts(product)
    if not LEAST_AREA <= product.mean() <= MOST_AREA:
        return nothing
    contrast = float(np.median(distance[product])) / (4 * least)
    border = np.concatenate([product[0], product[-1], product[:, 0], product[:, -1]]).mean()
    mask = cv2.resize(product.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    mask = cv2.GaussianBlur(mask, (0, 0), max(0.7, 0.5 / scale))
    return Subject(mask, "background", float(np.clip(contrast, 0, 1) * (1 - 0.7 * border)))


def background_distance(lab: np.ndarray) -> tuple[np.ndarray, float]:
    """How far every pixel is from what the background would be there.

    Args:
        lab: (h, w, 3) float32 in CIELAB.

    Returns:
        (h, w) distance, and the median distance of the border's background.
    """
    height, width = lab.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)  # (h, w, 6)
    band = max(2, round(0.04 * max(height, width)))
    border = np.ones((height, width), dtype=bool)
    border[band:-band, band:-band] = False
    inputs, colours = terms[border], lab[border].astype(np.float64)  # (n, 6), (n, 3)
    centre = np.median(colours, axis=0)
    off = np.linalg.norm(colours - centre, axis=-1)
    weights = 1 / (1 + (off / max(float(np.median(off)), 2.0)) ** 2) ** 2  # pixels of the product hardly count
    for _ in range(4):
        # a weak pull to a constant, so that a border half covered by the product is not bent to fit it
        pull = np.diag([1e-6, *[0.02 * weights.sum()] * 2, *[0.05 * weights.sum()] * 3])
        solved = np.linalg.solve(
            inputs.T @ (weights[:, None] * inputs) + pull, inputs.T @ (weights[:, None] * colours)
        )
        off = np.linalg.norm(colours - inputs @ solved, axis=-1)
        weights = 1 / (1 + (off / max(float(np.median(off)), 1.0)) ** 2) ** 2
    distance = np.linalg.norm(lab - terms @ solved, axis=-1)
    return distance.astype(np.float32), float(np.median(off))


def border_unlikeness(lab: np.ndarray) -> np.ndarray:
    """How far every pixel is, in colour and place, from the nearest pixel of the border.

    Args:
        lab: (h, w, 3) float32 in CIELAB.

    Returns:
        (h, w) float32, Lab units.
    """
    height, width = lab.shape[:2]
    y, x = np.meshgrid(np.linspace(0, FAR, height), np.linspace(0, FAR, width), indexing="ij")
    points = np.dstack([lab, y, x]).astype(np.float32)  # (h, w, 5)
    border = np.ones((height, width), dtype=bool)
    border[BAND:-BAND, BAND:-BAND] = False
    samples = points[border]
    samples = samples[:: max(1, len(samples) // BORDER_SAMPLES)]  # (s, 5)
    flat = points.reshape(-1, 5)
    squares = (flat**2).sum(1)[:, None] + (samples**2).sum(1) - 2 * flat @ samples.T
    return np.sqrt(squares.min(axis=1).clip(0)).reshape(height, width)


def _grab_cut(pixels: np.ndarray, unlikeness: np.ndarray) -> np.ndarray:
    """Let colour models of product and background settle, begun from what is unlike the border; (h, w) bool."""
    import cv2

    height, width = unlikeness.shape
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    central = np.exp(-1.5 * (x**2 + y**2))  # products stand in the middle
    likely = cv2.GaussianBlur(unlikeness, (0, 0), 1.5) * central
    start, _ = cv2.threshold((255 * likely / likely.max().clip(1e-6)).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    labels = np.where(likely * 255 > start * likely.max(), cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    edge = np.ones((height, width), dtype=bool)
    edge[BAND:-BAND, BAND:-BAND] = False
    labels[edge] = cv2.GC_BGD
    guess = labels == cv2.GC_PR_FGD
    if not guess.any():
        return guess
    cv2.setRNGSeed(0)  # GrabCut begins with k-means of random centres
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(pixels, labels, None, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # colours too few for its models
        return guess
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    found = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    return _filled(found, most=0.02)


def _without_fringe(product: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The mask without those pixels of its rim that are nearer to the background than to the product beside them."""
    import cv2

    core = cv2.erode(product.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2)
    if not core.any():
        return product
    _, nearest = cv2.distanceTransformWithLabels(1 - core, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    beside = np.zeros(int(nearest.max()) + 1, dtype=np.float32)
    beside[nearest[core > 0]] = distance[core > 0]
    return product & ((core > 0) | (distance > 0.5 * beside[nearest]))


def _connected_to(wide: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """The parts of `wide` in which there is something of `sure`."""
    import cv2

    _, parts = cv2.connectedComponents(wide.astype(np.uint8), connectivity=8)
    kept = np.unique(parts[wide & sure])
    return np.isin(parts, kept[kept > 0])


def _filled(mask: np.ndarray, most: float = 1.0) -> np.ndarray:
    """The mask without its holes, as far as they are at most this share of the picture."""
    import cv2

    around = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    number, parts, stats, _ = cv2.connectedComponentsWithStats(around, connectivity=4)
    outside = parts[0, 0]
    holes = [n for n in range(1, number) if n != outside and stats[n, cv2.CC_STAT_AREA] <= most * mask.size]
    return mask | np.isin(parts, holes)[1:-1, 1:-1]


def _largest_parts(mask: np.ndarray) -> np.ndarray:
    import cv2

    number, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if number < 2:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    return np.isin(parts, 1 + np.flatnonzero(areas >= LEAST_PART * areas.max()))


class Segmenter:
    """A segmentation model of transformers, as a finder of products.

    Args:
        model_id: folder or Hub id of a model that `AutoModelForSemanticSegmentation` loads. Its first class is taken
            for the background; one class alone, as models that cut out the foreground have it, for the product.
        device: "cuda", "cpu" …; the accelerator if there is one when None.

    Raises:
        ValueError: there is no such model, or it is of another kind.
    """

    def __init__(self, model_id: str, device: str | None = None) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        try:
            self.processor = AutoImageProcessor.from_pretrained(model_id, trust_remote_code=False)
            model = AutoModelForSemanticSegmentation.from_pretrained(
                model_id, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
            raise ValueError(
                f"segmenter {model_id}: cannot be loaded ({' '.join(str(error).split())}); give a folder or Hub id "
                "that AutoModelForSemanticSegmentation loads"
            ) from error
        self.failures = ModelFailures(f"segmenter {model_id}")
        self.model = model.to(device or torch.accelerator.current_accelerator(check_available=True) or "cpu").eval()

    def mask(self, image: Image.Image) -> np.ndarray:
        """(H, W) float32, how surely each pixel of a picture is product."""
        import torch

        inputs = self.processor(images=image.convert("RGB"), return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()  # (1, classes, h, w)
            logits = torch.nn.functional.interpolate(logits, size=image.size[::-1], mode="bilinear")[0]
            product = logits[0].sigmoid() if len(logits) == 1 else 1 - logits.softmax(dim=0)[0]
        return product.cpu().numpy()
