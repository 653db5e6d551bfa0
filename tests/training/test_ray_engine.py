from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from moon2_training import ray_engine
from moon2_training.encode_catalogue import EncodeArguments, encode_catalogue
from moon2_training.vector_files import ShardFiles

LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for the address of the machine in its network
MEMORY = 100 << 20  # of the object store; shards do not pass through it


@pytest.fixture(scope="module")
def model(saved_model) -> str:
    return str(saved_model)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind((LOOPBACK, 0))
        return listening.getsockname()[1]


def node() -> dict:
    """What a node is started with; with ports of its own it need not wait until its agents tell theirs."""
    ports = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    given = {"num_cpus": 1, "node_ip_address": LOOPBACK, "object_store_memory": MEMORY}
    given["include_log_monitor"] = False
    return given | {name: free_port() for name in ports}


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine, of one node with two processors, to which this process is connected."""
    started = Cluster(
        initialize_head=True, head_node_args=node() | {"num_cpus": 2, "include_dashboard": False, "no_monitor": True}
    )
    ray.init(address=started.address, log_to_driver=False, _node_ip_address=LOOPBACK)
    yield started
    ray.shutdown()
    started.shutdown()


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


def test_workers_that_die_lose_nothing_and_double_nothing(model, catalogue, tmp_path, cluster, monkeypatch):
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


def waiting_worker(flags: Path, node_id: str) -> type:
    """A worker that, on one node, stays at its first shard until that node is gone."""

    class WaitingWorker(ray_engine.ShardWorker):
        def __call__(self, batch):
            if ray.get_runtime_context().get_node_id() == node_id:
                (flags / "busy").touch()
                time.sleep(600)
            return super().__call__(batch)

    return WaitingWorker


@pytest.mark.slow
def test_a_node_that_goes_loses_nothing_and_doubles_nothing(model, catalogue, tmp_path, cluster, monkeypatch):
    encode(model, catalogue, tmp_path / "local")
    second = cluster.add_node(**node())
    cluster.wait_for_nodes()
    flags = tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setattr(ray_engine, "ShardWorker", waiting_worker(flags, second.node_id))

    def remove() -> None:
        while not (flags / "busy").exists():
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=remove, daemon=True).start()
    told = encode(model, catalogue, tmp_path / "ray", engine="ray", ray_workers=3)
    assert (flags / "busy").exists() and told["encoded"] == 24
    assert_same(tables(tmp_path / "ray"), tables(tmp_path / "local"))


def test_a_product_that_cannot_be_encoded_is_named_by_the_command(model, catalogue, tmp_path, cluster):
    table = pq.read_table(catalogue)
    titles = [None if row == 3 else title for row, title in enumerate(table["title"].to_pylist())]
    pq.write_table(table.set_column(1, "title", pa.array(titles)), catalogue)  # product 3 has no picture either
    with pytest.raises(ValueError, match="^products.parquet row 3, product p3: neither title nor image"):
        encode(model, catalogue, tmp_path / "ray", engine="ray", on_error="raise")


def assert_same(found: dict[str, list[dict]], expected: dict[str, list[dict]]) -> None:
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        for row, other in zip(rows, found[name], strict=True):
            assert (row["product_id"], row["digest"]) == (other["product_id"], other["digest"])
            assert row["multimodal_vector"] == pytest.approx(other["multimodal_vector"], abs=1e-5)
