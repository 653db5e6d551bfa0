"""What the table of peers and ablations is made with; the trainings themselves are run by hand."""

from __future__ import annotations

import json

import numpy as np
import peers
import pytest
import quality
import torch
from datasets import Dataset, Features

from moon2_dataset import PRODUCT_FEATURES, QUERY_FEATURES, join
from moon2_training.evaluate import evaluate_encoder
from moon2_training.peer_encoders import load_any_encoder
from moon2_training.trainer_config import Moon2TrainingArguments


@pytest.fixture
def complete_shop(make_image):
    """Twelve products and queries that all have text and picture."""
    import io

    def jpeg(seed):
        buffer = io.BytesIO()
        make_image(seed).save(buffer, "JPEG")
        return {"bytes": buffer.getvalue(), "path": None}

    titles = [f"{colour} {noun} {brand}" for colour in ("red", "blue") for noun in ("mug", "shoes", "bag")
              for brand in ("lumo", "nordvik")]  # fmt: skip
    products = Dataset.from_dict(
        {"product_id": [f"p{i}" for i in range(12)], "title": titles, "images": [[jpeg(i)] for i in range(12)]},
        features=Features({name: PRODUCT_FEATURES[name] for name in ("product_id", "title", "images")}),
    )
    queries = Dataset.from_dict(
        {
            "query_id": [f"q{i}" for i in range(12)],
            "text": [" ".join(reversed(title.split())) for title in titles],
            "image": [None] * 12,
            "product_id": [f"p{i}" for i in range(12)],
        },
        features=Features(QUERY_FEATURES),
    )
    return join(products, queries)


def test_bm25_finds_other_forms_of_a_word(complete_shop):
    encoder = peers.Bm25Encoder(complete_shop.products)
    plural, singular = encoder.encode([{"text": "red mugs lumo"}, {"text": "red mug lumo"}])
    assert plural.sum() == 3 and (plural == singular).all()


def test_bm25_ranks_by_words_and_sees_no_picture(complete_shop):
    encoder = peers.Bm25Encoder(complete_shop.products)
    results = evaluate_encoder(encoder, complete_shop.products, complete_shop.queries, progress=False)
    retrieval = results["retrieval"]
    assert retrieval["t2mm"]["recall@1"]["value"] == 1  # all words of a title, in another order
    assert "skipped" in retrieval["i2mm"] and "skipped" in retrieval["t2i"]
    assert results["mean_recall@10"] is None


def test_a_dual_encoder_trains_in_sentence_transformers_and_loads_again(complete_shop, tmp_path):
    schedule = {"output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    schedule |= {
        "seed": 0,
        "weight_decay": 0.1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    model, state = peers.train_clip(complete_shop, schedule, 32, 400, tmp_path, muon=True)
    assert state.global_step == 2
    assert model[0].auto_model.logit_scale.item() != pytest.approx(2.6592, abs=1e-4)  # CLIP's own temperature learns
    encoder = load_any_encoder(tmp_path)
    results = evaluate_encoder(encoder, complete_shop.products, complete_shop.queries, progress=False, per_query=True)
    assert set(results["per_query"]) == {"t2mm", "t2i"}  # the queries have no photo
    assert np.isfinite(results["retrieval"]["t2mm"]["mrr"]["value"])


def test_a_fixed_mix_trains_only_what_it_drew(complete_shop, tiny, tmp_path):
    import copy

    losses = {}
    for name, mix in {"text": (1, 0, 0), "image": (0, 1, 0), "both": (0, 0, 1)}.items():
        model = copy.deepcopy(tiny[0])
        arguments = Moon2TrainingArguments(str(tmp_path), per_device_train_batch_size=4, max_steps=1, use_cpu=True,
                                           report_to="none", save_strategy="no", disable_tqdm=True)  # fmt: skip
        trainer = peers.FixedMixTrainer(model, arguments, complete_shop, processing_class=tiny[1], mix=mix)
        batch = next(iter(trainer.get_train_dataloader()))
        loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
        both = outputs.multimodal_embeddings
        view = {"text": outputs.text_embeddings, "image": outputs.image_embeddings, "both": both}
        logits = view[name][:4] @ both[4:].T / outputs.temperatures[0]
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.arange(4)))
        losses[name] = loss.item()
    assert len(set(losses.values())) == 3


def test_the_active_parameters_of_the_main_rows_are_within_a_tenth(tmp_path, complete_shop):
    from moon2_training.mini import MiniConfig, build_mini

    counts = [peers.active_parameters(build_mini(MiniConfig(num_experts=z), ["red mug"] * 9)[0]) for z in (4, 0)]
    counts.append(peers.active_parameters(peers.build_clip(complete_shop, 64, 400, tmp_path)))
    assert max(counts) < 1.1 * counts[0] and min(counts) > 0.9 * counts[0]


