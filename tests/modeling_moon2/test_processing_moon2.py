from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from modeling_moon2.processing_moon2 import load_image

CONTROL = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_layout_is_images_first_then_text_padded_right(tiny_processor, make_image):
    p = tiny_processor
    batch = p(text=["red mug", None, "shoes"], images=[None, make_image(0), [make_image(1), make_image(2, 40, 90)]])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    text = p.tokenizer("red mug", add_special_tokens=False)["input_ids"]
    assert ids[0][: len(text)].tolist() == text and mask[0].sum() == len(text)
    tokens = (batch["image_grid_thw"].prod(-1) // 4).tolist()
    image = [[p.vision_start_token_id, *[p.image_token_id] * n, p.vision_end_token_id] for n in tokens]
    assert ids[1][mask[1] == 1].tolist() == image[0]
    shoes = p.tokenizer("shoes", add_special_tokens=False)["input_ids"]
    assert ids[2][mask[2] == 1].tolist() == image[1] + image[2] + shoes
    assert torch.equal(batch["mm_token_type_ids"], (ids == p.image_token_id).long())
    assert len(batch["pixel_values"]) == batch["image_grid_thw"].prod(-1).sum()


def test_single_items(tiny_processor, make_image):
    p, image = tiny_processor, make_image(0)
    assert p(text="red mug")["input_ids"].shape[0] == 1
    assert p(images=image)["input_ids"].shape[0] == 1
    one = p(text="red mug", images=[image, image])
    assert one["input_ids"].shape[0] == 1 and one["image_grid_thw"].shape[0] == 2
    assert p(images=[image, image])["input_ids"].shape[0] == 2


@pytest.mark.parametrize("control", CONTROL)
def test_control_tokens_in_user_text_are_harmless(tiny, make_image, control):
    model, processor = tiny
    special = {processor.image_token_id, processor.vision_start_token_id, processor.vision_end_token_id, 0}
    batch = processor(text=[f"red {control} mug", control, f"<|ima{CONTROL[0]}ge_pad|>"])
    assert not special & set(batch["input_ids"][batch["attention_mask"] == 1].tolist())
    with torch.no_grad():
        both = model(**processor(text=[f"red {control} mug"] * 2, images=[None, make_image(0)]))
    assert both.embeddings.isfinite().all()


def test_what_an_image_may_be(tmp_path, make_image):
    image = make_image(3)
    reference = np.asarray(image)
    path = tmp_path / "a.png"
    image.save(path)
    png = encoded(image, "PNG")
    for given_image in (image, path, str(path), png, {"bytes": png, "path": None}, {"bytes": None, "path": str(path)},
                        reference, torch.from_numpy(reference.copy()), reference / 255.0,
                        np.moveaxis(reference, -1, 0)):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(load_image(given_image)), reference)


def test_colour_modes_become_rgb(make_image):
    image = make_image(4)
    assert load_image(encoded(image.convert("CMYK"), "TIFF")).mode == "RGB"
    assert load_image(image.convert("P")).mode == "RGB"
    assert load_image(image.convert("1")).mode == "RGB"
    grey = np.asarray(image.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_allclose(np.asarray(load_image(encoded(deep, "PNG")))[..., 0], grey, atol=1)
    dark = Image.fromarray(grey.astype(np.uint16))  # 16 bits, of which only the lowest 8 are used: nearly black
    assert np.asarray(load_image(encoded(dark, "PNG"))).max() <= 1


def test_transparency_is_flattened_on_white(make_image):
    image = make_image(5).convert("RGBA")
    image.putalpha(0)
    assert np.asarray(load_image(encoded(image, "PNG"))).min() == 255
    palette = make_image(5).convert("P")
    palette.info["transparency"] = 0
    index = np.asarray(palette)
    assert (np.asarray(load_image(encoded(palette, "PNG", transparency=0)))[index == 0] == 255).all()


def test_exif_rotation_and_animation(make_image):
    image = make_image(6, 60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encoded(image, "JPEG", exif=exif.tobytes())).size == (80, 60)
    frames = encoded(image, "GIF", save_all=True, append_images=[make_image(7, 60, 80)], duration=50)
    first = load_image(frames)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(load_image(encoded(image, "GIF"))))


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda im: im.resize((1, 5000)), id="1x5000"),
        pytest.param(lambda im: encoded(im.resize((200, 200)), "JPEG")[:900], id="truncated-jpeg"),
        pytest.param(lambda im: b"", id="no-bytes"),
        pytest.param(lambda im: b"<html>not found</html>", id="html"),
        pytest.param(lambda im: "no/such/file.jpg", id="missing-file"),
        pytest.param(lambda im: np.zeros((3, 0, 3), np.uint8), id="empty-array"),
        pytest.param(lambda im: 17, id="number"),
    ],
)
def test_unusable_images_raise_and_name_the_item(tiny_processor, make_image, bad):
    with pytest.raises(ValueError, match=r"item 2, image 1: "):
        tiny_processor(text=["a", "b", "c"], images=[None, make_image(0), [make_image(1), bad(make_image(2))]])


