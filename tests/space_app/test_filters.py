"""Filters: values of any text find exactly the products that have them, and nothing in them is SQL."""

from __future__ import annotations

import lancedb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moon2_space.filters import Filters, filter_columns

HOSTILE = ["' OR 1=1 --", "'; DROP TABLE products; --", "%", "_", "a%b", "\\", "\\'", '"', "`", "red\x1fblue", "\x00",
           "colour\x1dred", "$1", "{}", "NULL", "", " ", "ß", "İ", "红色", "🔥", "\ud7ff"]  # fmt: skip


def product(category=(), **attributes):
    pairs = [{"name": name, "value": value} for name, value in attributes.items()]
    return {"category_path": list(category), "attributes": pairs}


PRODUCTS = [
    product(["Shoes", "Boots"], colour="red", size="42"),
    product(["Shoes", "Trainers"], colour="navy blue"),
    product(["Boots"], colour="dark red", note="red"),
    product(),
    product(["Shoes & more"], colour="' OR 1=1 --"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = [{"row": row} | filter_columns(of) for row, of in enumerate(PRODUCTS)]
    return lancedb.connect(tmp_path_factory.mktemp("filters")).create_table("products", pa.Table.from_pylist(rows))


def found(table, filters):
    return sorted(table.search().where(filters.expression()).limit(None).to_arrow()["row"].to_pylist())


def test_products_are_found_by_category_and_attributes(table):
    assert found(table, Filters(["Shoes"])) == [0, 1]
    assert found(table, Filters(["Shoes", "Boots"])) == [0]
    assert found(table, Filters("Boots")) == [2]  # the first level, not any
    assert found(table, Filters(attributes={"colour": "red"})) == [0]
    assert found(table, Filters(attributes={"colour": ["RED", " navy   Blue "]})) == [0, 1]
    assert found(table, Filters(["shoes"], {"colour": ["red", "navy blue"], "size": "42"})) == [0]
    assert found(table, Filters(attributes={"size": "red"})) == []


def test_nothing_asked_for_is_no_condition():
    assert Filters().expression() is None and not Filters() and Filters(["a"])


def test_sql_in_a_value_is_a_value(table):
    assert found(table, Filters(attributes={"colour": "' OR 1=1 --"})) == [4]
    assert found(table, Filters(attributes={"colour' OR '1'='1": "red"})) == []
    assert found(table, Filters(["Shoes%"])) == [] and found(table, Filters(["Sho_s"])) == []
    assert table.count_rows() == len(PRODUCTS)


texts = st.one_of(
    st.sampled_from([text for text in HOSTILE if text.strip()]), st.text(min_size=1, max_size=12)
).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=texts, value=texts, other=texts, path=st.lists(texts, min_size=1, max_size=3))
def test_any_text_finds_the_products_that_have_it_and_no_other(tmp_path_factory, name, value, other, path):
    def plain(text):
        return " ".join("".join(" " if letter < " " else letter for letter in text).casefold().split())

    products = [
        product(path, **{name: value}),
        product(path[:-1], **{name: other}),
        product([*path, "x"], **{other: value}),
    ]
    rows = [{"row": row} | filter_columns(of) for row, of in enumerate(products)]
    database = lancedb.connect(tmp_path_factory.mktemp("any"))
    table = database.create_table("products", pa.Table.from_pylist(rows))
    has = [(plain(a["name"]), plain(a["value"])) for of in products for a in of["attributes"]]
    expected = [row for row, pair in enumerate(has) if pair == (plain(name), plain(value))]
    assert found(table, Filters(attributes={name: value})) == expected
    levels = [[plain(level) for level in of["category_path"]] for of in products]
    wanted = [plain(level) for level in path]
    assert found(table, Filters(path)) == [row for row, of in enumerate(levels) if of[: len(wanted)] == wanted]
    assert table.count_rows() == 3


def test_wrong_filters_are_refused():
    for wrong in ({"category": [" "]}, {"attributes": {"": "red"}}, {"attributes": {"colour": [3]}},
                  {"category": ["x" * 1001]}):  # fmt: skip
        with pytest.raises(ValueError, match="give texts of 1 to 1,000 characters"):
            Filters(**wrong)
    with pytest.raises(ValueError, match="101 values; give 100 or fewer"):
        Filters(attributes={"colour": ["red"] * 101})
    with pytest.raises(ValueError, match="no value for attribute 'colour'"):
        Filters(attributes={"colour": []})


def test_what_is_no_list_of_texts_is_refused():
    cases = [({"category": 5}, "'category' is given int"), ({"attributes": {"colour": 3}}, "is given int"),
             ({"attributes": ["colour"]}, "no mapping"), ({"attributes": {"a": {"b": 1}}}, "given dict")]  # fmt: skip
    for wrong, told in cases:
        with pytest.raises(ValueError, match=told):
            Filters(**wrong)


def test_halves_of_surrogate_pairs_find_nothing_and_break_nothing(table):
    assert found(table, Filters(["\ud800"], {"\udfff": "\ud800x"})) == []
