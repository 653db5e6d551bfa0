"""A shop's behaviour log, cleaned line by line and summed into numbered work files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from ..schema import normalise_title
from ..shards import GROUP_BYTES, ShardWriter, Tally, numbered, read_notes, written
from .clean import Dropped, clean_id, clean_ids, clean_text
from .column_sample import Column
from .duplicates import stable_key
from .image_root import ImageRoot
from .log_columns import COUNT_FIELDS, read_count
from .pictures import read_pictures
from .plain_text import is_nothing
from .raw_rows import RawRow
from .sources import Source

EVENTS = ("purchase", "click", "exposure")  # in the order of COUNT_FIELDS
PURCHASE, CLICK, EXPOSURE = range(3)
EVENT_NAMES = {
    **dict.fromkeys(
        "purchase purchased buy bought order ordered transaction conversion sale sold checkout pay paid".split(),
        PURCHASE,
    ),
    **dict.fromkeys(
        "click clicked click_through view viewed pv detail product_view view_item cart add_to_cart addtocart basket "
        "fav favorite favourite wishlist like".split(),
        CLICK,
    ),
    **dict.fromkeys("exposure exposed impression impressions show shown display displayed listed".split(), EXPOSURE),
}
MAX_QUERY = 500  # characters

WORK_NAME = "log"
WORK_LINES = 100_000  # lines behind one work file
WORK_BYTES = 2 * GROUP_BYTES  # of query pictures; a work file ends early when they reach this
PARTITIONS = 64  # queries are dealt out by their key, so that one part of all work files fits into memory
WORK_SCHEMA = pa.schema(
    [("query", pa.uint64()), ("row", pa.int64())]
    + [(event, pa.int64()) for event in EVENTS]
    + [("text", pa.string()), ("picture", pa.binary())]
)

ONE_EXPOSURE = (0, 0, 1)
UNKNOWN, AMBIGUOUS = -1, -2  # in place of a row
_NONE = np.empty(0, dtype=np.uint64)
UNKNOWN_EVENT, BROKEN_COUNT = "unknown_event", "broken_count"
LOG_REASONS = {
    "no_text_no_image": "neither a search text nor a picture that can be read",
    "no_product_id": "no product id, and no products that were shown",
    "unknown_product": "the product is not in the catalogue, or was dropped from it while it was cleaned",
    "ambiguous_product": "the name is an alias of several products, such as an SKU that two have",
    UNKNOWN_EVENT: "the event is none of a purchase, a click and an exposure",
    BROKEN_COUNT: "a count is no whole number or below 0, or the count of its one event is 0",
}


class LogCounts:
    """What became of the lines of a log.

    Attributes:
        lines: read.
        used: that count for something.
        dropped: why the others do not.
        notes: what used lines lost, such as an unreadable picture beside a text.
        events: kind -> how many, over all used lines.
    """

    def __init__(self) -> None:
        self.lines = self.used = 0
        self.dropped, self.notes = Tally(), Tally()
        self.events: Counter[str] = Counter()

    def as_json(self) -> dict[str, Any]:
        """What `merge` takes."""
        return {
            "lines": self.lines,
            "used": self.used,
            "dropped": self.dropped.as_json(),
            "notes": self.notes.as_json(),
            "events": {event: self.events[event] for event in EVENTS},
        }

    def merge(self, notes: Mapping[str, Any]) -> None:
        """Add what a work file notes."""
        self.lines += notes["lines"]
        self.used += notes["used"]
        self.dropped.merge(notes["dropped"])
        self.notes.merge(notes["notes"])
        self.events.update(notes["events"])


class Event(NamedTuple):
    """A cleaned line of a log.

    Args:
        place: of the line.
        text: of the query, "" for none.
        picture: of the query, b"" for none.
        product_id: "" where the line only says what was shown.
        counts: of purchases, clicks and exposures.
        shown: ids of the products that were shown.
    """

    place: str
    text: str
    picture: bytes
    product_id: str
    counts: tuple[int, int, int]
    shown: list[str]


class KnownProducts:
    """Which row of the catalogue stands for an id, or for another name of a product. An id goes before an alias.

    Args:
        id_keys: (N,) uint64 keys of the ids.
        kept_row: (N,) int64 row that stands for every row, its own or that of what it duplicates.
        alias_keys: (A,) uint64 keys of other names, such as the SKUs of variants.
        alias_of: (A,) uint64 key of the id, or of the alias, that each stands for.
    """

    def __init__(
        self, id_keys: np.ndarray, kept_row: np.ndarray, alias_keys: np.ndarray = _NONE, alias_of: np.ndarray = _NONE
    ) -> None:
        self.keys, first = np.unique(id_keys, return_index=True)
        self.rows = kept_row[first]
        new = ~np.isin(alias_keys, self.keys)
        alias_keys, alias_of = alias_keys[new], alias_of[new]
        ids, rows = self.keys, self.rows
        for _ in range(2):  # first those of ids, then also those of aliases
            of = self._find(alias_of)
            known = of != UNKNOWN
            names, meant = _one_row_each(alias_keys[known], of[known])
            order = np.argsort(np.r_[ids, names])
            self.keys, self.rows = np.r_[ids, names][order], np.r_[rows, meant][order]
            if known.all():
                break

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """(len(ids),) int64 rows, UNKNOWN for what is not in the catalogue, AMBIGUOUS for an alias of several rows."""
        return self._find(np.array([stable_key("product", product_id) for product_id in ids], dtype=np.uint64))

    def _find(self, keys: np.ndarray) -> np.ndarray:
        if not len(self.keys):
            return np.full(len(keys), UNKNOWN)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.rows[place], UNKNOWN)


def _one_row_each(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different keys, sorted, and the row of each; AMBIGUOUS where a key has several."""
    order = np.lexsort((rows, keys))
    keys, rows = keys[order], rows[order]
    keys, first, count = np.unique(keys, return_index=True, return_counts=True)
    return keys, np.where(rows[first] == rows[first + count - 1], rows[first], AMBIGUOUS)


