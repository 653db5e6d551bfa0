"""Arguments of a short, silent training on the CPU."""

from __future__ import annotations

from moon2_training.trainer_config import Moon2TrainingArguments


def arguments(folder, **changes) -> Moon2TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Moon2TrainingArguments(**defaults | changes)
