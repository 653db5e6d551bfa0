"""How the Space answers many users at once, over HTTP: times, errors, fairness and memory, also while models change.

A Space is started on loopback with a catalogue of a given size; users then ask without a pause, each waiting for the
answer before the next question. Linux and macOS.

Example:
    python tests/benchmarks/space_load.py --products shop/products-train.parquet --users 8 --seconds 60
    python tests/benchmarks/space_load.py --products shop/products-train.parquet --users 50 --seconds 300 \\
        --swap_to runs/other
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from search_speed import products_of_size

from moon2_dataset import load_products
from moon2_space.bundled_model import BUNDLED_MODEL
from moon2_space.catalogue_folder import CatalogueFolder
from moon2_training.encode import Encoder
from moon2_training.saved_encoder import load_encoder

START_TIMEOUT = 120  # seconds
ANSWER_TIMEOUT = 60  # seconds
K = 10
ALL = ("", None, True)  # category, attributes, hybrid: no filter, words and vectors
WORDS = 4  # of a title
MB = 10**6


@dataclass
class Load:
    """What users saw.

    Attributes:
        seconds: of every answer, in the order of their ends.
        by_user: number of answers of every user.
        errors: what went wrong, with how often.
        memory: (seconds since the start, bytes that the Space holds), once a second.
        swap: how a change of models ended, where there was one; its message and the seconds it took.
    """

    seconds: list[float] = field(default_factory=list)
    by_user: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)
    swap: dict[str, Any] | None = None

    def summary(self, warm_up: float) -> dict[str, Any]:
        """Figures of a run.

        Args:
            warm_up: seconds at the start whose memory does not count.
        """
        p50, p95, worst = 1000 * np.quantile(self.seconds, [0.5, 0.95, 1]) if self.seconds else [np.nan] * 3
        settled = [held for at, held in self.memory if at >= warm_up]
        third = max(len(settled) // 3, 1)
        begin, end = (
            (float(np.median(part)) for part in (settled[:third], settled[-third:])) if settled else (0.0, 0.0)
        )
        return {
            "answers": len(self.seconds),
            "errors": dict(self.errors),
            "p50_ms": p50,
            "p95_ms": p95,
            "worst_ms": worst,
            "answers_of_a_user": [min(self.by_user.values(), default=0), max(self.by_user.values(), default=0)],
            "memory_mb": [begin / MB, end / MB],
            "memory_growth": end / begin - 1 if begin else 0.0,
            "swap": self.swap,
        }


async def ask(client: httpx.AsyncClient, action: str, *values: Any, session: str | None = None) -> Any:
    """Call an endpoint: a request for the event, another for its answer.

    Args:
        client: at the Space.
        action: name of the endpoint.
        values: of all its arguments.
        session: what a browser or gradio_client calls its session; None: a new one, as with curl.

    Raises:
        RuntimeError: the Space answers with an error.
    """
    begun = await client.post(f"call/{action}", json={"data": values, "session_hash": session})
    if begun.status_code != 200:
        raise RuntimeError(f"{action}: HTTP {begun.status_code}")
    name = ""
    async with client.stream("GET", f"call/{action}/{begun.json()['event_id']}") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name in ("complete", "error"):
                told = json.loads(line.removeprefix("data: "))
                if name == "error":
                    raise RuntimeError(f"{action}: {told}")
                return told[0]
    raise RuntimeError(f"{action}: no answer")


async def load(
    url: str,
    texts: Sequence[str],
    users: int,
    seconds: float,
    process: psutil.Process,
    swap_to: str | None = None,
    token: str = "",
    new_sessions: bool = False,
) -> Load:
    """Let users search for a while.

    Args:
        url: of the Space.
        texts: to search for, dealt to the users.
        users: at once, each asking its next question after the answer.
        seconds: after which no more is asked.
        process: of the Space, whose memory is watched.
        swap_to: name of a model that is to take over meanwhile.
        token: of the administrator.
        new_sessions: every question comes in a session of its own.
    """
    seen = Load()
    begin = time.perf_counter()

    async def user(number: int) -> None:
        session = None if new_sessions else secrets.token_hex(8)
        for turn in range(number, sys.maxsize, users):
            asked = time.perf_counter()
            if asked - begin > seconds:
                return
            try:
                found = await ask(client, "search_text", texts[turn % len(texts)], K, *ALL, session=session)
                if len(found) != K:
                    raise RuntimeError(f"{len(found)} products instead of {K}")
            except (RuntimeError, httpx.HTTPError, ValueError) as error:
                seen.errors[f"{type(error).__name__}: {error}"] += 1
                continue
            seen.seconds.append(time.perf_counter() - asked)
            seen.by_user[number] += 1

    async def watch() -> None:
        while True:
            seen.memory.append((time.perf_counter() - begin, process.memory_info().rss))
            await asyncio.sleep(1)

    async def swap() -> None:
        asked = time.perf_counter()
        await ask(client, "catalogue_swap_model", token, swap_to, False)
        while True:
            job = (await ask(client, "status"))["job"]
            if job["state"] != "running":
                seen.swap = {"state": job["state"], "message": job["message"], "seconds": time.perf_counter() - asked}
                return
            await asyncio.sleep(1)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"{url}gradio_api/", timeout=ANSWER_TIMEOUT, limits=limits) as client:
        for text in texts[:20]:
            await ask(client, "search_text", text, K, *ALL)
        begin = time.perf_counter()
        watching = asyncio.create_task(watch())
        swapping = asyncio.create_task(swap()) if swap_to else None
        await asyncio.gather(*map(user, range(users)))
        if swapping:
            await swapping
        watching.cancel()
    return seen


def make_catalogue(folder: Path, model: str, products: Sequence[str], size: int) -> list[str]:
    """Index as many products as asked for, where the folder does not hold them yet.

    Args:
        folder: data folder of the Space.
        model: folder or Hub id of the encoder.
        products: Parquet files, globs or folders.
        size: number of products.

    Returns:
        Parts of titles to search for.
    """
    given = load_products(list(products))
    index = CatalogueFolder(folder).open_or_create(Encoder(*load_encoder(model)), model)
    if len(index) != size:
        index.delete(index.ids())
        index.add(products_of_size(given, size))
    rows = np.random.default_rng(0).integers(len(given), size=1000)
    return [" ".join(given[int(row)]["title"].split()[:WORDS]) or "red" for row in rows]


@contextmanager
def served(folder: Path, model: str, others: Sequence[str], token: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run the Space in a process of its own: its address and that process.

    Raises:
        RuntimeError: it does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "MOON2_DATA_DIR": str(folder),
        "MOON2_MODEL": model,
        "MOON2_MODELS": ",".join(others),
        "MOON2_ADMIN_TOKEN": token,
        "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    url = f"http://127.0.0.1:{port}/"
    with open(folder / "space.log", "wb") as log:
        space = subprocess.Popen([sys.executable, "-m", "moon2_space.app"], env=environment, stdout=log, stderr=log)
        try:
            begin = time.monotonic()
            while not _answers(url):
                if space.poll() is not None or time.monotonic() - begin > START_TIMEOUT:
                    raise RuntimeError(f"the Space does not start; see {log.name}")
                time.sleep(0.5)
            yield url, psutil.Process(space.pid)
        finally:
            space.terminate()
            space.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    """Print the figures of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="folder or Hub id of the encoder")
    parser.add_argument("--products", nargs="+", required=True, help="catalogue: Parquet files, globs or folders")
    parser.add_argument("--size", type=int, default=10_000, help="products in the catalogue")
    parser.add_argument(
        "--users", type=int, nargs="+", default=[1, 8], help="at once; several numbers: one after the other"
    )
    parser.add_argument("--seconds", type=float, default=60, help="that each number of users asks for")
    parser.add_argument("--warm_up", type=float, default=30, help="seconds whose memory does not count")
    parser.add_argument("--new_sessions", action="store_true", help="one for every question, as with curl")
    parser.add_argument("--swap_to", help="folder or Hub id of a model that takes over meanwhile")
    parser.add_argument("--data_dir", type=Path, help="folder that keeps the catalogue; a temporary one by default")
    parser.add_argument("--output", type=Path, help="JSON file for all figures, with the memory of every second")
    options = parser.parse_args()
    token = secrets.token_urlsafe()
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data_dir or Path(temporary)
        texts = make_catalogue(folder, options.model, options.products, options.size)
        others = [options.swap_to] if options.swap_to else []
        print("| users | answers | errors | p50 ms | p95 ms | worst ms | of a user | memory MB | growth |", flush=True)
        print("|---|---|---|---|---|---|---|---|---|")
        with served(folder, options.model, others, token) as (url, process):
            for users in options.users:
                name = Path(options.swap_to).name if options.swap_to else None
                seen = asyncio.run(
                    load(url, texts, users, options.seconds, process, name, token, options.new_sessions)
                )
                told = seen.summary(options.warm_up)
                least, most = told["answers_of_a_user"]
                begin, end = told["memory_mb"]
                print(
                    f"| {users} | {told['answers']:,} | {sum(told['errors'].values())} | {told['p50_ms']:.0f} "
                    f"| {told['p95_ms']:.0f} | {told['worst_ms']:.0f} | {least} to {most} | {begin:.0f}, {end:.0f} "
                    f"| {told['memory_growth']:+.1%} |",
                    flush=True,
                )
                for message, count in told["errors"].items():
                    print(f"{count} x {message}")
                if told["swap"]:
                    print(f"{told['swap']['state']} in {told['swap']['seconds']:.0f} s: {told['swap']['message']}")
                runs.append({"users": users} | told | {"every_second": asdict(seen)["memory"]})
    if options.output:
        options.output.write_text(json.dumps(runs, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
