"""The U-Net of the report `luu` (CIFAR-10, section 2.1): base dimension 64, dimensional multipliers 1, 2, 4, 8.

The report names its classes after the library denoising-diffusion-pytorch; this computes what that library's
`Unet(dim=64, dim_mults=(1, 2, 4, 8))` computes.

Stands alone: torch and diffusers only.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

MEMORY_LENGTH = 4  # learned keys, and values, of each attention


class Luu(ModelMixin, ConfigMixin):
    """
    At each level two residual blocks, the second followed by attention, and a skip from each of the two to its
    counterpart on the way up. Attention is linear, but full at the innermost level and in the middle. With 3 channels
    and without labels 35,711,491 parameters.

    `sample_size`: the images' side, or height and width; each a multiple of 2 ** (levels - 1), 8 for four levels.
    `out_channels`: as many as `in_channels`, or twice as many where the variance is learned.
    `num_classes`: the labels are 0 to `num_classes` - 1, and `num_classes` is the null class.
    `channel_multipliers`: width of what each level hands inwards, in `base_channels`; level 0 has the images'
    resolution.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int | None = None,
        base_channels: int = 64,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 8),
        attention_heads: int = 4,
        attention_head_dim: int = 32,
    ) -> None:
        super().__init__()
        widths = [base_channels, *(base_channels * multiplier for multiplier in channel_multipliers)]
        time_channels = 4 * base_channels
        last = len(channel_multipliers) - 1

        def block(inputs: int, width: int) -> ResidualBlock:
            return ResidualBlock(inputs, width, time_channels)

        def attention(level: int, width: int) -> Attention:
            kind = Attention if level == last else LinearAttention
            return kind(width, attention_heads, attention_head_dim)

        self.time_embedding = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.GELU(), nn.Linear(time_channels, time_channels)
        )
        self.label_embedding = None if num_classes is None else LabelEmbedding(num_classes, time_channels)
        self.conv_in = nn.Conv2d(in_channels, base_channels, 7, padding=3)
        self.down_levels = nn.ModuleList()
        for level, (width, inner) in enumerate(pairwise(widths)):
            # the innermost level hands over its own resolution
            resample = nn.Conv2d(width, inner, 3, padding=1) if level == last else Downsample(width, inner)
            blocks = block(width, width), block(width, width)
            self.down_levels.append(Level(*blocks, attention(level, width), resample))
        blocks = block(widths[-1], widths[-1]), block(widths[-1], widths[-1])
        self.mid_level = Level(*blocks, attention(last, widths[-1]))
        self.up_levels = nn.ModuleList()
        for level, (outer, width) in reversed([*enumerate(pairwise(widths))]):
            resample = nn.Conv2d(width, outer, 3, padding=1) if level == 0 else Upsample(width, outer)
            blocks = block(width + outer, width), block(width + outer, width)  # with the skips
            self.up_levels.append(Level(*blocks, attention(level, width), resample))
        self.block_out = block(2 * base_channels, base_channels)  # with the first convolution's output
        self.conv_out = nn.Conv2d(base_channels, out_channels, 1)
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
            raise ValueError(f"images of {height}x{width}: this Luu needs sides that are multiples of {self.factor}")
        if class_labels is not None and self.label_embedding is None:
            raise ValueError("class_labels given to a model without num_classes")
        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep)  # as_tensor, once compiled, would compile again for each number
        t = timestep.to(sample.device).expand(len(sample))  # (N,)
        code = get_timestep_embedding(t, self.config.base_channels, downscale_freq_shift=1)  # sines, cosines; float32
        embedding = self.time_embedding(code.to(sample.dtype))  # (N, 4 base_channels)
        if class_labels is not None:
            embedding = embedding + self.label_embedding(class_labels)

        x = self.conv_in(sample)
        skips = [x]
        for level in self.down_levels:
            x = self._run(level.block1, x, embedding)
            skips.append(x)
            x = self._run(level.block2, x, embedding)
            x = self._run(level.attention, x)
            skips.append(x)
            x = level.resample(x)
        x = self._run(self.mid_level.block1, x, embedding)
        x = self._run(self.mid_level.attention, x)
        x = self._run(self.mid_level.block2, x, embedding)
        for level in self.up_levels:
            x = self._run(level.block1, torch.cat([x, skips.pop()], dim=1), embedding)
            x = self._run(level.block2, torch.cat([x, skips.pop()], dim=1), embedding)
            x = self._run(level.attention, x)
            x = level.resample(x)
        x = self._run(self.block_out, torch.cat([x, skips.pop()], dim=1), embedding)
        x = self.conv_out(x)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    @property
    def attn_processors(self) -> dict:
        return {}

    def set_attn_processor(self, processor: object) -> None:
        raise NotImplementedError("Luu's attention has a learned memory, which no attention processor computes")

    def set_default_attn_processor(self) -> None:
        """There is nothing to set back."""

    def fuse_qkv_projections(self) -> None:
        raise NotImplementedError("Luu's query, key and value projections are one layer already")

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: object = None) -> None:
        if valid:
            raise NotImplementedError("Luu's attention has a learned memory, which xFormers does not compute")


