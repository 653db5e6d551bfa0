"""transformers' Trainer for MOON2.0: triplets in, dual-level loss, everything about the objectives in the log."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer

from modeling_moon2 import Moon2Model, Moon2Processor, Moon2ViewsOutput
from moon2_dataset import ProductQueries

from .collator import Moon2Collator
from .evaluate import evaluate
from .hub_folder import changed_arguments, complete_hub_folder, read_provenance
from .losses import VIEWS, DualLevelAlignmentLoss, DualLevelLossOutput
from .sampler import LeafBatchSampler
from .trainer_config import Moon2TrainingArguments
from .triplets import TripletDataset

KEYS = ("product_keys", "title_keys", "positive_keys")


class ObjectiveLog:
    """Means of a run's diagnostics between two log lines; holds tensors and reads them once, when asked."""

    def __init__(self) -> None:
        self._steps: list[dict[str, torch.Tensor]] = []

    def add(self, result: DualLevelLossOutput, temperatures: torch.Tensor) -> None:
        """Remember one batch; nothing waits for the device."""
        served = result.served.float()  # (M,)
        step = {
            "served": served,
            "loss": result.objective_losses * served,
            "weight": result.objective_weights,
            "regularisers": torch.stack([result.aux_loss, result.sparsity_loss]),
            "temperature": temperatures.detach(),
        }
        if result.expert_load is not None:
            step |= {"expert_load": result.expert_load, "routing_entropy": result.routing_entropy}
        self._objectives = result.objectives
        self._steps.append(step)

    def flush(self) -> dict[str, float]:
        """Means since the last call, flat: `loss/inter_text`, `weight/inter_text` (M·ω), `loss/aux`,
        `loss/sparsity`, `temperature/inter`, `expert_load/text/0`, `routing_entropy/text`; `unserved/inter_image` is
        the share of batches in which nothing served the objective, where that happened.
        """
        if not self._steps:
            return {}
        mean = {name: torch.stack([step[name] for step in self._steps]).mean(0).tolist() for name in self._steps[0]}
        self._steps = []
        logs = {}
        for name, served, loss, weight in zip(
            self._objectives, mean["served"], mean["loss"], mean["weight"], strict=True
        ):
            if served:
                logs[f"loss/{name}"] = loss / served
            if served < 1:
                logs[f"unserved/{name}"] = 1 - served
            logs[f"weight/{name}"] = weight
        logs |= dict(zip(("loss/aux", "loss/sparsity"), mean["regularisers"], strict=True))
        logs |= dict(zip(("temperature/inter", "temperature/intra"), mean["temperature"], strict=True))
        if "expert_load" in mean:
            for view, load, entropy in zip(VIEWS, mean["expert_load"], mean["routing_entropy"], strict=True):
                logs |= {f"expert_load/{view}/{z}": share for z, share in enumerate(load)}
                logs[f"routing_entropy/{view}"] = entropy
        return logs


