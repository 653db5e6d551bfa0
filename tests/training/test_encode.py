from __future__ import annotations

import io
import threading
import weakref

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoConfig

import moon2_training.encode as encode_module
from moon2_dataset import PRODUCT_FEATURES, QUERY_FEATURES
from moon2_training.encode import Encoder
from moon2_training.encoded_pictures import decode_picture
from moon2_training.items import ProductItems, QueryItems
from moon2_training.saved_encoder import encoder_fingerprint, load_encoder


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A large picture whose content survives being made small."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def encoder(tiny_model, tiny_processor):
    return Encoder(tiny_model, tiny_processor, batch_size=4)


@pytest.fixture(scope="module")
def items(mixed_items, make_image):
    """Twenty items, short and long, in no order of length, some without text and some without images."""
    texts, images = mixed_items
    images = [given if isinstance(given, list) else [given] if given else [] for given in images]
    first = [{"text": text, "images": given} for text, given in zip(texts, images, strict=True)]
    rng = np.random.default_rng(0)
    for number in range(14):
        words = " ".join(rng.choice(["red", "navy", "shoes", "leather", "mug"], size=rng.integers(1, 12)))
        several = [make_image(20 + number, 30 + 7 * number, 60)] * int(rng.integers(0, 4))
        first.append({"text": words if number % 3 or not several else "  ", "images": several})
    return first


def one_at_a_time(encoder: Encoder, item: dict) -> torch.Tensor:
    inputs = encoder.processor(text=[item["text"]], images=[item["images"]], return_tensors="pt")
    with torch.no_grad():
        return encoder.model(**inputs).embeddings[0]


@pytest.mark.parametrize("batches_per_window", [1, 2, 64])
def test_encode_equals_one_at_a_time_in_the_order_given(monkeypatch, encoder, items, batches_per_window):
    monkeypatch.setattr(encode_module, "BATCHES_PER_WINDOW", batches_per_window)
    embeddings = encoder.encode(items, progress=False)
    assert embeddings.shape == (len(items), encoder.width) and embeddings.dtype == np.float32
    for row, item in enumerate(items):
        np.testing.assert_allclose(embeddings[row], one_at_a_time(encoder, item), atol=1e-5, err_msg=f"item {row}")


