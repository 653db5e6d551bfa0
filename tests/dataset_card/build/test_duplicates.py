from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from moon2_dataset.build import duplicates
from moon2_dataset.build.duplicates import (
    COLOUR_DISTANCE,
    FINE_DISTANCE,
    KEPT,
    LOOK,
    PLACEHOLDER_TITLES,
    SAME_ID,
    SAME_TEXT,
    SAME_TITLE_AND_IMAGE,
    ProductKeys,
    find_duplicates,
    near_components,
    picture_look,
    stable_key,
)
from moon2_dataset.demo_catalogue import render_demo_catalogue


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    products, _ = render_demo_catalogue(16, seed=3)
    pictures = [product["images"][0]["bytes"] for product in products]
    return [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]


def again(photo: Image.Image, scale: float, quality: int) -> Image.Image:
    """The photo as another shop page would have it: scaled and compressed."""
    buffer = io.BytesIO()
    size = round(photo.width * scale), round(photo.height * scale)
    photo.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def keys(
    ids: list[str],
    titles: list[str],
    looks: list[np.ndarray | None],
    leaves: list[str] | None = None,
    texts: list[str] | None = None,
) -> ProductKeys:
    def of(kind: str, values: list[str]) -> np.ndarray:
        return np.array([stable_key(kind, value) if value else 0 for value in values], dtype=np.uint64)

    none = np.zeros((), LOOK)
    return ProductKeys(
        product_id=of("product", ids),
        title=of("title", titles),
        leaf=of("category", leaves or [""] * len(ids)),
        text=of("text", texts or [f"text {row}" for row in range(len(ids))]),
        look=np.array([none if look is None else look for look in looks], dtype=LOOK),
        pictured=np.array([look is not None for look in looks], dtype=bool),
    )


def parts(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}


def near(one: np.ndarray, other: np.ndarray, distance: int) -> bool:
    fine = sum(int(bits).bit_count() for bits in one["fine"] ^ other["fine"])
    colours = np.abs(one["colours"].astype(int) - other["colours"]).max()
    coarse = int(one["coarse"] ^ other["coarse"]).bit_count()
    return coarse <= distance and fine <= FINE_DISTANCE and colours <= COLOUR_DISTANCE


def test_a_picture_that_is_scaled_and_compressed_looks_the_same_and_another_does_not(photos):
    looks = [picture_look(photo) for photo in photos]
    copies = [
        picture_look(again(photo, scale, 60)) for photo, scale in zip(photos, [0.5, 0.75, 1.4, 1.0] * 4, strict=True)
    ]
    found = [[near(look, copy, 4) for copy in copies] for look in looks]
    assert found == np.eye(len(photos), dtype=bool).tolist()


def test_the_same_shape_in_another_colour_is_another_picture(photos):
    photo = max(photos, key=lambda photo: np.asarray(photo.convert("HSV"))[..., 1].mean())
    hue, saturation, value = photo.convert("HSV").split()
    recoloured = Image.merge("HSV", (hue.point(lambda level: (level + 85) % 256), saturation, value)).convert("RGB")
    assert not near(picture_look(photo), picture_look(recoloured), 6)


def test_transparent_turned_and_grey_pictures_are_looked_at_as_they_are_shown(photos):
    look = picture_look(photos[1])
    alpha = photos[1].copy()
    alpha.putalpha(255)
    assert picture_look(alpha) == look
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    buffer = io.BytesIO()
    photos[1].transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    assert picture_look(Image.open(buffer)) == look
    assert picture_look(ImageOps.grayscale(photos[1])).dtype == LOOK


