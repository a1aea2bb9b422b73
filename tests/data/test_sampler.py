"""The order of samples: complete, reproducible, and entered anywhere at once."""

import itertools
import time

import numpy as np
import pytest

from ddpm_hf.data.sampler import SampleOrder, draws, split_held_out


def take(order, batches):
    return list(itertools.islice(order, batches))


def test_every_image_once_an_epoch_in_another_order_each_time():
    stream = [i for batch in take(SampleOrder(np.arange(50), 7, seed=3), 50) for i, _ in batch]
    epochs = [stream[e * 50 : (e + 1) * 50] for e in range(7)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 7
    assert stream != [i for batch in take(SampleOrder(np.arange(50), 7, seed=4), 50) for i, _ in batch]


@pytest.mark.parametrize("images_seen", [0, 24, 49 * 6, 1200])
def test_entered_anywhere_it_goes_on_as_if_from_the_start(images_seen):
    whole = [sample for batch in take(SampleOrder(np.arange(50), 6, seed=0), 300) for sample in batch]
    rest = [sample for batch in take(SampleOrder(np.arange(50), 6, 0, images_seen), 10) for sample in batch]
    assert rest == whole[images_seen : images_seen + 60]


def test_processes_share_the_stream_of_one():
    alone = take(SampleOrder(np.arange(50), 4, seed=0), 6)
    shares = [take(SampleOrder(np.arange(50), 4, 0, rank=rank, world_size=2), 3) for rank in range(2)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == alone


def test_entering_costs_the_same_wherever():
    indices = np.arange(1_300_000)

    def first_batch(images_seen):
        start = time.perf_counter()
        take(SampleOrder(indices, 64, 0, images_seen), 1)
        return time.perf_counter() - start

    first_batch(0)
    early, late = min(first_batch(0) for _ in range(3)), min(first_batch(10**12) for _ in range(3))
    assert late < 3 * early + 0.1


def test_the_draws_of_flips_are_fair_and_independent_of_each_other():
    bits = (draws(0, range(100_000)) >> np.uint64(63)).astype(int)
    assert abs(bits.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(bits[:-1], bits[1:])[0, 1]) < 0.01
    assert (draws(0, range(500, 600)) == draws(0, range(1000))[500:600]).all()
    assert (draws(0, range(1000)) != draws(1, range(1000))).any()


@pytest.mark.parametrize(("share", "held_out"), [(0, 0), (0.1, 100), (0.0001, 1), (0.5, 500)])
def test_images_held_out_are_never_trained_on(share, held_out):
    train, held = split_held_out(1000, share, seed=5)
    assert len(held) == held_out
    assert sorted([*train, *held]) == list(range(1000))
    if 1 < held_out < 1000:
        assert (held != split_held_out(1000, share, seed=6)[1]).any()
