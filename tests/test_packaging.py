"""The built wheel carries all of the four packages and nothing else; imports between them go one way."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINI = "space_app/moon2-mini"
FOLDERS = {
    "modeling_moon2": "modeling_moon2",
    "moon2_dataset": "dataset_card",
    "moon2_training": "training",
    "moon2_space": "space_app",
}
# On Hugging Face it stands alone, beside an installed moon2, so it calls its own package by name.
ENTRIES = {ROOT / "space_app/app.py": {"moon2_space"}}
MAY_IMPORT = {
    "modeling_moon2": set(),
    "moon2_dataset": set(),
    "moon2_training": {"modeling_moon2", "moon2_dataset"},
    "moon2_space": {"modeling_moon2", "moon2_dataset", "moon2_training"},
}
# The Hub's loader refuses a model file that imports anything not installed; huggingface_hub comes with transformers.
MODEL_FILES_MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}


def package_files(package: str) -> list[Path]:
    """Files of a package's folder, relative to it, without what interpreters and linters leave behind."""
    folder = ROOT / FOLDERS[package]
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if not any(part == "__pycache__" or part.startswith(".") for part in path.parts)]


def absolute_imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports by an absolute name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Path of the wheel built from a source distribution, as an index would serve the two."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run_unpacked(unpacked, tmp_path):
    """Run Python from an empty folder with the unpacked wheel before everything else on the path."""

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(unpacked)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    expected = {f"{package}/{path.as_posix()}" for package in FOLDERS for path in package_files(package)}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {f"{package}/{name}" for package in FOLDERS for name in ("__init__.py", "py.typed")} <= held
    assert "moon2_training/recipes/mini.yaml" in held


@pytest.mark.skipif(not (ROOT / MINI).is_dir(), reason=f"{MINI} is not there: its weights come with it")
def test_wheel_carries_an_encoder_that_loads(unpacked, run_unpacked):
    assert (unpacked / "moon2_space/moon2-mini/sentence_bert_config.json").is_file()
    code = (
        "from importlib.resources import files; from moon2_training.encode import Encoder\n"
        "from moon2_training.saved_encoder import load_encoder\n"
        "encoder = Encoder(*load_encoder(files('moon2_space') / 'moon2-mini'))\n"
        "print(encoder.encode([{'text': 'red mug', 'images': []}], progress=False).shape)"
    )
    assert run_unpacked("-c", code).startswith("(1, ")


def test_wheel_names_the_command_and_the_licence(unpacked):
    (info,) = unpacked.glob("*.dist-info")
    entry_points = ConfigParser()
    entry_points.read(info / "entry_points.txt", encoding="utf-8")
    assert dict(entry_points["console_scripts"]) == {"moon2": "moon2_training.cli:main"}
    assert (info / "licenses/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_command_runs_from_the_wheel(run_unpacked):
    assert "usage: moon2" in run_unpacked("-m", "moon2_training.cli", "--help")


def test_packages_and_recipes_are_found_in_the_wheel(run_unpacked, unpacked):
    code = (
        "from importlib.resources import files; from importlib.util import find_spec\n"
        f"for name in {list(FOLDERS)}: print(find_spec(name).origin)\n"
        "print(files('moon2_training') / 'recipes' / 'mini.yaml')"
    )
    found = [Path(line) for line in run_unpacked("-c", code).splitlines()]
    assert found[:-1] == [unpacked / package / "__init__.py" for package in FOLDERS]
    assert found[-1].read_bytes() == (ROOT / "training/recipes/mini.yaml").read_bytes()


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_between_packages_go_one_way(package):
    ours = set(FOLDERS) | set(FOLDERS.values())
    sources = [ROOT / FOLDERS[package] / path for path in package_files(package) if path.suffix == ".py"]
    assert sources
    for path in sources:
        assert absolute_imports(path) & ours <= MAY_IMPORT[package] | ENTRIES.get(path, set()), path


def test_model_files_import_only_what_stands_beside_transformers():
    for path in (ROOT / FOLDERS["modeling_moon2"]).glob("*.py"):
        assert absolute_imports(path) <= MODEL_FILES_MAY_IMPORT | sys.stdlib_module_names, path
