"""What each of two processes reads, uninterrupted and resumed within the second epoch; run by torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch.distributed as dist
from trainer_arguments import arguments

from modeling_moon2 import Moon2Model, Moon2Processor
from moon2_dataset import load_product_queries
from moon2_training.trainer import Moon2Trainer
from moon2_training.triplets import TripletDataset

MINED = {"negatives": "explicit", "mine_every_steps": 1, "mined_per_product": 4}
STEPS, SAVED = 6, 3  # of two steps an epoch; a loader reads one batch ahead, but none over the end of an epoch


def rows_read(folder: Path, options: dict, resume: Path | None = None) -> list:
    """The keys of a training, in order."""
    seen = []
    read = TripletDataset.__getitem__
    TripletDataset.__getitem__ = lambda self, key: seen.append(key) or read(self, key)
    trainer = Moon2Trainer(
        Moon2Model.from_pretrained(shop / "model"),
        arguments(folder, max_steps=STEPS, save_strategy="steps", save_steps=SAVED, **options),
        train_dataset=load_product_queries(shop / "products.parquet", shop / "queries.parquet"),
        processing_class=Moon2Processor.from_pretrained(shop / "model"),
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    TripletDataset.__getitem__ = read
    return seen


shop = Path(sys.argv[1])
for name, options in (("plain", {}), ("mined", MINED)):
    whole = rows_read(shop / name, options)
    resumed = rows_read(shop / f"{name}-resumed", options, shop / name / f"checkpoint-{SAVED}")
    of_resumed = 6 * (STEPS - SAVED)
    assert [key.epoch for key in whole[-of_resumed:]] == [1] * 6 + [2] * 12
    assert resumed[-of_resumed:] == whole[-of_resumed:], (name, resumed[-of_resumed:], whole[-of_resumed:])
    assert any(key.mined for key in whole) == (name == "mined")
print("the same rows", flush=True)
dist.destroy_process_group()
os._exit(0)  # gloo's threads, ended by the interpreter, now and then abort the process
