"""Each step's batch is the same for any number of ranks."""

from __future__ import annotations

import random

import pytest

from mlcloud.errors import UsageError
from mlcloud.training.order import Order

pytest.importorskip("torch")


def test_the_parts_of_a_step_make_the_same_batch_for_any_number_of_ranks() -> None:
    chance = random.Random(0)
    for _ in range(100):
        length, batch = chance.randint(20, 200), chance.randint(8, 20)
        order = Order(length, batch, epochs=3, seed=chance.randint(0, 9), most=8)
        again = Order(length, batch, epochs=3, seed=order._seed, most=8)
        for step in chance.sample(range(order.steps), min(5, order.steps)):
            whole = again.batch(step)
            assert len(set(whole)) == batch
            for world in range(1, 9):
                parts = [order.samples(step, rank, world) for rank in range(world)]
                assert [i for each in parts for i in each] == whole
                sizes = [len(each) for each in parts]
                assert max(sizes) - min(sizes) <= 1
                # The mean over ranks of scaled means is the mean over the batch.
                shares = [order.share(step, rank, world) for rank in range(world)]
                assert [s.weight * batch for s in shares] == pytest.approx(sizes)
                means = [sum(each) / len(each) for each in parts]
                mean = sum(s.scale * m for s, m in zip(shares, means, strict=True)) / world
                assert mean == pytest.approx(sum(whole) / batch)


def test_an_epoch_has_each_sample_once_and_the_next_one_another_order() -> None:
    order = Order(50, 10, epochs=2, seed=1)
    first = [i for step in range(5) for i in order.batch(step)]
    second = [i for step in range(5, 10) for i in order.batch(step)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))
    assert Order(50, 10, shuffle=False).batch(1) == list(range(10, 20))


def test_the_last_batch_may_be_smaller_if_all_ranks_have_a_part() -> None:
    order = Order(25, 10, drop_last=False, most=4)
    assert order.steps == 3
    assert len(order.batch(2)) == 5
    assert [order.share(step, 0, 4).weight for step in range(3)] == [0.3, 0.3, 0.4]
    with pytest.raises(UsageError, match=r"would have 5 samples, fewer than up to 6 workers"):
        Order(25, 10, drop_last=False, most=6)


@pytest.mark.parametrize(
    ("length", "batch", "most", "says"),
    [
        (100, 4, 8, "not enough for up to 8 workers"),
        (10, 64, 1, "more than the 10 samples"),
        (10, 0, 1, "at least 1"),
    ],
)
def test_what_cannot_be(length: int, batch: int, most: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Order(length, batch, most=most)
