"""The U-Net of the report `tefiang` (ImageNet-100): section 4.1's, with section 7.3's enhanced attention.

The report names the parts and not their sizes; those are this file's reading:

1. Self- and cross-attention for the condition (4.1): at the levels in `attention_levels` and at the bottleneck each
   pixel attends to all pixels, then to the class, which is a few learned tokens.
2. Global context attention (7.3): at the higher resolutions in `global_context_levels` each pixel attends to the
   level's own features, averaged to a small grid.
3. Cross-resolution attention (7.3): on its way up each level attends to all levels of the way down, averaged to such
   grids.
4. Efficient attention (7.3): no more keys than a few grids have cells where there are many pixels, so that the cost is
   linear in the pixels; scaled_dot_product_attention throughout, which keeps no matrix of weights.

Stands alone: torch and diffusers only.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

CLASS_TOKENS = 4  # keys of the attention to a class; with one alone attention would be constant


class Tefiang(ModelMixin, AttentionMixin, ConfigMixin):
    """
    Residual blocks with the time and the class added, attention after each, and a skip from each block on the way down
    to its counterpart on the way up.

    `sample_size`: the images' side, or height and width; each a multiple of 2 ** (levels - 1), 8 for four levels.
    `out_channels`: as many as `in_channels`, or twice as many where the variance is learned.
    `num_classes`: the labels are 0 to `num_classes` - 1, and `num_classes` is the null class, with tokens of its own.
    `block_out_channels`: each level's width; level 0 has the images' resolution.
    `attention_levels`, `global_context_levels`: levels, any of them; also none.
    `attention_head_dim`: channels of a head; a level with fewer channels has one head.
    `context_grid_size`: the grids of global context and of cross-resolution attention have at most so many cells a side.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 128,
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (2, 3),
        global_context_levels: tuple[int, ...] = (0, 1),
        cross_resolution_attention: bool = True,
        attention_head_dim: int = 64,
        norm_num_groups: int = 32,
        context_grid_size: int = 8,
    ) -> None:
        super().__init__()
        widths = list(block_out_channels)
        last = len(widths) - 1
        time_channels, context_channels = 4 * widths[0], widths[-1]
        for key, levels in (("attention_levels", attention_levels), ("global_context_levels", global_context_levels)):
            if not all(0 <= level <= last for level in levels):
                raise ValueError(f"{key} {tuple(levels)} are not all among the levels 0 to {last}")

        def attention(width: int, **keys: int) -> ResidualAttention:
            return ResidualAttention(width, attention_head_dim, norm_num_groups, **keys)

        def block(inputs: int, width: int, attends: bool, global_context: bool = False) -> Block:
            to_class = attends and num_classes is not None
            return Block(
                ResnetBlock2D(
                    in_channels=inputs, out_channels=width, temb_channels=time_channels, groups=norm_num_groups
                ),
                global_context=attention(width, grid_size=context_grid_size) if global_context else None,
                self_attention=attention(width) if attends else None,
                class_attention=attention(width, context_channels=context_channels) if to_class else None,
            )

        def blocks(inputs: list[int], width: int, level: int) -> nn.ModuleList:
            kinds = level in attention_levels, level in global_context_levels
            return nn.ModuleList(block(channels, width, *kinds) for channels in inputs)

        self.time_embedding = TimestepEmbedding(widths[0], time_channels)
        self.class_embedding = self.class_tokens = None
        if num_classes is not None:  # the last row of each is the null class
            self.class_embedding = nn.Embedding(num_classes + 1, time_channels)
            self.class_tokens = nn.Embedding(num_classes + 1, CLASS_TOKENS * context_channels)

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_levels = nn.ModuleList()
        for level, (above, width) in enumerate(pairwise([widths[0], *widths])):
            inputs = [above] + [width] * (layers_per_block - 1)
            resample = nn.Identity() if level == last else nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down_levels.append(Level(blocks(inputs, width, level), resample))

        self.mid_blocks = nn.ModuleList(block(widths[-1], widths[-1], attends) for attends in (True, False))
        self.resolution_tokens = None
        if cross_resolution_attention:
            self.resolution_tokens = ResolutionTokens(widths, context_channels, context_grid_size)

        self.up_levels = nn.ModuleList()
        for level, (width, below) in reversed([*enumerate(pairwise([*widths, widths[-1]]))]):
            resample = nn.Identity() if level == last else Upsample(below, width)
            across = attention(width, context_channels=context_channels) if cross_resolution_attention else None
            inputs = [2 * width] * layers_per_block  # with the skips
            self.up_levels.append(Level(blocks(inputs, width, level), resample, across))

        self.norm_out = nn.GroupNorm(norm_num_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.factor = 2**last
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: torch.Tensor,  # (N, C, H, W) float, the noisy images or latents
        timestep: torch.Tensor | float,  # one for all, or (N,); int or float
        class_labels: torch.Tensor | None = None,  # (N,) int in [0, num_classes]; None: the null class
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The prediction, (N, out_channels, H, W)."""
        height, width = sample.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"images of {height}x{width}: this Tefiang needs sides that are multiples of {self.factor}"
            )
        if class_labels is not None and self.class_embedding is None:
            raise ValueError("class_labels given to a model without num_classes")
        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep)  # as_tensor, once compiled, would compile again for each number
        t = timestep.to(sample.device).expand(len(sample))  # (N,)
        code = get_timestep_embedding(t, self.config.block_out_channels[0])  # float32
        embedding = self.time_embedding(code.to(sample.dtype))  # (N, T)
        class_tokens = None
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.tensor(self.config.num_classes, device=sample.device)
            class_labels = class_labels.expand(len(sample))
            embedding = embedding + self.class_embedding(class_labels)
            class_tokens = self.class_tokens(class_labels).unflatten(1, (CLASS_TOKENS, -1))  # (N, tokens, context)

        x = self.conv_in(sample)
        skips = []
        features = []  # what each level of the way down ends with
        for level in self.down_levels:
            for block in level.blocks:
                x = self._run(block, x, embedding, class_tokens)
                skips.append(x)
            features.append(x)
            x = level.resample(x)

        for block in self.mid_blocks:
            x = self._run(block, x, embedding, class_tokens)

        context = None if self.resolution_tokens is None else self.resolution_tokens(features)
        for level in self.up_levels:
            x = level.resample(x)
            if level.across is not None:
                x = self._run(level.across, x, context)
            for block in level.blocks:
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), embedding, class_tokens)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def set_default_attn_processor(self) -> None:
        self.set_attn_processor(AttnProcessor())

    def fuse_qkv_projections(self) -> None:
        raise NotImplementedError("Tefiang keeps query, key and value projections apart")


class Level(nn.Module):
    """The blocks of one resolution, the way to or from it, and on the way up the attention across resolutions.

    Without a forward of its own: the skips leave and enter between its blocks.
    """

    def __init__(self, blocks: nn.ModuleList, resample: nn.Module, across: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.resample = resample
        self.across = across


class Block(nn.Module):
    """(N, in, H, W), the embedding (N, T) and the class's tokens to (N, out, H, W)."""

    def __init__(
        self,
        resnet: nn.Module,
        global_context: nn.Module | None,
        self_attention: nn.Module | None,
        class_attention: nn.Module | None,
    ) -> None:
        super().__init__()
        self.resnet = resnet
        self.global_context = global_context
        self.self_attention = self_attention
        self.class_attention = class_attention

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, class_tokens: torch.Tensor | None) -> torch.Tensor:
        x = self.resnet(x, embedding)
        if self.global_context is not None:
            x = self.global_context(x)
        if self.self_attention is not None:
            x = self.self_attention(x)
        if self.class_attention is not None:
            x = self.class_attention(x, class_tokens)
        return x