def test_encode_views_equals_encode_of_each_view(encoder, items):
    views = encoder.encode_views(items, progress=False)
    has_text = np.array([bool(item["text"] and item["text"].strip()) for item in items])
    has_image = np.array([bool(item["images"]) for item in items])
    assert 0 < has_text.sum() < len(items) and 0 < has_image.sum() < len(items)
    assert (views.has_text == has_text).all() and (views.has_image == has_image).all()
    for view, present in (("text", has_text), ("image", has_image), ("multimodal", has_text | has_image)):
        rows = np.flatnonzero(present)
        embeddings = encoder.encode([items[row] for row in rows], view=view, progress=False)
        np.testing.assert_allclose(getattr(views, view)[rows], embeddings, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
        assert (getattr(views, view)[~present] == 0).all()


def test_routing_counts_all_tokens_of_all_items_in_their_views(encoder, items):
    batches = list(encoder.routing(items, progress=False))
    assert len(batches) == 5
    tokens = sum(routing.token_counts.sum(1) for routing in batches)  # (3,)
    lengths, of_images, of_both = 0, 0, 0
    for item in items:
        inputs = encoder.processor(text=[item["text"]], images=[item["images"]])
        length = int(inputs["attention_mask"].sum())
        images = int(inputs["mm_token_type_ids"].sum()) + 2 * len(item["images"])
        lengths, of_images = lengths + length, of_images + images
        of_both += length if 0 < images < length else 0
    assert tokens.tolist() == [lengths - of_images, of_images, of_both]
    chosen = sum(routing.expert_counts.sum((2, 3)) for routing in batches)  # (3, layers)
    assert (chosen == 2 * tokens.unsqueeze(1)).all()


def test_all_forms_of_an_image_are_the_same_item(encoder, make_image, tmp_path):
    image = make_image(3)
    (tmp_path / "photo.png").write_bytes(encoded(image))
    forms = [
        image,
        np.asarray(image),
        encoded(image),
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        {"bytes": encoded(image), "path": None},
        {"bytes": None, "path": str(tmp_path / "photo.png")},
    ]
    embeddings = encoder.encode([{"text": None, "images": [form]} for form in forms], view="image", progress=False)
    np.testing.assert_allclose(embeddings, np.repeat(embeddings[:1], len(forms), axis=0), atol=1e-5)


@pytest.mark.parametrize(("view", "missing"), [("text", "no text"), ("image", "no image")])
def test_an_item_without_the_view_is_named_by_its_index(encoder, items, view, missing):
    lacking = next(
        row
        for row, item in enumerate(items)
        if not (item["images"] if view == "image" else (item["text"] or "").strip())
    )
    with pytest.raises(ValueError, match=f"^item {lacking} has {missing}"):
        encoder.encode(items, view=view, progress=False)


def test_an_empty_item_and_an_unknown_view_are_refused(encoder, items):
    with pytest.raises(ValueError, match="^item 1 has neither text nor image"):
        encoder.encode_views([items[0], {"text": " \n", "images": []}], progress=False)
    with pytest.raises(ValueError, match="choose one of text, image, multimodal"):
        encoder.encode(items, view="title")


@pytest.mark.parametrize(
    "broken",
    [
        b"no image at all",
        encoded(photo(300, 200), "JPEG")[:900],
        encoded(photo(300, 200))[:900],
        Image.new("RGB", (5000, 1)),
        {"bytes": None, "path": "/nowhere/photo.jpg"},
        {"bytes": None, "path": None},
    ],
    ids=["text", "truncated jpeg", "truncated png", "shape", "missing file", "nothing"],
)
def test_an_image_that_cannot_be_read_is_named_with_its_item(encoder, items, broken):
    bad = [*items[:9], {"text": "mug", "images": [items[2]["images"][0], broken]}, *items[9:]]
    with pytest.raises(ValueError, match="^item 9, image 1: "):
        encoder.encode_views(bad, progress=False)
    bad[9]["name"] = "product A7"
    with pytest.raises(ValueError, match="^product A7, image 1: "):
        encoder.encode_views(bad, progress=False)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored_and_no_graph_is_kept(encoder, items, training):
    encoder.model.train(training)
    try:
        encoder.encode(items[:3], progress=False)
        assert encoder.model.training is training
        with pytest.raises(ValueError, match="item 0"):
            encoder.encode([{"text": None, "images": []}], progress=False)
        assert encoder.model.training is training
    finally:
        encoder.model.eval()


def test_items_are_read_batch_by_batch_and_not_kept(monkeypatch, encoder, make_image):
    monkeypatch.setattr(encode_module, "BATCHES_PER_WINDOW", 3)
    references = []
    most = 0

    class Lazy:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, row: int) -> dict:
            nonlocal most
            image = make_image(row, 40 + row, 40)
            references.append(weakref.ref(image))
            most = max(most, sum(reference() is not None for reference in references))
            return {"text": None, "images": [image]}

    assert encoder.encode(Lazy(), view="image", progress=False).shape[0] == 40
    assert 0 < most <= 2 * encoder.batch_size


def test_batches_hold_items_of_similar_length(encoder, items):
    padded = real = 0
    for inputs in encoder.model_inputs(items, "multimodal"):
        padded += inputs["attention_mask"].numel()
        real += int(inputs["attention_mask"].sum())
    in_order = 0
    for start in range(0, len(items), encoder.batch_size):
        batch = items[start : start + encoder.batch_size]
        inputs = encoder.processor(text=[i["text"] for i in batch], images=[i["images"] for i in batch])
        in_order += inputs["attention_mask"].numel()
    assert padded - real < 0.4 * (in_order - real)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_batches_of_a_small_model_run_side_by_side(encoder, items, two_threads, monkeypatch):
    running, threads = [], set()
    forward = type(encoder.model).forward

    def watched(model, **inputs):
        running.append(torch.get_num_threads())
        threads.add(threading.current_thread().name)
        return forward(model, **inputs)

    monkeypatch.setattr(type(encoder.model), "forward", watched)
    found = encoder.encode(items, progress=False)
    assert len(threads) > 1 and set(running) == {1}
    running.clear()
    monkeypatch.setattr(encode_module, "SMALL_MODEL", 0)
    np.testing.assert_allclose(encoder.encode(items, progress=False), found, atol=1e-5)
    assert set(running) == {2}
    running.clear()
    monkeypatch.setattr(encode_module, "SMALL_MODEL", 10**9)
    encoder.encode(items[: encoder.batch_size], progress=False)  # one batch, which somebody waits for
    assert running == [2] and torch.get_num_threads() == 2


