from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moon2_dataset import load_products
from moon2_dataset.augment.enrichment import TemplateEnricher
from moon2_dataset.augment.entities import Lexicon
from moon2_dataset.augment.faithfulness import unsupported_claims


def product(title, path=(), description="", **attributes):
    return {
        "product_id": "p", "title": title, "description": description, "category_path": list(path),
        "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
    }  # fmt: skip


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon.build(
        product(f"{brand} {colour} {noun}", ("Shop", "Shirts"), "A handy thing for a cosy evening.", brand=brand)
        for brand in ("Nike", "Red Tape", "Lumo") for colour in ("Black", "Navy Blue", "Olive")
        for noun in ("Shirt", "Tunic") for _ in range(3)
    )  # fmt: skip


SHIRT = product(
    "Lumo Navy Shirt Pack of 3 T45", ("Women", "Shirts"),
    "With organic cotton, no leather; 1,200 ml pocket. Half-inch rim.",
    material="Cotton|Faux Fur", size="M/L", weight_kg="2", volume="1.5 l",
)  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "Lumo Navy Shirt Pack of 3 T45",
        "Lumo Women's Navy Blue Organic Cotton Shirt - Pack of 3 T45",  # navy is navy blue; women's are women's
        "Lumo Blue Shirt Pack of three T45 for Ladies",  # navy is blue, three is 3
        "Lumo Navy Shirts 1200ml 1.50 l T45 pack of 3",
        "Lumo Navy Shirt M, 2 kg, faux fur trim, pack of 3 T45",
        "lumo navy shirt with v-neck and cosy hood pack of 3 t45",  # shape may be seen in the picture
        "Lumo Navy Tunic Pack of 3 T45",  # what half the titles of the category call it
    ],
)
def test_what_the_product_says_may_be_said(lexicon, line):
    assert unsupported_claims(line, SHIRT, lexicon) == []


@pytest.mark.parametrize(
    ("line", "claim"),
    [
        ("Nike Lumo Navy Shirt Pack of 3 T45", "brand: Nike"),
        ("Red Tape Navy Shirt Pack of 3 T45", "brand: Red Tape"),
        ("Zorvex Lumo Navy Shirt Pack of 3 T45", "name: Zorvex"),  # a brand the catalogue has never seen
        ("Lumo Olive Shirt Pack of 3 T45", "colour: Olive"),
        ("Lumo Navy Red Shirt Pack of 3 T45", "colour: Red"),
        ("Lumo Dark Navy Shirt Pack of 3 T45", "colour: Dark Navy"),
        ("Lumo Navy Leather Shirt Pack of 3 T45", "material: Leather"),  # which the description denies
        ("Lumo Navy Fur Shirt Pack of 3 T45", "material: Fur"),  # it is faux
        ("Lumo Navy Silk Shirt Pack of 3 T45", "material: Silk"),
        ("Lumo Navy Shirt XL Pack of 3 T45", "size: XL"),
        ("Lumo Small Navy Shirt Pack of 3 T45", "size: S"),
        ("Lumo Navy Shirt Pack of 4 T45", "number: 4"),
        ("Lumo Navy Shirt Pack of five T45", "number: 5"),
        ("Lumo Navy Shirt 3 cm Pack of 3 T45", "number: 3 cm"),  # 3 is known, but not as a length
        ("Lumo Navy Shirt 1200 cl Pack of 3 T45", "number: 1200 cl"),
        ("Lumo Navy Shirt 100% Pack of 3 T45", "number: 100 %"),
        ('Lumo Navy Shirt 3" Pack of 3 T45', "number: 3 in"),
        ("Lumo Men Navy Shirt Pack of 3 T45", "audience: Men"),
        ("Lumo Navy Pack of 3 T45", "noun: Shirt is gone"),
        ("Lumo Navy Mug Pack of 3 T45", "noun: Shirt is gone"),
        ("Shirt", "form: keeps 1 of the title's 8 words"),
        ("Lumo Navy Shirt Pack of 3 T45\nMore", "form: several lines"),
        ("Lumo Navy Shirt Pack of 3 T45 " + "shirt " * 5, "form: shirt 6 times"),
        ("Lumo Navy Shirt Pack of 3 T45 " + "cosy evening thing handy " * 6, "form: 32 words for a title of 8"),
        ("Lumo Navy Shirt Pack of 3 T45 рубашка", "script: CYRILLIC"),
        ("Lumo Navy Shirt Pack of 3 T45 海军蓝", "script: CJK"),
        ("  ", "empty: no text"),
        ("x" * 5000, "form: 5000 characters"),
    ],
)
def test_what_it_does_not_say_is_named(lexicon, line, claim):
    assert claim in unsupported_claims(line, SHIRT, lexicon)


