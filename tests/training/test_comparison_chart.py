from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from PIL import Image

from moon2_training.comparison_chart import draw_comparison_chart, write_comparison_chart
from moon2_training.retrieval import DIRECTIONS


def result(seed: int, missing: tuple[str, ...] = ()) -> dict:
    rng = np.random.default_rng(seed)
    retrieval = {}
    for key, name, *_ in DIRECTIONS:
        low, value, high = np.sort(rng.random(3)).tolist()
        retrieval[key] = {"name": name, "chance_recall@10": 0.1, "ceiling_recall@10": 0.9,
                          "recall@10": {"value": value, "low": low, "high": high}}  # fmt: skip
        if key in missing:
            retrieval[key] = {"name": name, "skipped": "no query"}
    return {"num_queries": 1234, "num_products": 56, "retrieval": retrieval}


def bars(axes) -> list[tuple[float, float, str]]:
    return [(bar.get_x(), bar.get_height(), to_hex(bar.get_facecolor())) for bar in axes.patches]


def test_every_score_is_a_bar_with_its_whisker_and_each_model_has_a_colour():
    results = [result(0), result(1, missing=("i2mm", "i2t"))]
    figure = draw_comparison_chart(["mine", "theirs"], results)
    (axes,) = figure.axes
    drawn = bars(axes)
    shares = [[r["recall@10"]["value"] for r in of["retrieval"].values() if "recall@10" in r] for of in results]
    assert [height for _, height, _ in drawn] == pytest.approx([100 * share for of in shares for share in of])
    colours = [colour for *_, colour in drawn]
    assert colours == ["#0072b2"] * 5 + ["#e69f00"] * 3
    lefts = [left for left, *_ in drawn]
    assert lefts[5] > lefts[0] and lefts == sorted(lefts[:5]) + sorted(lefts[5:])
    whiskers = [segment for container in axes.containers if isinstance(container, ErrorbarContainer)
                for segment in container.lines[2][0].get_segments()]  # fmt: skip
    ends = [[100 * r["recall@10"][end] for end in ("low", "high")]
            for of in results for r in of["retrieval"].values() if "recall@10" in r]  # fmt: skip
    np.testing.assert_allclose([[low[1], high[1]] for low, high in whiskers], ends)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mine", "theirs", "chance", "ceiling"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [direction.name for direction in DIRECTIONS]


def test_chance_and_ceiling_are_marked_in_every_direction_that_any_model_was_scored_in():
    results = [result(0, missing=("i2mm", "t2i")), result(1, missing=("t2i",))]
    (axes,) = draw_comparison_chart(["a", "b"], results).axes
    marked = [line.get_segments() for line in axes.collections if len(line.get_segments()) == 4]
    heights = [{round(end[1], 6) for segment in segments for end in segment} for segments in marked]
    assert {10.0} in heights and {90.0} in heights


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_models_is_drawn(tmp_path, count):
    path = tmp_path / "chart.png"
    write_comparison_chart([f"model {n}" for n in range(count)], [result(n) for n in range(count)], path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width <= 16.5 * 150
    assert list(tmp_path.iterdir()) == [path]
    (axes,) = draw_comparison_chart([f"model {n}" for n in range(count)], [result(n) for n in range(count)]).axes
    assert len({colour for *_, colour in bars(axes)}) == count


def test_where_nothing_was_scored_the_chart_is_empty():
    (axes,) = draw_comparison_chart(["a"], [result(0, missing=tuple(d.key for d in DIRECTIONS))]).axes
    assert not bars(axes)


def test_without_matplotlib_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"the chart needs matplotlib; pip install 'moon2\[space\]'"):
        write_comparison_chart(["a"], [result(0)], tmp_path / "chart.png")
    assert not list(tmp_path.iterdir())
