from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from moon2_training.checksums import write_checksums
from moon2_training.cli import main
from moon2_training.model_card import write_model_card

CODE = {"configuration_moon2.py", "layout_moon2.py", "modeling_moon2.py", "patches_moon2.py", "processing_moon2.py"}
REST = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "README.md", "results.json",
        "searches.png", "provenance.json"}  # fmt: skip
LEFT_AT_HOME = ["training_args.bin", "optimizer.pt", "rng_state.pth", "old.pkl", "trainer_state.json",
                "evaluation.json", "events.out.tfevents.1", "model-00001.partial", ".env.json", "secrets.json",
                "token.txt", "clicks.txt", "queries.json", "train_mine.py", "photo.jpg", "scores-v2.json", "notes.md",
                "memory.safetensors", "1_Pooling/notes.json", "checkpoint-2/model.safetensors",
                "checkpoint-2/config.json", "data [1]/rows.json"]  # fmt: skip


def save(tiny, folder: Path, **options) -> None:
    """A whole model folder, and beside it what training leaves there."""
    model, processor = tiny
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "Pooling"}]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling/config.json", "sentence_bert_config.json", "results.json", "searches.png",
                 "provenance.json", *LEFT_AT_HOME):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "whole"
    save(tiny, folder)
    return folder


