from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moon2_dataset import load_products
from moon2_dataset.augment.entities import Entity, Lexicon, SpacyEntities, nouns_of_leaf, split_values

COLOURS = ("Red", "Navy Blue", "Black")


def product(title, path=(), description="", product_id="p", **attributes):
    return {
        "product_id": product_id, "title": title, "description": description, "category_path": list(path),
        "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
    }  # fmt: skip


@pytest.fixture(scope="module")
def catalogue():
    """54 products in attributes of two languages, one of which is seen once."""
    rows = [
        product(f"{brand} {colour} {noun}", ("Shop", f"{noun}s"), marke=brand, baseColour=colour, material=cloth)
        for brand in ("Nordvik", "Red Tape", "Lumo")
        for noun, cloth in (("Shirt", "Cotton|Linen"), ("Mug", "Stoneware"), ("Lamp", "Brushed Zinc"))
        for colour in COLOURS * 2
    ]
    return [*rows, product("Oddity", ("Shop", "Curios"), brand="Unheard", color="Octarine")]


@pytest.fixture(scope="module")
def lexicon(catalogue):
    return Lexicon.build(catalogue)


def found(lexicon, text):
    return [(match.kind, text[match.start : match.end]) for match in lexicon.find(text)]


def test_values_are_learnt_by_kind_from_attributes_and_categories(lexicon):
    assert set(lexicon.values["brand"]) == {"Nordvik", "Red Tape", "Lumo"}
    assert lexicon.values["colour"] == {"Red": 18, "Navy Blue": 18, "Black": 18}
    assert {"Cotton", "Linen", "Stoneware", "Brushed Zinc"} <= lexicon.values["material"].keys()
    assert set(lexicon.values["noun"]) == {"Shirt", "Mug", "Lamp"}  # as titles say it, not "Shirts"


def test_a_value_counts_only_when_it_was_seen_in_two_products(lexicon):
    assert found(lexicon, "Unheard Octarine Curios") == []
    once = Lexicon.build([product("a", color="Octarine")])
    twice = Lexicon.build([product("a", color="Octarine"), product("b", color="octarine")])
    assert found(once, "octarine") == [] and found(twice, "octarine") == [("colour", "octarine")]


def test_the_longest_value_wins_on_word_boundaries(lexicon):
    assert found(lexicon, "red tape REDS, shirtless Shirts") == [
        ("brand", "red tape"), ("colour", "REDS"), ("noun", "Shirts")
    ]  # fmt: skip
    assert found(lexicon, "brushed zinc mugs / Navy-blue") == [
        ("material", "brushed zinc"), ("noun", "mugs"), ("colour", "Navy-blue")
    ]  # fmt: skip
    assert found(lexicon, "Red, Tape") == [("colour", "Red")]  # a comma parts what is one value without it


def test_values_are_found_inside_text_without_spaces():
    rows = [
        product(f"{b}男士{c}卫衣", ("服装", "卫衣"), 品牌=b, 颜色=c)
        for b in ("李宁", "安踏")
        for c in ("黑色", "月白")
    ]
    lexicon = Lexicon.build(rows * 2)
    assert found(lexicon, "安踏月白卫衣男士") == [
        ("brand", "安踏"), ("colour", "月白"), ("noun", "卫衣"), ("audience", "男士")
    ]  # fmt: skip


def test_entities_say_where_they_stand_and_come_once(lexicon):
    entities = lexicon.entities(
        product("Lumo shirt", ("Women", "Shirts"), "A linen shirt. Not red. Silk look, no wool.",
                color="Ultramarine", material="Cotton|linen", style="black trim", size="XL")
    )  # fmt: skip
    assert entities == (
        Entity("brand", "Lumo", "title"),
        Entity("noun", "Shirt", "title"),
        Entity("colour", "Ultramarine", "attributes"),  # new to the lexicon, but its name says what it is
        Entity("material", "Cotton", "attributes"),
        Entity("material", "linen", "attributes"),
        Entity("colour", "Black", "attributes"),
        Entity("size", "XL", "attributes"),
        Entity("audience", "women", "category_path"),
    )


