"""What memory is measured with, at a size that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import memory
import pytest
import torch


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_the_cached_step_stands_beside_as_many_plain_ones(tmp_path, monkeypatch, capsys):
    output = tmp_path / "memory.json"
    arguments = ["--batch", "8", "--chunk", "4", "--threads", str(torch.get_num_threads()), "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["memory.py", *arguments])
    monkeypatch.setattr(memory, "run", memory.train)  # all in this process, which has the libraries loaded
    memory.main()
    result = json.loads(output.read_text())
    one, two, cached = result["rows"].values()
    assert list(result["rows"]) == ["1 plain step of 4", "2 plain steps of 4", "1 cached step of 8"]
    for row in (one, two, cached):
        assert 0 <= row["bytes"] < row["whole"] and row["seconds"] > 0 and row["cpu"] > 0
    assert result["cached / plain"]["time"] == pytest.approx(cached["seconds"] / two["seconds"])
    assert "| 1 cached step of 8 |" in capsys.readouterr().out


def test_a_batch_that_is_no_multiple_of_the_chunk_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["memory.py", "--batch", "9", "--chunk", "4"])
    with pytest.raises(SystemExit, match="2"):
        memory.main()
    assert "--batch 9 is no multiple of --chunk 4" in capsys.readouterr().err
