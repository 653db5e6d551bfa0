"""A small shop that the package draws itself, with known truth: products in several pictures, and their queries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from .demo_drawing import BACKDROPS, COLOURS, PATTERNS, Camera, Look, photograph
from .demo_noise import add_noise
from .reader import ProductQueries, join
from .schema import PRODUCT_FEATURES, QUERY_FEATURES, normalise_title

BRANDS = (
    "Aldermoor", "Birka", "Calmira", "Dovetail", "Elvaro", "Fennick", "Gransund", "Hollowell", "Isarno",
    "Juniper Lane", "Kestrelle", "Lumo",
)  # fmt: skip
AUDIENCES = ("women", "men", "kids", "unisex")


@dataclass(frozen=True)
class Kind:
    """One leaf category.

    Attributes:
        path: its category path.
        shape: which shape is drawn.
        nouns: what sellers call it.
        materials: what it is made of.
        worn: whether it is made for someone, so that an audience belongs to it.
    """

    path: tuple[str, str, str]
    shape: str
    nouns: tuple[str, ...]
    materials: tuple[str, ...]
    worn: bool = True


KINDS = (
    Kind(("Fashion", "Tops", "T-Shirts"), "t-shirt", ("t-shirt", "tee"), ("cotton", "linen", "jersey")),
    Kind(("Fashion", "Tops", "Shirts"), "shirt", ("shirt", "button-down shirt"), ("cotton", "linen", "denim")),
    Kind(("Fashion", "Tops", "Hoodies"), "hoodie", ("hoodie", "hooded sweatshirt"), ("fleece", "cotton", "wool")),
    Kind(("Fashion", "Outerwear", "Jackets"), "jacket", ("jacket", "blazer"), ("denim", "leather", "wool")),
    Kind(("Fashion", "Bottoms", "Trousers"), "trousers", ("trousers", "pants"), ("denim", "cotton", "linen")),
    Kind(("Fashion", "Dresses", "Day Dresses"), "dress", ("dress", "summer dress"), ("silk", "cotton", "linen")),
    Kind(("Shoes", "Casual", "Sneakers"), "sneaker", ("sneakers", "trainers"), ("canvas", "leather", "suede")),
    Kind(("Shoes", "Boots", "Ankle Boots"), "boot", ("boots", "ankle boots"), ("leather", "suede", "rubber")),
    Kind(("Shoes", "Summer", "Sandals"), "sandal", ("sandals", "strappy sandals"), ("leather", "rubber", "canvas")),
    Kind(("Bags", "Backpacks", "Daypacks"), "backpack", ("backpack", "rucksack"), ("canvas", "nylon", "leather")),
    Kind(("Bags", "Handbags", "Totes"), "tote", ("tote bag", "shopper"), ("canvas", "leather", "jute")),
    Kind(
        ("Accessories", "Watches", "Wrist Watches"), "watch", ("watch", "wrist watch"), ("leather", "metal", "rubber")
    ),
    Kind(("Accessories", "Eyewear", "Sunglasses"), "sunglasses", ("sunglasses", "shades"), ("plastic", "metal")),
    Kind(("Accessories", "Headwear", "Caps"), "cap", ("cap", "baseball cap"), ("cotton", "wool", "nylon")),
    Kind(("Home", "Tableware", "Mugs"), "mug", ("mug", "coffee mug"), ("ceramic", "porcelain", "metal"), worn=False),
    Kind(("Home", "Lighting", "Table Lamps"), "lamp", ("table lamp", "lamp"), ("linen", "metal", "wood"), worn=False),
    Kind(
        ("Home", "Furniture", "Chairs"), "chair", ("chair", "dining chair"), ("wood", "leather", "plastic"), worn=False
    ),
)
DESCRIPTIONS = (
    "{brand} made this {noun} of {material}, in {colour} with a {pattern} finish.",
    "A {colour} {noun} from {brand}; {material}, {pattern}, ready for every day.",
    "This {pattern} {noun} pairs {colour} with solid {material}. By {brand}.",
)
KEYS_NEARBY = {"a": "s", "e": "r", "i": "o", "o": "p", "n": "m", "r": "t", "t": "y", "l": "k", "s": "d", "u": "i"}


WHERE = {(True, False): "image", (False, True): "text", (True, True): "both", (False, False): "neither"}
TRAITS = ("colour", "pattern", "material")  # what a title may leave out and a picture may not show

# columns beside the schema's: what is known of a product or a query, never read in training
TRUTH_OF_PRODUCT = Features({"visible_in": List({"name": Value("string"), "value": Value("string")})})
TRUTH_OF_QUERY = Features({"slice": Value("string")})


@dataclass(frozen=True)
class _Made:
    """A product of the demo shop before its pictures are taken.

    Attributes:
        kind: its category and what belongs to it.
        look: how it looks.
        audience: for whom it is; "" where it is for no one in particular.
        unseen: traits that its title names and its catalogue pictures do not show.
    """

    kind: Kind
    look: Look
    audience: str
    unseen: frozenset[str] = frozenset()

    @property
    def words(self) -> dict[str, str]:
        return {
            "brand": BRANDS[self.look.brand],
            "colour": self.look.colour,
            "pattern": self.look.pattern,
            "material": self.look.material,
            "audience": self.audience,
        }


def render_demo_catalogue(
    num_products: int = 600,
    seed: int = 0,
    *,
    only_in_picture: float = 0.0,
    only_in_text: float = 0.0,
    wrong_images: float = 0.0,
    wrong_titles: float = 0.0,
    wrong_clicks: float = 0.0,
    progress: bool = False,
) -> tuple[Dataset, Dataset]:
    """Draw a catalogue with its queries; the same for a seed in every process.

    Products come with two or three pictures (views and backdrops differ), a title whose order and completeness vary
    (colour or pattern is sometimes left out and shows in the pictures alone), a description, a three-level category
    path and attributes. About a third is a sibling of an earlier product: the same model in another colour or pattern.

    A product has one or two queries: an attribute phrase, a part of the title, or one with a typing mistake; with
    or instead of it a phone photo: another view in other light, none of the catalogue's pictures.

    What is known of them stands in columns of its own. `visible_in` says of each attribute where a product tells it:
    in the pictures ("image"), in the title ("text"), in "both" or in "neither". `slice` says of each query what of the
    right product must be looked at to tell that it has all that was asked for: "image", if something is only in the
    pictures, "text", if something is only in the title, "both", if there is something of either, and "either", if the
    one will do as well as the other. Both speak of the products as they are before `add_noise` mixes them up. A photo
    asks for all that it shows, and so always for the product's cut, which no title names.

    Args:
        num_products: how many.
        seed: of everything.
        only_in_picture: share of the colours, patterns and materials, beyond those that are anyway, that the title
            leaves out; a few come back to keep titles unique. Description and attributes still name them.
        only_in_text: share that the title names and the pictures do not show: they are of a sample that is undyed,
            unprinted or of no material in particular. Photos of shoppers show the product as it is.
        wrong_images, wrong_titles, wrong_clicks: see `add_noise`.
        progress: show a bar.

    Returns:
        (products, queries) in `PRODUCT_FEATURES` and `QUERY_FEATURES`, with `visible_in`, `image_noise` and
        `title_noise`, or `slice` and `label_noise`.

    Raises:
        ValueError: a share is none.
    """
    if not (0 <= only_in_picture <= 1 and 0 <= only_in_text <= 1 and only_in_picture + only_in_text <= 1):
        raise ValueError(
            f"only_in_picture={only_in_picture}, only_in_text={only_in_text}; give shares that add up to at most 1"
        )
    made: list[_Made] = []
    titles: list[str] = []
    generators = [np.random.default_rng([seed, number]) for number in range(num_products)]
    taken: set[str] = set()
    for number, rng in enumerate(generators):
        # of a stream of their own, so that with shares of 0 the rest is drawn as if they were not there
        fates = np.random.default_rng([seed, number, 1]).random(len(TRAITS))
        untold = {trait for trait, fate in zip(TRAITS, fates, strict=True) if fate < only_in_picture}
        unseen = {trait for trait, fate in zip(TRAITS, fates, strict=True) if fate >= 1 - only_in_text}
        product, title = _new_product(made, taken, frozenset(untold), frozenset(unseen), rng)
        made.append(product)
        titles.append(title)
        taken.add(normalise_title(title))
    with ThreadPoolExecutor() as pool:  # Pillow draws without the interpreter's lock
        drawing = pool.map(_rows, range(num_products), made, titles, generators)
        rows = list(tqdm(drawing, total=num_products, unit="product", disable=not progress))
    products = [product for product, _ in rows]
    queries = [query for _, of_product in rows for query in of_product]
    return add_noise(
        Dataset.from_list(products, features=Features(PRODUCT_FEATURES | TRUTH_OF_PRODUCT)),
        Dataset.from_list(queries, features=Features(QUERY_FEATURES | TRUTH_OF_QUERY)),
        wrong_images=wrong_images,
        wrong_titles=wrong_titles,
        wrong_clicks=wrong_clicks,
        seed=seed,
    )


def split_demo_catalogue(
    products: Dataset, queries: Dataset, held_out: float = 0.2, seed: int = 0
) -> tuple[ProductQueries, ProductQueries]:
    """Split a catalogue by product into one part to learn from and one to be judged on.

    Args:
        products, queries: as `render_demo_catalogue` gives them; titles are unique, so none is in both parts.
        held_out: share of the products in the second part.
        seed: of the choice.

    Returns:
        (training part, held-out part), each with the queries for its products.
    """
    order = np.random.default_rng(seed).permutation(len(products))
    cut = round(held_out * len(products))
    parts = []
    for rows in (order[cut:], order[:cut]):
        part = products.select(np.sort(rows))
        kept = set(part["product_id"])
        asked = [row for row, product_id in enumerate(queries["product_id"]) if product_id in kept]
        parts.append(join(part, queries.select(asked)))
    return parts[0], parts[1]


def _new_product(
    made: list[_Made], titles: set[str], untold: frozenset[str], unseen: frozenset[str], rng: np.random.Generator
) -> tuple[_Made, str]:
    """A product and a title that no other has; words come back into the title until it is unique."""
    while True:
        product = _sibling(made[rng.integers(len(made))], rng) if made and rng.random() < 0.35 else _original(rng)
        plain = product.look.pattern == "plain"  # which no title names
        product = replace(product, unseen=unseen - {"pattern"} if plain else unseen)
        for left_out, completeness in ((untold, rng.uniform(0.45, 1.0)), (frozenset(), 1.0)):
            title = _title(product, left_out, completeness, rng)
            if normalise_title(title) not in titles:
                return product, title


def _rows(number: int, product: _Made, title: str, rng: np.random.Generator) -> tuple[dict, list[dict]]:
    """The row of one product and the rows of its queries."""
    words = product.words
    product_id = f"demo-{number:05d}"
    attributes = {name: value for name, value in words.items() if value}
    told, seen = _named(title, words), product.look.told(product.kind.materials) - product.unseen
    row = {
        "product_id": product_id,
        "title": title,
        "description": _pick(DESCRIPTIONS, rng).format(noun=product.kind.nouns[0], **words),
        "category_path": list(product.kind.path),
        "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
        "images": _pictures(product.look.without(product.unseen), rng),
        "visible_in": [{"name": name, "value": WHERE[name in seen, name in told]} for name in attributes],
    }
    queries = []
    for ordinal in range(int(rng.integers(1, 3))):
        text, photo, asked = _query(product, title, rng)
        queries.append(
            {
                "query_id": f"{product_id}-q{ordinal}",
                "text": text,
                "image": photo,
                "product_id": product_id,
                "slice": _slice(asked, told, seen | {"cut"}),
            }
        )
    return row, queries


def _named(text: str, words: dict[str, str]) -> set[str]:
    """Names of the attributes of which a text has a word."""
    spoken = set(text.lower().split())
    return {name for name, value in words.items() if spoken & set(value.lower().split())}


def _slice(asked: set[str], told: set[str], seen: set[str]) -> str:
    """Where the right product must be looked at for all that is asked and can be seen there at all."""
    needs_image, needs_text = bool(asked & (seen - told)), bool(asked & (told - seen))
    if needs_image or needs_text:
        return WHERE[needs_image, needs_text]
    return "either"


def _original(rng: np.random.Generator) -> _Made:
    kind = KINDS[rng.integers(len(KINDS))]
    pattern = "plain" if rng.random() < 0.45 else PATTERNS[rng.integers(1, len(PATTERNS))]
    look = Look(
        shape=kind.shape,
        colour=_pick(list(COLOURS), rng),
        pattern=pattern,
        material=_pick(kind.materials, rng),
        brand=int(rng.integers(len(BRANDS))),
        cut=tuple(rng.random(4).round(3).tolist()),
    )
    return _Made(kind, look, _pick(AUDIENCES, rng) if kind.worn else "")


def _sibling(other: _Made, rng: np.random.Generator) -> _Made:
    """The same model in one other trait."""
    trait, values = [("colour", list(COLOURS)), ("pattern", list(PATTERNS))][rng.integers(2)]
    others = [value for value in values if value != getattr(other.look, trait)]
    look = Look(**{**vars(other.look), trait: _pick(others, rng)})
    return _Made(other.kind, look, other.audience)


def _title(product: _Made, left_out: frozenset[str], completeness: float, rng: np.random.Generator) -> str:
    """Brand and noun, and each further word with the probability `completeness`; in one of three orders.

    Traits that the pictures do not show are always named, those in `left_out` never.
    """
    words = product.words
    noun = _pick(product.kind.nouns, rng)
    optional = ["colour", "pattern", "material"]
    kept = {name for name in optional if rng.random() < completeness and words[name] != "plain"}
    kept = (kept | product.unseen) - left_out
    traits = [words[name] for name in ("pattern", "colour", "material") if name in kept]
    style = rng.integers(3)
    if style == 0:
        parts = [words["brand"], *traits, noun]
    elif style == 1:
        parts = [words["brand"], noun, *(["in", *traits] if traits else [])]
    else:
        parts = [*traits, noun, "by", words["brand"]]
    if words["audience"] and rng.random() < completeness:
        parts.append(f"for {words['audience']}")
    title = " ".join(parts)
    return title[0].upper() + title[1:]


def _pictures(look: Look, rng: np.random.Generator) -> list[dict]:
    """Two or three catalogue pictures: from the front on white or grey, then turned before other backdrops."""
    pictures = [photograph(look, Camera(), BACKDROPS[rng.integers(2)], rng)]
    for _ in range(int(rng.integers(1, 3))):
        camera = Camera(
            yaw=rng.uniform(-38, 38),
            pitch=rng.uniform(-14, 14),
            roll=rng.uniform(-10, 10),
            scale=rng.uniform(0.65, 0.95),
        )
        pictures.append(photograph(look, camera, _pick(BACKDROPS, rng), rng))
    return [{"bytes": picture, "path": None} for picture in pictures]


def _query(product: _Made, title: str, rng: np.random.Generator) -> tuple[str | None, dict | None, set[str]]:
    """What a shopper typed, photographed, or both, and the attributes that it asks for."""
    text, photo, asked = None, None, set()
    form = rng.random()
    if form < 0.8:
        text, asked = _typed(product, title, rng)
    if form > 0.45:
        camera = Camera(
            yaw=rng.uniform(-45, 45), pitch=rng.uniform(-15, 15), roll=rng.uniform(-16, 16),
            scale=rng.uniform(0.6, 1.0), mirror=bool(rng.random() < 0.3),
        )  # fmt: skip
        quality = int(rng.integers(45, 80))
        picture = photograph(product.look, camera, _pick(BACKDROPS[2:], rng), rng, phone=True, quality=quality)
        photo = {"bytes": picture, "path": None}
        asked = asked | product.look.told(product.kind.materials) | {"cut"}
    return text, photo, asked


def _typed(product: _Made, title: str, rng: np.random.Generator) -> tuple[str, set[str]]:
    """Words and the attributes that they name, also where one of them is mistyped."""
    words = product.words
    if rng.random() < 0.55:
        traits = [words[name] for name in ("colour", "pattern", "material", "brand") if rng.random() < 0.6]
        text = " ".join([*(word for word in traits if word != "plain"), _pick(product.kind.nouns, rng)]).lower()
        if words["audience"] and rng.random() < 0.4:
            text += f" for {words['audience']}"
    else:
        parts = title.lower().split()
        length = int(rng.integers(min(2, len(parts)), len(parts) + 1))
        start = int(rng.integers(len(parts) - length + 1))
        text = " ".join(parts[start : start + length])
    asked = _named(text, words)
    return (_mistyped(text, rng) if rng.random() < 0.15 else text), asked


def _mistyped(text: str, rng: np.random.Generator) -> str:
    """One letter dropped, doubled, or struck beside."""
    at = int(rng.integers(1, len(text)))
    change = rng.integers(3)
    letter = text[at]
    return text[:at] + ("", 2 * letter, KEYS_NEARBY.get(letter, letter))[change] + text[at + 1 :]


def _pick(values, rng: np.random.Generator):
    return values[int(rng.integers(len(values)))]
