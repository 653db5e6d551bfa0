"""Which column of a behaviour log is what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .column_names import LOG_NAMES
from .column_sample import ColumnSample, Found, find_by_name, is_number

LOG_FIELDS = ("query_id", "text", "image", "product_id", "event", "count", "shown", "timestamp")
EVENT_WORDS = set("click clicked purchase purchased buy bought order exposure exposed impression view show shown cart "
                  "add_to_cart addtocart pv fav transaction".split())  # fmt: skip


def guess_log_columns(free: dict[str, ColumnSample], fields: Sequence[str]) -> list[Found]:
    """Find a column for each of these fields of a log.

    Args:
        free: the columns that may be taken; those that are found are taken out.
        fields: of `LOG_FIELDS`.
    """
    tests: dict[str, Callable[[ColumnSample], bool]] = {
        "text": lambda s: s.plain and s.images < 0.5,
        "image": lambda s: s.images >= 0.5,
        "event": lambda s: s.plain and s.length < 30,
        "count": lambda s: s.plain and s.share(is_number) > 0.9,
        "product_id": lambda s: s.plain and s.images < 0.5,
    }
    found = []
    for field in ("event", "product_id", "query_id", "text", "image", "shown", "count", "timestamp"):
        if field not in fields:
            continue
        guess = find_by_name(field, LOG_NAMES[field], free, tests.get(field, lambda s: True))
        if guess is None and field == "event":
            for column, s in free.items():
                if s.count and s.share(lambda value: str(value).casefold() in EVENT_WORDS) > 0.9:
                    guess = [column], "its values are names of events"
                    break
        if guess:
            found.append(Found(field, tuple(guess[0]), guess[1]))
            free.pop(guess[0][0])
    return found