def test_the_last_batch_of_a_catalogue_has_the_same_bits_alone(encoder, items, two_threads):
    windows = [items[:8], items[8:9]]
    together = list(encoder.encode_windows(windows))[1]
    (alone,) = encoder.encode_windows(windows[1:])
    for view, vectors in alone.vectors.items():
        assert (vectors == together.vectors[view]).all(), view


def test_no_items_give_no_rows(encoder):
    assert encoder.encode([], progress=False).shape == (0, encoder.width)
    assert encoder.encode_views([], progress=False).has_text.shape == (0,)


def test_large_jpegs_are_decoded_small_with_little_change(encoder):
    budget = encoder.processor.image_processor.size["longest_edge"]
    large = photo(2400, 1600)
    small = decode_picture(encoded(large, "JPEG", quality=95), budget)
    assert small.width * small.height < large.width * large.height / 16
    assert small.width * small.height >= 4 * budget
    item = {"text": None, "images": [encoded(large, "JPEG", quality=95)]}
    embedding = encoder.encode([item], progress=False)[0]
    full = one_at_a_time(encoder, item).numpy()
    other = one_at_a_time(encoder, {"text": None, "images": [photo(2400, 1600, seed=1)]}).numpy()
    assert np.linalg.norm(embedding - full) < 0.1 * np.linalg.norm(embedding - other)


def test_jpegs_near_the_budget_are_decoded_whole(encoder):
    image = encoded(photo(90, 70), "JPEG")
    assert decode_picture(image, encoder.processor.image_processor.size["longest_edge"]).size == (90, 70)


def test_a_large_turned_jpeg_is_turned_upright(encoder):
    upright = photo(1600, 2400)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    images = [
        turned,
        encoded(upright, "JPEG", quality=95),
        encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG"),
    ]
    a, b, wrong = encoder.encode([{"text": None, "images": [image]} for image in images], progress=False)
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a - wrong)


def test_tables_become_items(make_image):
    images = [{"bytes": encoded(make_image(seed)), "path": None} for seed in range(6)]
    product = {"description": "long", "category_path": ["a"], "attributes": []}
    products = Dataset.from_list(
        [
            {"product_id": "p0", "title": "red mug", "images": images, **product},
            {"product_id": "p1", "title": "", "images": images[:1], **product},
        ],
        features=PRODUCT_FEATURES,
    )
    found = list(ProductItems(products))
    assert [(item["name"], item["text"], len(item["images"])) for item in found] == [
        ("product p0", "red mug", 4),
        ("product p1", "", 1),
    ]
    assert found[0]["images"][3]["bytes"] == images[3]["bytes"]
    queries = Dataset.from_list(
        [
            {"query_id": "q0", "text": "mug", "image": images[0], "product_id": "p0"},
            {"query_id": "q1", "text": None, "image": images[1], "product_id": "p0"},
            {"query_id": "q2", "text": "cup", "image": None, "product_id": "p1"},
        ],
        features=QUERY_FEATURES,
    )
    found = list(QueryItems(queries, [2, 1]))
    assert [(item["name"], item["text"], len(item["images"])) for item in found] == [
        ("query q2", "cup", 0),
        ("query q1", None, 1),
    ]


def test_load_encoder_gives_the_saved_model_in_evaluation_mode(tiny_model, tiny_processor, tmp_path, encoder, items):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    model, processor = load_encoder(tmp_path)
    assert not model.training
    loaded = Encoder(model, processor, batch_size=4).encode(items, progress=False)
    np.testing.assert_allclose(loaded, encoder.encode(items, progress=False), atol=1e-5)


def test_load_encoder_says_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder, and no model of that name on the Hub"):
        load_encoder(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="give the folder of a saved model"):
        load_encoder(tmp_path)
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a bert model"):
        load_encoder(tmp_path)


