"""The versions of a Lance table: putting it together after a change, and deleting what nobody reads any more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lancedb.table import LanceTable

OLD_VERSIONS = timedelta(hours=1)  # that a reader may still have open
MARGIN, NEVER = timedelta(minutes=1), timedelta(days=36_500)


def compact(table: LanceTable) -> None:
    """Put small files together, have indexes take in what is new, and delete versions replaced over an hour ago.

    Args:
        table: to work on; no other writer may be at it.
    """
    table.optimize(cleanup_older_than=NEVER)
    written, now = [version["timestamp"] for version in table.list_versions()], datetime.now()
    if (age := age_of_replaced(written, now)) is not None:
        table.optimize(cleanup_older_than=age)


def age_of_replaced(written: Sequence[datetime], now: datetime) -> timedelta | None:
    """The age beyond which versions of a Lance table were replaced over an hour ago; None if none was.

    Lance counts from when a version was written. Its reader may have opened it just before it was replaced.

    Args:
        written: when each version was.
        now: the time on the same clock.
    """
    last = max((when for when in written if when <= now - OLD_VERSIONS), default=None)
    return None if last is None else now - last + MARGIN
