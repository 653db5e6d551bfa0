"""The outlines of the demo catalogue's products: one small function per category, in unit coordinates, y downwards."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageDraw

Points = list[tuple[float, float]]
Colour = tuple[int, int, int]

METAL, WOOD, RUBBER, GLASS = (176, 180, 188), (168, 120, 76), (60, 58, 58), (54, 62, 72)


class Pen:
    """Draws the parts of one product on a transparent canvas; what has no colour of its own is cut from the cloth.

    Args:
        cloth: RGB canvas full of the product's material and pattern.
        base: the product's colour.
        accent: its second colour.
        cut: four numbers in 0..1, the proportions of this model.
        brand: number of the brand, which chooses its mark.
    """

    def __init__(
        self, cloth: Image.Image, base: Colour, accent: Colour, cut: tuple[float, float, float, float], brand: int
    ) -> None:
        self.canvas = Image.new("RGBA", cloth.size)
        self.draw = ImageDraw.Draw(self.canvas)
        self.cloth, self.base, self.accent, self.cut, self.brand = cloth, base, accent, cut, brand
        self.side = cloth.width
        self.seam = mixed(base, (0, 0, 0), 0.4) if sum(base) > 220 else mixed(base, (255, 255, 255), 0.3)

    def fill(self, points: Points, shade: float = 1.0, colour: Colour | None = None, soft: int = 2) -> None:
        """A closed outline, its corners rounded `soft` times."""
        mask = Image.new("L", self.canvas.size)
        ImageDraw.Draw(mask).polygon(self._pixels(rounded(points, soft)), fill=255)
        self._paste(mask, shade, colour)

    def disc(
        self, x: float, y: float, rx: float, ry: float | None = None, shade: float = 1.0, colour: Colour | None = None
    ) -> None:
        ry = rx if ry is None else ry
        mask = Image.new("L", self.canvas.size)
        box = self._pixels([(x - rx, y - ry), (x + rx, y + ry)])
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        self._paste(mask, shade, colour)

    def line(self, points: Points, width: float = 0.008, colour: Colour | None = None) -> None:
        """An open line; a seam where it has no colour."""
        self.draw.line(self._pixels(points), fill=colour or self.seam, width=round(width * self.side), joint="curve")

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float, colour: Colour
    ) -> None:
        """Part of an ellipse's rim, in degrees clockwise from the right."""
        box = self._pixels([(x - rx, y - ry), (x + rx, y + ry)])
        self.draw.arc(box, start, end, fill=colour, width=round(width * self.side))

    def mark(self, x: float, y: float, size: float = 0.028) -> None:
        """The brand's mark: one of six forms, in one of two colours."""
        colour = self.accent if self.brand // 6 % 2 else (222, 178, 64)
        form = self.brand % 6
        if form == 0:
            self.disc(x, y, size, colour=colour)
        elif form == 1:
            self.fill([(x, y - size), (x + size, y + size), (x - size, y + size)], colour=colour, soft=0)
        elif form == 2:
            self.fill([(x, y - size), (x + size, y), (x, y + size), (x - size, y)], colour=colour, soft=0)
        elif form == 3:
            self.line([(x - size, y), (x + size, y)], size * 0.7, colour)
        elif form == 4:
            self.arc(x, y, size, size, 0, 360, size * 0.5, colour)
        else:
            self.line([(x - size, y), (x + size, y)], size * 0.6, colour)
            self.line([(x, y - size), (x, y + size)], size * 0.6, colour)

    def _paste(self, mask: Image.Image, shade: float, colour: Colour | None) -> None:
        if colour is not None:
            self.canvas.paste(mixed(colour, (0, 0, 0), 1 - shade), mask=mask)
        elif shade == 1.0:
            self.canvas.paste(self.cloth, mask=mask)
        else:
            self.canvas.paste(self.cloth.point(lambda value: round(value * shade)), mask=mask)

    def _pixels(self, points: Points) -> Points:
        return [(x * self.side, y * self.side) for x, y in points]


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with a share of another."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def rounded(points: Points, times: int) -> Points:
    """Cut the corners of a closed outline (Chaikin)."""
    for _ in range(times):
        following = points[1:] + points[:1]
        points = [
            (x + (u - x) * share, y + (v - y) * share)
            for (x, y), (u, v) in zip(points, following, strict=True)
            for share in (0.2, 0.8)
        ]
    return points


