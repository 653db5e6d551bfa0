from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moon2_training import mining
from moon2_training.collator import Moon2Collator
from moon2_training.encode import Encoder
from moon2_training.items import ProductItems
from moon2_training.mining import (
    MinedBatchSampler,
    MinedNegatives,
    mine_negatives,
    mining_delay,
    nearest_others,
)
from moon2_training.sampler import LeafBatchSampler
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.triplets import TripletDataset, TripletKey


def random_products(count, titles, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(count, 6, generator=generator), dim=-1)
    return embeddings, torch.randint(titles, (count,), generator=generator)


@pytest.mark.parametrize("tile", [(4, 3), (3, 20), (20, 4), (11, 11)])
@pytest.mark.parametrize("rows", [None, range(0, 5), range(3, 11), range(11, 11)])
def test_the_nearest_of_other_titles_as_a_slow_search_finds_them(monkeypatch, tile, rows):
    monkeypatch.setattr(mining, "ROWS", tile[0])
    monkeypatch.setattr(mining, "COLUMNS", tile[1])
    embeddings, _ = random_products(11, 7)
    titles = torch.tensor([0, 1, 2, 0, 3, 4, 4, 4, 5, 6, 0])
    found = nearest_others(embeddings, titles, 9, rows)
    asked = range(11) if rows is None else rows
    assert found.shape == (len(asked), 9)
    for row, of_row in zip(asked, found.tolist(), strict=True):
        others = [other for other in range(11) if titles[other] != titles[row]]
        others.sort(key=lambda other: -float(embeddings[row] @ embeddings[other]))
        assert of_row == (others + [-1] * 9)[:9]


def test_a_search_makes_no_more_than_a_tile_of_similarities(monkeypatch):
    monkeypatch.setattr(mining, "ROWS", 16)
    monkeypatch.setattr(mining, "COLUMNS", 32)

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.is_floating_point():
                self.numbers = max(self.numbers, made.numel())
            return made

    embeddings, titles = random_products(300, 200)
    whole = (embeddings @ embeddings.T).masked_fill(titles[:, None] == titles, -torch.inf)
    with Largest() as largest:
        found = nearest_others(embeddings, titles, 5)
    assert torch.equal(found, whole.topk(5).indices)
    assert largest.numbers <= embeddings.numel()
    halves = nearest_others(embeddings.half(), titles, 5)
    assert (halves == found).float().mean() > 0.95  # neighbours change places, no others come


def test_mined_negatives_are_the_models_nearest_and_are_drawn(tiny, shop):
    model, processor = tiny
    found = mine_negatives(model, processor, shop, 3, progress=False)
    embeddings = Encoder(model, processor).encode(ProductItems(shop.products), progress=False)
    similarities = embeddings @ embeddings.T
    similarities[shop.title_key[:, None] == shop.title_key] = -np.inf
    assert (found[:, 0].numpy() == similarities.argmax(1)).all()

    dataset = TripletDataset(shop, negatives="explicit")
    random = [dataset[index].negative.product_key for index in range(len(shop))]
    mined = [TripletKey(index, mined=tuple(found[shop.positive_row[index]].tolist())) for index in range(len(shop))]
    for index in range(len(shop)):
        row = int(shop.positive_row[index])
        key = dataset[mined[index]].negative.product_key
        if shop.queries[index]["negative_ids"]:  # it lists its own
            assert key in {shop.product_key[shop.product_index[name]] for name in ("p9", "p10")}
        else:
            assert key in shop.product_key[found[row].numpy()]
    assert random != [dataset[key].negative.product_key for key in mined]


def test_a_picture_that_cannot_be_read_is_an_error_or_left_out(tiny, shop):
    def with_pictures(images):
        change = {"p4": {"images": images}, "p5": {"images": images}}
        return replace(shop, products=shop.products.map(lambda row: change.get(row["product_id"], {})))

    without, broken = with_pictures([]), with_pictures([{"bytes": b"no image", "path": None}])
    with pytest.raises(ValueError, match="product p[45], image 0: unreadable image"):
        mine_negatives(*tiny, broken, 3, progress=False)
    found = mine_negatives(*tiny, broken, 3, batch_size=6, progress=False, lenient=True)
    assert torch.equal(found, mine_negatives(*tiny, without, 3, batch_size=6, progress=False))  # p4 has nothing else


