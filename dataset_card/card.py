"""The dataset card: README.md of a folder of products and queries, written from what lies in it."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features, Image, List, Value
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from .augment.report import SHEET as SHEET_OF_FOLDER
from .construction import read_augmentation, read_construction
from .data_files import data_files, file_pattern, is_for_training
from .hub_card import CARD, load_card, markdown_table, plain_text, without_path, write_card
from .schema import OPTIONAL_PRODUCT_FEATURES
from .table_statistics import (
    ProductStatistics,
    QueryStatistics,
    num_bytes,
    product_statistics,
    query_statistics,
    table_features,
)

TEMPLATE = Path(__file__).with_name("card_template.md")
CONTACT_SHEET = "contact_sheet.png"
SHEET_OF_AUGMENTED = ".contact.png"  # after the name of the file that was augmented
TASKS = ["text-retrieval", "image-feature-extraction", "feature-extraction", "zero-shot-classification"]
TAGS = ["moon2", "e-commerce", "product-search", "multimodal", "retrieval"]
SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M", 1e8: "10M<n<100M",
         1e9: "100M<n<1B", 1e10: "1B<n<10B", 1e11: "10B<n<100B", 1e12: "100B<n<1T"}  # fmt: skip
MOST_ATTRIBUTES = 12  # named in the statistics
MEANINGS = {
    "product_id": "of the product; in queries, a product that is right",
    "title": "as the seller wrote it; blank only where there is an image",
    "description": "longer text; blank where there is none",
    "category_path": "names from coarse to fine",
    "attributes": "such as colour or material",
    "images": "catalogue pictures, the main one first",
    "enriched_title": "the title with what the other columns tell; blank where none was made",
    "expanded_images": "further pictures made from the first one",
    "core_region": "left, top, right and bottom of the product in its first image, as shares of its sides",
    "query_id": "of the query",
    "text": "what was typed; null where the query is a photo alone",
    "image": "the photo that was searched with; null where there is none",
    "negative_ids": "products that were shown and not wanted",
    "grade": "weight of the relevance, above 0",
    # truth of the rendered shop
    "visible_in": "where each attribute can be told: in the pictures (image), in the title (text), in both or neither",
    "slice": "what of the right product must be looked at: image, text, both, or either; never to be trained on",
    "image_noise": "true: the pictures are of another product, on purpose; never to be trained on",
    "title_noise": "true: the title is of another product, on purpose; never to be trained on",
    "label_noise": "true: the product is wrong for the query, on purpose; never to be trained on",
}


def write_dataset_card(folder: str | os.PathLike, dataset_id: str | None = None, license: str | None = None) -> Path:
    """Write README.md of a data set folder, or bring it up to date.

    Read from the folder: products*.parquet and queries*.parquet, batch by batch and without the pictures, and
    build_report.json for the construction. A card that a person wrote or edited keeps its text and what its header
    says; entries that the header lacks are added, and what it says of the files is brought up to date.

    Args:
        folder: as `moon2 build-dataset` or `moon2 augment` leaves it.
        dataset_id: what the card calls the data set, `OWNER/NAME` on the Hub; the folder's name if not given.
        license: of the data, as the Hub spells it ("cc-by-4.0"); what the card says already if not given.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file of the folder cannot be read, or is not named after its split.

    Example:
        >>> write_dataset_card("my-shop", "me/my-shop", license="cc-by-4.0")
        PosixPath('my-shop/README.md')
    """
    folder = Path(folder)
    path = folder / CARD
    given = license or (load_card(path, DatasetCard).data.get("license") if path.is_file() else None)
    card = dataset_card(folder, dataset_id, given)

    def renew(theirs: DatasetCardData, ours: DatasetCardData) -> None:
        DatasetInfosDict.from_dataset_card_data(ours).to_dataset_card_data(theirs)
        MetadataConfigs.from_dataset_card_data(ours).to_dataset_card_data(theirs)
        theirs["size_categories"], theirs["license"] = ours["size_categories"], given

    write_card(path, card, renew)
    return path


def dataset_card(folder: Path, dataset_id: str | None = None, license: str | None = None) -> DatasetCard:
    """Compose the card of a data set folder; see `write_dataset_card`."""
    dataset_id = without_path(dataset_id or folder.resolve().name)
    files = {kind: splits for kind, splits in data_files(folder).items() if splits}
    columns = {kind: table_features(kind, splits) for kind, splits in files.items()}
    products = {split: product_statistics(paths) for split, paths in files["products"].items()}
    queries = {split: query_statistics(paths) for split, paths in files.get("queries", {}).items()}
    rows = {
        "products": {split: counts.products for split, counts in products.items()},
        "queries": {split: counts.rows for split, counts in queries.items()},
    }
    data = DatasetCardData(
        license=license,
        task_categories=TASKS,
        size_categories=size_category(sum(sum(of_split.values()) for of_split in rows.values())),
        tags=TAGS,
        pretty_name=dataset_id.rpartition("/")[2],
    )
    globs = {kind: {split: file_pattern(paths) for split, paths in of.items()} for kind, of in files.items()}
    MetadataConfigs(
        {
            kind: {"data_files": [{"split": split, "path": path} for split, path in of_split.items()]}
            | ({"default": True} if kind == "products" else {})
            for kind, of_split in globs.items()
        }
    ).to_dataset_card_data(data)
    DatasetInfosDict(
        {kind: _info(kind, columns[kind][0], files[kind], rows[kind]) for kind in files}
    ).to_dataset_card_data(data)

    held_out = [split for split in products if not is_for_training(split)]
    both = {
        split: [shlex.quote(f"data/{globs[kind][split]}") for kind in globs] for split in products if split in queries
    }
    spoilt = [split for split in held_out if products[split].enriched_titles or products[split].expanded_images]
    sheets = [f"{file.name}{SHEET_OF_AUGMENTED}" for paths in files["products"].values() for file in paths]
    sheets.append(SHEET_OF_FOLDER)
    construction, command = read_construction(folder) or (None, None)
    augmented = [name for name in OPTIONAL_PRODUCT_FEATURES if name in columns["products"][0]]
    return DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        dataset_id=dataset_id,
        title=plain_text(dataset_id),
        queries=bool(queries),
        num_products=sum(rows["products"].values()),
        num_queries=sum(counts.queries for counts in queries.values()),
        num_rows=sum(rows["queries"].values()),
        contact_sheet=CONTACT_SHEET if (folder / CONTACT_SHEET).is_file() else None,
        trained_on=", ".join(f"`{split}`" for split in products if split not in held_out),
        held_out=", ".join(f"`{split}`" for split in held_out),
        tables={kind: _fields_table(*columns[kind], list(files[kind])) for kind in files},
        construction=construction,
        command=command,
        augmented=", ".join(f"`{name}`" for name in augmented),
        augmentation=read_augmentation([file for paths in files["products"].values() for file in paths]),
        augmented_sheet=next((name for name in sheets if (folder / name).is_file()), None),
        spoilt=", ".join(f"`{split}`" for split in spoilt),
        product_table=_statistics_table(products, _product_lines),
        query_table=queries and _statistics_table(queries, _query_lines),
        split=next(iter(products)),
        query_split=next(iter(queries), None),
        train_files=next((files for split, files in both.items() if split not in held_out), None),
        judged_files=next((files for split, files in both.items() if split in held_out), None),
        license_text=license and plain_text(", ".join([license] if isinstance(license, str) else license)),
    )


def size_category(rows: int) -> str:
    """How the Hub calls the size of a data set."""
    return next((name for limit, name in SIZES.items() if rows < limit), "n>1T")


def _info(kind: str, features: Features, splits: Mapping[str, Sequence[Path]], rows: Mapping[str, int]) -> DatasetInfo:
    """What the header says of a table, so that the Hub and `load_dataset` need not look into its files first."""
    sizes = {split: num_bytes(files) for split, files in splits.items()}
    counted = SplitDict()
    for split in splits:
        counted.add(SplitInfo(split, num_bytes=sizes[split][0], num_examples=rows[split]))
    return DatasetInfo(
        features=Features({name: _decoded(feature) for name, feature in features.items()}),
        config_name=kind,
        splits=counted,
        dataset_size=sum(of_rows for of_rows, _ in sizes.values()),
        download_size=sum(of_files for _, of_files in sizes.values()),
    )


def _decoded(feature: Any) -> Any:
    """A feature whose images `datasets` opens."""
    if isinstance(feature, List):
        return List(_decoded(feature.feature))
    return Image() if isinstance(feature, Image) else feature


def _fields_table(features: Features, present: Mapping[str, Sequence[str]], splits: Sequence[str]) -> str:
    rows = []
    for name, feature in features.items():
        meaning = MEANINGS.get(name, "not part of the schema; neither trained on nor judged by")
        missing = [split for split in splits if split not in present[name]]
        rows.append(
            (
                f"`{name}`" if name in MEANINGS else plain_text(name),
                plain_text(_type_name(feature)),
                meaning + (f"; not in {plain_text(', '.join(missing))}" if missing else ""),
            )
        )
    return markdown_table(("field", "type", ""), rows)


def _type_name(feature: Any) -> str:
    if isinstance(feature, List):
        return f"list of {_type_name(feature.feature)}"
    if isinstance(feature, dict):
        return f"{{{', '.join(feature)}}}"
    if isinstance(feature, Image):
        return "image"
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _statistics_table(of_split: Mapping[str, Any], lines: Callable[[Any], Iterator[tuple[str, str]]]) -> str:
    """Splits side by side; what none of them has is left out."""
    columns = [dict(lines(counts)) for counts in of_split.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(plain_text(name), *(plain_text(column.get(name, "–")) for column in columns)) for name in names]
    return markdown_table(("", *(f"{split}" for split in of_split)), rows)


def _product_lines(counts: ProductStatistics) -> Iterator[tuple[str, str]]:
    yield "products", f"{counts.products:,}"
    yield "images", f"{counts.images:,}"
    for name in ("image", "title", "description", "category"):
        yield f"products with {name}", _share(getattr(counts, f"with_{name}"), counts.products)
    for level, number in enumerate(counts.categories, 1):
        yield f"categories, level {level}", f"{number:,}"
    if counts.categories:
        yield "leaf categories", f"{counts.leaf_categories:,}"
    if counts.attributes:
        named = [f"{name} {_share(n, counts.products)}" for name, n in counts.attributes.most_common(MOST_ATTRIBUTES)]
        more = len(counts.attributes) - len(named)
        yield "attributes: share of products", ", ".join(named) + (f" and {more:,} more" if more else "")
    if counts.enriched_titles:
        yield "enriched titles", _share(counts.enriched_titles, counts.products)
    if counts.expanded_images:
        yield "expanded images", f"{counts.expanded_images:,}"
    if counts.core_regions:
        yield "products with core region", _share(counts.core_regions, counts.products)
    yield from _label_lines(counts.labels, counts.products)


def _query_lines(counts: QueryStatistics) -> Iterator[tuple[str, str]]:
    yield "queries", f"{counts.queries:,}"
    yield "query rows", f"{counts.rows:,}"
    if counts.queries:
        yield "right products of a query", f"{counts.rows / counts.queries:.2f}, at most {counts.most:,}"
    yield "queries with several right products", _share(counts.several, counts.queries)
    for name, number in (("text", counts.text_only), ("a photo", counts.photo_only)):
        yield f"queries of {name} alone", _share(number, counts.queries)
    yield "queries of text and photo", _share(counts.both, counts.queries)
    yield "rows with negatives", _share(counts.with_negatives, counts.rows)
    if counts.with_negatives:
        yield "negatives of such a row", f"{counts.negatives / counts.with_negatives:.1f}"
    if counts.grades is not None:
        yield "grades", "{:.3g} to {:.3g}".format(*counts.grades)
    yield from _label_lines(counts.labels, counts.rows)


def _label_lines(labels: Mapping[str, Counter[str]], rows: int) -> Iterator[tuple[str, str]]:
    for name, values in labels.items():
        shown = values if values.keys() - {"true", "false"} else {"true": values["true"]}
        yield name, ", ".join(f"{value} {_share(shown[value], rows)}" for value in sorted(shown))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"
