"""Draws the demo catalogue's products with Pillow: cloth and pattern, shape, camera, light, backdrop, JPEG."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .demo_shapes import SHAPES, STANDING, Pen

COLOURS = {
    "black": (40, 40, 44),
    "white": (238, 237, 232),
    "grey": (138, 142, 148),
    "navy": (34, 50, 104),
    "blue": (72, 144, 216),
    "green": (48, 130, 78),
    "yellow": (240, 200, 62),
    "orange": (232, 122, 42),
    "red": (198, 38, 48),
    "pink": (238, 150, 182),
    "purple": (122, 70, 162),
    "brown": (124, 80, 50),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "floral", "zigzag")
GLOSS = {"leather": 0.5, "ceramic": 0.9, "porcelain": 1.0, "metal": 0.9, "plastic": 0.6, "nylon": 0.3, "silk": 0.6}
UNDYED = "undyed"  # colour of a sample that does not show the product's
ALIKE = 0.15  # difference in gloss that nobody sees
BACKDROPS = ("white", "grey", "gradient", "room", "wood")

_SIDE = 160
_CANVAS = 2 * _SIDE


@dataclass(frozen=True)
class Look:
    """All that shows of a product in its pictures.

    Attributes:
        shape: a key of `SHAPES`.
        colour: a key of `COLOURS`, or `UNDYED`.
        pattern: one of `PATTERNS`.
        material: anything; some have a weave or a gloss that shows.
        brand: number of the brand, which chooses its mark.
        cut: four numbers in 0..1, the proportions of this model.
    """

    shape: str
    colour: str
    pattern: str
    material: str
    brand: int
    cut: tuple[float, float, float, float]

    def without(self, traits: Iterable[str]) -> Look:
        """The look of a bare sample, which does not show some of "colour", "pattern" and "material"."""
        unseen = {"colour": UNDYED, "pattern": "plain", "material": ""}
        return replace(self, **{trait: unseen[trait] for trait in traits})

    def told(self, materials: Iterable[str]) -> set[str]:
        """What a picture says of colour, pattern and material to someone who knows what words mean.

        The material is among it if it looks like none of the others. The brand is not: there is a mark, but it does
        not say the name.

        Args:
            materials: what a product of this kind may be made of.
        """
        others = [other for other in materials if other != self.material]
        alike = any(_look_alike(self.material, other) for other in others)
        return {"colour", "pattern"} if alike else {"colour", "pattern", "material"}


@dataclass(frozen=True)
class Camera:
    """How a product is seen: angles in degrees, scale 1 fills the frame, then mirrored or not."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 0.92
    mirror: bool = False