def test_the_trainer_mines_every_few_steps_with_the_model_of_that_step(tiny, shop, tmp_path, monkeypatch):
    model, seen = copy.deepcopy(tiny[0]), []

    def watched(encoder, *args, **kwargs):
        found = mine_negatives(encoder, *args, **kwargs)
        seen.append((encoder.training, found.clone(), encoder.temperature.weight.detach().clone()))
        return found

    monkeypatch.setattr("moon2_training.trainer.mine_negatives", watched)
    arguments = Moon2TrainingArguments(tmp_path, per_device_train_batch_size=6, max_steps=5, negatives="explicit",
                                       gradient_accumulation_steps=2, mine_every_steps=2, mined_per_product=4,
                                       learning_rate=1e-2, save_strategy="no", use_cpu=True, disable_tqdm=True,
                                       report_to="none", logging_steps=1)  # fmt: skip
    trainer = Moon2Trainer(model, arguments, train_dataset=shop, processing_class=tiny[1])
    trainer.train()
    assert len(seen) == 3  # at steps 0, 2 and 4, once each
    assert trainer.mined.searches.keys() == {2, 4}  # that of step 0 serves no batch any more
    assert all(torch.equal(trainer.mined.searches[step], seen[step // 2][1]) for step in (2, 4))
    assert not torch.equal(seen[0][2], seen[-1][2]) and not torch.equal(seen[0][1], seen[-1][1])


def test_a_search_serves_what_cannot_have_been_drawn_before_it_until_the_next_does():
    mined = MinedNegatives(delay=3)
    assert mined.at(100) is None
    tables = {step: torch.full((2, 1), step) for step in (0, 2, 4, 20)}
    for step in (0, 2, 4):
        mined.add(step, tables[step])
    assert mined.at(4) is None
    assert mined.at(5) is mined.at(6) is tables[2] and mined.at(7) is mined.at(99) is tables[4]
    again = MinedNegatives(delay=3)
    again.load_state_dict(mined.state_dict())
    for one in (mined, again):
        one.add(20, tables[20])
        assert one.at(22) is tables[4] and one.at(23) is tables[20] and one.searches.keys() == {4, 20}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batches_per_step", [1, 3])
def test_keys_have_the_negatives_of_the_step_that_uses_them(batches_per_step, processes):
    positive_row = np.arange(40)[::-1].copy()
    leaves, mined = np.zeros(40, dtype=int), MinedNegatives(delay=2)
    sampler = MinedBatchSampler(
        LeafBatchSampler(leaves, batch_size=3), positive_row, mined, batches_per_step, processes
    )
    for step in (0, 4, 5):
        mined.searches[step] = torch.stack([torch.arange(40) + 100 * step, torch.full((40,), -1)], dim=1)
    steps_of_epoch = -(-(len(sampler) // processes) // batches_per_step)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        plain = LeafBatchSampler(leaves, batch_size=3)
        plain.set_epoch(epoch)
        batches = list(sampler)
        assert [[key.index for key in batch] for batch in batches] == [[k.index for k in batch] for batch in plain]
        for number, batch in enumerate(batches):
            step = epoch * steps_of_epoch + number // (processes * batches_per_step)
            serving = max((made for made in (0, 4, 5) if made + 2 <= step), default=None)
            for key in batch:
                assert key.mined == (() if serving is None else (positive_row[key.index] + 100 * serving,))
                assert key.epoch == epoch


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_step_sees_does_not_depend_on_how_far_workers_are_ahead(
    tiny, shop, tmp_path, monkeypatch, workers, accumulation
):
    """The search of step s serves step s + delay and no earlier one, although batches are drawn well before."""

    def marked(*args, **kwargs):  # every product's hardest negative tells the step of the search
        step = trainer.state.global_step
        return torch.full((len(shop.products), 1), step % len(shop.products))

    class Marks(Moon2Collator):
        def __call__(self, keys):
            return {"mined": [key.mined for key in keys]}

    monkeypatch.setattr("moon2_training.trainer.mine_negatives", marked)
    arguments = Moon2TrainingArguments(tmp_path, per_device_train_batch_size=3, max_steps=14, negatives="explicit",
                                       gradient_accumulation_steps=accumulation, mine_every_steps=1,
                                       dataloader_num_workers=workers, save_strategy="no", use_cpu=True,
                                       disable_tqdm=True, report_to="none")  # fmt: skip
    trainer = Moon2Trainer(copy.deepcopy(tiny[0]), arguments, train_dataset=shop, processing_class=tiny[1])
    monkeypatch.setattr(TripletDataset, "__getitem__", lambda self, key: key)
    trainer.data_collator = Marks(tiny[1])
    batches, epoch = None, 0
    delay = mining_delay(workers, None, accumulation)
    for step in range(14):
        trainer.state.global_step = step
        drawn = []
        while len(drawn) < accumulation:
            batch = None if batches is None else next(batches, None)
            if batch is None:
                loader = trainer.get_train_dataloader()
                loader.batch_sampler.set_epoch(epoch)
                loader.iteration, batches, epoch = epoch, iter(loader), epoch + 1
                continue
            drawn.append(batch)
        trainer._mine(trainer.model)
        expected = () if step < delay else (step - delay,)
        assert all(mined == expected for batch in drawn for mined in batch["mined"]), step


TWO_PROCESSES = """
import sys
from dataclasses import replace
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoProcessor
from modeling_moon2 import Moon2Model
from moon2_dataset import load_product_queries
from moon2_training import mining
from moon2_training.encode import Encoder
from moon2_training.items import ProductItems
from moon2_training.mining import mine_negatives, nearest_others

folder, products, queries = sys.argv[1:]
dist.init_process_group("gloo")
data = load_product_queries(products, queries)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
plain = Moon2Model.from_pretrained(folder).train()
sharded = Moon2Model.from_pretrained(folder).train()
for layer in (*sharded.language_model.layers, *sharded.visual.blocks):
    fully_shard(layer)
fully_shard(sharded)
inputs = processor(text=["red mug", "navy blue shoes"], return_tensors="pt")

def train(model):
    model(**inputs, return_views=True).text_embeddings[:, 0].sum().backward()
    gradient = model.language_model.layers[0].self_attn.q_proj.weight.grad
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient

def vectors(model, products):
    return torch.from_numpy(Encoder(model, processor).encode(ProductItems(products), progress=False))

expected = nearest_others(vectors(plain, data.products), torch.from_numpy(data.title_key), 3)
assert torch.equal(mine_negatives(plain, processor, data, 3, progress=False), expected)
assert torch.equal(mine_negatives(sharded, processor, data, 3, progress=False, in_step=True), expected)
torch.testing.assert_close(train(sharded), train(plain), atol=1e-6, rtol=1e-4)
assert torch.equal(mine_negatives(sharded, processor, data, 3, progress=False, in_step=True), expected)

encoded, encode = [], mining._encode
mining._encode = lambda encoder, products, *rest: encoded.append(len(products)) or encode(encoder, products, *rest)
odd = data.products.select(range(13))
few = replace(data, products=odd, title_key=data.title_key[:13])
expected = nearest_others(vectors(plain, odd), torch.from_numpy(few.title_key), 20)
encoded.clear()
assert torch.equal(mine_negatives(plain, processor, few, 20, progress=False), expected)
assert encoded == [7 - dist.get_rank()], encoded
if dist.get_rank() == 0:
    print("the same")
dist.destroy_process_group()
"""


def test_two_processes_share_a_search_and_a_sharded_model_trains_on_after_it(tiny, shop, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    shop.products.to_parquet(tmp_path / "products.parquet")
    shop.queries.to_parquet(tmp_path / "queries.parquet")
    (tmp_path / "process.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               tmp_path / "process.py", tmp_path / "model", tmp_path / "products.parquet",
               tmp_path / "queries.parquet"]  # fmt: skip
    result = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and "the same" in result.stdout, result.stderr[-3000:]
