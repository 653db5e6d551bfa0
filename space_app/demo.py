"""`moon2 demo`: index a drawn shop, or one's own products, with the encoder that comes along, search and show them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset import ProductQueries, join
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_dataset.recipe import RecipeParser
from moon2_training.encode import VIEWS, Views
from moon2_training.evaluate import evaluate_encoder, format_retrieval, write_json
from moon2_training.items import ProductItems
from moon2_training.query_photo import make_query_photo
from moon2_training.vector_columns import VECTOR_COLUMNS, vector_column

from .bundled_model import BUNDLED_MODEL
from .catalogue_folder import DATA_DIR, CatalogueFolder, data_folder
from .catalogue_index import CatalogueIndex
from .index_command import Bar, IndexArguments, add_catalogue, open_with_model
from .product_table import ProductTable
from .search import CatalogueSearch, SearchQuery
from .search_sheet import Hit, Search, draw_searches

SCORES, SHEET = "evaluation.json", "searches.png"  # in the data folder
SHOWN_PRODUCTS = 5
QUERIES_OF_EACH_FORM = 2
READ_AT_ONCE = 32
LOOKED_AT = 500  # products of an own catalogue that examples are made of
MAX_WORDS, MAX_CHARACTERS = 8, 200  # of their words
DRAWN = re.compile(r"demo-\d{5,}")  # ids of the products that `render_demo_catalogue` draws


@dataclass
class DemoArguments:
    """Options of `moon2 demo`.

    Raises:
        ValueError: no products, or an argument that has no meaning.
    """

    catalogue: str | None = field(
        default=None,
        metadata={"help": "Your own products, as for `moon2 index`: a table, a ZIP or a folder; a drawn shop if not "
                  "given."},
    )  # fmt: skip
    columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of it that are guessed wrong, such as title=Name images=img1,img2."}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a MOON2.0 encoder; moon2-mini, which comes along, if not given."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": f"Folder of the index; {DATA_DIR}, or one for the user, if not given."}
    )
    num_products: int = field(default=240, metadata={"help": "Products to draw."})
    seed: int = field(default=0, metadata={"help": "Of the drawn shop; moon2-mini has learnt from that of seed 7."})
    reindex: bool = field(
        default=False,
        metadata={"help": "Where the index was made with another encoder: encode its products with this one."},
    )
    space: bool = field(default=True, metadata={"help": "Open the Space when the rest is done."})

    def __post_init__(self):
        if self.num_products < 1:
            raise ValueError(f"num_products={self.num_products}; give 1 or more")
        if self.columns and not self.catalogue:
            raise ValueError("columns speak of a catalogue; give one")


class IndexedEncoder:
    """The encoder of an index, which need not encode its products again to be scored.

    Args:
        index: with all products that `encode_views` is asked for.
    """

    def __init__(self, index: CatalogueIndex) -> None:
        self.index = index
        self.encode = index.encoder.encode

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool = True) -> Views:
        """As `Encoder.encode_views`; of products, the vectors that are searched."""
        if not isinstance(items, ProductItems):
            return self.index.encoder.encode_views(items, progress)
        ids = items.products["product_id"][:]
        rows = self.index.products(ids, VECTOR_COLUMNS)
        vectors, there = {}, {}
        for view in VIEWS:
            column = [rows[product_id][vector_column(view)] for product_id in ids]
            there[view] = np.array([vector is not None for vector in column])
            vectors[view] = np.zeros((len(ids), self.index.manifest["dimension"]), dtype=np.float32)  # (N, D)
            for row in np.flatnonzero(there[view]):
                vectors[view][row] = column[row]
        return Views(*(vectors[view] for view in VIEWS), there["text"], there["image"])


def score(index: CatalogueIndex, data: ProductQueries) -> dict[str, Any]:
    """Score an index on queries for its products; see `evaluate_encoder`, less the speed, which was not measured.

    Args:
        index: that holds the products.
        data: products and queries.
    """
    device = index.encoder.model.device
    results = evaluate_encoder(IndexedEncoder(index), data.products, data.queries, device, progress=False)
    return {name: value for name, value in results.items() if name != "items_per_second"}


class Example(NamedTuple):
    """A query to show, and the product that is meant by it."""

    query: SearchQuery
    product_id: str


def asked_examples(data: ProductQueries) -> list[Example]:
    """The first queries of a log, two of each form: words, a photo, both.

    Args:
        data: products and queries that ask for them.
    """
    forms: dict[tuple[bool, bool], list[Example]] = {(True, False): [], (False, True): [], (True, True): []}
    for row, query in enumerate(data.queries):
        examples = forms[query["text"] is not None, query["image"] is not None]
        if len(examples) < QUERIES_OF_EACH_FORM:
            photo = query["image"] and load_image(query["image"])
            product_id = data.products[data.positive_row[row]]["product_id"]
            examples.append(Example(SearchQuery(query["text"], photo), product_id))
    return [example for examples in forms.values() for example in examples]


def made_examples(index: ProductTable, seed: int = 0) -> list[Example]:
    """Queries made of products that nobody has asked for yet, two of each form as far as the products have it.

    Words are half of a title's, in their order; a photo is the product's picture as a phone might have taken it.

    Args:
        index: the products.
        seed: of which products, which words, and the photos.
    """
    rng = np.random.default_rng(seed)
    ids = np.array(sorted(index.ids()))
    examples = []
    for has_text, has_photo in ((True, False), (False, True), (True, True)):
        fitting = (
            product
            for product in _rows(index, rng.permutation(ids)[:LOOKED_AT].tolist())
            if (product["title"].strip() or not has_text) and (product["images"] or not has_photo)
        )
        for product in islice(fitting, QUERIES_OF_EACH_FORM):
            text = _half(product["title"], rng) if has_text else None
            photo = make_query_photo(load_image(product["images"][0]), rng) if has_photo else None
            examples.append(Example(SearchQuery(text, photo), product["product_id"]))
    return examples


def search_examples(search: CatalogueSearch, examples: Sequence[Example]) -> list[Search]:
    """Search for examples, and mark the products that are meant.

    Args:
        search: of the index.
        examples: to search for.

    Returns:
        Of each, the best five products.
    """
    answers = search.many([example.query for example in examples], SHOWN_PRODUCTS)
    searches = []
    for (query, product_id), found in zip(examples, answers, strict=True):
        hits = [
            Hit(hit.thumbnail and load_image(hit.thumbnail), hit.title, hit.score, hit.product_id == product_id)
            for hit in found
        ]
        searches.append(Search(query.text, query.image, hits))
    return searches


def format_searches(searches: Sequence[Search]) -> str:
    """Write searches as text; an arrow marks the product that was meant."""
    lines = []
    for text, photo, hits in searches:
        asked = " + ".join([f"“{text}”"] * (text is not None) + ["a photo"] * (photo is not None))
        lines.append(f"{asked}:")
        lines += [f"  {'→' if hit.right else ' '} {hit.score:5.2f}  {hit.title}" for hit in hits]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 demo`."""
    begin = time.perf_counter()
    parser = RecipeParser(
        DemoArguments, prog="moon2 demo", description="Index a shop, score and search it, open the Space."
    )
    (arguments,) = parser.parse_args_and_config(argv)
    folder = CatalogueFolder(data_folder(arguments.data_dir))
    _index_and_search(arguments, folder)
    print(f"{time.perf_counter() - begin:.0f} s, imports aside", flush=True)
    if arguments.space:
        _open_space(folder)


