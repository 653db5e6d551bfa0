from __future__ import annotations

from pathlib import Path

from moon2_dataset.augment.report import counts_of, hints, markdown, summary
from moon2_dataset.shards import Tally


def report_of(**counts: int) -> dict:
    """A report of a run that counted this; "__" stands for ": "."""
    tally = Tally()
    for name, rows in counts.items():
        tally.add(name.replace("__", ": ").replace("_", " "), rows=rows)
    found = counts_of([{"tally": tally.as_json(), "numbers": {}}])
    rest = {"products": 9, "seconds": 1.0, "files": {"a.parquet": 9}, "left_out": [], "replaced_columns": []}
    return found | rest | {"made_from": {}}


def test_a_run_that_drops_most_of_its_variants_is_told_of():
    few = report_of(made__light=6, made__detail=4, dropped__under_the_original=5)
    assert hints(few) == []
    many = report_of(made__light=6, made__detail=4, dropped__under_the_original=4, dropped__under_the_threshold=2)
    (hint,) = hints(many)
    assert hint.startswith("6 of 10 variants were dropped: ") and "--score_margin" in hint
    assert f"- **{hint}**" in markdown(many, "out") and "**" not in markdown(few, "out")
    assert f"note: {hint}\n" in summary(many, Path("out.md"), Path("out.png"))


def test_a_model_whose_answers_are_cut_is_told_of():
    assert hints(report_of(title__the_answer_was_cut=1, title__enriched=9)) == []
    (hint,) = hints(report_of(title__the_answer_was_cut=2, title__enriched=8))
    assert hint.startswith("2 answers of the model about titles were cut") and "--thinking_tokens" in hint
    (hint,) = hints(report_of(box__the_answer_was_cut=2))
    assert "about boxes" in hint
