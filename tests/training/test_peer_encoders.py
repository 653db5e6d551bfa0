"""Real classes of sentence-transformers and transformers with tiny random weights, saved and loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from moon2_training.encode import Encoder
from moon2_training.evaluate import evaluate, evaluate_encoder, format_table
from moon2_training.hub_folder import save_hub_folder
from moon2_training.items import QueryItems
from moon2_training.peer_encoders import DualEncoder, SentenceTransformersEncoder, load_any_encoder

LONG = "lumo blue handbag with a title beyond the model's length " * 9


@pytest.fixture(scope="module")
def folders(tiny, tiny_dual_encoder, tiny_tokenizer, tmp_path_factory):
    """By kind the folder of a saved model."""
    root = tmp_path_factory.mktemp("peers")
    for kind in ("clip", "siglip"):
        for part in tiny_dual_encoder(kind):
            part.save_pretrained(root / kind)
    SentenceTransformer(str(root / "clip"), device="cpu").save(str(root / "late"))
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=11, max_position_embeddings=12, **shape)).save_pretrained(root / "bert")
    tiny_tokenizer.save_pretrained(root / "bert")
    modules = [Transformer(str(root / "bert")), Pooling(32)]
    prompts = {"query": "red ", "document": "mug "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(root / "text"))
    save_hub_folder(root / "moon2", *tiny)
    return {kind: root / kind for kind in ("clip", "siglip", "late", "text", "moon2", "bert")}


@pytest.fixture(scope="module")
def joint(folders):
    model = SentenceTransformer(str(folders["moon2"]), trust_remote_code=True, device="cpu")
    return SentenceTransformersEncoder(model, batch_size=4)


@pytest.fixture(scope="module")
def items(mixed_items):
    """Text, image, both, several images; and one text longer than any of the models reads."""
    made = []
    for number, (text, images) in enumerate(zip(*mixed_items, strict=True)):
        images = [] if images is None else images if isinstance(images, list) else [images]
        made.append({"name": f"thing {number}", "text": text, "images": images})
    return [*made, {"name": "thing 6", "text": LONG, "images": []}]


@pytest.mark.parametrize("kind", ["clip", "siglip", "late", "text"])
def test_views_do_not_depend_on_the_batch_and_are_normalised(folders, items, kind):
    encoder = load_any_encoder(folders[kind], batch_size=3)
    views = encoder.encode_views(items, progress=False)
    one_by_one = load_any_encoder(folders[kind], batch_size=1).encode_views(items, progress=False)
    for together, alone in zip(views, one_by_one, strict=True):
        np.testing.assert_allclose(together, alone, atol=1e-5)
    assert views.has_text.tolist() == [True, False, True, True, False, True, True]
    pictured = [False, True, True, True, True, True, False]
    assert views.has_image.tolist() == (7 * [False] if kind == "text" else pictured)
    for embeddings, present in (
        (views.text, views.has_text),
        (views.image, views.has_image),
        (views.multimodal, views.has_text | views.has_image),
    ):
        assert embeddings.dtype == np.float32 and embeddings.shape == (7, encoder.width)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), present, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "late"])
def test_text_and_images_are_added_where_the_model_cannot_take_both(folders, items, kind):
    views = load_any_encoder(folders[kind]).encode_views(items, progress=False)
    both = torch.from_numpy(views.text + views.image)
    np.testing.assert_allclose(views.multimodal, normalize(both, dim=-1), atol=1e-6)


def test_a_dual_encoder_gives_its_models_own_vectors(tiny_dual_encoder, items):
    model, processor = tiny_dual_encoder("clip")
    views = DualEncoder(model, processor).encode_views(items, progress=False)
    with torch.no_grad():
        output = model(**processor(text=["red mug", "mug"], images=items[3]["images"], padding=True,
                                   return_tensors="pt"))  # fmt: skip
    np.testing.assert_allclose(views.text[[0, 3]], output.text_embeds, atol=1e-5)
    mean = normalize(output.image_embeds.mean(dim=0), dim=-1)  # the output's are normalised
    np.testing.assert_allclose(views.image[3], mean, atol=1e-5)


def test_sentence_transformers_and_transformers_agree_on_a_dual_encoder(folders, items):
    late = load_any_encoder(folders["late"]).encode_views(items, progress=False)
    for mine, theirs in zip(load_any_encoder(folders["clip"]).encode_views(items, False), late, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_joint_model_takes_text_and_all_images_of_an_item_together(joint, tiny, items):
    views, expected = (encoder.encode_views(items, progress=False) for encoder in (joint, Encoder(*tiny)))
    for mine, theirs in zip(views, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.parametrize("kind", ["clip", "text", "moon2"])
def test_one_view_is_that_of_all_views(folders, items, kind):
    encoder = load_any_encoder(folders[kind], batch_size=2)
    views = encoder.encode_views(items, progress=False)
    texts = [row for row in range(7) if views.has_text[row]]
    encoded = encoder.encode([items[row] for row in texts], "text", progress=False)
    np.testing.assert_allclose(encoded, views.text[texts], atol=1e-5)
    able = [row for row in range(7) if views.has_text[row] or views.has_image[row]]
    encoded = encoder.encode([items[row] for row in able], progress=False)
    np.testing.assert_allclose(encoded, views.multimodal[able], atol=1e-5)
    assert encoder.encode([], "text", progress=False).shape == (0, encoder.width)


def test_queries_get_the_models_prompt_for_queries(folders, shop):
    encoder = load_any_encoder(folders["text"])
    queries = QueryItems(shop.queries, range(2, 6))
    model = SentenceTransformer(str(folders["text"]), device="cpu")
    texts = [queries[row]["text"] for row in (0, 2, 3)]
    for sequence, prompt in ((queries, "red "), (list(queries), "mug ")):
        views = encoder.encode_views(sequence, progress=False)
        assert views.has_text.tolist() == [True, False, True, True]
        expected = model.encode([prompt + text for text in texts], normalize_embeddings=True)
        np.testing.assert_allclose(views.text[[0, 2, 3]], expected, atol=1e-5)


def test_what_cannot_be_encoded_is_named(folders, items, make_image):
    clip, text = (load_any_encoder(folders[kind]) for kind in ("clip", "text"))
    broken = {"name": "product p7", "text": "mug", "images": [make_image(1), b"no image"]}
    with pytest.raises(ValueError, match="^product p7, image 1: unreadable image"):
        clip.encode_views([items[0], broken], progress=False)
    assert text.encode_views([broken], progress=False).has_text.all()  # never opened
    with pytest.raises(ValueError, match="^thing 1 has no text"):
        clip.encode(items, "text", progress=False)
    with pytest.raises(ValueError, match="^thing 4 has only images, which this model does not take"):
        text.encode(items[2:], progress=False)
    with pytest.raises(ValueError, match="^thing 1 has neither text nor image"):
        clip.encode_views([items[0], {"name": "thing 1", "text": " ", "images": []}], progress=False)
    with pytest.raises(ValueError, match="view is 'both'; choose one of text, image, multimodal"):
        clip.encode(items, "both")


def test_every_kind_of_model_is_told_by_its_folder(folders, tmp_path):
    kinds = {kind: type(load_any_encoder(folder)) for kind, folder in folders.items() if kind != "bert"}
    assert kinds == {"clip": DualEncoder, "siglip": DualEncoder, "late": SentenceTransformersEncoder,
                     "text": SentenceTransformersEncoder, "moon2": Encoder}  # fmt: skip
    with pytest.raises(ValueError, match="bert: holds a bert model; give a MOON2.0 encoder, a model of sentence-"):
        load_any_encoder(folders["bert"])
    with pytest.raises(FileNotFoundError, match="nothing: no such folder, and no model of that name on the Hub"):
        load_any_encoder(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no config.json there"):
        load_any_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*\); give a complete folder"):
        load_any_encoder(tmp_path)
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*\); give a complete folder"):
        load_any_encoder(tmp_path)


def test_a_model_of_texts_is_scored_where_texts_ask(folders, shop):
    encoder = load_any_encoder(folders["text"])
    results = evaluate_encoder(encoder, shop.products, shop.queries, progress=False)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    scored = {key for key, result in results["retrieval"].items() if "skipped" not in result}
    assert scored == {"t2mm"} and results["mean_recall@10"] is None
    # product 4 has no title, so this model cannot hold it
    assert results["retrieval"]["t2mm"]["candidates"] == 23
    assert "no query with image view" in results["retrieval"]["i2t"]["skipped"]
    colour = results["attributes"]["tasks"]["colour"]
    assert format_table(results).count("no query with image view") == 2
    assert colour["title"]["products"] == 23 and colour["image"] is colour["image_title"] is None


def test_one_model_scores_the_same_through_either_encoder(joint, tiny, shop):
    theirs = evaluate_encoder(joint, shop.products, shop.queries, progress=False)
    mine = evaluate(*tiny, shop.products, shop.queries, progress=False)
    for direction, result in mine["retrieval"].items():
        for metric in ("recall@1", "recall@10", "mrr", "ndcg@10"):
            assert theirs["retrieval"][direction][metric]["value"] == pytest.approx(result[metric]["value"])
    assert theirs["classification"] == mine["classification"]
