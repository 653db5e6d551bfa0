"""How product text is cut into words, and small tables of what some of them mean in several languages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

Key = tuple[str, ...]

# Scripts written without spaces: a word there is found as a run of single characters.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_LETTER = rf"(?:(?![{UNSPACED}])[^\W\d_]|[\u0300-\u036f\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0980-\u0dff])"
_TOKEN = re.compile(
    rf"[{UNSPACED}]|\d+(?:[.,/\u2044]\d+)*|{_LETTER}-{_LETTER}{{2,}}|{_LETTER}+(?:['\u2019\u02bc]{_LETTER}+)*"
)
_ASCII_TOKEN = re.compile(
    r"\d+(?:[.,/]\d+)*|[A-Za-z]-[A-Za-z]{2,}|[A-Za-z]+(?:'[A-Za-z]+)*"
)  # the same, 3 times faster
_UNSPACED = re.compile(rf"[{UNSPACED}]")

# One spelling for words that mean the same, so that neither counts as a change.
_SPELLINGS = {
    "gray": "grey", "jewelry": "jewellery", "aluminum": "aluminium", "checkered": "check", "checked": "check",
    "chequered": "check", "stripe": "striped", "golden": "gold", "woolen": "woollen",
    "coloured": "colored", "multicoloured": "multicolour", "multicolored": "multicolour",
    "multicolor": "multicolour", "multi": "multicolour",
}  # fmt: skip

# Canonical colour -> its names, then the shades that are a kind of it.
_COLOURS = {
    "black": ("black schwarz noir noire negro negra nero nera preto preta zwart 黑色 黒 ブラック",
              "jet|ebony|onyx|anthracite|charcoal"),
    "white": ("white weiß weiss blanc blanche blanco blanca bianco bianca branco branca wit 白色 白 ホワイト",
              "ivory|off white|offwhite|eggshell|snow"),
    "grey": ("grey grau gris grigio cinza grijs 灰色 グレー", "charcoal|anthracite|slate|ash|grey melange|graphite"),
    "blue": ("blue blau bleu bleue azul blu blauw 蓝色 藍色 青 ブルー",
             "navy|navy blue|indigo|cobalt|azure|turquoise|turquoise blue|royal blue|sky blue|light blue|dark blue|"
             "teal|denim blue|marine|dunkelblau|hellblau|bleu marine|azul marino|ネイビー"),
    "red": ("red rot rouge rojo roja rosso rossa vermelho vermelha rood 红色 紅色 赤 レッド",
            "maroon|burgundy|crimson|scarlet|wine red|dark red|cherry red|dunkelrot|bordeaux|ruby"),
    "green": ("green grün gruen vert verte verde groen 绿色 綠色 緑 グリーン",
              "olive|olive green|lime|lime green|mint|mint green|khaki green|emerald|sea green|teal|forest green|"
              "dark green|light green|dunkelgrün|hellgrün|sage|seafoam|fluorescent green"),
    "yellow": ("yellow gelb jaune amarillo amarilla giallo gialla amarelo amarela geel 黄色 イエロー",
               "mustard|lemon"),
    "orange": ("orange naranja arancione laranja oranje 橙色 オレンジ", "rust|coral|apricot|tangerine"),
    "pink": ("pink rosa rose rosado 粉色 粉红色 ピンク", "magenta|fuchsia|hot pink|coral|salmon|peach|blush"),
    "purple": ("purple violet violett lila morado viola roxo paars 紫色 パープル",
               "lavender|mauve|plum|lilac|magenta|aubergine"),
    "brown": ("brown braun marron marrón marrone marrom bruin 棕色 褐色 茶 ブラウン",
              "tan|coffee|coffee brown|chocolate|camel|taupe|cognac|mushroom brown|dark brown|light brown|bronze|"
              "rust"),
    "beige": ("beige 米色 ベージュ", "cream|sand|nude|skin|ecru|khaki"),
    "gold": ("gold doré dorado dorato dourado goud 金色 ゴールド", "rose gold|champagne"),
    "silver": ("silver silber argent plateado argento prateado zilver 银色 銀色 シルバー", "steel|platinum"),
    "multicolour": ("multicolour mehrfarbig multicolore 彩色 多色 マルチカラー", ""),
    "transparent": ("transparent 透明", ""),
    "copper": ("copper kupfer 铜色", ""),
}  # fmt: skip
# Shades that mean something else just as often: they count as colours only where the catalogue says so.
_AMBIGUOUS = frozenset(
    "coffee chocolate camel skin sand snow ash slate lemon rose champagne mint coral salmon peach lime mustard plum "
    "cream rust wine steel marine denim".split()
)
_MATERIALS = (
    "cotton|organic cotton|baumwolle|coton|algodón|cotone|algodão|katoen|纯棉|棉质|コットン|leather|leder|cuir|cuero|"
    "pelle|couro|leer|真皮|皮革|レザー|leatherette|faux leather|vegan leather|pu leather|artificial leather|"
    "synthetic leather|imitation leather|kunstleder|similicuir|faux fur|faux suede|fur|suede|wildleder|daim|wool|"
    "merino wool|merino|wolle|laine|lana|lã|羊毛|ウール|cashmere|kaschmir|cachemire|silk|seide|soie|seda|seta|真丝|"
    "シルク|linen|leinen|lin|lino|linho|亚麻|リネン|polyester|polyamide|nylon|viscose|rayon|acrylic|elastane|spandex|"
    "lycra|denim|canvas|velvet|satin|chiffon|georgette|corduroy|fleece|flannel|jersey|microfiber|microfibre|mesh|"
    "hemp|jute|bamboo|wood|wooden|holz|bois|madera|legno|木质|oak|walnut|teak|metal|metall|métal|stainless steel|"
    "edelstahl|acier inoxydable|不锈钢|ステンレス|sterling silver|alloy|aluminium|titanium|brass|iron|plastic|"
    "kunststoff|plastique|plástico|塑料|silicone|rubber|gummi|foam|glass|glas|verre|vidrio|玻璃|crystal|ceramic|"
    "keramik|céramique|cerámica|陶瓷|porcelain|porzellan|stoneware|marble|resin|paper|cardboard|rattan|wicker|cork"
)
_PATTERNS = (
    "striped|stripes|gestreift|rayé|rayures|条纹|ストライプ|check|checks|checked|checkered|kariert|carreaux|格子|"
    "チェック|plaid|tartan|gingham|solid|uni|纯色|printed|print|graphic print|bedruckt|imprimé|印花|floral|"
    "floral print|geblümt|碎花|花柄|polka dot|polka dots|dotted|gepunktet|à pois|波点|水玉|paisley|geometric|"
    "abstract|camouflage|camo|animal print|leopard|leopard print|zebra print|tie dye|embroidered|color-blocked|"
    "colourblocked|herringbone|houndstooth|argyle|ombre|melange|textured|self design"
)
_USES = (
    "casual|formal|smart casual|party|business|wedding|ethnic|sport|sports|sporty|running|jogging|training|workout|"
    "gym|fitness|yoga|hiking|trekking|camping|travel|outdoor|indoor|cycling|swimming|football|soccer|basketball|"
    "tennis|golf|cricket|school|office|everyday|freizeit|休闲|商务|运动|户外|カジュアル|フォーマル|スポーツ"
)
_AUDIENCES = {
    "men": "men man mens male gents gentlemen herren homme hommes hombre hombres uomo homem heren 男士 男款 男装 男性 "
    "メンズ",
    "women": "women woman womens female lady ladies damen femme femmes mujer mujeres donna mulher dames 女士 女款 "
    "女装 女性 レディース",
    "boys": "boy boys jungen garçon garçons niño niños ragazzo menino jongens 男童 ボーイズ",
    "girls": "girl girls mädchen fille filles niña niñas ragazza menina meisjes 女童 ガールズ",
    "kids": "kid kids child children kinder enfant enfants bambini crianças kinderen 儿童 兒童 キッズ 子供",
    "baby": "baby babies infant toddler bébé bebé 婴儿 ベビー",
    "unisex": "unisex 中性 男女通用 ユニセックス",
}  # fmt: skip

# What shops call the attribute of a kind; words beside it that do not make it another thing.
_KIND_NAMES = {
    "brand": "brand brands marke marque marca merk vendor manufacturer hersteller fabricant fabricante maker label "
    "designer 品牌 ブランド メーカー",
    "colour": "colour color colours colors farbe farben couleur couleurs colore colori cor kleur 颜色 顏色 色 カラー",
    "material": "material materials fabric materiale matière matériau materiaal stoff fabrics composition 材质 材質 "
    "面料 素材",
    "size": "size sizes grösse größe groesse taille talla tamaño taglia tamanho maat capacity volume 尺码 尺寸 规格 "
    "サイズ",
    "pattern": "pattern patterns muster motif estampado fantasia print 图案 柄",
    "use": "usage use occasion occasions activity activities anlass verwendung utilisation uso ocasión 用途 场合 "
    "シーン",
    "audience": "gender genders audience sex geschlecht genre sexe género genere zielgruppe 性别 適用性別 "
    "适用人群 性別",
    "noun": "producttype itemtype articletype 品类",
}  # fmt: skip
_NEUTRAL_NAMES = frozenset(
    "base main primary product item article type name family value filter outer upper shell g google target group "
    "generic department ideal for attribute pa custom the of principal hauptfarbe ages range".split()
)
UNITS = {
    unit: names.split()[0]
    for names in (
        "cm centimetre centimeter", "mm millimetre millimeter", "m metre meter", "in inch inche zoll pouce",
        "ft foot feet", "ml millilitre milliliter", "cl", "l litre liter ltr", "oz ounce", "g gm gr gram gramm",
        "kg kilo kilogram kilogramm", "mg", "lb lbs pound", "w watt", "kw", "v volt", "mah", "gb", "tb", "mb", "hz",
        "mp megapixel", "pc piece pcs stück stk pièce pieza", "ct count", "k kt karat carat", "d denier den",
        "year yr jahr", "month monat", "厘米", "毫米", "毫升", "克", "公斤", "升", "寸", "码", "件", "片",
    )
    for unit in names.split()
}  # fmt: skip
SIZE_LETTERS = frozenset("XXS XS S M L XL XXL XXXL XXXXL".split())
SIZE_WORDS = {"small": "s", "medium": "m", "large": "l", "xlarge": "xl", "xsmall": "xs"}
NUMBER_WORDS = {
    word: str(number) for number, word in enumerate("two three four five six seven eight nine ten".split(), start=2)
} | {"dozen": "12"}
SHADE_WORDS = frozenset(
    "light dark bright deep pale neon fluorescent pastel hell dunkel clair foncé claro oscuro".split()
)
# Words at the start of titles that are never somebody's brand.
COMMON_WORDS = frozenset(
    "new the a an best hot sale original classic premium set pack combo genuine handmade vintage pure real super "
    "neu neue nouveau nouvelle nuevo nueva nuovo nuova with for and of in by from to".split()
)
# Language -> (its commonest words, "for" someone, "in" a colour, "of" a material, "and").
_LANGUAGES = {
    "en": ("the and with for of in by", "for", "in", "in", "&"),
    "de": ("und mit für aus der die von", "für", "in", "aus", "und"),
    "fr": ("avec et pour le la les du en", "pour", "en", "en", "et"),
    "es": ("con y para el la los de", "para", "en", "de", "y"),
    "it": ("con e per da di il la", "da", "in", "in", "e"),
    "nl": ("en met voor van het de een", "voor", "in", "van", "en"),
}


class Connectives(NamedTuple):
    """Small words of a language: "for" someone, "in" a colour, "of" a material, "and"."""

    audience: str
    colour: str
    material: str
    conjunction: str


class Token(NamedTuple):
    """A word, number or single character of an unspaced script in a text, at text[start:end]."""

    start: int
    end: int
    key: str


def tokens(text: str) -> list[Token]:
    """Cut a text into tokens whose keys are equal where the words are: folded case, no plural, one spelling.

    Args:
        text: any text.
    """
    pattern = _ASCII_TOKEN if text.isascii() else _TOKEN
    return [Token(found.start(), found.end(), fold(found.group())) for found in pattern.finditer(text)]


def key_of(text: str) -> Key:
    """The keys of a text's tokens."""
    return tuple(fold(word) for word in (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text))


