"""transformers' Trainer for MOON2.0: triplets in, dual-level loss, everything about the objectives in the log."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from transformers import ProgressCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from modeling_moon2 import Moon2Model, Moon2Processor, Moon2ViewsOutput
from moon2_dataset import ProductQueries
from moon2_dataset.disk_errors import naming

from .cached_loss import KEYS, ChunkReader, cached_backward
from .collator import Moon2Collator
from .distillation import distillation_losses
from .evaluate import evaluate
from .gathering import num_processes
from .hub_folder import changed_arguments, complete_hub_folder, read_provenance, replace_model
from .losses import DualLevelLossOutput
from .memory_queue import MemoryQueue
from .mining import MinedBatchSampler, MinedNegatives, mine_negatives, mining_delay
from .muon import MuonAdamW
from .non_finite import StepGuard, withhold_step
from .objective_log import ObjectiveLog
from .provenance import run_record
from .sampler import EpochCallback, LeafBatchSampler
from .sharding import keep_float32
from .teacher_features import load_teacher_features
from .trained_parameters import freeze, has_own_rates, parameter_groups, set_temperatures
from .trainer_config import Moon2TrainingArguments
from .training_report import TrainingReportCallback
from .triplets import TripletDataset, TripletKey

MEMORY = "memory.safetensors"  # of a checkpoint: the queue of earlier items
MINED = "mined.safetensors"  # of a checkpoint: the hard negatives of each product, by the step of their search
LEARNING_RATE, LEARNING_RATE_FROM_SCRATCH = 1e-5, 1e-3  # where none is given
UNFINISHED = ".saving"  # folder of a model that is being saved


class CompactProgressCallback(ProgressCallback):
    """The progress bar, printing the overall numbers and leaving the per-objective ones to the log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        overall = {key: value for key, value in (logs or {}).items() if "/" not in key}
        super().on_log(args, state, control, logs=overall, **kwargs)


def _load_state(file: Path, argument: str) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise ValueError(f"{file} is not there: the run had none; resume with {argument}=0, or start anew")
    return load_file(file)


