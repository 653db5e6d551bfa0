"""One thread makes a value anew while the others get the last one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from moon2_space.refreshed import Refreshed


def test_it_is_made_of_the_last_one_and_only_when_something_has_changed():
    version, made = [1], []
    value = Refreshed(lambda: version[0], lambda last: made.append(last) or len(made))
    assert [value.get(), value.get()] == [1, 1] and made == [None]
    version[0] = 2
    assert [value.get(), value.get()] == [2, 2] and made == [None, 1]


def test_others_get_the_last_one_while_it_is_made_anew():
    version, begun, go_on = [1], threading.Event(), threading.Event()

    def make(last):
        if last is not None:
            begun.set()
            assert go_on.wait(30)
        return version[0]

    value = Refreshed(lambda: version[0], make)
    assert value.get() == 1
    version[0] = 2
    with ThreadPoolExecutor() as threads:
        maker = threads.submit(value.get)
        assert begun.wait(30) and value.get() == 1
        go_on.set()
        assert maker.result() == 2
    assert value.get() == 2


def test_all_wait_for_the_first_and_it_is_made_once():
    made = []
    value = Refreshed(lambda: 1, lambda last: made.append(last) or "value")
    with ThreadPoolExecutor() as threads:
        assert set(threads.map(lambda _: value.get(), range(16))) == {"value"}
    assert made == [None]


def test_what_failed_is_tried_again():
    tries = []

    def make(last):
        tries.append(last)
        if len(tries) == 1:
            raise OSError("disk")
        return "value"

    value = Refreshed(lambda: 1, make)
    with pytest.raises(OSError, match="disk"):
        value.get()
    assert value.get() == "value"


def test_a_change_while_it_is_made_makes_it_due_again():
    version = [1]

    def make(last):
        version[0] += last is None
        return version[0]

    value = Refreshed(lambda: version[0], make)
    value.get()
    assert value.get() == 2 and value._held[0] == 2
