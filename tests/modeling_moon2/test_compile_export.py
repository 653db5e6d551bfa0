"""torch.compile and torch.export of the encoding path give what the model gives."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def compiled(tiny_model):
    torch._dynamo.reset()  # what other tests compiled must not count against the limit of recompilations
    return torch.compile(tiny_model, fullgraph=True, dynamic=True, backend="eager")


@pytest.fixture(scope="module")
def inputs_of(tiny_processor):
    return lambda texts, images=None: tiny_processor(text=texts, images=images)


class EncodeText(torch.nn.Module):
    """Embeddings alone, with inputs by place, as an exported program takes them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask).embeddings


class Encode(EncodeText):
    def forward(self, input_ids, attention_mask, pixel_values, image_grid_thw, layout):
        return self.model(input_ids, attention_mask, pixel_values, image_grid_thw, image_layout=layout).embeddings


@torch.no_grad()
def test_texts_compile_to_one_graph(compiled, tiny_model, inputs_of):
    for texts in (["red mug", "navy"], ["Lumo navy blue leather handbag", "mug", "shoes"]):
        inputs = inputs_of(texts)
        torch.testing.assert_close(
            compiled(**inputs).embeddings, tiny_model(**inputs).embeddings, atol=1e-6, rtol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[(60, 80), (60, 80)], [(64, 64), (40, 100)]], ids=["equal", "unequal"])
def test_images_compile_to_one_graph_with_their_layout(compiled, tiny_model, inputs_of, make_image, sizes):
    inputs = inputs_of(["red mug", None], [make_image(i, *size) for i, size in enumerate(sizes)])
    layout = tiny_model.visual.layout(inputs["image_grid_thw"])
    got = compiled(**inputs, image_layout=layout).embeddings
    torch.testing.assert_close(got, tiny_model(**inputs).embeddings, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_without_a_layout_images_compile_in_pieces(tiny_model, inputs_of, mixed_items):
    torch._dynamo.reset()
    inputs = inputs_of(*mixed_items)
    got = torch.compile(tiny_model, backend="eager")(**inputs).embeddings
    torch.testing.assert_close(got, tiny_model(**inputs).embeddings, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_texts_export_for_any_batch_and_length(tiny_model, inputs_of, tmp_path):
    inputs = inputs_of(["red mug", "navy blue shoes"])
    shape = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("length", min=2, max=1024)}
    arguments = (inputs["input_ids"], inputs["attention_mask"])
    shapes = {"input_ids": shape, "attention_mask": shape}
    program = torch.export.export(EncodeText(tiny_model), arguments, dynamic_shapes=shapes, strict=True)
    torch.export.save(program, tmp_path / "text.pt2")
    exported = torch.export.load(tmp_path / "text.pt2").module()
    for texts in (
        ["mug"],
        ["Lumo leather handbag", "red", "navy blue mug", "shoes", "a very long title of a red mug"],
    ):
        inputs = inputs_of(texts)
        got = exported(inputs["input_ids"], inputs["attention_mask"])
        torch.testing.assert_close(got, tiny_model(**inputs).embeddings, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_texts_with_images_export_for_their_shape(tiny_model, inputs_of, make_image):
    def arguments(first: int) -> tuple:
        inputs = inputs_of(["red mug", "navy mug"], [make_image(first), make_image(first + 1)])
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        return *(inputs[name] for name in names), tiny_model.visual.layout(inputs["image_grid_thw"])

    exported = torch.export.export(Encode(tiny_model), arguments(1)).module()
    got, expected = exported(*arguments(5)), Encode(tiny_model)(*arguments(5))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert (got - Encode(tiny_model)(*arguments(1))).abs().max() > 1e-3