class _Keys(Dataset):
    """Stands for the triplets where only their keys travel."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: TripletKey) -> TripletKey:
        return key


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
        self.alignment_loss = args.alignment_loss(
            model.config.get_text_config().router_aux_loss_coef, gather=args.gather_negatives and num_processes() > 1
        )
        width = model.config.get_text_config().hidden_size
        if any(dim >= width for dim in args.matryoshka_dims):
            raise ValueError(f"matryoshka_dims={args.matryoshka_dims}; give dimensions under the embedding's {width}")
        self.memory = None
        if args.memory_size:
            self.memory = MemoryQueue(args.memory_size, width, args.memory_max_age).to(args.device)
        freeze(model, args.freeze)
        set_temperatures(model, (args.inter_temperature, args.intra_temperature))
        learn = (args.learn_inter_temperature, args.learn_intra_temperature)
        self.teachers = None
        if args.teacher_features and train_dataset is not None:
            self.teachers, incomplete = load_teacher_features(args.teacher_features, train_dataset)
            self.teachers.to(args.device)
            if args.process_index == 0:
                for message in incomplete:
                    print(message)
        self.learn_temperature = None if all(learn) else torch.tensor(learn, device=args.device)
        self.objective_log = ObjectiveLog()
        self.step_guard = StepGuard(skip=args.on_nan == "skip", at_once=args.device.type == "cpu")
        self.mined = None
        if args.mine_every_steps:
            workers = 0 if args.cached_chunk_size else args.dataloader_num_workers
            self.mined = MinedNegatives(
                mining_delay(workers, args.dataloader_prefetch_factor, args.gradient_accumulation_steps)
            )
        self._mined_at = -1  # step of the last search
        self.unreadable: set[str] = set()  # pictures that were left out
        self.emptied: set[str] = set()  # queries and products that were, for nothing else was in them
        if args.learning_rate is None:
            args.learning_rate = LEARNING_RATE if model.config._name_or_path else LEARNING_RATE_FROM_SCRATCH
        # made so, the defaults leave alone what a launcher has set up
        defaults = Moon2TrainingArguments(use_cpu=args.use_cpu, accelerator_config={"use_configured_state": True})
        self.provenance = read_provenance(model.config._name_or_path) | {
            "training": changed_arguments(args, defaults),
            "run": run_record(args),
        }
        self.provenance.pop("notes", None)  # they speak of the weights that training starts from
        if args.teacher_features:  # a card names no folders
            self.provenance["training"]["teacher_features"] = [Path(source).name for source in args.teacher_features]
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
                on_bad_image=args.on_bad_image,
                enriched_title_share=args.enriched_title_share,
                expanded_image_share=args.expanded_image_share,
                word_dropout=args.word_dropout,
                pixel_budget=processing_class.image_processor.size["longest_edge"],
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=Moon2Collator(processing_class, model.config.vision_config),
            train_dataset=triplets,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.is_fsdp_enabled:
            keep_float32(self.accelerator.state.fsdp_plugin)
        if args.on_nan == "skip" and self.is_deepspeed_enabled:
            raise ValueError(
                "on_nan=skip: DeepSpeed takes a step within its backward pass, where none can be left out; give raise"
            )
        threads = max(1, args.dataloader_num_workers)
        self.chunk_reader = (
            None if triplets is None else ChunkReader(triplets.__getitem__, self.data_collator, threads)
        )
        self.epoch_callback = EpochCallback()
        self.add_callback(self.epoch_callback)
        if find_spec("matplotlib") is not None:
            self.add_callback(TrainingReportCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(CompactProgressCallback)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Train as `Trainer` does; but where the checkpoint has all `max_steps` behind it, take not one step more."""
        is_split = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if isinstance(resume_from_checkpoint, str) and self.args.max_steps > 0 and not is_split:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            if state.global_step >= self.args.max_steps:
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = state
                return TrainOutput(state.global_step, 0.0, {})
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Batches grouped by leaf category, `args.leaf_share` of each."""
        data: ProductQueries = self.train_dataset.data
        sampler = LeafBatchSampler(
            data.leaf[data.positive_row],
            batch_size=self._train_batch_size,
            leaf_share=self.args.leaf_share,
            seed=self.train_dataset.seed,
        )
        if self.mined is not None:
            sampler = MinedBatchSampler(
                sampler, data.positive_row, self.mined, self.args.gradient_accumulation_steps, self.args.world_size
            )
        self.epoch_callback.batches = sampler
        if self.args.cached_chunk_size:  # batches of keys; chunks are read when their turn comes
            return self.accelerator.prepare(
                DataLoader(_Keys(len(self.train_dataset)), batch_sampler=sampler, collate_fn=list)
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
        self._note_left_out(inputs)
        keys = {name: inputs[name] for name in KEYS}
        outputs = model(**{name: value for name, value in inputs.items() if name not in KEYS}, return_views=True)
        result = self._score(outputs, keys)
        self._remember(result, outputs.temperatures)
        return (result.loss, outputs) if return_outputs else result.loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """One forward and backward; chunk by chunk if the loss is cached.

        Returns:
            The loss, and 0 where it is not finite, so that the logged mean is of the others.
        """
        self._mine(model)
        if self.args.cached_chunk_size:
            loss = self._cached_step(model, inputs)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        return torch.where(loss.isfinite(), loss, 0)

    def _cached_step(self, model, inputs: list[TripletKey]) -> torch.Tensor:
        model.train()
        size = self.args.cached_chunk_size
        chunks = [inputs[start : start + size] for start in range(0, len(inputs), size)]

        def read() -> Iterator[dict]:
            for chunk in self.chunk_reader(chunks):
                self._note_left_out(chunk)
                yield self._prepare_inputs(chunk)

        scale = 1 / self.current_gradient_accumulation_steps
        result, temperatures = cached_backward(
            model,
            read,
            [len(chunk) for chunk in chunks],
            self._score,
            backward=self.accelerator.backward,
            scale=scale,
            no_sync=lambda: self.accelerator.no_sync(model),
        )
        self._remember(result, temperatures)
        return result.loss * scale

    def _score(self, outputs: Moon2ViewsOutput, keys: dict[str, torch.Tensor]) -> DualLevelLossOutput:
        """The loss of a batch at the present step."""
        if self.learn_temperature is not None:
            temperatures = outputs.temperatures
            outputs.temperatures = torch.where(self.learn_temperature, temperatures, temperatures.detach())
        step = self.state.global_step
        remembers = self.memory is not None and step >= self.args.memory_warmup_steps
        result = self.alignment_loss(
            outputs,
            **keys,
            progress=step / max(self.state.max_steps, 1),
            memory=self.memory if remembers else None,
            step=step,
        )
        if self.teachers is not None:
            result.distillation = self._distil(outputs, keys)
            result.loss = result.loss + self.args.distillation_coef * sum(result.distillation.values())
        return result

    def _distil(self, outputs: Moon2ViewsOutput, keys: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """How far the affinities between the items [p, (n)] are from the teachers', by view.

        They are this process's items alone, also where negatives are gathered: a gradient is the mean over processes,
        and so is this part of it. The student may have seen a co-augmented item, the teacher saw the original.
        """
        items = slice(len(keys["positive_keys"]), None)
        students = {
            "text": (outputs.text_embeddings[items], outputs.has_text[items]),
            "image": (outputs.image_embeddings[items], outputs.has_image[items]),
        }
        return distillation_losses(
            students, self.teachers.look_up(keys["product_keys"]), self.args.distillation_temperature
        )

    def _remember(self, result: DualLevelLossOutput, temperatures: torch.Tensor) -> None:
        """Log a batch, look whether it is finite, and put its items into the memory."""
        self.objective_log.add(result, temperatures)
        self.step_guard.look(result)
        if self.memory is not None:
            items = result.items
            self.memory.push(*items[:-1], step=self.state.global_step)

    def _note_left_out(self, inputs: dict) -> None:
        """Take out of a batch's inputs what they say of data that could not be read."""
        self.unreadable.update(inputs.pop("unreadable", ()))
        self.emptied.update(inputs.pop("emptied", ()))

    def _mine(self, model) -> None:
        """Search for hard negatives, if it is time and has not been done at this step."""
        step, every = self.state.global_step, self.args.mine_every_steps
        if not every or step % every or step == self._mined_at:
            return
        self._mined_at = step
        found = mine_negatives(
            self.accelerator.unwrap_model(model),
            self.processing_class,
            self.train_dataset.data,
            self.args.mined_per_product,
            self.args.per_device_eval_batch_size,
            progress=not self.args.disable_tqdm,
            in_step=self.is_fsdp_enabled or self.is_deepspeed_enabled,
            lenient=self.args.on_bad_image == "skip",
        )
        self.mined.add(step, found)

    def create_optimizer(self, model=None):
        """The optimizer of `TrainingArguments`, or Muon and AdamW; with learning rates of their own for experts, gate
        and W*, ε.
        """
        if self.optimizer is not None or not (self.args.muon or has_own_rates(self.args)):
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        if self.args.muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("muon=True needs whole matrices, which FSDP and DeepSpeed split; drop one")
        model = self.model if model is None else model
        groups = parameter_groups(model, self.args, set(self.get_decay_parameter_names(model)))
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = (MuonAdamW if self.args.muon else optimizer_class)(groups, **options)
        return self.optimizer

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm of a step's gradient; a step that is not finite is kept from the weights."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = self.accelerator.scaler is not None  # and then leaves out itself what overflows at its scale
        found = self.step_guard.judge(None if scaled else grad_norm, self.state.global_step + 1)
        if not scaled and not self.is_deepspeed_enabled:
            withhold_step(self.optimizer, found)
        if self.step_guard.at_once:
            self.step_guard.check(self.model)
        return grad_norm

    def _save_checkpoint(self, model, trial) -> None:
        self.step_guard.check(self.model)
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with naming(folder):
            if self.args.should_save:  # first, so that a checkpoint that looks whole is whole
                folder.mkdir(parents=True, exist_ok=True)
                (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)  # of an earlier run
                if self.memory is not None:
                    save_file(self.memory.state_dict(), folder / MEMORY)
                if self.mined is not None:
                    save_file(self.mined.state_dict(), folder / MINED)
            super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.memory is not None:
            self.memory.load_state_dict(_load_state(Path(checkpoint) / MEMORY, "memory_size"))
        if self.mined is not None:
            self.mined.load_state_dict(_load_state(Path(checkpoint) / MINED, "mine_every_steps"))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the model beside what is there, and put it in its place when it is whole."""
        folder = Path(output_dir or self.args.output_dir)
        unfinished = folder / UNFINISHED
        if not self.args.should_save:  # a process that only gives its part of the weights
            return super()._save(str(unfinished), state_dict)
        with naming(folder):
            shutil.rmtree(unfinished, ignore_errors=True)
            super()._save(str(unfinished), state_dict)
            complete_hub_folder(unfinished, self.provenance)
            replace_model(unfinished, folder)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Weight decay leaves W* and the temperatures alone: their zero means something."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if "dual_alignment" not in name and "temperature" not in name]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objectives' diagnostics to a training log line, and the steps that were left out."""
        finite = 1.0
        if "loss" in logs:
            diagnostics, finite = self.objective_log.flush()
            logs |= diagnostics
            if self.alignment_loss.sample_filter is not None:
                progress = self.state.global_step / max(self.state.max_steps, 1)
                logs["filter/margin"] = self.alignment_loss.sample_filter.margin.at(progress)
        if "loss" in logs or "train_loss" in logs:
            self.step_guard.tell(self.model, logs, finite)
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: ProductQueries | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score `eval_dataset`; returns flat metrics such as `eval_t2mm_recall@10` and `eval_mean_recall@10`."""
        self.step_guard.check(self.model)
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