@pytest.fixture(scope="module")
def saved_in_shards(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "shards"
    save(tiny, folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def shards(saved_in_shards, tmp_path) -> Path:
    return shutil.copytree(saved_in_shards, tmp_path / "model-in-shards")


@pytest.mark.parametrize("lfs", [True, False], ids=["lfs", "streamed"])
def test_a_push_carries_the_model_and_nothing_else(lfs, hub, folder, monkeypatch, capsys):
    hub.lfs = lfs
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", lfs)
    assert main(["push", str(folder), "me/encoder", "--commit_message", "First weights"]) == 0
    told, url = capsys.readouterr().out.splitlines()
    assert url == f"{hub.url}/me/encoder"
    at_home = {name.split("/")[0] + "/" if name.startswith(("checkpoint", "data")) else name for name in LEFT_AT_HOME}
    assert told == f"stays at home: {', '.join(sorted(at_home))}"
    assert hub.files("me/encoder") == CODE | REST | {"model.safetensors"}
    assert not hub.files("me/encoder") & set(LEFT_AT_HOME)
    pushed = hub.repos["me/encoder"]["main"]
    assert all(pushed[name] == (folder / name).read_bytes() for name in hub.files("me/encoder"))
    assert not hub.private["me/encoder"]
    assert hub.tokens == {"Bearer hf_fake"}
    assert hub.committed[0][0]["value"]["summary"] == "First weights"
    assert ModelCard(pushed["README.md"].decode()).data.library_name == "sentence-transformers"


def test_a_second_push_sends_what_changed_and_removes_old_weights(hub, folder, shards):
    assert main(["push", str(folder), "me/encoder"]) == 0
    assert main(["push", str(shards), "me/encoder"]) == 0
    weights = {path.name for path in shards.glob("model*.safetensors*")}
    assert hub.files("me/encoder") == CODE | REST | weights
    assert {step["value"]["path"] for step in hub.committed[1][1:]} >= weights | {"model.safetensors"}
    assert "config.json" not in {step["value"]["path"] for step in hub.committed[1][1:]}
    assert main(["push", str(shards), "me/encoder"]) == 0
    assert len(hub.committed) == 2


def test_the_card_names_the_repository_with_its_owner(hub, folder):
    assert main(["push", str(folder), "encoder"]) == 0
    assert b'from_pretrained("somebody/encoder"' in hub.repos["somebody/encoder"]["main"]["README.md"]


def test_an_edited_card_is_pushed_as_it_is_written(hub, folder):
    card = write_model_card(folder)
    card.write_text(card.read_text().replace("## Limits", "## What it cannot do"))
    assert main(["push", str(folder), "me/encoder"]) == 0
    assert b"## What it cannot do" in hub.repos["me/encoder"]["main"]["README.md"]


def test_what_code_and_card_name_is_pushed_too(hub, folder):
    with open(folder / "modeling_moon2.py", "a") as file:
        file.write("\nfrom .helper_of_mine import one\n")
    (folder / "helper_of_mine.py").write_text("from .another import one\n")
    (folder / "another.py").write_text("one = 1\n")
    card = write_model_card(folder)
    (folder / "pictures").mkdir()
    linked = ("pictures/in a shop.png", "teaser.webp", "large.jpg", "small.jpg")
    for name in linked:
        (folder / name).touch()
    (folder.parent / "outside.png").touch()
    card.write_text(
        f"{card.read_text()}\n![A shop](pictures/in%20a%20shop.png 'A shop')\n<img alt='' src='./teaser.webp'>\n"
        "[![Small](small.jpg)](large.jpg) ![](../outside.png) [clicks](clicks.txt) ![](https://somewhere.org/photo.jpg)"
    )
    assert main(["push", str(folder), "me/encoder"]) == 0
    code = CODE | {"helper_of_mine.py", "another.py"}
    assert hub.files("me/encoder") == code | REST | {"model.safetensors", *linked}


def test_code_that_is_not_there_is_told(hub, folder, capsys):
    with open(folder / "modeling_moon2.py", "a") as file:
        file.write("\nfrom .helper_of_mine import one\n")
    assert main(["push", str(folder), "me/encoder"]) == 1
    assert f"{folder} lacks helper_of_mine.py, which its code imports" in capsys.readouterr().err
    assert not hub.asked


def test_checksums_of_what_stays_at_home_are_refused(hub, folder, capsys):
    write_checksums(folder)  # of all that lies there, as whoever takes the model would miss
    assert main(["push", str(folder), "me/encoder"]) == 1
    assert "SHA256SUMS names memory.safetensors, which is no part of the model" in capsys.readouterr().err
    assert not hub.asked
    (folder / "memory.safetensors").unlink()
    write_checksums(folder)
    assert main(["push", str(folder), "me/encoder"]) == 0
    assert "SHA256SUMS" in hub.files("me/encoder")


def test_private(hub, folder, capsys):
    assert main(["push", str(folder), "me/secret", "--private"]) == 0
    assert hub.private["me/secret"] and hub.files("me/secret")
    hub.private["me/secret"] = False
    hub.repos["me/secret"] = {"main": {}}
    assert main(["push", str(folder), "me/secret", "--private"]) == 1
    assert "me/secret is there and public; make it private" in capsys.readouterr().err
    assert not hub.files("me/secret")


def test_revision(hub, folder, capsys):
    assert main(["push", str(folder), "me/encoder", "--revision", "v1/small"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/me/encoder/tree/v1/small"
    assert hub.files("me/encoder", "v1/small") >= CODE and not hub.files("me/encoder")


def drop_auto_map(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))


def rename_in_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("temperature.weight", "temperature.other"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "code": (lambda f: (f / "processing_moon2.py").unlink(), "lacks processing_moon2.py; `moon2 train`"),
    "files": (
        lambda f: [(f / n).unlink() for n in ("modules.json", "tokenizer.json")],
        "tokenizer.json, modules.json",
    ),
    "auto_map": (drop_auto_map, "config.json: no AutoConfig and AutoModel in auto_map"),
    "pooling": (lambda f: (f / "1_Pooling" / "config.json").unlink(), "lacks 1_Pooling/config.json;"),
    "modules": (lambda f: (f / "modules.json").write_text("["), "modules.json: no readable JSON"),
    "header": (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "README.md: its header cannot be read"),
    "index": (lambda f: (f / "model.safetensors.index.json").unlink(), "lacks model.safetensors;"),
    "shard": (lambda f: next(f.glob("model-00001*")).unlink(), "lacks model-00001-of-"),
    "cut": (lambda f: cut(next(f.glob("model-00002*"))), "damaged ("),
    "tensor": (rename_in_index, "lacks temperature.other, which model.safetensors.index.json puts there"),
    "all": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_sent(kind, hub, shards, capsys):
    damage, message = DAMAGES[kind]
    damage(shards)
    assert main(["push", str(shards), "me/encoder"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not hub.asked


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "me/encoder: the Hub does not know the token; log in with `hf auth login` (401)"),
        (403, "me/encoder: the token may not write there; log in with one that may (`hf auth login`), or "),
        (404, "me/encoder: not found; check owner and revision"),
        (418, "(418)"),
    ],
)
def test_a_refusal_is_one_line_that_says_the_way_out(status, message, hub, folder, capsys):
    hub.refusal = status
    assert main(["push", str(folder), "me/encoder"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_header_that_the_hub_does_not_take_is_said_in_one_line(hub, folder, capsys):
    hub.card_errors = ['"license" must be one of', '"language" must be']
    assert main(["push", str(folder), "me/encoder"]) == 1
    error = capsys.readouterr().err
    assert 'README.md. - "license" must be one of - "language" must be' in error and error.count("\n") == 1


def test_no_token_no_name_no_hub(hub, folder, tmp_path, monkeypatch, capsys):
    def error_of(repo: str = "me/encoder") -> str:
        assert main(["push", str(folder), repo]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "me/en/coder is no name of a repository" in error_of("me/en/coder")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert "http://127.0.0.1:9 cannot be reached" in error_of()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "log in with `hf auth login`" in error_of()
    assert not hub.asked