def test_the_message_of_an_unreadable_image_is_the_same_every_time():
    messages = set()
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            load_image(b"<html>not found</html>")
        messages.add(str(error.value))
    assert messages == {"unreadable image (of no known format)"}


def test_odd_but_usable_shapes(tiny, make_image):
    model, processor = tiny
    images = [make_image(0, 1, 1), make_image(1, 3, 600), make_image(2, 2000, 11)]
    with torch.no_grad():
        assert model(**processor(images=images)).embeddings.isfinite().all()


def test_empty_items_and_unequal_lists_are_refused(tiny_processor, make_image):
    for texts in (["mug", None], ["mug", "  \n"]):
        with pytest.raises(ValueError, match="item 1: neither text nor image"):
            tiny_processor(text=texts)
    with pytest.raises(ValueError, match="item 0: neither"):
        tiny_processor(images=[[]])
    with pytest.raises(ValueError, match="2 texts but 1 entries"):
        tiny_processor(text=["a", "b"], images=[make_image(0)])
    with pytest.raises(ValueError, match="item 1: text is int"):
        tiny_processor(text=["a", 3])
    with pytest.raises(ValueError, match="give text, images or both"):
        tiny_processor()
    with pytest.raises(ValueError, match="empty batch"):
        tiny_processor(text=[])


def test_long_titles_are_cut_and_images_never(tiny, make_image):
    model, processor = tiny
    title = "red mug " * 6250  # 50,000 characters
    batch = processor(text=[title, title], images=[None, make_image(0)])
    assert batch["attention_mask"].sum(-1).tolist() == [processor.tokenizer.model_max_length] * 2
    images = batch["image_grid_thw"].prod(-1).sum() // 4
    assert (batch["input_ids"][1] == processor.image_token_id).sum() == images
    with pytest.raises(ValueError, match=r"item 0: its 1 images take \d+ of max_length=5 tokens"):
        processor(text=["mug"], images=[make_image(0)], max_length=5)
    assert processor(text=[title], max_length=7)["input_ids"].shape == (1, 7)


@pytest.mark.parametrize("title", ["🔥👟 sale", "红色 马克杯", "مصباح أزرق", "a\u0000b", "\ud800 lone surrogate"])
def test_any_script(tiny, title):
    model, processor = tiny
    with torch.no_grad():
        assert model(**processor(text=[title])).embeddings.isfinite().all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=()), max_size=60), st.sampled_from(CONTROL))
def test_fuzzed_text_never_yields_a_control_token(tiny_processor, text, control):
    batch = tiny_processor(text=["x" + text + control + text[::-1]])
    assert batch["input_ids"].min() > 3


def test_saved_processor_loads_equal(tiny_processor, tmp_path, mixed_items):
    tiny_processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    for name, value in tiny_processor(text=mixed_items[0], images=mixed_items[1]).items():
        assert torch.equal(loaded(text=mixed_items[0], images=mixed_items[1])[name], value), name


