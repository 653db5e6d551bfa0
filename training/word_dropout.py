"""Leaves words out of texts, anew each time they are read: texts that stay the same are learnt by heart."""

from __future__ import annotations

import numpy as np


def drop_words(text: str, rate: float, rng: np.random.Generator) -> str:
    """Leave out each word with probability `rate`; one that is drawn stays if all others go.

    Args:
        text: words with white space between them.
        rate: probability from 0 to 1.
        rng: the only source of randomness.

    Returns:
        The words that stay, in their order, with one space between them; `text` itself if all stay.

    Reference: Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", ACL 2015.
    """
    words = text.split()
    if not words or rate <= 0:
        return text
    kept = rng.random(len(words)) >= rate
    if kept.all():
        return text
    if not kept.any():
        kept[rng.integers(len(words))] = True
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)
