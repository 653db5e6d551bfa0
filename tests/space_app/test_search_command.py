from __future__ import annotations

import json

import pytest
from PIL import Image

from moon2_space.index_command import main as index
from moon2_space.search import SearchHit
from moon2_space.search_command import format_hits, main, parse_filters


@pytest.fixture(scope="module")
def data_dir(tiny, saved_shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    for part in tiny:
        part.save_pretrained(folder / "model")
    products = str(saved_shop / "products-train-0000*.parquet")
    for number in range(2):
        file = products.replace("*", str(number))
        index([file, "--model", str(folder / "model"), "--data_dir", str(folder / "data")])
    return folder / "data"


def test_a_table_is_printed_and_a_sheet_drawn(data_dir, tmp_path, capsys):
    main(["red mug", "--data_dir", str(data_dir), "--k", "3", "--output", str(tmp_path / "sheet.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "red mug:" and lines[1].split() == ["score", "words", "vectors", "title", "category", "id"]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"] and "Shop > " in lines[2]
    assert Image.open(tmp_path / "sheet.png").width > 500


def test_several_queries_as_json_with_filters(data_dir, capsys):
    main(["--text", "mug", "handbag", "--data_dir", str(data_dir), "--json", "true", "--category", "shop > MUG",
          "--attributes", "colour=red"])  # fmt: skip
    answers = json.loads(capsys.readouterr().out)
    assert [answer["query"] for answer in answers] == ["mug", "handbag"]
    for answer in answers:
        assert {hit["product_id"] for hit in answer["hits"]} == {"p3", "p9", "p15"}
        assert answer["hits"][0]["attributes"] == [{"name": "colour", "value": "red"}]
        assert set(answer["hits"][0]) == {"product_id", "title", "score", "similarity", "ranks", "category_path",
                                          "attributes"}  # fmt: skip


def test_a_picture_and_a_product_are_searched_for(data_dir, tmp_path, make_image, capsys):
    make_image(3).save(tmp_path / "photo.png")
    main(["--image", str(tmp_path / "photo.png"), "--data_dir", str(data_dir), "--k", "2"])
    assert "words" not in capsys.readouterr().out
    main(["--like", "p5", "--data_dir", str(data_dir), "--k", "2", "--output", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert printed.startswith("p5:") and " p5\n" not in printed


def test_wrong_options_are_refused(data_dir, tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    for argv, told in (([], "nothing to search for"), (["mug", "--like", "p1"], "like stands alone"),
                       (["mug", "--attributes", "red"], "'red'; give NAME=VALUE"),
                       (["--image", str(tmp_path / "page.png")], "a web page"),
                       (["--like", "nowhere"], "'nowhere' is not in the catalogue")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            main([*argv, "--data_dir", str(data_dir)])
    with pytest.raises(FileNotFoundError, match="no such picture"):
        main(["--image", str(tmp_path / "no.png"), "--data_dir", str(data_dir)])
    with pytest.raises(FileNotFoundError, match="no index there; make one with `moon2 index`"):
        main(["mug", "--data_dir", str(tmp_path / "empty")])


def test_filters_of_a_command_line():
    filters = parse_filters("Shoes > Boots", ["colour=red", "colour=dark red", "size=a=b"])
    assert (filters.category, filters.attributes) == (
        ("Shoes", "Boots"), {"colour": ("red", "dark red"), "size": ("a=b",)})  # fmt: skip
    assert not parse_filters(None, None)


def test_hits_as_a_table():
    hits = [SearchHit("p1", "A" * 61, 0.5, None, {"words": 1}, ["Shop", "mug"], [], None),
            SearchHit("p10", "Mug", 0.25, 0.1, {"words": 12, "vectors": 3}, [], [], None)]  # fmt: skip
    assert format_hits(hits).splitlines()[1:] == [
        f"1  0.500      1        –  {'A' * 59}…  Shop > mug  p1",
        f"2  0.250     12        3  Mug{' ' * 57}              p10",
    ]
    assert format_hits([]) == "  nothing found"
