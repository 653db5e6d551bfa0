"""The benchmark of approximate search measures what it says, and tells the same of a small table every time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import search

QUICK = ["--size", "1200", "--searches", "12", "--partition_rows", "60", "--indexes", "IVF_SQ", "IVF_FLAT"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Figures of a run, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", ["search.py", *QUICK, "--output", str(folder / "search.json")])
        search.main()
    return json.loads((folder / "search.json").read_text())


def test_every_index_is_made_and_searched_with_filters_and_additions(results):
    assert (results["products"], results["dimension"], results["queries"]) == (1200, 256, 12)
    built = {(row["index"], row["column"]): row for row in results["builds"]}
    assert list(built) == [
        ("IVF_SQ", "vector"),
        ("IVF_FLAT", "vector"),
        ("IVF_SQ", "first_64"),
        ("IVF_SQ", "first_128"),
    ]
    assert built["IVF_FLAT", "vector"]["bytes/product"] == pytest.approx(4 * 256 + 8, rel=0.1)
    assert built["IVF_SQ", "vector"]["bytes/product"] == pytest.approx(256 + 8, rel=0.1)
    rows = results["searches"]
    assert all(0 < row["p50 ms"] <= row["p95 ms"] and 0 < row["recall@10"] <= 1 for row in rows)
    everywhere = [row for row in rows if row["index"] == "IVF_FLAT, one category" and "nprobes all" in row["setting"]]
    assert [row["recall@10"] for row in everywhere] == [1.0]
    flat = [row["recall@10"] for row in rows if row["index"] == "IVF_FLAT"]
    assert flat == sorted(flat) and flat[0] < search.WANTED_RECALL <= flat[-1]
    told = {row["index"].split(",")[1].strip() for row in rows if "," in row["index"]}
    assert {"asynchronous client", "one category", "1% not indexed", "1% taken in"} <= told


def test_vectors_of_a_catalogue_are_kept_and_multiplied_among_their_neighbours(tmp_path):
    rng = np.random.default_rng(1)
    vectors = search.normalised(np.repeat(rng.normal(size=(6, 32)), 40, axis=0) + 0.1 * rng.normal(size=(240, 32)))
    np.savez(tmp_path / "v.npz", products=vectors, categories=np.repeat(np.arange(6), 40), queries=vectors[::10])
    made = search.catalogue_vectors(tmp_path / "v.npz", 1000, 7)
    np.testing.assert_array_equal(made.products[:240], vectors)
    np.testing.assert_allclose(np.linalg.norm(made.products, axis=1), 1, atol=1e-5)
    assert (
        made.products.shape == (1000, 32) and len(made.queries) == 7 and len(np.unique(made.products, axis=0)) == 1000
    )
    nearest = np.argmax(made.products[240:] @ vectors.T, axis=1)
    assert np.mean(nearest // 40 == made.categories[240:]) > 0.95  # among its own kind
    assert search.catalogue_vectors(tmp_path / "v.npz", 100, 7).products.shape == (100, 32)


def test_rounded_to_bytes_the_same_is_found(tmp_path):
    vectors = search.clustered_vectors(800, 10)
    bench = search.Bench(tmp_path, vectors, partition_rows=100)
    bench.build("IVF_SQ", "first_128")
    everywhere = {"nprobes": 8}
    exactly, rounded = (bench._prefix(everywhere, 128, as_bytes)["recall@10"] for as_bytes in (False, True))
    assert exactly >= rounded > exactly - 0.1 and exactly > 0.8


def test_a_table_of_figures_is_markdown():
    rows = [{"index": "IVF_SQ", "recall@10": 0.98765, "p50 ms": 1234.56}]
    assert search.markdown(rows) == "| index | recall@10 | p50 ms |\n|---|---|---|\n| IVF_SQ | 0.988 | 1,234.6 |"