def clean_event(
    row: RawRow,
    mapping: Mapping[str, Sequence[Column]],
    image_root: ImageRoot | None,
    max_side: int,
    default: int,
    notes: Tally,
) -> Event | Dropped:
    """Make an event of a line, or say why not.

    Args:
        row: of a log.
        mapping: field -> source columns, as `Source.mapping`.
        image_root: where relative image paths start and URLs are looked up; None: beside the row's file.
        max_side: pixels; longer pictures are made smaller.
        default: the kind of event where the log has no column for it.
        notes: takes what was lost on the way.
    """
    if row.error is not None:
        return Dropped(row.place, row.reason, clean_text(row.error, 200)[0])
    cell = {field: row.values.get(columns[0]) for field, columns in mapping.items()}
    text = clean_text(cell.get("text"), MAX_QUERY)[0]
    text = text if normalise_title(text) else ""
    picture = b""
    if cell.get("image"):
        pictures, problems = read_pictures([cell["image"]], row.folder, image_root, max_side)
        picture = pictures[0]["bytes"] if pictures else b""
        for reason, detail in problems:
            notes.add(reason, f"{row.place}: {detail}".removesuffix(": "))
    if not text and not picture:
        return Dropped(row.place, "no_text_no_image", "")

    shown = clean_ids(cell["shown"]) if cell.get("shown") else []
    product_id = next((found for column in mapping["product_id"] if (found := clean_id(row.values.get(column)))), "")
    if not product_id:
        if not shown:
            return Dropped(row.place, "no_product_id", "")
        return Event(row.place, text, picture, "", ONE_EXPOSURE, shown)
    if any(field in mapping for field in COUNT_FIELDS):
        return _summed_events(row, mapping, Event(row.place, text, picture, product_id, ONE_EXPOSURE, shown))
    kind = default
    if "event" in mapping:
        name = clean_text(cell["event"], 50)[0]
        kind = EVENT_NAMES.get(name.casefold().replace(" ", "_").replace("-", "_"), -1)
        if kind < 0:
            return Dropped(row.place, UNKNOWN_EVENT, repr(name))
    count = 1 if cell.get("count") in (None, "") else read_count(cell["count"])
    if not count:
        return Dropped(row.place, BROKEN_COUNT, clean_text(cell["count"], 50)[0])
    counts = tuple(count if number == kind else 0 for number in range(len(EVENTS)))
    return Event(row.place, text, picture, product_id, counts, shown)


def _summed_events(row: RawRow, mapping: Mapping[str, Sequence[Column]], event: Event) -> Event | Dropped:
    """The event with the counts of each kind; one exposure where all are 0 or blank."""
    counts = []
    for field in COUNT_FIELDS:
        cell = row.values.get(mapping[field][0]) if field in mapping else None
        count = 0 if is_nothing(cell) else read_count(cell)
        if count is None:
            return Dropped(row.place, BROKEN_COUNT, f"{field}: {clean_text(cell, 50)[0]}")
        counts.append(count)
    return event._replace(counts=tuple(counts)) if any(counts) else event


