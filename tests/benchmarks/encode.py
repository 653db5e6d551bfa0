"""How fast `moon2 encode` is: against the dense backbone's own forward, by its parts, and with more products.

Weights are random, of the shapes of speed_bench.py; split experts have the dense model's active FLOPs. The forward is
timed on model inputs that lie ready on the device, made of the same products in the same batches; encoding reads the
products from a file, decodes their pictures, computes and writes the shards, as the command does.

Example:
    python tests/benchmarks/encode.py --output encode.json
    python tests/benchmarks/encode.py --shape qwen3-vl-2b --device cuda --items 2048 --output encode.json
    python tests/benchmarks/encode.py --measures int8 --model space_app/moon2-mini \
        --products shop/products-validation.parquet --queries shop/queries-validation.parquet
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import send_to_device
from speed_bench import SHAPES, Bench
from speed_bench import Options as SpeedOptions
from transformers import ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_moon2 import Moon2Model, Moon2Processor
from modeling_moon2.processing_moon2 import load_image
from moon2_dataset import load_product_queries
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_dataset.product_stream import ProductStream
from moon2_dataset.shards import ShardWriter
from moon2_training.batch_inputs import BatchInputs
from moon2_training.catalogue_shards import ShardJob, _product, encode_shards
from moon2_training.encode import Encoder
from moon2_training.encode_catalogue import load_for_encoding
from moon2_training.encoded_pictures import decode_picture
from moon2_training.evaluate import evaluate_encoder
from moon2_training.mini import MiniConfig, build_mini, train_tokenizer
from moon2_training.vector_columns import vector_array
from moon2_training.vector_files import ShardFiles, vectors_schema

RENDERED = 300  # products; more are the same again under other ids
VIEW = "multimodal"
SHARD_ROWS = 16_384
TARGET = 0.9  # of the dense backbone's own forward
SPREAD = 0.15  # of the cost of a product, between the sizes
SMALL = MiniConfig(
    hidden_size=64, num_hidden_layers=2, moe_intermediate_size=64, vision_hidden_size=64, vision_depth=2
)


@dataclass
class Options(SpeedOptions):
    """What is measured, and how; as on the command line."""

    shape: str = "mini"
    items: int = 256
    batch_size: int = 64
    workers: int | None = None
    sizes: list[int] = field(default_factory=lambda: [1000, 10_000])
    products: list[str] | None = None
    queries: str | None = None
    model: str | None = None


def read_products(options: Options) -> pa.Table:
    """Products with id, title and pictures: rendered, or those that were given."""
    if options.products:
        return pa.concat_tables(ProductStream(options.products).tables())
    products, _ = render_demo_catalogue(RENDERED, progress=False)
    return products.select_columns(["product_id", "title", "images"]).with_format("arrow")[:]


def write_catalogue(products: pa.Table, rows: int, path: Path) -> ProductStream:
    """A catalogue of so many products, each under an id of its own."""
    with pq.ParquetWriter(path, products.schema) as writer:
        for first in range(0, rows, len(products)):
            part = products.slice(0, rows - first)
            ids = pa.array([f"{first + row}" for row in range(len(part))])
            writer.write_table(part.set_column(0, "product_id", ids), row_group_size=100)
    return ProductStream(str(path))


def make_processor(shape: str, titles: list[str]) -> ProcessorMixin:
    """A processor of the shape: 64-pixel pictures for the mini, 512-pixel ones, 256 visual tokens, for Qwen3-VL-2B."""
    if shape == "mini":
        return build_mini(MiniConfig(num_experts=0), titles)[1]
    tokenizer = train_tokenizer(titles, MiniConfig.vocab_size)
    tokenizer.model_max_length = 4096
    size = {"shortest_edge": 256**2, "longest_edge": 512**2}
    pictures = Qwen2VLImageProcessorPil(patch_size=16, temporal_patch_size=2, merge_size=2, size=size)
    return Moon2Processor(image_processor=pictures, tokenizer=tokenizer)


class EncodeBench(Bench):
    """Measures with models whose tokens of pictures are those of a processor.

    Args:
        options: of the command line.
        work: folder for catalogues and shards.
    """

    def __init__(self, options: Options, work: Path) -> None:
        super().__init__(options)
        self.work, self._numbers = work, count()
        self.products = read_products(options)
        self.processor = make_processor(options.shape, self.products["title"].to_pylist())
        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            setattr(self.dense, name, getattr(self.processor, name))

    def encoder(self, model: Moon2Model | None = None, processor: ProcessorMixin | None = None) -> Encoder:
        """The encoder that is measured."""
        model, processor = model or self.model("split"), processor or self.processor
        return Encoder(model, processor, self.options.batch_size, self.options.workers)

    def encode(self, stream: ProductStream, encoder: Encoder) -> None:
        """Encode a catalogue into a folder of its own, and delete it."""
        folder = self.work / f"run-{next(self._numbers)}"
        for part in ("vectors", "records"):
            (folder / part).mkdir(parents=True)
        job = ShardJob(stream, folder, SHARD_ROWS, (VIEW,), "float32", encoder.width)
        records = list(encode_shards(job, range(job.num_shards), encoder))
        if sum(record.rows for record in records) != stream.num_rows:
            raise RuntimeError(f"{stream.num_rows} products, of which {records} were written")
        shutil.rmtree(folder)

    def batches(self, stream: ProductStream, encoder: Encoder) -> list[dict[str, Any]]:
        """The model inputs of all products in the batches in which they are encoded, on the device."""
        items = [item for item in catalogue_items(stream)]
        return [send_to_device(dict(inputs), self.options.device) for inputs in encoder.model_inputs(items, VIEW)]


def catalogue_items(stream: ProductStream) -> list[dict[str, Any]]:
    """Products as the command gives them to the encoder."""
    rows = [values for table in stream.tables() for values in table.to_pylist()]
    products = [_product(stream, row, values) for row, values in enumerate(rows)]
    return [{"text": product.title, "images": product.pictures} for product in products]


def forward(model: Moon2Model, batches: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Embed batches that lie ready."""
    with torch.inference_mode():
        return [model(**batch).embeddings.cpu() for batch in batches]


