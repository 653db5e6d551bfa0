"""Exports of Shopify, WooCommerce and Google Merchant Center, from file to product."""

from __future__ import annotations

import csv
import io

import pytest
from PIL import Image

from moon2_dataset.build.clean import clean_product
from moon2_dataset.build.raw_rows import RawRow, merge_lines
from moon2_dataset.build.shops import recognise
from moon2_dataset.build.sources import open_source

SHOPIFY = """Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,\
Option2 Name,Option2 Value,Variant SKU,Variant Price,Image Src,Image Position,Variant Image,\
Color (product.metafields.shopify.color-pattern),Google Shopping / Gender,SEO Title,Status
linen-shirt,Linen Shirt,"<p>Light &amp; airy.</p>
<p>Made in Porto.</p>",Lumo,Apparel & Accessories > Clothing > Shirts,Shirts,"summer, linen",true,Size,S,Color,White,\
L-S,49,images/one.jpg,1,images/white.jpg,white; sand,unisex,Linen shirt | Lumo,active
linen-shirt,,,,,,,,,M,,White,L-M,49,images/two.jpg,2,images/white.jpg,,,,
linen-shirt,,,,,,,,,M,,Sand,L-MS,49,,,images/sand.jpg,,,,
gift-card,Gift Card,,Lumo,,Gifts,,true,Title,Default Title,,,G,10,https://cdn.shop.example/gift.jpg?v=1,1,,,,,active
"""

WOO = r"""ID,Type,SKU,Name,Published,"Is featured?",Short description,Description,Tax status,Categories,Tags,Images,\
Parent,Brands,Attribute 1 name,Attribute 1 value(s),Attribute 1 visible,Attribute 1 global,\
Attribute 2 name,Attribute 2 value(s)
44,"simple, virtual",woo-mug,Red Mug,1,0,A mug.,"<p>A mug. Holds tea.</p>",taxable,\
"Home > Kitchen > Mugs, Gifts, Home > Sale","tea, gift","images/one.jpg, images/two.jpg",,\
Lumo,Colour,Red,1,1,Material,"Clay, Glaze"
45,variable,,Hoodie,1,0,,Warm.,taxable,"Clothing > Hoodies\, Sweaters",,,,,Size,"S, M",1,1,,
46,variation,woo-h-s,Hoodie - S,1,0,,,taxable,,,images/one.jpg,id:45,,Size,S,,1,,
,simple,woo-cup,Cup,1,0,,,taxable,Clothing,,,,,,,,,,
"""

GOOGLE = """id\ttitle\tdescription\tlink\timage link\tadditional image link\tproduct type\tgoogle product category\t\
brand\tcolor\tsize\tmaterial\tgender\tage group\tprice\titem group id
A1\tRed Dress\tLong, red & light\thttps://s.example/a1\timages/one.jpg\timages/two.jpg,images/white.jpg\t\
Home > Women > Dresses\t2271\tLumo\tRed/Navy\tM\tcotton\tfemale\tadult\t49.90 EUR\tG1
"""


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "images").mkdir()
    for n, name in enumerate(("one", "two", "white", "sand")):
        buffer = io.BytesIO()
        Image.effect_noise((40 + n, 50), 90).save(buffer, "JPEG")
        (tmp_path / "images" / f"{name}.jpg").write_bytes(buffer.getvalue())

    def clean(text, name="export.csv", **columns):
        (tmp_path / name).write_text(text.replace("\\\n", ""), encoding="utf-8-sig")
        source = open_source(tmp_path / name, columns or None)
        return source, [clean_product(row, source.mapping) for batch in source.batches() for row in batch]

    return clean


def pairs(product):
    return [(entry["name"], entry["value"]) for entry in product["attributes"]]


def pictures(product):
    return [picture["path"] for picture in product["images"]]


def test_shopify_lines_of_one_handle_are_one_product(shop):
    source, (shirt, card) = shop(SHOPIFY)
    assert any("a product export of Shopify" in line for line in source.explain())
    assert "neighbouring lines with one Handle are one product" in source.explain()
    product = shirt.product
    assert (product["product_id"], product["title"]) == ("linen-shirt", "Linen Shirt")
    assert product["description"] == "Light & airy. Made in Porto."
    assert product["category_path"] == ["Apparel & Accessories", "Clothing", "Shirts"]
    assert pairs(product) == [("brand", "Lumo"), ("Size", "S, M"), ("Color", "White, Sand"), ("color", "white; sand"),
                              ("gender", "unisex"), ("tag", "summer"), ("tag", "linen")]  # fmt: skip
    assert pictures(product) == ["one.jpg", "two.jpg", "white.jpg", "sand.jpg"] and not shirt.notes
    assert card.product["category_path"] == ["Gifts"] and pairs(card.product) == [("brand", "Lumo")]
    assert [code for code, _ in card.notes] == ["image_url_not_fetched"]


def test_shopify_restarts_between_products_and_names_the_first_line(shop):
    source, _ = shop(SHOPIFY)
    whole = [row for batch in source.batches() for row in batch]
    assert [row.number for row in whole] == [0, 1]
    assert [row.place for row in whole] == ["export.csv line 2", "export.csv line 6"]
    assert [row for batch in source.batches(start=1, size=1) for row in batch] == whole[1:]


def test_a_variant_is_no_product_and_its_sku_another_name_of_its_product(shop):
    source, (shirt, card) = shop(SHOPIFY)
    assert "aliases <- Variant SKU: the format has it there" in source.explain()
    assert (shirt.aliases, card.aliases) == (("L-S", "L-M", "L-MS"), ("G",))
    with pytest.raises(
        ValueError, match="export.csv: .*Shopify.* first line.* product_id=Variant SKU.* is Handle.*aliases"
    ):
        shop(SHOPIFY, product_id="Variant SKU")
    assert shop(SHOPIFY, product_id="Handle", aliases="")[1][0].aliases == ()


