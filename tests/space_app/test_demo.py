from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from moon2_dataset import join
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_space.catalogue_folder import CatalogueFolder
from moon2_space.catalogue_index import CatalogueIndex
from moon2_space.demo import asked_examples, format_searches, made_examples, main, score, search_examples
from moon2_space.product_table import ProductTable
from moon2_space.search import CatalogueSearch
from moon2_space.search_sheet import Hit, Search
from moon2_training.encode import Encoder
from moon2_training.evaluate import evaluate
from moon2_training.mini import build_mini


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MOON2_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def run(data, saved_model, capsys):
    def command(*argv, space=False):
        main(["--model", str(saved_model), "--num_products", "24", *map(str, argv)] + ["--no_space"] * (not space))
        return capsys.readouterr().out

    return command


@pytest.fixture(scope="module")
def drawn():
    return join(*render_demo_catalogue(24, seed=0))


@pytest.fixture
def index(tiny, drawn, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", Encoder(*tiny))
    index.add(drawn.products)
    return index


@pytest.fixture
def catalogue(tmp_path, make_image):
    (tmp_path / "photos").mkdir()
    lines = ["id,title,image"]
    for number in range(6):
        make_image(number).save(tmp_path / f"photos/{number}.png")
        lines.append(f"{number},Nordvik blue mug number {number} with handle,photos/{number}.png")
    path = tmp_path / "shop.csv"
    path.write_text("\n".join([*lines, ",no id,", ""]))
    return path


def there(data):
    return ProductTable(CatalogueFolder(data).current())


def test_a_drawn_shop_is_indexed_scored_and_searched(run, data):
    printed = run()
    assert "24 products in the index, 24 of them encoded now" in printed
    assert all(f"\n{name} " in printed for name in ("t→mm", "i→mm", "mm→mm", "t→i", "i→t", "mean"))
    assert printed.count("a photo:\n") == 4 and printed.count("”:\n") == 2
    assert json.loads((data / "evaluation.json").read_text())["num_products"] == 24
    assert Image.open(data / "searches.png").width > 600
    assert f"The same as a picture: {data / 'searches.png'}" in printed


def test_a_second_start_encodes_nothing_and_another_shop_takes_the_first_one_s_place(run, data):
    run()
    first = CatalogueFolder(data).current()
    assert "24 products in the index, 0 of them encoded now" in run()
    assert "9 products in the index, 9 of them encoded now" in run("--num_products", "9", "--seed", "3")
    assert CatalogueFolder(data).current() == first and len(there(data)) == 9


def test_another_encoder_encodes_the_drawn_shop_anew(run, data, tiny_config, tmp_path):
    run()
    for part in build_mini(tiny_config, ["navy mug", "red shoes"] * 20):
        part.save_pretrained(tmp_path / "other")
    assert "24 products in the index" in run("--model", tmp_path / "other")
    assert CatalogueFolder(data).model() == str(tmp_path / "other")


def test_own_products_take_the_place_of_the_drawn_ones(run, data, catalogue):
    run()
    printed = run("--catalogue", catalogue)
    assert "6 added, 0 replaced" in printed and "1 rows left out" in printed and "no product id" in printed
    assert "No scores: they need queries" in printed and "t→mm" not in printed
    assert printed.count("a photo:\n") == 4 and "Nordvik blue mug number" in printed
    assert sorted(there(data).ids()) == list("012345") and not (data / "evaluation.json").exists()
    assert Image.open(data / "searches.png").width > 600


def test_own_products_are_never_given_up_for_the_drawn_shop(run, data, catalogue):
    run("--catalogue", catalogue)
    with pytest.raises(ValueError, match="6 products that the demo has not drawn, and keeps them; .* --data_dir FOLD"):
        run()
    assert sorted(there(data).ids()) == list("012345")
    assert "24 products in the index" in run("--data_dir", data.with_name("another"))


def test_drawn_products_that_somebody_gives_as_their_own_stay(run, data, drawn, tmp_path):
    run()
    drawn.products.select(range(5)).to_parquet(tmp_path / "mine.parquet")
    run("--catalogue", tmp_path / "mine.parquet")
    assert sorted(there(data).ids()) == drawn.products["product_id"][:5]


def test_columns_that_are_guessed_wrong_can_be_named(run, data, tmp_path):
    (tmp_path / "odd.csv").write_text("nr,x1,x2\n1,Red mug,blue\n2,Tea pot,red\n")
    run("--catalogue", tmp_path / "odd.csv", "--columns", "product_id=nr", "title=x1")
    assert {row["title"] for row in there(data).products(["1", "2"]).values()} == {"Red mug", "Tea pot"}


def test_a_catalogue_without_a_product_is_refused_and_changes_nothing(run, data, tmp_path):
    run()
    (tmp_path / "empty.csv").write_text("id,title\n1,\n")
    with pytest.raises(ValueError, match=r"empty\.csv: no product could be read"):
        run("--catalogue", tmp_path / "empty.csv")
    assert len(there(data)) == 24 and (data / "evaluation.json").exists()


def test_scores_of_an_index_are_those_of_its_encoder(index, tiny, drawn):
    ours, theirs = score(index, drawn), evaluate(*tiny, drawn.products, drawn.queries, progress=False)
    for key, result in theirs["retrieval"].items():
        assert ours["retrieval"][key]["mrr"]["value"] == pytest.approx(result["mrr"]["value"], abs=1e-6), key
        assert ours["retrieval"][key]["queries"] == result["queries"]
    assert ours["attributes"] == theirs["attributes"] and "items_per_second" not in ours


def test_each_form_of_query_is_searched_and_the_right_product_marked(index, drawn):
    examples = asked_examples(drawn)
    forms = [(example.query.text is not None, example.query.image is not None) for example in examples]
    assert forms == [(True, False)] * 2 + [(False, True)] * 2 + [(True, True)] * 2
    title_of = dict(zip(drawn.products["product_id"], drawn.products["title"], strict=True))
    searches = search_examples(CatalogueSearch(index.encoder, index), examples)
    for search, example in zip(searches, examples, strict=True):
        scores = [hit.score for hit in search.hits]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)
        assert [hit.right for hit in search.hits] == [hit.title == title_of[example.product_id] for hit in search.hits]
    assert any(hit.right for search in searches for hit in search.hits)


