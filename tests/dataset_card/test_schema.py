from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from moon2_dataset import (
    PRODUCT_FEATURES,
    QUERY_FEATURES,
    SchemaError,
    normalise_title,
    validate_products,
    validate_queries,
)

PICTURE = {"bytes": b"jpeg", "path": None}


def products(**changes) -> Dataset:
    columns = {
        "product_id": ["a", "b", "c"],
        "title": ["red mug", None, "shoes"],
        "category_path": [["Home", "Mugs"], None, ["Shoes"]],
        "attributes": [[{"name": "colour", "value": "red"}], [], None],
        "images": [None, [PICTURE, PICTURE], []],
    }
    columns = {name: values for name, values in (columns | changes).items() if values is not None}
    return Dataset.from_dict(columns)


def queries(**changes) -> Dataset:
    columns = {
        "query_id": ["q1", "q2", "q3"],
        "text": ["mug", None, "shoes"],
        "image": [None, PICTURE, PICTURE],
        "product_id": ["a", "b", "c"],
    }
    columns = {name: values for name, values in (columns | changes).items() if values is not None}
    return Dataset.from_dict(columns)


def test_what_may_be_missing_is_filled_in():
    checked = validate_products(products(description=None))
    assert checked.features == PRODUCT_FEATURES
    assert checked["title"][:] == ["red mug", "", "shoes"]
    assert checked["description"][:] == ["", "", ""]
    assert checked["category_path"][:] == [["Home", "Mugs"], [], ["Shoes"]]
    assert [len(images) for images in checked["images"]] == [0, 2, 0]
    assert checked[1]["images"][0] == PICTURE


def test_a_sound_table_is_not_copied():
    checked = validate_products(products())
    assert validate_products(checked) is checked
    asked = validate_queries(queries())
    assert validate_queries(asked) is asked and asked.features == QUERY_FEATURES


@pytest.mark.parametrize("images", [[b"1", b"2", b"3"], ["1.jpg", "2.jpg", "3.jpg"]])
def test_images_may_be_bytes_or_paths(images):
    checked = validate_products(products(images=[[image] for image in images]))
    kind = "bytes" if isinstance(images[0], bytes) else "path"
    assert [row[0][kind] for row in checked["images"]] == images


def test_other_columns_pass_through_unread():
    checked = validate_queries(queries(label_noise=[True, False, True], price=[1.0, 2.0, None]))
    assert checked["label_noise"][:] == [True, False, True] and checked["price"][:] == [1.0, 2.0, None]


def test_types_that_mean_the_same_are_taken():
    table = pa.table(
        {
            "product_id": pa.array([1, 2]),
            "title": pa.array(["x", "y"]).dictionary_encode(),
            "category_path": pa.array([["a"], ["b"]], pa.large_list(pa.large_string())),
        }
    )
    checked = validate_products(Dataset(table))
    assert checked["product_id"][:] == ["1", "2"] and checked["title"][:] == ["x", "y"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"product_id": ["a", "b", "a"]}, r"row 2: product_id a is already in shop.parquet row 0; give every product"),
        ({"product_id": ["a", None, " "]}, r"row 1: no product_id, and 1 more row; give every product an id"),
        ({"title": ["x", " ", "y"], "images": [[], [], []]}, r"row 1: neither title nor image; give at least one"),
        ({"images": [[], [PICTURE, {"bytes": b"", "path": None}], []]}, r"row 1: images\[1\] has neither bytes"),
        ({"category_path": [["a", ""], ["b"], []]}, r"row 0: category_path\[1\] is blank; leave that level out"),
        ({"attributes": [[], [{"name": "", "value": "x"}], []]}, r"row 1: attributes\[0\] has no name"),
        ({"attributes": [[], [{"name": "x", "value": None}], []]}, r"row 1: attributes\[0\] has no value"),
        ({"title": [1.5, 2.5, 3.5]}, r"shop.parquet: column title is double; give text"),
        ({"category_path": ["a", "b", "c"]}, r"column category_path is string; give a list of names, coarse to fine"),
    ],
)  # fmt: skip
def test_wrong_products_are_named_with_a_way_out(changes, message):
    with pytest.raises(SchemaError, match=message) as caught:
        validate_products(products(**changes), "shop.parquet")
    assert str(caught.value).startswith("shop.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ["mug", " ", "x"], "image": [None] * 3}, r"log row 1: neither text nor image; give at least one"),
        ({"product_id": ["a", "z", "y"]}, r"log row 1: product_id z is not in the catalogue, and 1 more row;"),
        ({"product_id": ["a", None, "c"]}, r"log row 1: no product_id; name the product the shopper meant"),
        ({"grade": [1.0, 0.0, 2.0]}, r"log row 1: grade 0; give a number above 0"),
        ({"grade": [1.0, float("nan"), 2.0]}, r"log row 1: grade nan"),
        ({"negative_ids": [["b"], ["z"], []]}, r"log row 1: negative_ids\[0\] z is not in the catalogue"),
        ({"negative_ids": [["b", "a"], [], []]}, r"log row 0: negative_ids\[1\] a is a positive of this query"),
        ({"query_id": ["q", "q", "r"]}, r"log row 1: query_id q has another text in log row 0; give each text"),
        ({"query_id": ["q", "r", "q"], "text": ["m", "n", "m"], "product_id": ["a", "b", "a"]},
         r"log row 2: product_id a of query_id q is already in log row 0; keep one row"),
    ],
)  # fmt: skip
def test_wrong_queries_are_named_with_a_way_out(changes, message):
    with pytest.raises(SchemaError, match=message):
        validate_queries(queries(**changes), validate_products(products()), "log")


