"""Arguments of `Moon2Trainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .losses import OBJECTIVES

NEGATIVES = ("in_batch", "explicit")
ITEM_TEXT_FIELDS = ("title", "category", "attributes")


@dataclass
class Moon2TrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` and what MOON2.0 adds.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    objectives: list[str] = field(
        default_factory=lambda: list(OBJECTIVES),
        metadata={"help": "Objectives to train, by name; the others are off."},
    )
    objective_weighting: str = field(
        default="learned", metadata={"help": "learned: M·ω from the dual-alignment matrix; uniform: 1 each."}
    )
    objective_floor: float = field(
        default=0.0, metadata={"help": "Share of every learned objective weight that is kept uniform, 0 to 1."}
    )
    router_aux_loss_coef: float | None = field(
        default=None, metadata={"help": "ρ, weight of the load-balancing loss; the model's own when not given."}
    )
    sparsity_coef: float = field(default=0.01, metadata={"help": "ς, weight of the sparsity of W*."})
    negatives: str = field(
        default="in_batch",
        metadata={
            "help": "in_batch: the other products of the batch; explicit: also encodes one negative per query, from "
            "its negative_ids or of the same leaf category."
        },
    )
    leaf_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of a batch drawn from one leaf category: harder in-batch negatives, and more false ones "
            "where queries are ambiguous."
        },
    )
    item_text_fields: list[str] = field(
        default_factory=lambda: ["title"],
        metadata={"help": "What an item's text holds in training: title, and optionally category and attributes."},
    )
    max_images_per_item: int = field(
        default=1, metadata={"help": "Most pictures of a product in one item; drawn anew every epoch."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Items per forward when scoring."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator needs every column."})

    def __post_init__(self):
        super().__post_init__()
        if self.negatives not in NEGATIVES:
            raise ValueError(f"negatives={self.negatives!r}; give one of {', '.join(NEGATIVES)}")
        if not 0 <= self.leaf_share <= 1:
            raise ValueError(f"leaf_share={self.leaf_share}; give a share from 0 to 1")
        if not self.item_text_fields or not set(self.item_text_fields) <= set(ITEM_TEXT_FIELDS):
            raise ValueError(f"item_text_fields={self.item_text_fields}; give one or more of {ITEM_TEXT_FIELDS}")
        if self.max_images_per_item < 1:
            raise ValueError(f"max_images_per_item={self.max_images_per_item}; give 1 or more")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the keys that mask false negatives; leave it off")