@lru_cache(maxsize=200_000)
def fold(word: str) -> str:
    """The key of one token: "T-Shirts" and "tshirt" are the same, as are "Women's" and "women", "Gray" and "grey"."""
    if len(word) > 40:
        return word
    word = unicodedata.normalize("NFKC", word).casefold().replace("\u2044", "/").replace("-", "")
    if word[0].isdecimal():
        return _number(word)
    word = re.sub(r"['\u2019\u02bc]s?$", "", word).replace("'", "").replace("\u2019", "")
    if len(word) > 3 and word.isalpha() and not _UNSPACED.match(word):
        if word.endswith("ies") and len(word) > 4:
            word = f"{word[:-3]}y"
        elif word.endswith(("sses", "shes", "ches", "xes")):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
    return _SPELLINGS.get(word, word)


def _number(word: str) -> str:
    """One spelling of a number: 1,000 is 1000, 2.50 is 2.5, digits of any script are 0 to 9."""
    word = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in word)
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", word):
        word = word.replace(",", "")
    word = word.replace(",", ".") if word.count(",") == 1 and "." not in word else word
    if re.fullmatch(r"\d+\.\d+", word):
        word = word.rstrip("0").rstrip(".")
    return word.lstrip("0") or "0" if word.isdecimal() else word


