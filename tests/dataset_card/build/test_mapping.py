"""Which column is what: guesses on real header lines, reasons, and given columns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moon2_dataset.build.column_names import attribute_name, name_words, plain_name
from moon2_dataset.build.log_columns import LOG_FIELDS
from moon2_dataset.build.mapping import PRODUCT_FIELDS, attribute_pairs, columns_of, parse_columns, resolve


def rows(text, *lines):
    columns = text.split(",")
    return columns, [dict(zip(columns, line.split(","), strict=True)) for line in lines]


def products(text, *lines, given=None):
    columns, sample = rows(text, *lines)
    return resolve(columns, sample, PRODUCT_FIELDS, given)[0]


def test_a_fashion_table_with_a_column_for_each_level():
    assert products(
        "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName",
        "15970,Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual,Turtle Check Men Navy Blue Shirt",
        "39386,Men,Apparel,Bottomwear,Jeans,Blue,Summer,2012,Casual,Peter England Men Party Blue Jeans",
    ) == {
        "product_id": ("id",),
        "title": ("productDisplayName",),
        "category_path": ("masterCategory", "subCategory", "articleType"),
        "attributes": ("gender", "baseColour", "season", "usage"),
    }


def test_a_clothes_table_with_groups():
    mapping = products(
        "article_id,product_code,prod_name,product_type_name,product_group_name,graphical_appearance_name,"
        "colour_group_name,index_group_name,detail_desc",
        "0108775015,0108775,Strap top,Vest top,Garment Upper body,Solid,Black,Ladieswear,Jersey top with straps.",
        "0110065001,0110065,OP T-shirt,Bra,Underwear,Solid,Black,Ladieswear,Microfibre T-shirt bra.",
    )
    assert mapping["product_id"] == ("article_id",) and mapping["title"] == ("prod_name",)
    assert mapping["category_path"] == ("index_group_name", "product_group_name", "product_type_name")
    assert mapping["description"] == ("detail_desc",)
    assert set(mapping["attributes"]) == {"graphical_appearance_name", "colour_group_name"}


def test_nested_metadata_of_a_marketplace():
    sample = [
        {"parent_asin": f"B0{n}", "title": f"Mug {n}", "main_category": "Home", "description": ["a mug"],
         "categories": ["Home", "Kitchen", "Mugs"], "details": {"Brand": "Lumo"}, "store": "Lumo",
         "average_rating": 4.5,
         "images": [{"large": "https://a.example/1.jpg", "thumb": "https://a.example/2.jpg"}]}
        for n in range(9)
    ]  # fmt: skip
    mapping, lines = resolve(list(sample[0]), sample, PRODUCT_FIELDS)
    assert mapping == {"product_id": ("parent_asin",), "title": ("title",), "description": ("description",),
                       "category_path": ("categories",), "attributes": ("details",),
                       "images": ("images",)}  # fmt: skip
    assert "category_path <- categories: its values are paths of categories" in lines
    assert any(line.startswith("not used: main_category, store, average_rating") for line in lines)


@pytest.mark.parametrize("header, expected", [
    ("Artikelnummer,Bezeichnung,Beschreibung,Warengruppe,Marke,Farbe,Größe,Bild",
     ("Artikelnummer", "Bezeichnung", "Beschreibung", "Warengruppe", ("Marke", "Farbe", "Größe"), "Bild")),
    ("Référence,Désignation,Description,Catégorie,Marque,Couleur,Taille,Photo",
     ("Référence", "Désignation", "Description", "Catégorie", ("Marque", "Couleur", "Taille"), "Photo")),
    ("código,título,descripción,categoría,marca,color,talla,imagen",
     ("código", "título", "descripción", "categoría", ("marca", "color", "talla"), "imagen")),
    ("商品编号,商品标题,商品描述,类目,品牌,颜色,尺码,主图",
     ("商品编号", "商品标题", "商品描述", "类目", ("品牌", "颜色", "尺码"), "主图")),
    ("商品番号,商品名,商品説明,カテゴリ,ブランド,カラー,サイズ,画像",
     ("商品番号", "商品名", "商品説明", "カテゴリ", ("ブランド", "カラー", "サイズ"), "画像")),
    ("артикул,название,описание,категория,бренд,цвет,размер,изображение",
     ("артикул", "название", "описание", "категория", ("бренд", "цвет", "размер"), "изображение")),
    ("Product ID,Product Name,Long-Description,product category,Brand,Colour,SIZE,imagePath",
     ("Product ID", "Product Name", "Long-Description", "product category", ("Brand", "Colour", "SIZE"), "imagePath")),
])  # fmt: skip
def test_names_in_several_languages_and_spellings(header, expected):
    mapping = products(header, *(f"{n},mug {n},a mug,Mugs,Lumo,red,M,{n}.jpg" for n in range(6)))
    assert mapping["attributes"] == expected[4]
    assert tuple(mapping[field][0] for field in PRODUCT_FIELDS if field not in ("attributes", "aliases")) == (
        *expected[:4],
        expected[5],
    )


def test_values_decide_where_names_say_nothing():
    columns = ["a", "b", "c", "d"]
    sample = [{"a": f"K-{n}", "b": f"a rather long red mug number {n}", "c": f"{n}.jpg", "d": "Home > Mugs"}
              for n in range(8)]  # fmt: skip
    mapping, lines = resolve(columns, sample, PRODUCT_FIELDS)
    assert mapping == {"product_id": ("a",), "title": ("b",), "category_path": ("d",), "images": ("c",)}
    assert "product_id <- a: every row has a value, no two are the same, none has a space" in lines


def test_values_overrule_names_that_mislead():
    header = "id,sku,name,image_count,image,category_id,category"
    mapping = products(header, *(f"7,S{n},mug {n},3,{n}.png,12,Mugs" for n in range(9)))
    assert mapping["product_id"] == ("sku",) and mapping["images"] == ("image",)
    assert mapping["category_path"] == ("category",)


def test_main_images_come_first_and_thumbnails_not_at_all():
    mapping = products("id,title,additional_image_link,image_2,image_1,main_image,thumbnail",
                       *(f"{n},mug {n},a.jpg,b.jpg,c.jpg,d.jpg,e.jpg" for n in range(6)))  # fmt: skip
    assert mapping["images"] == ("main_image", "image_2", "image_1", "additional_image_link")


def test_numbered_category_levels_are_put_in_order():
    mapping = products("id,title,category_3,category_1,cat_level_2",
                       *(f"{n},mug {n},Mugs,Home,Kitchen" for n in range(6)))  # fmt: skip
    assert mapping["category_path"] == ("category_1", "cat_level_2", "category_3")


def test_given_columns_overrule_and_share_nothing_with_guesses():
    header = "id,name,title,color,weight,price"
    lines = [f"{n},mug {n},Mr,red,3,9" for n in range(6)]
    mapping = products(header, *lines, given={"title": "name", "attributes": "color, weight"})
    assert mapping == {"product_id": ("id",), "title": ("name",), "attributes": ("color", "weight")}
    mapping = products(header, *lines, given={"attributes": "*", "title": "name"})
    assert mapping["attributes"] == ("title", "color", "weight", "price")
    assert "attributes" not in products(header, *lines, given={"attributes": ""})
    assert products(header, *lines, given={"attributes": [("name", "color")], "title": "title"})["attributes"] == (
        ("name", "color"),
    )
    assert products(header, *lines, given={"images": "pictures/{id}.jpg"})["images"] == ("pictures/{id}.jpg",)


def test_a_name_with_a_comma_is_a_column_before_it_is_a_list():
    columns = ["id", "Name, full", "x"]
    assert resolve(columns, [], PRODUCT_FIELDS, {"title": "Name, full"})[0]["title"] == ("Name, full",)


@pytest.mark.parametrize("wrong, message", [
    ({"title": "productName"}, r"no column 'productName' for title \(did you mean 'product_name'\?\); its col"),
    ({"title": "zzz"}, r"no column 'zzz' for title; its columns are sku, product_name, text"),
    ({"titel": "text"}, r"no field 'titel' \(did you mean 'title'\?\); the fields are product_id"),
    ({"product_name": "title"}, "write title=product_name, the field first"),
    ({"attributes": ["text", ("sku", "colour")]}, "no column 'colour' for attributes"),
    ({"images": "img/{nr}.jpg"}, "no column 'nr' for images"),
])  # fmt: skip
def test_wrong_given_columns_name_the_way_out(wrong, message):
    with pytest.raises(ValueError, match=message):
        resolve(["sku", "product_name", "text"], [], PRODUCT_FIELDS, wrong)


def test_one_column_fields_take_one_and_tables_without_use_are_refused():
    with pytest.raises(ValueError, match="text takes one column, not a, b"):
        resolve(["a", "b", "c"], [], LOG_FIELDS, {"text": "a,b", "product_id": "c"})
    with pytest.raises(ValueError, match="no column found for title or images; .* the columns are x, y"):
        resolve(["x", "y"], [{"x": 1, "y": 2}], PRODUCT_FIELDS)
    with pytest.raises(ValueError, match="no column found for product_id"):
        resolve(["query", "y"], [{"query": "mug", "y": 2.5}], LOG_FIELDS)


def test_names_and_pairs():
    assert plain_name("Größe (cm)") == plain_name("GROSSE_CM") == "grossecm"
    assert name_words("mainImage_url2") == ["main", "image", "url2"]
    assert attribute_name("baseColour") == "base colour" and attribute_name("Vendor") == "brand"
    assert attribute_name("Color (product.metafields.shopify.color-pattern)") == "color"
    assert attribute_name("Google Shopping / Age Group") == "age group"
    columns = [
        "Attribute 1 name",
        "Attribute 1 value(s)",
        "Attribute 1 visible",
        "Option2 Value",
        "Option2 Name",
        "name",
    ]
    assert attribute_pairs(columns) == [
        ("Attribute 1 name", "Attribute 1 value(s)"),
        ("Option2 Name", "Option2 Value"),
    ]
    assert columns_of({"a": ("x", ("y", "z")), "images": ("img/{id}.jpg",)}) >= {"x", "y", "z", "id"}


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5)
VALUES = JUNK | st.lists(JUNK, max_size=3) | st.dictionaries(st.text(max_size=4), JUNK, max_size=3)
NAMES = st.sampled_from(["id", "title", "image", "category", "brand", "name", "type", "option1 name", "option1 value"])


@settings(max_examples=60, deadline=None)
@given(sample=st.lists(st.dictionaries(NAMES | st.text(max_size=6), VALUES, max_size=6), max_size=8),
       fields=st.sampled_from([PRODUCT_FIELDS, LOG_FIELDS]))  # fmt: skip
def test_any_table_is_mapped_or_refused(sample, fields):
    columns = list(dict.fromkeys(column for row in sample for column in row))
    try:
        mapping, lines = resolve(columns, sample, fields)
    except ValueError as error:
        assert "no column found for" in str(error)
        return
    used = [
        column
        for found in mapping.values()
        for part in found
        for column in ([part] if isinstance(part, str) else part)
    ]
    assert set(used) <= set(columns) and len(used) == len(set(used)) and set(mapping) <= set(fields)
    assert len(lines) >= len(mapping)


def test_columns_of_a_command_line():
    assert parse_columns("columns", ["title=Name", "images=a,b", "attributes=*"]) == {
        "title": "Name", "images": "a,b", "attributes": "*"}  # fmt: skip
    assert parse_columns("columns", None) == {}
    for texts in (["title"], ["title=a", "title=b"]):
        with pytest.raises(ValueError, match=r"columns: 'title.*'; give every field once, as FIELD=COLUMN"):
            parse_columns("columns", texts)


def test_names_and_numbers_without_end_are_cheap():
    assert attribute_pairs(["_" * 100_000 + "1 name", "_" * 100_000 + "1 value"]) == []
    assert len(attribute_name("(" * 100_000)) <= 200
    mapping, _ = resolve(["query", "sku", "qty"], [{"query": "mug", "sku": "1", "qty": 10**400}] * 3, LOG_FIELDS)
    assert mapping["text"] == ("query",) and "count" not in mapping