def test_rows_of_several_files_are_counted_in_their_file():
    with pytest.raises(SchemaError, match="second.parquet row 1: no product_id"):
        validate_products(products(product_id=["a", "b", None]), [("first.parquet", 1), ("second.parquet", 2)])


@pytest.mark.parametrize(
    ("one", "other"),
    [("Red  Mug", "red mug"), (" RED MUG! ", "red mug"), ("Ｒｅｄ mug", "red mug"), ("Straße", "STRASSE")],
)
def test_titles_that_count_as_the_same(one, other):
    assert normalise_title(one) == normalise_title(other)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(title):
    once = normalise_title(title)
    assert normalise_title(once) == once


CELLS = st.one_of(
    st.none(), st.text(st.characters(exclude_categories=("Cs",)), max_size=8), st.integers(), st.floats(), st.binary()
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_table_is_either_taken_or_refused_with_the_schemas_own_error(data):
    columns = {}
    for name in ("product_id", "title", "description", "category_path", "attributes", "images"):
        if data.draw(st.booleans(), label=name):
            values = data.draw(st.lists(st.one_of(CELLS, st.lists(CELLS, max_size=2)), min_size=2, max_size=2))
            try:
                columns[name] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                columns[name] = pa.array([str(value) for value in values])
    if not columns:
        return
    try:
        checked = validate_products(Dataset(pa.table(columns)))
    except SchemaError:
        return
    assert checked.features == PRODUCT_FEATURES or set(checked.features) > set(PRODUCT_FEATURES)
    assert all(checked["product_id"]) and np.all(
        [t or i for t, i in zip(checked["title"], checked["images"], strict=True)]
    )


def test_what_co_augmentation_adds_is_checked():
    given = products(
        enriched_title=["a red mug", None, None],
        expanded_images=[[PICTURE], None, []],
        core_region=[[0.1, 0.2, 0.9, 1], None, []],
    )
    checked = validate_products(given)
    assert checked["enriched_title"][:] == ["a red mug", "", ""]
    assert [len(images) for images in checked["expanded_images"]] == [1, 0, 0]
    assert checked["core_region"][:] == [[0.1, 0.2, 0.9, 1.0], [], []]
    assert validate_products(checked) is checked


@pytest.mark.parametrize("box", [[0.5, 0, 0.4, 1], [0, 0, 1], [0, 0, 1, 1.2], [0, 0, 1, float("nan")]])
def test_a_core_region_that_is_no_box_is_refused(box):
    with pytest.raises(SchemaError, match="products row 2: core_region"):
        validate_products(products(core_region=[None, [], box]))


def test_an_expanded_image_without_content_is_refused():
    with pytest.raises(SchemaError, match=r"products row 1: expanded_images\[1\] has neither"):
        validate_products(products(expanded_images=[[], [PICTURE, None], []]))
