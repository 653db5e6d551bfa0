"""What visitors of the Space send: filters, addresses, arguments of every action."""

from __future__ import annotations

import json
from urllib.parse import quote, urlencode

import gradio as gr
import lancedb
import pyarrow as pa
import pytest
from hostile_inputs import TRICKY, numbers, picture_bytes, texts, values
from hypothesis import strategies as st
from watched import fuzzed, watched

from moon2_space.catalogue_folder import CatalogueFolder
from moon2_space.filters import Filters, filter_columns
from moon2_space.live_catalogue import LiveCatalogue
from moon2_space.search_tab import arrive, build_search_tab
from moon2_space.space import SpaceOptions, build_space

short = texts.map(lambda text: text[:40])


def product(number, value):
    return {
        "product_id": f"p{number}",
        "title": f"red {value} mug",
        "description": "",
        "category_path": ["Kitchen", value],
        "attributes": [{"name": "colour", "value": value}],
        "images": [],
    }


PRODUCTS = [product(number, value) for number, value in enumerate(TRICKY) if value.strip() and value.isprintable()]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    rows = [{"row": row} | filter_columns(of) for row, of in enumerate(PRODUCTS)]
    return lancedb.connect(tmp_path_factory.mktemp("filters")).create_table("products", pa.Table.from_pylist(rows))


@pytest.fixture(scope="module")
def catalogue(saved_model, tmp_path_factory):
    catalogue = LiveCatalogue.open(CatalogueFolder(tmp_path_factory.mktemp("catalogue")), str(saved_model))
    catalogue.put(PRODUCTS[:20])
    return catalogue


@pytest.fixture(scope="module")
def actions(catalogue):
    """What the API offers, by name, without the token's actions."""
    blocks = build_space(catalogue, SpaceOptions(admin_token="a token of some length"))
    found = {event.api_name: event.fn for event in blocks.fns.values() if event.api_visibility == "public"}
    return {name: of for name, of in found.items() if name not in ("expert_load", "modality_gap")}


@pytest.fixture(scope="module")
def tab(catalogue):
    with gr.Blocks():
        return build_search_tab(catalogue, {})


@fuzzed(
    0.05,
    category=st.lists(short | st.sampled_from(TRICKY), max_size=3) | short | values,
    attributes=st.dictionaries(
        short, st.lists(short | st.sampled_from(TRICKY), max_size=3) | short | values, max_size=3
    ),
)
def test_filters(category, attributes, filtered):
    with watched("Filters", ValueError):
        expression = Filters(category, attributes).expression()
        if expression is not None:
            filtered.search().where(expression).limit(None).to_arrow()
    assert filtered.count_rows() == len(PRODUCTS)


parameters = st.sampled_from(("q", "like", "balance", "category", "filter", "k", "hybrid", "view", "__theme"))
addresses = st.one_of(
    st.lists(st.tuples(parameters, short | numbers.map(str)), max_size=5).map(
        lambda pairs: urlencode(pairs, errors="surrogatepass")
    ),
    texts.map(lambda text: text.encode("utf-8", "replace").decode()),
    texts.map(lambda text: quote(text, errors="surrogatepass")),
)


@fuzzed(0.03, address=addresses, width=numbers)
def test_an_address(address, width, catalogue, tab):
    with watched("address of the page"):
        assert arrive(catalogue, tab, address, width)


json_values = values.map(lambda value: json.loads(json.dumps(value)))
arguments = st.fixed_dictionaries({}, optional={
    "text": short | json_values, "texts": st.lists(short, max_size=3) | json_values, "k": numbers | json_values,
    "category": short | json_values, "balance": numbers | json_values, "product_id": short | json_values,
    "attributes": st.dictionaries(short, st.lists(short, max_size=2), max_size=2) | json_values,
    "view": short | st.sampled_from(("text", "image", "multimodal")) | json_values, "title": short | json_values,
    "query": short | json_values, "max_duplicates": numbers | json_values, "hybrid": st.booleans() | json_values,
    "image": json_values | st.none(), "query_image": json_values | st.none(), "token": short | json_values,
    "file": json_values, "hub_id": short | json_values, "product_ids": json_values, "model": short | json_values,
    "wait": st.booleans(), "replace_all": st.booleans() | json_values,
})  # fmt: skip


@fuzzed(0.04, data=st.data(), given=arguments)
def test_every_action(data, given, actions):
    name = data.draw(st.sampled_from(sorted(actions)))
    action = actions[name]
    taken = action.__signature__.parameters
    needed = {of: given.get(of) for of, parameter in taken.items() if parameter.default is parameter.empty}
    with watched("actions of the API", gr.Error):
        json.dumps(action(**(needed | {of: value for of, value in given.items() if of in taken})))


@fuzzed(0.02, data=picture_bytes, balance=numbers, text=short | st.none())
def test_a_search_by_picture(data, balance, text, actions):
    import base64

    image = {"url": "data:image/png;base64," + base64.b64encode(data).decode()}
    with watched("search by a picture", gr.Error):
        assert len(actions["search_both"](text=text, image=image, balance=balance, k=3)) == 3