def relatives(number: int, rng: np.random.Generator) -> np.ndarray:
    """Looks of which two in three are neighbours of one before, some of them in a chain."""
    looks = np.zeros(number, LOOK)
    looks["coarse"] = rng.integers(0, 2**63, number, dtype=np.uint64)
    for row in range(2 * number // 3):
        like = rng.integers(max(1, row))
        looks[row] = looks[like]
        for bit in rng.choice(64, max(0, rng.integers(-2, 8)), replace=False):
            looks[row]["coarse"] ^= np.uint64(1 << int(bit))
        looks[row]["fine"][rng.integers(4)] ^= np.uint64(2 ** int(rng.integers(3, 20)) - 1)
        looks[row]["colours"][0] = min(255, int(looks[like]["colours"][0]) + int(rng.integers(12)))
    return looks


def all_with_all(looks: np.ndarray, distance: int, place: np.ndarray) -> np.ndarray:
    labels = np.arange(len(looks))
    for one in range(len(looks)):
        for other in range(one):
            if place[one] == place[other] and near(looks[one], looks[other], distance):
                labels[labels == labels[one]] = labels[other]
    return labels


@pytest.mark.parametrize("distance", [0, 1, 2, 4, 6])
def test_near_pictures_are_joined_as_by_comparing_all_with_all(distance):
    looks = relatives(120, np.random.default_rng(distance))
    labels = all_with_all(looks, distance, np.zeros(120))
    assert 1 < len(set(labels.tolist())) < 119
    joined = near_components(looks, duplicates._look_key(looks), distance)
    assert parts(joined) == parts(labels)


@pytest.mark.parametrize("few", [0, 12, 1_000])
@pytest.mark.parametrize("distance", [0, 3, 6])
def test_only_pictures_of_one_place_are_joined_however_many_it_has(monkeypatch, distance, few):
    monkeypatch.setattr(duplicates, "FEW_PICTURES", few)
    rng = np.random.default_rng(distance)
    looks, place = relatives(160, rng), rng.choice([3, 3, 3, 5, 5, 2**63, 7, 9, 11], 160).astype(np.uint64)
    labels = all_with_all(looks, distance, place)
    assert len(set(all_with_all(looks, distance, np.zeros(160)).tolist())) < len(set(labels.tolist())) < 160
    assert parts(near_components(looks, duplicates._look_key(looks), distance, place)) == parts(labels)


def test_many_pictures_under_one_title_are_not_all_compared_with_all(monkeypatch):
    """The number of comparisons grows with the products, not with their square."""
    compared = []
    count = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda bits: compared.append(len(bits)) or count(bits))
    for number in (2_000, 8_000):
        rng = np.random.default_rng(number)
        looks = np.zeros(number, LOOK)
        looks["coarse"] = rng.integers(0, 2**63, number, dtype=np.uint64)
        looks["colours"] = rng.integers(0, 256, (number, 48))
        looks[-2:] = looks[:2]
        compared.clear()
        found = find_duplicates(keys(list(map(str, range(number))), ["Mug"] * number, list(looks)), 4)
        assert found.kept_row[-2:].tolist() == [0, 1] and found.kept.sum() == number - 2
        assert sum(compared) < 30 * number


def test_many_pairs_are_joined_in_pieces_as_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    looks = np.zeros(300, LOOK)
    looks["coarse"] = rng.integers(0, 40, 300)
    looks["colours"][:, 0] = rng.integers(0, 255, 300)
    whole = near_components(looks, duplicates._look_key(looks), 4)
    monkeypatch.setattr(duplicates, "MANY_PAIRS", 7)
    assert parts(near_components(looks, duplicates._look_key(looks), 4)) == parts(whole)


def test_one_product_is_an_id_or_a_title_with_its_picture_or_a_text_without_one(photos):
    one, other = picture_look(photos[0]), picture_look(photos[1])
    copy = picture_look(again(photos[0], 0.8, 70))
    found = find_duplicates(
        keys(
            ids=["a", "b", "a", "c", "d", "e", "f", "g", "h"],
            titles=["Mug", "Mug", "Cup", "Mug", "Mug", "Jug", "Vase", "Vase", "Vase"],
            looks=[one, copy, other, other, None, one, None, None, None],
            texts=["1", "2", "3", "4", "5", "6", "same", "same", "7"],
        ),
        4,
    )
    expected = [KEPT, SAME_TITLE_AND_IMAGE, SAME_ID, KEPT, KEPT, KEPT, KEPT, SAME_TEXT, KEPT]
    assert found.reason.tolist() == expected
    assert found.kept_row.tolist() == [0, 0, 0, 3, 4, 5, 6, 6, 8]
    # By title: a, b, c, d. By picture: a, e. The vases by their title. A row with a used id brings nothing along.
    assert parts(found.group) == {frozenset({0, 1, 2, 3, 4, 5}), frozenset({6, 7, 8})}


