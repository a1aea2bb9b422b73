"""The order in which training sees the images."""

from collections.abc import Iterator

import numpy as np


def split_held_out(num_images: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and indices held out, int64, both sorted; the same for the same seed."""
    held_out = min(num_images - 1, round(num_images * share)) if share else 0
    if share and not held_out:
        held_out = 1
    order = np.random.default_rng([seed, 1]).permutation(num_images)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class SampleOrder:
    """Batch sampler over an endless stream of samples: position p of the stream is image `order[p % n]` of epoch `p // n`.

    Every image comes once an epoch, in an order that follows from (seed, epoch). Where the stream starts follows from
    the images seen so far, so resuming anywhere costs the same and replays nothing. Yields lists of (index, draw);
    `draw` is a 64-bit number that decides the sample's flip and crop. Micro-batches go to the processes in turn.
    """

    def __init__(
        self, indices: np.ndarray, batch_size: int, seed: int, images_seen: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.indices, self.batch_size, self.seed = indices, batch_size, seed
        self.start = images_seen + rank * batch_size
        self.stride = batch_size * world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        n, epoch, order = len(self.indices), None, None
        start = self.start
        while True:
            positions = range(start, start + self.batch_size)
            batch = []
            for position, draw in zip(positions, draws(self.seed, positions), strict=True):
                if position // n != epoch:
                    epoch = position // n
                    order = np.random.default_rng([self.seed, 2, epoch]).permutation(self.indices)
                batch.append((int(order[position % n]), int(draw)))
            yield batch
            start += self.stride


def draws(seed: int, positions: range) -> np.ndarray:
    """One 64-bit number a position, uint64: SplitMix64 (Steele et al. 2014) of the position, keyed by the seed."""
    key = np.random.SeedSequence([seed, 3]).generate_state(1, np.uint64)
    x = key + np.arange(positions.start, positions.stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
