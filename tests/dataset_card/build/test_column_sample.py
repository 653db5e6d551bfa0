"""What is seen in the first rows of a column, and which column a name and values point to."""

from __future__ import annotations

import pytest

from moon2_dataset.build.column_sample import ColumnSample, find_by_name, is_number, looks_like_image


def sampled(**columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {column: ColumnSample(column, rows) for column in columns}


def test_a_sample_counts_what_is_there():
    sample = sampled(a=["x", "x", "yyyy", ""], b=[None, [], {}, float("nan")])
    assert (sample["a"].count, sample["a"].filled, sample["a"].distinct, sample["a"].length) == (3, 0.75, 2 / 3, 2)
    assert (sample["b"].count, sample["b"].filled, sample["b"].plain) == (0, 0, False)
    assert sample["a"].facts() == "67% of 3 values differ" and sample["b"].facts() == "no values in the sample"


def test_values_say_what_a_column_holds():
    sample = sampled(image=["a.jpg", b"\xff"], path=["Home > Mugs", ["Home", "Mugs"]], flag=[True, False], n=[1, "2"])
    assert sample["image"].images == sample["path"].paths == 1 and sample["n"].plain
    assert not sample["flag"].plain and not sample["n"].images and not sample["image"].paths


@pytest.mark.parametrize("value", [b"x", {"src": "u"}, {"bytes": b""}, ["a.PNG"], "https://a.example/b.webp?v=1",
                                   "a.jpg|b.jpg", "data:image/png;base64,AA"])  # fmt: skip
def test_pictures_have_many_forms(value):
    assert looks_like_image(value)


@pytest.mark.parametrize("value", [b"", {}, [], ["mug"], "mug", "jpg", 7, None])
def test_what_is_no_picture(value):
    assert not looks_like_image(value)


def test_the_best_name_with_fitting_values_is_found_and_blank_columns_last():
    names = {"query": 0, "term": 1}
    free = sampled(term=["mug", "cup"], query=["", None], searched_query=["a", "b"])
    assert find_by_name("text", names, free, lambda s: True) == (["term"], "its name; 100% of 2 values differ")
    del free["term"], free["query"]
    assert find_by_name("text", names, free, lambda s: True)[0] == ["searched_query"]
    assert find_by_name("text", names, free, lambda s: False) is None
    assert [is_number(value) for value in ("2.5", 3, "x", None, 10**400)] == [True, True, False, False, False]
