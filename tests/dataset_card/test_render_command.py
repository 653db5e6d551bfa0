from __future__ import annotations

import errno
import itertools

import pyarrow as pa
import pytest

from moon2_dataset import load_product_queries
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_dataset.disk_errors import DiskError
from moon2_dataset.render_command import main
from moon2_dataset.shards import ShardWriter


def test_the_command_writes_a_noisy_part_to_learn_from_and_a_clean_one_to_judge_on(described, tmp_path, capsys):
    main([str(tmp_path / "shop"), "--products", "20", "--wrong_clicks", "0.2", "--wrong_titles", "0.25"])
    printed = capsys.readouterr().out
    assert [line.split(": ")[1].split(",")[0] for line in printed.splitlines()][::2] == ["16 rows", "4 rows"]
    assert "4 title_noise" in printed and "need either" in printed
    folder = tmp_path / "shop"
    parts = {
        part: load_product_queries(folder / f"products-{part}.parquet", folder / f"queries-{part}.parquet")
        for part in ("train", "test")
    }
    assert sum(parts["train"].queries["label_noise"]) == round(0.2 * len(parts["train"]))
    assert not any(itertools.chain(parts["test"].queries["label_noise"], parts["test"].products["title_noise"]))
    assert not set(parts["train"].product_index) & set(parts["test"].product_index)
    assert sorted(path.name for path in folder.iterdir()) == [
        "products-test.parquet", "products-train.parquet", "queries-test.parquet", "queries-train.parquet"
    ]  # fmt: skip

    main([str(tmp_path / "whole"), "--products", "5", "--held_out", "0"])
    whole = load_product_queries(tmp_path / "whole", tmp_path / "whole")
    again, _ = render_demo_catalogue(5)
    assert whole.products.to_list() == again.to_list()
    with pytest.raises(ValueError, match="held_out=1.0; give 1 product or more and a share under 1"):
        main([str(tmp_path), "--held_out", "1"])


def drawn(folder, *options) -> list[str]:
    main([str(folder), "--products", "6", *options])
    return sorted(path.name for path in folder.iterdir())


SPLIT = ["products-test.parquet", "products-train.parquet", "queries-test.parquet", "queries-train.parquet"]


def test_a_shop_drawn_before_is_replaced_whole(described, tmp_path):
    assert drawn(tmp_path) == SPLIT
    assert drawn(tmp_path, "--held_out", "0") == ["products.parquet", "queries.parquet"]
    load_product_queries(tmp_path, tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert drawn(tmp_path, "--seed", "1", "--held_out", "0.5") == ["README.md", *SPLIT]
    load_product_queries(tmp_path, tmp_path, split="test")


@pytest.mark.parametrize("name", ["products-train.parquet", "products-00000.parquet", "queries-test-00003.parquet"])
@pytest.mark.parametrize("content", ["table", "noted", "damaged"])
def test_files_that_it_did_not_draw_stop_it(described, tmp_path, name, content):
    drawn(tmp_path, "--held_out", "0")
    foreign = tmp_path / name
    if content == "damaged":
        foreign.write_bytes(b"PAR1 no")
    else:
        writer = ShardWriter(foreign, pa.schema({"product_id": pa.string()}))
        writer.close({"rows": 3} if content == "noted" else None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"{tmp_path} holds {name}, which `moon2 render` did not draw; give another"):
        drawn(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_same_command_writes_the_same_bytes(described, tmp_path):
    for folder in ("one", "other"):
        drawn(tmp_path / folder, "--seed", "2")
    for name in SPLIT:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_disk_that_is_full_is_told_with_the_file(described, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    drawn(tmp_path, "--held_out", "0")
    before = (tmp_path / "products.parquet").read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="products.parquet: the disk is full; free some space"):
        drawn(tmp_path, "--held_out", "0", "--seed", "1")
    assert (tmp_path / "products.parquet").read_bytes() == before
