"""Das against the report's counts and words."""

import pytest
import torch
import torch.nn.functional as F

from ddpm_hf.denoisers.das import Block, Das


def meta(**settings):
    with torch.device("meta"):
        return Das(**settings)


@pytest.mark.parametrize(("base_channels", "parameters"), [(128, 30_471_427), (8, 326_707), (16, 791_651)])
def test_parameters_as_the_report_counts_them(base_channels, parameters):
    assert meta(base_channels=base_channels).num_parameters() == parameters


def test_labels_cost_one_embedding():
    assert meta(base_channels=8, num_classes=10).num_parameters() - 326_707 == 10 * 256


def attending(model):
    return [name.removesuffix(".attention.processor") for name in model.attn_processors]


def test_every_level_but_the_first_attends_after_its_last_block_both_ways():
    assert attending(meta(base_channels=8)) == [
        "down_levels.1.blocks.1",
        "down_levels.2.blocks.1",
        "down_levels.3.blocks.1",
        "mid_blocks.0",
        "up_levels.0.blocks.1",
        "up_levels.1.blocks.1",
        "up_levels.2.blocks.1",
    ]


def test_the_place_of_attention_is_a_setting():
    assert attending(meta(base_channels=8, attention_levels=())) == ["mid_blocks.0"]
    model = Das(base_channels=8, attention_levels=(1,))
    assert attending(model) == ["down_levels.1.blocks.1", "mid_blocks.0", "up_levels.2.blocks.1"]
    maps = []
    model.down_levels[1].blocks[1].attention.register_forward_hook(lambda m, i, out: maps.append(out.shape[2:]))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32), 1)
    assert maps == [(16, 16)]  # the report's 16x16
    with pytest.raises(ValueError, match=r"attention_levels \(4,\) are not all among the levels 0 to 3"):
        Das(base_channels=8, attention_levels=(4,))


def test_attention_is_a_norm_projections_without_bias_and_an_output_with_one():
    attention = meta(base_channels=8).mid_blocks[0].attention
    assert [name for name, _ in attention.named_parameters()] == [
        "group_norm.weight", "group_norm.bias", "to_q.weight", "to_k.weight", "to_v.weight",
        "to_out.0.weight", "to_out.0.bias",
    ]  # fmt: skip
    assert attention.heads == 1 and attention.residual_connection and attention.group_norm.num_groups == 8


def test_each_block_on_the_way_up_receives_its_counterparts_output():
    model, down, up = Das(base_channels=8).eval(), [], []
    for level in model.down_levels:
        for block in level.blocks:
            block.register_forward_hook(lambda m, inputs, out: down.append(out))
    for level in model.up_levels:
        for block in level.blocks:
            block.register_forward_hook(lambda m, inputs, out: up.append(inputs[0]))
    with torch.no_grad():
        model(torch.randn(1, 3, 16, 16), 1)
    assert [tuple(x.shape[1:]) for x in down] == [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2 + [(16, 4, 4)] * 2 + [
        (16, 2, 2)
    ] * 2
    for skip, joined in zip(reversed(down), up, strict=True):
        assert torch.equal(joined[:, -skip.shape[1] :], skip)


def test_a_block_is_convolution_norm_activation_twice_scaled_and_shifted_by_the_time():
    block = Block(4, 8, norm_num_groups=2, attends=False)
    x, embedding = torch.randn(2, 4, 5, 5), torch.randn(2, 256)
    scale, shift = (F.silu(embedding) @ block.scale_shift.weight.T + block.scale_shift.bias).split(8, dim=1)
    h = F.group_norm(block.conv1(x), 2, block.norm1.weight, block.norm1.bias)
    h = F.silu(h * (scale[..., None, None] + 1) + shift[..., None, None])
    h = F.silu(F.group_norm(block.conv2(h), 2, block.norm2.weight, block.norm2.bias))
    torch.testing.assert_close(block(x, embedding), h + block.shortcut(x))
    assert block.shortcut.kernel_size == (1, 1)
    assert isinstance(Block(8, 8, 2, attends=False).shortcut, torch.nn.Identity)


def test_levels_and_layers_are_settings():
    model = Das(base_channels=8, channel_multipliers=(1, 3), layers_per_block=1, attention_levels=(0,))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 6, 10), 1).sample.shape == (1, 3, 6, 10)