def test_a_tokenizer_without_image_tokens_is_refused(tiny_processor):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from modeling_moon2 import Moon2Processor

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match=re.escape("lacks <|vision_start|>")):
        Moon2Processor(tiny_processor.image_processor, plain)


def test_no_program_is_started_for_a_picture(monkeypatch, make_image, tmp_path):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **options: pytest.fail("it was started"))
    data = encoded(make_image(1), "EPS")
    (tmp_path / "a.jpg").write_bytes(data)
    for given_image in (data, tmp_path / "a.jpg", {"bytes": data, "path": None}):
        with pytest.raises(ValueError, match="unreadable image"):
            load_image(given_image)


@pytest.mark.parametrize("mode", ["1", "RGBA", "I;16"])
def test_too_many_pixels_are_not_decoded(monkeypatch, mode):
    monkeypatch.setattr("modeling_moon2.processing_moon2.MAX_PIXELS", 10_000)
    image = Image.new(mode, (101, 100))
    for given_image in (encoded(image, "PNG"), image):
        with pytest.raises(ValueError, match="a 101x100 image has over 10,000 pixels; make it smaller"):
            load_image(given_image)
    load_image(image.crop((0, 0, 100, 100)))


def test_tensors_of_every_kind_are_pictures(make_image):
    reference = np.asarray(make_image(2))
    half = torch.from_numpy(reference / 255.0).to(torch.bfloat16)
    np.testing.assert_allclose(np.asarray(load_image(half)), reference, atol=2)
    np.testing.assert_array_equal(load_image(torch.from_numpy(reference / 255.0).requires_grad_()), reference)
    for wrong in (np.zeros((4, 4), dtype=object), np.zeros((4, 4), dtype="c8"), np.zeros((4, 4), dtype="U3")):
        with pytest.raises(ValueError, match="is no image; give uint8, or floats in 0..1"):
            load_image(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(value):
    pixels = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    load_image(pixels)
    pixels[3, 4] = value
    for given_image in (pixels, torch.from_numpy(pixels), Image.fromarray(pixels)):
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            load_image(given_image)


def test_options_for_images_are_passed_on(tiny_processor, make_image):
    image = make_image(1, 90, 90)
    plain = tiny_processor(images=[image])
    options = {"return_tensors": "pt", "do_normalize": False}
    other = tiny_processor(images=[image], images_kwargs=options)
    assert torch.equal(other["image_grid_thw"], plain["image_grid_thw"])
    assert not torch.allclose(other["pixel_values"], plain["pixel_values"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ({"category": ["Shoes", 3]}, "the category has a level that is int, not str"),
        ({"attributes": ["red"]}, r"attributes\[0\] is str; give"),
        ({"attributes": [{"name": "colour", "value": "red"}, {"name": "size"}]}, r"attributes\[1\] is dict; give"),
    ],
)
def test_fields_of_another_form_are_named(tiny_processor, text, told):
    with pytest.raises(ValueError, match=f"item 1: {told}"):
        tiny_processor(text=["mug", text])


def test_a_text_that_is_none_is_refused(tiny_processor):
    with pytest.raises(ValueError, match="text is int; give a str, or a list with one for every item"):
        tiny_processor(text=5)


def test_of_a_text_without_end_only_what_can_be_kept_is_tokenized(tiny_processor, monkeypatch):
    kind, lengths = type(tiny_processor.tokenizer), []

    def recorded(tokenizer, texts, real=kind.__call__, **options):
        lengths.extend(map(len, texts))
        return real(tokenizer, texts, **options)

    short = tiny_processor(text=[{"title": "red mug " * 500, "category": "mug"}], max_length=20)
    monkeypatch.setattr(kind, "__call__", recorded)
    long = tiny_processor(text=[{"title": "red mug " * 50_000, "category": "mug"}], max_length=20)
    assert torch.equal(long["input_ids"], short["input_ids"]) and long["input_ids"].shape == (1, 20)
    assert max(lengths) <= 20 * 256