def _index_and_search(arguments: DemoArguments, folder: CatalogueFolder) -> None:
    """All but the Space, which loads the encoder itself; this one is let go of."""
    if arguments.catalogue is None:
        index, examples = _draw_shop(arguments, folder)
        about = "Searches among them; → is the product that was meant"
    else:
        index, examples = _read_shop(arguments, folder)
        about = "Searches for half of a title's words, a picture as a phone might take it, and both; → is its product"
    searches = search_examples(CatalogueSearch(index.encoder, index), examples)
    picture = folder.folder / SHEET
    draw_searches(searches).save(picture)
    print(f"\n{about}\n\n{format_searches(searches)}\n\nThe same as a picture: {picture}")
    elsewhere = f" --data_dir {arguments.data_dir}" if arguments.data_dir else ""
    print(f"More of them: moon2 search 'red shoes'{elsewhere}")


def _draw_shop(arguments: DemoArguments, folder: CatalogueFolder) -> tuple[CatalogueIndex, list[Example]]:
    """Index the drawn shop, and nothing but it, and score the encoder on its queries."""
    current = folder.current()
    own = 0 if current is None else sum(not DRAWN.fullmatch(product_id) for product_id in ProductTable(current).ids())
    if own:
        raise ValueError(
            f"{folder.folder}: the index there has {own:,} products that the demo has not drawn, and keeps them; give "
            "the demo another folder: --data_dir FOLDER"
        )
    print(f"Drawing {arguments.num_products:,} products …", flush=True)
    data = join(*render_demo_catalogue(arguments.num_products, arguments.seed))
    index = open_with_model(folder, arguments.model or str(BUNDLED_MODEL), reindex=True)
    with Bar("index") as bar:
        changes = index.add(data.products, bar.update, total=len(data.products))
    index.delete(set(index.ids()) - set(data.products["product_id"]))
    print(f"{len(index):,} products in the index, {changes.encoded:,} of them encoded now; scoring …", flush=True)
    results = score(index, data)
    write_json(results, folder.folder / SCORES)
    print(f"\n{format_retrieval(results)}\n\nCategories, attributes and all else: {folder.folder / SCORES}")
    return index, asked_examples(data)


