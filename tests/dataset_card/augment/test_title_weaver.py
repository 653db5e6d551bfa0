from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moon2_dataset.augment.entities import Lexicon
from moon2_dataset.augment.title_weaver import MAX_CHARACTERS, weave
from moon2_dataset.augment.words import tokens

SMALL_WORDS = {"for", "in", "für", "aus", "pour", "en"}


def product(title, path=(), description="", product_id="p0", **attributes):
    return {
        "product_id": product_id, "title": title, "description": description, "category_path": list(path),
        "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
    }  # fmt: skip


def learn(titles, leaf, **attributes):
    return Lexicon.build(product(title, ("Shop", leaf), **attributes) for title in titles)


@pytest.fixture(scope="module")
def lexicon():
    """Of titles like "Nike Men Kite Black Shirt"; sunglasses never name their colour; some are party shirts."""
    rows = []
    for brand in ("Nike", "Red Tape", "Lumo Works"):
        for audience in ("Men", "Women"):
            for colour in ("Black", "Navy Blue", "White"):
                for model in ("Kite", "Gull", "Heron"):
                    rows.append(product(f"{brand} {audience} {model} {colour} Shirt", ("Shop", "Shirts"), brand=brand,
                                        gender=audience, color=colour, occasion="Casual"))  # fmt: skip
                rows.append(product(f"{brand} {audience} {colour} Party Shirt", ("Shop", "Shirts"), occasion="Party"))
                rows.append(product(f"{brand} {audience} {colour} Striped Cap", ("Shop", "Caps"), pattern="Striped"))
                rows.append(product(f"{brand} {audience} Sunglasses", ("Shop", "Sunglasses"), color=colour))
                rows.append(
                    product(f"{brand} {audience} {colour} Leather Belt", ("Shop", "Belts"), material="Leather")
                )
    return Lexicon.build(rows)


def orders(lexicon, **row):
    """The titles that a product may get: one of three orders, by its id."""
    row = {"title": "", **row}
    rows = [product(product_id=f"p{number}", **row) for number in range(12)]
    return {weave(row, lexicon.entities(row), lexicon) for row in rows}


SHIRTS = ("Shop", "Shirts")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (  # in front of the noun, or behind it
            {"title": "Nike Men Kite Shirt", "path": SHIRTS, "color": "Navy Blue"},
            {"Nike Men Kite Navy Blue Shirt", "Nike Men Kite Shirt in Navy Blue"},
        ),
        (  # behind the brand, or behind the noun
            {"title": "Nike Kite Black Shirt", "path": SHIRTS, "gender": "Women"},
            {"Nike Women Kite Black Shirt", "Nike Kite Black Shirt for Women"},
        ),
        ({"title": "Men Kite Black Shirt", "path": SHIRTS, "brand": "Red Tape"}, {"Red Tape Men Kite Black Shirt"}),
        (  # pattern, colour, material in this order, whichever are there
            {"title": "Nike Men Black Cap", "path": ("Shop", "Caps"), "pattern": "Striped", "material": "Felt"},
            {"Nike Men Striped Black Felt Cap"},  # and audience or colour behind the noun
        ),
        (  # two materials follow; what is hung on the title stays behind
            {"title": "Nike Men Black Cap - XL", "path": ("Shop", "Caps"), "material": "Felt|Cork"},
            {"Nike Men Black Cap in Felt & Cork - XL", "Nike Black Cap for Men in Felt & Cork - XL"},
        ),
        ({"title": "Nike Men Black Felt", "path": ("Shop", "Caps"), "color": "black"}, {"Nike Men Black Felt"}),
        ({"title": "Nike Men Blue Shirt", "path": SHIRTS, "color": "Navy Blue"}, {"Nike Men Navy Blue Shirt"}),
        ({"title": "Nike Men Blakc Shirt", "path": SHIRTS, "color": "Black"}, {"Nike Men Blakc Shirt"}),  # mistyped
        ({"title": "NIKE MEN KITE SHIRT", "path": SHIRTS, "color": "White"},
         {"NIKE MEN KITE WHITE SHIRT", "NIKE MEN KITE SHIRT in WHITE"}),
        ({"title": "Nike men kite shirt", "path": SHIRTS, "color": "White"},
         {"Nike men kite white shirt", "Nike men kite shirt in white"}),
        ({"title": "Nike Men Sunglasses", "path": ("Shop", "Sunglasses"), "color": "Black"}, {"Nike Men Sunglasses"}),
        # most shirts are casual
        ({"title": "Nike Men Black Shirt", "path": SHIRTS, "occasion": "Casual"}, {"Nike Men Black Shirt"}),
        ({"title": "Nike Men White Shirt", "path": SHIRTS, "occasion": "Party"}, {"Nike Men White Party Shirt"}),
        ({"title": "Nike Men White Belt", "path": ("Shop", "Belts"), "occasion": "Party"}, {"Nike Men White Belt"}),
        ({"title": "", "path": SHIRTS, "brand": "Nike", "color": "White"}, {"Nike White Shirt"}),
        ({"title": "", "path": ("Shop", "Odds and Ends"), "color": "White"}, {""}),
    ],
)  # fmt: skip
def test_what_is_missing_comes_to_its_place(lexicon, row, expected):
    said = orders(lexicon, **row)
    plain = {title for title in said if not row["title"] or title not in reordered(row["title"])}
    assert plain <= expected, said
    assert expected & said


