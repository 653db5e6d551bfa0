"""The two tables every other part reads, products and queries, and the checks that keep them sound."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, List, Value
from datasets.table import InMemoryTable, cast_array_to_feature

from .rows import Names, Rows, SchemaError

PRODUCT_FEATURES = Features(
    {
        "product_id": Value("string"),
        "title": Value("string"),
        "description": Value("string"),
        "category_path": List(Value("string")),
        "attributes": List({"name": Value("string"), "value": Value("string")}),
        "images": List(Image(decode=False)),
    }
)
OPTIONAL_PRODUCT_FEATURES = Features(
    {
        "enriched_title": Value("string"),
        "expanded_images": List(Image(decode=False)),
        "core_region": List(Value("float64")),
    }
)
QUERY_FEATURES = Features(
    {
        "query_id": Value("string"),
        "text": Value("string"),
        "image": Image(decode=False),
        "product_id": Value("string"),
    }
)
OPTIONAL_QUERY_FEATURES = Features({"negative_ids": List(Value("string")), "grade": Value("float64")})

_REQUIRED = ("product_id", "title", "query_id")
_WANTED = {
    "product_id": "text or whole numbers",
    "query_id": "text or whole numbers",
    "title": "text",
    "description": "text",
    "text": "text",
    "category_path": "a list of names, coarse to fine",
    "attributes": "a list of {name, value}",
    "images": "a list of images, each as bytes or {bytes, path}",
    "enriched_title": "text",
    "expanded_images": "a list of images, each as bytes or {bytes, path}",
    "core_region": "left, top, right and bottom of a box as shares of the first image, 0 to 1",
    "image": "one image, as bytes or {bytes, path}",
    "negative_ids": "a list of product ids",
    "grade": "a number above 0",
}


def normalise_title(title: str | None) -> str:
    """Bring a title to the form in which two products count as having the same one.

    Args:
        title: any text, or None.

    Returns:
        The title in NFKC, case-folded, white space collapsed, punctuation at both ends stripped; "" for None.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title or "").casefold())
    start, end = 0, len(folded)
    while start < end and _at_edge(folded[start]):
        start += 1
    while end > start and _at_edge(folded[end - 1]):
        end -= 1
    return " ".join(folded[start:end].split())


def validate_products(products: Dataset, name: Names = "products") -> Dataset:
    """Check a products table and fill in what may be left out.

    Columns product_id and title must be there; every row needs an id of its own, and a title or an image. The columns
    description, category_path, attributes and images may be missing, or null in a row: they become "" or []. A null or
    blank title becomes "". What co-augmentation adds may be there (`OPTIONAL_PRODUCT_FEATURES`): enriched_title,
    expanded_images, and core_region, the box of the product in its first image as [left, top, right, bottom] in shares
    of width and height; a null is "" or []. Columns outside the schema pass through unread.

    Args:
        products: the table. Ids may be whole numbers; images may be bytes, paths or {bytes, path}.
        name: what messages call the table, or (name, number of rows) of each file it was read from, in order.

    Returns:
        The table in `PRODUCT_FEATURES`: the same object where nothing had to change.

    Raises:
        SchemaError: naming the row and the way out.
    """
    products = _conform_dataset(products, conform_products, name)
    table, rows = _arrow(products), Rows(name, len(products))

    ids = table["product_id"]
    rows.refuse(_blank(ids), "no product_id", "give every product an id")
    rows.refuse_repeats(
        _codes(ids, pc.unique(ids)), lambda row: f"product_id {ids[row]}", "give every product an id of its own"
    )
    num_images = _numpy(pc.list_value_length(table["images"]))
    rows.refuse(_blank(table["title"]) & (num_images == 0), "neither title nor image", "give at least one")

    images, paths, attributes = (table[column] for column in ("images", "category_path", "attributes"))
    no_image = _no_image(pc.list_flatten(images))
    rows.refuse_entries("images", images, no_image, "has neither bytes nor path", "leave it out")
    if "expanded_images" in table.column_names:
        expanded = table["expanded_images"]
        none = _no_image(pc.list_flatten(expanded))
        rows.refuse_entries("expanded_images", expanded, none, "has neither bytes nor path", "leave it out")
    if "core_region" in table.column_names:
        regions = table["core_region"]
        rows.refuse(
            ~_is_region(regions),
            lambda row: f"core_region {regions[row].as_py()}",
            "give left, top, right, bottom with 0 <= left < right <= 1 and 0 <= top < bottom <= 1, or []",
        )
    no_name = _blank(pc.list_flatten(paths))
    rows.refuse_entries("category_path", paths, no_name, "is blank", "leave that level out")
    for field in ("name", "value"):
        missing = _blank(pc.struct_field(pc.list_flatten(attributes), field))
        rows.refuse_entries("attributes", attributes, missing, f"has no {field}", "give it or leave the attribute out")
    return products


