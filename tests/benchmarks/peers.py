"""The models that MOON2.0 is judged beside: a CLIP dual encoder, a fixed query mix over a dense backbone, and BM25."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import processors
from torch import nn

from modeling_moon2 import Moon2Model
from moon2_dataset import ProductQueries
from moon2_training.contrastive import inter_product_loss, negative_mask
from moon2_training.encode import Views
from moon2_training.items import ProductItems
from moon2_training.losses import split_roles
from moon2_training.mini import train_tokenizer
from moon2_training.muon import MuonAdamW, hidden_matrices
from moon2_training.train import product_texts
from moon2_training.trainer import Moon2Trainer
from moon2_training.triplets import TripletDataset

MIXES = {"12:3:2": (12, 3, 2), "uniform mix": (1, 1, 1)}  # queries of text alone, of image alone, of both
CLIP_SHAPE = {  # active parameters within 10 % of the mini recipe's
    "text_config": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    "vision_config": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
    "projection_dim": 256,
}


class FixedMixTrainer(Moon2Trainer):
    """MOON's way of training: plain InfoNCE between products, every query in one modality drawn at a fixed rate.

    Args:
        mix: weights of queries of text alone, of image alone and of both.
        args, kwargs: as for `Moon2Trainer`.
    """

    def __init__(self, *args, mix: tuple[float, float, float], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mix = torch.tensor(mix, dtype=torch.float32)
        self.generator = torch.Generator().manual_seed(self.args.seed)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """L^ϑ_inter of each query in the one modality ϑ that was drawn for it."""
        product_keys, title_keys = inputs.pop("product_keys"), inputs.pop("title_keys")
        positive_keys, _ = inputs.pop("positive_keys"), inputs.pop("made_photos")
        outputs = model(**inputs, return_views=True)
        size = len(positive_keys)
        query, positive, _ = split_roles(outputs, size)
        drawn = torch.multinomial(self.mix, size, replacement=True, generator=self.generator)
        views = torch.stack([query.text, query.image, query.multimodal])  # (3, B, D)
        seen = views[drawn.to(views.device), torch.arange(size, device=views.device)]  # (B, D)
        negatives = negative_mask(product_keys, title_keys, positive_keys, title_keys)
        loss = inter_product_loss(seen, positive.multimodal, negatives, outputs.temperatures[0]).mean()
        return (loss, outputs) if return_outputs else loss


class LateFusionLoss(nn.Module):
    """InfoNCE of sentence-transformers over a dual encoder's four inputs: query text, query photo, title, picture.

    What has text and picture is their normalised sum, as the judge fuses it. The query's text, photo and both look
    for the item, and its picture for its title; the temperature is CLIP's own, learnt.

    Args:
        model: a SentenceTransformer around a CLIP model.
    """

    def __init__(self, model) -> None:
        super().__init__()
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        self.model = model
        self.info_nce = MultipleNegativesRankingLoss(
            model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )

    def forward(self, sentence_features, labels: torch.Tensor | None) -> torch.Tensor:
        """Sum of the four losses."""
        encoded = [F.normalize(self.model(dict(f))["sentence_embedding"].float(), dim=-1) for f in sentence_features]
        text, photo, title, picture = encoded
        both, item = F.normalize(text + photo, dim=-1), F.normalize(title + picture, dim=-1)
        self.info_nce.scale = self.model[0].auto_model.logit_scale.exp().clamp(max=100)
        pairs = ((text, item), (photo, item), (both, item), (picture, title))
        return sum(self.info_nce.compute_loss_from_embeddings(list(pair), labels) for pair in pairs)


def build_clip(data: ProductQueries, image_size: int, vocab_size: int, folder: Path):
    """A random CLIP model in sentence-transformers, with a tokenizer trained on `data`; its parts go to `folder`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    tokenizer = train_tokenizer(product_texts(data), vocab_size)
    tokenizer.add_special_tokens({"bos_token": "<|start|>", "eos_token": "<|end|>"})
    tokenizer.model_max_length = 64
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>",
        special_tokens=[("<|start|>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)],
    )
    size = {"height": image_size, "width": image_size}
    half = [0.5, 0.5, 0.5]
    pictures = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=half, image_std=half)
    text = CLIP_SHAPE["text_config"] | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIP_SHAPE["vision_config"] | {"image_size": image_size, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP_SHAPE["projection_dim"])
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder))], device="cpu")


