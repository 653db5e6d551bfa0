from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moon2_dataset.augment.words import (
    audience_of,
    colour_families,
    connectives,
    is_plain_colour,
    key_of,
    kind_of_attribute,
    seed_values,
    tokens,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("T-Shirts", "tshirt"), ("Watches", "watch"), ("Ladies'", "lady"), ("Women\u2019s", "WOMEN"), ("Gray", "grey"),
        ("Dresses", "dress"), ("1,000 ml", "1000 ml"), ("2.50", "2,5"), ("\u00bd", "1/2"), ("75cm", "75 cm"),
        ("\uff33\uff28\uff29\uff32\uff34", "shirt"), ("\u0663", "3"), ("Crème", "Cre\u0300me"), ("Q&Q", "q & q"),
    ],
)  # fmt: skip
def test_spellings_of_one_thing_have_one_key(one, other):
    assert key_of(one) == key_of(other)


@pytest.mark.parametrize(
    ("one", "other"), [("men", "women"), ("glass", "glasse"), ("7", "70"), ("leather", "leatherette"), ("1.5", "15")]
)
def test_different_things_have_different_keys(one, other):
    assert key_of(one) != key_of(other)


def test_scripts_without_spaces_are_cut_into_characters_and_others_into_words():
    assert [token.key for token in tokens("ナイキ黒T恤 red")] == [*"ナイキ黒", "t", "恤", "red"]
    assert len(key_of("हिन्दी कमीज")) == 2  # vowel signs are part of the word


@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_tokens_lie_in_the_text_in_order_whatever_it_is(text):
    end = 0
    for token in tokens(text):
        assert end <= token.start < token.end <= len(text) and token.key
        end = token.end
    assert key_of(text) == tuple(token.key for token in tokens(text))


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
def test_the_quick_way_for_ascii_cuts_as_the_slow_one(text):
    slow = tokens(f"{text} é")[:-1]
    assert tokens(text) == slow


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("baseColour", "colour"), ("Farbe", "colour"), ("couleur", "colour"), ("颜色", "colour"), ("COLOR", "colour"),
        ("brand_name", "brand"), ("Marke", "brand"), ("vendor", "brand"), ("outer material", "material"),
        ("Product Type", "noun"), ("g:gender", "audience"), ("Größe", "size"), ("usage", "use"), ("Muster", "pattern"),
        ("sole_material", None), ("strap colour", None), ("url_key", None), ("style_general", None), ("", None),
    ],
)  # fmt: skip
def test_attribute_names_mean_a_kind_only_where_they_speak_of_the_whole_product(name, kind):
    assert kind_of_attribute(name) == kind


def test_shades_belong_to_families_and_are_none():
    assert colour_families(key_of("Navy Blue")) == {"blue"} == colour_families(key_of("blau"))
    assert is_plain_colour(key_of("Rouge")) and not is_plain_colour(key_of("maroon"))
    assert colour_families(key_of("zebra")) == frozenset()
    assert audience_of(key_of("Men's")) == audience_of(key_of("Herren")) == "men"


def test_small_words_are_of_the_language_that_the_words_show():
    assert connectives(frozenset(("und", "mit", "hemd", "the"))).audience == "für"
    assert connectives(frozenset(("avec", "pour"))).conjunction == "et"
    assert connectives(frozenset()).audience == "for"


def test_seeds_have_a_kind_and_a_key():
    seeds = dict.fromkeys(seed_values())
    assert {kind for kind, _ in seeds} == {"colour", "material", "pattern", "use", "audience"}
    assert all(key_of(value) for _, value in seeds) and ("colour", "coffee") not in seeds
