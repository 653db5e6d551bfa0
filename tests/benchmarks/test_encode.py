"""What encoding is measured with; the figures themselves come from runs by hand."""

from __future__ import annotations

import json

import encode
import pytest
import torch

TOY = {"shape": "mini", "device": "cpu", "dtype": "float32", "items": 10, "batch_size": 4, "repeats": 1}


@pytest.fixture(scope="module", autouse=True)
def few_products():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "RENDERED", 8)
        yield


def test_all_measures_end_in_tables_of_the_same_products(tmp_path, capsys):
    output = tmp_path / "encode.json"
    result = encode.run_measures(encode.Options(**TOY, sizes=[10, 20], output=output), ["ratio", "parts", "sizes"])
    assert not result["failures"] and json.loads(output.read_text()) == result
    ratio = {row["what"]: row["products/s"] for row in result["tables"]["encode against forward"]}
    assert ratio.keys() == {"dense forward", "split forward", "moon2 encode"}
    assert result["encode / dense forward"] == pytest.approx(ratio["moon2 encode"] / ratio["dense forward"])
    assert sum(row["%"] for row in result["tables"]["where time goes"]) == pytest.approx(100)
    assert [row["products"] for row in result["tables"]["cost of a product"]] == [10, 20]
    assert "| moon2 encode |" in capsys.readouterr().out


def test_ready_inputs_are_those_that_are_encoded_and_split_experts_answer_to_them(tmp_path):
    bench = encode.EncodeBench(encode.Options(**TOY), tmp_path)
    stream = encode.write_catalogue(bench.products, 10, tmp_path / "products.parquet")
    assert list(stream.ids()) == [str(row) for row in range(10)]
    encoder = bench.encoder()
    ready = torch.cat(encode.forward(encoder.model, bench.batches(stream, encoder)))
    encoded = encoder.encode(encode.catalogue_items(stream), progress=False)
    torch.testing.assert_close(ready.sort(0).values, torch.from_numpy(encoded).sort(0).values, atol=1e-5, rtol=1e-4)


def test_int8_without_trained_weights_or_on_a_gpu_is_a_line(tmp_path):
    result = encode.run_measures(encode.Options(**TOY), ["int8"])
    assert "give --model" in result["failures"]["int8"]
