"""`moon2 search`: search the index of a data folder from the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from moon2_dataset.recipe import RecipeParser

from .catalogue_folder import DATA_DIR, CatalogueFolder, data_folder
from .filters import Filters
from .index_command import open_with_model
from .product_table import naming_damage
from .search import CatalogueSearch, SearchHit, SearchQuery
from .search_sheet import Hit, Search, draw_searches

TITLE_WIDTH = 60
MAX_PICTURE = 64 << 20  # bytes


@dataclass
class SearchArguments:
    """Options of `moon2 search [TEXT]`.

    Raises:
        ValueError: nothing to search for, or an argument that has no meaning.
    """

    text: list[str] | None = field(
        default=None, metadata={"help": "Words to search for; several are several queries."}
    )
    image: str | None = field(default=None, metadata={"help": "Picture to search for, alone or with each text."})
    like: str | None = field(default=None, metadata={"help": "Id of a product to find others like."})
    balance: float = field(
        default=0.5, metadata={"help": "With text and image: 0 for the words alone to 1 for the picture alone."}
    )
    k: int = field(default=10, metadata={"help": "Products to find."})
    category: str | None = field(default=None, metadata={"help": "Only this category, such as 'Shoes > Boots'."})
    attributes: list[str] | None = field(
        default=None, metadata={"help": "Only products with these, such as colour=red; of one name one must hold."}
    )
    model: str | None = field(
        default=None, metadata={"help": "The encoder that the index was made with, where it has moved."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": f"Folder of the index; {DATA_DIR}, or one for the user, if not given."}
    )
    output: str | None = field(
        default=None, metadata={"help": "Picture to draw of what was found, such as sheet.png."}
    )
    json: bool = field(default=False, metadata={"help": "Print JSON in place of a table."})

    def __post_init__(self):
        if isinstance(self.text, str):  # as a recipe may give it
            self.text = [self.text]
        if self.like is not None and (self.text or self.image):
            raise ValueError("like stands alone; leave text and image out")
        if not (self.text or self.image or self.like):
            raise ValueError("nothing to search for; give a text, --image FILE or --like ID")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 search [TEXT]`."""
    argv = list(argv or ())
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--text", argv[0]]
    parser = RecipeParser(SearchArguments, prog="moon2 search", description="Search the index of a data folder.")
    (arguments,) = parser.parse_args_and_config(argv)
    filters = parse_filters(arguments.category, arguments.attributes)
    picture = read_picture(arguments.image) if arguments.image else None
    folder = CatalogueFolder(data_folder(arguments.data_dir))
    if folder.current() is None:
        raise FileNotFoundError(f"{folder.folder}: no index there; make one with `moon2 index`")
    with naming_damage(folder.current()):
        index = open_with_model(folder, arguments.model)
        search = CatalogueSearch(index.encoder, index)
        if arguments.like is not None:
            asked, answers = [arguments.like], [search.like(arguments.like, arguments.k, filters)]
        else:
            texts: list[str | None] = list(arguments.text or [None])
            queries = [SearchQuery(text, picture, arguments.balance, filters) for text in texts]
            asked = [text or arguments.image for text in texts]
            answers = search.many(queries, arguments.k)
    if arguments.json:
        json.dump(
            [_as_json(*pair) for pair in zip(asked, answers, strict=True)], sys.stdout, ensure_ascii=False, indent=2
        )
        print()
    else:
        print("\n\n".join(f"{query}:\n{format_hits(hits)}" for query, hits in zip(asked, answers, strict=True)))
    if arguments.output:
        photo = Image.open(io.BytesIO(picture)) if picture else None
        rows = [_sheet_row(arguments, query, photo, hits) for query, hits in zip(asked, answers, strict=True)]
        draw_searches(rows).save(arguments.output)
        print(f"The same as a picture: {arguments.output}", file=sys.stderr if arguments.json else sys.stdout)


def parse_filters(category: str | None, attributes: Sequence[str] | None) -> Filters:
    """Filters from the texts of a command line: "Shoes > Boots" and "name=value"s.

    Raises:
        ValueError: one without a name or a value.
    """
    values: dict[str, list[str]] = {}
    for pair in attributes or ():
        name, mark, value = pair.partition("=")
        if not mark:
            raise ValueError(f"attributes: {pair!r}; give NAME=VALUE")
        values.setdefault(name, []).append(value)
    path = [level.strip() for level in category.split(">")] if category else []
    return Filters(path, values)


def read_picture(path: str) -> bytes:
    """The bytes of a picture file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is too large.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such picture")
    if file.stat().st_size > MAX_PICTURE:
        raise ValueError(f"{path}: {file.stat().st_size >> 20} MB; give a picture of at most {MAX_PICTURE >> 20} MB")
    return file.read_bytes()


def format_hits(hits: Sequence[SearchHit]) -> str:
    """Hits as a table: score, places in the rankings, title, category, id."""
    if not hits:
        return "  nothing found"
    rankings = [name for name in ("words", "vectors") if any(name in hit.ranks for hit in hits)]
    rows = [["", "score", *rankings, "title", "category", "id"]]
    for place, hit in enumerate(hits, start=1):
        title = hit.title if len(hit.title) <= TITLE_WIDTH else f"{hit.title[: TITLE_WIDTH - 1]}…"
        ranks = [str(hit.ranks.get(name, "–")) for name in rankings]
        rows.append([str(place), f"{hit.score:.3f}", *ranks, title, " > ".join(hit.category_path), hit.product_id])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = 2 + len(rankings)  # columns that are set to the right
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place < numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _as_json(query: str, hits: Sequence[SearchHit]) -> dict[str, Any]:
    told = []
    for hit in hits:
        row = hit._asdict() | {"attributes": [{"name": name, "value": value} for name, value in hit.attributes]}
        del row["thumbnail"]
        told.append(row)
    return {"query": query, "hits": told}


def _sheet_row(arguments: SearchArguments, query: str, photo: Image.Image | None, hits: Sequence[SearchHit]) -> Search:
    found = [
        Hit(Image.open(io.BytesIO(hit.thumbnail)) if hit.thumbnail else None, hit.title, hit.score) for hit in hits
    ]
    return Search(query if arguments.text or arguments.like else None, photo, found)
