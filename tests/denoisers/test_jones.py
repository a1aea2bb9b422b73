"""Jones against what section 3.2 of the report says."""

import pytest
import torch
from torch import nn

from ddpm_hf.denoisers.jones import Jones, time_code


def count(**settings):
    with torch.device("meta"):
        return Jones(**settings).num_parameters()


def test_parameters_as_the_report_counts_them():
    assert count() == 12_920_323


def test_labels_cost_one_embedding_for_each_place_where_the_time_code_is_added():
    assert count(num_classes=10) - count() == 10 * 64 * (2 + 4 + 4 + 2 + 1 + 1)


def test_the_walk_through_the_network():
    """The shapes that the report names on the way from 32x32x3 to 32x32x3."""
    model, shapes, joined = Jones().eval(), {}, {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    for name in ("up1", "up2", "up3"):
        block = getattr(model, name)
        block.conv1.register_forward_hook(lambda m, i, o, name=name: joined.update({name: tuple(i[0].shape[1:])}))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32), 10)
    assert shapes == {
        "inc": (64, 32, 32),
        "down1": (128, 16, 16),
        "down2": (256, 8, 8),
        "sa1": (256, 8, 8),
        "down3": (256, 4, 4),
        "sa2": (256, 4, 4),
        "up1": (128, 8, 8),
        "sa3": (128, 8, 8),
        "up2": (64, 16, 16),
        "up3": (64, 32, 32),
        "outc": (3, 32, 32),
    }
    assert joined == {"up1": (512, 8, 8), "up2": (256, 16, 16), "up3": (128, 32, 32)}


def test_every_convolution_but_the_last_is_without_bias_and_followed_by_a_one_group_norm():
    with torch.device("meta"):
        model = Jones()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.GroupNorm)]
    *pairs, last = layers
    for convolution, norm in zip(pairs[::2], pairs[1::2], strict=True):
        assert convolution.kernel_size == (3, 3) and convolution.bias is None
        assert norm.num_groups == 1 and norm.num_channels == convolution.out_channels
    assert last.kernel_size == (1, 1) and last.bias is not None


def test_attention_has_four_heads():
    with torch.device("meta"):
        model = Jones()
    assert [getattr(model, name).attention.heads for name in ("sa1", "sa2", "sa3")] == [4, 4, 4]


@pytest.mark.parametrize("channels", [64, 7])
def test_time_code_is_equation_11_with_falling_frequencies(channels):
    t = torch.tensor([0, 1, 999, 1999])
    c = torch.arange(channels, dtype=torch.float64)
    angle = t[:, None] / 10000 ** (c / channels)
    expected = torch.stack([angle[:, i].sin() if i % 2 == 0 else angle[:, i].cos() for i in range(channels)], dim=1)
    code = time_code(t, channels)
    assert code.dtype == torch.float32
    torch.testing.assert_close(code.double(), expected, atol=1e-3, rtol=0)


def test_the_time_code_is_added_and_alike_at_every_pixel():
    model, added = Jones(base_channels=4), []
    for name, block in model.named_children():
        if name.startswith(("down", "up")):
            block.condition.register_forward_hook(lambda m, inputs, out: added.append(out - inputs[0]))
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8), 123)
    assert [a.shape[1:] for a in added] == [(8, 4, 4), (16, 2, 2), (16, 1, 1), (8, 2, 2), (4, 4, 4), (4, 8, 8)]
    for a in added:
        code = time_code(torch.tensor([123]), a.shape[1])[:, :, None, None]
        torch.testing.assert_close(a, code.expand(a.shape), atol=1e-5, rtol=0)


def test_a_width_that_four_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="base_channels 5 is not even"):
        Jones(base_channels=5)