def scores(hits: float, queries: int = 40) -> dict:
    """Of a run that finds that share of every direction."""
    found = [1.0] * round(hits * queries) + [0.0] * round((1 - hits) * queries)
    return {
        "recall@10": dict.fromkeys(quality.DIRECTIONS, hits),
        "hits": dict.fromkeys(quality.DIRECTIONS, quality.pack(found)),
        "accuracy": {"leaf": {"image_title": 0.7, "image": 0.5}},
    }


def test_the_rate_is_chosen_on_validation_and_the_seeds_follow(tmp_path):
    results = quality.Results(tmp_path / "quality.json", full=False)
    rows = list(quality.ROWS)
    first = quality.runs_left(results, rows)
    assert (
        len(first) == 4 * len(quality.RATES)
        and {run.seed for run in first} == {0}
        and all(quality.ROWS[r.row].main for r in first)
    )
    for run in first:
        scored = scores(0.9 if run.rate == 2e-3 else 0.5)
        results.add(run.key, "validation", scored, results.recipes[run.row])
    left = quality.runs_left(quality.Results(tmp_path / "quality.json", full=False), rows)
    assert {run.rate for run in left} == {2e-3}
    assert sum(run.row == quality.OURS for run in left) == 2  # seed 0 is done
    assert sum(run.row == "without MoE" for run in left) == 2


def test_the_table_claims_no_sign_inside_the_interval(tmp_path):
    results = quality.Results(tmp_path / "quality.json", full=False)
    for row, share in {quality.OURS: 0.9, "CLIP dual encoder": 0.4, "dense, InfoNCE, 12:3:2": 0.9}.items():
        for rate in quality.RATES:
            results.add(quality.Run(row, rate, 0).key, "validation", scores(share), results.recipes[row])
    table = quality.tables(results, "validation")
    assert "| MOON2.0 | 90.0 |" in table and "| CLIP dual encoder | **+50.0**" in table
    assert "| dense, InfoNCE, 12:3:2 | +0.0 (+0.0 to +0.0)" in table
    assert "70 / 50" in table


def test_a_run_of_another_recipe_does_not_count(tmp_path):
    path = tmp_path / "quality.json"
    results = quality.Results(path, full=False)
    ours, peer = quality.Run(quality.OURS, 1e-3, 0), quality.Run("CLIP dual encoder", 1e-3, 0)
    for run in (ours, peer):
        results.add(run.key, "validation", scores(0.5), results.recipes[run.row])
    assert quality.Results(path, full=False).get(ours.key, "validation")["recall@10"]["t2mm"] == 0.5
    again = quality.Results(path, full=False)
    again.recipes[quality.OURS] = again.recipes[quality.OURS] | {"objective_floor": 0.1}
    assert again.get(ours.key, "validation") is None and again.get(peer.key, "validation")
    again.add(ours.key, "test", scores(0.7), again.recipes[quality.OURS])
    assert again.get(ours.key, "validation") is None and again.get(ours.key, "test")
    assert "objective_floor" not in again.recipes[peer.row] and "learning_rate" not in again.recipes[peer.row]


def test_hits_are_kept_whole(tmp_path):
    hits = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert quality.unpack(quality.pack(hits)).tolist() == hits


def test_a_section_is_replaced_and_the_rest_is_kept(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(ValueError, match="add them where the table is to stand"):
        page.write_text("nothing\n")
        quality.write_section(page, "quality test", "table")
    page.write_text("above\n<!-- quality test: begin, made by tests/benchmarks/quality.py -->\nold\n"
                    "<!-- quality test: end -->\nbelow\n")  # fmt: skip
    quality.write_section(page, "quality test", "| new |")
    assert "old" not in page.read_text() and page.read_text().startswith("above\n") and "| new |" in page.read_text()
    assert page.read_text().endswith("below\n")


def test_the_short_table_has_the_means_below_those_of_the_bundled_model_on_its_split(tmp_path):
    results = quality.Results(tmp_path / "quality.json", full=False)
    best = quality.Run(quality.OURS, quality.RATES[0], 0)
    for rate in quality.RATES:
        run = best._replace(rate=rate)
        results.add(run.key, "validation", scores(0.9 if run == best else 0.5), results.recipes[quality.OURS])
    results.add(best.key, "test", scores(0.4), results.recipes[quality.OURS])
    told = json.loads((quality.BUNDLED / "results.json").read_text())
    assert told["products"] == "products-test"
    mini = [f"{100 * told['retrieval'][key]['recall@10']['value']:.1f}" for key in quality.DIRECTIONS]
    table = quality.short_table(results, "test")
    assert f"| moon2-mini | {' | '.join(mini)} | " in table
    assert f"| MOON2.0 | {' | '.join(['40.0'] * 6)} |" in table and "BM25" not in table
    assert "moon2-mini" not in quality.short_table(results, "validation")