def mirrored(half: Points) -> Points:
    """The right half of an outline, from top to bottom, and its mirror image."""
    return half + [(1 - x, y) for x, y in reversed(half)]


def _torso(pen: Pen, sleeve: Points, hem: float, neck: float = 0.09) -> None:
    """Body and both sleeves of a garment laid flat; `sleeve` is the right one."""
    half = 0.2 + 0.035 * pen.cut[0]
    for side in (sleeve, [(1 - x, y) for x, y in sleeve]):
        pen.fill(side, 0.93, soft=1)
    pen.fill(mirrored([(0.5 + neck, 0.12), (0.7, 0.17), (0.5 + half, 0.4), (0.5 + half + 0.01, hem)]), soft=1)
    pen.line([(0.7, 0.18), (0.5 + half - 0.005, 0.4)])
    pen.line([(0.3, 0.18), (0.5 - half + 0.005, 0.4)])
    pen.line([(0.5 - half, hem - 0.035), (0.5 + half, hem - 0.035)])


_LONG_SLEEVE = [(0.64, 0.14), (0.73, 0.19), (0.9, 0.72), (0.79, 0.76), (0.7, 0.42)]


def t_shirt(pen: Pen) -> None:
    reach = 0.1 * pen.cut[1]
    _torso(pen, [(0.64, 0.14), (0.73, 0.18), (0.92, 0.36 + reach), (0.8, 0.44 + reach), (0.68, 0.36)], 0.86)
    if pen.cut[2] < 0.5:
        pen.disc(0.5, 0.125, 0.105, 0.075, 0.55)
        pen.arc(0.5, 0.125, 0.115, 0.085, 0, 180, 0.022, pen.seam)
    else:
        pen.fill([(0.39, 0.11), (0.61, 0.11), (0.5, 0.27)], 0.55, soft=0)
        pen.line([(0.39, 0.11), (0.5, 0.27), (0.61, 0.11)], 0.02)
    pen.mark(0.62, 0.32)


def shirt(pen: Pen) -> None:
    _torso(pen, _LONG_SLEEVE, 0.9)
    pen.fill([(0.42, 0.11), (0.58, 0.11), (0.5, 0.2)], 0.5, soft=0)
    pen.line([(0.5, 0.2), (0.5, 0.9)], 0.05, pen.seam)
    pen.fill([(0.478, 0.19), (0.522, 0.19), (0.522, 0.9), (0.478, 0.9)], 0.95, soft=0)
    for button in range(6):
        pen.disc(0.5, 0.26 + 0.115 * button, 0.011, colour=pen.accent)
    for x in (0.42, 0.58):
        inner = 0.5 + (x - 0.5) * 0.1
        pen.fill([(x, 0.085), (inner, 0.2), (x + (x - 0.5) * 0.35, 0.26), (x + (x - 0.5) * 0.6, 0.13)], 1.0, soft=0)
        pen.line([(inner, 0.2), (x + (x - 0.5) * 0.35, 0.26), (x + (x - 0.5) * 0.6, 0.13)], 0.01)
    pen.line([(0.765, 0.7), (0.88, 0.66)])
    pen.line([(0.235, 0.7), (0.12, 0.66)])
    if pen.cut[1] < 0.6:
        pen.line([(0.57, 0.36), (0.67, 0.36), (0.67, 0.46), (0.62, 0.49), (0.57, 0.46), (0.57, 0.36)])
    pen.mark(0.62, 0.42, 0.022)