def is_unspaced(text: str) -> bool:
    """Whether a text has characters of a script written without spaces."""
    return _UNSPACED.search(text) is not None


@lru_cache(maxsize=4096)
def kind_of_attribute(name: str) -> str | None:
    """The kind that an attribute's name stands for: "baseColour" and "Farbe" for colour, "sole_material" for none.

    Args:
        name: as the catalogue writes it.
    """
    words = [fold(word) for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])|[A-Z]", name)]
    kinds = {_KINDS[word] for word in (*words, "".join(words)) if word in _KINDS}
    if len(kinds) != 1 or not all(word in _KINDS or word in _NEUTRAL for word in words):
        return None
    return kinds.pop()


def seed_values() -> Iterable[tuple[str, str]]:
    """(kind, value) of the colours, materials, patterns, uses and audiences that every lexicon knows."""
    for names, shades in _COLOURS.values():
        for value in (*names.split(), *filter(None, shades.split("|"))):
            if value not in _AMBIGUOUS:
                yield "colour", value
    for kind, values in (("material", _MATERIALS), ("pattern", _PATTERNS), ("use", _USES)):
        for value in values.split("|"):
            yield kind, value
    for names in _AUDIENCES.values():
        for value in names.split():
            yield "audience", value


def connectives(words: frozenset[str]) -> Connectives:
    """The small words of the language that a catalogue is most likely written in; English where nothing tells.

    Args:
        words: folded words that its texts use.
    """
    best = max(_LANGUAGES.values(), key=lambda entry: len(words.intersection(map(fold, entry[0].split()))))
    return Connectives(*best[1:])


