"""The U-Net of the report `das` (CIFAR-10, experiments 1 to 3), as its parameter counts have it.

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
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

TIME_CODE = 64  # sines and cosines, whatever the width: 326,707 parameters at base 8 have no other reading
TIME_EMBEDDING = 256


class Das(ModelMixin, AttentionMixin, ConfigMixin):
    """
    Residual blocks which the time scales and shifts, attention by level, and a skip from each block on the way down to
    its counterpart on the way up. Where the report is silent, as in Ho et al. (2020): SiLU, one head, a skip leaves
    after its block's attention, an activation before the last convolution. With 3 channels and without labels
    30,471,427 parameters, and 326,707 at `base_channels` 8, as the report counts them.

    `sample_size`: the images' side, or height and width; each a multiple of 2 ** (levels - 1), 8 for four levels.
    `out_channels`: as many as `in_channels`, or twice as many where the variance is learned.
    `channel_multipliers`: each level's width, in `base_channels`; level 0 has the images' resolution.
    `attention_levels`: the levels whose last block attends, both ways; the middle always does. The report says 16x16
    alone, level 1; its counts say every level but the first.
    `num_classes`: the labels are 0 to `num_classes` - 1, and `num_classes` is the null class.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        base_channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 2, 2, 2),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (1, 2, 3),
        norm_num_groups: int = 8,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        last = len(widths) - 1
        if not all(0 <= level <= last for level in attention_levels):
            raise ValueError(f"attention_levels {tuple(attention_levels)} are not all among the levels 0 to {last}")

        self.time_embedding = TimestepEmbedding(TIME_CODE, TIME_EMBEDDING)
        self.label_embedding = None if num_classes is None else LabelEmbedding(num_classes, TIME_EMBEDDING)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_levels = nn.ModuleList()
        for level, (above, width) in enumerate(pairwise([widths[0], *widths])):
            inputs = [above] + [width] * (layers_per_block - 1)
            resample = nn.Identity() if level == last else nn.Conv2d(width, width, 4, stride=2, padding=1)
            self.down_levels.append(Level(inputs, width, norm_num_groups, level in attention_levels, resample))
        self.mid_blocks = nn.ModuleList(Block(width, width, norm_num_groups, attends) for attends in (True, False))
        self.up_levels = nn.ModuleList()
        for level, (width, below) in reversed([*enumerate(pairwise([*widths, widths[-1]]))]):
            inputs = [below + width] + [2 * width] * (layers_per_block - 1)  # with the skips
            resample = nn.Identity() if level == 0 else Upsample(width)
            self.up_levels.append(Level(inputs, width, norm_num_groups, level in attention_levels, resample))
        self.norm_out = nn.GroupNorm(norm_num_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 1)
        self.factor = 2**last
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: torch.Tensor,  # (N, C, H, W) float, the noisy images
        timestep: torch.Tensor | float,  # one for all, or (N,); int or float
        class_labels: torch.Tensor | None = None,  # (N,) int in [0, num_classes]; None: the null class
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The prediction, (N, out_channels, H, W)."""
        height, width = sample.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height}x{width}: this Das needs sides that are multiples of {self.factor}")
        if class_labels is not None and self.label_embedding is None:
            raise ValueError("class_labels given to a model without num_classes")
        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep)  # as_tensor, once compiled, would compile again for each number
        t = timestep.to(sample.device).expand(len(sample))  # (N,)
        code = get_timestep_embedding(t, TIME_CODE)  # float32
        embedding = self.time_embedding(code.to(sample.dtype))  # (N, 256)
        if self.label_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((len(sample),), self.label_embedding.num_embeddings, device=sample.device)
            embedding = embedding + self.label_embedding(class_labels)

        x = self.conv_in(sample)
        skips = []
        for level in self.down_levels:
            for block in level.blocks:
                x = self._run(block, x, embedding)
                skips.append(x)
            x = level.resample(x)
        for block in self.mid_blocks:
            x = self._run(block, x, embedding)
        for level in self.up_levels:
            for block in level.blocks:
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), embedding)
            x = level.resample(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def set_default_attn_processor(self) -> None:
        self.set_attn_processor(AttnProcessor())

    def fuse_qkv_projections(self) -> None:
        raise NotImplementedError("Das keeps query, key and value projections apart")


class LabelEmbedding(nn.Embedding):
    """(N,) labels to (N, C); the null class, the id after the last label, adds nothing: a row of zeros."""

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return F.embedding(labels, F.pad(self.weight, (0, 0, 0, 1)))


class Level(nn.Module):
    """The blocks of one resolution, of which the last attends or not, and the way to the next resolution.

    Without a forward of its own: the skips leave and enter between its blocks.
    """

    def __init__(self, inputs: list[int], width: int, norm_num_groups: int, attends: bool, resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(channels, width, norm_num_groups, attends and i == len(inputs) - 1)
            for i, channels in enumerate(inputs)
        )
        self.resample = resample


class Block(nn.Module):
    """(N, in, H, W) and the embedding (N, 256) to (N, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, norm_num_groups: int, attends: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(norm_num_groups, out_channels)
        self.scale_shift = nn.Linear(TIME_EMBEDDING, 2 * out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = nn.Identity()
        if attends:
            self.attention = Attention(
                out_channels, heads=1, dim_head=out_channels, norm_num_groups=norm_num_groups, residual_connection=True
            )

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale_shift(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        h = F.silu(self.norm2(self.conv2(h)))
        return self.attention(h + self.shortcut(x))


class Upsample(nn.Sequential):
    """(N, C, H, W) to (N, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels, 3, padding=1))