def hoodie(pen: Pen) -> None:
    pen.fill(mirrored([(0.58, 0.03), (0.68, 0.12), (0.66, 0.22), (0.56, 0.27)]), 0.9)
    _torso(pen, _LONG_SLEEVE, 0.88, neck=0.13)
    pen.fill(mirrored([(0.58, 0.05), (0.66, 0.12), (0.6, 0.24), (0.52, 0.3)]), 0.95)
    pen.disc(0.5, 0.145, 0.1, 0.085, 0.45)
    for x in (0.45, 0.55):
        pen.line([(x, 0.24), (x - 0.01, 0.42)], 0.012, pen.accent)
    pocket = mirrored([(0.58, 0.6), (0.68, 0.74), (0.68, 0.8)])
    pen.line([*pocket, pocket[0]], 0.012)
    for x, away in ((0.845, 0.0), (0.155, 0.0)):
        pen.line([(x - 0.06, 0.71 + away), (x + 0.06, 0.69 + away)], 0.012)
    if pen.cut[1] < 0.4:
        pen.line([(0.5, 0.28), (0.5, 0.88)], 0.014, METAL)
    pen.mark(0.61, 0.38)


def jacket(pen: Pen) -> None:
    _torso(pen, _LONG_SLEEVE, 0.84 + 0.08 * pen.cut[1], neck=0.12)
    hem = 0.84 + 0.08 * pen.cut[1]
    pen.fill([(0.41, 0.1), (0.59, 0.1), (0.52, 0.42), (0.515, hem), (0.485, hem), (0.48, 0.42)], 0.4, soft=0)
    for side in (1, -1):
        pen.fill(
            [(0.5 + side * x, y) for x, y in [(0.08, 0.08), (0.15, 0.15), (0.13, 0.3), (0.02, 0.44)]], 0.82, soft=0
        )
        pen.line([(0.5 + side * x, y) for x, y in [(0.15, 0.15), (0.13, 0.3), (0.02, 0.44)]])
        pen.line([(0.5 + side * 0.08, 0.64), (0.5 + side * 0.18, 0.6)], 0.022)
        pen.line([(0.5 + side * 0.3, 0.69), (0.5 + side * 0.39, 0.66)], 0.012)
    for button in range(3):
        pen.disc(0.545, 0.5 + 0.1 * button, 0.014, colour=pen.accent)
    pen.mark(0.64, 0.42)


def trousers(pen: Pen) -> None:
    foot = 0.05 + 0.06 * pen.cut[0]
    pen.fill(
        mirrored([(0.68, 0.06), (0.73, 0.3), (0.66 + foot, 0.95), (0.66 - foot, 0.95), (0.52, 0.36), (0.5, 0.34)]),
        soft=1,
    )
    pen.fill([(0.315, 0.06), (0.685, 0.06), (0.69, 0.12), (0.31, 0.12)], 0.82, soft=0)
    pen.line([(0.5, 0.12), (0.5, 0.36)])
    pen.line([(0.54, 0.12), (0.54, 0.25), (0.505, 0.3)], 0.006)
    for side in (1, -1):
        pen.line([(0.5 + side * 0.1, 0.12), (0.5 + side * 0.14, 0.2), (0.5 + side * 0.215, 0.22)])
        pen.line([(0.5 + side * 0.13, 0.3), (0.5 + side * 0.16, 0.94)], 0.005)
        pen.line([(0.5 + side * (0.16 - foot), 0.92), (0.5 + side * (0.16 + foot), 0.92)], 0.006)
    pen.disc(0.5, 0.09, 0.014, colour=METAL)
    pen.mark(0.62, 0.27, 0.022)


