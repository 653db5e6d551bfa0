"""Verbs that are killed at drawn points, and started again until they are done, end as if nothing had happened."""

from __future__ import annotations

import os

import faulty_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import verbs
from faulty_runs import WITHIN, Run, draw, run
from trials import clear, compared, killed_and_done, uninterrupted

SEED = 0
KILLS = int(os.environ.get("MOON2_KILLS", 20))  # of every verb
AGAIN = 3  # every so many runs are killed a second time


NAMES = ("convert", "train", "augment", "build-dataset", "encode", "encode, again", "encode, Lance",
         "encode, Lance, again", "index", "index, again", "index, other model")  # fmt: skip
CHEAP = ("convert", "index, again")  # others are killed in the tests of their own files too


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, 2) for name in CHEAP] + [pytest.param(name, KILLS, marks=pytest.mark.faults) for name in NAMES],
)
def test_killed_at_any_point_it_ends_as_if_nothing_had_happened(name, number, make, place, table):
    verb = make(name)
    whole, expected = uninterrupted(verb, place)
    further = draw(whole, number, SEED + 1)
    problems = []
    for count, fault in enumerate(draw(whole, number, SEED)):
        faults = [fault, further[count]] if count % AGAIN == AGAIN - 1 else [fault]
        lost, wrong = [], []
        try:
            killed, found = killed_and_done(verb, place, faults, expected)
            if not killed and fault.kind == WITHIN:  # no file was that large; half of any will do
                killed, found = killed_and_done(verb, place, [fault._replace(size=0)], expected)
            lost, wrong = compared(found, expected)
        except AssertionError as error:
            killed, wrong = 1, [str(error)]
        table.add("killed", name, killed, bool(lost), bool(wrong))
        problems += [f"{faults}: lost {lost}, wrong {wrong}"] * bool(lost or wrong)
    assert not problems, "\n".join(problems)


@pytest.mark.faults
def test_a_driver_of_ray_that_is_killed_goes_on(inputs, saved_model, place, table):
    """Ray starts and ends with its driver; of vectors the last digits depend on threads, so numbers are compared."""
    pytest.importorskip("ray", reason="ray is not installed")
    products = inputs / "products" / "products.parquet"
    expected = vectors_of(uninterrupted(verbs.encode(saved_model, products, place), place)[1])
    verb = verbs.encode(saved_model, products, place, "vectors", "--engine", "ray", "--ray_workers", "1")
    verb = verb._replace(halfway=lambda place, expected: None)
    whole, _ = uninterrupted(verb, place)
    problems = []
    for fault in draw(whole, KILLS, SEED):
        killed, found = killed_and_done(verb, place, [fault], {})
        lost, wrong = compared_numbers(vectors_of(found), expected)
        table.add("killed", "encode, Ray", killed, bool(lost), bool(wrong))
        problems += [f"{fault}: lost {lost}, wrong {wrong}"] * bool(lost or wrong)
    assert not problems, "\n".join(problems)


def vectors_of(files: dict) -> dict[str, dict]:
    """product_id -> the row, out of the Parquet files among some files."""
    tables = [pq.read_table(pa.BufferReader(content)) for name, content in files.items() if name.endswith(".parquet")]
    rows = pa.concat_tables(tables).to_pylist()
    assert len({row["product_id"] for row in rows}) == len(rows), "products are doubled"
    return {row["product_id"]: row for row in rows}


def compared_numbers(found: dict[str, dict], expected: dict[str, dict]) -> tuple[list[str], list[str]]:
    """As `compared`, with vectors that differ by less than 1e-5 taken for equal."""
    wrong = []
    for name in found.keys() & expected.keys():
        row, other = found[name], expected[name]
        vectors = [column for column in row if column.endswith("_vector")]
        same = all(
            (row[column] is None) == (other[column] is None)
            and (row[column] is None or np.allclose(row[column], other[column], atol=1e-5))
            for column in vectors
        )
        wrong += [name] * (not same or row["digest"] != other["digest"])
    return sorted(found.keys() ^ expected.keys()), sorted(wrong)


class DyingClient(list):
    """What the Hub is asked; when it is asked for the nth time the client dies, before that is done or after."""

    def __init__(self, at: int, is_done: bool) -> None:
        super().__init__()
        self.at, self.is_done, self.client = at, is_done, None

    def append(self, asked: str) -> None:
        super().append(asked)
        if len(self) == self.at:
            self.client.kill()
            if not self.is_done:
                raise ConnectionAbortedError


@pytest.mark.parametrize("number", [2, pytest.param(KILLS, marks=pytest.mark.faults)])
def test_a_push_that_is_killed_puts_the_whole_model_there_once(number, hub, hub_folder, place, table):
    (place.parent / "token").write_text("hf_fake")
    patches = {f"huggingface_hub.constants:{name}": value for name, value in (
        ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("ENDPOINT", hub.url),
        ("HF_TOKEN_PATH", str(place.parent / "token")))}  # fmt: skip
    verb = verbs.push(hub_folder, place)._replace(patches=patches)
    _, expected = uninterrupted(verb, place)
    pushed, requests = hub.repos.pop("me/encoder")["main"], len(hub.asked)
    problems, step = [], max(1, 2 * requests // number)
    for point in range(0, 2 * requests, step):
        clear(place)
        verb.before(place)
        hub.repos.clear()
        hub.committed.clear()
        hub.asked = DyingClient(point // 2 + 1, is_done=bool(point % 2))
        done = run(verb.argv, place, patches=patches, started=lambda process: setattr(hub.asked, "client", process))
        there = hub.repos.get("me/encoder", {"main": {}})["main"]
        half = done.was_killed and there.keys() - {".gitattributes"} and there != pushed
        hub.asked = []
        again = run(verb.argv, place, patches=patches)
        assert again.code == 0, again.printed
        there = hub.repos["me/encoder"]["main"]
        lost, wrong = compared(there, pushed)
        wrong += ["a part of it was there"] * bool(half) + ["sent twice"] * (len(hub.committed) != 1)
        wrong += compared(verb.outcome(place), expected)[1]
        table.add("killed", "push", int(done.was_killed), bool(lost), bool(wrong))
        problems += [f"request {point}: lost {lost}, wrong {wrong}"] * bool(lost or wrong)
    assert not problems, "\n".join(problems)


def test_the_drawn_points_are_spread_and_some_stand_behind_a_rename():
    whole = Run(0, ("open", "open", "os.rename") * 20, 3.0, "")
    faults = draw(whole, 20, seed=0)
    assert faults == draw(whole, 20, seed=0) != draw(whole, 20, seed=1)
    at = sorted(fault.at for fault in faults if fault.kind != faulty_runs.AFTER)
    assert 1 <= at[0] < 10 and 50 < at[-1] <= 60
    assert any(whole.changes[int(fault.at) - 2] == "os.rename" for fault in faults if fault.kind == faulty_runs.BEFORE)
