"""Which products of a catalogue are the same, and which belong together: by id, by title and by picture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image, ImageOps

# How one picture is compared with another. The 64 bits of `coarse` find candidates, and would chain a tenth of a shoe
# shop into one group; `fine` and `colours` confirm them. Of a photo that is scaled or compressed again, 99 in 100 stay
# within 4, 8 and 4 of the original; of two products' photos with nearly equal `coarse`, 99 in 100 are 20 and 7 apart.
LOOK = np.dtype([("coarse", "<u8"), ("fine", "<u8", (4,)), ("colours", "u1", (48,))])
COARSE_BITS = 64
MAX_DISTANCE = 6  # bits of `coarse`; further apart the look-up takes long and finds nothing
FINE_DISTANCE = 16  # bits of `fine`
COLOUR_DISTANCE = 8  # of 255, in the cell of a 4 × 4 grid and the channel that differ most
PLACEHOLDER_TITLES = 30  # a picture under more different titles shows no product ("no photo yet", a size chart)
FEW_PICTURES = 64  # of one place, that are all compared with one another
MANY_PAIRS = 2_000_000  # held at once

KEPT, SAME_ID, SAME_TITLE_AND_IMAGE, SAME_TEXT = range(4)
REASONS = {
    SAME_ID: "same_product_id",
    SAME_TITLE_AND_IMAGE: "same_title_and_image",
    SAME_TEXT: "same_text_and_no_image",
}

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass
class ProductKeys:
    """What is compared of N products, in the order of the catalogue: (N,) arrays.

    Attributes:
        product_id: uint64 key of the id.
        title: uint64 key of the normalised title; 0 without one.
        leaf: uint64 key of the category path.
        text: uint64 key of title, description, category path and attributes.
        look: LOOK of the first picture; zeros without one.
        pictured: bool, whether there is one.
    """

    product_id: np.ndarray
    title: np.ndarray
    leaf: np.ndarray
    text: np.ndarray
    look: np.ndarray
    pictured: np.ndarray


@dataclass
class Duplicates:
    """What `find_duplicates` finds about N products: (N,) arrays.

    Attributes:
        kept_row: int64, the row that stands for this one: its own number, or that of an earlier row.
        reason: uint8, KEPT or why the row is dropped; a key of REASONS.
        group: int64, one number for rows that no split may part; that of a dropped row is its kept row's.
        placeholder: bool, rows whose first picture is shared by so many titles that it shows no product.
    """

    kept_row: np.ndarray
    reason: np.ndarray
    group: np.ndarray
    placeholder: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool."""
        return self.reason == KEPT


