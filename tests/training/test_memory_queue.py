from __future__ import annotations

import torch

from moon2_training.memory_queue import MemoryQueue


def push(queue, products, step):
    products = torch.tensor(products)
    rows = products[:, None].float().expand(-1, 3)
    queue.push(rows, -rows, products % 2 == 0, products, products * 10, step)


def held(queue, step):
    return sorted(queue.product_keys[queue.valid(step)].tolist())


def test_the_oldest_items_make_room():
    queue = MemoryQueue(size=5, width=3, max_age=100)
    assert held(queue, 0) == []
    push(queue, [1, 2], 0)
    push(queue, [3, 4], 1)
    assert held(queue, 1) == [1, 2, 3, 4]
    push(queue, [5, 6], 2)
    assert held(queue, 2) == [2, 3, 4, 5, 6]
    for slot, product in enumerate(queue.product_keys.tolist()):
        assert queue.multimodal[slot].tolist() == [product] * 3 and queue.text[slot].tolist() == [-product] * 3
        assert queue.title_keys[slot] == 10 * product and queue.has_text[slot] == (product % 2 == 0)


def test_stale_items_age_out():
    queue = MemoryQueue(size=6, width=3, max_age=2)
    push(queue, [1, 2], 10)
    push(queue, [3, 4], 12)
    assert held(queue, 12) == [1, 2, 3, 4]
    assert held(queue, 13) == [3, 4]
    assert held(queue, 15) == []


def test_an_item_that_is_not_finite_leaves_its_place_empty():
    queue = MemoryQueue(size=4, width=3, max_age=9)
    push(queue, [1, 2, 3, 4], 0)
    rows = torch.ones(3, 3)
    rows[0, 1] = torch.nan
    keys = torch.tensor([5, 6, 7])
    queue.push(rows, rows.flip(0), torch.ones(3, dtype=torch.bool), keys, keys, step=1)
    assert held(queue, 1) == [4, 6]
    assert queue.multimodal.isfinite().all() and queue.text.isfinite().all()


def test_its_state_comes_back():
    queue = MemoryQueue(size=4, width=3, max_age=9)
    push(queue, [1, 2, 3], 4)
    again = MemoryQueue(size=4, width=3, max_age=9)
    again.load_state_dict(queue.state_dict())
    for one in (queue, again):
        push(one, [7, 8], 5)
    assert held(again, 5) == held(queue, 5) == [2, 3, 7, 8]
