from __future__ import annotations

import json
import os
import re

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from moon2_training.evaluate import evaluate
from moon2_training.model_card import write_model_card

TRAINING = {"steps": 2100, "triplets": 134400, "seconds": 60.4}


@pytest.fixture(scope="module")
def scores(tiny, shop) -> dict:
    """What `moon2 evaluate` writes."""
    results = evaluate(*tiny, shop.products, shop.queries, progress=False)
    files = {"model": "/home/alice/model", "products": "/home/alice/held-out-products.parquet",
             "queries": r"C:\Users\alice\held-out-queries.parquet"}  # fmt: skip
    return files | results


@pytest.fixture
def folder(tiny, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path / "my-encoder")
    return tmp_path / "my-encoder"


def put(folder, **files) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_a_bare_model_has_a_card(folder, tiny_model):
    path = write_model_card(folder)
    card = ModelCard.load(path)
    assert path == folder / "README.md" and not list(folder.glob(".*"))
    assert card.data.library_name == "sentence-transformers" and card.data.pipeline_tag == "feature-extraction"
    assert {"moon2", "custom_code", "mixture-of-experts"} <= set(card.data.tags)
    assert card.data.eval_results is None and card.data.license is None and card.data.base_model is None
    assert "# my-encoder\n" in card.text and 'SentenceTransformer("my-encoder"' in card.text
    assert f"| Parameters | {tiny_model.num_parameters():,} |" in card.text
    unvisited = (
        sum(p.numel() for name, p in tiny_model.named_parameters() if ".experts." in name) // 2
    )  # k of Z: 2 of 4
    assert f"| Active per token | {tiny_model.num_parameters() - unvisited:,}: " in card.text
    assert "What it was trained on is not recorded" in card.text and "Converted" not in card.text
    assert "## Results" not in card.text and "## How it was made" not in card.text
    assert "\n\n\n" not in card.text


def test_shards_are_counted_together(folder, tiny_model):
    tiny_model.save_pretrained(folder, max_shard_size="200KB")
    assert f"| Parameters | {tiny_model.num_parameters():,} |" in write_model_card(folder).read_text()


