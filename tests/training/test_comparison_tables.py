from __future__ import annotations

import copy

import numpy as np
import pytest

from moon2_training.comparison import compare
from moon2_training.comparison_tables import as_markdown, as_text, comparison_tables
from moon2_training.encode import VIEWS, Views
from moon2_training.evaluate import evaluate_encoder

NAMES = ["first", "runs/" + "long-" * 8 + "name", "texts"]


class Guesser:
    """Random vectors: what is judged here is how scores are told."""

    def __init__(self, seed: int, takes_images: bool = True) -> None:
        self.rng, self.takes_images = np.random.default_rng(seed), takes_images

    def encode(self, items, view, progress):
        vectors = self.rng.standard_normal((len(items), 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_views(self, items, progress):
        has_text = np.array([bool(item["text"]) for item in items])
        has_image = np.array([bool(item["images"]) and self.takes_images for item in items])
        return Views(*(self.encode(items, view, progress) for view in VIEWS), has_text, has_image)


@pytest.fixture(scope="module")
def results(shop):
    queries = shop.queries.add_column("slice", ["a", *["a", "b"] * 11, "a"])
    encoders = (Guesser(0), Guesser(1), Guesser(2, takes_images=False))
    return [evaluate_encoder(encoder, shop.products, queries, per_query=True) for encoder in encoders]


@pytest.fixture(scope="module")
def differences(results):
    return {name: compare(result, results[0]) for name, result in zip(NAMES[1:], results[1:], strict=True)}


@pytest.fixture(scope="module")
def tables(results, differences):
    return comparison_tables(NAMES, results, differences)


def test_scores_of_every_model_chance_and_ceiling_stand_in_one_table(tables, results):
    scores = tables[0]
    assert scores.head == ["", "t→mm", "i→mm", "mm→mm", "t→i", "i→t", "mean", "leaf", "attributes", "colour"]
    assert [row[0] for row in scores.rows] == [*NAMES, "chance", "ceiling"]
    rows = {row[0]: dict(zip(scores.head, row, strict=True)) for row in scores.rows}
    retrieval, texts = results[0]["retrieval"], rows["texts"]
    assert rows["first"]["t→i"] == f"{100 * retrieval['t2i']['recall@10']['value']:.1f}"
    assert rows["chance"]["t→i"] == f"{100 * retrieval['t2i']['chance_recall@10']:.1f}"
    assert rows["ceiling"]["t→i"] == "100.0" and rows["ceiling"]["leaf"] == ""
    leaf = results[0]["classification"]["tasks"]["level_2"]
    assert rows["first"]["leaf"] == f"{100 * leaf['image_title']['accuracy']:.1f}"
    colour = results[2]["attributes"]["tasks"]["colour"]["title"]["accuracy"]
    assert texts["colour"] == texts["attributes"] == f"{100 * colour:.1f}"
    assert texts["i→mm"] == texts["mean"] == "–" != texts["t→mm"]


def test_a_difference_is_marked_only_where_its_interval_excludes_zero(results, differences):
    changed = copy.deepcopy(differences)
    of_second = changed[NAMES[1]]
    of_second["t2mm"] |= {"value": 0.05, "low": 0.012, "high": 0.08}
    of_second["i2mm"] |= {"value": -0.05, "low": -0.08, "high": -0.012}
    of_second["t2i"] |= {"value": 0.05, "low": 0.0, "high": 0.08}
    table = comparison_tables(NAMES, results, changed)[1]
    assert table.head == ["", *NAMES[1:]]
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["t→mm"][0] == "+5.0 [+1.2, +8.0] *"
    assert cells["i→mm"][0] == "−5.0 [−8.0, −1.2] *"
    assert cells["t→i"][0] == "+5.0 [+0.0, +8.0]  "
    assert cells["i→mm"][1] == cells["mean"][1] == "–"


def test_slices_are_told_for_every_model(tables, results):
    table = tables[2]
    assert table.title == "Recall@10 by slice"
    assert [row[0] for row in table.rows] == ["a", "", "", "", "b", "", "", ""]
    assert [row[1] for row in table.rows] == ["queries", *NAMES] * 2
    scores = results[1]["retrieval"]["t2mm"]["slices"]["slice"]["b"]
    assert table.rows[4][2] == str(scores["queries"])
    assert table.rows[6][2] == f"{100 * scores['recall@10']['value']:.1f}"
    assert table.rows[7][3] == "–"


def test_text_fits_a_hundred_columns_and_loses_nothing(results, tables):
    several = [f"{name}-{number}" for number in range(3) for name in NAMES]
    differences = {name: compare(results[1], results[0]) for name in several[1:]}
    for of_tables in (tables, comparison_tables(several, results * 3, differences)):
        text = as_text(of_tables)
        assert max(map(len, text.splitlines())) <= 100
        for table in of_tables:
            for row in table.rows:
                assert all(cell.strip()[-20:] in text for cell in row)
    assert text.count("t→mm  ") > 2  # the names of the rows are repeated in every part


def test_markdown_holds_the_same_cells_and_names_are_taken_literally(results, differences):
    names = ["a|b", *NAMES[1:]]
    text = as_markdown(comparison_tables(names, results, differences), "queries in products", "chart.png")
    assert text.startswith("# queries in products\n\n![Recall@10 by direction, with 95 % intervals](chart.png)\n")
    lines = text.splitlines()
    assert any(line.startswith("| a\\|b | ") for line in lines) and f"| {NAMES[1]} |" in text
    assert sum(line.startswith("| ---") for line in lines) == 3
    assert "![" not in as_markdown(comparison_tables(names, results, differences), "queries in products", None)


def test_one_model_has_no_differences(results):
    tables = comparison_tables(NAMES[:1], results[:1], {})
    assert [table.title for table in tables][1:] == ["Recall@10 by slice"]
