from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "moon2[scale]"')

from moon2_training import ray_engine  # noqa: E402
from moon2_training.encode_catalogue import EncodeArguments, encode_catalogue  # noqa: E402
from moon2_training.vector_files import ShardFiles  # noqa: E402

MEMORY = 100 << 20  # of the object store; shards do not pass through it


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    for part in tiny:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def catalogue(shop, tmp_path) -> Path:
    path = tmp_path / "products.parquet"
    shop.products.to_parquet(path)
    return path


@pytest.fixture
def one_node():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=MEMORY,
        _node_ip_address=ray_engine.LOOPBACK,
    )
    yield
    ray.shutdown()


def encode(model: str, catalogue: Path, output: Path, **options) -> dict:
    options = {"shard_rows": 5, "batch_size": 4} | options
    return encode_catalogue(EncodeArguments(model, [str(catalogue)], str(output), **options), progress=False)


def tables(folder: Path) -> dict[str, list[dict]]:
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(folder.iterdir())}


def dying_worker(flags: Path) -> type:
    """A worker that dies over shard 1 before it is written, and over shard 3 before it is recorded, once each."""

    class DyingWorker(ray_engine.ShardWorker):
        def __call__(self, batch):
            for shard, written in ((1, False), (3, True)):
                flag = flags / str(shard)
                if shard in batch["shard"] and not flag.exists():
                    flag.touch()

                    def finish(files, record, path, written=written):
                        if written:
                            path.replace(files.path(record.number))
                        os.kill(os.getpid(), signal.SIGKILL)

                    ShardFiles.finish = finish
            return super().__call__(batch)

    return DyingWorker


def test_workers_that_die_lose_nothing_and_double_nothing(model, catalogue, tmp_path, one_node, monkeypatch):
    encode(model, catalogue, tmp_path / "local")
    flags = tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setattr(ray_engine, "ShardWorker", dying_worker(flags))
    told = encode(model, catalogue, tmp_path / "ray", engine="ray", ray_workers=2)
    assert sorted(path.name for path in flags.iterdir()) == ["1", "3"]
    assert told["encoded"] == 24
    assert_same(tables(tmp_path / "ray"), tables(tmp_path / "local"))
    # what one engine has begun or written, the other goes on with
    monkeypatch.undo()
    assert "nothing has changed" in encode(model, catalogue, tmp_path / "ray")["message"]
    products = pq.read_table(catalogue).slice(3)
    pq.write_table(products, catalogue)
    told = encode(model, catalogue, tmp_path / "local", engine="ray")
    assert (told["encoded"], told["unchanged"]) == (0, 21)


def assert_same(found: dict[str, list[dict]], expected: dict[str, list[dict]]) -> None:
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        for row, other in zip(rows, found[name], strict=True):
            assert (row["product_id"], row["digest"]) == (other["product_id"], other["digest"])
            assert row["multimodal_vector"] == pytest.approx(other["multimodal_vector"], abs=1e-5)
