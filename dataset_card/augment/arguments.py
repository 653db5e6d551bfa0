"""The options of `moon2 augment`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .variants import KINDS

ENRICHERS = ("template", "vlm", "none")
REGIONS = ("extraction", "vlm", "none")


@dataclass
class AugmentArguments:
    """Options of `moon2 augment INPUT... OUTPUT`.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    input: list[str] = field(
        metadata={"help": "Products: Parquet files, a glob, or a folder, of which what is held out is left."}
    )
    output: str = field(
        metadata={
            "help": "Parquet file to write, or a folder for a file of each of the input's; an interrupted run goes on."
        }
    )
    enricher: str = field(
        default="template",
        metadata={"help": "Who writes enriched titles. template: no model; vlm: the model of --vlm; none."},
    )
    vlm: str | None = field(default=None, metadata={"help": "Image-text-to-text model, a folder or Hub id."})
    thinking_tokens: int = field(
        default=0, metadata={"help": "Tokens that the model of --vlm may spend on thoughts before an answer."}
    )
    spacy: str | None = field(default=None, metadata={"help": "spaCy pipeline that finds further entities."})
    variants: int = field(default=3, metadata={"help": "Variants of a product's first picture."})
    kinds: list[str] = field(default_factory=lambda: list(KINDS), metadata={"help": "Kinds of variants."})
    segmenter: str | None = field(
        default=None, metadata={"help": "Image-segmentation model that finds the product instead of its background."}
    )
    editor: str = field(
        default="none",
        metadata={"help": "Generative edits besides the variants: none, or diffusers:ID of a pipeline."},
    )
    edits: int = field(default=3, metadata={"help": "Generative edits of a product, with an editor."})
    scorer: str = field(
        default="none",
        metadata={"help": "Model that scores pictures against titles: none, a CLIP-like model or a MOON2.0 model."},
    )
    score_threshold: float | None = field(
        default=None,
        metadata={
            "help": "A variant that scores lower is dropped, whatever its original scores; for CLIP, such as 0.2."
        },
    )
    score_margin: float = field(
        default=0.05, metadata={"help": "A variant that scores lower than its original by more is dropped."}
    )
    core_region: str = field(
        default="extraction",
        metadata={"help": "Where the product's box comes from. extraction: its mask; vlm: the model of --vlm; none."},
    )
    max_side: int = field(default=512, metadata={"help": "Pixels; longer pictures are made smaller before all else."})
    workers: int = field(default=0, metadata={"help": "Processes that work on pictures; 0 for one on each core."})
    seed: int = field(default=0, metadata={"help": "Of all chance, with the product's id."})
    batch_rows: int = field(default=256, metadata={"help": "Rows in memory at a time, and lost when killed."})
    limit: int | None = field(default=None, metadata={"help": "Only the first rows, to look at the result."})
    device: str | None = field(default=None, metadata={"help": "Where models run; the accelerator if there is one."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew where there is something already."})
    allow_held_out: bool = field(
        default=False, metadata={"help": "Take files whose names say that products are judged on them."}
    )

    def __post_init__(self):
        if isinstance(self.input, str):  # as in a recipe
            self.input = [self.input]
        for name, allowed in (("enricher", ENRICHERS), ("core_region", REGIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; give one of {', '.join(allowed)}")
        if not set(self.kinds) <= set(KINDS) or not self.kinds:
            raise ValueError(f"kinds={self.kinds}; give one or more of {', '.join(KINDS)}")
        if self.editor != "none" and not self.editor.startswith("diffusers:"):
            raise ValueError(f"editor={self.editor!r}; give none or diffusers:ID")
        if self.vlm is None and "vlm" in (self.enricher, self.core_region):
            raise ValueError("enricher or core_region is vlm; give the model with --vlm ID")
        least = {
            "thinking_tokens": 0,
            "variants": 0,
            "edits": 0,
            "max_side": 32,
            "workers": 0,
            "batch_rows": 1,
            "limit": 1,
        }
        for name, smallest in least.items():
            if (value := getattr(self, name)) is not None and value < smallest:
                raise ValueError(f"{name}={value}; give {smallest} or more")