def _read_shop(arguments: DemoArguments, folder: CatalogueFolder) -> tuple[CatalogueIndex, list[Example]]:
    """Put the user's products into the index, in place of those that the demo has drawn."""
    given = IndexArguments(arguments.catalogue, columns=arguments.columns)
    index = open_with_model(folder, arguments.model, arguments.reindex)
    read = add_catalogue(given, folder, index)
    there = set(index.ids())
    if not there & read:
        raise ValueError(f"{arguments.catalogue}: no product could be read; see above")
    index.delete({product_id for product_id in there - read if DRAWN.fullmatch(product_id)})
    (folder.folder / SCORES).unlink(missing_ok=True)  # of a drawn shop
    print(
        "\nNo scores: they need queries whose product is known, which `moon2 build-dataset` makes of a log and "
        "`moon2 evaluate` takes"
    )
    return index, made_examples(index)


def _rows(index: ProductTable, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Id, title and images of products in the order of their ids, a few at a time in memory."""
    for start in range(0, len(ids), READ_AT_ONCE):
        part = ids[start : start + READ_AT_ONCE]
        products = index.products(part, ["title", "images"])
        yield from (products[product_id] for product_id in part)


def _half(title: str, rng: np.random.Generator) -> str:
    words = title.split()
    kept = np.sort(rng.permutation(len(words))[: min(MAX_WORDS, (len(words) + 1) // 2)])
    return " ".join(words[place] for place in kept)[:MAX_CHARACTERS]


def _open_space(folder: CatalogueFolder) -> None:
    """Serve the Space until it is interrupted, or say how to get it."""
    try:
        from .space import SpaceOptions, launch_space
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("moon2_"):
            raise
        print(f'The Space stays closed: {error}; pip install "moon2[space]"', file=sys.stderr)
        return
    app, url = launch_space(replace(SpaceOptions.from_environment(), data_dir=folder.folder), block=False)
    print(f"The Space is open: {url} (Ctrl+C ends it)", flush=True)
    app.get_blocks().block_thread()
