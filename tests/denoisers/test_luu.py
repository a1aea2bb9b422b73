"""Luu against the formulas of its parts and the library's parameter count."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ddpm_hf.denoisers.luu import Attention, Downsample, LinearAttention, Luu, RMSNorm

TINY = {"base_channels": 8, "channel_multipliers": (1, 2, 3), "attention_heads": 2, "attention_head_dim": 4}


def tiny(**settings):
    torch.manual_seed(0)
    return Luu(**{**TINY, **settings}).eval()


def parameters(**settings):
    with FakeTensorMode():
        return sum(parameter.numel() for parameter in Luu(**settings).parameters())


@torch.no_grad()
def predict(model, x, t=7, labels=None):
    return model(x, t, labels).sample


def test_as_many_parameters_as_the_library_s_unet():
    assert parameters() == 35_711_491
    assert parameters(num_classes=10) == 35_711_491 + 10 * 256  # no row for the null class


def test_linear_attention_on_all_levels_but_the_innermost():
    model = tiny()
    assert [type(level.attention) for level in model.down_levels] == [LinearAttention, LinearAttention, Attention]
    assert [type(level.attention) for level in model.up_levels] == [Attention, LinearAttention, LinearAttention]
    assert type(model.mid_level.attention) is Attention


def test_the_innermost_level_is_not_downsampled():
    sizes = []
    model = tiny()
    for level in model.down_levels:
        level.attention.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model.mid_level.attention.register_forward_hook(
        lambda module, inputs, output: sizes.append(tuple(output.shape[1:]))
    )
    predict(model, torch.randn(1, 3, 8, 12))
    assert sizes == [(8, 8, 12), (8, 4, 6), (16, 2, 3), (24, 2, 3)]


def test_downsampling_hands_all_four_pixels_over():
    down = Downsample(1, 4)
    torch.nn.init.dirac_(down[1].weight)
    torch.nn.init.zeros_(down[1].bias)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert down(x)[0, :, 0, 1].tolist() == [2, 3, 6, 7]  # a channel's pixels row by row


def test_rms_norm_follows_its_formula():
    norm = RMSNorm(6)
    torch.nn.init.normal_(norm.gain)
    x = torch.randn(2, 6, 3, 4)
    expected = torch.empty_like(x)
    for n, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        pixel = x[n, :, i, j]
        expected[n, :, i, j] = norm.gain * pixel / pixel.square().mean().sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_of_a_zero_pixel_is_zero_in_half_precision():
    assert (RMSNorm(4).half()(torch.zeros(1, 4, 1, 1, dtype=torch.float16)) == 0).all()


def heads_with_memory(attention, x, n, head):
    """Queries (pixels, d), keys and values (memory + pixels, d) of one head, from the module's weights alone."""
    d = attention.memory_key.shape[2]
    pixels = attention.norm(x)[n].flatten(1).T  # (pixels, C)
    weight = attention.to_qkv.weight[:, :, 0, 0].unflatten(0, (3, attention.heads, d))
    query, key, value = (pixels @ weight[part, head].T for part in range(3))
    key = torch.cat([attention.memory_key[head], key])
    return query, key, torch.cat([attention.memory_value[head], value])


@torch.no_grad()
@pytest.mark.parametrize("kind", [Attention, LinearAttention])
def test_attention_follows_its_formula(kind):
    torch.manual_seed(0)
    attention = kind(6, heads=2, head_dim=5)
    x = torch.randn(2, 6, 3, 4)
    attended = torch.empty(2, 10, 12)
    for n in range(2):
        for head in range(2):
            q, k, v = heads_with_memory(attention, x, n, head)
            for i in range(len(q)):
                if kind is LinearAttention:
                    share = k.exp() / k.exp().sum(dim=0)  # of a key, channel by channel
                    wants = q[i].exp() / q[i].exp().sum() / 5**0.5
                    weights = (share * wants).sum(dim=1)
                else:
                    scores = (k * q[i]).sum(dim=1) / 5**0.5
                    weights = scores.exp() / scores.exp().sum()
                attended[n, head * 5 : head * 5 + 5, i] = (weights[:, None] * v).sum(dim=0)
    expected = x + attention.to_out(attended.unflatten(2, (3, 4)))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("name", ["memory_key", "memory_value"])
@pytest.mark.parametrize("place", ["down_levels.0", "mid_level"])
def test_the_memory_changes_the_output(name, place):
    model = tiny()
    x = torch.randn(1, 3, 8, 8)
    before = predict(model, x)
    model.get_submodule(place).attention.get_parameter(name).data.normal_(std=3)
    assert not torch.allclose(before, predict(model, x), atol=1e-5)


def test_the_time_code_is_sines_then_cosines():
    model = tiny()
    codes = []
    model.time_embedding.register_forward_pre_hook(lambda module, inputs: codes.append(inputs[0]))
    predict(model, torch.randn(1, 3, 4, 4), t=5)
    angles = 5 * 10_000 ** -(torch.arange(4) / 3)
    torch.testing.assert_close(codes[0][0], torch.cat([angles.sin(), angles.cos()]))


def test_the_null_class_adds_no_embedding():
    model = tiny(num_classes=3)
    x = torch.randn(2, 3, 4, 4)
    null = predict(model, x)
    assert torch.equal(null, predict(model, x, labels=torch.tensor([3, 3])))
    assert not torch.allclose(null, predict(model, x, labels=torch.tensor([0, 3])), atol=1e-5)
    model.label_embedding.weight.data.zero_()
    torch.testing.assert_close(null, predict(model, x, labels=torch.tensor([0, 2])))


def test_attention_that_it_cannot_have_is_refused_in_one_line():
    model = tiny()
    assert model.attn_processors == {}
    for refused in (
        lambda: model.set_attn_processor({}),
        model.enable_xformers_memory_efficient_attention,
        model.fuse_qkv_projections,
    ):
        with pytest.raises(NotImplementedError, match=r"^Luu's [^\n]*$"):
            refused()
    model.disable_xformers_memory_efficient_attention()
