"""Rows become products or counted drops, whatever is in them, and what comes out is valid."""

from __future__ import annotations

import io
import time
from decimal import Decimal
from html import unescape

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from moon2_dataset import PRODUCT_FEATURES, load_products, validate_products
from moon2_dataset.build.clean import (
    DROP_REASONS,
    MAX_DESCRIPTION,
    MAX_TITLE,
    NOTE_REASONS,
    Cleaned,
    Dropped,
    clean_product,
)
from moon2_dataset.build.image_root import ImageRoot
from moon2_dataset.build.sources import RawRow, open_source

MAPPING = {"product_id": ("id",), "title": ("title",), "description": ("text", "more"),
           "category_path": ("category",), "attributes": ("attributes", "colour", ("option", "option value")),
           "images": ("image", "gallery")}  # fmt: skip


def png(seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def clean(**values):
    return clean_product(
        RawRow(7, "shop.csv line 9", {name.replace("_", " "): v for name, v in values.items()}), MAPPING
    )


def codes(got):
    return [code for code, _ in got.notes]


def test_a_whole_row():
    got = clean(id=12.0, title=" <b>Red</b>\tmug ", text="<p>Holds tea.</p>", more="Holds tea. And milk.",
                category="Home > Mugs", attributes={"size": "M"}, colour="red", option="Lid", option_value="no",
                image=PNG, gallery=[{"bytes": png(1), "path": "x/b.png"}])  # fmt: skip
    assert got == Cleaned({
        "product_id": "12", "title": "Red mug", "description": "Holds tea. And milk.",
        "category_path": ["Home", "Mugs"],
        "attributes": [{"name": "size", "value": "M"}, {"name": "colour", "value": "red"},
                       {"name": "Lid", "value": "no"}],
        "images": [{"bytes": PNG, "path": None}, {"bytes": png(1), "path": "b.png"}],
    })  # fmt: skip


@pytest.mark.parametrize("values, reason, detail", [
    ({"title": "mug"}, "no_product_id", ""), ({"id": " ", "title": "mug"}, "no_product_id", ""),
    ({"id": float("nan"), "title": "mug"}, "no_product_id", ""), ({"id": "null", "title": "mug"}, "no_product_id", ""),
    ({"id": [1], "title": "mug"}, "bad_product_id", "a list"),
    ({"id": "x" * 300, "title": "mug"}, "bad_product_id", "300 characters"),
    ({"id": 1}, "no_title_no_image", ""), ({"id": 1, "title": "<p> </p>", "colour": "red"}, "no_title_no_image", ""),
    ({"id": 1, "title": {"en": "mug"}}, "no_title_no_image", "not_text title: a dict"),
    ({"id": 1, "image": "https://s.example/a.jpg"}, "no_title_no_image", "image_url_not_fetched https://s.example/a.jpg"),
    ({"id": 1, "title": "nan", "image": b""}, "no_title_no_image", "image_empty"),
])  # fmt: skip
def test_drops_name_place_and_reason(values, reason, detail):
    got = clean(**values)
    assert got[:2] == ("shop.csv line 9", reason) and detail in got.detail and reason in DROP_REASONS


def test_a_title_outlives_bad_pictures_and_a_picture_a_missing_title():
    got = clean(id=1, title="mug", image=[b"no image", PNG], gallery="none.jpg")
    assert codes(got) == ["image_not_an_image", "image_missing"] and len(got.product["images"]) == 1
    got = clean(id=1, title=None, image=PNG)
    assert got.product["title"] == "" and not got.notes


def test_losses_are_noted():
    got = clean(id=1, title="x" * 2_000, text="y" * 20_000, more=True, category=False, attributes=[1, {}])
    assert codes(got) == [
        "title_cut",
        "description_cut",
        "not_text",
        "category_not_understood",
        "attributes_not_understood",
    ]
    assert len(got.product["title"]) == MAX_TITLE and len(got.product["description"]) == MAX_DESCRIPTION
    assert set(codes(got)) <= NOTE_REASONS.keys()


def test_a_row_that_could_not_be_parsed_and_one_without_an_id_column():
    row = RawRow(3, "a.csv line 5", {}, "7 cells where\x00 the header has 3")
    assert clean_product(row, MAPPING) == Dropped("a.csv line 5", "unreadable_row", "7 cells where the header has 3")
    got = clean_product(RawRow(3, "a.csv line 5", {"title": "mug"}), {"title": ("title",)})
    assert got.product["product_id"] == "3"


def test_pictures_may_follow_a_pattern_and_long_ones_are_made_smaller(tmp_path):
    (tmp_path / "images").mkdir()
    Image.effect_noise((600, 400), 90).save(tmp_path / "images" / "15970.jpg")
    mapping = {"product_id": ("id",), "title": ("name",), "images": ("images/{id}.jpg",)}
    row = RawRow(0, "styles.csv line 2", {"id": "15970", "name": "shirt"}, folder=tmp_path)
    (picture,) = clean_product(row, mapping, max_side=128).product["images"]
    assert picture["path"] == "15970.jpg" and Image.open(io.BytesIO(picture["bytes"])).size == (128, 85)
    assert (
        clean_product(row, mapping, max_side=600).product["images"][0]["bytes"]
        == (tmp_path / "images" / "15970.jpg").read_bytes()
    )
    row = RawRow(0, "styles.csv line 2", {"id": "15970", "name": "shirt"})
    assert clean_product(row, mapping, image_root=ImageRoot(tmp_path)).product["images"]
    assert clean_product(row._replace(values={"id": None, "name": "x"}), mapping)[1] == "no_product_id"


def test_a_row_of_ten_megabyte_cells_is_cheap():
    big = "<p>word</p> & <" * 700_000
    start = time.process_time()
    got = clean(
        id=1, title=big, text=big, category=big, attributes=big, colour=big, option=big, option_value=big, image=big
    )
    assert isinstance(got, Cleaned) and time.process_time() - start < 3
    assert isinstance(clean(id=big, title="mug"), Dropped)


def test_real_products_come_through(shared_data):
    path = shared_data / "sportswear" / "products-test.parquet"
    source, products = open_source(path), load_products(path)
    assert list(source.mapping) == ["product_id", "title", "description", "category_path", "attributes", "images"]
    cleaned = [clean_product(row, source.mapping) for batch in source.batches() for row in batch]
    assert len(cleaned) == len(products) and not any(got.notes for got in cleaned)
    for got, before in zip(cleaned, products, strict=True):
        for column in ("product_id", "title", "category_path"):
            assert got.product[column] == before[column]
        facts = [(fact["name"], unescape(fact["value"])) for fact in before["attributes"]]  # a few have entities
        assert [(fact["name"], fact["value"]) for fact in got.product["attributes"]] == facts
        assert [picture["bytes"] for picture in got.product["images"]] == [
            image["bytes"] for image in before["images"]
        ]


STRINGS = ["", " ", "nan", "None", "<p>", "<!--", "&#0;", "&#xd800;", "\ud800", "a\udfffb", "\x00", "\x1c", "\x85",
           "\u180e", "\u200b", "\ufeff", "\u2028", "\ufffe", "{", "[", '{"a": 1}', "['a']", '["\\ud800"]',
           "a: b; c: d", ": ; :", "A > B", "\ud800 > \x00 > B", ">", "/", "a/b", "x" * 3_000, "y " * 40_000,
           "a.jpg,b.jpg", "https://x.example/a.jpg", "\ud800.jpg", "/dev/zero", "../../..", "file://", "file:///",
           "http://[", "data:", "١٢", "ﬁ", "-0.0"]  # fmt: skip
OTHERS = [None, True, 0, -1, 10**25, 10**5_000, 1.5, float("nan"), float("inf"), -0.0, 1e300, b"", b"\xff", PNG,
          PNG[:80], [], {}, (), [None], [[]], [""], ["\ud800", "b"], [1, [2, [3, [4, [5]]]]], {"": ""}, {None: None},
          {"\ud800": "\udfff"}, {"a": {"b": {"c": {}}}}, {"name": None, "value": "x"},
          {"name": "\x00", "value": "\ud800"}, [{"name": "n", "value": ""}], [{"name": ["n"], "value": []}],
          {"bytes": PNG, "path": "\ud800\x00.png"}, {"bytes": None, "path": None}, {"bytes": 5}, {"path": 5},
          {"src": {"src": {"src": {}}}}, [PNG, b"", "none.jpg", 7, None], Decimal("NaN"), Decimal("1E+999999"),
          object(), 1j, {1, 2}, [["A", "B"], []]]  # fmt: skip
COLUMNS = [
    "id",
    "title",
    "text",
    "more",
    "category",
    "attributes",
    "colour",
    "option",
    "option value",
    "image",
    "gallery",
]


def check(rows):
    """Clean rows; what comes out is valid, what does not has a reason. Returns how many products there are."""
    products = {}
    for number, values in enumerate(rows):
        got = clean_product(RawRow(number, f"rows line {number}", values), MAPPING)
        if isinstance(got, Dropped):
            assert got.reason_code in DROP_REASONS and len(got.detail) <= 300
            got.detail.encode("utf-8")
        else:
            products[got.product["product_id"]] = got.product  # ids that repeat are the builder's to sort out
            assert got.product.keys() == PRODUCT_FEATURES.keys() and set(codes(got)) <= NOTE_REASONS.keys()
            "".join(detail for _, detail in got.notes).encode("utf-8")
    if products:
        validate_products(Dataset.from_list(list(products.values()), features=PRODUCT_FEATURES))
    return len(products)


@pytest.mark.parametrize("column", COLUMNS)
def test_every_hostile_value_in_every_column(column):
    whole = {"title": "mug", "text": "A mug.", "category": "Home > Mugs", "colour": "red", "image": PNG}
    rows = [{"id": f"row {n}", **whole, column: value} for n, value in enumerate(STRINGS + OTHERS)]
    count = check(rows)
    assert count == len(rows) if column != "id" else 10 < count < len(rows)


TEXT = st.text(st.characters(exclude_categories=[]), max_size=40) | st.sampled_from(STRINGS)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=30)
KEY = TEXT | st.sampled_from(["name", "value", "bytes", "path", "src", "key", "values"]) | st.integers() | st.none()
NESTED = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3), max_leaves=8
)
ROW = st.fixed_dictionaries({"id": SCALAR | st.integers(0, 99)}, optional=dict.fromkeys(COLUMNS[1:], NESTED))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_any_rows_give_valid_products_or_drops_with_a_reason(rows):
    check(rows)


def test_aliases_are_the_ids_of_cells_and_lists_but_not_its_own():
    mapping = {"product_id": ("id",), "title": ("title",), "aliases": ("sku", "codes", "id")}
    values = {"id": 7, "title": "Mug", "sku": "M 7, red", "codes": ["A", 12.0, "", None, "A", [1]]}
    assert clean_product(RawRow(0, "shop.csv line 2", values), mapping).aliases == ("M 7, red", "A", "12")
    assert clean_product(RawRow(0, "shop.csv line 2", values), {"title": ("title",)}).aliases == ()
