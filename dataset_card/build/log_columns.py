"""Which column of a behaviour log is what, and what a number in it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .column_names import LOG_NAMES, name_words
from .column_sample import Column, ColumnSample, Found, find_by_name, is_number

COUNT_FIELDS = ("purchases", "clicks", "exposures")  # of lines that sum events up: how many there were of each
LOG_FIELDS = ("query_id", "text", "image", "product_id", "event", "count", *COUNT_FIELDS, "shown", "timestamp")
EVENT_WORDS = set("click clicked purchase purchased buy bought order exposure exposed impression view show shown cart "
                  "add_to_cart addtocart pv fav transaction".split())  # fmt: skip
JUDGEMENT_WORDS = set("relevance relevancy label rating grade score judgement judgment esci".split())
MAX_COUNT = 10**12
# In this order: what is found first is no longer free. Views are clicks only where something else are exposures.
_SOUGHT = ("event", "product_id", "query_id", "text", "image", "shown", *COUNT_FIELDS[::-1], "count", "timestamp")


def guess_log_columns(free: dict[str, ColumnSample], fields: Sequence[str]) -> list[Found]:
    """Find a column for each of these fields of a log.

    A line is one event, several of a kind with `count`, or the sums of `COUNT_FIELDS`: what a given field says of that
    is not guessed otherwise.

    Args:
        free: the columns that may be taken; those that are found are taken out.
        fields: of `LOG_FIELDS`, those that are not given.
    """
    tests: dict[str, Callable[[ColumnSample], bool]] = {
        "text": lambda s: s.plain and s.images < 0.5,
        "image": lambda s: s.images >= 0.5,
        "event": lambda s: s.plain and s.length < 30,
        "count": lambda s: s.plain and s.share(is_number) > 0.9,
        **dict.fromkeys(COUNT_FIELDS, lambda s: s.share(lambda value: read_count(value) is not None) > 0.9),
        "product_id": lambda s: s.plain and s.images < 0.5,
        "shown": lambda s: s.share(is_number) <= 0.9 or s.column.casefold().endswith(("id", "ids")),
    }
    found: dict[str, Found] = {}
    summed = any(field not in fields for field in COUNT_FIELDS)
    named = not {"event", "count"} <= set(fields)
    for field in _SOUGHT:
        if field not in fields or (field in ("event", "count") and summed) or (field in COUNT_FIELDS and named):
            continue
        # A blank column alone says nothing; beside one with numbers, its events are rare.
        said = {column: s for column, s in free.items() if s.count} if field in COUNT_FIELDS and not summed else free
        guess = find_by_name(field, LOG_NAMES[field], said, tests.get(field, lambda s: True))
        if guess is None and field == "event":
            for column, s in free.items():
                if s.count and s.share(lambda value: str(value).casefold() in EVENT_WORDS) > 0.9:
                    guess = [column], "its values are names of events"
                    break
        if guess:
            found[field] = Found(field, tuple(guess[0]), guess[1])
            free.pop(guess[0][0])
            named |= field == "event"
            summed |= field in COUNT_FIELDS
    return list(found.values())


def refuse_unclear_events(
    mapping: Mapping[str, Sequence[Column]], unused: Sequence[ColumnSample], event_given: bool, name: str
) -> None:
    """Refuse a log whose lines are events of two ways to tell them, or may be no events at all.

    Args:
        mapping: field → its columns.
        unused: the columns that no field has.
        event_given: the user said where the event is, or that no column tells it.
        name: what messages call the log.

    Raises:
        ValueError: naming the columns and the way out.
    """
    summed = [field for field in COUNT_FIELDS if field in mapping]
    single = [field for field in ("event", "count") if field in mapping]
    if summed and single:
        raise ValueError(
            f"{name}: {' and '.join(summed)} each count one event of a line, {' and '.join(single)} would tell it "
            f"again; leave out one or the other of log_columns"
        )
    if summed or event_given or "event" in mapping:
        return
    for column in unused:
        if JUDGEMENT_WORDS & set(name_words(column.column)) and column.plain and column.length < 30:
            raise ValueError(
                f"{name}: the column {column.column!r} looks like a judgement, and nothing tells a line's event; "
                f"if 0 says there that a product is not meant, and whole numbers how much it is, give --log_columns "
                f"purchases={column.column!r}; if every line is meant, or after the others are taken out, give "
                "--log_columns event="
            )


def read_count(cell: Any) -> int | None:
    """A whole number from 0 on, 1 and 0 for a flag; None for anything else."""
    if isinstance(cell, str):
        cell = {"true": 1, "false": 0}.get(cell.strip().casefold(), cell)
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    whole = math.isfinite(number) and number == int(number) and 0 <= number <= MAX_COUNT
    return int(number) if whole else None