def test_a_title_in_two_categories_is_two_products_in_one_group(photos):
    look = picture_look(photos[0])
    found = find_duplicates(keys(["a", "b"], ["Mug", "Mug"], [look, look], ["Kitchen", "Gifts"]), 4)
    assert found.kept.all() and len(set(found.group.tolist())) == 1


def test_an_id_that_repeats_a_dropped_row_leads_to_the_kept_one(photos):
    look = picture_look(photos[0])
    found = find_duplicates(keys(["a", "b", "b"], ["Mug", "Mug", "Other"], [look, look, None]), 4)
    assert found.kept_row.tolist() == [0, 0, 0]


def test_products_without_a_title_are_joined_by_their_pictures_alone(photos):
    looks = [picture_look(photos[0]), picture_look(photos[0]), picture_look(photos[1])]
    found = find_duplicates(keys(["a", "b", "c"], ["", "", ""], looks), 4)
    assert found.kept.all()
    assert parts(found.group) == {frozenset({0, 1}), frozenset({2})}


def test_a_picture_under_many_titles_joins_nothing(photos):
    nothing, number = picture_look(photos[0]), PLACEHOLDER_TITLES + 1
    titles = [f"Mug {row}" for row in range(number)] + ["Mug 0"]
    found = find_duplicates(keys(list(map(str, range(number + 1))), titles, [nothing] * (number + 1)), 4)
    assert found.placeholder.all() and found.kept.all()
    assert len(set(found.group.tolist())) == number
    fewer = find_duplicates(keys(list(map(str, range(number - 1))), titles[: number - 1], [nothing] * (number - 1)), 4)
    assert not fewer.placeholder.any() and len(set(fewer.group.tolist())) == 1


def test_ten_thousand_copies_do_not_take_a_comparison_of_all_with_all(photos):
    look, number = picture_look(photos[0]), 10_000
    found = find_duplicates(keys(list(map(str, range(number))), ["Mug"] * number, [look] * number), 4)
    assert found.kept.sum() == 1 and (found.kept_row == 0).all()


@pytest.mark.parametrize("number", [0, 1])
def test_a_tiny_catalogue(number):
    found = find_duplicates(keys(["a"][:number], ["Mug"][:number], [None][:number]), 4)
    assert found.kept.sum() == number


@pytest.mark.parametrize("distance", [-1, 7])
def test_a_distance_out_of_range_is_refused(distance):
    with pytest.raises(ValueError, match=f"image_hash_distance={distance}; give 0 to 6 bits"):
        find_duplicates(keys(["a"], ["Mug"], [None]), distance)


def test_keys_are_the_same_in_every_process_and_take_any_text():
    code = "from moon2_dataset.build.duplicates import stable_key; print(stable_key('title', 'grüße'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == stable_key("title", "grüße") != stable_key("product", "grüße")
    assert stable_key("title", "\ud800") > 0


def test_without_the_extra_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ValueError, match=r'pip install "moon2\[augment\]"'):
        duplicates.check_installed()


def test_on_real_photos_copies_are_found_and_products_are_not_chained(shared_data: Path):
    table = pq.ParquetFile(shared_data / "fashion" / "products-test.parquet").read_row_group(0, ["images"])
    photos = [Image.open(io.BytesIO(row["images"][0]["bytes"])) for row in table.slice(0, 300).to_pylist()]
    looks = [picture_look(photo) for photo in photos]
    copies = [picture_look(again(photo, 0.6, 70)) for photo in photos]
    joined = near_components(np.array(looks + copies), duplicates._look_key(np.array(looks + copies)), 4)
    assert np.mean(joined[:300] == joined[300:]) >= 0.97
    assert np.unique(joined[:300], return_counts=True)[1].max() <= 4