def has_other_script(text: str) -> bool:
    """Whether a text has letters that are not Latin."""
    return any(char.isalpha() and ord(char) > 0x24F for char in text)


def colour_families(key: Key) -> frozenset[str]:
    """The colours that a colour is or is a shade of: {"blue"} for navy; empty for one the table does not know."""
    return _FAMILIES.get(key, frozenset())


def is_plain_colour(key: Key) -> bool:
    """Whether a colour names a whole family ("blue", "rot") rather than a shade of it ("navy")."""
    return key in _PLAIN


def audience_of(key: Key) -> str | None:
    """Whom a word of any table language means: "men", "women", "boys", "girls", "kids", "baby", "unisex"; or None."""
    return _AUDIENCE_OF.get(key)


def _colour_tables() -> tuple[dict[Key, frozenset[str]], frozenset[Key]]:
    families: dict[Key, set[str]] = {}
    plain = set()
    for family, (names, shades) in _COLOURS.items():
        for name in names.split():
            families.setdefault(key_of(name), set()).add(family)
            plain.add(key_of(name))
        for shade in filter(None, shades.split("|")):
            families.setdefault(key_of(shade), set()).add(family)
    return {key: frozenset(found) for key, found in families.items()}, frozenset(plain)


_KINDS = {fold(word): kind for kind, names in _KIND_NAMES.items() for word in names.split()}
_NEUTRAL = frozenset(map(fold, _NEUTRAL_NAMES))
_FAMILIES, _PLAIN = _colour_tables()
_AUDIENCE_OF = {key_of(name): group for group, names in _AUDIENCES.items() for name in names.split()}
