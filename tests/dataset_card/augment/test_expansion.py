"""The pictures of one product, expanded: what of the file they are made of goes into them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw

from moon2_dataset.augment.expansion import Expansion, expand_product
from moon2_dataset.augment.variants import KINDS

SECRET = b"GPS 48.137 N 11.575 E"


def test_what_stands_in_a_picture_beside_its_pixels_goes_nowhere():
    photo = Image.new("RGB", (160, 160), (240, 240, 240))
    ImageDraw.Draw(photo).ellipse((40, 30, 120, 140), fill=(160, 40, 60))
    exif = Image.Exif()
    exif[0x010F] = SECRET.decode()
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", comment=SECRET, xmp=SECRET, exif=exif)
    assert buffer.getvalue().count(SECRET) == 3
    wanted = Expansion(tuple(KINDS), 2, 160, seed=0, folder=Path("."), wants_main_image=True)
    found = expand_product("a", [{"bytes": buffer.getvalue(), "path": None}], wanted)
    made = [found.picture, found.main_image, *(picture for _, picture in found.variants)]
    assert len(made) == 4 and not any(SECRET in picture for picture in made)