def measure_ratio(bench: EncodeBench) -> None:
    """Encoding against the dense backbone's own forward, and where the rest of the time goes."""
    items = bench.options.items
    stream = write_catalogue(bench.products, items, bench.work / "ratio.parquet")
    encoder = bench.encoder()
    batches = bench.batches(stream, encoder)
    candidates = {
        "dense forward": lambda: forward(bench.model("dense"), batches),
        "split forward": lambda: forward(bench.model("split"), batches),
        "moon2 encode": lambda: bench.encode(stream, encoder),
    }
    seconds = bench.alternate(candidates, lambda name: None)
    rows = [
        {
            "what": name,
            "ms/product": 1e3 * of / items,
            "products/s": items / of,
            "of dense": seconds["dense forward"] / of,
        }
        for name, of in seconds.items()
    ]
    bench.table("encode against forward", rows)
    reached = seconds["dense forward"] / seconds["moon2 encode"]
    kept = seconds["split forward"] / seconds["moon2 encode"]
    print(
        f"\nencoding reaches {reached:.2f} of the dense forward ({TARGET} wanted); of the forward of its own model "
        f"{kept:.2f}"
    )
    bench.result["encode / dense forward"] = reached
    bench.result["encode / split forward"] = kept


def measure_parts(bench: EncodeBench) -> None:
    """Each part alone, on one thread but for the forward."""
    items = bench.options.items
    stream = write_catalogue(bench.products, items, bench.work / "parts.parquet")
    encoder = bench.encoder()
    read = catalogue_items(stream)
    budget = bench.processor.image_processor.size["longest_edge"]
    decoded = [[load_image(decode_picture(image, budget)) for image in item["images"]] for item in read]
    starts = range(0, items, bench.options.batch_size)
    taken = [
        {row: (read[row]["text"], decoded[row]) for row in range(start, min(start + bench.options.batch_size, items))}
        for start in starts
    ]
    maker = BatchInputs(bench.processor, bench.dense.vision_config, bench.options.batch_size)
    batches = bench.batches(stream, encoder)
    vectors = torch.cat(forward(bench.model("split"), batches)).numpy()
    schema = vectors_schema((VIEW,), vectors.shape[1], "float32")

    def write() -> None:
        names = [pa.array(["0" * 32] * items)] * 2
        path = ShardFiles(bench.work).path(0)
        path.parent.mkdir(exist_ok=True)
        writer = ShardWriter(path, schema, use_dictionary=False)
        writer.write(pa.Table.from_arrays([*names, vector_array(vectors, vectors.any(1))], names=schema.names))
        writer.close()

    seconds = bench.alternate(
        {
            "read and digest": lambda: catalogue_items(stream),
            "decode": lambda: [[load_image(decode_picture(i, budget)) for i in item["images"]] for item in read],
            "processor": lambda: [maker.processed(part, VIEW) for part in taken],
            "forward": lambda: forward(bench.model("split"), batches),
            "write": write,
        },
        lambda name: None,
    )
    total = sum(seconds.values())
    rows = [{"part": name, "ms/product": 1e3 * of / items, "%": 100 * of / total} for name, of in seconds.items()]
    bench.table("where time goes", rows)


