"""`moon2 demo`: draw a small shop, train an encoder on it, judge it on products it has not seen, and search them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import set_seed
from trl import TrlParser

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset import ProductQueries
from moon2_dataset.demo_catalogue import render_demo_catalogue, split_demo_catalogue
from moon2_training.encode import Encoder, ProductItems
from moon2_training.evaluate import format_table
from moon2_training.mini import MiniConfig, build_mini
from moon2_training.train import fit, product_texts
from moon2_training.trainer_config import Moon2TrainingArguments

from .search_sheet import Hit, Search, draw_searches

SHOWN_PRODUCTS = 5
QUERIES_OF_EACH_FORM = 2
BATCH_SIZE = 48


@dataclass
class DemoArguments:
    """Options of `moon2 demo`.

    Raises:
        ValueError: too few products to fill a batch and be judged on.
    """

    output_dir: str = field(
        default="runs/demo", metadata={"help": "Folder for the model, its scores and the pictures."}
    )
    num_products: int = field(default=600, metadata={"help": "Products to draw; a fifth is held out to judge on."})
    num_train_epochs: float = field(default=12, metadata={"help": "Times to go through the training queries."})
    seed: int = field(default=0, metadata={"help": "Seed of the shop and of the training."})

    def __post_init__(self):
        if self.num_products < BATCH_SIZE:
            raise ValueError(f"num_products={self.num_products}; give {BATCH_SIZE} or more")


def search_held_out(encoder: Encoder, data: ProductQueries) -> list[Search]:
    """Search the products of `data` with some of its queries: by words, by a photo, and by both.

    Args:
        encoder: the encoder.
        data: products to search and queries that ask for them.

    Returns:
        Six searches with the best five products each.
    """
    catalogue = encoder.encode(ProductItems(data.products), progress=False)  # (N, D)
    forms: dict[tuple[bool, bool], list[int]] = {(True, False): [], (False, True): [], (True, True): []}
    for row, query in enumerate(data.queries):
        rows = forms[query["text"] is not None, query["image"] is not None]
        if len(rows) < QUERIES_OF_EACH_FORM:
            rows.append(row)
    searches = []
    for row in (row for rows in forms.values() for row in rows):
        query = data.queries[row]
        images = [] if query["image"] is None else [query["image"]]
        embedding = encoder.encode([{"text": query["text"], "images": images}], progress=False)[0]  # (D,)
        scores = catalogue @ embedding  # (N,)
        best = np.argsort(-scores, kind="stable")[:SHOWN_PRODUCTS]
        hits = []
        for number in best.tolist():
            product = data.products[number]
            picture = load_image(product["images"][0]) if product["images"] else None
            hits.append(Hit(picture, product["title"], float(scores[number]), number == data.positive_row[row]))
        searches.append(Search(query["text"], load_image(images[0]) if images else None, hits))
    return searches


def format_searches(searches: Sequence[Search]) -> str:
    """Write searches as text; an arrow marks the product that was meant."""
    lines = []
    for text, photo, hits in searches:
        asked = " + ".join([f"“{text}”"] * (text is not None) + ["a photo"] * (photo is not None))
        lines.append(f"{asked}:")
        lines += [f"  {'→' if hit.right else ' '} {hit.score:5.2f}  {hit.title}" for hit in hits]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 demo`."""
    parser = TrlParser(
        DemoArguments, prog="moon2 demo", description="Train a small encoder on a drawn shop, search it."
    )
    (arguments,) = parser.parse_args_and_config(argv)
    begin = time.perf_counter()
    print(f"Drawing {arguments.num_products} products …", flush=True)
    shop = render_demo_catalogue(arguments.num_products, arguments.seed)
    training, held_out = split_demo_catalogue(*shop, seed=arguments.seed)
    print(
        f"{len(training.products)} products with {len(training)} queries to learn from, "
        f"{len(held_out.products)} with {len(held_out)} to be judged on ({time.perf_counter() - begin:.0f} s)"
    )
    set_seed(arguments.seed)
    model, processor = build_mini(
        MiniConfig(
            hidden_size=192, num_hidden_layers=3, moe_intermediate_size=192, vision_hidden_size=128, vision_depth=3
        ),
        product_texts(training),
    )
    results = fit(
        model,
        processor,
        Moon2TrainingArguments(
            output_dir=arguments.output_dir,
            num_train_epochs=arguments.num_train_epochs,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=1.5e-3,
            warmup_steps=0.05,
            weight_decay=0.05,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            seed=arguments.seed,
        ),
        training,
        held_out,
    )
    searches = search_held_out(Encoder(model, processor), held_out)
    picture = Path(arguments.output_dir) / "searches.png"
    draw_searches(searches).save(picture)
    print(f"\n{format_table(results)}\n\nSearches among products never seen in training; → is the one meant\n")
    print(f"{format_searches(searches)}\n\nThe same as a picture: {picture}; the model: {arguments.output_dir}")
    print(f"{time.perf_counter() - begin:.0f} s in all")