def photograph(
    look: Look, camera: Camera, backdrop: str, rng: np.random.Generator, phone: bool = False, quality: int = 88
) -> bytes:
    """Draw one picture of a product.

    Args:
        look: the product.
        camera: how it is seen.
        backdrop: one of `BACKDROPS`.
        rng: draws frame, backdrop and light.
        phone: other light, a colour cast and noise, as in a shopper's own photo.
        quality: JPEG quality.

    Returns:
        JPEG bytes; the longest side is 160 px.
    """
    width, height = [(_SIDE, _SIDE), (_SIDE * 4 // 5, _SIDE), (_SIDE, _SIDE * 4 // 5)][
        rng.choice(3, p=[0.6, 0.25, 0.15])
    ]
    product = _seen(_drawn(look), camera, width, height)
    alpha = _coverage(product)  # (H, W)
    colour = np.asarray(product.convert("RGB"), dtype=np.float32)  # (H, W, 3)
    sun = rng.uniform(-0.9, 0.9) if phone else -0.6
    scene = _backdrop(backdrop, width, height, rng) * (1 - _shadow(alpha, sun, look.shape in STANDING))[..., None]
    scene += alpha[..., None] * (_lit(colour, alpha, sun, _gloss(look.material)) - scene)
    if phone:
        slope = np.linspace(-1, 1, width, dtype=np.float32) * rng.uniform(-0.15, 0.15)
        scene *= (rng.uniform(0.7, 1.1) + slope)[None, :, None] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
        scene += rng.normal(0, 5, scene.shape).astype(np.float32)
    picture = BytesIO()
    Image.fromarray(scene.clip(0, 255).astype(np.uint8)).save(picture, "JPEG", quality=quality)
    return picture.getvalue()


def silhouette(look: Look, camera: Camera, width: int, height: int) -> np.ndarray:
    """(height, width) float32 in 0..1: how far the product covers each pixel of a picture that `photograph` draws."""
    return _coverage(_seen(_drawn(look), camera, width, height))


@lru_cache(maxsize=4)
def _drawn(look: Look) -> Image.Image:
    """The product from the front on a transparent canvas, twice as large as the picture."""
    base = (196, 190, 176) if look.colour == UNDYED else COLOURS[look.colour]
    accent = _accent(look.colour)
    pen = Pen(_cloth(look, base, accent), base, accent, look.cut, look.brand)
    SHAPES[look.shape](pen)
    return pen.canvas


def _accent(colour: str) -> tuple[int, int, int]:
    """A second colour that stands out from the first."""
    light = {"white": "navy", "yellow": "brown", "pink": "purple", "grey": "black", UNDYED: "grey"}
    return COLOURS[light.get(colour, "white")]


def _cloth(look: Look, base: tuple[int, int, int], accent: tuple[int, int, int]) -> Image.Image:
    """A canvas full of the product's material and pattern."""
    cloth = Image.new("RGB", (_CANVAS, _CANVAS), base)
    draw = ImageDraw.Draw(cloth, "RGBA")
    step = round(_CANVAS * (0.065 + 0.035 * look.cut[3]))
    if look.pattern == "striped":
        for y in range(0, _CANVAS, step):
            draw.rectangle([0, y, _CANVAS, y + step * 2 // 5], fill=accent)
    elif look.pattern == "checked":
        for at in range(0, _CANVAS, step * 3 // 2):
            draw.rectangle([0, at, _CANVAS, at + step * 3 // 5], fill=(*accent, 110))
            draw.rectangle([at, 0, at + step * 3 // 5, _CANVAS], fill=(*accent, 110))
    elif look.pattern == "zigzag":
        for y in range(0, _CANVAS + step, step):
            points = [(x * step // 2, y - (x % 2) * step // 2) for x in range(2 * _CANVAS // step + 2)]
            draw.line(points, fill=accent, width=step // 4)
    elif look.pattern in ("dotted", "floral"):
        for row, y in enumerate(range(0, _CANVAS + step, step)):
            for x in range((row % 2) * step // 2, _CANVAS + step, step):
                _dot(draw, x, y, step / 4, accent) if look.pattern == "dotted" else _flower(
                    draw, x, y, step / 5, accent
                )
    return ImageChops.multiply(cloth, _weave(look.material))


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _flower(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    for angle in np.arange(5) * 2 * np.pi / 5 + x * 0.7:
        _dot(draw, x + radius * np.cos(angle), y + radius * np.sin(angle), radius * 0.75, colour)
    _dot(draw, x, y, radius * 0.6, (240, 180, 40))


def _gloss(material: str) -> float:
    return GLOSS.get(material, 0.08)


def _look_alike(material: str, other: str) -> bool:
    """Whether two materials have the same weave and nearly the same gloss."""
    weaves = [name if name in WEAVES else None for name in (material, other)]
    return weaves[0] == weaves[1] and abs(_gloss(material) - _gloss(other)) < ALIKE


# what a material does to the light, at x, y with noise in 0..1; others have no weave
WEAVES = {
    "denim": lambda x, y, noise: 0.86 + 0.1 * np.sin((x + y) * 1.1) + 0.08 * (noise - 0.5),
    "wool": lambda x, y, noise: 0.86 + 0.12 * np.abs(np.sin(x * 0.32)) + 0.1 * (noise - 0.5),
    "linen": lambda x, y, noise: 0.92 + 0.05 * np.sin(x * 1.6) + 0.05 * np.sin(y * 1.6) + 0.08 * (noise - 0.5),
    "canvas": lambda x, y, noise: 0.9 + 0.08 * np.sign(np.sin(x * 0.9) * np.sin(y * 0.9)),
    "suede": lambda x, y, noise: 0.88 + 0.2 * (noise - 0.5),
    "wood": lambda x, y, noise: 0.85 + 0.13 * np.sin(y * 0.12 + 2.5 * np.sin(x * 0.02) + 0.4 * noise),
    "metal": lambda x, y, noise: 0.88 + 0.1 * np.sin(x * 0.05),
}


@cache
def _weave(material: str) -> Image.Image:
    """What the material does to the light: a canvas to multiply with."""
    y, x = np.mgrid[:_CANVAS, :_CANVAS].astype(np.float32)
    noise = np.random.default_rng(len(material)).random((_CANVAS, _CANVAS), dtype=np.float32)
    tone = WEAVES[material](x, y, noise) if material in WEAVES else np.full_like(x, 0.98)
    return Image.fromarray((tone.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def _seen(drawn: Image.Image, camera: Camera, width: int, height: int) -> Image.Image:
    """The drawn product as the camera sees it: RGBA, (height, width)."""
    yaw, pitch, roll = np.radians([camera.yaw, camera.pitch, camera.roll])
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    x, y = corners[:, 0] * np.cos(yaw), corners[:, 1] * np.cos(pitch)
    depth = 2.4 + corners[:, 0] * np.sin(yaw) + corners[:, 1] * np.sin(pitch)
    x, y = 2.4 * x / depth, 2.4 * y / depth
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    size = 2 * camera.scale * min(width, height)
    target = np.stack([x * size * (-1 if camera.mirror else 1) + width, y * size + height], axis=1)
    source = (corners + 0.5) * _CANVAS
    rows, values = [], []
    for (u, v), (s, t) in zip(target, source, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -s * u, -s * v], [0, 0, 0, u, v, 1, -t * u, -t * v]]
        values += [s, t]
    coefficients = np.linalg.solve(np.array(rows), np.array(values)).tolist()
    turned = drawn.transform(
        (2 * width, 2 * height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR
    )
    return turned.reduce(2)


def _coverage(product: Image.Image) -> np.ndarray:
    return np.asarray(product.getchannel("A"), dtype=np.float32) / 255


def _blurred(alpha: np.ndarray, radius: float) -> np.ndarray:
    """A soft copy of an (H, W) mask; blurred at a quarter of the size, which is enough and quick."""
    height, width = alpha.shape
    small = Image.fromarray((alpha * 255).astype(np.uint8)).reduce(4)
    soft = small.filter(ImageFilter.GaussianBlur(radius / 4)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(soft, dtype=np.float32) / 255


def _lit(colour: np.ndarray, alpha: np.ndarray, sun: float, gloss: float) -> np.ndarray:
    """Round the flat shape: edges away from the light fall dark, those towards it catch it."""
    inside = _blurred(alpha, 8)
    down, right = np.gradient(inside)
    facing = (down * 0.8 - right * sun) * 8  # (H, W)
    shade = 0.8 + 0.2 * inside + 0.28 * facing
    return colour * shade[..., None] + (gloss * 190 * np.clip(facing - 0.12, 0, 0.5))[..., None]


def _shadow(alpha: np.ndarray, sun: float, standing: bool) -> np.ndarray:
    """How much of the light the product takes from what is behind and under it: (H, W)."""
    height, width = alpha.shape
    fallen = np.roll(alpha, (4, round(-4 * sun)), axis=(0, 1))
    shadow = 0.3 * _blurred(fallen, 6)
    rows, columns = np.flatnonzero(alpha.max(1) > 0.5), np.flatnonzero(alpha.max(0) > 0.5)
    if standing and len(rows):
        y, x = np.ogrid[:height, :width]
        middle, reach = (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0]) / 1.8 + 1
        pool = ((x - middle - reach * 0.1 * -sun) / reach) ** 2 + ((y - rows[-1]) / 6) ** 2
        shadow = np.maximum(shadow, 0.5 * np.exp(-1.5 * pool))
    return shadow


def _soft_noise(height: int, width: int, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) noise about 0 with `rows` by `columns` swells."""
    coarse = Image.fromarray(rng.normal(0, 1, (rows, columns)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _backdrop(kind: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """What stands behind the product: (H, W, 3) float32 in 0..255."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    pastel = rng.uniform(150, 235, 3).astype(np.float32)
    if kind == "white":
        scene = 251 - 8 * y + 0 * x
    elif kind == "grey":
        scene = rng.uniform(185, 220) - 28 * ((x - 0.5) ** 2 + (y - 0.45) ** 2) + 0 * x
    elif kind == "gradient":
        along = np.clip(0.5 + (x - 0.5) * rng.uniform(-0.8, 0.8) + (y - 0.5) * 0.8, 0, 1)
        scene = pastel * (1 - along) + rng.uniform(120, 240, 3).astype(np.float32) * along
    elif kind == "wood":
        scene = _planks(width, height, rng)
    else:
        edge = rng.uniform(0.62, 0.8)
        window = np.exp(-(((x - rng.uniform(0, 1)) / 0.25) ** 2) - ((y - 0.25) / 0.3) ** 2)
        wall = pastel * 0.9 + 26 * window + 5 * _soft_noise(height, width, 12, 12, rng)[..., None]
        floor = _planks(width, height, rng) * (0.75 + 0.35 * y)
        scene = np.where(y < edge, wall, floor)
        scene = np.where(np.abs(y - edge) < 0.014, 232, scene)
        scene += rng.normal(0, 2.5, (height, width, 1))
    return np.broadcast_to(scene, (height, width, 3)).astype(np.float32)


def _planks(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(3, 6))
    plank = np.arange(height) * count // height  # (H,)
    tone = np.array([[150, 108, 70], [186, 146, 104], [112, 80, 56], [204, 178, 148]])[rng.integers(4)]
    grain = 7 * _soft_noise(height, width, height // 3, 5, rng) + 5 * _soft_noise(height, width, height, 3, rng)
    light = 1 + 0.08 * rng.normal(0, 1, count)[plank] - 0.35 * (np.diff(plank, prepend=0) > 0)
    return (tone + grain[..., None]) * light[:, None, None]