def measure_sizes(bench: EncodeBench) -> None:
    """What a product costs in a small and in a large catalogue: with a very small model, so that all else counts."""
    titles = bench.products["title"].to_pylist()
    torch.manual_seed(0)
    model, processor = build_mini(SMALL, titles)
    encoder = bench.encoder(model.eval().to(bench.options.device), processor)
    streams = {
        size: write_catalogue(bench.products, size, bench.work / f"{size}.parquet") for size in bench.options.sizes
    }
    bench.encode(streams[min(streams)], encoder)  # warm
    seconds: dict[int, list[float]] = {size: [] for size in streams}
    times = {size: max(1, bench.options.repeats * min(streams) // size) for size in streams}
    for turn in range(max(times.values())):
        for size, stream in streams.items():
            if turn < times[size]:
                seconds[size].append(bench.clock(lambda stream=stream: bench.encode(stream, encoder)))
    rows = [
        {"products": size, "runs": len(of), "ms/product": 1e3 * statistics.median(of) / size}
        for size, of in seconds.items()
    ]
    bench.table("cost of a product", rows)
    costs = [row["ms/product"] for row in rows]
    spread = bench.result["spread of the cost"] = max(costs) / min(costs) - 1
    print(f"\nthe cost of a product differs by {100 * spread:.0f} % (at most {100 * SPREAD:.0f} %)")


def measure_int8(bench: EncodeBench) -> None:
    """The forward with eight-bit weights against other types on the CPU; with queries also what it finds."""
    if bench.cuda:
        raise ValueError("int8 is for CPUs; give --device cpu")
    if bench.options.model is None:
        raise ValueError("int8 is measured with trained weights; give --model")
    kinds = {
        "as saved": {},
        "float32": {"dtype": "float32"},
        "int8": {"quantization": "int8"},
    }
    loaded = {name: load_for_encoding(bench.options.model, **kind)[:2] for name, kind in kinds.items()}
    stream = write_catalogue(bench.products, bench.options.items, bench.work / "int8.parquet")
    batches = bench.batches(stream, Encoder(*loaded["float32"], bench.options.batch_size))
    seconds = bench.alternate(
        {name: lambda model=model: forward(model, batches) for name, (model, _) in loaded.items()}, lambda name: None
    )
    rows = []
    for name, (model, processor) in loaded.items():
        row = {
            "weights": name,
            "type": str(model.dtype).removeprefix("torch."),
            "products/s": bench.options.items / seconds[name],
            "of float32": seconds["float32"] / seconds[name],
        }
        if bench.options.queries:
            data = load_product_queries(bench.options.products, bench.options.queries)
            found = evaluate_encoder(Encoder(model, processor), data.products, data.queries, progress=False)
            for direction in found["retrieval"].values():
                row[f"R@10 {direction['name']}"] = 100 * direction["recall@10"]["value"]
            row["R@10 mean"] = 100 * found["mean_recall@10"]
        rows.append(row)
    bench.table("int8", rows)


MEASURES = {"ratio": measure_ratio, "parts": measure_parts, "sizes": measure_sizes, "int8": measure_int8}


def run_measures(options: Options, measures: list[str]) -> dict[str, Any]:
    """Run measures one after the other; one that fails is reported and does not stop the others."""
    with tempfile.TemporaryDirectory() as work:
        begin = time.perf_counter()
        bench = EncodeBench(options, Path(work))
        print(f"{len(bench.products)} products, {os.cpu_count()} processors, {torch.get_num_threads()} threads")
        bench.run({name: MEASURES[name] for name in measures})
        print(f"\n{time.perf_counter() - begin:.0f} s")
    return bench.result


def main() -> int:
    """Measure; returns 1 if a measure failed."""
    parser = argparse.ArgumentParser(description="How fast a catalogue is encoded.")
    parser.add_argument("--shape", choices=SHAPES, default=Options.shape)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=Options.dtype)
    parser.add_argument("--attn", choices=("sdpa", "eager"), default=Options.attn)
    parser.add_argument("--items", type=int, default=Options.items, help="products in a timing")
    parser.add_argument("--batch_size", type=int, default=Options.batch_size, help="products per forward")
    parser.add_argument("--workers", type=int, help="threads that decode; the encoder's choice if not given")
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="timings of which the median counts")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="of the catalogues compared")
    parser.add_argument("--products", nargs="+", help="a real catalogue; a drawn one if not given")
    parser.add_argument("--queries", help="for what int8 finds")
    parser.add_argument("--model", help="trained weights, for int8")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=["ratio", "parts", "sizes"])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = vars(parser.parse_args())
    measures = arguments.pop("measures")
    return 1 if run_measures(Options(**arguments), measures)["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