def dress(pen: Pen) -> None:
    flare, hem = 0.24 + 0.1 * pen.cut[0], 0.84 + 0.1 * pen.cut[1]
    if pen.cut[2] < 0.5:
        for side in (1, -1):
            pen.fill(
                [(0.5 + side * x, y) for x, y in [(0.12, 0.07), (0.2, 0.1), (0.27, 0.24), (0.19, 0.29)]], 0.9, soft=1
            )
    else:
        for side in (1, -1):
            pen.line([(0.5 + side * 0.13, 0.15), (0.5 + side * 0.1, 0.04)], 0.025, pen.base)
    top = mirrored([(0.56, 0.14), (0.63, 0.09), (0.67, 0.24), (0.61, 0.42)])
    pen.fill(mirrored([(0.61, 0.42), (0.5 + flare, hem), (0.5 + flare * 0.5, hem + 0.02)]), soft=1)
    for fold in (-0.5, -0.15, 0.2, 0.55):
        pen.line([(0.5 + fold * 0.18, 0.47), (0.5 + fold * flare * 1.5, hem - 0.01)], 0.006)
    pen.fill(top, soft=1)
    pen.fill([(0.385, 0.4), (0.615, 0.4), (0.62, 0.45), (0.38, 0.45)], colour=pen.seam, soft=0)
    pen.mark(0.5, 0.425, 0.02)


def sneaker(pen: Pen) -> None:
    top = 0.3 + 0.1 * pen.cut[0]
    pen.fill([(0.08, top), (0.3, top + 0.02), (0.46, 0.5), (0.72, 0.58), (0.93, 0.66), (0.94, 0.76), (0.07, 0.76)])
    pen.disc(0.19, top + 0.03, 0.11, 0.035, 0.4)
    pen.fill([(0.72, 0.585), (0.93, 0.65), (0.945, 0.76), (0.66, 0.76)], 0.8)
    pen.fill([(0.075, top + 0.06), (0.14, top + 0.1), (0.17, 0.76), (0.07, 0.76)], 0.75, soft=1)
    pen.fill(
        [(0.05, 0.73), (0.95, 0.73), (0.95, 0.82), (0.88, 0.85), (0.08, 0.85), (0.05, 0.8)], colour=(236, 234, 228)
    )
    pen.line([(0.06, 0.79), (0.945, 0.79)], 0.01, (196, 192, 186))
    for lace in range(4):
        x, y = 0.34 + 0.085 * lace, top + 0.1 + (0.52 - top) * 0.22 * lace
        pen.line([(x, y), (x + 0.075, y - 0.035)], 0.018, pen.accent)
    pen.line([(0.26, top + 0.08), (0.4, 0.66), (0.62, 0.73)])
    pen.mark(0.33, 0.62, 0.05)


def boot(pen: Pen) -> None:
    top = 0.08 + 0.22 * pen.cut[0]
    pen.fill([(0.2, top), (0.52, top), (0.54, 0.5), (0.72, 0.6), (0.88, 0.68), (0.9, 0.82), (0.18, 0.82)])
    pen.disc(0.36, top + 0.03, 0.14, 0.03, 0.4)
    heel = 0.87 + 0.06 * pen.cut[1]
    pen.fill(
        [(0.17, 0.79), (0.91, 0.79), (0.91, 0.84), (0.46, 0.85), (0.42, heel), (0.18, heel)], colour=RUBBER, soft=1
    )
    pen.line([(0.54, 0.5), (0.42, 0.62), (0.4, 0.79)])
    pen.line([(0.7, 0.59), (0.68, 0.7), (0.72, 0.79)])
    if pen.cut[2] < 0.5:
        for lace in range(5):
            y = top + 0.1 + (0.48 - top) * 0.2 * lace
            pen.line([(0.45, y + 0.015), (0.545, y)], 0.016, pen.accent)
    else:
        pen.line([(0.2, 0.56), (0.55, 0.53)], 0.04, pen.seam)
        pen.fill([(0.38, 0.51), (0.45, 0.505), (0.455, 0.575), (0.385, 0.58)], colour=METAL, soft=0)
    pen.mark(0.3, top + 0.16, 0.032)


