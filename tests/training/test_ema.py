import copy

import pytest
import torch
from torch import nn

from ddpm_hf.config import EMA as Settings
from ddpm_hf.training.ema import EMA

YES, NO = torch.tensor(1.0), torch.tensor(0.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("table", torch.arange(3.0))


@pytest.mark.parametrize("update_every", [1, 10])
def test_constant_decay_has_its_closed_form(update_every):
    net, steps, decay = Net(), 100, 0.9
    ema = EMA(net, Settings(decay=decay, warmup=False, update_every=update_every))
    for step in range(1, steps + 1):
        net.weight.data.fill_(step)
        ema.update(net, step, YES)
    seen = range(update_every, steps + 1, update_every)
    expected = sum((1 - decay) * decay ** (len(seen) - 1 - i) * x for i, x in enumerate(seen))
    torch.testing.assert_close(ema.model.weight.data, torch.full((3,), float(expected)))


def test_warm_up_follows_its_formula_up_to_the_decay():
    ema = EMA(Net(), Settings(decay=0.9999, warmup=True, update_every=1))
    assert [ema.decay_at(n) for n in (1, 2, 90)] == [2 / 11, 3 / 12, 91 / 100]
    assert ema.decay_at(10**6) == 0.9999


def test_a_warm_up_by_power_is_ema_pytorchs():
    """ema-pytorch and Diffusers' EMAModel: 1 - (1 + n)^-power of the steps since the start, never above the decay."""
    ema = EMA(Net(), Settings(decay=0.995, warmup_power=2 / 3, start_step=100, update_every=10))
    assert ema.decay_at(100) == 0
    for step in (110, 200, 1000):
        assert ema.decay_at(step) == pytest.approx(1 - (1 + (step - 100 - 1)) ** -(2 / 3))
    assert ema.decay_at(20_000) == 0.995


def test_a_skipped_step_leaves_it_alone():
    net = Net()
    ema = EMA(net, Settings(decay=0.5, warmup=False, update_every=1))
    net.weight.data.fill_(8)
    ema.update(net, 1, NO)
    assert torch.equal(ema.model.weight, torch.zeros(3))
    ema.update(net, 2, YES)
    assert torch.equal(ema.model.weight, torch.full((3,), 4.0))


def test_it_is_float32_and_shares_nothing_with_the_model():
    net = Net()
    before = copy.deepcopy(net.state_dict())
    ema = EMA(net.bfloat16(), Settings(decay=0.5, warmup=False, update_every=1))
    assert ema.model.weight.dtype == torch.float32
    assert not ema.model.weight.requires_grad
    ema.model.weight.add_(1)
    assert torch.equal(net.weight.float(), before["weight"])
    assert torch.equal(ema.model.table, before["table"])


def test_small_changes_survive_a_decay_close_to_one():
    """A float16 average at decay 0.9999 would stand still: the change is below its resolution."""
    net = Net()
    net.weight.data.fill_(1.0)
    ema = EMA(net, Settings(decay=0.9999, warmup=False, update_every=1))
    net.weight.data.fill_(1.01)
    for step in range(1, 1001):
        ema.update(net, step, YES)
    expected = 1 + 0.01 * (1 - 0.9999**1000)
    torch.testing.assert_close(ema.model.weight.data, torch.full((3,), expected), rtol=1e-5, atol=0)