class LabelEmbedding(nn.Embedding):
    """(N,) labels to (N, C); the null class, the id after the last label, adds nothing: a row of zeros."""

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return F.embedding(labels, F.pad(self.weight, (0, 0, 0, 1)))


class Level(nn.Module):
    """The parts of one resolution, and the way to the next. Without a forward of its own, for the skips' sake."""

    def __init__(
        self, block1: nn.Module, block2: nn.Module, attention: nn.Module, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.block1 = block1
        self.block2 = block2
        self.attention = attention
        self.resample = resample


class RMSNorm(nn.Module):
    """Each pixel's C channels over their root mean square, times a learned gain: g sqrt(C) x / |x|."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, C, H, W)
        unit = F.normalize(x.float(), dim=1)  # float32: in float16 its guard against 0 / 0 would be 0
        return (unit * self.gain[:, None, None] * x.shape[1] ** 0.5).to(x.dtype)


class ResidualBlock(nn.Module):
    """(N, in, H, W) and the embedding (N, T) to (N, out, H, W): two convolutions, between which the embedding gives a
    scale and a shift."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int) -> None:
        super().__init__()
        self.to_scale_shift = nn.Linear(time_channels, 2 * out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = RMSNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = RMSNorm(out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.to_scale_shift(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        h = F.silu(self.norm2(self.conv2(h)))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """(N, C, H, W) to the same, residual: each pixel attends to all of them, and to a learned memory."""

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.memory_key = nn.Parameter(torch.randn(heads, MEMORY_LENGTH, head_dim))
        self.memory_value = nn.Parameter(torch.randn(heads, MEMORY_LENGTH, head_dim))
        self.to_out = nn.Conv2d(heads * head_dim, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(n, 3, self.heads, -1, height * width)
        query, key, value = qkv.transpose(3, 4).unbind(1)  # each (N, heads, H * W, head_dim)
        key = torch.cat([self.memory_key.to(key.dtype).expand(n, -1, -1, -1), key], dim=2)
        value = torch.cat([self.memory_value.to(value.dtype).expand(n, -1, -1, -1), value], dim=2)
        attended = self.attend(query, key, value)  # (N, heads, H * W, head_dim)
        return x + self.to_out(attended.transpose(2, 3).reshape(n, -1, height, width))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class LinearAttention(Attention):
    """Attention in time linear in the pixels: softmax(Q) (softmax(K)^T V) / sqrt(head_dim), queries normalised over
    their channels and keys over the pixels (Shen et al. 2021, Efficient Attention), with a norm after it."""

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__(channels, heads, head_dim)
        self.to_out = nn.Sequential(self.to_out, RMSNorm(channels))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        context = key.softmax(dim=2).transpose(2, 3) @ value  # (N, heads, head_dim, head_dim)
        return query.softmax(dim=3) * query.shape[3] ** -0.5 @ context


class Downsample(nn.Sequential):
    """(N, in, H, W) to (N, out, H/2, W/2): four pixels become the channels of one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, out_channels, 1))


class Upsample(nn.Sequential):
    """(N, in, H, W) to (N, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2.0), nn.Conv2d(in_channels, out_channels, 3, padding=1))
