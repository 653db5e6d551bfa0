from __future__ import annotations

from datetime import datetime

from moon2_training import lance_versions


def test_a_version_goes_an_hour_after_it_was_replaced_however_old_it_is():
    written = [datetime(2026, 3, day, 12) for day in (1, 2, 3)] + [datetime(2026, 3, 3, 12, 30)]
    at = {  # of the 1st to the 3rd, the last of all is never removed
        datetime(2026, 3, 1, 12, 30): None,  # nothing was replaced
        datetime(2026, 3, 2, 12, 30): datetime(2026, 3, 1, 12),
        datetime(2026, 3, 3, 12, 45): datetime(2026, 3, 2, 12),
        datetime(2026, 3, 3, 13, 15): datetime(2026, 3, 3, 12),
        datetime(2026, 3, 3, 13, 45): datetime(2026, 3, 3, 12, 30),
    }
    for moment, oldest in at.items():
        age = lance_versions.age_of_replaced([when for when in written if when <= moment], moment)
        assert age == (None if oldest is None else moment - oldest + lance_versions.MARGIN)
