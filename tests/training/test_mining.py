from __future__ import annotations

import copy

import numpy as np
import torch

from moon2_training import mining
from moon2_training.encode import Encoder, ProductItems
from moon2_training.mining import mine_negatives, nearest_others
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.triplets import TripletDataset


def test_the_nearest_of_other_titles_as_a_slow_search_finds_them(monkeypatch):
    monkeypatch.setattr(mining, "CHUNK", 4)
    embeddings = torch.nn.functional.normalize(torch.randn(11, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    titles = torch.tensor([0, 1, 2, 0, 3, 4, 4, 4, 5, 6, 0])
    found = nearest_others(embeddings, titles, 9)
    for row in range(11):
        others = [other for other in range(11) if titles[other] != titles[row]]
        others.sort(key=lambda other: -float(embeddings[row] @ embeddings[other]))
        assert found[row].tolist() == (others + [-1] * 9)[:9]


def test_mined_negatives_are_the_models_nearest_and_are_drawn(tiny, shop):
    model, processor = tiny
    found = mine_negatives(model, processor, shop, 3, progress=False)
    embeddings = Encoder(model, processor).encode(ProductItems(shop.products), progress=False)
    similarities = embeddings @ embeddings.T
    similarities[shop.title_key[:, None] == shop.title_key] = -np.inf
    assert (found[:, 0].numpy() == similarities.argmax(1)).all()

    dataset = TripletDataset(shop, negatives="explicit", mined_per_product=3)
    random = [dataset[index].negative.product_key for index in range(len(shop))]
    dataset.mined.copy_(found)
    for index in range(len(shop)):
        row = int(shop.positive_row[index])
        key = dataset[index].negative.product_key
        if shop.queries[index]["negative_ids"]:  # it lists its own
            assert key in {shop.product_key[shop.product_index[name]] for name in ("p9", "p10")}
        else:
            assert key in shop.product_key[found[row].numpy()]
    assert random != [dataset[index].negative.product_key for index in range(len(shop))]


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
    assert torch.equal(trainer.train_dataset.mined, seen[-1][1])
    assert not torch.equal(seen[0][2], seen[-1][2]) and not torch.equal(seen[0][1], seen[-1][1])
