from __future__ import annotations

import json

import pytest
from PIL import Image
from transformers import AutoModel

from moon2_space.demo import format_searches, main, search_held_out
from moon2_space.search_sheet import Hit, Search
from moon2_training.encode import Encoder


def test_the_command_draws_trains_scores_and_searches(tmp_path, capsys):
    main(["--output_dir", str(tmp_path), "--num_products", "80", "--num_train_epochs", "1"])
    printed = capsys.readouterr().out
    assert "64 products with" in printed and "mm→mm" in printed and "colour" in printed
    assert "Searches among products never seen in training" in printed and printed.count(":\n") >= 6
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["num_products"] == 16 and results["training"]["steps"] > 0
    assert Image.open(tmp_path / "searches.png").width > 600
    assert AutoModel.from_pretrained(tmp_path).config.text_config.num_experts == 4


def test_each_form_of_query_is_searched_and_the_right_product_marked(tiny, shop):
    searches = search_held_out(Encoder(*tiny), shop)
    forms = [(search.text is not None, search.photo is not None) for search in searches]
    assert forms[:2] == [(True, False), (True, False)] and (False, True) in forms and (True, True) in forms
    for search in searches:
        scores = [hit.score for hit in search.hits]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)
        assert sum(hit.right for hit in search.hits) <= 1


def test_searches_as_text(make_image):
    hits = [Hit(make_image(0), "Red mug", 0.912, right=True), Hit(make_image(1), "Blue mug", 0.5)]
    text = format_searches([Search("mug", make_image(2), hits), Search(None, make_image(2), hits[1:])])
    assert text.splitlines() == ["“mug” + a photo:", "  →  0.91  Red mug", "     0.50  Blue mug", "a photo:",
                                 "     0.50  Blue mug"]  # fmt: skip


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_products=3; give 48 or more"):
        main(["--output_dir", str(tmp_path), "--num_products", "3"])
