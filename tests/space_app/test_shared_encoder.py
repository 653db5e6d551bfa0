"""Threads that share an encoder get what each would get alone, and none waits for all of another's work."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moon2_space import shared_encoder
from moon2_space.shared_encoder import SharedEncoder
from moon2_training.encode import Encoder


@pytest.fixture
def items(make_image):
    return [{"text": f"red mug {row}", "images": [make_image(row)] if row % 3 else []} for row in range(37)]


def test_shared_is_as_alone(tiny, items):
    alone, shared = Encoder(*tiny), SharedEncoder(Encoder(*tiny))
    np.testing.assert_allclose(shared.encode(items), alone.encode(items, progress=False), atol=1e-5)
    for ours, theirs in zip(shared.encode_views(items), alone.encode_views(items, progress=False), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert shared.encode([]).shape == (0, shared.width) and shared.encode_views([]).text.shape == (0, shared.width)


def test_many_threads_get_their_own_answers(tiny, items):
    shared = SharedEncoder(Encoder(*tiny))
    expected = shared.encode(items)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda item: shared.encode([item])[0], items))
    np.testing.assert_allclose(np.stack(answers), expected, atol=1e-5)


def test_a_search_comes_in_between_the_turns_of_a_catalogue(monkeypatch):
    turns: list[str] = []

    class SlowEncoder:
        model = processor = None
        width = 4

        def encode(self, items, view, progress):
            time.sleep(0.01)
            turns.append(items[0]["text"])
            return np.zeros((len(items), self.width), dtype=np.float32)

    monkeypatch.setattr(shared_encoder.Encoder, "encode", SlowEncoder.encode)
    shared = SharedEncoder(SlowEncoder())
    catalogue = threading.Thread(target=shared.encode, args=([{"text": "product", "images": []}] * 400,))
    catalogue.start()
    while not turns:
        time.sleep(0.001)
    shared.encode([{"text": "search", "images": []}])
    seen = turns.index("search")
    catalogue.join()
    assert 0 < seen < turns.count("product")  # neither first nor after everything


def test_queries_that_wait_are_encoded_together(tiny, items, monkeypatch):
    shared, calls, go_on = SharedEncoder(Encoder(*tiny)), [], threading.Event()
    real = Encoder.encode

    def counted(encoder, together, view, progress):
        calls.append(len(together))
        return real(encoder, together, view, progress)

    expected = shared.encode(items[:9], "text")
    monkeypatch.setattr(shared_encoder.Encoder, "encode", counted)
    shared._worker.submit(go_on.wait, 30)  # somebody is at work
    bad = {"text": None, "images": items[1]["images"]}
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(shared.encode, [item], "text") for item in items[:9]]
        while len(shared._waiting) < 9:
            time.sleep(0.001)
        go_on.set()
        np.testing.assert_allclose(np.concatenate([answer.result() for answer in answers]), expected, atol=1e-5)
        assert calls == [9]
        go_on.clear()
        shared._worker.submit(go_on.wait, 30)
        answers = [pool.submit(shared.encode, [item], "text") for item in (*items[:3], bad)]
        while len(shared._waiting) < 4:
            time.sleep(0.001)
        go_on.set()
        wrong = [answer.exception(30) for answer in answers]
    assert wrong[:3] == [None] * 3 and "has no text" in str(wrong[3])  # one bad query spoils no other


def test_errors_count_items_over_all_turns(tiny):
    items = [{"text": "mug", "images": []}] * 20 + [{"text": None, "images": []}]
    with pytest.raises(ValueError, match="item 20 has neither text nor image"):
        SharedEncoder(Encoder(*tiny)).encode(items)