def validate_queries(queries: Dataset, products: Dataset | None = None, name: Names = "queries") -> Dataset:
    """Check a queries table, alone or against the catalogue it asks for.

    Columns query_id and product_id must be there, and text or image; every row needs a text or an image. Blank text
    counts as none and becomes null, as does an image without bytes and path. Several rows with one query_id are one
    query with several positives. Where the optional columns are there, a null `grade` becomes 1.0 and null
    `negative_ids` become []. Columns outside the schema pass through unread.

    Args:
        queries: the table. Ids may be whole numbers; an image may be bytes, a path or {bytes, path}.
        products: validated products; without them ids are not looked up.
        name: what messages call the table, or (name, number of rows) of each file it was read from, in order.

    Returns:
        The table in `QUERY_FEATURES`: the same object where nothing had to change.

    Raises:
        SchemaError: naming the row and the way out.
    """
    queries = _conform_dataset(queries, conform_queries, name)
    table, rows = _arrow(queries), Rows(name, len(queries))

    ids, positives = table["query_id"], table["product_id"]
    rows.refuse(_blank(ids), "no query_id", "give every query an id")
    rows.refuse(_blank(positives), "no product_id", "name the product the shopper meant")
    neither = _numpy(pc.is_null(table["text"])) & _numpy(pc.is_null(table["image"]))
    rows.refuse(neither, "neither text nor image", "give at least one")

    query_codes = _codes(ids, pc.unique(ids))
    _refuse_other_texts(table["text"], query_codes, ids, rows)
    known = positives if products is None else _arrow(products.select_columns("product_id"))["product_id"]
    known = pc.unique(known)
    positive_codes = _codes(positives, known)
    rows.refuse(
        positive_codes < 0,
        lambda row: f"product_id {positives[row]} is not in the catalogue",
        "add that product or drop the query",
    )
    pairs = query_codes * len(known) + positive_codes
    rows.refuse_repeats(
        pairs, lambda row: f"product_id {positives[row]} of query_id {ids[row]}", "keep one row for each positive"
    )
    if "grade" in table.column_names:
        grades = _numpy(table["grade"])
        rows.refuse(
            ~(np.isfinite(grades) & (grades > 0)), lambda row: f"grade {grades[row]:g}", "give a number above 0"
        )
    if "negative_ids" in table.column_names:
        _refuse_negatives(table["negative_ids"], query_codes, pairs, known, rows, look_up=products is not None)
    return queries


def conform_products(table: pa.Table, name: str) -> pa.Table:
    """Cast a table to `PRODUCT_FEATURES` and fill what is missing; the same object where nothing has to change."""
    given = dict(zip(table.column_names, table.columns, strict=True))
    optional = {column: kind for column, kind in OPTIONAL_PRODUCT_FEATURES.items() if column in given}
    features = Features(PRODUCT_FEATURES | optional)
    columns = _cast(given, len(table), features, name)
    for column, feature in features.items():
        columns[column] = _filled(columns[column], [] if isinstance(feature, List) else "")
    blank = _blank(columns["title"])
    if (blank & _numpy(pc.not_equal(columns["title"], ""))).any():
        columns["title"] = pc.if_else(pa.array(blank), "", columns["title"])
    return _assembled(table, given, columns, features)


