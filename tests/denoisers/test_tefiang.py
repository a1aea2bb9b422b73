"""Tefiang against sections 4.1 and 7.3 of the report: what attends to what, and what that costs."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from ddpm_hf.denoisers.tefiang import CLASS_TOKENS, ResidualAttention, ResolutionTokens, Tefiang, average_to_grid

TINY = {
    "block_out_channels": (8, 12, 16),
    "layers_per_block": 1,
    "attention_levels": (2,),
    "global_context_levels": (0, 1),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "context_grid_size": 2,
}


def tiny(**settings):
    """Random weights throughout: fresh ones start attention at zero."""
    torch.manual_seed(0)
    model = Tefiang(**{**TINY, **settings}).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def parameters(**settings):
    with FakeTensorMode():
        return Tefiang(**settings).num_parameters()


@torch.no_grad()
def predict(model, x, t=7, labels=None):
    return model(x, t, labels).sample


def test_parameters():
    assert parameters() == 63_519_107
    assert parameters(num_classes=100) == 70_614_915
    assert parameters(in_channels=4, out_channels=4, num_classes=100) == 70_617_220
    assert parameters(cross_resolution_attention=False, global_context_levels=()) == 59_600_515


def test_a_class_costs_one_embedding_and_its_tokens():
    costs = parameters(num_classes=11) - parameters(num_classes=10)
    assert costs == 512 + CLASS_TOKENS * 512


def test_what_attends_where():
    model = tiny(num_classes=3)
    names = [name.removesuffix(".attention.processor") for name in model.attn_processors]
    grids = [name for name in names if model.get_submodule(name).grid_size is not None]
    assert grids == [f"{way}_levels.{level}.blocks.0.global_context" for way, level in (("down", 0), ("down", 1), ("up", 1), ("up", 2))]  # fmt: skip
    assert [name for name in names if name.endswith("class_attention")] == [
        "down_levels.2.blocks.0.class_attention",
        "mid_blocks.0.class_attention",
        "up_levels.0.blocks.0.class_attention",
    ]
    assert [name for name in names if name.endswith("across")] == [f"up_levels.{level}.across" for level in range(3)]


def test_a_model_without_classes_attends_to_none():
    assert not any("class_attention" in name or "class_" in name for name in tiny().state_dict())


def test_levels_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"global_context_levels \(3,\) are not all among the levels 0 to 2"):
        tiny(global_context_levels=(3,))


def test_the_grid_s_cells_are_means_also_at_an_edge_that_cuts_them():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert average_to_grid(x, 2)[0, 0].tolist() == [[2.5, 4.5], [8.5, 10.5]]
    assert torch.equal(average_to_grid(x, 8), x)


@torch.no_grad()
def test_global_context_attention_is_attention_to_the_grid_of_means():
    torch.manual_seed(0)
    module = ResidualAttention(8, head_dim=4, norm_num_groups=2, grid_size=2)
    attention = module.attention
    torch.nn.init.normal_(attention.to_out[0].weight)
    x = torch.randn(1, 8, 4, 6)

    h = F.group_norm(x, 2)
    cells = [h[0, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean(dim=(1, 2)) for i in range(2) for j in range(2)]
    keys, values = (torch.stack([project(cell) for cell in cells]) for project in (attention.to_k, attention.to_v))
    expected = x.clone()
    for i in range(4):
        for j in range(6):
            query = attention.to_q(h[0, :, i, j])
            found = []
            for head in (slice(0, 4), slice(4, 8)):
                weights = (keys[:, head] @ query[head] / 4**0.5).softmax(dim=0)
                found.append(weights @ values[:, head])
            expected[0, :, i, j] += attention.to_out[0](torch.cat(found))
    torch.testing.assert_close(module(x), expected)


def test_attention_starts_as_the_identity():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ResidualAttention(8, 4, 2, grid_size=2)(x), x)
    fresh = Tefiang(**TINY)
    fresh(torch.randn(1, 3, 8, 8), 1).sample.sum().backward()
    assert all(level.across.attention.to_out[0].weight.grad.any() for level in fresh.up_levels)  # but it learns


@torch.no_grad()
def test_one_corner_of_a_level_reaches_the_opposite_corner_of_another():
    tokens = ResolutionTokens([8, 12], 16, grid_size=2)
    across = ResidualAttention(12, 4, 4, context_channels=16)
    torch.nn.init.normal_(across.attention.to_out[0].weight)
    fine, coarse = torch.randn(1, 8, 16, 16), torch.randn(1, 12, 8, 8)
    x = torch.randn(1, 12, 8, 8)  # of the way up
    before = across(x, tokens([fine, coarse]))
    fine[:, :, 0, 0] += 5
    after = across(x, tokens([fine, coarse]))
    assert (before - after)[:, :, -1, -1].abs().max() > 1e-3


def test_cross_resolution_attention_sees_every_level_of_the_way_down():
    model = tiny()
    contexts = []
    model.up_levels[2].across.register_forward_pre_hook(lambda module, inputs: contexts.append(inputs[1]))
    predict(model, torch.randn(1, 3, 16, 16))
    assert contexts[0].shape == (1, 3 * 2 * 2, 16)
    for level in model.down_levels:
        hook = level.blocks[-1].register_forward_hook(lambda module, inputs, output: output + 1)
        predict(model, torch.randn(1, 3, 16, 16))
        hook.remove()
    assert all(not torch.allclose(contexts[0], other) for other in contexts[1:])


def test_the_class_reaches_the_output_by_attention_alone():
    model = tiny(num_classes=3)
    model.class_embedding.weight.data.zero_()  # nothing added to the time
    x = torch.randn(1, 3, 8, 8)
    outputs = [predict(model, x, labels=torch.tensor([label])) for label in range(4)]
    assert all(not torch.allclose(outputs[0], other, atol=1e-4) for other in outputs[1:])
    assert torch.equal(outputs[3], predict(model, x))  # the null class


def test_the_class_is_added_to_the_time_too():
    model = tiny(num_classes=3)
    model.class_tokens.weight.data.zero_()
    x = torch.randn(1, 3, 8, 8)
    one, other = (predict(model, x, labels=torch.tensor([label])) for label in (0, 1))
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_tokens_of_a_class_are_weighed_by_what_a_pixel_shows():
    attention = tiny(num_classes=3).mid_blocks[0].class_attention
    x, tokens = torch.randn(1, 16, 2, 2), torch.randn(1, CLASS_TOKENS, 16)
    added = attention(x, tokens) - x
    assert not torch.allclose(added[..., 0, 0], added[..., 1, 1], atol=1e-3)


@pytest.mark.parametrize("side", [16, 32])
def test_no_more_keys_than_grids_have_cells_where_there_are_many_pixels(side, monkeypatch):
    calls = []
    attend = F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        calls.append((query.shape[2], key.shape[2]))
        return attend(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    predict(tiny(num_classes=3), torch.randn(1, 3, side, side))
    inner = (side // 4) ** 2  # the level with full attention
    assert {keys for queries, keys in calls if queries > inner} == {4, 12}  # a grid; one of each level
    assert {keys for queries, keys in calls if queries == inner} == {inner, CLASS_TOKENS, 12}


def test_latents_of_four_channels():
    model = tiny(sample_size=16, in_channels=4, out_channels=8, num_classes=2, context_grid_size=8)
    assert predict(model, torch.randn(2, 4, 16, 16), labels=torch.tensor([0, 2])).shape == (2, 8, 16, 16)
