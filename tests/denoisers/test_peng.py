"""Peng against the layer list that the report prints (section 2.4)."""

import pytest
import torch
from torch import nn

from ddpm_hf.denoisers.peng import Peng


def count(**settings):
    with torch.device("meta"):
        return Peng(**settings).num_parameters()


def test_parameters_of_the_printed_layers():
    assert count(num_classes=10) == 1_141_681
    assert count() == 1_140_401


def block(*widths):
    """A printed ConvBlock, given its widths."""
    enters, hidden, leaves = widths
    return [("conv", enters, hidden, 3), ("norm", hidden), ("gelu",), ("conv", hidden, leaves, 3), ("norm", leaves)]


def attention(width):
    feed_forward = [("layer norm", width), ("linear", width, width), ("gelu",), ("linear", width, width)]
    return [("layer norm", width), ("four heads", width), *feed_forward]


PRINTED = {
    "inc": block(1, 32, 32),
    "down1": [("pool",), *block(32, 32, 32), *block(32, 64, 64), ("silu",), ("linear", 128, 64)],
    "sa1": attention(64),
    "down2": [("pool",), *block(64, 64, 64), *block(64, 128, 128), ("silu",), ("linear", 128, 128)],
    "sa2": attention(128),
    "bot1": block(128, 64, 64),
    "up1": [("bilinear",), *block(128, 128, 128), *block(128, 64, 32), ("silu",), ("linear", 128, 32)],
    "sa3": attention(32),
    "up2": [("bilinear",), *block(64, 64, 64), *block(64, 32, 16), ("silu",), ("linear", 128, 16)],
    "sa4": attention(16),
    "outc": [("conv", 16, 1, 1)],
    "label_embedding": [("embedding", 10, 128)],
}


def layers(module):
    """The layers in the report's words, in order."""
    match type(module).__name__:
        case "Conv2d":
            assert module.bias is not None and module.stride == (1, 1)
            return [("conv", module.in_channels, module.out_channels, module.kernel_size[0])]
        case "GroupNorm":
            assert module.num_groups == 1
            return [("norm", module.num_channels)]
        case "GELU":
            assert module.approximate == "none"
            return [("gelu",)]
        case "SiLU":
            return [("silu",)]
        case "MaxPool2d":
            return [("pool",)]
        case "Upsample":
            assert module.scale_factor == 2.0
            return [(module.mode,)]
        case "LayerNorm":
            return [("layer norm", *module.normalized_shape)]
        case "Linear":
            return [("linear", module.in_features, module.out_features)]
        case "LabelEmbedding":
            assert isinstance(module, nn.Embedding)
            return [("embedding", module.num_embeddings, module.embedding_dim)]
        case "Attention":
            projections = [module.to_q, module.to_k, module.to_v, module.to_out[0]]
            assert module.heads == 4 and all(p.bias is not None for p in projections)
            return [("four heads", module.to_q.out_features)]
    return [layer for child in module.children() for layer in layers(child)]


def test_every_printed_layer_is_there_in_order():
    with torch.device("meta"):
        model = Peng(num_classes=10)
    assert {name: layers(child) for name, child in model.named_children()} == PRINTED


def seen_by_the_layers(model, *call):
    seen = []
    handle = model.down1.embedded_layer.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    with torch.no_grad():
        model(*call)
    handle.remove()
    return seen[0]


def test_the_code_is_section_2_2_plus_the_label():
    model = Peng(base_channels=8, num_classes=3)
    t, labels = torch.tensor([0, 7, 399]), torch.tensor([2, 3, 0])
    inv_freq = 1 / 10000 ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    angle = t[:, None] * inv_freq
    expected = torch.cat([angle.sin(), angle.cos()], dim=1)
    expected[0] += model.label_embedding.weight[2].detach()
    expected[2] += model.label_embedding.weight[0].detach()  # and nothing for the null class, 3
    code = seen_by_the_layers(model, torch.randn(3, 1, 8, 8), t, labels)
    torch.testing.assert_close(code.double(), expected, atol=1e-3, rtol=0)


def test_shapes_of_a_28x28_image():
    model, shapes = Peng().eval(), {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        model(torch.randn(1, 1, 28, 28), 10)
    assert [shapes[name] for name in ("inc", "sa1", "sa2", "bot1", "sa3", "sa4", "outc")] == [
        (32, 28, 28), (64, 14, 14), (128, 7, 7), (64, 7, 7), (32, 14, 14), (16, 28, 28), (1, 28, 28),
    ]  # fmt: skip


def test_a_width_that_four_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="base_channels 12 is no multiple of 8"):
        Peng(base_channels=12)