def test_the_snippet_for_transformers_runs(folder, make_image, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", write_model_card(folder).read_text(), flags=re.DOTALL)
    make_image(0).save(folder.parent / "photo.jpg")
    monkeypatch.chdir(folder.parent)
    exec(blocks[0], {})
    assert capsys.readouterr().out.startswith("tensor([[ 1.0000, ")
    compile(blocks[1], "sentence-transformers", "exec")


def test_scores_stand_in_the_tables_and_in_the_model_index(folder, scores):
    put(folder, evaluation=scores)
    card = ModelCard.load(write_model_card(folder, "me/encoder"))
    found = {(r.task_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    for result in scores["retrieval"].values():
        for metric in ("recall@1", "recall@10", "mrr"):
            assert found[f"Retrieval {result['name']}", metric] == round(result[metric]["value"], 4)
        value, low, high = (f"{100 * result['recall@10'][part]:.1f}" for part in ("value", "low", "high"))
        row = next(line for line in card.text.splitlines() if line.startswith(f"| {result['name']} |"))
        assert f"| {value} ({low}–{high}) |" in row
    colour = scores["attributes"]["tasks"]["colour"]
    task = "Attribute prediction: colour from image and title"
    assert found[task, "accuracy"] == round(colour["image_title"]["accuracy"], 4)
    assert found[task, "f1"] == round(colour["image_title"]["f1"], 4)
    assert f"| colour | 2 | image | 23 | {100 * colour['image']['accuracy']:.1f} |" in card.text
    assert f"| category level 2 | 3 | title | 23 | {100 * title_accuracy(scores):.1f} |" in card.text
    assert {r.dataset_name for r in card.data.eval_results} == {"held-out-products and held-out-queries"}
    assert card.data.model_name == "encoder"
    index = eval_results_to_model_index("encoder", card.data.eval_results)
    assert model_index_to_eval_results(index) == ("encoder", card.data.eval_results)
    assert len({r.unique_identifier for r in card.data.eval_results}) == 5 + 2  # nothing shares an entry by accident


def title_accuracy(scores: dict) -> float:
    return scores["classification"]["tasks"]["level_2"]["title"]["accuracy"]


def test_a_direction_that_was_skipped_has_no_scores(folder, scores):
    skipped = {"name": "mm→mm", "queries": 0, "candidates": 24, "left_out": {}, "skipped": "no query"}
    put(folder, evaluation=scores | {"retrieval": scores["retrieval"] | {"mm2mm": skipped}})
    card = ModelCard.load(write_model_card(folder))
    assert "| mm→mm | 0 | 24 | – | – | – | – |" in card.text
    assert "mm2mm" not in {r.dataset_config for r in card.data.eval_results}


def test_the_newer_scores_count(folder, scores):
    put(folder, evaluation=scores, results={"training": TRAINING})
    for older, newer in (("results", "evaluation"), ("evaluation", "results")):
        os.utime(folder / f"{older}.json", (1, 1))
        os.utime(folder / f"{newer}.json", (2, 2))
        card = ModelCard.load(write_model_card(folder))
        assert ("## Results" in card.text) == (newer == "evaluation")
        assert "2,100 steps, 134,400 triplets, 60 s." in card.text


def test_where_a_trained_model_comes_from(folder):
    provenance = {
        "base_model": "Qwen/Qwen3-VL-2B-Instruct",
        "base_license": "apache-2.0",
        "conversion": {"expert_init": "split"},
        "training": {"learning_rate": 1e-5, "bf16": True, "objectives": ["inter_text", "inter_image"]},
        "datasets": ["ZHNie/MBE2.0", "products.parquet"],
    }
    put(folder, provenance=provenance)
    card = ModelCard.load(write_model_card(folder))
    assert card.data.base_model == "Qwen/Qwen3-VL-2B-Instruct" and card.data.license == "apache-2.0"
    assert card.data.datasets == ["ZHNie/MBE2.0"]
    assert "Trained on ZHNie/MBE2.0, products; " in card.text
    assert "Qwen/Qwen3-VL-2B-Instruct with a modality-driven mixture of experts, fitted" in card.text
    assert "| expert_init | split |" in card.text and "| objectives | inter_text, inter_image |" in card.text
    assert "| learning_rate | 1e-05 |" in card.text and "| bf16 | true |" in card.text
    assert "Converted, not trained" not in card.text


RUN = {
    "seed": 3,
    "processes": 2,
    "device": "cuda",
    "versions": {"moon2": "0.1.0", "python": "3.12.1"},
    "platform": "Linux-6.8-x86_64",
    "git": {"revision": "ab" * 20, "dirty": True},
    "options": {"word_dropout": 0.3, "hidden_size": 64},
    "data": [
        {"table": "products", "name": "a|b.parquet", "bytes": 1234567, "rows": 1000, "blake2b": "cd" * 16},
        {"table": "queries", "name": "q.parquet", "bytes": 1, "rows": 2, "blake2b": "ef" * 16,
         "repository": "shop/clicks", "revision": "12" * 20},
    ],
}  # fmt: skip


def test_what_a_run_was_made_with_stands_in_the_card(folder):
    put(folder, provenance={"training": {"learning_rate": 1e-5}, "run": RUN})
    text = write_model_card(folder).read_text()
    assert "Seed 3, 2 processes on cuda; moon2 0.1.0, python 3.12.1; Linux-6.8-x86_64." in text
    assert f"Started in a Git repository at {'ab' * 20}, with changes." in text
    assert f"| products | a\\|b.parquet | 1,000 | 1,234,567 | {'cd' * 16} |" in text
    assert f"| queries | shop/clicks/q.parquet | 2 | 1 | {'ef' * 16} |" in text
    assert "| hidden_size | 64 |" in text and "| learning_rate | 1e-05 |" in text and "\n\n\n" not in text
    put(folder, provenance={"run": RUN | {"git": None, "data": RUN["data"] * 20, "processes": 1}})
    text = write_model_card(folder).read_text()
    assert "Git" not in text and "1 process on cuda" in text
    assert text.count("| products | a") == 10 and "… and 20 more files, which provenance.json lists." in text


@pytest.mark.parametrize("training", [None, {}])
def test_a_model_that_was_only_converted_says_so(training, folder):
    put(folder, provenance={"conversion": {"expert_init": "copy"}, "training": training, "base_model": None})
    text = write_model_card(folder).read_text()
    assert ("**Converted, not trained: gate and W\\* are random.**" in text) == (training is None)


def test_no_place_on_the_machine_gets_into_the_card(folder, scores, tmp_path):
    arguments = {"source": str(tmp_path / "qwen"), "out": "~/alice/out", "files": [r"C:\Users\alice\a.txt"]}
    provenance = {"base_model": str(tmp_path / "qwen"), "conversion": arguments, "training": {"d": arguments},
                  "datasets": [str(tmp_path / "clicks.parquet"), "/home/alice/shop"]}  # fmt: skip
    put(folder, provenance=provenance, evaluation=scores)
    text = write_model_card(folder, str(tmp_path / "encoder")).read_text()
    assert not re.search(r"alice|/home|/tmp|C:|pytest", text)
    assert "Trained on clicks, shop; " in text and "| source | qwen |" in text
    assert not {"base_model", "datasets"} & yaml.safe_load(text.split("---\n")[1]).keys()


def test_names_do_not_break_tables(folder, scores):
    task = scores["attributes"]["tasks"]["colour"]
    nasty = "a|b`c\n| --- |<b>"
    put(folder, evaluation=scores | {"attributes": {"tasks": {nasty: task}}, "products": f"/x/{nasty}.parquet"},
        provenance={"training": {"key|`": "x | y\n\nz"}})  # fmt: skip
    card = ModelCard.load(write_model_card(folder))
    tables = re.findall(r"(?:^\|.*\n)+", card.text, flags=re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert r"| a\|b\`c \| --- \|\<b\> | 2 |" in card.text
    assert f"attributes/{nasty}" in {r.dataset_config for r in card.data.eval_results}


def test_an_untouched_card_is_brought_up_to_date(folder, scores):
    write_model_card(folder)
    put(folder, evaluation=scores)
    text = write_model_card(folder, "me/encoder").read_text()
    assert "# me/encoder\n" in text and "## Results" in text
    assert write_model_card(folder, "me/encoder").read_text() == text


def test_an_edited_card_keeps_its_text_and_its_header(folder, scores):
    base = {"base_license": "apache-2.0", "base_model": "Qwen/Qwen3-VL-2B-Instruct"}
    put(folder, evaluation=scores, provenance=base)
    path = write_model_card(folder, "me/encoder")
    card = ModelCard.load(path)
    fresh = ModelCard.load(path).data.eval_results
    card.data.license, card.data.language, card.data.tags = "mit", "de", ["mine"]
    own = EvalResult("information-retrieval", "me/own-test", "A test of my own", "recall@10", 0.5)
    stale = card.data.eval_results[0]
    stale.metric_value, stale.dataset_name = 0.99, "other data"
    card.data.eval_results.append(own)
    card.text = card.text.replace("## Limits", "## Limits, in my own words")
    card.save(path)
    edited = ModelCard.load(path)

    again = ModelCard.load(write_model_card(folder, "me/other"))
    assert again.text == edited.text
    assert (again.data.license, again.data.language, again.data.tags) == ("mit", "de", ["mine"])
    assert again.data.base_model == "Qwen/Qwen3-VL-2B-Instruct" and again.data.model_name == "encoder"
    assert again.data.eval_results == [own, *fresh]
    assert write_model_card(folder).read_text() == path.read_text()


def test_a_card_without_header_keeps_its_text(folder):
    (folder / "README.md").write_bytes(b"# Mine\r\n\r\nBy hand.\r\n")
    content = write_model_card(folder).read_bytes().decode()
    assert content.endswith("# Mine\r\n\r\nBy hand.\r\n")
    assert ModelCard(content).data.library_name == "sentence-transformers"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", "{", "results.json: no readable JSON"),
        ("model.safetensors", "no weights", "no readable weights"),
        ("config.json", "{", "no readable config.json"),
        ("README.md", "---\n- a\n---\n", "README.md: its header cannot be read"),
    ],
)
def test_an_unreadable_file_is_named(name, content, message, folder):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_model_card(folder)
