"""Generative edits of a product's main image by a pipeline of diffusers: I^c_k = MLLM_edit(I_m, T, prompt_k)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pickle import UnpicklingError

import torch
from PIL import Image
from safetensors import SafetensorError

from .model_failures import ModelFailures

_UNCHANGED = (
    "Keep the product exactly as it is: the same shape, colours, pattern, material, proportions, logos and lettering."
)
PROMPTS = {
    "background": f"Product photo of: {{title}}. Put the product into a fitting everyday scene. {_UNCHANGED} "
    "The product is whole and in front of everything else. Add no text.",
    "viewpoint": f"Product photo of: {{title}}. Show the same product from a slightly different angle on a plain "
    f"background. {_UNCHANGED} The product is whole. Add no text.",
    "detail": f"Close-up photo of: {{title}}. Show the product's material and workmanship from near. {_UNCHANGED} "
    "Add no text.",
}


class DiffusersEditor:
    """Edits pictures by words.

    Args:
        model_id: folder or Hub id of a pipeline that takes an image and a prompt: Qwen-Image-Edit, FLUX.1 Kontext,
            InstructPix2Pix and the like.
        device: "cuda", "cpu" …; the accelerator if there is one when None.
        dtype: of the weights, a name of torch; "auto" is bfloat16 on an accelerator and float32 on a CPU.
        steps: of denoising; the pipeline's own number when None.

    Raises:
        ValueError: diffusers is not installed, there is no such pipeline, or it takes no image.

    Example:
        >>> editor = DiffusersEditor("Qwen/Qwen-Image-Edit")
        >>> editor.edit([main_image], ["Red mug"], [PROMPTS["background"]], [0])
        [<PIL.Image.Image image mode=RGB size=512x512>]
    """

    def __init__(
        self, model_id: str, device: str | None = None, dtype: str = "auto", steps: int | None = None
    ) -> None:
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise ValueError('generative edits need diffusers; pip install "moon2[edit]"') from error
        device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else "bfloat16"
        try:
            pipeline = DiffusionPipeline.from_pretrained(
                model_id, torch_dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
            raise ValueError(
                f"editor {model_id}: cannot be loaded ({' '.join(str(error).split())}); give a folder or Hub id of a "
                "diffusers pipeline"
            ) from error
        if "image" not in inspect.signature(pipeline.__call__).parameters:
            raise ValueError(f"editor {model_id}: a {type(pipeline).__name__} takes no image; give one that edits")
        self.pipeline = pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.failures = ModelFailures(f"editor {model_id}")
        self.options = {} if steps is None else {"num_inference_steps": steps}

    def edit(
        self, main_images: Sequence[Image.Image], titles: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Edit pictures one by one, so that each depends on its own seed alone.

        Args:
            main_images: N pictures of products alone, I_m.
            titles: N titles, which go where a prompt says {title}.
            prompts: N prompts.
            seeds: N seeds.

        Returns:
            N pictures of the size of theirs, RGB; None where the pipeline failed, for the reason in
            `failures.reasons`.

        Raises:
            ValueError: the pipeline fails at every picture.
        """
        with self.failures.batch():
            items = zip(main_images, titles, prompts, seeds, strict=True)
            return [self._edited(number, *item) for number, item in enumerate(items)]

    def _edited(self, number: int, image: Image.Image, title: str, prompt: str, seed: int) -> Image.Image | None:
        try:
            made = self.pipeline(
                image=image.convert("RGB"),
                prompt=prompt.replace("{title}", title),
                generator=torch.Generator("cpu").manual_seed(seed),  # the same noise on every device
                **self.options,
            ).images[0]
        except Exception as error:  # whatever a pipeline's own code raises; it must not cost a run of days
            self.failures.failure(number, error)
            return None
        self.failures.success()
        return made.convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