def test_shopify_new_header_names(shop):
    header = "Title,URL handle,Description,Vendor,Product category,Type,Option1 name,Option1 value,Product image URL"
    _, (mug,) = shop(
        f"{header}\nMug,mug,A mug.,Lumo,Home > Mugs,Mugs,Size,S,images/one.jpg\n,mug,,,,,,M,images/two.jpg\n"
    )
    assert mug.product["product_id"] == "mug" and pictures(mug.product) == ["one.jpg", "two.jpg"]
    assert pairs(mug.product) == [("brand", "Lumo"), ("Size", "S, M")]


def test_woocommerce(shop):
    source, (mug, hoodie, variation, cup) = shop(WOO)
    assert any("a product export of WooCommerce" in line for line in source.explain())
    product = mug.product
    assert (product["product_id"], product["title"]) == ("44", "Red Mug")
    assert product["description"] == "A mug. Holds tea." and product["category_path"] == ["Home", "Kitchen", "Mugs"]
    assert pairs(product) == [("brand", "Lumo"), ("Colour", "Red"), ("Material", "Clay, Glaze"), ("tag", "tea"),
                              ("tag", "gift")]  # fmt: skip
    assert pictures(product) == ["one.jpg", "two.jpg"]
    assert hoodie.product["category_path"] == ["Clothing", "Hoodies, Sweaters"]
    assert (variation.reason_code, variation.detail) == ("variation", "a variation of id:45")
    assert (variation.aliases, variation.parent) == (("46", "woo-h-s"), "45")
    assert (mug.aliases, hoodie.aliases, cup.aliases) == (("woo-mug",), (), ())
    assert cup.product["product_id"] == "woo-cup" and cup.product["category_path"] == ["Clothing"]


def test_google_merchant_center(shop):
    source, (dress,) = shop(GOOGLE, "feed.tsv")
    assert any("a product export of Google Merchant Center" in line for line in source.explain())
    product = dress.product
    assert product["product_id"] == "A1" and product["category_path"] == ["Home", "Women", "Dresses"]
    assert pairs(product) == [("brand", "Lumo"), ("color", "Red/Navy"), ("size", "M"), ("material", "cotton"),
                              ("gender", "female"), ("age group", "adult")]  # fmt: skip
    assert pictures(product) == ["one.jpg", "two.jpg", "white.jpg"]


def test_a_table_with_an_image_link_is_no_export_of_google_and_keeps_its_columns(shop):
    source, (lamp,) = shop(
        "id,title,description,category,colour,brand,image_link\n"
        "7,Desk lamp,A lamp.,Home > Lamps,white,Lumo,images/one.jpg\n"
    )
    assert not any("product export" in line for line in source.explain())
    assert lamp.product["category_path"] == ["Home", "Lamps"]
    assert pairs(lamp.product) == [("colour", "white"), ("brand", "Lumo")]


def test_what_an_export_format_does_not_have_is_guessed(shop):
    source, (lamp,) = shop(
        "id,title,category,colour,brand,image_link,link,price,stock\n"
        "7,Desk lamp,Home > Lamps,white,Lumo,images/one.jpg,https://s.example/7,9 EUR,3\n"
    )
    assert "category_path <- category: its values are paths of categories" in source.explain()
    assert "attributes <- brand, colour: the format has it there; more by their names" in source.explain()
    assert any(line.startswith("not used: link, price, stock") for line in source.explain())
    assert lamp.product["category_path"] == ["Home", "Lamps"] and pictures(lamp.product) == ["one.jpg"]
    assert pairs(lamp.product) == [("brand", "Lumo"), ("colour", "white")]
    source, _ = shop("id,title,colour,brand,image_link,link,price\n7,Lamp,red,Lumo,,,\n", attributes="brand")
    assert source.mapping["attributes"] == ("brand",)


def test_other_tables_are_not_taken_for_an_export():
    assert recognise(["id", "title", "image"]) is None
    assert recognise(["id", "title", "image_link", "price"]) is None
    assert recognise(["id", "title", "image_link", "price", "link"]).name == "Google Merchant Center"
    assert recognise(["Handle", "Title", "Price"]) is None
    assert recognise(["Type", "SKU", "Name", "Price"]) is None
    assert recognise(["g:id", "g:title", "g:image_link"]).mapping["images"] == ("g:image_link",)
    assert recognise(next(csv.reader([SHOPIFY.split("linen-shirt")[0]]))).name == "Shopify"


def test_merging_keeps_errors_and_lines_without_a_key_apart():
    def raw(number, error=None, **values):
        return RawRow(number, f"line {number}", values, error)

    lines = [raw(0, k="a", x="1", t=""), raw(1, k="a", x="2", t="T"), raw(2, "torn"), raw(3, k="a", x="3", t=""),
             raw(4, k="", x="4", t="U"), raw(5, k=None, x="5"), raw(6, k="b", x="", t="V"),
             raw(7, k="b", x="6", t="W")]  # fmt: skip
    rows = list(merge_lines(iter(lines), "k", ["x"]))
    assert [row.number for row in rows] == list(range(6))
    assert [row.values for row in rows] == [
        {"k": "a", "x": ["1", "2"], "t": "T"}, {}, {"k": "a", "x": ["3"], "t": ""}, {"k": "", "x": "4", "t": "U"},
        {"k": None, "x": "5"}, {"k": "b", "x": ["6"], "t": "V"}]  # fmt: skip
    assert rows[1].error == "torn" and rows[2].place == "line 3"