class ResidualAttention(nn.Module):
    """(N, C, H, W) to the same: each pixel attends, and what it finds is added.

    What to: `context`, tokens (N, M, context_channels), where one is given; without one the pixels themselves, averaged
    to a grid if the module has a `grid_size`. The output projection starts at zero: first a U-Net without attention.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        norm_num_groups: int,
        context_channels: int | None = None,
        grid_size: int | None = None,
    ) -> None:
        super().__init__()
        head_dim = min(head_dim, channels)
        self.grid_size = grid_size
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.attention = Attention(
            channels, cross_attention_dim=context_channels, heads=channels // head_dim, dim_head=head_dim, bias=True
        )
        nn.init.zeros_(self.attention.to_out[0].weight)
        nn.init.zeros_(self.attention.to_out[0].bias)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        h = self.norm(x)
        if self.grid_size is not None:
            context = to_tokens(average_to_grid(h, self.grid_size))
        attended = self.attention(to_tokens(h), encoder_hidden_states=context)  # (N, H * W, C)
        return x + attended.transpose(1, 2).reshape(x.shape)


class ResolutionTokens(nn.Module):
    """Features (N, C, H, W) of all levels to tokens (N, M, context_channels), a grid of them for each level."""

    def __init__(self, widths: list[int], context_channels: int, grid_size: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.projections = nn.ModuleList(nn.Linear(width, context_channels) for width in widths)  # biases tell levels
        self.norm = nn.LayerNorm(context_channels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        tokens = [
            project(to_tokens(average_to_grid(x, self.grid_size)))
            for project, x in zip(self.projections, features, strict=True)
        ]
        return self.norm(torch.cat(tokens, dim=1))


class Upsample(nn.Sequential):
    """(N, in, H, W) to (N, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2.0), nn.Conv2d(in_channels, out_channels, 3, padding=1))


def average_to_grid(x: torch.Tensor, size: int) -> torch.Tensor:
    """(N, C, H, W) to (N, C, at most size, at most size): means of equal cells, the last ones cut off by the edge."""
    cell = [-(-side // size) for side in x.shape[2:]]
    return F.avg_pool2d(x, cell, ceil_mode=True, count_include_pad=False)


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, H * W, C)."""
    return x.flatten(2).transpose(1, 2)
