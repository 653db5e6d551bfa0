"""`moon2 augment INPUT... OUTPUT`: enriched titles, expanded pictures and boxes, for every row of a catalogue."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from ..recipe import RecipeParser
from ..schema import conform_products
from ..shards import Tally, write_text
from .arguments import AugmentArguments
from .entities import Lexicon
from .report import counts_of, draw_sheet, markdown, summary
from .run_files import RunFiles, Shard, identity_of, write_part
from .source_files import find_products, open_products
from .stages import TEXTS, Stages, picture_workers

LEXICON = "lexicon.json"
USAGE = "moon2 augment INPUT... OUTPUT [options]"
NAMES = ("input", "output")
TRUTHS = ("yes", "no", "true", "false", "t", "f", "y", "n", "1", "0")  # as options that are true or false read them


def augment(arguments: AugmentArguments, progress: bool = True) -> dict[str, Any]:
    """Augment a catalogue. Every row comes out, in its order and with its columns as they were.

    Of one file another is made; of several, or of a folder, a folder with a file of the same name for each. The
    lexicon is that of the whole catalogue. Work is kept in OUT.parts, or in OUT/.augment, until the end, so that the
    same call goes on where an earlier one stopped.

    Args:
        arguments: what to do.
        progress: show a bar, and say which files of a folder are taken.

    Returns:
        The report, as it stands in OUT.report.json, or in OUT/augment_report.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file holds no products or is held out, or OUT is of another input or of other options.
    """
    sources, left_out = find_products(arguments.input, arguments.allow_held_out)
    files = RunFiles.of(arguments.output, sources)
    rows = [open_products(source).metadata.num_rows for source in sources]
    if progress and (len(sources) > 1 or left_out):
        print(f"takes {', '.join(source.name for source in sources)}")
        if left_out:
            print(f"leaves {', '.join(file.name for file in left_out)}: held out to be judged on")
    identity = identity_of(arguments, sources)
    if arguments.overwrite:
        files.forget()
    elif (report := files.finished_report(identity)) is not None:
        files.delete_work()
        return report
    files.begin(identity, arguments.overwrite)

    begin = time.perf_counter()
    shards = list(_shards(sources, files, rows, arguments.limit))
    lexicon = _lexicon(sources, files.work) if arguments.enricher != "none" else None
    total = sum(shard.rows for shard in shards)
    with tqdm(total=total, unit="product", disable=not progress) as bar, ExitStack() as stack:

        @cache
        def stages() -> Stages:  # models are loaded only where there is work left for them
            return Stages(arguments, lexicon, stack.enter_context(picture_workers(arguments.workers)))

        done = 0
        for shard in shards:
            if not shard.is_finished:
                _work_on(shard, arguments.batch_rows, stages, bar)
                shard.finish()
            done += shard.rows
            bar.update(done - bar.n)  # what was finished before, too
    report = {
        "products": total,
        "files": {shard.source.name: shard.rows for shard in shards},
        "left_out": [file.name for file in left_out],
        **counts_of([shard.notes() for shard in shards]),
        "replaced_columns": sorted({name for shard in shards for name in shard.replaced}),
        "seconds": round(time.perf_counter() - begin, 1),
        "made_from": identity,
    }
    draw_sheet([shard.target for shard in shards], files.sheet, files.out.name, arguments.max_side)
    write_text(files.page, markdown(report, files.out.name))
    write_text(files.report, json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    files.delete_work()
    return report


def _shards(sources: Sequence[Path], files: RunFiles, rows: Sequence[int], limit: int | None) -> Iterator[Shard]:
    """The files of the catalogue, up to the last row that is wanted."""
    left = sum(rows) if limit is None else limit
    for number, (source, target, of_file) in enumerate(zip(sources, files.targets, rows, strict=True)):
        if left > 0:
            yield Shard(number, source, target, files.work, min(of_file, left))
        left -= of_file


def _work_on(shard: Shard, batch_rows: int, stages: Callable[[], Stages], bar: tqdm) -> None:
    """Make the parts of a file that are not there yet."""
    missing = shard.missing(batch_rows)
    if (first := next(missing, None)) is None:
        return
    following: tuple | None = (first, stages().start(first[1], shard.source))
    while following is not None:
        (path, table), started = following
        ahead = next(missing, None)  # its pictures are worked on while models work on these
        following = None if ahead is None else (ahead, stages().start(ahead[1], shard.source))
        tally = Tally()
        added, numbers = stages().finish(table, shard.source, started, tally)
        write_part(path, table, added, {"tally": tally.as_json(), "numbers": numbers})
        bar.update(len(table))


def _lexicon(sources: Sequence[Path], work: Path) -> Lexicon:
    """Built from the texts of the whole catalogue, once."""
    path = work / LEXICON
    if not path.is_file():
        Lexicon.build(row for source in sources for row in _texts(source)).save(path)
    return Lexicon.load(path)


def _texts(source: Path) -> Iterator[dict[str, Any]]:
    parquet = open_products(source)
    columns = [name for name in TEXTS if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(10_000, columns=columns):
        yield from conform_products(pa.Table.from_batches([batch]), source.name).to_pylist()


class AugmentParser(RecipeParser):
    """Takes INPUT... OUTPUT wherever they stand in the line, or as options."""

    def __init__(self) -> None:
        super().__init__(
            AugmentArguments,
            prog="moon2 augment",
            usage=USAGE,
            description="Enrich titles and expand pictures of training products; an interrupted run goes on.",
        )
        for action in self._actions:
            action.required = False  # argparse asks for options alone; see `parse_known_args`

    def parse_known_args(self, args: Sequence[str], namespace: Namespace | None = None) -> tuple[Namespace, list[str]]:
        """Read a line without its recipe.

        Raises:
            ValueError: input or output is missing, or given twice.
        """
        found, words = super().parse_known_args(list(self._with_truths(args)), namespace)
        if any(word.startswith("-") for word in words):
            return found, words  # unknown options, which are told of together
        if words:
            if any(getattr(found, name) != self.get_default(name) for name in NAMES):
                raise ValueError(f"{' '.join(words)} beside --input or --output; give `{USAGE}`")
            if len(words) == 1:
                raise ValueError(f"{words[0]} stands alone; give `{USAGE}`")
            *found.input, found.output = words
        if missing := [f"no {name}" for name in NAMES if not getattr(found, name)]:
            raise ValueError(
                f"{' and '.join(missing)}; give `{USAGE}`, names in front of options of several values such as --kinds"
            )
        return found, []

    def _with_truths(self, args: Sequence[str]) -> Iterator[str]:
        """A line whose switches all have a value, or the next name would be taken for it."""
        switches = {option for action in self._actions if action.const is True for option in action.option_strings}
        for word, following in zip_longest(args, args[1:], fillvalue=""):
            yield word
            if word in switches and following.lower() not in TRUTHS:
                yield "true"


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 augment INPUT... OUTPUT`: augment, and print the report."""
    (arguments,) = AugmentParser().parse_args_and_config(argv)
    files = RunFiles.of(arguments.output, find_products(arguments.input, arguments.allow_held_out)[0])
    print(summary(augment(arguments), files.page, files.sheet))
