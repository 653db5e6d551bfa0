"""What the search tab makes of a form, of an address and of a catalogue."""

from __future__ import annotations

import pytest

from moon2_space.balance_tab import shown_gap, shown_load
from moon2_space.catalogue_folder import CatalogueFolder
from moon2_space.live_catalogue import LiveCatalogue
from moon2_space.search_tab import Form, _asked, example_queries, filter_choices, found, start
from moon2_space.understand_tab import Product, explained


@pytest.fixture(scope="module")
def catalogue(models, drawn_products, tmp_path_factory):
    catalogue = LiveCatalogue.open(CatalogueFolder(tmp_path_factory.mktemp("tab") / "data"), models[0])
    catalogue.put(drawn_products)
    return catalogue


def test_choices_are_what_filters_take(catalogue, drawn_products):
    categories, colours, others = filter_choices(catalogue.now.index.facets())
    label, value = colours[0]
    form = Form("shoes", category=None, colours=[value])
    colour = value.removeprefix("colour=")
    assert form.filters().attributes == {"colour": (colour,)}
    count = sum({"name": "colour", "value": colour} in product["attributes"] for product in drawn_products)
    assert label == f"{colour} ({count})"
    assert Form("shoes", category=categories[1][1]).filters().category
    assert not any(value.startswith("colour=") for _, value in others) and others


def test_an_address_says_what_was_asked(catalogue):
    choices = filter_choices(catalogue.now.index.facets())
    category, colour, other = (kind[0][1] for kind in choices)
    query = (
        f"q=red+mug&category={category}&filter={colour.replace('=', '%3D')}&filter={other}&k=5&balance=0.2&hybrid=0"
    )
    form, like = _asked(query, *choices)
    assert form == Form("red mug", None, 0.2, category, [colour], [other], 5, False) and like is None
    assert _asked("like=p1", *choices)[1] == "p1"


@pytest.mark.parametrize(
    "query", ["", "k=-3&balance=nan", "k=1e9", "filter=<script>&category=x", "a&" * 4000, "q=%ff"]
)
def test_an_address_without_sense_is_passed_over(catalogue, query):
    form, like = _asked(query, *filter_choices(catalogue.now.index.facets()))
    assert 1 <= form.k <= 60 and 0 <= form.balance <= 1 and not form.attributes and form.category is None


def test_examples_have_answers(catalogue, drawn_products):
    examples = example_queries(catalogue.now)
    assert 3 <= len(examples) <= 6 and len(set(examples)) == len(examples)
    words = {word for product in drawn_products for word in " ".join(product["category_path"]).casefold().split()}
    assert all(example.split()[-1] in words for example in examples)
    assert all(example in start(catalogue) for example in examples)


def test_what_is_wrong_is_told(catalogue):
    assert "1,001 characters" in found(catalogue, Form("a" * 1001))
    assert "give NAME=VALUE" in found(catalogue, Form("mug", attributes=["&lt;b>"]))
    assert "Nothing found for “mug” with these filters" in found(
        catalogue, Form("mug", attributes=["colour=' OR 1=1"])
    )
    assert found(catalogue, Form("  ")) == start(catalogue)


def test_an_empty_catalogue(models, tmp_path):
    empty = LiveCatalogue.open(CatalogueFolder(tmp_path / "data"), models[0])
    assert "The catalogue is empty" in start(empty)
    assert "Nothing found" in found(empty, Form("mug"))
    meaning, match, duplicates = explained(empty, Product(title="red mug", asked="mug"))
    assert "names no categories" in meaning and "red</mark>" in match and "nearly the same" in duplicates
    assert "the catalogue is empty" in shown_load(empty, 20) and "needs two or more" in shown_gap(empty)