def train_clip(
    data: ProductQueries, schedule: dict, image_size: int, vocab_size: int, output: Path, muon: bool = False
):
    """Train a CLIP dual encoder with sentence-transformers on the triplets that MOON2.0 sees; one epoch of them.

    Args:
        data: catalogue and queries.
        schedule: of transformers' TrainingArguments.
        image_size, vocab_size: as of the MOON2.0 model.
        output: folder for the model.
        muon: update matrices by Muon, as in MOON2.0's recipe.

    Returns:
        The model and the state of its trainer.
    """
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = build_clip(data, image_size, vocab_size, output / "random")
    triplets = TripletDataset(data, seed=schedule["seed"], enriched_title_share=0.0, expanded_image_share=0.0)

    def read(batch: dict[str, list]) -> dict[str, list]:
        read_now = [triplets[row] for row in batch["row"]]
        return {
            "text": [t.query.text for t in read_now],
            "photo": [t.query.images[0] for t in read_now],
            "title": [t.positive.text for t in read_now],
            "picture": [t.positive.images[0] for t in read_now],
        }

    rows = Dataset.from_dict({"row": np.arange(len(triplets))}).with_transform(read)
    arguments = SentenceTransformerTrainingArguments(dataloader_drop_last=True, **schedule)
    optimizers = (_muon(model, schedule) if muon else None, None)
    trainer = SentenceTransformerTrainer(model, arguments, rows, loss=LateFusionLoss(model), optimizers=optimizers)
    trainer.train()
    model.save(str(output))
    return model, trainer.state


def _muon(model: nn.Module, schedule: dict) -> MuonAdamW:
    """The optimizer that `Moon2Trainer` makes, for another model."""
    matrices = hidden_matrices(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name in matrices, parameter.ndim > 1), []).append(parameter)
    return MuonAdamW(
        [
            {"params": parameters, "muon": is_matrix, "weight_decay": schedule["weight_decay"] if decays else 0.0}
            for (is_matrix, decays), parameters in groups.items()
        ],
        lr=schedule["learning_rate"],
    )


def active_parameters(model: nn.Module) -> int:
    """Parameters that one item visits, token and position tables aside; of experts k of Z."""
    tables = (nn.Embedding,)
    total = sum(p.numel() for p in model.parameters())
    total -= sum(p.numel() for m in model.modules() if isinstance(m, tables) for p in m.parameters())
    if isinstance(model, Moon2Model) and (config := model.config.get_text_config()).num_experts:
        experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
        total -= round(experts * (1 - config.num_experts_per_tok / (config.num_experts + config.num_guided_experts)))
    return total


class Bm25Encoder:
    """BM25 over titles as an encoder: products are the scores of every word, queries and labels count their words.

    Words are stemmed: without it "shirts" finds no "shirt", and Recall@10 is eight points less.

    Args:
        products: the catalogue that is searched.
    """

    def __init__(self, products: Dataset) -> None:
        import bm25s
        import Stemmer

        self.stemmer = Stemmer.Stemmer("english")
        titles = [self._words(title) for title in products["title"]]
        self.place = {word: place for place, word in enumerate(sorted({word for title in titles for word in title}))}
        self.retriever = bm25s.BM25()
        self.retriever.index(titles, show_progress=False)

    def encode(self, items, view: str = "text", progress: bool = True) -> np.ndarray:
        """Counts (N, words) of the words of texts."""
        counts = np.zeros((len(items), len(self.place)), dtype=np.float32)
        for row, item in enumerate(items):
            for word in self._words(item["text"]):
                if word in self.place:
                    counts[row, self.place[word]] += 1
        return counts

    def encode_views(self, items, progress: bool = True) -> Views:
        """Text is all that it sees, of queries and of products."""
        if isinstance(items, ProductItems):
            scores = np.stack([self.retriever.get_scores([word]) for word in self.place], axis=1).astype(np.float32)
        else:
            scores = self.encode(items)
        has_text = np.array([bool(item["text"]) for item in items])
        return Views(scores, np.zeros_like(scores), scores, has_text, np.zeros(len(items), dtype=bool))

    def _words(self, text: str | None) -> list[str]:
        return self.stemmer.stemWords(re.findall(r"\w+", (text or "").lower()))
