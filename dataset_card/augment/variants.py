"""Visual expansion without a model: I_m, and variants in other surroundings, framing, viewpoint, light; details."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from .subject import Subject

KINDS = ("background", "framing", "viewpoint", "light", "detail")
WITHOUT_MASK = ("framing", "light")
LEAST_CONFIDENCE = 0.15  # of a mask that a product is cut out by
ROOM = 0.03  # of the frame, that stays free around a product that was moved
SOLID = 0.95  # mask from which on a pixel has no background in it
DETAIL_TRIALS = 16


class Variant(NamedTuple):
    """Another picture of a product.

    Attributes:
        kind: one of KINDS.
        image: RGB, its longer side at most that of the source.
        to_source: (3, 3) homography from its pixels to the source's; None for a detail, which is a part.
    """

    kind: str
    image: Image.Image
    to_source: np.ndarray | None


class CutOut(NamedTuple):
    """A product without its background: colours (H, W, 3) that go on a little beyond its edge, and its mask (H, W)."""

    colours: np.ndarray
    mask: np.ndarray


def main_image(image: Image.Image, subject: Subject) -> Image.Image:
    """I_m: the product alone on white, where it stood.

    Args:
        image: RGB or RGBA.
        subject: the product in it.
    """
    product = cut_out(_pixels(image), subject.mask)
    return _as_image(_over(product, np.full_like(product.colours, 255.0)))


def expand(
    image: Image.Image, subject: Subject, product_id: str, seed: int, per_product: int, kinds: Sequence[str] = KINDS
) -> list[Variant]:
    """Make variants of a product's picture; always the same for the same product, seed and picture.

    Kinds are taken in an order that chance chooses, none twice before all have come. Where the product was not found
    surely enough, only those come that need no mask.

    Args:
        image: RGB or RGBA.
        subject: the product in it.
        product_id, seed: fix all chance.
        per_product: how many.
        kinds: of KINDS.

    Returns:
        The variants; fewer than `per_product` where no kind is possible.
    """
    digest = hashlib.blake2b(product_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
    found = subject.method != "none" and subject.confidence >= LEAST_CONFIDENCE
    possible = [kind for kind in kinds if found or kind in WITHOUT_MASK]
    order = (
        [kind for _ in range(-(-per_product // len(possible))) for kind in rng.permutation(possible)]
        if possible
        else []
    )
    pixels = _pixels(image)
    product = cut_out(pixels, subject.mask) if found else None
    made = []
    for kind in order[:per_product]:
        match str(kind):
            case "background":
                height, width = subject.mask.shape
                scene = surroundings(height, width, rng)
                made.append(
                    Variant("background", _as_image(_over(product, _shaded(scene, subject.mask, rng))), np.eye(3))
                )
            case "framing":
                made.append(_framed(pixels, subject.mask if found else None, rng))
            case "viewpoint":
                made.append(_turned(pixels, product, rng))
            case "light":
                made.append(Variant("light", _as_image(_lit(pixels, rng)), np.eye(3)))
            case "detail":
                made.append(_detail(pixels, subject.mask, rng))
    return made


def cut_out(pixels: np.ndarray, mask: np.ndarray) -> CutOut:
    """Take a product off its background: at its edge, pixels mixed with background get the colour next to them inside.

    Args:
        pixels: (H, W, 3) float32, 0 to 255.
        mask: (H, W) float32.
    """
    solid = (mask >= min(SOLID, float(mask.max()))).astype(np.uint8)
    deeper = cv2.erode(solid, np.ones((3, 3), np.uint8), iterations=2)  # JPEG mixes colours some pixels deep
    mixed = (deeper if deeper.any() else solid) == 0
    _, nearest = cv2.distanceTransformWithLabels(
        mixed.astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    inside = np.zeros((int(nearest.max()) + 1, 3), dtype=np.float32)
    inside[nearest[~mixed]] = pixels[~mixed]
    # a little narrower than it is, or a rim of the old background would shine through
    return CutOut(np.where(mixed[..., None], inside[nearest], pixels), np.clip((mask - 0.6) / 0.4, 0, 1))


def surroundings(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Something to stand before: a plain colour, a gradient, a room, wood or cloth.

    Args:
        height, width: pixels.
        rng: chooses.

    Returns:
        (H, W, 3) float32, 0 to 255.
    """
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    first, second = rng.uniform(90, 250, (2, 3)).astype(np.float32)
    match int(rng.integers(5)):
        case 0:
            scene = first + 0 * x + 0 * y
        case 1:
            along = np.clip(0.5 + (x - 0.5) * rng.uniform(-1, 1) + (y - 0.5) * rng.uniform(-1, 1), 0, 1)
            scene = first * (1 - along) + second * along
        case 2:  # a wall above a floor
            line = rng.uniform(0.6, 0.85)
            scene = np.where(y < line, first - 20 * y, 0.6 * second + 50 * (y - line) + 0 * x)
            scene = scene + 6 * _clouds(height, width, 6, 6, rng)
        case 3:  # boards with grain
            boards = (y * rng.integers(3, 7)).astype(int)
            tone = np.array([[150, 108, 70], [186, 146, 104], [112, 80, 56], [204, 178, 148]], dtype=np.float32)
            light = 1 + 0.1 * rng.normal(size=8).astype(np.float32)[boards]
            scene = tone[rng.integers(4)] * light + 9 * _clouds(height, width, max(2, height // 3), 4, rng) + 0 * x
        case _:  # folds and weave
            folds = np.sin((x * rng.uniform(3, 9) + y * rng.uniform(-4, 4) + rng.uniform(0, 6)) * 2)
            scene = first + 14 * folds + 5 * _clouds(height, width, height // 2, width // 2, rng)
    return np.broadcast_to(scene, (height, width, 3)).astype(np.float32).clip(0, 255)


def _framed(pixels: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator) -> Variant:
    """Nearer, further, aside; the product stays whole, and what lies beyond the picture goes on as its border does."""
    height, width = pixels.shape[:2]
    top, bottom, left, right = (0, height, 0, width) if mask is None else _extent(mask > 0.05)
    room = rng.uniform(0.03, 0.35, 4) * max(bottom - top, right - left)
    if mask is not None:  # where the picture cuts the product off there is nothing to go on with
        room *= [side.max() < 0.5 for side in (mask[0], mask[:, 0], mask[-1], mask[:, -1])]
    top, left, bottom, right = top - room[0], left - room[1], bottom + room[2], right + room[3]
    size = max(height, width) / max(bottom - top, right - left)
    shape = max(8, round((right - left) * size)), max(8, round((bottom - top) * size))
    forward = np.array([[size, 0, -left * size], [0, size, -top * size], [0, 0, 1]])
    framed = cv2.warpPerspective(
        pixels, forward, shape, flags=cv2.INTER_AREA if size < 1 else cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return Variant("framing", _as_image(framed), np.linalg.inv(forward))


def _turned(pixels: np.ndarray, product: CutOut, rng: np.random.Generator) -> Variant:
    """As a camera sees the flat picture from aside, before a plain colour like that of its border."""
    height, width = product.mask.shape
    yaw, pitch, roll = np.radians(rng.uniform((-24, -10, -12), (24, 10, 12)))
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    far = 2.5 * max(height, width)
    centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    # a point (x, y) of the picture lies at (x, y, 0) before a camera at distance `far`
    seen = np.diag([far, far, 1.0]) @ (
        about_z @ about_x @ about_y @ np.diag([1, 1, 0]) + np.array([[0, 0, 0], [0, 0, 0], [0, 0, far]])
    )
    forward = seen @ centre
    top, bottom, left, right = _extent(product.mask > 0.05)
    corners = np.array([[left, right, right, left], [top, top, bottom, bottom], [1, 1, 1, 1]], dtype=np.float64)
    turned = forward @ corners
    turned = turned[:2] / turned[2]  # (2, 4)
    low, high = turned.min(axis=1), turned.max(axis=1)
    frame = np.array([width, height])
    size = min(1.0, *((1 - 2 * ROOM) * frame / (high - low)))
    wish = frame / 2 - size * (low + high) / 2  # to the middle
    forward = np.array([[size, 0, wish[0]], [0, size, wish[1]], [0, 0, 1]]) @ forward
    colours = cv2.warpPerspective(product.colours, forward, (width, height), borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpPerspective(product.mask, forward, (width, height))
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    scene = np.broadcast_to(np.median(rim, axis=0), pixels.shape).astype(np.float32)
    return Variant("viewpoint", _as_image(_over(CutOut(colours, mask), scene)), np.linalg.inv(forward))


def _lit(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other exposure, colour temperature and contrast, and light from one side."""
    height, width = pixels.shape[:2]
    warmth = rng.uniform(-0.12, 0.12)
    light = rng.uniform(0.75, 1.15) * np.array([1 + warmth, 1, 1 - warmth], dtype=np.float32)
    slope = rng.uniform(-0.18, 0.18, 2)
    side = 1 + slope[0] * np.linspace(-1, 1, width)[None, :] + slope[1] * np.linspace(-1, 1, height)[:, None]
    return 255 * (pixels / 255).clip(0, 1) ** rng.uniform(0.8, 1.25) * light * side[..., None].astype(np.float32)


def _detail(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Variant:
    """The liveliest of some squares within the product."""
    top, bottom, left, right = _extent(mask > 0.5)
    side = max(8, round(rng.uniform(0.3, 0.5) * min(bottom - top, right - left)))
    height, width = mask.shape
    side = min(side, height, width)
    covered = cv2.boxFilter(mask, -1, (side, side), anchor=(0, 0), normalize=True)[
        : height - side + 1, : width - side + 1
    ]
    places = np.argwhere(covered >= min(0.995, float(covered.max())))
    grey = pixels.mean(axis=-1)
    best, most = None, -1.0
    for y, x in places[rng.integers(len(places), size=DETAIL_TRIALS)]:
        liveliness = float(grey[y : y + side, x : x + side].std())
        if liveliness > most:
            best, most = pixels[y : y + side, x : x + side], liveliness
    size = min(max(height, width), 3 * side)
    return Variant("detail", _as_image(cv2.resize(best, (size, size), interpolation=cv2.INTER_CUBIC)), None)


def _shaded(scene: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scene with the product's soft shadow on it."""
    reach = 0.03 * max(mask.shape)
    shift = np.array([[1, 0, rng.uniform(-1, 1) * reach], [0, 1, reach]])
    fallen = cv2.GaussianBlur(cv2.warpAffine(mask, shift, mask.shape[::-1]), (0, 0), reach)
    return scene * (1 - rng.uniform(0.15, 0.4) * fallen)[..., None]


def _over(product: CutOut, scene: np.ndarray) -> np.ndarray:
    return scene + product.mask[..., None] * (product.colours - scene)


def _clouds(height: int, width: int, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 1) noise about 0 with so many swells."""
    coarse = rng.normal(size=(max(2, rows), max(2, columns))).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]


def _extent(inside: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is True; all of it if nothing is."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return 0, inside.shape[0], 0, inside.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float32, transparency on white."""
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
