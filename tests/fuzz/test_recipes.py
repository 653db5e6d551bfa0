"""Recipes and flags of every verb: options, or one line that says what is wrong with them."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import MISSING
from typing import get_type_hints
from unittest import mock

import pytest
import yaml
from hostile_inputs import texts, values
from hypothesis import strategies as st
from trl import ModelConfig, SFTConfig
from watched import fuzzed, watched

from moon2_dataset.augment.arguments import AugmentArguments
from moon2_dataset.build.builder import BuildArguments
from moon2_dataset.recipe import RecipeParser
from moon2_space.demo import DemoArguments
from moon2_space.index_command import IndexArguments
from moon2_space.search_command import SearchArguments
from moon2_training.adapt import AdaptArguments
from moon2_training.convert import ConvertArguments
from moon2_training.encode_catalogue import EncodeArguments
from moon2_training.evaluate import EvaluateArguments
from moon2_training.mini import MiniConfig
from moon2_training.push import PushArguments
from moon2_training.teacher_features import TeacherFeaturesArguments
from moon2_training.train import TrainArguments
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.validate import ValidateArguments

LIGHT = {
    kind: [name for name, option in kind.__dataclass_fields__.items() if option.init]
    for kind in (AugmentArguments, BuildArguments, ConvertArguments, DemoArguments, EncodeArguments,
                 EvaluateArguments, IndexArguments, MiniConfig, PushArguments, SearchArguments, TrainArguments,
                 TeacherFeaturesArguments, ValidateArguments)
}  # fmt: skip
HEAVY = ((TrainArguments, Moon2TrainingArguments, MiniConfig, ModelConfig), (AdaptArguments, SFTConfig))
FOUND = sorted(
    name for kinds in HEAVY for kind in kinds for name, option in kind.__dataclass_fields__.items() if option.init
)
# What Trainer's own arguments take from the Hub or the machine is not for a test to try.
FOUND = [name for name in FOUND if not name.startswith(("deepspeed", "fsdp", "hub_", "push_to", "tpu", "logging_dir"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


def plain(kind):
    """Values of the type that an option has, or of a close one."""
    hint = str(kind)
    if "list" in hint:
        return st.lists(st.integers(-2, 9) if "int" in hint else texts.map(lambda text: text[:40]), max_size=3)
    if "bool" in hint:
        return st.booleans()
    if "int" in hint:
        return st.integers(-2, 70)
    if "float" in hint:
        return st.floats(-2, 2) | st.sampled_from((float("nan"), float("inf"), "1e-3"))
    return st.sampled_from(("copy", "split", "x", "train=0.5", "OWNER/NAME", "text", "", "nowhere")) | texts.map(
        lambda text: text[:40]
    )


def fitting(verb):
    """Recipes whose options are there, with values of their types; some of them make no sense all the same."""
    hints = get_type_hints(verb)
    needed = {
        name: plain(hints[name]) for name, option in verb.__dataclass_fields__.items()
        if option.default is MISSING and option.default_factory is MISSING
    }  # fmt: skip
    others = {name: plain(hints[name]) for name in hints if name not in needed}
    some = st.lists(st.sampled_from(sorted(others)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: others[name] for name in names} | needed)
    )
    return some.map(lambda options: yaml.dump(options, allow_unicode=True).encode("utf-8", "surrogatepass"))


def recipes(names):
    options = st.dictionaries(st.sampled_from(names) | st.sampled_from(("env", "config", "help")) | texts.map(
        lambda text: text[:40]), values | st.lists(texts, max_size=3) | st.dictionaries(texts, texts, max_size=2),
        max_size=5)  # fmt: skip
    return options.map(lambda options: yaml.dump(options, allow_unicode=True).encode("utf-8", "surrogatepass"))


def flags(names):
    flag = st.sampled_from([f"--{name}" for name in names] + ["--config", "--", "-", "--no_such"]) | texts
    return st.lists(flag | texts | st.sampled_from(("1", "-1", "0.5", "nan", "inf", "true")), max_size=4)


def parsed(target, kinds, recipe, given, folder):
    file = folder / "recipe.yaml"
    file.write_bytes(recipe)
    with mock.patch.dict(os.environ), contextlib.redirect_stderr(io.StringIO()), watched(
        target, ValueError, FileNotFoundError, SystemExit
    ), contextlib.redirect_stdout(io.StringIO()):  # fmt: skip
        RecipeParser(kinds, prog="moon2 verb").parse_args_and_config(["--config", str(file), *given])


yaml_texts = st.binary(max_size=60) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.sampled_from((
    b"a: &a [*a]", b"a: 2020-13-45", b"!!binary a", b"? [a]\n: b", b"!!python/object/apply:os.system ['id']", b"- a",
    b"a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b]", b"<<: a", b"a: 0x", b"a: 1_0:6_0", b"[" * 3_000, b"{" * 3_000,
    b"a: !!int x", b"a: !!float x", b"a: !!timestamp x", b"a: !!bool x", b"a: !!set {x}", b"\xff\xfe",
    b"%YAML 9.9\n--- a",
))  # fmt: skip


@fuzzed(0.05, verb=st.sampled_from(list(LIGHT)), data=st.data())
def test_a_recipe(verb, data, folder):
    recipe = data.draw(fitting(verb) | fitting(verb) | recipes(LIGHT[verb]) | yaml_texts)
    parsed("recipes", verb, recipe, [], folder)


@fuzzed(0.02, verb=st.sampled_from(list(LIGHT)), data=st.data())
def test_flags(verb, data, folder):
    parsed("flags", verb, b"{}", data.draw(flags(LIGHT[verb])), folder)


@fuzzed(0.005, kinds=st.sampled_from(HEAVY), recipe=recipes(FOUND))
def test_a_recipe_of_a_training(kinds, recipe, folder, monkeypatch):
    monkeypatch.chdir(folder)
    parsed("recipes of a training", kinds, recipe, [], folder)