def test_a_fingerprint_survives_saving_and_changes_with_what_an_embedding_depends_on(tiny, tmp_path):
    model, processor = tiny
    fingerprint = encoder_fingerprint(model, processor)
    assert len(fingerprint) == 32 and encoder_fingerprint(model, processor) == fingerprint
    for part in tiny:
        part.save_pretrained(tmp_path)

    def loaded():
        return load_encoder(tmp_path)

    assert encoder_fingerprint(*loaded()) == fingerprint
    others = []
    other, same = loaded()
    next(other.parameters()).data.view(-1)[0] *= 1.01  # one weight of the first tensor
    others.append(encoder_fingerprint(other, same))
    other, same = loaded()
    assert encoder_fingerprint(other.to(torch.bfloat16), same) == fingerprint
    assert encoder_fingerprint(other.to(torch.float32), same) == fingerprint  # of the rounded weights
    other, same = loaded()
    other.config.get_text_config().num_experts_per_tok = 1  # in no weight
    others.append(encoder_fingerprint(other, same))
    same, other = loaded()
    other.image_processor.size = other.image_processor.size | {"longest_edge": 4 * 48 * 48}
    others.append(encoder_fingerprint(same, other))
    same, other = loaded()
    other.tokenizer.model_max_length = 5
    others.append(encoder_fingerprint(same, other))
    assert len({fingerprint, *others}) == 5


@pytest.mark.parametrize("views", [("multimodal",), ("text",), ("image",), ("image", "multimodal")])
@pytest.mark.parametrize("workers", [1, 3])
def test_windows_are_encoded_one_after_the_other_and_say_which_views_an_item_has(encoder, items, views, workers):
    threaded = Encoder(encoder.model, encoder.processor, batch_size=4, workers=workers)
    expected = encoder.encode_views(items, progress=False)
    told = []
    sizes = (7, 0, 1, 12)
    ends = np.cumsum(sizes)
    windows = (items[end - size : end] for size, end in zip(sizes, ends, strict=True))
    found = list(threaded.encode_windows(windows, views, advance=told.append))
    assert [len(part.vectors[views[0]]) for part in found] == list(sizes)
    has = {"text": expected.has_text, "image": expected.has_image, "multimodal": np.ones(20, bool)}
    for view in views:
        vectors = np.concatenate([part.vectors[view] for part in found])
        assert (np.concatenate([part.present[view] for part in found]) == has[view]).all()
        np.testing.assert_allclose(vectors, getattr(expected, view), atol=1e-5)
    assert sum(told) == (has[views[0]].sum() if len(views) == 1 else 20) and not any(part.losses for part in found)


def test_a_lenient_encoder_loses_a_picture_or_an_item_and_tells(encoder, items, make_image):
    good = make_image(3)
    given = [
        items[0],
        {"text": "mug", "images": [good, b"no picture"]},
        {"text": " ", "images": [b"no picture"]},
        {"text": "mug", "images": [good] * 40},
        {"text": "mug", "images": [b"no picture"]},
    ]
    (found,) = encoder.encode_windows([given], lenient=True)
    told = [(loss.row, loss.dropped, loss.message.split(":")[0]) for loss in found.losses]
    assert told == [(1, False, ", image 1"), (2, True, ", image 0"), (3, True, ""), (4, False, ", image 0")]
    assert "images take" in found.losses[2].message
    assert found.present["multimodal"].tolist() == [True, True, False, False, True]
    whole = encoder.encode([items[0], {"text": "mug", "images": [good]}], progress=False)
    np.testing.assert_allclose(found.vectors["multimodal"][:2], whole, atol=1e-5)
    assert not found.present["image"][4] and found.present["text"][4]
    given[1]["name"] = "product A7"
    with pytest.raises(ValueError, match="^product A7, image 1: unreadable image"):
        list(encoder.encode_windows([given[:2]]))


def test_unknown_views_of_windows_are_refused(encoder):
    for views in ((), ("title",)):
        with pytest.raises(ValueError, match="give one or some of text, image, multimodal"):
            list(encoder.encode_windows([], views))


def test_an_error_while_windows_are_read_is_not_lost(encoder, items):
    def windows():
        yield items[:3]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(encoder.encode_windows(windows()))


def test_an_image_may_lack_its_bytes_or_its_path(encoder, make_image, tmp_path):
    make_image(1).save(tmp_path / "a.png")
    item = {"text": None, "images": [{"path": str(tmp_path / "a.png")}]}
    whole = {"text": None, "images": [{"bytes": (tmp_path / "a.png").read_bytes()}]}
    vectors = encoder.encode([item, whole], progress=False)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    with pytest.raises(ValueError, match="item 0, image 0: NoneType is no image"):
        encoder.encode([{"text": None, "images": [{"path": None}]}], progress=False)
