"""Recipes: what they give is taken, and what is wrong in them is said in one line."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from moon2_dataset.recipe import MAX_BYTES, RecipeParser, read_recipe


@dataclass
class Options:
    """Options of every kind."""

    place: str
    k: int = 10
    share: float | None = 0.5
    quiet: bool = False
    tables: list[str] = field(default_factory=list)
    layers: list[int] | None = None
    way: Literal["fast", "exact"] = "fast"


@pytest.fixture
def parse(tmp_path):
    def parse(recipe, *flags):
        file = tmp_path / "recipe.yaml"
        file.write_bytes(recipe if isinstance(recipe, bytes) else yaml.safe_dump(recipe).encode())
        (options,) = RecipeParser(Options, prog="moon2 verb").parse_args_and_config(["--config", str(file), *flags])
        return options

    return parse


def test_a_recipe_is_taken_and_flags_go_first(parse, monkeypatch):
    monkeypatch.delenv("MOON2_RECIPE", raising=False)
    recipe = {"place": "here", "share": 1, "tables": "a.parquet", "layers": [1, 2], "quiet": True, "way": "exact"}
    assert parse(recipe) == Options("here", 10, 1, True, ["a.parquet"], [1, 2], "exact")
    assert parse(recipe | {"share": None, "env": {"MOON2_RECIPE": 3}}, "--k", "3").k == 3
    assert os.environ.pop("MOON2_RECIPE") == "3"
    assert parse({"place": "x", "share": "1e-3"}).share == 1e-3  # which YAML reads as a text
    assert RecipeParser(Options).parse_args_and_config(["--place", "x"]) == (Options("x"),)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({"place": "x", "tabels": ["a"]}, "no option 'tabels'; did you mean tables?"),
        ({"place": "x", "zzzz": 1}, "no option 'zzzz'; see `moon2 verb --help`"),
        ({"place": "x", "k": [1]}, r"k is \[1\]; give a whole number"),
        ({"place": "x", "k": True}, "k is True; give a whole number"),
        ({"place": "x", "k": None}, "k is None; give a whole number"),
        ({"place": "x", "share": {"a": 1}}, "give a number or nothing"),
        ({"place": 3}, "place is 3; give a text"),
        ({"place": "x", "tables": [["a"]]}, "give a list, each a text"),
        ({"place": "x", "layers": "1"}, "layers is '1'; give a list, each a whole number or nothing"),
        ({"place": "x", "way": "slow"}, "way is 'slow'; give fast or exact"),
        ({"place": "x", "env": ["A"]}, "give names of variables and texts or numbers"),
        ({"place": "x", "env": {"A=B": "1"}}, "give names of variables and texts or numbers"),
        (b'{place: x, env: {"\\uD800": ""}}', "give names of variables and texts or numbers"),
        (b'{place: x, env: {A: "\\uD800"}}', "give names of variables and texts or numbers"),
        (b"- a\n- b\n", "no mapping of options to values"),
        (b"", "no mapping of options to values"),
        (b"1: a\n", "no mapping of options to values"),
        (b"place: [\n", "cannot be read as YAML"),
        (b"place: 2020-13-45\n", "cannot be read as YAML"),
        (b"place: !!python/object/apply:os.system ['id']\n", "cannot be read as YAML"),
        (b"place: " + b"[" * 5_000, "cannot be read as YAML"),
        (b"a: &a {x: 1}\nb:\n  <<: [*a, *a]\n", "mappings are not merged; write every option out"),
        (b"place: \xff\xfe\n", "cannot be read .* write it as UTF-8"),
        (b"#" * (MAX_BYTES + 1), "over 32 kB is no recipe"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(parse, recipe, told):
    with pytest.raises(ValueError, match=f"recipe.yaml: .*{told}"):
        parse(recipe)


def test_a_recipe_that_is_not_there(tmp_path):
    parser = RecipeParser(Options)
    with pytest.raises(FileNotFoundError, match="no such recipe; give a YAML file"):
        parser.parse_args_and_config(["--config", str(tmp_path / "nothing.yaml")])
    with pytest.raises(ValueError, match="--config names no file"):
        parser.parse_args_and_config(["--place", "x", "--config"])


def test_aliases_that_stand_for_very_much_cost_little(parse):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(ValueError, match="no option 'a0'"):
        parse("\n".join(lines).encode())
    with pytest.raises(ValueError, match="tables is"):
        parse("\n".join(["env: {}", "place: x", "tables: " + "&a0 [x]"] + ["layers: [*a0, *a0]"]).encode().replace(
            b"tables: &a0 [x]", b"tables: &a0 [[x]]"))  # fmt: skip


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[2].glob("training/recipes/*.yaml")), ids=lambda f: f.name
)
def test_the_recipes_that_come_with_the_package_are_read(file):
    assert read_recipe(str(file))
