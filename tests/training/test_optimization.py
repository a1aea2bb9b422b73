import math

import pytest
import torch

from ddpm_hf.config import Train
from ddpm_hf.training.optimization import build_optimizer, learning_rate


def rates(steps, steps_per_epoch=1.0, **settings):
    train = Train(max_steps=None if "epochs" in settings else 100, learning_rate=2.0, **settings)
    return [learning_rate(train, step, 100, steps_per_epoch) for step in steps]


def test_constant_with_warm_up():
    assert rates([0, 4, 9, 10, 99], warmup_steps=10) == [0.2, 1.0, 2.0, 2.0, 2.0]


def test_linear_reaches_zero_at_the_end():
    assert rates([0, 50, 99, 100], learning_rate_schedule="linear") == pytest.approx([2.0, 1.0, 0.02, 0.0])


def test_cosine_after_warm_up():
    expected = [0.1, 2.0, 1.0, 2 * 0.5 * (1 + math.cos(math.pi * 79 / 80)), 0.0]
    assert rates([0, 20, 60, 99, 100], learning_rate_schedule="cosine", warmup_steps=20) == pytest.approx(expected)


def test_drops_in_steps_and_in_epochs_as_in_report_jones():
    drops = {"learning_rate_schedule": "step", "learning_rate_drops": (30.0, 60.0)}
    assert rates([29, 30, 59, 60], **drops) == pytest.approx([2.0, 0.2, 0.2, 0.02])
    # 500 epochs, the rate falls to a tenth after 400; 195.3 steps an epoch
    drops = {"learning_rate_schedule": "step", "learning_rate_drops": (400.0,), "epochs": 500.0}
    assert rates([78124, 78125], 195.3125, **drops) == pytest.approx([2.0, 0.2])


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_step_called_off_on_the_device_changes_nothing(kind):
    """What the loop relies on, for each optimizer: found_inf = 1 leaves weights, moments and step count as they were."""
    model = torch.nn.Linear(4, 4)
    optimizer = build_optimizer(Train(max_steps=1, optimizer=kind), model)
    x = torch.randn(2, 4)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
    weights = [p.clone() for p in model.parameters()]
    states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
    for p in model.parameters():
        p.grad.fill_(math.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for p, weight, state in zip(model.parameters(), weights, states, strict=True):
        assert torch.equal(p, weight)
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in state.items())
