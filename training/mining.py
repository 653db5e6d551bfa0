"""Hard negatives, mined with the model as it stands: the products most like each product, of another title."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from moon2_dataset import ProductQueries

from .encode import BATCHES_PER_WINDOW, Encoder
from .gathering import gather_rows, num_processes, process_rank
from .items import ProductItems
from .non_finite import check_vectors
from .sampler import LeafBatchSampler
from .triplets import TripletKey

ROWS, COLUMNS = 1024, 16384  # products compared with each other at a time
NONE = -1


@torch.no_grad()
def nearest_others(embeddings: Tensor, title_keys: Tensor, count: int, rows: range | None = None) -> Tensor:
    """The products nearest to each product, those of its own title left out.

    Args:
        embeddings: (N, D) normalised.
        title_keys: (N,) int64; the same product has the same title.
        count: how many.
        rows: n of the products, to search for these alone.

    Returns:
        (n, count) int64 rows, nearest first; -1 where there are no more.
    """
    rows = range(len(embeddings)) if rows is None else rows
    nearest = torch.full((len(rows), count), NONE, device=embeddings.device)
    for start in range(0, len(rows), ROWS):
        asking = slice(rows.start + start, min(rows.start + start + ROWS, rows.stop))
        best = nearest[start : start + ROWS]  # (ROWS, count)
        values = embeddings.new_full(best.shape, -torch.inf)
        for left in range(0, len(embeddings), COLUMNS):
            answering = slice(left, left + COLUMNS)
            similarities = embeddings[asking] @ embeddings[answering].T  # (ROWS, COLUMNS)
            similarities.masked_fill_(title_keys[asking, None] == title_keys[answering], -torch.inf)
            of_tile, places = similarities.topk(min(count, similarities.shape[1]), dim=-1)
            places = torch.where(of_tile > -torch.inf, places + left, NONE)
            values, order = torch.cat([values, of_tile], dim=1).topk(count, dim=-1)
            best.copy_(torch.cat([best, places], dim=1).gather(1, order))
    return nearest


@torch.no_grad()
def mine_negatives(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    data: ProductQueries,
    count: int,
    batch_size: int = 64,
    progress: bool = True,
    in_step: bool = False,
    lenient: bool = False,
) -> Tensor:
    """Encode the catalogue and find each product's hardest negatives; exact search, so quadratic in the catalogue.

    Of several processes each encodes its share of the N products and searches for those; what they found goes to all.
    Every one holds all vectors: on an accelerator as float16, 2·D bytes a product, so that neighbours whose
    similarities differ by less than 0.001 may change places.

    Args:
        model: a Moon2Model; its mode is kept.
        processor: its Moon2Processor.
        data: the catalogue.
        count: negatives of a product.
        batch_size: products per forward.
        progress: show a bar, on the first process.
        in_step: every process encodes all products, for one whose weights are split cannot go through the model alone.
        lenient: leave out a picture that cannot be read, instead of stopping at it.

    Returns:
        (N, count) int64, see `nearest_others`.

    Raises:
        ValueError: a picture cannot be read, unless `lenient`, or a vector is not finite; names the product.
    """
    total = len(data.products)
    share = math.ceil(total / num_processes())
    start = min(process_rank() * share, total)
    rows = range(start, min(start + share, total))
    products = data.products if in_step else data.products.select(rows)
    vectors = _encode(Encoder(model, processor, batch_size), products, lenient, progress and process_rank() == 0)
    dtype = torch.float32 if model.device.type == "cpu" else torch.float16
    embeddings = torch.from_numpy(vectors).to(model.device, dtype)
    if not in_step:
        embeddings = _of_all(embeddings, share)[:total]
    titles = torch.from_numpy(data.title_key).to(model.device)
    return _of_all(nearest_others(embeddings, titles, count, rows), share)[:total].cpu()


def _encode(encoder: Encoder, products: Dataset, lenient: bool, progress: bool) -> np.ndarray:
    """The multimodal vectors (N, D) of products, zero where nothing is left of one."""
    vectors = np.empty((len(products), encoder.width), dtype=np.float32)
    starts = range(0, len(products), encoder.batch_size * BATCHES_PER_WINDOW)
    windows = [range(start, min(start + starts.step, len(products))) for start in starts]
    items = (ProductItems(products.select(rows)) for rows in windows)
    with tqdm(total=len(products), unit="item", disable=not progress) as bar:
        found = encoder.encode_windows(items, ("multimodal",), lenient, bar.update)
        for rows, encoded in zip(windows, found, strict=True):
            vectors[rows.start : rows.stop] = encoded.vectors["multimodal"]
    return check_vectors(vectors, np.arange(len(products)), ProductItems(products), encoder.model)


def _of_all(rows: Tensor, share: int) -> Tensor:
    """The rows (n, …) of all processes, of which the last ones may have less than their share."""
    return gather_rows(F.pad(rows, (0, 0, 0, share - len(rows))))


class MinedNegatives:
    """What the searches of a training have found, and which of them serves which step.

    Batches are drawn ahead of their step, so a search serves those alone that cannot have been drawn when it was
    made: of `delay` steps later, and all further ones until the next search does. So what a batch holds depends on its
    number, not on how fast it was read, and is the same after a resume.

    Args:
        delay: steps, see `mining_delay`.
    """

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self.searches: dict[int, Tensor] = {}  # step -> (N, K), in ascending order

    def add(self, step: int, found: Tensor) -> None:
        """Keep what was found at a step, (N, K) int64; what serves no later batch is let go."""
        self.searches = {made: kept for made, kept in self.searches.items() if made < step} | {step: found}
        serving = self._serving(step + 1)
        self.searches = {made: kept for made, kept in self.searches.items() if serving is None or made >= serving}

    def at(self, step: int) -> Tensor | None:
        """What serves the batches of a step; None before the first search does."""
        serving = self._serving(step)
        return None if serving is None else self.searches[serving]

    def state_dict(self) -> dict[str, Tensor]:
        """The searches by their step."""
        return {str(step): found for step, found in self.searches.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over those of another training."""
        self.searches = {int(step): state[step] for step in sorted(state, key=int)}

    def _serving(self, step: int) -> int | None:
        return max((made for made in self.searches if made + self.delay <= step), default=None)


