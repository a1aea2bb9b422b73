"""The U-Net of the report `peng` (sections 2.2 and 2.4, Fashion-MNIST): its printed layer list, name for name.

Stands alone: torch and diffusers only.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


class Peng(ModelMixin, AttentionMixin, ConfigMixin):
    """
    Twice down, twice up, with skips; widths c, 2c, 4c. At c = 32, with 1 channel and 10 labels, 1,141,681 parameters,
    as the printed layers have them.

    `sample_size`: the images' side, or height and width; each a multiple of 4.
    `out_channels`: as many as `in_channels`, or twice as many where the variance is learned.
    `base_channels`: c, a multiple of 8, so that four heads share every attention's channels.
    `time_embed_dim`: even, half of it sines and half of it cosines.
    `num_classes`: the labels are 0 to `num_classes` - 1, and `num_classes` is the null class.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        base_channels: int = 32,
        time_embed_dim: int = 128,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if base_channels % 8:
            raise ValueError(f"base_channels {base_channels} is no multiple of 8: four heads share base_channels / 2")
        c = base_channels
        self.time_embed_dim = time_embed_dim
        self.label_embedding = None if num_classes is None else LabelEmbedding(num_classes, time_embed_dim)
        self.inc = ConvBlock(in_channels, c)
        self.down1 = DownSample(c, 2 * c, time_embed_dim)
        self.sa1 = SelfAttention(2 * c)
        self.down2 = DownSample(2 * c, 4 * c, time_embed_dim)
        self.sa2 = SelfAttention(4 * c)
        self.bot1 = ConvBlock(4 * c, 2 * c)
        self.up1 = UpSample(4 * c, c, time_embed_dim)
        self.sa3 = SelfAttention(c)
        self.up2 = UpSample(2 * c, c // 2, time_embed_dim)
        self.sa4 = SelfAttention(c // 2)
        self.outc = nn.Conv2d(c // 2, out_channels, 1)
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
        if height % 4 or width % 4:
            raise ValueError(f"images of {height}x{width}: Peng halves them twice and needs multiples of 4")
        if class_labels is not None and self.label_embedding is None:
            raise ValueError("class_labels given to a model without num_classes")
        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep)  # as_tensor, once compiled, would compile again for each number
        t = timestep.to(sample.device).expand(len(sample))  # (N,)
        code = get_timestep_embedding(t, self.time_embed_dim, downscale_freq_shift=0)  # section 2.2, float32
        code = code.to(sample.dtype)  # (N, time_embed_dim)
        if self.label_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((len(sample),), self.label_embedding.num_embeddings, device=sample.device)
            code = code + self.label_embedding(class_labels)
        run = self._run

        x1 = run(self.inc, sample)  # (N, c, H, W)
        x2 = run(self.sa1, run(self.down1, x1, code))  # (N, 2c, H/2, W/2)
        x3 = run(self.sa2, run(self.down2, x2, code))  # (N, 4c, H/4, W/4)
        x = run(self.bot1, x3)  # (N, 2c, H/4, W/4)
        x = run(self.sa3, run(self.up1, x, x2, code))  # (N, c, H/2, W/2)
        x = run(self.sa4, run(self.up2, x, x1, code))  # (N, c/2, H, W)
        x = self.outc(x)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def set_default_attn_processor(self) -> None:
        self.set_attn_processor(AttnProcessor())

    def fuse_qkv_projections(self) -> None:
        raise NotImplementedError("Peng keeps query, key and value projections apart")


class LabelEmbedding(nn.Embedding):
    """(N,) labels to (N, C); the null class, the id after the last label, adds nothing: a row of zeros."""

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return F.embedding(labels, F.pad(self.weight, (0, 0, 0, 1)))


class ConvBlock(nn.Sequential):
    """(N, in, H, W) to (N, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int | None = None) -> None:
        hidden_channels = hidden_channels or out_channels
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
            nn.GroupNorm(1, hidden_channels),
            nn.GELU(),
            nn.Conv2d(hidden_channels, out_channels, 3, padding=1),
            nn.GroupNorm(1, out_channels),
        )


class DownSample(nn.Module):
    """(N, in, H, W) and the code (N, T) to (N, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.conv1 = ConvBlock(in_channels, in_channels)
        self.conv2 = ConvBlock(in_channels, out_channels)
        self.embedded_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_embed_dim, out_channels))

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(self.pool(x)))
        return x + self.embedded_layer(code)[:, :, None, None]


class SelfAttention(nn.Module):
    """(N, C, H, W) to the same: four heads over the pixels, then a layer for each pixel; a residual around both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads=4, dim_head=channels // 4, bias=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = x.flatten(2).transpose(1, 2)  # (N, H * W, C)
        pixels = pixels + self.attention(self.norm(pixels))
        pixels = pixels + self.feed_forward(pixels)
        return pixels.transpose(1, 2).reshape(x.shape)


class UpSample(nn.Module):
    """(N, in / 2, H, W), the skip (N, in / 2, 2H, 2W) and the code (N, T) to (N, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2.0, mode="bilinear")
        self.conv1 = ConvBlock(in_channels, in_channels)
        self.conv2 = ConvBlock(in_channels, out_channels, hidden_channels=in_channels // 2)
        self.embedded_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_embed_dim, out_channels))

    def forward(self, x: torch.Tensor, skip: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.upsample(x), skip], dim=1)
        x = self.conv2(self.conv1(x))
        return x + self.embedded_layer(code)[:, :, None, None]
