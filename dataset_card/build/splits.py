"""Which split every group of products goes to, and how many of a category may be trained on."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

TRAIN = "train"
LEFT_OUT = -1  # number of no split


def parse_splits(given: Sequence[str]) -> dict[str, float]:
    """Read shares such as ["train=0.8", "validation=0.1", "test=0.1"].

    Raises:
        ValueError: something else, a share that is not above 0, a name twice, or shares whose sum is not 1.
    """
    shares: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not share > 0 or name in shares:
            raise ValueError(f"splits: {text!r}; give different names with shares above 0, such as train=0.8 test=0.2")
        shares[name] = share
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"splits: the shares {' '.join(given)} add up to {sum(shares.values()):g}; make that 1")
    return shares


def draw(keys: np.ndarray, seed: int, what: str) -> np.ndarray:
    """A number for every key, as if at random, and the same whatever other keys there are.

    Args:
        keys: (N,) uint64.
        seed: of the draw.
        what: it is for; different draws are independent of each other.

    Returns:
        (N,) float64 in [0, 1).
    """
    secret = f"{seed} {what}".encode()
    drawn = b"".join(hashlib.blake2b(key, digest_size=8, key=secret).digest() for key in keys.astype("<u8")[:, None])
    return (np.frombuffer(drawn, dtype="<u8") >> np.uint64(11)) * 2.0**-53


def assign_splits(groups: np.ndarray, member_keys: np.ndarray, shares: Mapping[str, float], seed: int) -> np.ndarray:
    """Send every group of products to a split, whole.

    A group goes by the smallest key of its members. So products stay where they are when others are added, also to
    their group if the newcomer's key is already in it, and the order of the catalogue makes no difference.

    Args:
        groups: (N,) int64, one number for rows of one group.
        member_keys: (N,) uint64, such as the keys of the titles.
        shares: split -> share of the groups.
        seed: of the choice.

    Returns:
        (N,) int64, the split's place in `shares`.
    """
    if not len(groups):
        return np.empty(0, dtype=np.int64)
    numbers, inverse = np.unique(groups, return_inverse=True)
    smallest = np.full(len(numbers), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, inverse, member_keys)
    edges = np.cumsum(list(shares.values()))[:-1]
    return np.searchsorted(edges, draw(smallest, seed, "split"), side="right")[inverse]


def over_category_limit(
    leaf: np.ndarray, wanted: np.ndarray, product_keys: np.ndarray, limit: int, seed: int
) -> np.ndarray:
    """Products beyond `limit` in their leaf category: those that are wanted stay first, then chance decides.

    Args:
        leaf: (N,) uint64 key of the category path; 0 for products without one, which are never over the limit.
        wanted: (N,) bool, such as products that somebody bought.
        product_keys: (N,) uint64.
        limit: products of a category that stay.
        seed: of the choice.

    Returns:
        (N,) bool.
    """
    order = np.lexsort((draw(product_keys, seed, "category limit"), ~wanted, leaf))
    new = np.r_[True, leaf[order[1:]] != leaf[order[:-1]]] if len(leaf) else np.empty(0, dtype=bool)
    first = np.flatnonzero(new)
    place = np.arange(len(leaf)) - np.repeat(first, np.diff(np.r_[first, len(leaf)]))
    over = np.empty(len(leaf), dtype=bool)
    over[order] = place >= limit
    return over & (leaf != 0)
