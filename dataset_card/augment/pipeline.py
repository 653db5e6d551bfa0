"""`moon2 augment IN OUT`: enriched titles, expanded pictures and the product's box, for every row of a catalogue."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from PIL import Image
from tqdm.auto import tqdm
from trl import TrlParser

from ..schema import OPTIONAL_PRODUCT_FEATURES, conform_products
from ..shards import ShardWriter, Tally, numbered, read_notes, write_text
from .consistency import Scorer, keep_consistent
from .core_region import GroundingDetector
from .editing import PROMPTS, DiffusersEditor
from .enrichment import TemplateEnricher, VlmEnricher
from .entities import Lexicon, SpacyEntities
from .expansion import Expanded, Expansion, expand_product, read_first, to_jpeg
from .faithfulness import unsupported_claims
from .report import draw_sheet, markdown, merge_notes, summary
from .subject import Segmenter, Subject, extract_subject
from .variants import KINDS
from .vision_language import VisionLanguageModel

ENRICHERS = ("template", "vlm", "none")
REGIONS = ("extraction", "vlm", "none")
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval", "held")
TEXTS = ("product_id", "title", "description", "category_path", "attributes")
ADDED = tuple(OPTIONAL_PRODUCT_FEATURES)
MANIFEST, LEXICON, PART = "manifest.json", "lexicon.json", "part"
WITHOUT_EFFECT = ("input", "output", "workers", "device", "overwrite", "allow_held_out")  # on what comes out


@dataclass
class AugmentArguments:
    """Options of `moon2 augment IN OUT`.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    input: str = field(metadata={"help": "Products: a Parquet file."})
    output: str = field(metadata={"help": "Parquet file to write; an interrupted run goes on."})
    enricher: str = field(
        default="template",
        metadata={"help": "Who writes enriched titles. template: no model; vlm: the model of --vlm; none."},
    )
    vlm: str | None = field(default=None, metadata={"help": "Image-text-to-text model, a folder or Hub id."})
    spacy: str | None = field(default=None, metadata={"help": "spaCy pipeline that finds further entities."})
    variants: int = field(default=3, metadata={"help": "Variants of a product's first picture."})
    kinds: list[str] = field(default_factory=lambda: list(KINDS), metadata={"help": "Kinds of variants."})
    segmenter: str | None = field(
        default=None, metadata={"help": "Image-segmentation model that finds the product instead of its background."}
    )
    editor: str = field(
        default="none",
        metadata={"help": "Generative edits besides the variants: none, or diffusers:ID of a pipeline."},
    )
    edits: int = field(default=3, metadata={"help": "Generative edits of a product, with an editor."})
    scorer: str = field(
        default="none",
        metadata={"help": "Model that scores pictures against titles: none, a CLIP-like model or a MOON2.0 model."},
    )
    score_threshold: float = field(default=0.2, metadata={"help": "A variant that scores lower is dropped."})
    score_margin: float = field(
        default=0.05, metadata={"help": "A variant that scores lower than its original by more is dropped."}
    )
    core_region: str = field(
        default="extraction",
        metadata={"help": "Where the product's box comes from. extraction: its mask; vlm: the model of --vlm; none."},
    )
    max_side: int = field(default=512, metadata={"help": "Pixels; longer pictures are made smaller before all else."})
    workers: int = field(default=0, metadata={"help": "Processes that work on pictures; 0 for one on each core."})
    seed: int = field(default=0, metadata={"help": "Of all chance, with the product's id."})
    batch_rows: int = field(default=256, metadata={"help": "Rows in memory at a time, and lost when killed."})
    limit: int | None = field(default=None, metadata={"help": "Only the first rows, to look at the result."})
    device: str | None = field(default=None, metadata={"help": "Where models run; the accelerator if there is one."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew where there is something already."})
    allow_held_out: bool = field(
        default=False, metadata={"help": "Take a file whose name says that products are judged on it."}
    )

    def __post_init__(self):
        for name, allowed in (("enricher", ENRICHERS), ("core_region", REGIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; give one of {', '.join(allowed)}")
        if not set(self.kinds) <= set(KINDS) or not self.kinds:
            raise ValueError(f"kinds={self.kinds}; give one or more of {', '.join(KINDS)}")
        if self.editor != "none" and not self.editor.startswith("diffusers:"):
            raise ValueError(f"editor={self.editor!r}; give none or diffusers:ID")
        if self.vlm is None and "vlm" in (self.enricher, self.core_region):
            raise ValueError("enricher or core_region is vlm; give the model with --vlm ID")
        least = {"variants": 0, "edits": 0, "max_side": 32, "workers": 0, "batch_rows": 1, "limit": 1}
        for name, smallest in least.items():
            if (value := getattr(self, name)) is not None and value < smallest:
                raise ValueError(f"{name}={value}; give {smallest} or more")
        words = Path(self.input).stem.lower().replace("_", "-").replace(".", "-").split("-")
        if held_out := [word for word in words if word in HELD_OUT]:
            if not self.allow_held_out:
                raise ValueError(
                    f"{self.input}: '{held_out[0]}' in its name says that products are judged on it, and those are "
                    "never augmented; give the training split, or --allow_held_out true"
                )


def augment(arguments: AugmentArguments, progress: bool = True) -> dict[str, Any]:
    """Augment a catalogue. Every row comes out, in its order and with its columns as they were.

    Work is kept in OUT.parts until the end, so that the same call goes on where an earlier one stopped.

    Args:
        arguments: what to do.
        progress: show a bar.

    Returns:
        The report, as it stands in OUT.report.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no products, or OUT is of another input or of other options.
    """
    out, source = Path(arguments.output), Path(arguments.input)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; give a Parquet file of products")
    if out.suffix != ".parquet" or out.resolve() == source.resolve():
        raise ValueError(f"output={out}; give a Parquet file other than the input")
    parquet = _open(source)
    parts, report_path = out.with_name(f"{out.name}.parts"), out.with_name(f"{out.name}.report.json")
    identity = _identity(arguments, source)
    if arguments.overwrite:
        _delete_parts(parts)
        report_path.unlink(missing_ok=True)
    elif report_path.is_file() and out.is_file():
        report = json.loads(report_path.read_text(encoding="utf-8"))
        _refuse_other(report["made_from"], identity, report_path)
        _delete_parts(parts)
        return report
    _begin(parts, identity, out, arguments.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)

    begin = time.perf_counter()
    rows = min(parquet.metadata.num_rows, arguments.limit or parquet.metadata.num_rows)
    lexicon = _lexicon(parquet, source, parts) if arguments.enricher != "none" else None
    paths = numbered(parts, PART)
    with tqdm(total=rows, unit="product", disable=not progress) as bar:
        missing = _missing(parquet, rows, arguments.batch_rows, paths, bar)
        if (first := next(missing, None)) is not None:
            with _executor(arguments.workers) as workers:
                stages = Stages(arguments, lexicon, source, workers)
                following: tuple | None = (first, stages.start(first[1]))
                while following is not None:
                    (path, table), started = following
                    ahead = next(missing, None)  # its pictures are worked on while models work on these
                    following = None if ahead is None else (ahead, stages.start(ahead[1]))
                    tally = Tally()
                    added, numbers = stages.finish(table, started, tally)
                    writer = ShardWriter(path, _schema(table.schema))
                    writer.write(_with_columns(table, added))
                    writer.close({"tally": tally.as_json(), "numbers": numbers})
                    bar.update(len(table))
    finished = sorted(parts.glob(f"{PART}-*.parquet"))
    notes = merge_notes([read_notes(path) for path in finished])
    replaced = sorted(set(ADDED) & set(parquet.schema_arrow.names))
    report = {
        "products": rows,
        **notes,
        "replaced_columns": replaced,
        "seconds": round(time.perf_counter() - begin, 1),
        "made_from": identity,
    }
    _assemble(finished, out, _schema(parquet.schema_arrow))
    draw_sheet(out, out.with_name(f"{out.name}.contact.png"), arguments.max_side)
    write_text(out.with_name(f"{out.name}.report.md"), markdown(report, out.name))
    write_text(report_path, json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    _delete_parts(parts)
    return report


class Stages:
    """The parts of the work on one batch of rows: pictures in processes, models here.

    Args:
        arguments: what to do.
        lexicon: of the catalogue; None if titles are left alone.
        source: the input, for messages and relative paths.
        workers: for pictures.
    """

    def __init__(self, arguments: AugmentArguments, lexicon: Lexicon | None, source: Path, workers: Executor) -> None:
        self.arguments, self.lexicon, self.source, self.workers = arguments, lexicon, source, workers
        device = arguments.device
        self.vlm = None if arguments.vlm is None else VisionLanguageModel(arguments.vlm, device)
        spacy = None if arguments.spacy is None else SpacyEntities(arguments.spacy)
        self.enricher = None
        if arguments.enricher == "template":
            self.enricher = TemplateEnricher(lexicon, spacy)
        elif arguments.enricher == "vlm":
            self.enricher = VlmEnricher(self.vlm, lexicon, spacy)
        self.detector = GroundingDetector(self.vlm) if arguments.core_region == "vlm" else None
        self.segmenter = None if arguments.segmenter is None else Segmenter(arguments.segmenter, device)
        self.editor = None
        if arguments.editor != "none":
            self.editor = DiffusersEditor(arguments.editor.removeprefix("diffusers:"), device)
        self.scorer = None if arguments.scorer == "none" else Scorer(arguments.scorer, device)
        self.expansion = Expansion(
            kinds=tuple(arguments.kinds),
            per_product=arguments.variants,
            max_side=arguments.max_side,
            seed=arguments.seed,
            folder=source.parent,
            wants_main_image=self.editor is not None,
        )

    def start(self, table: pa.Table) -> list[Future[Expanded]]:
        """Hand the pictures of a batch to the workers."""
        checked = conform_products(table.drop_columns([n for n in ADDED if n in table.column_names]), self.source.name)
        submitted = []
        for product_id, images in zip(checked["product_id"], checked["images"], strict=True):
            images = images.as_py()
            subject = self._segmented(images)
            submitted.append(self.workers.submit(expand_product, product_id.as_py(), images, self.expansion, subject))
        return submitted

    def finish(
        self, table: pa.Table, started: Sequence[Future[Expanded]], tally: Tally
    ) -> tuple[dict[str, list], dict[str, float]]:
        """Collect the pictures of a batch, let the models work on it, and count.

        Returns:
            The added columns, and sums over the batch.
        """
        texts = conform_products(table.select([n for n in TEXTS if n in table.column_names]), self.source.name)
        products = texts.to_pylist()
        expanded = [future.result() for future in started]
        for product, of_product in zip(products, expanded, strict=True):
            tally.add(f"subject: {of_product.method}")
            for number, reason in of_product.unreadable:
                tally.add("unreadable image", f"product {product['product_id']}, image {number}: {reason}")
        variants = [list(of_product.variants) for of_product in expanded]
        self._edit(products, expanded, variants, tally)
        for of_product in variants:
            for kind, _ in of_product:
                tally.add(f"made: {kind}")
        numbers = self._drop_inconsistent(products, expanded, variants, tally)
        titles = self._enrich(products, expanded, tally)
        regions = self._regions(products, expanded)
        tally.add("core region", rows=sum(bool(region) for region in regions))
        images = [
            [{"bytes": data, "path": f"{kind}-{place}.jpg"} for place, (kind, data) in enumerate(of_product)]
            for of_product in variants
        ]
        return {"enriched_title": titles, "expanded_images": images, "core_region": regions}, numbers

    def _segmented(self, images: Sequence[Mapping[str, Any]]) -> Subject | None:
        """The subject by the segmentation model, where there is one; models do not go into worker processes."""
        if self.segmenter is None:
            return None
        _, picture, _ = read_first(images, self.source.parent, self.arguments.max_side)
        return None if picture is None else extract_subject(picture, self.segmenter)

    def _edit(
        self,
        products: Sequence[Mapping[str, Any]],
        expanded: Sequence[Expanded],
        variants: list[list[tuple[str, bytes]]],
        tally: Tally,
    ) -> None:
        if self.editor is None or not self.arguments.edits:
            return
        rows = [row for row, of_product in enumerate(expanded) if of_product.main_image is not None]
        kinds = list(PROMPTS)
        for row in rows:
            picture = _decode(expanded[row].main_image)
            chosen = [kinds[number % len(kinds)] for number in range(self.arguments.edits)]
            title = products[row]["title"]
            edited = self.editor.edit(
                [picture] * len(chosen),
                [title] * len(chosen),
                [PROMPTS[kind] for kind in chosen],
                [self.arguments.seed + number for number in range(len(chosen))],
            )
            variants[row] += [(f"edited-{kind}", to_jpeg(e)) for kind, e in zip(chosen, edited, strict=True)]

    def _drop_inconsistent(
        self,
        products: Sequence[Mapping[str, Any]],
        expanded: Sequence[Expanded],
        variants: list[list[tuple[str, bytes]]],
        tally: Tally,
    ) -> dict[str, float]:
        """Drop the variants that no longer show what the title says; returns sums of the scores."""
        width = max(map(len, variants), default=0)
        if self.scorer is None or not width:
            return {}
        pictures, titles, places = [], [], []
        for row, (product, of_product) in enumerate(zip(products, expanded, strict=True)):
            if of_product.picture is None or not product["title"]:
                continue
            for column, data in enumerate([of_product.picture, *(data for _, data in variants[row])]):
                pictures.append(_decode(data))
                titles.append(product["title"])
                places.append((row, column))
        scores = np.full((len(products), width + 1), np.nan, dtype=np.float32)
        if places:
            scores[tuple(zip(*places, strict=True))] = self.scorer.score(pictures, titles)
        arguments = self.arguments
        verdict = keep_consistent(scores[:, 0], scores[:, 1:], arguments.score_threshold, arguments.score_margin)
        for reason, dropped in (("threshold", verdict.under_threshold), ("original", verdict.under_original)):
            tally.add(f"dropped: under the {reason}", rows=int(dropped.sum()))
        unjudged = np.isnan(scores[:, 0])
        for row, of_product in enumerate(variants):
            if not unjudged[row]:
                variants[row] = [v for v, kept in zip(of_product, verdict.kept[row], strict=False) if kept]
        return {
            "scored_originals": int((~unjudged).sum()),
            "score_of_originals": float(np.nansum(scores[:, 0])),
            "scored_variants": int((~np.isnan(scores[:, 1:])).sum()),
            "score_of_variants": float(np.nansum(scores[:, 1:])),
        }

    def _enrich(self, products: Sequence[Mapping[str, Any]], expanded: Sequence[Expanded], tally: Tally) -> list[str]:
        """T⁺ of every product; "" where it is the title itself, there is none, or the guard rejects it."""
        if self.enricher is None:
            return [""] * len(products)
        pictures = [[_decode(e.picture)] if e.picture and self.vlm is not None else [] for e in expanded]
        titles = self.enricher.enrich(products, pictures)
        for row, (title, product) in enumerate(zip(titles, products, strict=True)):
            if not title:
                tally.add("title: none")
            elif title == product["title"]:
                tally.add("title: unchanged")
                titles[row] = ""
            elif claims := unsupported_claims(title, product, self.lexicon):
                tally.add(f"title rejected: {claims[0].partition(':')[0]}", f"{title!r}: {'; '.join(claims)}")
                titles[row] = ""
            else:
                tally.add("title: enriched")
        return titles

    def _regions(self, products: Sequence[Mapping[str, Any]], expanded: Sequence[Expanded]) -> list[list[float]]:
        if self.arguments.core_region == "none":
            return [[] for _ in products]
        if self.detector is None:
            return [of_product.core_region for of_product in expanded]
        rows = [row for row, e in enumerate(expanded) if e.picture is not None and not e.unreadable]
        boxes = self.detector.boxes(
            [_decode(expanded[row].picture) for row in rows], [products[row]["title"] for row in rows]
        )
        regions: list[list[float]] = [[] for _ in products]
        for row, box in zip(rows, boxes, strict=True):
            regions[row] = box
        return regions


def _open(source: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(source, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source}: cannot be read as Parquet ({error}); write the file again") from error
    if not parquet.metadata.num_rows:
        raise ValueError(f"{source}: no rows; give at least one")
    names = [name for name in parquet.schema_arrow.names if name not in ADDED]
    conform_products(parquet.schema_arrow.empty_table().select(names), source.name)  # refuses other tables
    return parquet


def _lexicon(parquet: pq.ParquetFile, source: Path, parts: Path) -> Lexicon:
    """Built from the texts of the whole catalogue, once."""
    path = parts / LEXICON
    if not path.is_file():
        columns = [name for name in TEXTS if name in parquet.schema_arrow.names]
        batches = parquet.iter_batches(10_000, columns=columns)
        tables = (conform_products(pa.Table.from_batches([batch]), source.name) for batch in batches)
        Lexicon.build(row for table in tables for row in table.to_pylist()).save(path)
    return Lexicon.load(path)


def _missing(
    parquet: pq.ParquetFile, rows: int, batch_rows: int, paths: Iterator[Path], bar: tqdm
) -> Iterator[tuple[Path, pa.Table]]:
    """The batches that no finished part holds, with the path of their part."""
    seen = 0
    for batch in parquet.iter_batches(batch_rows):
        table = pa.Table.from_batches([batch]).slice(0, rows - seen)
        if not len(table):
            return
        seen += len(table)
        path = next(paths)
        if path.is_file():
            bar.update(len(table))
        else:
            yield path, table


@contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    """Processes for pictures; what has not begun is cancelled when the run is interrupted."""
    count = workers or os.cpu_count() or 1
    if count == 1:
        executor: Executor = ThreadPoolExecutor(1)
    else:
        executor = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _one_thread() -> None:
    """OpenCV's own threads would only stand in the way of the other processes."""
    import cv2

    cv2.setNumThreads(1)


def _decode(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def _schema(schema: pa.Schema) -> pa.Schema:
    """The input's schema with the added columns, in the features of `datasets` too where it has them."""
    kept = pa.schema([field for field in schema if field.name not in ADDED], schema.metadata)
    added = OPTIONAL_PRODUCT_FEATURES.arrow_schema
    if kept.metadata and b"huggingface" in kept.metadata:
        return Features(Features.from_arrow_schema(kept) | OPTIONAL_PRODUCT_FEATURES).arrow_schema
    return pa.schema([*kept, *added], kept.metadata)


def _with_columns(table: pa.Table, added: Mapping[str, list]) -> pa.Table:
    schema = _schema(table.schema)
    columns = [
        pa.array(added[field.name], field.type) if field.name in added else table[field.name] for field in schema
    ]
    return pa.table(columns, schema=schema)


def _assemble(parts: Sequence[Path], out: Path, schema: pa.Schema) -> None:
    writer = ShardWriter(out, schema)
    for path in parts:
        part = pq.ParquetFile(path)
        for group in range(part.num_row_groups):
            writer.write(part.read_row_group(group))
    writer.close()


def _identity(arguments: AugmentArguments, source: Path) -> dict[str, Any]:
    """What decides what comes out."""
    state = source.stat()
    options = {name: value for name, value in asdict(arguments).items() if name not in WITHOUT_EFFECT}
    return {
        "input": source.name,
        "input_bytes": state.st_size,
        "input_changed": state.st_mtime_ns,
        **options,
        "moon2": version("moon2"),
    }


def _begin(parts: Path, identity: Mapping[str, Any], out: Path, overwrite: bool) -> None:
    manifest = parts / MANIFEST
    if manifest.is_file():
        _refuse_other(json.loads(manifest.read_text(encoding="utf-8")), identity, parts)
    elif out.exists() and not overwrite:
        raise ValueError(f"{out} is there and no report says what it was made from; give --overwrite true")
    else:
        parts.mkdir(parents=True, exist_ok=True)
        write_text(manifest, json.dumps(identity, indent=2))


def _refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    changed = [f"{name}={before.get(name)!r}, now {now[name]!r}" for name in now if before.get(name) != now[name]]
    if changed:
        raise ValueError(
            f"{where} was begun with {'; '.join(changed)}; give the same again, another output, or --overwrite true"
        )


def _delete_parts(parts: Path) -> None:
    """The manifest goes last: parts without one would be taken for another run's."""
    if parts.is_dir():
        for path in parts.iterdir():
            if path.name != MANIFEST:
                path.unlink()
        shutil.rmtree(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 augment IN OUT`: augment, and print the report."""
    argv = list(argv or ())
    if len(argv) > 1 and not argv[0].startswith("-") and not argv[1].startswith("-"):
        argv[:2] = ["--input", argv[0], "--output", argv[1]]
    parser = TrlParser(
        AugmentArguments,
        prog="moon2 augment",
        description="Enrich titles and expand pictures of training products; an interrupted run goes on.",
    )
    (arguments,) = parser.parse_args_and_config(argv)
    print(summary(augment(arguments), Path(arguments.output)))
