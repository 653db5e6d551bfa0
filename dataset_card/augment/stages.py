"""The work on one batch of products: pictures in worker processes, models here, and a count of what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from ..schema import conform_products
from ..shards import Tally
from .arguments import AugmentArguments
from .consistency import Scorer, keep_consistent
from .core_region import GroundingDetector
from .editing import PROMPTS, DiffusersEditor
from .enrichment import TemplateEnricher, VlmEnricher
from .entities import Lexicon, SpacyEntities
from .expansion import Expanded, Expansion, expand_product, read_first, to_jpeg
from .faithfulness import unsupported_claims
from .run_files import ADDED
from .subject import Segmenter, Subject, extract_subject
from .vision_language import VisionLanguageModel

TEXTS = ("product_id", "title", "description", "category_path", "attributes")


class Started(NamedTuple):
    """A batch whose pictures are being worked on.

    Attributes:
        pictures: of each product.
        not_segmented: rows at which the segmentation model failed, with the reason.
    """

    pictures: list[Future[Expanded]]
    not_segmented: dict[int, str]


class Stages:
    """The parts of the work on one batch of rows: pictures in processes, models here.

    Args:
        arguments: what to do.
        lexicon: of the catalogue; None if titles are left alone.
        workers: for pictures.
    """

    def __init__(self, arguments: AugmentArguments, lexicon: Lexicon | None, workers: Executor) -> None:
        self.arguments, self.lexicon, self.workers = arguments, lexicon, workers
        device = arguments.device
        self.vlm = (
            None
            if arguments.vlm is None
            else VisionLanguageModel(arguments.vlm, device, thinking_tokens=arguments.thinking_tokens)
        )
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
            folder=Path(),
            wants_main_image=self.editor is not None,
        )

    def start(self, table: pa.Table, source: Path) -> Started:
        """Hand the pictures of a batch to the workers.

        Args:
            table: the batch.
            source: the file that it is of, for messages and relative paths.

        Raises:
            ValueError: the segmentation model fails at every picture.
        """
        checked = conform_products(table.drop_columns([n for n in ADDED if n in table.column_names]), source.name)
        wanted = replace(self.expansion, folder=source.parent)
        ids, images = checked["product_id"].to_pylist(), [of_product.as_py() for of_product in checked["images"]]
        subjects, not_segmented = self._segmented(images, source.parent)
        pictures = [
            self.workers.submit(expand_product, product_id, of_product, wanted, subject)
            for product_id, of_product, subject in zip(ids, images, subjects, strict=True)
        ]
        return Started(pictures, not_segmented)

    def finish(
        self, table: pa.Table, source: Path, started: Started, tally: Tally
    ) -> tuple[dict[str, list], dict[str, float]]:
        """Collect the pictures of a batch, let the models work on it, and count.

        Args:
            table, source: as given to `start`.
            started: what `start` returned.
            tally: where to count.

        Returns:
            The added columns, and sums over the batch.

        Raises:
            ValueError: a model fails at all it is given.
        """
        texts = conform_products(table.select([n for n in TEXTS if n in table.column_names]), source.name)
        products = texts.to_pylist()
        expanded = [future.result() for future in started.pictures]
        for row, reason in started.not_segmented.items():
            _count_failure(tally, "segmentation", products[row], reason)
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
        regions = self._regions(products, expanded, tally)
        tally.add("core region", rows=sum(bool(region) for region in regions))
        images = [
            [{"bytes": data, "path": f"{kind}-{place}.jpg"} for place, (kind, data) in enumerate(of_product)]
            for of_product in variants
        ]
        return {"enriched_title": titles, "expanded_images": images, "core_region": regions}, numbers

    def _segmented(
        self, images: Sequence[Sequence[Mapping[str, Any]]], folder: Path
    ) -> tuple[list[Subject | None], dict[int, str]]:
        """The subjects by the segmentation model, where there is one; models do not go into worker processes."""
        subjects: list[Subject | None] = [None] * len(images)
        if self.segmenter is None:
            return subjects, {}
        failures = self.segmenter.failures
        with failures.batch():
            for row, of_product in enumerate(images):
                _, picture, _ = read_first(of_product, folder, self.arguments.max_side)
                if picture is None:
                    continue
                try:
                    subjects[row] = extract_subject(picture, self.segmenter)
                except Exception as error:  # whatever a model's own code raises; the worker finds the product without
                    failures.failure(row, error)
                else:
                    failures.success(subjects[row].method != "alpha")  # which needs no model
        return subjects, failures.reasons

    def _edit(
        self,
        products: Sequence[Mapping[str, Any]],
        expanded: Sequence[Expanded],
        variants: list[list[tuple[str, bytes]]],
        tally: Tally,
    ) -> None:
        if self.editor is None or not self.arguments.edits:
            return
        kinds = [list(PROMPTS)[number % len(PROMPTS)] for number in range(self.arguments.edits)]
        pictures = {row: _decode(e.main_image) for row, e in enumerate(expanded) if e.main_image is not None}
        wanted = [(row, number, kind) for row in pictures for number, kind in enumerate(kinds)]
        edited = self.editor.edit(
            [pictures[row] for row, _, _ in wanted],
            [products[row]["title"] for row, _, _ in wanted],
            [PROMPTS[kind] for _, _, kind in wanted],
            [self.arguments.seed + number for _, number, _ in wanted],
        )
        for (row, _, kind), picture in zip(wanted, edited, strict=True):
            if picture is not None:
                variants[row].append((f"edited-{kind}", to_jpeg(picture)))
        for item, reason in self.editor.failures.reasons.items():
            row, _, kind = wanted[item]
            _count_failure(tally, f"edit {kind}", products[row], reason)

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
        not_scored = np.zeros((len(products), width), dtype=bool)
        if places:
            scores[tuple(zip(*places, strict=True))] = self.scorer.score(pictures, titles)
            for item, reason in self.scorer.failures.reasons.items():
                row, column = places[item]
                _count_failure(tally, "score", products[row], reason)
                if column:
                    not_scored[row, column - 1] = True
        arguments = self.arguments
        verdict = keep_consistent(scores[:, 0], scores[:, 1:], arguments.score_threshold, arguments.score_margin)
        for reason, dropped in (("threshold", verdict.under_threshold), ("original", verdict.under_original)):
            tally.add(f"dropped: under the {reason}", rows=int(dropped.sum()))
        unjudged = np.isnan(scores[:, 0])
        tally.add("dropped: not scored", rows=int(not_scored[~unjudged].sum()))
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
        by_vlm = isinstance(self.enricher, VlmEnricher)
        failed = self.vlm.failures.reasons if by_vlm else {}
        for row, (title, product) in enumerate(zip(titles, products, strict=True)):
            if row in failed:
                tally.add("title: the model failed")
                _count_failure(tally, "title", product, failed[row])
            elif by_vlm and row in self.vlm.cut:
                tally.add("title: the answer was cut", f"product {product['product_id']}")
            elif not title and by_vlm:
                tally.add("title: none in the answer", f"product {product['product_id']}")
            elif not title:
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

    def _regions(
        self, products: Sequence[Mapping[str, Any]], expanded: Sequence[Expanded], tally: Tally
    ) -> list[list[float]]:
        if self.arguments.core_region == "none":
            return [[] for _ in products]
        if self.detector is None:
            return [of_product.core_region for of_product in expanded]
        rows = [row for row, e in enumerate(expanded) if e.picture is not None and not e.unreadable]
        boxes = self.detector.boxes(
            [_decode(expanded[row].picture) for row in rows], [products[row]["title"] for row in rows]
        )
        regions: list[list[float]] = [[] for _ in products]
        failed = {rows[item]: reason for item, reason in self.vlm.failures.reasons.items()}
        cut = {rows[item] for item in self.vlm.cut}
        tally.add("box: no picture", rows=len(products) - len(rows))
        for row, box in zip(rows, boxes, strict=True):
            regions[row] = box
            if row in failed:
                tally.add("box: the model failed")
                _count_failure(tally, "box", products[row], failed[row])
            elif box:
                tally.add("box: found")
            else:
                why = "the answer was cut" if row in cut else "none in the answer"
                tally.add(f"box: {why}", f"product {products[row]['product_id']}")
        return regions


def _count_failure(tally: Tally, what: str, product: Mapping[str, Any], reason: str) -> None:
    tally.add(f"failed: {what}: {reason.partition(':')[0]}", f"product {product['product_id']}: {reason}")


@contextmanager
def picture_workers(workers: int) -> Iterator[Executor]:
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