def stable_key(kind: str, text: str) -> int:
    """A number for a text, the same in every process, and never 0: 64 bits.

    Args:
        kind: at most 16 bytes; equal texts of different kinds have different keys.
        text: anything; lone surrogates count as they are.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=kind.encode()).digest()
    return int.from_bytes(digest, "little") or 1


def check_installed() -> None:
    """Look for what duplicates are found with.

    Raises:
        ValueError: imagehash, which brings scipy along, is not installed.
    """
    try:
        import imagehash  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise ValueError(f'duplicates are found with imagehash ({error}); pip install "moon2[augment]"') from error


def picture_look(image: Image.Image) -> np.ndarray:
    """What a picture looks like, in 88 bytes: two perceptual hashes and the colours of a 4 × 4 grid.

    Args:
        image: any mode and size; transparency counts as white.

    Returns:
        () LOOK.
    """
    from imagehash import phash

    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    small = image.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS, reducing_gap=3.0)
    look = np.zeros((), dtype=LOOK)
    look["coarse"] = np.packbits(phash(small).hash).view("<u8")[0]
    look["fine"] = np.packbits(phash(small, 16).hash).view("<u8")
    look["colours"] = np.asarray(small.resize((4, 4), Image.Resampling.BOX)).reshape(-1)
    return look


def find_duplicates(keys: ProductKeys, distance: int) -> Duplicates:
    """Find what is one product, and what must not be parted by a split.

    One product, of which the first row is kept: rows with the same id; rows with the same title and category whose
    first pictures are nearly identical, or which have no picture and the same text throughout.

    One group: rows with the same title, whatever their category, and rows with nearly identical first pictures; also
    what is joined through others. A picture that stands under many different titles joins nothing.

    Args:
        keys: of all products.
        distance: bits of 64 in which the perceptual hashes of nearly identical pictures may differ, 0 to 6.

    Raises:
        ValueError: the distance is outside of that.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"image_hash_distance={distance}; give 0 to {MAX_DISTANCE} bits")
    number = len(keys.product_id)
    reason = np.zeros(number, dtype=np.uint8)
    _, first, inverse = np.unique(keys.product_id, return_index=True, return_inverse=True)
    kept_row = first[inverse]
    reason[kept_row != np.arange(number)] = SAME_ID

    rows = np.flatnonzero(reason == KEPT)
    look_key = _look_key(keys.look)
    placeholder = np.zeros(number, dtype=bool)
    placeholder[rows] = _is_placeholder(look_key[rows], keys.title[rows], keys.pictured[rows])
    shown = keys.pictured & ~placeholder
    titled = keys.title != 0

    pictured = rows[(shown & titled)[rows]]
    place = keys.title * np.uint64(0x9E3779B97F4A7C15) ^ keys.leaf
    one_product = near_components(keys.look[pictured], look_key[pictured], distance, place[pictured])
    textual = rows[(~shown & titled)[rows]]
    for chosen, same, why in (
        (pictured, one_product, SAME_TITLE_AND_IMAGE),
        (textual, keys.text[textual], SAME_TEXT),
    ):
        _, first, inverse = np.unique(same, return_index=True, return_inverse=True)
        kept_row[chosen] = chosen[first[inverse]]
        reason[chosen[kept_row[chosen] != chosen]] = why
    kept_row = kept_row[kept_row]  # a row with the id of a dropped row goes where that one went

    titles = np.where(titled, keys.title, keys.product_id)
    group = np.empty(number, dtype=np.int64)
    group[rows] = _groups(titles[rows], keys.look[rows], look_key[rows], shown[rows], distance)
    return Duplicates(kept_row, reason, group[kept_row], placeholder)


def near_components(
    looks: np.ndarray, look_key: np.ndarray, distance: int, place: np.ndarray | None = None
) -> np.ndarray:
    """Join pictures that are nearly identical, directly or through others.

    Args:
        looks: (N,) LOOK.
        look_key: (N,) uint64 of the looks.
        distance: bits of `coarse`.
        place: (N,) uint64; only pictures of one place are joined. None: of all.

    Returns:
        (N,) int64, equal where joined.
    """
    place = np.zeros(len(looks), dtype=np.uint64) if place is None else place
    return _joined(len(looks), _near_pairs(looks, look_key, distance, place))


