from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys

import pytest

from moon2_training import cli

HEAVY = {"accelerate", "datasets", "numpy", "PIL", "safetensors", "torch", "transformers", "trl"}


@pytest.fixture
def add_verb(monkeypatch, tmp_path):
    """Put a verb of one's own into the table: its source is a file with a `main`."""

    def add(name: str, source: str) -> None:
        (tmp_path / f"verb_{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setitem(cli.VERBS, name, cli.Verb(f"verb_{name}:main", "a verb of this test"))

    monkeypatch.syspath_prepend(tmp_path)
    yield add
    for name in [name for name in sys.modules if name.startswith("verb_")]:
        del sys.modules[name]


def test_a_verb_gets_the_arguments_after_its_name(add_verb, capsys):
    add_verb("echo", "def main(argv):\n    print('|'.join(argv))\n")
    assert cli.main(["echo", "--model", "a b", "--help"]) == 0
    assert capsys.readouterr().out == "--model|a b|--help\n"


def test_arguments_come_from_the_command_line_by_default(add_verb, capsys, monkeypatch):
    add_verb("echo", "def main(argv):\n    print('|'.join(argv))\n")
    monkeypatch.setattr(sys, "argv", ["moon2", "echo", "x"])
    assert cli.main() == 0
    assert capsys.readouterr().out == "x\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb_with_its_summary(argv, capsys):
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in cli.VERBS.items():
        assert any(line.split() == [name, *verb.summary.split()] for line in lines)


def test_version_is_the_distribution_s(capsys):
    from importlib.metadata import version

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"moon2 {version('moon2')}\n"


def test_help_imports_nothing_heavy():
    code = f"import sys; from moon2_training.cli import main; main([]); sys.exit(str({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "usage: moon2" in done.stdout
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    ("typed", "hint"), [("trian", "did you mean `train`?"), ("zzz", "choose from build-dataset, ")]
)
def test_unknown_verb_names_the_way_out(typed, hint, capsys):
    assert cli.main([typed]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"`{typed}`" in captured.err
    assert hint in captured.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("ValueError('queries.parquet row 17: neither text nor image; give at least one')", "queries.parquet row 17"),
        ("FileNotFoundError('no file catalogue.parquet')", "no file catalogue.parquet"),
        ("FileExistsError('out exists; give another folder')", "out exists; give another folder"),
    ],
)
def test_wrong_input_is_one_line_on_stderr(error, message, add_verb, capsys, monkeypatch):
    monkeypatch.delenv("MOON2_TRACEBACK", raising=False)
    add_verb("broken", f"def main(argv):\n    raise {error}\n")
    assert cli.main(["broken"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"moon2 broken: {message}")
    assert captured.err.count("\n") == 1


def test_traceback_on_request(add_verb, monkeypatch):
    monkeypatch.setenv("MOON2_TRACEBACK", "1")
    add_verb("broken", "def main(argv):\n    raise ValueError('wrong')\n")
    with pytest.raises(ValueError, match="wrong"):
        cli.main(["broken"])


def test_a_bug_keeps_its_traceback(add_verb):
    add_verb("buggy", "def main(argv):\n    raise KeyError('bug')\n")
    with pytest.raises(KeyError, match="bug"):
        cli.main(["buggy"])


def test_interrupted(add_verb, capsys):
    add_verb("endless", "def main(argv):\n    raise KeyboardInterrupt\n")
    assert cli.main(["endless"]) == 130
    assert capsys.readouterr().err.strip() == "moon2 endless: interrupted"


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_can_be_called(name):
    signature = inspect.signature(pkgutil.resolve_name(cli.VERBS[name].target))
    signature.bind(["--help"])


def test_a_verb_without_its_extra_says_what_to_install(add_verb, monkeypatch, capsys):
    add_verb("far", "import no_such_package\n")
    monkeypatch.setitem(cli.VERBS, "far", cli.Verb("verb_far:main", "needs more", "space"))
    assert cli.main(["far"]) == 1
    assert capsys.readouterr().err == ("moon2 far: No module named 'no_such_package'; pip install \"moon2[space]\"\n")
    monkeypatch.setitem(cli.VERBS, "far", cli.Verb("verb_far:main", "needs nothing more"))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        cli.main(["far"])


def test_a_disk_that_is_full_is_one_line_on_stderr(add_verb, capsys, monkeypatch):
    monkeypatch.delenv("MOON2_TRACEBACK", raising=False)
    add_verb("writing", "def main(argv):\n    raise OSError(28, 'No space left on device', 'out/vectors')\n")
    assert cli.main(["writing"]) == 1
    told = "moon2 writing: out/vectors: the disk is full; free some space, then run the same command again\n"
    assert capsys.readouterr().err == told
    monkeypatch.setenv("MOON2_TRACEBACK", "1")
    with pytest.raises(OSError, match="No space left"):
        cli.main(["writing"])


def test_an_error_stands_on_a_line_of_its_own_though_a_bar_is_open(add_verb, capsys):
    source = ["from tqdm import tqdm", "def main(argv):", "    main.bar = tqdm(total=9)", "    main.bar.update(3)",
              "    raise ValueError('no such thing')"]  # fmt: skip
    add_verb("wrong", "\n".join(source))
    assert cli.main(["wrong"]) == 1
    assert "moon2 wrong: no such thing" in capsys.readouterr().err.splitlines()
