"""A saved folder is a repository: sentence-transformers gives the vectors that the model itself gives."""

from __future__ import annotations

import copy
import filecmp
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from transformers import AutoModel

from moon2_training.checksums import CHECKSUMS, check_checksums, write_checksums
from moon2_training.hub_folder import PROVENANCE, changed_arguments, read_provenance, replace_model, save_hub_folder
from moon2_training.trainer_config import Moon2TrainingArguments

TWO_PROCESSES = """
import sys
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":
    folder, pictures, output = sys.argv[1:]
    images = [Image.fromarray(pixels) for pixels in np.load(pictures)]
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    items = ["red mug", images[0], {"text": "navy", "image": images[1]}] * 4
    np.save(output, model.encode(items, device=["cpu", "cpu"], batch_size=3))
"""


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_hub_folder(folder, *tiny, provenance={"base_model": "shop/base"})
    return folder


@pytest.fixture(scope="module")
def st_model(folder):
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def inputs_and_vectors(tiny, make_image):
    """What sentence-transformers takes, six items of every kind, and the model's own embeddings of them."""
    first, second = make_image(1), make_image(2, 90, 50)
    items = ["red mug", first, {"text": "red mug", "image": first}, {"image": [first, second], "text": "Lumo mug"},
             "a <|image_pad|> <|vision_end|> mug", {"image": [first, second]}]  # fmt: skip
    texts = ["red mug", None, "red mug", "Lumo mug", items[4], None]
    return items, embed(tiny, texts, [None, first, first, [first, second], None, [first, second]])


@torch.no_grad()
def embed(tiny, texts, images=None) -> np.ndarray:
    model, processor = tiny
    return model(**processor(text=texts, images=images)).embeddings.numpy()


def test_every_kind_of_input_alone_and_mixed(st_model, inputs_and_vectors):
    items, expected = inputs_and_vectors
    np.testing.assert_allclose(st_model.encode(items), expected, atol=1e-5)
    np.testing.assert_allclose(st_model.encode(items, batch_size=2), expected, atol=1e-5)
    for item, vector in zip(items, expected, strict=True):
        np.testing.assert_allclose(st_model.encode(item), vector, atol=1e-5)
        np.testing.assert_allclose(st_model.encode([item, item])[1], vector, atol=1e-5)


