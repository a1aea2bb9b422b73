"""How training draws its timesteps, against a plain-Python account of Nichol & Dhariwal (2021), section 3.3."""

import math
from collections import deque
from itertools import count

import numpy as np
import pytest
import torch

from ddpm_hf.diffusion.timesteps import ImportanceTimesteps, UniformTimesteps

CPU = torch.device("cpu")


class Reference:
    """The ten most recent losses of each timestep; equation 18 once every timestep has ten."""

    def __init__(self, T):
        self.history = [deque(maxlen=10) for _ in range(T)]

    def observe(self, timesteps, losses):
        for t, loss in zip(timesteps, losses, strict=True):
            if math.isfinite(loss):
                self.history[t].append(loss)

    def probabilities(self):
        T = len(self.history)
        if any(len(losses) < 10 for losses in self.history):
            return [1 / T] * T
        size = [math.sqrt(sum(loss**2 for loss in losses) / 10) for losses in self.history]
        return [0.999 * one / sum(size) + 0.001 / T for one in size]


def weights_of(timesteps):
    """The weight that is given with each timestep, and how often each is drawn."""
    t, weight = timesteps.draw(200_000)
    assert t.dtype == torch.int64
    assert weight.dtype == torch.float32
    seen = {}
    for step, w in zip(t.tolist(), weight.tolist(), strict=True):
        assert seen.setdefault(step, w) == w
    return seen, t.bincount(minlength=timesteps.T).numpy() / len(t)


def agrees(timesteps, reference):
    p = np.array(reference.probabilities())
    weight, share = weights_of(timesteps)
    for t, w in weight.items():
        assert w == pytest.approx(1 / (timesteps.T * p[t]), rel=1e-4)
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / 200_000) + 1e-9).all()


def history(timesteps, t):
    kept = min(timesteps.seen[t].item(), 10)
    return sorted(timesteps.losses[t, :10].tolist())[10 - kept :]


def some_losses(rng, n):
    """Positive, of many sizes, and exact in float32."""
    return np.exp2(rng.normal(size=n) * 2).astype(np.float32).astype(float)


def test_uniform_weighs_all_the_same():
    torch.manual_seed(0)
    timesteps = UniformTimesteps(10, CPU)
    t, weight = timesteps.draw(5000)
    assert t.dtype == torch.int64
    assert weight.dtype == torch.float32
    assert (weight == 1).all()
    assert set(t.tolist()) == set(range(10))
    timesteps.observe(t, weight)
    assert timesteps.state() == {}
    timesteps.load_state({})