class CompactProgressCallback(ProgressCallback):
    """The progress bar, printing the overall numbers and leaving the per-objective ones to the log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        overall = {key: value for key, value in (logs or {}).items() if "/" not in key}
        super().on_log(args, state, control, logs=overall, **kwargs)


class Moon2Trainer(Trainer):
    """Fine-tunes a MOON2.0 model on a shop's catalogue and click log.

    Args:
        model: a [`Moon2Model`].
        args: the arguments.
        train_dataset, eval_dataset: catalogue and queries, as `moon2_dataset.join` gives them. Evaluation scores the
            five retrieval directions, product classification and attributes.
        processing_class: the model's [`Moon2Processor`].
        kwargs: as for `transformers.Trainer`.

    Example:

    ```python
    >>> data = load_product_queries("products.parquet", "queries.parquet")
    >>> Moon2Trainer(model, Moon2TrainingArguments("out"), train_dataset=data, processing_class=processor).train()
    ```
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over the batch

    def __init__(
        self,
        model: Moon2Model,
        args: Moon2TrainingArguments,
        train_dataset: ProductQueries | None = None,
        eval_dataset: ProductQueries | None = None,
        processing_class: Moon2Processor | None = None,
        **kwargs,
    ) -> None:
        if processing_class is None:
            raise ValueError("processing_class is missing; give the model's Moon2Processor")
        unseen = set(model.config.get_text_config().guided_fields) - set(args.item_text_fields)
        if unseen:
            raise ValueError(
                f"item_text_fields={args.item_text_fields} lacks {', '.join(sorted(unseen))}, for which the model has "
                "experts of their own (guided_fields); they would see no token, so add what lacks"
            )
        aux_coef = args.router_aux_loss_coef
        if aux_coef is None:
            aux_coef = model.config.get_text_config().router_aux_loss_coef
        self.alignment_loss = DualLevelAlignmentLoss(
            objectives=args.objectives,
            objective_weighting=args.objective_weighting,
            objective_floor=args.objective_floor,
            aux_coef=aux_coef,
            sparsity_coef=args.sparsity_coef,
        )
        self.objective_log = ObjectiveLog()
        self.provenance = read_provenance(model.config._name_or_path) | {
            "training": changed_arguments(args, Moon2TrainingArguments())
        }
        triplets = None
        if train_dataset is not None:
            if len(train_dataset) < args.train_batch_size:
                raise ValueError(
                    f"{len(train_dataset)} queries do not fill one batch of {args.train_batch_size}; lower "
                    "per_device_train_batch_size"
                )
            triplets = TripletDataset(
                train_dataset,
                negatives=args.negatives,
                seed=args.data_seed if args.data_seed is not None else args.seed,
                item_text_fields=tuple(args.item_text_fields),
                max_images_per_item=args.max_images_per_item,
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=Moon2Collator(processing_class),
            train_dataset=triplets,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(CompactProgressCallback)

    def get_train_dataloader(self) -> DataLoader:
        """Batches grouped by leaf category, `args.leaf_share` of each."""
        data: ProductQueries = self.train_dataset.data
        sampler = LeafBatchSampler(
            data.leaf[data.positive_row],
            batch_size=self._train_batch_size,
            leaf_share=self.args.leaf_share,
            seed=self.train_dataset.seed,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type != "cpu",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model, inputs, return_outputs: bool = False, num_items_in_batch=None
    ) -> torch.Tensor | tuple[torch.Tensor, Moon2ViewsOutput]:
        """L_total of one batch of triplets."""
        keys = {name: inputs[name] for name in KEYS}
        outputs = model(**{name: value for name, value in inputs.items() if name not in KEYS}, return_views=True)
        result = self.alignment_loss(outputs, **keys)
        self.objective_log.add(result, outputs.temperatures)
        return (result.loss, outputs) if return_outputs else result.loss

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        width = self.model.config.get_text_config().hidden_size
        complete_hub_folder(output_dir or self.args.output_dir, width, self.provenance)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Weight decay leaves W* and the temperatures alone: their zero means something."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if "dual_alignment" not in name and "temperature" not in name]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objectives' diagnostics to a training log line."""
        if "loss" in logs:
            logs |= self.objective_log.flush()
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: ProductQueries | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score `eval_dataset`; returns flat metrics such as `eval_t2mm_recall@10` and `eval_mean_recall@10`."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        results = evaluate(
            model,
            self.processing_class,
            data.products,
            data.queries,
            batch_size=self.args.per_device_eval_batch_size,
            progress=not self.args.disable_tqdm,
        )
        metrics = {
            f"{metric_key_prefix}_{key}_{name}": result[name]["value"]
            for key, result in results["retrieval"].items()
            for name in ("recall@1", "recall@10", "mrr")
            if name in result
        }
        if results["mean_recall@10"] is not None:
            metrics[f"{metric_key_prefix}_mean_recall@10"] = results["mean_recall@10"]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
