"""What shops call their columns: names of each target field in several languages, best first, and of attributes."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MAX_COLUMN_NAME = 200  # characters that are looked at


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """A column name without case, accents, spaces and punctuation: "Größe_cm" → "grossecm"."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in letters if letter.isalnum())


def name_words(name: str) -> list[str]:
    """The words of a column name: "mainImage_url" → ["main", "image", "url"]."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [plain_name(word) for word in re.split(r"[\W_]+", spaced) if plain_name(word)]


def _names(text: str) -> dict[str, int]:
    """plain name → rank."""
    return {plain_name(name): rank for rank, name in enumerate(text.split())}


PRODUCT_NAMES = {
    "product_id": _names(
        "product_id item_id parent_asin asin article_id goods_id spu_id sku_id offer_id listing_id style_id id "
        "handle sku uniq_id unique_id uid uuid product_code item_code article_number item_number code gtin ean upc "
        "mpn artikelnummer artikel_nr artikel_id produktnummer produkt_id produktcode reference id_produit "
        "code_produit code_article id_producto codigo_producto referencia codigo id_prodotto codice_prodotto codice "
        "id_produto codigo_produto productnummer product_nummer varenummer artikelnr kod_produktu id_produktu "
        "商品id 商品编号 商品编码 宝贝id 货号 商品番号 商品コード 品番 상품번호 상품코드 артикул код_товара "
        "id_товара"
    ),
    "title": _names(
        "title product_title item_title product_name item_name product_display_name display_name prod_name "
        "goods_name offer_title listing_title name full_name heading headline short_title label titel produkttitel "
        "produktname artikelbezeichnung artikelname bezeichnung titre nom_produit nom_du_produit designation "
        "libelle intitule nom titulo nombre_producto nombre_del_producto nombre titolo nome_prodotto nome "
        "titulo_produto nome_produto productnaam naam varenavn produktnavn tuotenimi nazwa_produktu nazwa tytul "
        "商品标题 标题 商品名称 宝贝标题 名称 商品名 タイトル 상품명 название наименование название_товара"
    ),
    "description": _names(
        "description product_description item_description long_description full_description body_html body "
        "detail_desc details_text desc about about_product product_details bullet_points short_description summary "
        "features beschreibung produktbeschreibung artikelbeschreibung langtext kurzbeschreibung "
        "description_produit descripcion descrizione descricao omschrijving productomschrijving beskrivelse kuvaus "
        "opis opis_produktu 商品描述 描述 商品详情 商品説明 説明 상품설명 описание"
    ),
    "images": _names(
        "images image image_path image_paths image_file image_files image_link image_src image_url image_urls "
        "main_image primary_image product_image product_images product_image_url picture pictures photo photos img "
        "imgs img_path img_url file_name filename thumbnail thumbnail_url additional_image_link additional_images "
        "bild bilder bild_url produktbild bildpfad image_produit photo_produit imagen imagenes foto fotos immagine "
        "immagini imagem imagens afbeelding afbeeldingen billede kuva zdjecie zdjecia 图片 主图 商品图片 图片地址 "
        "画像 商品画像 이미지 изображение фото"
    ),
}
# Coarse to fine: a table with several of them has one column a level.
CATEGORY_NAMES = _names(
    "department index_group_name section gender_category master_category main_category top_category category_group "
    "product_group_name index_name category_path category_tree categories category category_name product_category "
    "item_category google_product_category categoria category_full cat kategorie kategorien warengruppe "
    "produktkategorie rubrique categorie categoria_producto categorie_produit rubro reparto rubriek kategori "
    "kategoria 类目 商品类目 分类 一级类目 カテゴリ カテゴリー 카테고리 категория sub_category subcategory "
    "unterkategorie sous_categorie subcategoria sottocategoria 二级类目 sub_sub_category 三级类目 leaf_category "
    "叶子类目 product_type product_type_name article_type item_type produkttyp type_produit tipo_producto"
)
ATTRIBUTE_NAMES = _names(
    "attributes attribute specs specifications specification properties features_list details item_specifics params "
    "eigenschaften merkmale caracteristiques caracteristicas caratteristiche kenmerken 属性 商品属性 仕様 "
    "характеристики brand brand_name brands vendor manufacturer maker marke hersteller marque fabricant marca "
    "fabricante merk 品牌 ブランド 브랜드 бренд color colour base_colour colour_group_name color_name colors farbe "
    "couleur color_producto colore cor kleur 颜色 カラー 색상 цвет size sizes size_name grosse größe groesse taille "
    "talla taglia tamanho maat 尺码 尺寸 サイズ 사이즈 размер material materials fabric composition stoff matiere "
    "matériau materiale tejido tessuto materiaal 材质 面料 素材 소재 материал pattern print "
    "graphical_appearance_name muster motif patron estampado fantasia padrao 图案 柄 패턴 узор gender target_gender "
    "sex geschlecht genre genero genere genero_producto geslacht 性别 性別 성별 пол age_group age altersgruppe "
    "style stil fit season saison temporada stagione usage occasion use_case verwendung shape sleeve sleeve_length "
    "neckline collar heel_height length_type finish flavor flavour scent capacity model model_name model_number "
    "tags tag"
)
LOG_NAMES = {
    "query_id": _names("query_id qid search_id request_id impression_id suchanfrage_id 查询id 検索id"),
    "text": _names(
        "query text query_text search_query search_term search_terms search_phrase searched_for search keyword "
        "keywords query_string q term phrase utterance question suchbegriff suchanfrage suchwort recherche requete "
        "terme_recherche busqueda consulta termino ricerca termine_ricerca busca termo zoekterm zoekopdracht 查询 "
        "查询词 搜索词 搜索关键词 关键词 検索クエリ 検索語 검색어 запрос поисковый_запрос"
    ),
    "image": _names(
        "query_image image image_path image_file photo picture img query_img file_name bild foto 查询图片 图片"
    ),
    "product_id": _names(
        "product_id item_id purchased_product_id clicked_product_id bought_product_id product clicked_product "
        "purchased_product item parent_asin asin article_id goods_id spu_id sku_id sku offer_id listing_id doc_id "
        "document_id target_id positive_id click_id purchased clicked id_item artikelnummer artikel_id produkt_id "
        "id_produit id_producto id_prodotto id_produto 商品id 商品编号 宝贝id 商品番号 상품번호 артикул id_товара "
        "handle id"
    ),
    "event": _names(
        "event event_type event_name action action_type interaction interaction_type behavior behaviour "
        "behavior_type behaviour_type activity feedback type ereignis aktion evenement accion evento azione acao "
        "行为 行为类型 行動 действие"
    ),
    "count": _names(
        "count counts times frequency freq quantity qty lineitem_quantity anzahl haufigkeit quantite cantidad "
        "numero quantita quantidade aantal 次数 件数 количество"
    ),
    "purchases": _names(
        "purchases purchase_count num_purchases n_purchases orders order_count num_orders n_orders conversions "
        "conversion_count num_conversions n_conversions purchased purchase bought converted kaufe bestellungen achats "
        "commandes compras pedidos acquisti ordini 购买次数 购买量 购买数 購入数 구매수 покупки заказы"
    ),
    "clicks": _names(
        "clicks click_count num_clicks n_clicks clicked click klicks nombre_de_clics clics cliques clic 点击次数 "
        "点击量 点击数 クリック数 클릭수 клики views view_count num_views n_views"
    ),
    "exposures": _names(
        "impressions impression_count num_impressions n_impressions exposures exposure_count num_exposures "
        "n_exposures impression exposure times_shown shown displayed views view_count num_views n_views 曝光 曝光次数 "
        "曝光量 曝光数 表示回数 노출수 показы"
    ),
    "shown": _names(
        "shown shown_ids shown_products shown_product_ids impressions impression_ids exposures exposure exposed "
        "exposed_ids displayed displayed_ids results result_ids candidates candidate_ids slate served products "
        "product_ids item_ids items negative_ids negatives angezeigt affiches mostrados mostrati 曝光 曝光商品 "
        "展示商品 表示商品 показы"
    ),
    "timestamp": _names(
        "timestamp time date datetime ts event_time event_date created_at created time_stamp date_time zeit "
        "zeitpunkt datum heure fecha hora data ora tijd 时间 时间戳 日期 日時 시간 время дата"
    ),
}
# Words of longer names, e.g. "mainImageUrl"; a word of the second set says that the column tells something else.
FIELD_WORDS = {
    field: (set(wanted.split()), set(unwanted.split()))
    for field, wanted, unwanted in (
        ("title", "title titel titre titulo titolo headline", "seo meta length count id alt"),
        ("description", "description desc beschreibung descripcion descrizione", "seo meta length count id"),
        (
            "images",
            "image images img imgs photo photos picture pictures bild bilder imagen foto",
            "id count num width height alt position size text caption embedding hash",
        ),
        (
            "category_path",
            "category categories cat kategorie categorie categoria taxonomy breadcrumb breadcrumbs",
            "id ids count num seo url",
        ),
        ("text", "query search keyword suchbegriff recherche", "id time date count image type"),
        ("product_id", "product item sku asin article goods", "name title image count type"),
        ("event", "event action behavior behaviour", "time date id count timestamp"),
        ("purchases", "purchases orders conversions", "rate value revenue id ids time date per share"),
        ("clicks", "clicks", "rate value id ids time date per share through"),
        ("exposures", "impressions exposures", "rate value id ids time date per share"),
        ("shown", "shown impressions exposures exposed candidates negatives", "count num time"),
        ("timestamp", "time timestamp date datetime", "zone format"),
    )
}


@lru_cache(maxsize=4096)
def attribute_name(column: str) -> str:
    """The attribute that a column of that name holds: "baseColour" → "base colour", "Vendor" → "brand"."""
    column = column[:MAX_COLUMN_NAME]
    name = re.sub(r"\s*\(.*?metafields.*?\)\s*$", "", column)  # Shopify: Color (product.metafields.shopify.color)
    name = name.rpartition(" / ")[2]  # Shopify: Google Shopping / Gender
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").replace(":", " ").split()
    name = " ".join(words).casefold() or column
    return {"vendor": "brand", "brands": "brand", "brand name": "brand", "tags": "tag"}.get(name, name)