def reordered(title):
    """The same words with audience or colour behind: what a title with nothing missing may become."""
    words = title.split()
    moved = set()
    for word, small in (("Men", "for"), ("Women", "for"), ("Black", "in"), ("White", "in")):
        if word in words:
            rest = [other for other in words if other != word]
            moved.add(" ".join([*rest, small, word]))
    return moved


def test_a_title_that_says_all_is_said_in_one_of_three_orders(lexicon):
    row = {
        "title": "Nike Women Kite Black Shirt",
        "path": SHIRTS,
        "color": "Black",
        "gender": "Women",
        "brand": "Nike",
    }
    assert orders(lexicon, **row) == {
        "Nike Women Kite Black Shirt", "Nike Kite Black Shirt for Women", "Nike Women Kite Shirt in Black"
    }  # fmt: skip


def test_a_boy_may_be_part_of_a_name_and_one_small_word_makes_no_sentence(lexicon):
    for title in orders(lexicon, title="Nike Boy Kite Black Shirt", path=SHIRTS):
        assert "Nike Boy Kite" in title
    assert orders(lexicon, title="Nike Men Kite ace Shirt", path=SHIRTS, color="white") == {
        "Nike Men Kite ace White Shirt", "Nike Men Kite ace Shirt in White"
    }  # fmt: skip


def test_the_order_depends_on_the_product_alone(lexicon):
    rows = [product(f"Nike Men {model} Shirt", SHIRTS, product_id=str(n), color="Black")
            for n, model in enumerate(("Kite", "Gull", "Heron") * 5)]  # fmt: skip
    one = [weave(row, lexicon.entities(row), lexicon) for row in rows]
    other = [weave(row, lexicon.entities(row), lexicon) for row in reversed(rows)]
    assert one == other[::-1]


def test_a_noun_is_added_where_titles_often_have_none():
    models = [f"Nike Men {model}" for model in ("Kite", "Gull", "Heron", "Swift")]
    lexicon = learn([f"{model} {noun}" for model in models for noun in ("Shoes", "III", "Shoes")], "Shoes")
    path = ("Shop", "Shoes")
    assert "Nike Men Egret Shoes" in orders(lexicon, title="Nike Men Egret", path=path)
    assert orders(lexicon, title="Nike Men Egret Sneakers", path=path) == {"Nike Men Egret Sneakers"}
    clog = orders(lexicon, title="Nike Men Egret Clog", path=path, description="A light clog.")
    assert clog == {"Nike Men Egret Clog"}


