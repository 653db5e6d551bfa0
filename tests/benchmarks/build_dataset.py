"""Peak memory and speed of `moon2 build-dataset` on a made-up catalogue and its log. Linux only.

Example:
    python tests/benchmarks/build_dataset.py --work /tmp --rows 1000000 --lines 3000000 --json build_dataset.json
    python tests/benchmarks/build_dataset.py --work /tmp --rows 20000 --lines 50000 --images
"""

# Nothing heavy is imported here: a process counts the peak of the one that started it as its own (ru_maxrss outlives
# exec), so the process that starts the build must stay small.
from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 2 * 10**9  # bytes that a build of a million products may take
COLOURS = "red blue navy green olive black white grey beige pink purple orange yellow brown".split()
MATERIALS = "cotton linen wool silk leather suede canvas oak steel ceramic glass bamboo nylon".split()
NOUNS = "mug shoe lamp bag chair shirt dress watch cap scarf vase pan table belt sofa".split()
COMMAND = "import sys; from moon2_dataset.build.builder import main; main(sys.argv[1:])"


def write_shop(folder: Path, rows: int, lines: int, images: bool) -> None:
    """Write shop.csv, with one row in twenty a duplicate, and log.csv; with `images` a JPEG for each row."""
    rng = random.Random(0)
    with open(folder / "shop.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "title", "description", "category", "color", "material", "image"])
        for row in range(rows):
            like = rng.randrange(row) if row and rng.random() < 0.05 else row
            words = random.Random(like)
            colour, material, noun = words.choice(COLOURS), words.choice(MATERIALS), words.choice(NOUNS)
            text = " ".join(words.choices(COLOURS + MATERIALS + NOUNS, k=40))
            path = f"Shop > {noun[0].upper()} > {noun} {words.randrange(100)}"
            image = f"images/{row}.jpg" if images else ""
            writer.writerow([row, f"{colour} {material} {noun} no. {like}", text, path, colour, material, image])
            if images:
                write_image(folder / image, like)
    with open(folder / "log.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "product_id", "event", "shown"])
        for _ in range(lines):
            product = int(rows * rng.random() ** 3)  # a few are asked for often
            words = random.Random(product)
            query = " ".join((words.choice(COLOURS), words.choice(MATERIALS), words.choice(NOUNS)))
            query = query if rng.random() < 0.5 else f"{query} {product % 1000}"
            shown = "|".join(str((product + 7 * step) % rows) for step in range(5))
            writer.writerow([query, product, rng.choice(["purchase", "click", "click"]), shown])


def write_image(path: Path, seed: int) -> None:
    """A smooth picture of random colours, 160 × 160: as large as a JPEG of a product."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((160, 160), Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)


def measure(command: list[str], log: Path) -> dict[str, float]:
    """Run a command to its end.

    Returns:
        Its seconds by the clock and of the processor, and its peak of resident memory.

    Raises:
        RuntimeError: the command failed; holds the end of what it printed.
    """
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the build ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss": usage.ru_maxrss * 1024,
    }


def main() -> int:
    """Build one catalogue; returns 1 if it takes more memory than promised."""
    parser = argparse.ArgumentParser(description="Peak memory and speed of `moon2 build-dataset`.")
    parser.add_argument("--work", type=Path, help="folder to write in; a million rows take 1.5 GB of disk for a while")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--lines", type=int, default=0, help="of a log; none if 0")
    parser.add_argument("--images", action="store_true", help="give every product a small picture")
    parser.add_argument("--json", type=Path, help="file to write the figures to, in bytes and seconds")
    options = parser.parse_args()
    if options.work and not options.work.is_dir():
        parser.error(f"{options.work} is no folder; make it")

    with tempfile.TemporaryDirectory(prefix="build_dataset-", dir=options.work) as work:
        folder = Path(work)
        arguments = (folder, options.rows, options.lines, options.images)
        writer = multiprocessing.get_context("spawn").Process(target=write_shop, args=arguments)
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError(f"writing the shop ended with {writer.exitcode}")
        command = [
            sys.executable,
            "-c",
            COMMAND,
            "--catalogue",
            str(folder / "shop.csv"),
            "--output_dir",
            str(folder / "out"),
        ]
        command += ["--max_per_category", "1000"]
        command += ["--log", str(folder / "log.csv")] if options.lines else []
        result = {"rows": options.rows, "lines": options.lines, "images": options.images}
        result |= measure(command, folder / "printed")
        report = json.loads((folder / "out" / "build_report.json").read_text(encoding="utf-8"))
        result |= {"products": report["products"], "rows_per_second": options.rows / result["seconds"]}
        result["bytes_in"] = sum(file.stat().st_size for file in folder.rglob("*.*") if file.parent.name != "out")
        result["bytes_out"] = sum(file.stat().st_size for file in (folder / "out").glob("*.parquet"))
        print("\n".join((folder / "printed").read_text().replace("\r", "\n").splitlines()[-8:]))

    print(
        f"{options.rows:,} rows, {options.lines:,} log lines: peak RSS {result['peak_rss'] / 1e9:.2f} GB, "
        f"{result['seconds']:.0f} s, {result['cpu_seconds']:.0f} s of CPU, {result['rows_per_second']:,.0f} rows/s, "
        f"{result['bytes_in'] / 1e9:.2f} GB in, {result['bytes_out'] / 1e9:.2f} GB out"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["peak_rss"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