def sandal(pen: Pen) -> None:
    pen.fill([(0.06, 0.66), (0.3, 0.69), (0.55, 0.75), (0.94, 0.76), (0.95, 0.82), (0.07, 0.82)], colour=WOOD)
    pen.fill([(0.05, 0.78), (0.95, 0.79), (0.94, 0.86), (0.06, 0.86)], colour=RUBBER, soft=1)
    pen.fill([(0.62, 0.76), (0.67, 0.56), (0.78, 0.54), (0.9, 0.76)])
    pen.fill([(0.28, 0.7), (0.36, 0.46), (0.46, 0.44), (0.53, 0.74)])
    pen.line([(0.1, 0.68), (0.12, 0.5), (0.24, 0.46), (0.4, 0.5)], 0.04, pen.base)
    if pen.cut[0] < 0.5:
        pen.line([(0.43, 0.5), (0.7, 0.58)], 0.04, pen.base)
    pen.fill([(0.37, 0.5), (0.44, 0.49), (0.45, 0.56), (0.38, 0.57)], colour=METAL, soft=0)
    pen.mark(0.76, 0.65, 0.032)


def backpack(pen: Pen) -> None:
    width = 0.27 + 0.06 * pen.cut[0]
    pen.arc(0.5, 0.12, 0.09, 0.09, 180, 360, 0.03, pen.seam)
    for side in (1, -1):
        pen.fill(
            [(0.5 + side * (width + x), y) for x, y in [(-0.04, 0.25), (0.05, 0.4), (0.05, 0.78), (-0.04, 0.86)]], 0.7
        )
    pen.fill(mirrored([(0.5 + width * 0.55, 0.1), (0.5 + width, 0.22), (0.5 + width + 0.02, 0.9)]))
    pocket = 0.54 + 0.08 * pen.cut[1]
    pen.fill(mirrored([(0.5 + width * 0.75, pocket), (0.5 + width * 0.8, 0.87)]), 0.85, soft=1)
    pen.line([(0.5 - width * 0.7, pocket + 0.035), (0.5 + width * 0.7, pocket + 0.035)], 0.014, METAL)
    pen.arc(0.5, 0.42, width * 0.86, 0.25, 190, 350, 0.014, METAL)
    pen.line([(0.5 + width * 0.6, pocket + 0.035), (0.5 + width * 0.6, pocket + 0.09)], 0.016, pen.accent)
    pen.mark(0.5, pocket + 0.16, 0.045)


def tote(pen: Pen) -> None:
    reach = 0.16 + 0.08 * pen.cut[0]
    pen.arc(0.5, 0.4, 0.17, reach + 0.14, 180, 360, 0.03, mixed(pen.seam, pen.base, 0.3))
    pen.fill(mirrored([(0.8, 0.38), (0.76 + 0.1 * pen.cut[1], 0.93)]), soft=1)
    pen.arc(0.5, 0.44, 0.19, reach + 0.14, 185, 355, 0.032, pen.seam)
    pen.line([(0.21, 0.42), (0.79, 0.42)])
    for x in (0.31, 0.69):
        pen.disc(x, 0.42, 0.016, colour=METAL)
    pen.mark(0.5, 0.66, 0.06)


def mug(pen: Pen) -> None:
    height, foot = 0.24 + 0.1 * pen.cut[0], 0.22 + 0.06 * pen.cut[1]
    for ring, shade in ((0.075, 0.75), (0.06, 0.9)):
        pen.arc(0.72, 0.56, 0.17, 0.17, 0, 360, ring, mixed(pen.base, (0, 0, 0), 1 - shade))
    pen.fill([(0.16, 0.56 - height), (0.72, 0.56 - height), (0.44 + foot, 0.84), (0.44 - foot, 0.84)], soft=0)
    pen.disc(0.44, 0.84, foot, 0.05)
    pen.disc(0.44, 0.56 - height, 0.28, 0.07, 1.0, mixed(pen.base, (255, 255, 255), 0.45))
    pen.disc(0.44, 0.565 - height, 0.25, 0.055, 1.0, mixed(pen.base, (0, 0, 0), 0.55))
    if pen.cut[2] < 0.5:
        pen.disc(0.44, 0.58 - height, 0.225, 0.038, colour=(88, 54, 34))
    pen.mark(0.44, 0.66, 0.06)


