"""Arguments of `Moon2Trainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from modeling_moon2.modeling_moon2 import MAXIMAL_TEMPERATURE, MINIMAL_TEMPERATURE

from .filtering import MarginSchedule, SampleFilter
from .losses import OBJECTIVES, DualLevelAlignmentLoss

NEGATIVES = ("in_batch", "explicit")
ITEM_TEXT_FIELDS = ("title", "category", "attributes")
ON_BAD_IMAGE = ("raise", "skip")
ON_NAN = ("raise", "skip")


def refuse_data_parallel(arguments: TrainingArguments) -> None:
    """Refuse several GPUs in one process: over these transformers splits every tensor by its rows, and the patches of
    pictures are not those of the batch.

    Raises:
        ValueError: there are several.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"{arguments.n_gpu} GPUs are visible, and a process can train on one; start one for each with "
            "`accelerate launch -m moon2_training.cli` in place of `moon2`, or give one by CUDA_VISIBLE_DEVICES=0"
        )


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
        default="learned",
        metadata={"help": "learned: M·ω from the dual-alignment matrix; uniform: 1 each; balanced: by the losses."},
    )
    objective_floor: float = field(
        default=0.5,
        metadata={"help": "Share of every learned objective weight that is kept uniform, 0 to 1; 0 is as published."},
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
    mine_every_steps: int = field(
        default=0,
        metadata={
            "help": "explicit: steps between two searches, with the model as it stands, for the products most like "
            "each positive; its negative is one of them. 0 is off. A search encodes the catalogue of N products and "
            "compares all of them, N² similarities, both shared between the processes; each holds all vectors, 2·D "
            "bytes a product on an accelerator."
        },
    )
    mined_per_product: int = field(default=16, metadata={"help": "Mined negatives kept for each product."})
    gather_negatives: bool = field(
        default=True,
        metadata={
            "help": "Several processes: items of all of them are negatives, and ω and L_aux are taken over all."
        },
    )
    memory_size: int = field(
        default=0, metadata={"help": "Earlier items kept as further negatives, at least a batch of items; 0 is off."}
    )
    memory_warmup_steps: int = field(
        default=0, metadata={"help": "Steps before the memory serves negatives: early embeddings are stale at once."}
    )
    memory_max_age: int = field(
        default=64, metadata={"help": "Steps after which a kept item is no negative any more."}
    )
    sample_filtering: bool = field(
        default=True, metadata={"help": "Weigh triplets by φ: those that look like wrong clicks count less."}
    )
    filter_threshold: float = field(default=0.6, metadata={"help": "τ, the φ from which a triplet counts in full."})
    filter_kappa: float = field(default=10.0, metadata={"help": "κ, steepness of φ."})
    filter_margin_start: float = field(default=0.2, metadata={"help": "m̄ at the first step."})
    filter_margin_end: float = field(default=0.0, metadata={"help": "m̄ at the last step."})
    filter_margin_shape: str = field(
        default="cosine", metadata={"help": "How m̄ goes from one to the other: cosine, linear, constant."}
    )
    filter_warmup: float = field(
        default=0.1, metadata={"help": "Share of the training in which every triplet still counts in full."}
    )
    filter_weighting: str = field(
        default="linear", metadata={"help": "Weight of a triplet under τ. linear: φ/τ; drop: 0."}
    )
    filter_scope: str = field(
        default="all",
        metadata={
            "help": "Objectives that the filter weighs. all: as published; inter: not the intra-product ones, "
            "of which a wrong click says nothing."
        },
    )
    cached_chunk_size: int = field(
        default=0,
        metadata={
            "help": "Triplets that are in memory at a time (cached contrastive loss): the batch can be as large as "
            "wanted, for a second forward. 0 is off."
        },
    )
    teacher_features: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Embeddings of the catalogue by stronger encoders, to be learnt from: for each teacher a Parquet "
            "file or a glob, as moon2_training.teacher_features writes them."
        },
    )
    distillation_coef: float = field(
        default=1.0, metadata={"help": "Weight of each view's distillation, where there are teacher_features."}
    )
    distillation_temperature: float = field(
        default=0.05, metadata={"help": "Temperature of the affinities between products, of student and teachers."}
    )
    matryoshka_dims: list[int] = field(
        default_factory=list, metadata={"help": "Also train the embeddings' first d dimensions, for these d."}
    )
    inter_temperature: float | None = field(
        default=None, metadata={"help": "ε at the start; the model's own when not given."}
    )
    intra_temperature: float | None = field(
        default=None, metadata={"help": "ε̃ at the start; the model's own when not given."}
    )
    learn_inter_temperature: bool = field(default=True, metadata={"help": "Train ε."})
    learn_intra_temperature: bool = field(default=True, metadata={"help": "Train ε̃."})
    muon: bool = field(
        default=False,
        metadata={
            "help": "Update matrices by Muon, at AdamW's learning rate and weight decay; the rest by AdamW. "
            "What it costs depends on the matrices, not on the batch."
        },
    )
    expert_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the experts; learning_rate when not given."}
    )
    router_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of gate and W*; learning_rate when not given."}
    )
    temperature_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of ε and ε̃; learning_rate when not given."}
    )
    on_bad_image: str = field(
        default="raise",
        metadata={"help": "An image that cannot be read. raise: stop; skip: go on without it, named at the end."},
    )
    on_nan: str = field(
        default="raise",
        metadata={
            "help": "A step whose loss or gradient is NaN or infinite never reaches the weights. raise: stop, on a "
            "GPU at the next log, save or evaluation; skip: go on, counted as skipped_steps in the log."
        },
    )
    item_text_fields: list[str] = field(
        default_factory=lambda: ["title"],
        metadata={"help": "What an item's text holds in training: title, and optionally category and attributes."},
    )
    max_images_per_item: int = field(
        default=1, metadata={"help": "Most pictures of a product in one item; drawn anew every epoch."}
    )
    enriched_title_share: float = field(
        default=0.5, metadata={"help": "Probability that an item's title is its enriched_title, where it has one."}
    )
    expanded_image_share: float = field(
        default=0.15,
        metadata={
            "help": "Probability that a picture of an item is one of its expanded_images or the crop of its "
            "core_region, where it has them."
        },
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Modules that stay as they are, by name: visual is the vision tower, which then takes no memory "
            "and no time for gradients."
        },
    )
    word_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a word is left out of a query's text or an item's title, anew every epoch; "
            "in long trainings it keeps the texts of a log from being learnt by heart."
        },
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Items per forward when scoring."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate; when not given, 1e-3 for a model from scratch and 1e-5 for another."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave NaN and Inf out of the logged mean; it waits for the device every step."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator needs every column."})

    def __post_init__(self):
        super().__post_init__()
        refuse_data_parallel(self)
        if self.negatives not in NEGATIVES:
            raise ValueError(f"negatives={self.negatives!r}; give one of {', '.join(NEGATIVES)}")
        if not 0 <= self.leaf_share <= 1:
            raise ValueError(f"leaf_share={self.leaf_share}; give a share from 0 to 1")
        if not self.item_text_fields or not set(self.item_text_fields) <= set(ITEM_TEXT_FIELDS):
            raise ValueError(f"item_text_fields={self.item_text_fields}; give one or more of {ITEM_TEXT_FIELDS}")
        if self.max_images_per_item < 1:
            raise ValueError(f"max_images_per_item={self.max_images_per_item}; give 1 or more")
        for name in ("enriched_title_share", "expanded_image_share", "word_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; give a probability from 0 to 1")
        self.alignment_loss(model_aux_coef=0.0)  # refuses what has no meaning, before a model is loaded
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"on_bad_image={self.on_bad_image!r}; give one of {', '.join(ON_BAD_IMAGE)}")
        if self.on_nan not in ON_NAN:
            raise ValueError(f"on_nan={self.on_nan!r}; give one of {', '.join(ON_NAN)}")
        if not 0 <= self.cached_chunk_size <= self.per_device_train_batch_size:
            raise ValueError(
                f"cached_chunk_size={self.cached_chunk_size}; give 1 to "
                f"per_device_train_batch_size={self.per_device_train_batch_size}, or 0"
            )
        if self.mine_every_steps < 0 or self.mined_per_product < 1:
            raise ValueError("mine_every_steps is 0 or more, mined_per_product 1 or more")
        if self.mine_every_steps and self.negatives != "explicit":
            raise ValueError(f"mine_every_steps={self.mine_every_steps} needs negatives=explicit; give both")
        if self.memory_size < 0 or 0 < self.memory_size < self.items_per_step:
            raise ValueError(
                f"memory_size={self.memory_size}; give 0, or {self.items_per_step} or more: so many items make a batch"
            )
        if self.memory_warmup_steps < 0 or self.memory_max_age < 1:
            raise ValueError("memory_warmup_steps is 0 or more, memory_max_age 1 or more")
        for name in ("inter_temperature", "intra_temperature"):
            value = getattr(self, name)
            if value is not None and not MINIMAL_TEMPERATURE <= value <= MAXIMAL_TEMPERATURE:
                raise ValueError(f"{name}={value}; give {MINIMAL_TEMPERATURE} to {MAXIMAL_TEMPERATURE}")
        for name in (*(f"{part}_learning_rate" for part in ("expert", "router", "temperature")), "learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < math.inf:
                raise ValueError(f"{name}={rate}; give a rate, 0 or more")
        if self.muon and self.optim not in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED):
            raise ValueError(f"muon=True leaves what is no matrix to AdamW, but optim={self.optim}; drop one")
        if isinstance(self.teacher_features, str):  # as a recipe may give it
            self.teacher_features = [self.teacher_features]
        if not 0 < self.distillation_coef < math.inf:
            raise ValueError(
                f"distillation_coef={self.distillation_coef}; give a number over 0, or no teacher_features"
            )
        if not 0 < self.distillation_temperature < math.inf:
            raise ValueError(f"distillation_temperature={self.distillation_temperature}; give a number over 0")
        if any(dim < 1 for dim in self.matryoshka_dims):
            raise ValueError(f"matryoshka_dims={self.matryoshka_dims}; give numbers of dimensions, 1 or more")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the keys that mask false negatives; leave it off")

    @property
    def items_per_step(self) -> int:
        """Items [p, (n)] that a step encodes; of all processes, if their negatives are shared."""
        processes = self.world_size if self.gather_negatives else 1
        return processes * self.per_device_train_batch_size * (2 if self.negatives == "explicit" else 1)

    def sample_filter(self) -> SampleFilter | None:
        """The filter as the arguments describe it.

        Raises:
            ValueError: one of them is outside its range.
        """
        margin = MarginSchedule(self.filter_margin_start, self.filter_margin_end, self.filter_margin_shape)
        made = SampleFilter(
            self.filter_threshold, self.filter_kappa, margin, self.filter_warmup, self.filter_weighting
        )
        return made if self.sample_filtering else None

    def alignment_loss(self, model_aux_coef: float, gather: bool = False) -> DualLevelAlignmentLoss:
        """The loss as the arguments describe it.

        Args:
            model_aux_coef: ρ where the arguments give none.
            gather: see `DualLevelAlignmentLoss`.

        Raises:
            ValueError: an argument is outside its range.
        """
        return DualLevelAlignmentLoss(
            objectives=self.objectives,
            objective_weighting=self.objective_weighting,
            objective_floor=self.objective_floor,
            aux_coef=model_aux_coef if self.router_aux_loss_coef is None else self.router_aux_loss_coef,
            sparsity_coef=self.sparsity_coef,
            sample_filter=self.sample_filter(),
            filter_scope=self.filter_scope,
            gather=gather,
            matryoshka_dims=self.matryoshka_dims,
        )
