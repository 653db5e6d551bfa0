"""Word dropout: how much goes, what always stays."""

import numpy as np
import pytest

from moon2_training.word_dropout import drop_words


def test_words_go_as_often_as_asked_and_keep_their_order():
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(2000)]
    kept = drop_words(" ".join(words), 0.3, rng).split()
    assert len(kept) == pytest.approx(1400, abs=70)
    places = [words.index(word) for word in kept]
    assert places == sorted(places)


@pytest.mark.parametrize("text", ["mug", "red  enamel\tmug", "赤い マグ", ""])
def test_something_always_stays(text):
    rng = np.random.default_rng(0)
    for rate in (0.5, 1.0):
        kept = drop_words(text, rate, rng).split()
        assert len(kept) >= min(1, len(text)) and set(kept) <= set(text.split())
    assert drop_words(text, 0.0, rng) == text


def test_which_word_is_left_alone_is_drawn():
    rng = np.random.default_rng(0)
    assert {drop_words("red enamel mug", 1.0, rng) for _ in range(50)} == {"red", "enamel", "mug"}