def test_queries_are_made_of_titles_and_pictures(index, drawn):
    examples = made_examples(index)
    titles = dict(zip(drawn.products["product_id"], drawn.products["title"], strict=True))
    assert [example.query.text is None for example in examples] == [False, False, True, True, False, False]
    assert [example.query.image is None for example in examples] == [True, True, False, False, False, False]
    for (query, product_id), again in zip(examples, made_examples(index), strict=True):
        assert (query.text, product_id) == (again.query.text, again.product_id)
        if query.text is not None:
            left = iter(titles[product_id].split())
            assert all(word in left for word in query.text.split())  # in their order
            assert len(query.text.split()) == (len(titles[product_id].split()) + 1) // 2
        if query.image is not None:
            assert query.image.tobytes() == again.query.image.tobytes()


def test_products_without_pictures_or_titles_make_the_queries_they_can(tiny, shop, tmp_path):
    picture = next(images for images in shop.products["images"] if images)
    index = CatalogueIndex.create(tmp_path / "index", Encoder(*tiny))
    index.add([{"product_id": "1", "title": "", "images": picture}, {"product_id": "2", "title": "Tea", "images": []}])
    asked = [(query.text, query.image is not None, product_id) for query, product_id in made_examples(index)]
    assert asked == [("Tea", False, "2"), (None, True, "1")]


def test_searches_as_text(make_image):
    hits = [Hit(make_image(0), "Red mug", 0.912, right=True), Hit(make_image(1), "Blue mug", 0.5)]
    text = format_searches([Search("mug", make_image(2), hits), Search(None, make_image(2), hits[1:])])
    assert text.splitlines() == ["“mug” + a photo:", "  →  0.91  Red mug", "     0.50  Blue mug", "a photo:",
                                 "     0.50  Blue mug"]  # fmt: skip


def test_the_space_opens_on_the_same_data_folder_at_the_end(run, data, monkeypatch):
    served = []
    app = SimpleNamespace(get_blocks=lambda: SimpleNamespace(block_thread=lambda: served.append("until interrupted")))

    def launch_space(options, *, block):
        served.append((CatalogueFolder(options.data_dir).current(), block))
        return app, "http://127.0.0.1:7860/"

    pytest.importorskip("gradio", reason="the Space needs gradio")
    monkeypatch.setattr("moon2_space.space.launch_space", launch_space)
    assert "The Space is open: http://127.0.0.1:7860/" in run(space=True)
    assert served == [(CatalogueFolder(data).current(), False), "until interrupted"]
    served.clear()
    assert "The Space" not in run() and not served


def test_without_gradio_all_but_the_space_is_there(saved_model, data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "moon2_space.space", raising=False)
    main(["--model", str(saved_model), "--num_products", "24"])
    printed = capsys.readouterr()
    assert "t→mm" in printed.out and "The same as a picture" in printed.out
    assert "The Space stays closed: " in printed.err and 'pip install "moon2[space]"' in printed.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--num_products", "0"], "num_products=0; give 1 or more"),
        (["--columns", "title=x"], "columns speak of a catalogue"),
        (["--catalogue", "nowhere.csv"], r"nowhere\.csv: no such file"),
    ],
)
def test_wrong_options_are_refused(run, options, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        run(*options)
