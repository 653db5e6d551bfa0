"""Options of a command from its arguments and a recipe in YAML, which is checked before anything is made of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from reprlib import repr as short_repr
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

MAX_BYTES = 1 << 15  # of a recipe
ENVIRONMENT = "env"
_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}


class RecipeParser(TrlParser):
    """`TrlParser` that says in one line what is wrong with a recipe, whatever stands in it.

    A recipe is given as `--config FILE`; flags override it. Its `env` sets environment variables. A text where a list
    of texts belongs is a list of one.

    Example:
        >>> (arguments,) = RecipeParser(PushArguments, prog="moon2 push").parse_args_and_config(argv)
    """

    def parse_args_and_config(self, args: Iterable[str] | None = None, **options: Any) -> tuple[Any, ...]:
        """Make the dataclasses of a command line and the recipe it names.

        Args:
            args: of the command line; None: of this process.
            options: as `TrlParser` takes them.

        Raises:
            FileNotFoundError: there is no such recipe.
            ValueError: the recipe cannot be read, names an option that the command does not have, or gives one a
                value of another type; or as the dataclasses raise it.
        """
        args = list(sys.argv[1:] if args is None else args)
        if "--config" in args:
            place = args.index("--config") + 1
            if place == len(args):
                raise ValueError("--config names no file; give a recipe in YAML")
            self._check(args[place], read_recipe(args[place]))
        return super().parse_args_and_config(args, **options)

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Take over what a recipe gives."""
        hints = self._hints()
        for name, value in config.items():
            if isinstance(value, str) and not _fits(value, hint := hints.get(name)) and _fits([value], hint):
                config[name] = [value]
        return super().set_defaults_with_config(**config)

    def _hints(self) -> dict[str, Any]:
        return {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}

    def _check(self, path: str, recipe: Mapping[str, Any]) -> None:
        hints = self._hints()
        options = {action.dest for action in self._actions} & hints.keys()
        for name, value in recipe.items():
            if name == ENVIRONMENT:
                _check_environment(path, value)
                continue
            if name not in options:
                close = get_close_matches(name[:80], options, n=1)
                hint = f"did you mean {close[0]}?" if close else f"see `{self.prog} --help`"
                raise ValueError(f"{path}: no option {short_repr(name)}; {hint}")
            if not (_fits(value, hints[name]) or isinstance(value, str) and _is_read(value, hints[name])):
                raise ValueError(f"{path}: {name} is {short_repr(value)}; give {_told(hints[name])}")


class _Loader(yaml.SafeLoader):
    """Without merged mappings, which a few lines can make larger than the memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.MarkedYAMLError(problem="mappings are not merged; write every option out")


def read_recipe(path: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as YAML, is no mapping of names, or is too large.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise FileNotFoundError(f"{path}: no such recipe; give a YAML file")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path}: over {MAX_BYTES >> 10} kB is no recipe; give a YAML file of options")
        text = file.read_bytes().decode("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: cannot be read ({error}); write it as UTF-8") from error
    try:
        recipe = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as YAML ({told})") from error
    if not isinstance(recipe, dict) or not all(isinstance(name, str) for name in recipe):
        raise ValueError(f"{path}: no mapping of options to values; write one `option: value` a line")
    return recipe


def _check_environment(path: str, value: Any) -> None:
    fits = isinstance(value, dict) and all(
        isinstance(name, str) and name and "=" not in name and isinstance(of_name, str | int | float)
        for name, of_name in value.items()
    )
    if not fits or not all(map(_can_be_in_environment, (text for pair in value.items() for text in pair))):
        raise ValueError(f"{path}: {ENVIRONMENT} is {short_repr(value)}; give names of variables and texts or numbers")


def _can_be_in_environment(part: Any) -> bool:
    try:
        return b"\0" not in os.fsencode(str(part))
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _is_read(text: str, hint: Any) -> bool:
    """Whether a text is a list of one, or is read as it would be from the command line."""
    if _fits([text], hint):
        return True
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return not any(get_origin(part) in (list, Literal) for part in parts)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a recipe is of a type; of types that YAML does not have, every value is."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is list:
        return isinstance(value, list) and all(_fits(part, parts[0]) for part in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, str)
    return isinstance(value, hint) if hint in _PLAIN else True


def _told(hint: Any) -> str:
    """A type as messages call it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_told(part) for part in parts)
    if origin is list:
        return f"a list, each {_told(parts[0])}"
    if origin is Literal:
        return " or ".join(map(str, parts))
    return _PLAIN.get(hint, "a mapping" if dict in (hint, origin) else "a text")