def test_entities_of_gaps_are_none(lexicon):
    nothing = {"product_id": "p", "title": None, "description": None, "category_path": None, "attributes": None}
    assert lexicon.entities(nothing) == lexicon.entities({}) == ()


def test_a_saved_lexicon_is_the_same(lexicon, catalogue, tmp_path):
    lexicon.save(tmp_path / "lexicon.json")
    again = Lexicon.load(tmp_path / "lexicon.json")
    assert [again.entities(row) for row in catalogue] == [lexicon.entities(row) for row in catalogue]
    assert (again.habits, again.common_words, again.adjectives_first) == (
        lexicon.habits, lexicon.common_words, lexicon.adjectives_first
    )  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["lexicon.json"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "values": 3}'])
def test_what_is_no_lexicon_is_refused_by_name(tmp_path, content):
    (tmp_path / "lexicon.json").write_text(content)
    with pytest.raises(ValueError, match="lexicon.json: is no lexicon .*; build it again"):
        Lexicon.load(tmp_path / "lexicon.json")


def test_a_failed_save_leaves_the_old_file(lexicon, tmp_path, monkeypatch):
    lexicon.save(tmp_path / "lexicon.json")
    before = (tmp_path / "lexicon.json").read_bytes()
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lexicon.save(tmp_path / "lexicon.json")
    assert (tmp_path / "lexicon.json").read_bytes() == before


def test_the_build_reads_once_and_says_the_same_for_the_same(catalogue, lexicon):
    assert Lexicon.build(iter(catalogue)).values == lexicon.values
    assert Lexicon.build([]).entities(catalogue[0])  # attributes and general words are known without a catalogue


def test_several_values_and_nouns_are_parted():
    assert split_values("Cotton| Wool ;Silk") == ["Cotton", "Wool", "Silk"]
    assert split_values("1/4 inch") == ["1/4 inch"] and split_values("x" * 100) == []
    assert nouns_of_leaf("Kajal and Eyeliner") == ["Kajal", "Eyeliner"] and nouns_of_leaf("Women") == []


@given(st.text(alphabet=st.characters(codec=None), max_size=60), st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_it(lexicon, title, name, value):
    row = product(title, (value,), title, **{name: value})
    for entity in lexicon.entities(row):
        assert entity.value
    Lexicon.build([row] * 3).entities(row)


def test_spacy_adds_entities_of_a_pipeline(tmp_path):
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "ORG", "pattern": "Zorvex"}, {"label": "COLOR", "pattern": [{"LOWER": "taupe"}]},
         {"label": "GPE", "pattern": "Oslo"}]
    )  # fmt: skip
    pipeline.to_disk(tmp_path)
    spacy_entities = SpacyEntities(str(tmp_path))
    rows = [product("Zorvex lamp", description="Taupe shade from Oslo."), product(""), product("Plain lamp")]
    assert spacy_entities.entities(rows) == [
        (Entity("brand", "Zorvex", "title"), Entity("colour", "Taupe", "description")), (), ()
    ]  # fmt: skip


def test_a_missing_pipeline_is_refused_by_name(tmp_path):
    pytest.importorskip("spacy")
    with pytest.raises(ValueError, match="no_such_pipeline: no such spaCy pipeline"):
        SpacyEntities("no_such_pipeline")


def test_real_titles_teach_brands_and_nouns(shared_data):
    rows = load_products(shared_data / "fashion" / "products-test.parquet").remove_columns("images").to_list()
    start = time.process_time()
    lexicon = Lexicon.build(rows)
    took = time.process_time() - start
    brands = {"United Colors of Benetton", "Puma", "Nike", "Peter England", "Flying Machine"}
    assert brands <= lexicon.values["brand"].keys()
    for wrong in ("United", "Men", "Black", "Solid", "Casual"):
        assert wrong not in lexicon.values["brand"]
    assert {"Sunglasses", "Flip Flops", "Polo Tshirts"} <= lexicon.values["noun"].keys()
    named = [{entity.kind for entity in lexicon.entities(row)} for row in rows]
    for kind, least in {"brand": 0.75, "colour": 0.99, "noun": 0.99, "audience": 0.99}.items():
        assert sum(kind in kinds for kinds in named) >= least * len(rows)
    assert len(rows) / took > 200  # products a second; thousands on an idle core
