from __future__ import annotations

import io
import json
import sys

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image

from moon2_dataset import PRODUCT_FEATURES, QUERY_FEATURES, SchemaError
from moon2_training.encode import Encoder
from moon2_training.evaluate import evaluate, evaluate_encoder, format_table, main, write_json
from moon2_training.items import ProductItems

COLOURS = ("red", "navy blue", "white")
KINDS = ("mug", "running shoes", "leather handbag", "mug")


@pytest.fixture(scope="module")
def tables(make_image):
    """Twelve products, one without title, one without image, two with one title; queries of every make."""

    def picture(seed: int) -> dict:
        file = io.BytesIO()
        make_image(seed, 40 + seed % 5, 50).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    products, queries = [], []
    for row in range(12):
        colour, kind = COLOURS[row % 3], KINDS[row // 3]
        products.append(
            {
                "product_id": f"p{row}",
                "title": "" if row == 4 else f"Lumo {colour} {kind}",
                "description": "never read",
                "category_path": ["Shop", kind, f"{kind} {colour}"][: 3 - row % 2],
                "attributes": [{"name": "colour", "value": colour}, {"name": "sku", "value": "one"}],
                "images": [] if row == 5 else [picture(row), picture(row + 50)][: 1 + row % 2],
            }
        )
        queries.append(
            {
                "query_id": f"q{row}",
                "text": None if row == 7 else f"{colour} {kind}",
                "image": None if row == 8 else picture(row),
                "product_id": f"p{row}",
                "grade": 1.0,
            }
        )
    # one query of three rows: it looks and reads like p6, its third positive, in the first row's picture
    looks = {"query_id": "several", "text": products[6]["title"]}
    for number, (product_id, grade) in enumerate((("p0", 2), ("p1", 1), ("p6", 3))):
        queries.append(looks | {"image": picture(6 + number), "product_id": product_id, "grade": grade})
    features = Features({**QUERY_FEATURES, "grade": Value("float64")})
    return Dataset.from_list(products, features=PRODUCT_FEATURES), Dataset.from_list(queries, features=features)


@pytest.fixture(scope="module")
def results(tiny_model, tiny_processor, tables):
    return evaluate(tiny_model, tiny_processor, *tables, batch_size=5, progress=False)


def test_results_can_be_written_as_json_and_read_back(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["items_per_second"] > 0 and results["seconds"] > 0
    assert set(results["versions"]) == {"moon2", "torch", "transformers"}
    assert (results["device"], results["dtype"], results["batch_size"]) == ("cpu", "float32", 5)


def test_every_direction_is_scored_on_the_items_that_have_the_views(results):
    assert results["num_products"] == 12
    assert results["num_queries"] == 13
    retrieval = results["retrieval"]
    assert {key: (r["queries"], r["candidates"]) for key, r in retrieval.items()} == {
        "t2mm": (12, 12),
        "i2mm": (12, 12),
        "mm2mm": (11, 12),
        "t2i": (11, 11),
        "i2t": (11, 11),
    }
    for result in retrieval.values():
        for metric in ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10"):
            assert 0 <= result[metric]["low"] <= result[metric]["value"] <= result[metric]["high"] <= 1
    mean = np.mean([result["recall@10"]["value"] for result in retrieval.values()])
    assert results["mean_recall@10"] == pytest.approx(mean)


def test_rows_of_one_query_are_one_query_with_several_right_products(tiny_model, tiny_processor, tables):
    products, queries = tables
    several = queries.filter(lambda query_id: query_id == "several", input_columns="query_id")
    found = evaluate(tiny_model, tiny_processor, products, several, progress=False)["retrieval"]["mm2mm"]
    assert found["queries"] == 1
    assert found["recall@1"]["value"] == 1.0  # p6 is the same title and picture
    assert found["chance_recall@10"] == 1.0  # ten of twelve hold one of three
    alone = evaluate(tiny_model, tiny_processor, products, several.select([0]), progress=False)["retrieval"]["mm2mm"]
    assert alone["recall@1"]["value"] == 0.0
    # the gains 3, 2, 1 at the ranks of p6, p0, p1
    views = Encoder(tiny_model, tiny_processor).encode_views(ProductItems(products), progress=False)
    order = np.argsort(-views.multimodal @ views.multimodal[6]).tolist()
    gains = {6: 3.0, 0: 2.0, 1: 1.0}
    gain = sum(gains.get(row, 0.0) / np.log2(2 + rank) for rank, row in enumerate(order[:10]))
    ideal = sum(grade / np.log2(2 + rank) for rank, grade in enumerate((3.0, 2.0, 1.0)))
    assert found["ndcg@10"]["value"] == pytest.approx(gain / ideal)


def test_scores_of_the_single_queries_are_told_when_asked_for(tiny_model, tiny_processor, tables, results):
    encoder = Encoder(tiny_model, tiny_processor, batch_size=5)
    found = evaluate_encoder(encoder, *tables, progress=False, per_query=True)
    per_query = found.pop("per_query")
    assert json.loads(json.dumps(per_query)) == per_query
    assert found["retrieval"] == results["retrieval"] and "per_query" not in results
    assert set(per_query) == set(found["retrieval"])
    for direction, of_direction in per_query.items():
        result = found["retrieval"][direction]
        assert len(set(of_direction["query_ids"])) == len(of_direction["query_ids"]) == result["queries"]
        assert np.mean(of_direction["recall@10"]) == pytest.approx(result["recall@10"]["value"])
    assert "q7" not in per_query["t2mm"]["query_ids"] and "q7" in per_query["i2mm"]["query_ids"]
    assert per_query["t2mm"]["query_ids"][-1] == "several"


def test_queries_that_are_the_same_lower_the_ceiling(tiny_model, tiny_processor, tables):
    products, queries = tables
    same = queries.select(range(12)).map(lambda _: {"text": "mug"})
    retrieval = evaluate(tiny_model, tiny_processor, products, same, progress=False)["retrieval"]
    assert retrieval["t2mm"]["ceiling_recall@10"] == 10 / 12  # twelve products, ten places
    assert retrieval["t2i"]["ceiling_recall@10"] == 10 / 11
    assert retrieval["mm2mm"]["ceiling_recall@10"] == retrieval["i2t"]["ceiling_recall@10"] == 1.0


def test_queries_equal_to_their_products_are_found(results):
    assert results["retrieval"]["mm2mm"]["recall@10"]["value"] > results["retrieval"]["mm2mm"]["chance_recall@10"]


def test_classification_and_attributes_name_what_is_left_out(results):
    classification, attributes = results["classification"], results["attributes"]
    assert set(classification["tasks"]) == {"level_2", "level_3"} and set(classification["left_out"]) == {"level_1"}
    assert set(attributes["tasks"]) == {"colour"} and set(attributes["left_out"]) == {"sku"}
    colour = attributes["tasks"]["colour"]
    assert colour["labels"] == 3
    assert [colour[of]["products"] for of in ("image_title", "title", "image")] == [10, 11, 11]
    assert colour["title"]["majority_accuracy"] == pytest.approx(4 / 11)


def test_labels_are_judged_by_their_text(tiny_model, tiny_processor, tables, results):
    products, _ = tables
    encoder = Encoder(tiny_model, tiny_processor)
    labels = encoder.encode([{"text": colour, "images": []} for colour in sorted(COLOURS)], "text", progress=False)
    titled = [row for row in range(12) if products[row]["title"]]
    items = [ProductItems(products)[row] for row in titled]
    guesses = (encoder.encode(items, "text", progress=False) @ labels.T).argmax(axis=1)
    right = [sorted(COLOURS)[guess] == COLOURS[row % 3] for row, guess in zip(titled, guesses, strict=True)]
    assert results["attributes"]["tasks"]["colour"]["title"]["accuracy"] == pytest.approx(np.mean(right))


def test_table_fits_a_hundred_columns_and_shows_every_number(results):
    table = format_table(results)
    assert max(map(len, table.splitlines())) <= 100
    for name in ("t→mm", "i→mm", "mm→mm", "t→i", "i→t", "level_2", "colour", "sku", "left out"):
        assert name in table
    line = next(line for line in table.splitlines() if line.startswith("mm→mm")).split()
    scores = results["retrieval"]["mm2mm"]
    assert line[-3] == f"{100 * scores['ceiling_recall@10']:.1f}"
    assert line[:6] == ["mm→mm", "11", "12"] + [f"{100 * scores[f'recall@{k}']['value']:.1f}" for k in (1, 5, 10)]


def sliced(queries: Dataset, **columns: list) -> Dataset:
    for name, values in columns.items():
        queries = queries.add_column(name, values)
    return queries


NEEDS = [
    "image",
    None,
    "text",
    " ",
    "text",
    "image",
    "text",
    "image",
    "text",
    "image",
    "text",
    "image",
    "text",
    "a",
    "b",
]


def test_queries_with_a_slice_column_are_also_scored_by_it(tiny_model, tiny_processor, tables, results, monkeypatch):
    products, queries = tables
    passes = []
    forward = Encoder.encode_views
    monkeypatch.setattr(Encoder, "encode_views", lambda *args: passes.append(len(args[1])) or forward(*args))
    found = evaluate(tiny_model, tiny_processor, products, sliced(queries, slice=NEEDS), batch_size=5, progress=False)
    assert passes == [12, 13]  # products and queries once each
    for direction, result in found["retrieval"].items():
        by_label = result.pop("slices")["slice"]
        assert result == results["retrieval"][direction]
        assert sum(scores["queries"] for scores in by_label.values()) == result["queries"]
        total = sum(scores["queries"] * scores["recall@10"]["value"] for scores in by_label.values())
        assert total == pytest.approx(result["queries"] * result["recall@10"]["value"])
        assert not {"a", "b"} & set(by_label)  # the query of three rows is in the slice of its first
        for scores in by_label.values():
            assert 0 <= scores["recall@10"]["low"] <= scores["recall@10"]["value"] <= scores["recall@10"]["high"] <= 1
    # i→t leaves out q4, a "text", whose product has no title, and q8, a "text", which has no picture
    counts = {label: scores["queries"] for label, scores in by_label.items()}
    assert counts == {"image": 5, "text": 4, "none": 2}
    assert found["mean_recall@10"] == results["mean_recall@10"]


def test_each_slice_is_what_its_queries_alone_score(tiny_model, tiny_processor, tables):
    products, queries = tables
    queries = queries.select(range(12))
    wrong = [row % 3 == 0 for row in range(12)]
    both = sliced(queries, label_noise=wrong, slice=NEEDS[:12])
    found = evaluate(tiny_model, tiny_processor, products, both, progress=False, slice_by=["label_noise"])
    for noise in (True, False):
        rows = [row for row in range(12) if wrong[row] == noise]
        alone = evaluate(tiny_model, tiny_processor, products, queries.select(rows), progress=False)
        for direction, result in alone["retrieval"].items():
            assert set(found["retrieval"][direction]["slices"]) == {"label_noise"}
            scores = found["retrieval"][direction]["slices"]["label_noise"]["true" if noise else "false"]
            assert scores == {name: result[name] for name in ("queries", "recall@10")}


def test_slices_are_told_under_the_retrieval_table(tiny_model, tiny_processor, tables):
    products, queries = tables
    queries = sliced(queries, slice=NEEDS, label_noise=[row % 2 == 0 for row in range(15)])
    found = evaluate(tiny_model, tiny_processor, products, queries, progress=False, slice_by=["slice", "label_noise"])
    table = format_table(found)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    mean = next(number for number, line in enumerate(lines) if line.startswith("mean"))
    assert lines[mean + 2] == "R@10 by label_noise, and the number of queries"
    assert lines[mean + 3].split() == ["t→mm", "i→mm", "mm→mm", "t→i", "i→t"]
    assert [line.split()[0] for line in lines[mean + 4 : mean + 6]] == ["false", "true"]
    cells = next(line for line in lines if line.startswith("image ")).split()
    scores = found["retrieval"]["t2mm"]["slices"]["slice"]["image"]
    assert cells[1:3] == [f"{100 * scores['recall@10']['value']:.1f}", f"({scores['queries']})"]
    assert lines.index("R@10 by slice, and the number of queries") < lines.index(
        next(line for line in lines if line.startswith("Product classification"))
    )


def test_a_column_that_cannot_be_sliced_by_is_refused_before_anything_is_encoded(tables):
    products, queries = tables
    queries = sliced(queries, label_noise=[True] * 15, price=[1.5] * 15, session=[str(row) for row in range(15)])
    for column in ("elsewhere", "price", "text"):
        with pytest.raises(ValueError, match=f"slice_by={column}: .*give one of label_noise, session$"):
            evaluate(None, None, products, queries, slice_by=[column])
    with pytest.raises(ValueError, match="slice_by=elsewhere: .*give one of your own"):
        evaluate(None, None, products, tables[1], slice_by=["elsewhere"])


def test_a_direction_without_queries_leaves_no_mean(tiny_model, tiny_processor, tables):
    products, queries = tables
    texts = queries.select(range(7)).remove_columns("image")
    results = evaluate(tiny_model, tiny_processor, products, texts, progress=False)
    assert results["mean_recall@10"] is None
    assert "recall@10" in results["retrieval"]["t2i"]
    table = format_table(results)
    assert table.count("no query with image view") == 2 and "no query with multimodal view" in table
    assert max(map(len, table.splitlines())) <= 100


def test_an_item_that_cannot_be_encoded_is_named_by_its_id(tiny_model, tiny_processor, tables):
    products, queries = tables
    broken = [products[row] for row in range(12)]
    broken[3]["images"][0] = {"bytes": b"no image", "path": None}
    with pytest.raises(ValueError, match="^product p3, image 0: "):
        evaluate(
            tiny_model, tiny_processor, Dataset.from_list(broken, features=PRODUCT_FEATURES), queries, progress=False
        )


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json({"name": "t→mm"}, path)
    with pytest.raises(ValueError):
        write_json({"name": float("nan")}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "t→mm"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def folder(tiny_model, tiny_processor, tables, tmp_path_factory):
    """A saved model and the two tables as files."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_model.save_pretrained(folder / "model")
    tiny_processor.save_pretrained(folder / "model")
    for name, table in zip(("products", "queries"), tables, strict=True):
        table.to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture
def arguments(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return {name: str(folder / file) for name, file in (("model", "model"), ("products", "products.parquet"))} | {
        "queries": str(folder / "queries.parquet")
    }


def as_argv(arguments: dict[str, str]) -> list[str]:
    return [word for name, value in arguments.items() for word in (f"--{name}", value)]


def scores(results: dict) -> dict:
    return {name: results[name] for name in ("retrieval", "mean_recall@10", "classification", "attributes")}


def test_the_command_prints_the_table_and_writes_the_results(arguments, results, tmp_path, capsys):
    output = tmp_path / "runs" / "first" / "results.json"
    main([*as_argv(arguments), "--output", str(output), "--batch_size", "5"])
    written = json.loads(output.read_text(encoding="utf-8"))
    assert scores(written) == scores(results)
    assert {name: written[name] for name in arguments} == arguments
    assert format_table(written) in capsys.readouterr().out


def test_the_command_slices_by_the_columns_it_is_given(arguments, tables, tmp_path, capsys):
    sliced(tables[1], label_noise=[row < 4 for row in range(15)]).to_parquet(tmp_path / "queries.parquet")
    output = tmp_path / "results.json"
    argv = as_argv(arguments | {"queries": str(tmp_path / "queries.parquet"), "output": str(output)})
    main([*argv, "--slice_by", "label_noise"])
    assert "R@10 by label_noise" in capsys.readouterr().out
    written = json.loads(output.read_text(encoding="utf-8"))["retrieval"]["i2mm"]["slices"]
    assert {label: scores["queries"] for label, scores in written["label_noise"].items()} == {"false": 8, "true": 4}


def test_the_command_reads_a_recipe_and_flags_go_first(arguments, tmp_path, folder):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(arguments | {"model": "elsewhere", "batch_size": 3}))  # JSON is YAML
    main(["--config", str(recipe), "--model", arguments["model"]])
    written = folder / "model" / "evaluation.json"
    assert json.loads(written.read_text(encoding="utf-8"))["batch_size"] == 3


@pytest.fixture(scope="module")
def peer(tiny_dual_encoder, folder):
    for part in tiny_dual_encoder("clip"):
        part.save_pretrained(folder / "clip")
    return str(folder / "clip")


def test_the_command_compares_several_models(arguments, peer, tables, results, tmp_path, capsys):
    sliced(tables[1], slice=NEEDS).to_parquet(tmp_path / "queries.parquet")
    arguments |= {"queries": str(tmp_path / "queries.parquet"), "output": str(tmp_path / "runs")}
    first = arguments.pop("model")
    main(["--model", first, peer, *as_argv(arguments)])
    written = json.loads((tmp_path / "runs" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(written["results"]) == ["model", "clip"] and "per_query" not in written["results"]["clip"]
    for direction, result in written["results"]["model"]["retrieval"].items():
        assert result["recall@10"] == results["retrieval"][direction]["recall@10"]
    assert [written["results"][name]["model"] for name in ("model", "clip")] == [first, peer]
    difference = written["differences"]["clip"]
    for key, of_direction in difference.items():
        pair = [written["results"][name] for name in ("clip", "model")]
        of_pair = [r["mean_recall@10"] if key == "mean" else r["retrieval"][key]["recall@10"]["value"] for r in pair]
        assert of_direction["value"] == pytest.approx(of_pair[0] - of_pair[1])
    printed = capsys.readouterr().out
    markdown = (tmp_path / "runs" / "evaluation.md").read_text(encoding="utf-8")
    for text in (printed, markdown):
        assert "Recall@10 less that of model" in text and "Recall@10 by slice" in text and "ceiling" in text
    assert markdown.startswith("# queries in products\n") and "(evaluation.png)" in markdown
    assert str(tmp_path) not in markdown
    with Image.open(tmp_path / "runs" / "evaluation.png") as picture:
        assert picture.format == "PNG"


def test_the_command_loads_every_model_before_it_scores_one(arguments, peer, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "clip"}')
    monkeypatch.setattr("moon2_training.evaluate.run_benchmark", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(ValueError, match="broken: cannot be loaded"):
        main(["--model", peer, str(tmp_path / "broken"), *as_argv(arguments)[2:]])


def test_where_the_results_go_unless_told(arguments, peer, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(as_argv(arguments))
    beside = {path.name for path in (folder / "model").glob("evaluation.*")}
    assert beside == {"evaluation.json", "evaluation.md", "evaluation.png"}
    for name in beside:
        (folder / "model" / name).unlink()
    main(["--model", peer, arguments["model"], *as_argv(arguments)[2:]])
    assert {path.name for path in (tmp_path / "runs" / "evaluation").iterdir()} == beside


def test_without_matplotlib_the_picture_alone_is_left_out(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main([*as_argv(arguments), "--output", str(tmp_path / "scores.json")])
    assert "no scores.png: the chart needs matplotlib" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("scores*")} == {"scores.json", "scores.md"}
    assert "![" not in (tmp_path / "scores.md").read_text(encoding="utf-8")


def test_the_command_says_what_is_wrong(arguments, tables, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such folder"):
        main(as_argv(arguments | {"model": str(tmp_path / "nothing")}))
    with pytest.raises(ValueError, match="given twice; give every model once"):
        main(["--model", arguments["model"], *as_argv(arguments)[1:]])
    with pytest.raises(FileNotFoundError, match="no Parquet file there"):
        main(as_argv(arguments | {"products": str(tmp_path / "nothing.parquet")}))
    _, queries = tables
    foreign = queries.map(lambda row: {"product_id": f"other {row['product_id']}"})
    foreign.to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(SchemaError, match="not in the catalogue"):
        main(as_argv(arguments | {"queries": str(tmp_path / "foreign.parquet")}))
    with pytest.raises(SystemExit):
        main(as_argv({"model": arguments["model"]}))