def test_a_shelf_is_no_noun():
    lexicon = learn([f"Zing Rope {n}" for n in range(12)] + [f"Push Ball {n}" for n in range(12)], "Gear")
    assert orders(lexicon, title="Luma Band", path=("Shop", "Gear")) == {"Luma Band"}


def test_other_languages_get_their_own_words_and_order():
    german = [product(f"{brand} {noun} {model} für Damen mit Knopf {n}", ("Mode", noun), Farbe=colour, Marke=brand)
              for n, (brand, colour) in enumerate([("Elbe", "Blau"), ("Hanse", "Rot")] * 3)
              for noun in ("Hemd", "Jacke") for model in ("Oslo rot", "Kiel blau")]  # fmt: skip
    lexicon = Lexicon.build(german)
    titles = orders(lexicon, title="Elbe Hemd Oslo rot", path=("Mode", "Hemd"), Material="Wolle", Geschlecht="Herren")
    assert titles == {"Elbe Hemd Oslo rot für Herren aus Wolle"}
    chinese = Lexicon.build(product(f"{brand}{noun}", ("服装", noun), 品牌=brand, 颜色=colour, 性别="男士")
                            for brand in ("李宁", "安踏") for noun in ("卫衣", "跑鞋")
                            for colour in ("黑色", "白色"))  # fmt: skip
    assert orders(chinese, title="李宁卫衣", path=("服装", "卫衣"), 颜色="黑色", 性别="男士") == {"李宁男士黑色卫衣"}
    assert orders(chinese, title="李宁卫衣", path=("服装", "卫衣"), gender="male") == {"李宁卫衣"}
    russian = orders(Lexicon.build([]), title="Рубашка Осло", path=("Одежда", "Рубашка"), color="синий")
    assert russian == {"Рубашка Осло Синий"}


def test_long_titles_stay_and_additions_never_make_one(lexicon):
    long = "Nike " + "Kite " * 40
    assert orders(lexicon, title=long, path=SHIRTS, color="Black") == {long}
    nearly = ("Nike Men " + "Kite " * 40)[: MAX_CHARACTERS - 14] + " Shirt"
    for title in orders(lexicon, title=nearly, path=SHIRTS, color="Black", material="Leather"):
        assert len(title) <= MAX_CHARACTERS


@given(
    st.lists(st.sampled_from("Nike Red Tape Men Women Kite Black Navy & - , Striped Shirt shirt Leather 501".split())),
    st.sampled_from(["Black", "Navy Blue", "Mauve", "Black|White"]), st.sampled_from(["Men", "Women", "Unisex"]),
    st.sampled_from(["Leather", "Felt|Cork", "Striped"]), st.integers(0, 99),
)  # fmt: skip
def test_title_words_are_kept_and_no_supported_value_comes_twice(lexicon, words, colour, audience, material, number):
    row = product(" ".join(words), SHIRTS, product_id=str(number), color=colour, gender=audience, material=material)
    woven = weave(row, lexicon.entities(row), lexicon)
    if not words:
        return
    before, after = [token.key for token in tokens(row["title"])], [token.key for token in tokens(woven)]
    for key in set(before):
        assert after.count(key) >= before.count(key)
    for key in set(after) - set(before) - SMALL_WORDS:
        assert after.count(key) == 1
    assert woven == weave(row, lexicon.entities(row), lexicon) and "  " not in woven


@given(st.text(alphabet=st.characters(codec=None), max_size=80), st.text(max_size=30), st.text(max_size=30))
def test_no_text_breaks_it(lexicon, title, name, value):
    row = product(title, (value,), title, **{name: value, "color": value, "gender": value})
    weave(row, lexicon.entities(row), lexicon)