def lamp(pen: Pen) -> None:
    top, bottom = 0.1 + 0.1 * pen.cut[0], 0.24 + 0.08 * pen.cut[1]
    stand = METAL if pen.cut[2] < 0.5 else WOOD
    pen.disc(0.5, 0.92, 0.19, 0.035, colour=mixed(stand, (0, 0, 0), 0.25))
    pen.disc(0.5, 0.905, 0.18, 0.03, colour=stand)
    if pen.cut[3] < 0.5:
        pen.fill([(0.48, 0.45), (0.52, 0.45), (0.52, 0.9), (0.48, 0.9)], colour=stand, soft=0)
    else:
        pen.fill(mirrored([(0.53, 0.46), (0.54, 0.58), (0.62, 0.74), (0.56, 0.9)]), colour=stand)
    pen.fill(mirrored([(0.5 + top, 0.08), (0.5 + bottom, 0.5)]), soft=0)
    pen.disc(0.5, 0.5, bottom, 0.04, 1.0, (255, 240, 200))
    pen.disc(0.5, 0.085, top, 0.02, 0.7)
    pen.mark(0.5, 0.32, 0.035)


def chair(pen: Pen) -> None:
    legs = WOOD if pen.cut[0] < 0.6 else METAL
    for top, foot, shade in (((0.33, 0.6), (0.3, 0.84), 0.7), ((0.66, 0.6), (0.72, 0.84), 0.7)):
        pen.line([top, foot], 0.032, mixed(legs, (0, 0, 0), 1 - shade))
    for top, foot in (((0.28, 0.64), (0.22, 0.95)), ((0.72, 0.64), (0.8, 0.95))):
        pen.line([top, foot], 0.042, legs)
    if pen.cut[1] < 0.5:
        pen.fill(mirrored([(0.66, 0.06), (0.72, 0.12), (0.68, 0.6)]), 0.92)
    else:
        pen.fill(mirrored([(0.6, 0.06), (0.74, 0.2), (0.74, 0.36), (0.64, 0.44)]), 0.92)
        for side in (1, -1):
            pen.line([(0.5 + side * 0.13, 0.4), (0.5 + side * 0.14, 0.6)], 0.03, legs)
    if pen.cut[2] < 0.4:
        for side in (1, -1):
            pen.line([(0.5 + side * 0.24, 0.6), (0.5 + side * 0.27, 0.42), (0.5 + side * 0.18, 0.4)], 0.035, legs)
    pen.fill([(0.3, 0.54), (0.7, 0.54), (0.78, 0.66), (0.74, 0.71), (0.26, 0.71), (0.22, 0.66)])
    pen.line([(0.24, 0.665), (0.76, 0.665)], 0.01)
    pen.mark(0.5, 0.2, 0.035)


def watch(pen: Pen) -> None:
    strap, radius = 0.085 + 0.03 * pen.cut[0], 0.19 + 0.04 * pen.cut[1]
    pen.fill(
        mirrored([(0.5 + strap * 0.75, 0.03), (0.5 + strap, 0.3), (0.5 + strap, 0.7), (0.5 + strap * 0.75, 0.97)])
    )
    for y in (0.8, 0.85, 0.9):
        pen.disc(0.5, y, 0.012, 0.01, 0.4)
    pen.fill([(0.5 - strap, 0.1), (0.5 + strap, 0.1), (0.5 + strap, 0.13), (0.5 - strap, 0.13)], colour=METAL, soft=0)
    case = METAL if pen.cut[2] < 0.6 else (214, 172, 84)
    dial = (238, 238, 234) if pen.cut[3] < 0.5 else (34, 36, 42)
    pen.fill(
        [(0.5 + radius, 0.475), (0.54 + radius, 0.475), (0.54 + radius, 0.525), (0.5 + radius, 0.525)], colour=case
    )
    pen.disc(0.5, 0.5, radius + 0.03, colour=mixed(case, (0, 0, 0), 0.3))
    pen.disc(0.5, 0.5, radius + 0.02, colour=case)
    pen.disc(0.5, 0.5, radius - 0.015, colour=dial)
    hands = mixed(dial, (0, 0, 0) if dial[0] > 128 else (255, 255, 255), 0.8)
    for x, y in ((0, 1), (1, 0), (0, -1), (-1, 0), (0.5, 0.87), (0.87, 0.5), (-0.5, 0.87), (-0.87, 0.5)):
        for sign in (1, -1):
            u, v = 0.5 + x * sign * radius * 0.8, 0.5 + y * radius * 0.8
            pen.disc(u, v, 0.011, colour=hands)
    pen.line([(0.5, 0.5), (0.5 - radius * 0.35, 0.5 - radius * 0.3)], 0.02, hands)
    pen.line([(0.5, 0.5), (0.5 + radius * 0.3, 0.5 - radius * 0.62)], 0.013, hands)
    pen.mark(0.5, 0.5 + radius * 0.4, 0.022)