def test_vectors_of_bfloat16_weights_are_the_model_s_and_of_length_one(tiny, inputs_and_vectors, make_image, tmp_path):
    save_hub_folder(tmp_path / "half", copy.deepcopy(tiny[0]).bfloat16(), tiny[1])
    halved = AutoModel.from_pretrained(tmp_path / "half", trust_remote_code=True).eval(), tiny[1]
    assert halved[0].dtype == torch.bfloat16
    vectors = SentenceTransformer(str(tmp_path / "half"), trust_remote_code=True, device="cpu").encode(
        inputs_and_vectors[0], batch_size=1
    )
    pictures = [None, [make_image(1)], [make_image(1)], [make_image(1), make_image(2, 90, 50)], None]
    texts = ["red mug", None, "red mug", "Lumo mug", inputs_and_vectors[0][4]]
    for text, images, vector in zip(texts, pictures, vectors, strict=False):
        np.testing.assert_allclose(vector, embed(halved, [text], [images])[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_queries_documents_and_prompts(st_model, inputs_and_vectors, tiny, make_image):
    items, expected = inputs_and_vectors
    np.testing.assert_allclose(st_model.encode_query(items), expected, atol=1e-5)
    np.testing.assert_allclose(st_model.encode_document(items), expected, atol=1e-5)
    prompted = st_model.encode([items[0], items[1], items[2]], prompt="find: ")
    by_hand = embed(tiny, ["find: red mug", "find:", "find: red mug"], [None, make_image(1), make_image(1)])
    np.testing.assert_allclose(prompted, by_hand, atol=1e-5)
    similarity = st_model.similarity(expected, expected).numpy()
    np.testing.assert_allclose(similarity, expected @ expected.T, atol=1e-5)


def test_truncated_dimensions_and_small_precisions(st_model, inputs_and_vectors):
    items, expected = inputs_and_vectors
    np.testing.assert_allclose(st_model.encode(items, truncate_dim=16), expected[:, :16], atol=1e-5)
    ranges = np.stack([expected.min(0), expected.max(0)])
    for precision in ("int8", "binary"):
        quantized = quantize_embeddings(st_model.encode(items), precision, ranges=ranges)
        np.testing.assert_array_equal(quantized, quantize_embeddings(expected, precision, ranges=ranges))
    assert st_model.encode(items, precision="binary").shape == (len(items), expected.shape[1] // 8)


def test_long_titles_are_cut_as_the_processor_cuts_them(st_model, tiny, make_image):
    title = "red mug navy blue " * 100
    item = {"text": title, "image": make_image(1)}
    np.testing.assert_allclose(st_model.encode([title, item])[0], embed(tiny, [title])[0], atol=1e-5)
    np.testing.assert_allclose(st_model.encode(item), embed(tiny, [title], [make_image(1)])[0], atol=1e-5)


def test_saving_through_sentence_transformers_keeps_the_repository(st_model, inputs_and_vectors, folder, tmp_path):
    items, expected = inputs_and_vectors
    st_model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(items), expected, atol=1e-5)
    compared = filecmp.dircmp(folder, tmp_path / "again")
    assert compared.left_only == [CHECKSUMS, PROVENANCE] and compared.right_only == ["README.md"]
    for name in ("modules.json", "sentence_bert_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "again" / name).read_text()), name


def test_two_processes_encode_as_one(folder, tiny, make_image, tmp_path):
    images = [make_image(1), make_image(2)]
    np.save(tmp_path / "pictures.npy", np.stack([np.asarray(image) for image in images]))
    (tmp_path / "encode.py").write_text(TWO_PROCESSES)
    arguments = [folder, tmp_path / "pictures.npy", tmp_path / "vectors.npy"]
    result = subprocess.run(
        [sys.executable, tmp_path / "encode.py", *arguments], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    expected = np.tile(embed(tiny, ["red mug", None, "navy"], [None, *images]), (4, 1))
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-5)


def test_provenance_is_read_from_a_folder_and_is_the_id_of_a_hub_model(folder, tmp_path):
    assert read_provenance(folder) == {"base_model": "shop/base"}
    assert read_provenance("shop/moon2") == {"base_model": "shop/moon2"}
    assert read_provenance("") == read_provenance(tmp_path) == {}


def test_changed_arguments_hold_no_folder_and_no_secret():
    arguments = Moon2TrainingArguments("out", learning_rate=1e-3, hub_token="hf_secret", negatives="explicit")
    changed = changed_arguments(arguments, Moon2TrainingArguments())
    assert changed == {"learning_rate": 1e-3, "negatives": "explicit"}


def test_a_model_takes_the_place_of_another_with_no_weights_of_it_left(tiny, tmp_path):
    folder, new = tmp_path / "model", tmp_path / "model" / ".saving"
    save_hub_folder(folder, *tiny)
    (folder / "README.md").write_text("mine")
    tiny[0].save_pretrained(new, max_shard_size="200KB")
    tiny[1].save_pretrained(new)
    write_checksums(new)
    names = {path.name for path in new.iterdir()}
    assert "model.safetensors" not in names
    replace_model(new, folder)
    assert {path.name for path in folder.iterdir() if path.is_file()} >= names | {"README.md"}
    assert not new.exists() and not (folder / "model.safetensors").exists()
    check_checksums(folder)


def test_a_model_that_was_half_replaced_is_refused(tiny, tmp_path, monkeypatch):
    folder, new = tmp_path / "model", tmp_path / "model" / ".saving"
    save_hub_folder(folder, *tiny)
    save_hub_folder(new, copy.deepcopy(tiny[0]).half(), tiny[1])
    moved = []

    def killed(self, target, replace=Path.replace):
        if len(moved) == 12:
            raise KeyboardInterrupt
        moved.append(self.name)
        replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            replace_model(new, folder)
    assert "model.safetensors" in moved
    with pytest.raises(ValueError, match="not as SHA256SUMS says"):
        check_checksums(folder)