@pytest.mark.parametrize("batch", [1, 3, 64, 300])
def test_importance_follows_the_reference(batch):
    """With the same timestep many times in a batch, more than ten times too, and losses that are not finite."""
    torch.manual_seed(0)
    rng, T = np.random.default_rng(batch), 6
    timesteps, reference = ImportanceTimesteps(T, CPU), Reference(T)
    full_for = 0
    for step in count():
        t = rng.integers(0, T, batch)
        if step % 3 == 1:
            t[: batch * 2 // 3] = rng.integers(0, T)
        losses = some_losses(rng, batch)
        losses[rng.random(batch) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
        timesteps.observe(torch.tensor(t), torch.tensor(losses))
        reference.observe(t.tolist(), losses.tolist())
        for one in range(T):
            np.testing.assert_allclose(history(timesteps, one), sorted(reference.history[one]), rtol=1e-6)
        full = all(len(losses) == 10 for losses in reference.history)
        assert bool((timesteps.seen >= 10).all()) == full
        full_for += full
        if full_for >= 40 // min(batch, 10):
            break
    agrees(timesteps, reference)


def test_uniform_until_the_last_timestep_has_ten():
    torch.manual_seed(0)
    timesteps, reference = ImportanceTimesteps(3, CPU), Reference(3)
    t, losses = [0] * 50 + [1] * 50 + [2] * 9, [5.0] * 50 + [1.0] * 59
    timesteps.observe(torch.tensor(t), torch.tensor(losses))
    reference.observe(t, losses)
    weight, _ = weights_of(timesteps)
    assert weight == pytest.approx({0: 1, 1: 1, 2: 1})
    timesteps.observe(torch.tensor([2]), torch.tensor([math.nan]))  # counts for nothing
    weight, _ = weights_of(timesteps)
    assert weight == pytest.approx({0: 1, 1: 1, 2: 1})
    timesteps.observe(torch.tensor([2]), torch.tensor([1.0]))
    reference.observe([2], [1.0])
    weight, _ = weights_of(timesteps)
    assert weight[0] < 0.5 < 2 < weight[2]
    agrees(timesteps, reference)


def test_of_more_than_ten_in_a_batch_the_last_ten_stay():
    timesteps = ImportanceTimesteps(2, CPU)
    timesteps.observe(torch.zeros(7, dtype=torch.int64), torch.full((7,), 100.0))
    timesteps.observe(torch.zeros(25, dtype=torch.int64), torch.arange(25.0))
    assert history(timesteps, 0) == list(range(15, 25))
    timesteps.observe(torch.tensor([0, 1, 0]), torch.tensor([70.0, 1.0, 80.0]))
    assert history(timesteps, 0) == [*range(17, 25), 70, 80]
    assert history(timesteps, 1) == [1]
    assert timesteps.seen.tolist() == [34, 1]


@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
def test_no_timestep_is_ever_out_of_reach(losses):
    """A share of 0.001 is drawn uniformly: no weight is above 1,000, even where a loss is nothing."""
    torch.manual_seed(0)
    timesteps = ImportanceTimesteps(3, CPU)
    timesteps.observe(torch.arange(3).repeat(10), torch.tensor(losses).repeat(10))
    t, weight = timesteps.draw(100_000)
    assert weight.isfinite().all()
    assert weight.max() <= 1000.1
    assert set(t.tolist()) == {0, 1, 2}


def test_weighted_losses_have_the_mean_of_uniform_ones():
    """E_p[L_t / (T p_t)] = E_uniform[L_t], whatever the history; and for losses like those it saw, with less variance."""
    torch.manual_seed(0)
    T, n = 50, 200_000
    true = torch.exp(torch.linspace(-4, 3, T))
    timesteps = ImportanceTimesteps(T, CPU)
    noisy = true.repeat(10) * (0.8 + 0.4 * torch.rand(10 * T))
    timesteps.observe(torch.arange(T).repeat(10), noisy)
    t, weight = timesteps.draw(n)
    weighted = (weight * true[t]).double()
    uniform_deviation = true.double().std(unbiased=False)
    assert weighted.mean().item() == pytest.approx(true.mean().item(), abs=4 * weighted.std().item() / math.sqrt(n))
    assert weighted.std() < 0.2 * uniform_deviation
    assert weight.double().mean().item() == pytest.approx(1, abs=4 * weight.double().std().item() / math.sqrt(n))


def test_the_history_survives_saving_and_loading():
    rng = np.random.default_rng(0)
    first, second = ImportanceTimesteps(4, CPU), ImportanceTimesteps(4, CPU)
    first.observe(torch.tensor(rng.integers(0, 4, 90)), torch.tensor(some_losses(rng, 90)))
    state = {name: value.clone() for name, value in first.state().items()}
    second.load_state(state)
    for step in range(5):  # they go on alike
        t, losses = torch.tensor(rng.integers(0, 4, 7)), torch.tensor(some_losses(rng, 7))
        for timesteps in (first, second):
            timesteps.observe(t, losses)
        drawn = []
        for timesteps in (first, second):
            torch.manual_seed(step)
            drawn.append(timesteps.draw(100))
        assert torch.equal(drawn[0][0], drawn[1][0])
        assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(first.state()["seen"], state["seen"])  # the state that was loaded stayed as it was


def test_two_processes_join_their_losses():
    """Each process sees a batch of its own; `gather` gives both the whole, and both histories are the single one's."""
    rng, T = np.random.default_rng(0), 5
    alone, reference = ImportanceTimesteps(T, CPU), Reference(T)
    t, losses = torch.tensor(rng.integers(0, T, 240)), torch.tensor(some_losses(rng, 240))
    losses[5] = math.nan
    for start in range(0, 240, 24):
        whole = {"t": t[start : start + 24], "loss": losses[start : start + 24]}
        alone.observe(whole["t"], whole["loss"])
        reference.observe(whole["t"].tolist(), whole["loss"].tolist())
    processes = []
    for rank in range(2):
        joined = []

        def gather(mine, rank=rank, joined=joined):
            """What all processes pass in the same call: first their timesteps, then their losses."""
            number, which = divmod(len(joined), 2)
            values = (losses.float() if which else t)[24 * number : 24 * number + 24]
            assert torch.equal(mine.nan_to_num(), values[12 * rank : 12 * rank + 12].nan_to_num())
            joined.append(which)
            return values

        process = ImportanceTimesteps(T, CPU, gather)
        for start in range(12 * rank, 240, 24):
            process.observe(t[start : start + 12], losses[start : start + 12])
        assert joined == [0, 1] * 10
        processes.append(process)
    for process in processes:
        for name, value in alone.state().items():
            assert torch.equal(process.state()[name][:, :10] if name == "losses" else process.state()[name],
                               value[:, :10] if name == "losses" else value)  # fmt: skip
    torch.manual_seed(0)
    agrees(processes[1], reference)