def conform_queries(table: pa.Table, name: str) -> pa.Table:
    """Cast a table to `QUERY_FEATURES` and make null what is empty; the same object where nothing has to change."""
    given = dict(zip(table.column_names, table.columns, strict=True))
    if "text" not in given and "image" not in given:
        raise SchemaError(f"{name}: neither column text nor column image; give at least one")
    optional = {column: kind for column, kind in OPTIONAL_QUERY_FEATURES.items() if column in given}
    features = Features(QUERY_FEATURES | optional)
    columns = _cast(given, len(table), features, name)
    for column, value in {"query_id": "", "product_id": "", "negative_ids": [], "grade": 1.0}.items():
        if column in columns:
            columns[column] = _filled(columns[column], value)
    for column, empty in {"text": _blank(columns["text"]), "image": _no_image(columns["image"])}.items():
        if empty.sum() > columns[column].null_count:
            columns[column] = pc.if_else(pa.array(empty), pa.scalar(None, columns[column].type), columns[column])
    return _assembled(table, given, columns, features)


def _refuse_other_texts(texts: pa.ChunkedArray, query_codes: np.ndarray, ids: pa.ChunkedArray, rows: Rows) -> None:
    """Rows of one query_id are one query: their text must be the same."""
    _, first, inverse = np.unique(query_codes, return_index=True, return_inverse=True)
    origin = first[inverse]
    text_codes = _codes(pc.fill_null(texts, ""), pc.unique(pc.fill_null(texts, "")))
    rows.refuse(
        text_codes != text_codes[origin],
        lambda row: f"query_id {ids[row]} has another text in {rows.place(int(origin[row]))}",
        "give each text a query_id of its own",
    )


def _refuse_negatives(
    negatives: pa.ChunkedArray,
    query_codes: np.ndarray,
    positive_pairs: np.ndarray,
    known: pa.Array,
    rows: Rows,
    look_up: bool,
) -> None:
    """A negative is a product of the catalogue (if `look_up`) and not a positive of the same query."""
    ids = pc.list_flatten(negatives)
    codes = _codes(ids, known)
    pairs = query_codes[_numpy(pc.list_parent_indices(negatives))] * len(known) + codes
    if look_up:
        rows.refuse_entries(
            "negative_ids",
            negatives,
            codes < 0,
            lambda entry: f"{ids[entry]} is not in the catalogue",
            "add that product or drop it from negative_ids",
        )
    rows.refuse_entries(
        "negative_ids",
        negatives,
        (codes >= 0) & np.isin(pairs, positive_pairs),
        lambda entry: f"{ids[entry]} is a positive of this query",
        "drop it from negative_ids",
    )


def _at_edge(char: str) -> bool:
    return char.isspace() or unicodedata.category(char).startswith("P")


def _conform_dataset(dataset: Dataset, conform: Callable[[pa.Table, str], pa.Table], names: Names) -> Dataset:
    label = Rows(names, len(dataset)).label
    if not len(dataset):
        raise SchemaError(f"{label}: no rows; give at least one")
    table = _arrow(dataset)
    conformed = conform(table, label)
    return dataset if conformed is table else Dataset(InMemoryTable(conformed))


def _arrow(dataset: Dataset) -> pa.Table:
    table = dataset.with_format("arrow")[:]
    return table.replace_schema_metadata(dataset.features.arrow_schema.metadata)