def read_log(
    source: Source,
    work: Path,
    known: KnownProducts,
    image_root: ImageRoot | None,
    max_side: int,
    default_event: str,
    progress: bool = True,
) -> LogCounts:
    """Read a log into work files, each with the sums over its lines; goes on after those that are there.

    Args:
        source: the log.
        work: folder of the work files.
        known: the products of the catalogue.
        image_root, max_side: as `clean_event` takes them.
        default_event: kind of every line where the log has no column for it.
        progress: show a bar.
    """
    counts, start, last = LogCounts(), 0, False
    done = written(work, WORK_NAME)
    for path in done:
        notes = read_notes(path)
        counts.merge(notes)
        start, last = notes["next"], notes["last"]
    paths = numbered(work, WORK_NAME)
    for _ in done:
        next(paths)
    default = EVENTS.index(default_event)
    with tqdm(total=source.num_rows, initial=start, unit=" lines", desc="log", disable=not progress) as bar:
        lines = (row for batch in source.batches(start) for row in batch) if not last else iter(())
        while not last:
            of_file = LogCounts()
            events: list[Event] = []
            pictures = 0
            last = True
            for row in lines:
                of_file.lines += 1
                event = clean_event(row, source.mapping, image_root, max_side, default, of_file.notes)
                if isinstance(event, Dropped):
                    of_file.dropped.add(event.reason_code, f"{event.place}: {event.detail}".removesuffix(": "))
                else:
                    events.append(event)
                    pictures += len(event.picture)
                if of_file.lines >= WORK_LINES or pictures >= WORK_BYTES:
                    last = False
                    break
                if of_file.lines % 1000 == 0:
                    bar.update(1000)
            bar.update(of_file.lines % 1000)
            start += of_file.lines
            table = _summed(events, known, of_file)
            _write_work_file(next(paths), table, of_file.as_json() | {"next": start, "last": last})
            counts.merge(of_file.as_json())
    return counts


def _summed(events: Sequence[Event], known: KnownProducts, counts: LogCounts) -> pa.Table:
    """The sums over events of each query and product, sorted by query; counts lines as used or dropped."""
    ids: dict[str, int] = {}
    queries: dict[int, tuple[str, bytes]] = {}
    key_of: dict[tuple[str, bytes], int] = {}
    rows: list[tuple[int, int, int, int, int]] = []  # query key, row of the product, counts of each kind
    for event in events:
        for product_id in (event.product_id, *event.shown):
            ids.setdefault(product_id, len(ids))
    row_of = known.find(list(ids)).tolist()
    for event in events:
        shown = [row for product_id in event.shown if (row := row_of[ids[product_id]]) >= 0]
        row = row_of[ids[event.product_id]]
        if row < 0 and (event.product_id or not shown):
            detail = f"{event.place}: {event.product_id or event.shown[0]}"
            counts.dropped.add("ambiguous_product" if row == AMBIGUOUS else "unknown_product", detail)
            continue
        counts.used += 1
        if len(shown) < len(event.shown):
            counts.notes.add("unknown_product_shown", event.place)
        query = (event.text, event.picture)
        key = key_of.get(query)
        if key is None:
            key = key_of[query] = _query_key(*query)
            queries.setdefault(key, query)
        if row >= 0:
            rows.append((key, row, *event.counts))
            counts.events.update(dict(zip(EVENTS, event.counts, strict=True)))
        rows.extend((key, row, *ONE_EXPOSURE) for row in shown)
        counts.events[EVENTS[EXPOSURE]] += len(shown)
    if not rows:
        return WORK_SCHEMA.empty_table()
    keys, *others = zip(*rows, strict=True)
    query, row = np.array(keys, dtype=np.uint64), np.array(others[0], dtype=np.int64)
    of_kind = np.array(others[1:], dtype=np.int64)  # (kinds, rows)
    order = np.lexsort((row, query))
    query, row, of_kind = query[order], row[order], of_kind[:, order]
    new = np.flatnonzero(np.r_[True, (query[1:] != query[:-1]) | (row[1:] != row[:-1])])
    sums = np.add.reduceat(of_kind, new, axis=1)
    query, row = query[new], row[new]
    first = np.r_[True, query[1:] != query[:-1]]
    said = [queries[key] if here else ("", b"") for key, here in zip(query.tolist(), first.tolist(), strict=True)]
    columns = [query, row, *sums, [text or None for text, _ in said], [picture or None for _, picture in said]]
    return pa.table(columns, schema=WORK_SCHEMA)


def _query_key(text: str, picture: bytes) -> int:
    shown = hashlib.blake2b(picture, digest_size=16).hexdigest() if picture else ""
    return stable_key("query", f"{normalise_title(text)}\x1f{shown}")


def _write_work_file(path: Path, table: pa.Table, notes: dict[str, Any]) -> None:
    """One row group for each partition that has rows; the footer says which is which."""
    writer = ShardWriter(path, WORK_SCHEMA)
    partition = table["query"].to_numpy() % np.uint64(PARTITIONS)
    groups = {}
    for number in np.unique(partition).tolist():
        groups[str(number)] = writer.row_groups
        writer.write(table.filter(pa.array(partition == number)))
    writer.close(notes | {"row_groups": groups})
