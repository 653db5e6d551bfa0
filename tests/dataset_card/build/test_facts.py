"""Category paths and attributes from the forms shops keep them in."""

from __future__ import annotations

import pytest

from moon2_dataset.build.facts import MAX_ATTRIBUTES, MAX_LEVELS, read_attributes, read_category


@pytest.mark.parametrize("cells, path", [
    (["Home > Kitchen > Mugs"], ["Home", "Kitchen", "Mugs"]), (["Home/Kitchen/Mugs"], ["Home", "Kitchen", "Mugs"]),
    (["Home|Kitchen"], ["Home", "Kitchen"]), (["Home » Kitchen"], ["Home", "Kitchen"]), (["A -> B"], ["A", "B"]),
    (["Home &gt; Pots &amp; Pans"], ["Home", "Pots & Pans"]),
    (["Food, Drinks > Tea/Coffee"], ["Food, Drinks", "Tea/Coffee"]),
    ([["Home", " Kitchen ", None, ""]], ["Home", "Kitchen"]), (['["Home", "Mugs"]'], ["Home", "Mugs"]),
    (["['Home', 'Mugs']"], ["Home", "Mugs"]), ([["Home > Mugs"]], ["Home", "Mugs"]),
    ([[["A", "B"], ["A", "B", "C"]]], ["A", "B", "C"]), ([{"lvl0": "A", "lvl1": "A > B"}], ["A", "B"]),
    ([{"name": "Mugs", "id": 4}], ["Mugs"]), ([[{"name": "A"}, {"name": "B"}]], ["A", "B"]),
    (["Home", "Kitchen", None, "Mugs"], ["Home", "Kitchen", "Mugs"]), (["Mugs", "Home > Mugs"], ["Home", "Mugs"]),
    (["Shoes", "Shoes", "Boots"], ["Shoes", "Boots"]), ([12, 7.0], ["12", "7"]), ([None, "", "nan", float("nan")], []),
    (["> Home >"], ["Home"]), ([()], []),
])  # fmt: skip
def test_category_paths(cells, path):
    notes = []
    assert read_category(cells, notes) == path and not notes


@pytest.mark.parametrize("cell", [True, [1.5j], [[[[["a"]]]]], {}])
def test_what_is_no_category_is_noted(cell):
    notes = []
    assert read_category([cell, "Mugs"], notes) in (["Mugs"], ["1.5j", "Mugs"], ["1.5j"])
    assert notes or cell == [1.5j]


def test_deep_and_long_paths_are_cut():
    notes = []
    path = read_category([" > ".join("x" * 500 if n == 1 else f"L{n}" for n in range(40))], notes)
    assert len(path) == MAX_LEVELS and len(path[1]) == 200 and notes[0][0] == "category_not_understood"


def attributes(cell, column="attributes"):
    notes = []
    found = read_attributes({column: cell}, [column], notes)
    return [(entry["name"], entry["value"]) for entry in found], notes


@pytest.mark.parametrize("cell", [
    [{"name": "colour", "value": "red"}, {"name": "size", "value": "M, L"}], {"colour": "red", "size": ["M", "L"]},
    '{"colour": "red", "size": ["M", "L"]}', "{'colour': 'red', 'size': ['M', 'L']}", "colour: red; size: M, L",
    "colour=red | size=M, L", ["colour: red", "size: M, L"], [["colour", "red"], ["size", ["M", "L"]]],
    [("colour", "red"), ("size", "M, L")], [{"key": "colour", "value": "red"}, {"Name": "size", "Values": ["M", "L"]}],
    '[{"name": "colour", "value": "red"}, {"name": "size", "value": "M, L"}]', [{"colour": "red"}, {"size": "M, L"}],
])  # fmt: skip
def test_attributes_in_every_form(cell):
    assert attributes(cell) == ([("colour", "red"), ("size", "M, L")], [])


def test_a_column_of_its_own_is_one_attribute():
    assert attributes("Note: dry clean; keep cool", "care")[0] == [("care", "Note: dry clean; keep cool")]
    assert attributes(["S", "M", None, "M"], "size")[0] == [("size", "S, M")]
    assert attributes(2.0, "baseWeight")[0] == [("base weight", "2")] and attributes(True, "organic")[0] == [
        ("organic", "yes")
    ]
    assert attributes("new, summer,", "Tags")[0] == [("tag", "new"), ("tag", "summer")]
    for nothing in (None, "", "  ", "n/a", float("nan"), [], {}, [None], {"a": None}):
        assert attributes(nothing, "size") == ([], [])


def test_pairs_of_columns_name_their_own_attribute():
    values = {"n1": "Colour", "v1": ["red", "blue"], "n2": None, "v2": "M", "n3": "Title", "v3": "Default Title"}
    notes = []
    found = read_attributes(values, [("n1", "v1"), ["n2", "v2"], ("n3", "v3")], notes)
    assert found == [{"name": "Colour", "value": "red, blue"}, {"name": "v2", "value": "M"}] and not notes


def test_what_is_not_understood_is_noted_and_the_rest_stays():
    assert attributes([{"name": "a", "value": "b"}, 5, {"name": "c", "value": {"d": {"e": 1}}}]) == (
        [("a", "b")],
        [("attributes_not_understood", "a list")],
    )
    found, notes = attributes({f"a{n}": n for n in range(500)})
    assert len(found) == MAX_ATTRIBUTES and notes == [("attributes_not_understood", f"over {MAX_ATTRIBUTES}")]
    found, _ = attributes({"x" * 9_000: "y" * 9_000})
    assert len(found[0][0]) == 200 and len(found[0][1]) == 500


def test_white_space_without_end_is_cheap():
    values = {"specs": ":" + " " * 65_000 + "x", "attributes": "colour : red ; size=42 |\n"}
    notes = []
    found = read_attributes(values, ["specs", "attributes"], notes)
    assert {"name": "colour", "value": "red"} in found and {"name": "size", "value": "42"} in found
