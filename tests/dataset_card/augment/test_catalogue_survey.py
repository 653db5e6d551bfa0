from __future__ import annotations

import pytest

from moon2_dataset.augment import catalogue_survey
from moon2_dataset.augment.catalogue_survey import Survey
from moon2_dataset.augment.entities import Lexicon


def product(title, leaf="", description="", **attributes):
    return {"product_id": title, "title": title, "description": description, "category_path": [leaf] if leaf else [],
            "attributes": [{"name": name, "value": value} for name, value in attributes.items()]}  # fmt: skip


TITLES = [
    f"{brand} Men {model} {colour} {noun}"
    for brand in ("Ajax", "Fine Old Company", "Red Tape")
    for model in ("Kite", "Plum Run", "Gull")
    for colour in ("Red", "Blue")
    for noun in ("Shirt", "Jersey", "Gym Shorts")
]


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon.build(product(title, "Shirts") for title in TITLES)


def test_titles_teach_brands_that_no_attribute_names(lexicon):
    assert set(lexicon.values["brand"]) == {"Ajax", "Fine Old Company", "Red Tape"}


def test_a_name_of_one_product_in_many_colours_is_no_brand():
    lexicon = Lexicon.build(
        product(f"Layla Tee - {colour}", "Tees") for colour in ("Red", "Blue", "Black", "White", "Grey")
    )
    assert lexicon.values["brand"] == {}


def test_words_in_lower_case_elsewhere_are_no_brands():
    titles = [f"Handy {thing} Holder" for thing in ("Cup", "Pen", "Phone", "Coat", "Hat", "Key")]
    plain = Lexicon.build(product(title, "Holders") for title in titles)
    described = Lexicon.build(product(title, "Holders", "A handy thing.") for title in titles)
    assert "Handy" in plain.values["brand"] and "Handy" not in described.values["brand"]


def test_where_attributes_name_brands_titles_do_not():
    lexicon = Lexicon.build(product(title, "Shirts", brand="Acme") for title in TITLES)
    assert set(lexicon.values["brand"]) == {"Acme"}


def test_title_ends_teach_nouns_also_of_words_that_are_cloths_elsewhere(lexicon):
    assert {"Shirt", "Jersey", "Shorts"} <= lexicon.values["noun"].keys()
    assert lexicon.kind(("jersey",)) == "noun" and lexicon.kind(("linen",)) == "material"


def test_words_that_belong_to_a_noun_are_learnt_with_it():
    titles = [
        f"{brand} {colour} Polo Shirt" for brand in ("Ajax", "Bolt", "Crag") for colour in ("Red", "Blue", "Lilac")
    ]
    assert "Polo Shirt" in Lexicon.build(product(title, "Shirts") for title in titles).values["noun"]


def test_habits_count_what_titles_of_a_category_name(lexicon):
    assert lexicon.naming_share("Shirts", "colour") == lexicon.naming_share("", "audience") == 1.0
    assert lexicon.naming_share("Shirts", "material") == 0.0
    assert lexicon.naming_share("Shirts", "noun:jersey") == pytest.approx(1 / 3)
    assert lexicon.naming_share("Hats", "colour") is None
    assert lexicon.naming_share("Shirts", "behind") == 0.0
    behind = Lexicon.build(product(f"Ajax {n} Shirt for men", "Shirts") for n in ("Kite", "Gull", "Run"))
    assert behind.naming_share("", "behind", 1) == 1.0


def test_the_place_of_adjectives_is_learnt(lexicon):
    assert lexicon.adjectives_first
    french = [
        product(f"{noun} {colour}", f"{noun}s") for noun in ("Robe", "Jupe") for colour in ("noire", "rouge", "verte")
    ]
    assert not Lexicon.build(french).adjectives_first


def test_rare_capitalised_words_are_not_common(lexicon):
    rows = [product(f"{title} {'Zorvex' if number < 2 else 'runs'}") for number, title in enumerate(TITLES)]
    lexicon = Lexicon.build(rows)
    assert "run" in lexicon.common_words and "zorvex" not in lexicon.common_words


def test_a_large_catalogue_is_sampled_evenly_and_alike_each_time(monkeypatch):
    monkeypatch.setattr(catalogue_survey, "SAMPLE", 50)
    surveys = [Survey(), Survey()]
    for survey in surveys:
        for number in range(2000):
            survey.add(product(f"thing {number}"))
    kept = [int(title.split()[1]) for title, _, _ in surveys[0].sample]
    assert surveys[0].sample == surveys[1].sample and len(set(kept)) == 50
    assert 600 < sum(kept) / 50 < 1400


def test_rare_values_are_let_go_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(catalogue_survey, "MOST_VALUES", 100)
    survey = Survey()
    for number in range(1000):
        survey.add(product("x", brand=f"Brand{number}"))
        survey.add(product("x", brand="Steady"))
    assert len(survey.values["brand"]) <= 101
    assert set(survey.lexicon().values["brand"]) == {"Steady"}
