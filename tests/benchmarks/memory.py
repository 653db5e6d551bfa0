"""Memory and time of a training step of the Trainer, plain and with the cached loss, at one chunk size.

Every row is a process of its own, with the mini recipe's model on a rendered catalogue: one plain step of the chunk's
size; one step of the whole batch, chunk by chunk; and, for the time, as many plain steps as the batch has chunks.
Memory is what training takes at most beyond what stands before its first step (weights, catalogue, libraries):
resident memory on a CPU, allocated memory on a GPU. It holds gradients and the optimizer's state in every row.

Example:
    python tests/benchmarks/memory.py --batch 4096 --chunk 32 --output memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PRODUCTS = 200  # rendered at most; their queries are asked again and again
MEGABYTE = 10**6


def resident(name: str) -> int:
    """Bytes of "VmRSS" (now) or "VmHWM" (the peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def train(batch: int, chunk: int, steps: int, negatives: str, threads: int) -> dict[str, float]:
    """Train a few steps in this process; `chunk` of 0 is the plain step.

    Returns:
        {"seconds" of all steps, "cpu" seconds of this process, "bytes" beyond those before, "whole" bytes}.
    """
    import torch
    from datasets import concatenate_datasets
    from transformers import TrainerCallback

    from moon2_dataset import join
    from moon2_dataset.demo_catalogue import render_demo_catalogue
    from moon2_training.mini import MiniConfig, build_mini
    from moon2_training.trainer import Moon2Trainer
    from moon2_training.trainer_config import Moon2TrainingArguments

    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    products, queries = render_demo_catalogue(min(PRODUCTS, batch * steps))
    times = -(-batch * steps // len(queries))
    asked = [
        queries.map(lambda row, again: {"query_id": f"{row['query_id']}-{again}"}, fn_kwargs={"again": again})
        for again in range(times)
    ]
    data = join(products, concatenate_datasets(asked))
    model, processor = build_mini(MiniConfig(), products["title"])
    found: dict[str, float] = {}

    class Measure(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                found["before"] = torch.cuda.memory_allocated()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
                found["before"] = resident("VmRSS")
            found["start"], found["cpu"] = time.perf_counter(), time.process_time()

        def on_train_end(self, args, state, control, **kwargs):
            if cuda:
                torch.cuda.synchronize()
            found["seconds"] = time.perf_counter() - found.pop("start")
            found["cpu"] = time.process_time() - found["cpu"]
            found["whole"] = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
            found["bytes"] = found["whole"] - found.pop("before")

    with tempfile.TemporaryDirectory() as folder:
        options = Moon2TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            cached_chunk_size=chunk,
            negatives=negatives,
            dataloader_num_workers=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not cuda,
        )
        trainer = Moon2Trainer(model, options, data, processing_class=processor, callbacks=[Measure()])
        trainer.train()
    return found


def run(**arguments: Any) -> dict[str, float]:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, "--run", json.dumps(arguments)]
    # large pieces go back to the system when they are freed, so that what is resident is what is used
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MEGABYTE)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(batch: int, chunk: int, negatives: str, threads: int, repeats: int) -> dict[str, Any]:
    """Plain steps of a chunk, and the cached step of the batch, in turn; medians."""
    chunks = batch // chunk
    rows = {
        f"1 plain step of {chunk}": {"batch": chunk, "chunk": 0, "steps": 1},
        f"{chunks} plain steps of {chunk}": {"batch": chunk, "chunk": 0, "steps": chunks},
        f"1 cached step of {batch}": {"batch": batch, "chunk": chunk, "steps": 1},
    }
    found: dict[str, list[dict]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, row in rows.items():
            found[name].append(run(**row, negatives=negatives, threads=threads))
    medians = {
        name: {key: statistics.median(of[key] for of in runs) for key in ("seconds", "cpu", "bytes", "whole")}
        for name, runs in found.items()
    }
    _, many, cached = medians.values()
    ratios = {name: cached[key] / many[key] for name, key in (("time", "seconds"), ("CPU time", "cpu"))}
    ratios |= {"memory": cached["bytes"] / max(many["bytes"], 1)}
    return {"rows": medians, "cached / plain": ratios}


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4096, help="triplets of the cached step")
    parser.add_argument("--chunk", type=int, default=32, help="triplets that are encoded at once")
    parser.add_argument("--negatives", choices=("in_batch", "explicit"), default="in_batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(train(**arguments.run)))
        return
    if arguments.batch % arguments.chunk:
        parser.error(f"--batch {arguments.batch} is no multiple of --chunk {arguments.chunk}")
    result = measure(arguments.batch, arguments.chunk, arguments.negatives, arguments.threads, arguments.repeats)
    print("| | seconds | CPU seconds | MB beyond those before | MB of the process |\n|---|---|---|---|---|")
    for name, row in result["rows"].items():
        memory = f"{row['bytes'] / MEGABYTE:.0f} | {row['whole'] / MEGABYTE:.0f}"
        print(f"| {name} | {row['seconds']:.1f} | {row['cpu']:.1f} | {memory} |")
    print(", ".join(f"{name} × {ratio:.2f}" for name, ratio in result["cached / plain"].items()))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