def _look_key(looks: np.ndarray) -> np.ndarray:
    """(N,) uint64, equal for equal looks."""
    words = np.ascontiguousarray(looks).view("<u8").reshape(len(looks), LOOK.itemsize // 8)
    key = np.zeros(len(looks), dtype=np.uint64)
    for column in range(words.shape[1]):
        key = (key ^ words[:, column]) * np.uint64(0xFF51AFD7ED558CCD)
        key ^= key >> np.uint64(33)
    return key


def _is_placeholder(look_key: np.ndarray, titles: np.ndarray, pictured: np.ndarray) -> np.ndarray:
    """Rows whose picture stands under more than PLACEHOLDER_TITLES titles: (N,) bool."""
    pairs = np.unique(np.stack([look_key[pictured], titles[pictured]]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    return pictured & np.isin(look_key, values[counts > PLACEHOLDER_TITLES])


def _groups(
    titles: np.ndarray, looks: np.ndarray, look_key: np.ndarray, shown: np.ndarray, distance: int
) -> np.ndarray:
    """Join rows through their titles and their pictures: every title and every picture is a node, as is every row."""
    number = len(titles)
    distinct_titles, title_node = np.unique(titles, return_inverse=True)
    distinct_looks, first, look_node = np.unique(look_key[shown], return_index=True, return_inverse=True)
    look_node = near_components(looks[shown][first], distinct_looks, distance)[look_node]
    rows = np.arange(number)
    starts = np.concatenate([rows, rows[shown]])
    ends = np.concatenate([number + title_node, number + len(distinct_titles) + look_node])
    return _components(number + len(distinct_titles) + len(distinct_looks), starts, ends)[:number]


def _near_pairs(looks: np.ndarray, look_key: np.ndarray, distance: int, place: np.ndarray) -> Pairs:
    """Yield (i, j) arrays of pictures of one place that are nearly identical.

    Equal pictures are joined in a chain and only one of them is compared with others, else n copies would give n² / 2
    pairs. Where a place has many pictures, only those are compared that agree in some bits of `coarse`.
    """
    order = np.lexsort((look_key, place))
    copies = np.flatnonzero((place[order[1:]] == place[order[:-1]]) & (look_key[order[1:]] == look_key[order[:-1]]))
    yield order[copies], order[copies + 1]
    rows = np.delete(order, copies + 1)
    _, inverse, sizes = np.unique(place[rows], return_inverse=True, return_counts=True)
    crowded = sizes[inverse] > FEW_PICTURES
    yield from _compared(looks, rows[~crowded], distance, place[rows[~crowded]])
    rows = rows[crowded]
    for mask in _masks(sizes.max(), distance) if len(rows) else ():
        agreeing = looks["coarse"][rows] & mask
        yield from _compared(looks, rows, distance, place[rows] ^ agreeing * np.uint64(0xC4CEB9FE1A85EC53))


def _masks(number: int, distance: int) -> list[np.uint64]:
    """Bits of `coarse` such that two hashes within the distance agree in those of at least one mask.

    Two hashes that differ in d bits agree in at least k of d + k bands of their bits, so every mask is k bands; k is
    chosen so that few of `number` hashes agree by chance.
    """
    wanted = min(20, max(8, math.ceil(math.log2(number + 1))))  # bits; 20 part a million into ones
    agreeing = next(k for k in range(1, COARSE_BITS) if k * (COARSE_BITS // (distance + k)) >= wanted)
    # Neighbouring bits of the hash go together, so a band takes every n-th one.
    bands = [
        sum(1 << bit for bit in range(start, COARSE_BITS, distance + agreeing)) for start in range(distance + agreeing)
    ]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, agreeing)]


def _compared(looks: np.ndarray, rows: np.ndarray, distance: int, bucket: np.ndarray) -> Pairs:
    """Yield (i, j) arrays of those of the rows (R,) that share a bucket (R,) and are nearly identical."""
    order = np.argsort(bucket, kind="stable")
    buckets, rows = bucket[order], rows[order]
    coarse = looks["coarse"][rows]
    step, start = 1, np.arange(len(rows))
    while True:
        start = start[: np.searchsorted(start, len(rows) - step)]
        start = start[buckets[start] == buckets[start + step]]
        if not len(start):
            return
        close = start[np.bitwise_count(coarse[start] ^ coarse[start + step]) <= distance]
        one, other = rows[close], rows[close + step]
        confirmed = _confirmed(looks[one], looks[other])
        yield one[confirmed], other[confirmed]
        step += 1


def _confirmed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pairs of looks whose finer hash and whose colours are close: (P,) bool."""
    fine = np.bitwise_count(one["fine"] ^ other["fine"]).sum(axis=1) <= FINE_DISTANCE
    colours = np.abs(one["colours"].astype(np.int16) - other["colours"]).max(axis=1, initial=0) <= COLOUR_DISTANCE
    return fine & colours


def _joined(number: int, pairs: Pairs) -> np.ndarray:
    """(number,) int64, equal for what the pairs join; not all pairs are held at once."""
    starts, ends, waiting = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], 0
    for one, other in pairs:
        starts.append(one)
        ends.append(other)
        waiting += len(one)
        if waiting > MANY_PAIRS:
            labels = _components(number, np.concatenate(starts), np.concatenate(ends))
            _, first = np.unique(labels, return_index=True)
            starts, ends, waiting = [np.arange(number)], [first[labels]], 0
    return _components(number, np.concatenate(starts), np.concatenate(ends))


def _components(number: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not number:
        return np.empty(0, dtype=np.int64)
    graph = coo_array((np.ones(len(starts), dtype=bool), (starts, ends)), shape=(number, number))
    return connected_components(graph, directed=False)[1].astype(np.int64)
