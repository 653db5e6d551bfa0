"""The `moon2` command: a table of verbs, each imported only when it is called."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class Verb(NamedTuple):
    """One verb of the command.

    Args:
        target: `module:function`; the function takes the arguments after the verb as a list of strings.
        summary: One line for `moon2 --help`.
        extra: Extra of the distribution that brings what it needs; "" for none.
    """

    target: str
    summary: str
    extra: str = ""


VERBS = {
    "build-dataset": Verb("moon2_dataset.build.builder:main", "make products and queries of a shop's own files"),
    "augment": Verb("moon2_dataset.augment.pipeline:main", "enrich titles and expand pictures of training products"),
    "render": Verb("moon2_dataset.render_command:main", "draw a shop with known truth, and noise on purpose"),
    "convert": Verb("moon2_training.convert:main", "make a MOON2.0 encoder of a dense Qwen3-VL checkpoint"),
    "adapt": Verb("moon2_training.adapt:main", "train a generative Qwen3-VL on products before it is converted"),
    "validate": Verb("moon2_training.validate:main", "look through a data set and a recipe before a long run"),
    "train": Verb("moon2_training.train:main", "fit an encoder to a catalogue and its click log"),
    "evaluate": Verb("moon2_training.evaluate:main", "score encoders side by side: retrieval, categories, attributes"),
    "encode": Verb(
        "moon2_training.encode_catalogue:main", "encode a whole catalogue into Parquet files or a Lance table"
    ),
    "push": Verb("moon2_training.push:main", "put a saved encoder on the Hub"),
    "index": Verb(
        "moon2_space.index_command:main", "put a catalogue into an index on disk, or bring it up to date", "space"
    ),
    "search": Verb("moon2_space.search_command:main", "search an index by words, by a picture, or by both", "space"),
    "demo": Verb("moon2_space.demo:main", "index a drawn shop or your products, search them, open the Space", "space"),
}


def usage() -> str:
    """Return the text of `moon2 --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return f"""usage: moon2 VERB [options]
       moon2 VERB --help
       moon2 --version

verbs:
{verbs}

Wrong input ends with one line on stderr; MOON2_TRACEBACK=1 shows the whole traceback."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb of the `moon2` command.

    Args:
        argv: The verb and its arguments; `sys.argv[1:]` if None.

    Returns:
        Exit status: 0 done, 1 wrong input or a disk that cannot be written, 2 no such verb, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"moon2 {version('moon2')}")
        return 0
    if name not in VERBS:
        from difflib import get_close_matches

        close = get_close_matches(name, VERBS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"choose from {', '.join(VERBS)}"
        print(f"moon2: no verb `{name}`; {hint}", file=sys.stderr)
        return 2
    from pkgutil import resolve_name

    try:
        resolve_name(VERBS[name].target)(rest)
    except KeyboardInterrupt:
        _tell(f"moon2 {name}: interrupted")
        return 130
    except ModuleNotFoundError as error:
        if not VERBS[name].extra:
            raise
        _tell(f'moon2 {name}: {error}; pip install "moon2[{VERBS[name].extra}]"')
        return 1
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        if os.environ.get("MOON2_TRACEBACK") == "1":
            raise
        _tell(f"moon2 {name}: {error}")
        return 1
    except Exception as error:
        from moon2_dataset.disk_errors import told_of_disk

        told = told_of_disk(error)
        if told is None or os.environ.get("MOON2_TRACEBACK") == "1":
            raise
        _tell(f"moon2 {name}: {told}")
        return 1
    return 0


def _tell(message: str) -> None:
    """Write a line on stderr, and not behind a progress bar that stands there."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