def mining_delay(num_workers: int, prefetch_factor: int | None, batches_per_step: int) -> int:
    """Steps from a search to the first batch that was surely not drawn before it.

    At the search of step s the s + 1 steps have their batches, the one after them is held ready, and workers have as
    many more as they fetch ahead.

    Args:
        num_workers, prefetch_factor: of the DataLoader; 2 if None, as there.
        batches_per_step: gradient accumulation steps.
    """
    ahead = 1 + num_workers * (2 if prefetch_factor is None else prefetch_factor)
    return 1 + math.ceil(ahead / batches_per_step)


class MinedBatchSampler(Sampler[list[TripletKey]]):
    """Batches of another sampler, their keys with the negatives that were mined for their products.

    Args:
        batches: the other sampler, of all processes.
        positive_row: (Q,) product of each row.
        mined: looked up as the batches are drawn.
        batches_per_step: gradient accumulation steps.
        num_processes: that take turns with the batches.
    """

    drop_last = True

    def __init__(
        self,
        batches: LeafBatchSampler,
        positive_row: np.ndarray,
        mined: MinedNegatives,
        batches_per_step: int,
        num_processes: int = 1,
    ) -> None:
        self.batches = batches
        self.batch_size = batches.batch_size
        self.positive_row = positive_row
        self.mined = mined
        self.batches_per_step = batches_per_step
        self.num_processes = num_processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[TripletKey]]:
        steps = math.ceil(len(self) // self.num_processes / self.batches_per_step)  # of an epoch
        for number, batch in enumerate(self.batches):
            step = self.batches.epoch * steps + number // self.num_processes // self.batches_per_step
            found = self.mined.at(step)
            if found is not None:
                rows = found[self.positive_row[[key.index for key in batch]]].tolist()
                batch = [
                    key._replace(mined=tuple(row for row in of_key if row != NONE))
                    for key, of_key in zip(batch, rows, strict=True)
                ]
            yield batch
