from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from moon2_dataset import demo_drawing
from moon2_dataset.augment.core_region import subject_box
from moon2_dataset.augment.subject import Segmenter, extract_subject
from moon2_dataset.demo_catalogue import _original

BACKDROPS = ("white", "grey", "gradient", "room", "wood", "noise")


def box_of(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    height, width = mask.shape
    return [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]


def box_iou(one: list[float], other: list[float]) -> float:
    if not one or not other:
        return 0.0
    sides = [max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def rendered(backdrop: str, number: int) -> tuple[Image.Image, np.ndarray]:
    """A drawn product before a backdrop, and where it truly is."""
    rng = np.random.default_rng([number, BACKDROPS.index(backdrop)])
    look = _original(rng).look
    camera = demo_drawing.Camera(
        yaw=rng.uniform(-30, 30), pitch=rng.uniform(-10, 10), roll=rng.uniform(-10, 10), scale=rng.uniform(0.55, 0.9)
    )
    product = demo_drawing._seen(demo_drawing._drawn(look), camera, 160, 160)
    alpha = np.asarray(product.getchannel("A"), dtype=np.float32)[..., None] / 255
    if backdrop == "noise":
        scene = rng.normal(rng.uniform(80, 200, 3), rng.uniform(10, 40), (160, 160, 3)).clip(0, 255)
    else:
        scene = demo_drawing._backdrop(backdrop, 160, 160, rng)
    picture = scene * (1 - alpha) + np.asarray(product.convert("RGB"), dtype=np.float32) * alpha
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)), alpha[..., 0] > 0.5


@pytest.mark.parametrize("backdrop", BACKDROPS)
def test_products_of_known_place_are_found_before_all_backdrops(backdrop, record_property):
    boxes, masks, white = [], [], []
    for number in range(16):
        picture, truth = rendered(backdrop, number)
        subject = extract_subject(picture)
        boxes.append(box_iou(subject_box(subject), box_of(truth)))
        masks.append(mask_iou(subject.mask > 0.5, truth))
        white.append(box_iou(box_of(np.asarray(picture).min(axis=2) < 238), box_of(truth)))
    record_property("box_iou", round(float(np.mean(boxes)), 3))
    record_property("mask_iou", round(float(np.mean(masks)), 3))
    assert np.mean(boxes) >= 0.85 and np.mean(masks) >= 0.85
    if backdrop != "white":
        assert np.mean(white) < 0.5  # that anything but white is product would not do


@pytest.mark.parametrize(("name", "split"), [("fashion", "validation"), ("sportswear", "test")])
def test_boxes_of_real_photos_are_those_of_their_silhouettes(shared_data, name, split):
    table = pq.read_table(shared_data / name / f"products-{split}.parquet", columns=["images"])
    ious = []
    for images in table["images"].to_pylist()[:: max(1, len(table) // 60)][:60]:
        picture = Image.open(io.BytesIO(images[0]["bytes"])).convert("RGB")
        silhouette = np.asarray(picture.reduce(1)).min(axis=2) < 238
        silhouette &= np.roll(silhouette, 1, axis=0) & np.roll(silhouette, 1, axis=1)  # without single specks
        if silhouette.mean() > 0.9:  # it is no cut-out on white
            continue
        ious.append(box_iou(subject_box(extract_subject(picture)), box_of(silhouette)))
    assert len(ious) > 40 and np.mean(ious) >= 0.85


def test_transparency_is_believed():
    picture = Image.new("RGBA", (40, 60), (255, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (10, 20, 30, 50))
    subject = extract_subject(picture)
    assert subject.method == "alpha" and subject.confidence == 1.0
    assert subject_box(subject) == [0.25, 20 / 60, 0.75, 50 / 60]
    opaque = Image.new("RGBA", (40, 60), (255, 255, 255, 255))
    assert extract_subject(opaque).method == "none"


@pytest.mark.parametrize("size", [(64, 64), (5, 300), (1, 1), (700, 40)])
def test_nothing_is_found_where_nothing_is(size):
    subject = extract_subject(Image.new("RGB", size, (200, 210, 190)))
    assert subject.method == "none" and subject.confidence == 0.0 and subject_box(subject) == []
    assert subject.mask.shape == size[::-1] and subject.mask.all()


@pytest.mark.parametrize("backdrop", ["grey", "wood"])
def test_the_same_pixels_give_the_same_mask_whatever_came_before(backdrop):
    picture, _ = rendered(backdrop, 3)
    first = extract_subject(picture).mask
    extract_subject(rendered("room", 5)[0])
    np.testing.assert_array_equal(extract_subject(picture).mask, first)


def test_the_mask_is_as_large_as_the_picture_whatever_its_size():
    picture, truth = rendered("gradient", 2)
    large = picture.resize((500, 480), Image.Resampling.BICUBIC)
    subject = extract_subject(large)
    assert subject.mask.shape == (480, 500)
    expected = np.asarray(Image.fromarray(truth).resize((500, 480))) > 0
    assert mask_iou(subject.mask > 0.5, expected) > 0.8


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segformer")
    config = SegformerConfig(num_labels=2, depths=[1, 1], hidden_sizes=[8, 16], num_encoder_blocks=2, sr_ratios=[2, 1],
                             num_attention_heads=[1, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
                             decoder_hidden_size=16)  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_segmentation_model_can_find_the_product(segformer, make_image):
    segmenter = Segmenter(str(segformer), device="cpu")
    picture = make_image(1, 50, 70)
    mask = segmenter.mask(picture)
    assert mask.shape == (70, 50) and 0 <= mask.min() < mask.max() <= 1
    segmenter.model.decode_head.classifier.bias.data[:] = torch.tensor([-4.0, 4.0])  # sure of the product everywhere
    assert extract_subject(picture, segmenter).method != "segmenter"  # all of the picture is no find
    segmenter.model.decode_head.classifier.bias.data[:] = 0
    subject = extract_subject(picture, segmenter)
    if 0.01 <= (mask > 0.5).mean() <= 0.98:
        assert subject.method == "segmenter"
        np.testing.assert_array_equal(subject.mask, mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_saved_in_half_precision_finds_the_product_too(segformer, tmp_path, make_image, dtype):
    SegformerForSemanticSegmentation.from_pretrained(segformer).to(dtype).save_pretrained(tmp_path)
    SegformerImageProcessorPil.from_pretrained(segformer).save_pretrained(tmp_path)
    picture = make_image(1, 50, 70)
    expected = Segmenter(str(segformer), device="cpu").mask(picture)
    np.testing.assert_allclose(Segmenter(str(tmp_path), device="cpu").mask(picture), expected, atol=0.02)


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded .*; give a folder or Hub id that"):
        Segmenter(str(tmp_path))