def _cast(
    given: dict[str, pa.ChunkedArray], num_rows: int, features: Features, name: str
) -> dict[str, pa.ChunkedArray]:
    """The columns of `features`, in their order and types; an optional column that is missing is all null."""
    columns = {}
    for column, feature in features.items():
        target = features.arrow_schema.field(column).type
        if column not in given:
            if column in _REQUIRED:
                raise SchemaError(f"{name}: no column {column}; give one with {_WANTED[column]}")
            columns[column] = pa.chunked_array([pa.nulls(num_rows, target)])
            continue
        values, plain = given[column], plain_type(given[column].type)
        if not _fits(plain, feature):
            raise SchemaError(f"{name}: column {column} is {values.type}; give {_WANTED[column]}")
        try:
            columns[column] = values if values.type == target else cast_array_to_feature(values.cast(plain), feature)
        except pa.ArrowInvalid as error:
            raise SchemaError(f"{name}: column {column} cannot be read ({error}); give {_WANTED[column]}") from error
    return columns


def _assembled(
    table: pa.Table, given: dict[str, pa.ChunkedArray], columns: dict[str, pa.ChunkedArray], features: Features
) -> pa.Table:
    """`columns`, then what else `table` has, with the features in the schema; `table` itself where nothing changed."""
    before = Features.from_arrow_schema(table.schema)
    after = Features(features | {column: before[column] for column in given if column not in features})
    columns = given | columns
    if before == after and all(columns[column] is given[column] for column in columns):
        return table
    return pa.table([columns[column] for column in after], schema=after.arrow_schema)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """An Arrow type without what `datasets` would not take: dictionaries, views, 64-bit offsets, null fields."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        typed = {"bytes": pa.binary()}
        return pa.struct(
            (f.name, typed.get(f.name, pa.string()) if pa.types.is_null(f.type) else plain_type(f.type)) for f in kind
        )
    return kind


def _fits(kind: pa.DataType, feature: object) -> bool:
    """Whether a plain Arrow type can be cast to a feature of this schema."""
    types = pa.types
    if types.is_null(kind):
        return True
    if isinstance(feature, Image):
        if types.is_struct(kind):
            fits = {"bytes": types.is_binary, "path": types.is_string}
            return all(types.is_null(part.type) or fits.get(part.name, types.is_null)(part.type) for part in kind)
        return types.is_binary(kind) or types.is_string(kind)
    if isinstance(feature, List):
        return types.is_list(kind) and _fits(kind.value_type, feature.feature)
    if isinstance(feature, dict):
        fields = {field.name: field.type for field in kind} if types.is_struct(kind) else {}
        return fields.keys() == feature.keys() and all(_fits(fields[name], feature[name]) for name in feature)
    if feature == Value("float64"):
        return types.is_floating(kind) or types.is_integer(kind)
    return types.is_string(kind) or types.is_integer(kind)


def _filled(column: pa.ChunkedArray, value: str | float | list) -> pa.ChunkedArray:
    return pc.coalesce(column, pa.scalar(value, column.type)) if column.null_count else column


def _codes(column: pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """Position of every value in `known`, -1 where it is not there: (rows,) int64."""
    return _numpy(pc.fill_null(pc.index_in(column, value_set=known), -1)).astype(np.int64)


def _blank(text: pa.ChunkedArray) -> np.ndarray:
    return _numpy(pc.equal(pc.utf8_trim_whitespace(pc.fill_null(text, "")), ""))


def _no_image(images: pa.ChunkedArray) -> np.ndarray:
    """Images without bytes and without path, null ones included."""
    empty = pc.equal(pc.fill_null(pc.binary_length(pc.struct_field(images, "bytes")), 0), 0)
    return _numpy(empty) & _blank(pc.struct_field(images, "path"))


def _is_region(regions: pa.ChunkedArray) -> np.ndarray:
    """Rows whose list is empty or a box in shares of an image: (rows,) bool."""
    lengths = _numpy(pc.list_value_length(regions))
    box = np.full((len(regions), 4), np.nan)
    values = _numpy(pc.list_flatten(regions.filter(pa.array(lengths == 4)))).astype(np.float64)
    box[lengths == 4] = values.reshape(-1, 4)
    left, top, right, bottom = box.T
    whole = (0 <= left) & (left < right) & (right <= 1) & (0 <= top) & (top < bottom) & (bottom <= 1)
    return (lengths == 0) | whole


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()