def test_a_shade_supports_its_family_and_not_the_other_way_round(lexicon):
    navy, blue = product("Lumo shirt", color="Navy"), product("Lumo shirt", color="Blue")
    assert unsupported_claims("Lumo blue shirt", navy, lexicon) == []
    assert unsupported_claims("Lumo navy shirt", blue, lexicon) == ["colour: navy"]
    assert unsupported_claims("Lumo rotes Hemd shirt rot", product("Lumo shirt", Farbe="rot"), lexicon) == [
        "name: Hemd"
    ]
    assert unsupported_claims("Lumo red shirt", product("Lumo shirt", Farbe="rot"), lexicon) == []


def test_a_colour_within_a_brand_is_none(lexicon):
    assert unsupported_claims("Red Tape red shirt", product("Red Tape shirt"), lexicon) == ["colour: red"]


def test_gaps_are_no_evidence(lexicon):
    empty = {"product_id": "p", "title": None, "description": None, "category_path": None, "attributes": None}
    assert unsupported_claims("Nike shirt 5", empty, lexicon) == ["brand: Nike", "number: 5"]


@given(st.text(alphabet=st.characters(codec=None), max_size=80), st.text(max_size=40), st.text(max_size=20))
def test_no_line_breaks_it_and_a_title_is_always_faithful(lexicon, line, title, value):
    row = product(title, (value,), line, **{"size": value, "color": value})
    unsupported_claims(line, row, lexicon)
    assert not title.strip() or unsupported_claims(title, row, lexicon) == []


WRONG = {
    "size": ("XL", "XXL", "Small", "Large", "2XL", "42 cm", "UK 8", "size 9"),
    "number": ("500 ml", "12", "64 GB", "2.5 m", "Pack of 6", "100%"),
    "name": ("Gucci", "Zorvex", "Rolex", "Kalindra"),
}


@pytest.mark.parametrize(("folder", "split"), [("fashion", "test"), ("sportswear", "test")])
def test_on_real_titles_wrong_claims_are_caught_and_template_lines_pass(shared_data, folder, split):
    rows = load_products(shared_data / folder / f"products-{split}.parquet").remove_columns("images").to_list()
    lexicon = Lexicon.build(rows)
    wrong = WRONG | {
        kind: tuple(lexicon.values[kind]) for kind in ("brand", "colour", "material") if lexicon.values[kind]
    }
    rng = np.random.default_rng(0)
    chosen = [rows[row] for row in rng.permutation(len(rows))[:200]]
    lines = TemplateEnricher(lexicon).enrich(chosen)
    claims = [unsupported_claims(line, row, lexicon) for line, row in zip(lines, chosen, strict=True)]
    assert sum(map(bool, claims)) <= 0.02 * len(chosen)
    for kind, values in wrong.items():
        tried = caught = 0
        for line, row in zip(lines, chosen, strict=True):
            value, words = values[rng.integers(len(values))], line.split()
            place = rng.integers(len(words) + 1)
            said = str(row).lower()
            if not any(word in said for word in value.lower().split()):  # else it may be true
                tried += 1
                caught += bool(unsupported_claims(" ".join([*words[:place], value, *words[place:]]), row, lexicon))
        assert tried > 50 and caught >= 0.95 * tried, f"{kind}: {caught} of {tried}"
