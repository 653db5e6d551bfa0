"""Inputs of the verbs that faults fall on, and the table of what came of it, printed at the end of a run."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import verbs
from faulty_runs import run
from verbs import Verb

from moon2_training.hub_folder import save_hub_folder
from moon2_training.mini import build_mini

COLUMNS = ("fault", "on", "injected", "lost", "wrong", "told")
LONGEST_MESSAGE = 160
TABLE = pytest.StashKey["FaultTable"]()


class FaultTable:
    """How often each fault fell on what, and what came of it."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter[str]] = {}
        self.messages: dict[tuple[str, str], str] = {}

    def add(self, fault: str, on: str, injected: int = 1, lost: int = 0, wrong: int = 0, told: str = "") -> None:
        """Count what came of a fault.

        Args:
            fault: what happened.
            on: what it fell on, such as a verb.
            injected: times.
            lost: of them, those after which something was missing or there twice.
            wrong: of them, those after which something differed, or was taken for whole and was not.
            told: the message.
        """
        key = fault, on
        self.counts.setdefault(key, Counter()).update(injected=injected, lost=int(lost), wrong=int(wrong))
        if told:
            self.messages.setdefault(key, told)

    def markdown(self) -> str:
        """The table."""
        rows = [COLUMNS, ["---", "---", "--:", "--:", "--:", "---"]]
        for (fault, on), counts in self.counts.items():
            told = " ".join(self.messages.get((fault, on), "").split()).replace("|", "\\|")
            told = told if len(told) <= LONGEST_MESSAGE else f"{told[:LONGEST_MESSAGE]}…"
            rows.append([fault, on, *(str(counts[name]) for name in ("injected", "lost", "wrong")), told])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = FaultTable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[TABLE].counts:
        terminalreporter.section("faults")
        terminalreporter.write_line(config.stash[TABLE].markdown())


@pytest.fixture(scope="session")
def table(pytestconfig) -> FaultTable:
    return pytestconfig.stash[TABLE]


@pytest.fixture(scope="session")
def inputs(shop, tmp_path_factory) -> Path:
    """Folder of what the verbs read; tests do not write there."""
    folder = tmp_path_factory.mktemp("inputs")
    verbs.write_products(shop.products, folder / "products")
    verbs.write_catalogue(folder / "catalogue")
    verbs.write_shop(folder / "shop")
    return folder


@pytest.fixture(scope="session")
def other_model(tiny_config, tmp_path_factory) -> Path:
    """Folder of an encoder with other random weights."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other")
    for part in build_mini(tiny_config, ["navy blue mug", "red shoes and a handbag"] * 20):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dense_source(save_dense) -> Path:
    """Folder of a dense Qwen3-VL."""
    return save_dense()[0]


@pytest.fixture(scope="session")
def hub_folder(tiny, tmp_path_factory) -> Path:
    """A saved model as a whole repository folder."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_hub_folder(folder, *tiny, {"notes": "Random weights."})
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    """The folder that verbs write to, always with the same path."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def make(inputs, saved_model, other_model, saved_shop, dense_source, place, tmp_path) -> Callable[[str], Verb]:
    """Makes a verb by its name; for those that change something, what is there before lies in `before`."""
    products, changed = (inputs / "products" / name for name in ("products.parquet", "changed.parquet"))
    before = tmp_path / "before"
    to_place = {"before": lambda place: shutil.copytree(before, place, dirs_exist_ok=True)}

    def put_before(verb: Verb) -> None:
        done = run(verb.argv, place, patches=verb.patches)
        assert done.code == 0, done.printed
        shutil.move(place, before)
        place.mkdir()

    def of(name: str) -> Verb:
        if name == "convert":
            return verbs.convert(dense_source, place)
        if name == "train":
            return verbs.train(saved_shop, place, "--resume_from_checkpoint", "last")
        if name == "train, again":
            put_before(verbs.train(saved_shop, place))
            return verbs.train(saved_shop, place, "--seed", "1")._replace(**to_place)
        if name == "augment":
            return verbs.augment(inputs / "catalogue", place)
        if name == "build-dataset":
            return verbs.build_dataset(inputs / "shop", place)
        if name == "encode":
            return verbs.encode(saved_model, products, place)
        if name == "encode, again":
            put_before(verbs.encode(saved_model, products, place))
            return verbs.encode(saved_model, changed, place)._replace(**to_place)
        if name == "encode, Lance":
            return verbs.encode_lance(saved_model, products, place)
        if name == "encode, Lance, again":
            put_before(verbs.encode_lance(saved_model, products, place))
            return verbs.encode_lance(saved_model, changed, place)._replace(**to_place)
        if name == "index":
            return verbs.index(saved_model, products, place)
        put_before(verbs.index(saved_model, products, place))
        if name == "index, again":
            return verbs.index(saved_model, changed, place, "--prune", "true")._replace(**to_place)
        return verbs.index(other_model, changed, place, "--reindex", "true")._replace(**to_place)

    return of