def sunglasses(pen: Pen) -> None:
    height, lens = 0.12 + 0.05 * pen.cut[0], mixed(GLASS, pen.accent, 0.25 * pen.cut[2])
    for side in (1, -1):
        middle = 0.5 + side * 0.225
        pen.line([(0.5 + side * 0.43, 0.44), (0.5 + side * 0.47, 0.36), (0.5 + side * 0.4, 0.32)], 0.03, pen.seam)
        if pen.cut[1] < 0.5:
            pen.disc(middle, 0.5, 0.2, height + 0.045)
            pen.disc(middle, 0.5, 0.16, height + 0.01, colour=lens)
        else:
            frame = [(0.02, 0.4), (0.45, 0.38), (0.43, 0.5 + height), (0.13, 0.53 + height)]
            inner = [(0.06, 0.43), (0.41, 0.415), (0.39, 0.47 + height), (0.15, 0.5 + height)]
            pen.fill([(0.5 + side * x, y) for x, y in frame])
            pen.fill([(0.5 + side * x, y) for x, y in inner], colour=lens)
        pen.line([(middle - 0.07, 0.56), (middle + 0.04, 0.45)], 0.02, mixed(lens, (255, 255, 255), 0.35))
    pen.fill([(0.44, 0.44), (0.56, 0.44), (0.55, 0.49), (0.45, 0.49)], soft=1)
    pen.mark(0.9, 0.43, 0.02)


def cap(pen: Pen) -> None:
    high = 0.2 + 0.08 * pen.cut[0]
    pen.fill([(0.1, 0.64), (0.13, high + 0.14), (0.3, high), (0.52, high), (0.68, high + 0.14), (0.72, 0.64)])
    for points in ([(0.4, high), (0.3, 0.62)], [(0.42, high), (0.56, 0.62)], [(0.38, high + 0.02), (0.15, 0.56)]):
        pen.line(points, 0.007)
    pen.disc(0.41, high + 0.01, 0.025, 0.015, 0.7)
    pen.fill([(0.36, 0.6), (0.7, 0.56), (0.92, 0.64), (0.97, 0.73), (0.7, 0.68), (0.4, 0.68)], 0.78)
    pen.line([(0.42, 0.655), (0.7, 0.645), (0.93, 0.705)], 0.006)
    pen.line([(0.11, 0.63), (0.38, 0.655)], 0.014)
    pen.mark(0.5, 0.44, 0.05)


SHAPES: dict[str, Callable[[Pen], None]] = {
    "t-shirt": t_shirt,
    "shirt": shirt,
    "hoodie": hoodie,
    "jacket": jacket,
    "trousers": trousers,
    "dress": dress,
    "sneaker": sneaker,
    "boot": boot,
    "sandal": sandal,
    "backpack": backpack,
    "tote": tote,
    "mug": mug,
    "lamp": lamp,
    "chair": chair,
    "watch": watch,
    "sunglasses": sunglasses,
    "cap": cap,
}
STANDING = {"sneaker", "boot", "sandal", "backpack", "tote", "mug", "lamp", "chair", "cap"}
