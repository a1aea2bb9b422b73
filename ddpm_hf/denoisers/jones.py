"""The U-Net of the report `jones` (section 3.2, CIFAR-10), whose time code is added, not learned.

Stands alone: torch and diffusers only.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


class Jones(ModelMixin, AttentionMixin, ConfigMixin):
    """
    Three times down, three times up, with skips; widths c, 2c, 4c, 4c. At c = 64, with 3 channels and without labels,
    12,920,323 parameters, as the report counts them. Since the first convolution is normalised over all channels and
    pixels, what it predicts does not depend on the scale of x_t: too little for images of few pixels.

    `sample_size`: the images' side, or height and width; each a multiple of 8.
    `out_channels`: as many as `in_channels`, or twice as many where the variance is learned.
    `base_channels`: c, even, so that four heads share every attention's channels.
    `num_classes`: the labels are 0 to `num_classes` - 1, and `num_classes` is the null class.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        base_channels: int = 64,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if base_channels % 2:
            raise ValueError(f"base_channels {base_channels} is not even: four heads share 2 * base_channels")
        c = base_channels
        self.inc = DoubleConv(in_channels, c)
        self.down1 = Down(c, 2 * c, num_classes)
        self.down2 = Down(2 * c, 4 * c, num_classes)
        self.sa1 = SelfAttention(4 * c)
        self.down3 = Down(4 * c, 4 * c, num_classes)
        self.sa2 = SelfAttention(4 * c)
        self.up1 = Up(8 * c, 2 * c, num_classes)
        self.sa3 = SelfAttention(2 * c)
        self.up2 = Up(4 * c, c, num_classes)
        self.up3 = Up(2 * c, c, num_classes)
        self.outc = nn.Conv2d(c, out_channels, 1)
        self.num_classes = num_classes
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
        if height % 8 or width % 8:
            raise ValueError(f"images of {height}x{width}: Jones halves them three times and needs multiples of 8")
        if class_labels is not None and self.num_classes is None:
            raise ValueError("class_labels given to a model without num_classes")
        if class_labels is None and self.num_classes is not None:
            class_labels = torch.full((len(sample),), self.num_classes, device=sample.device)
        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep)  # as_tensor, once compiled, would compile again for each number
        t = timestep.to(sample.device).expand(len(sample))  # (N,)
        run = self._run

        x1 = run(self.inc, sample)  # (N, c, H, W)
        x2 = run(self.down1, x1, t, class_labels)  # (N, 2c, H/2, W/2)
        x3 = run(self.sa1, run(self.down2, x2, t, class_labels))  # (N, 4c, H/4, W/4)
        x4 = run(self.sa2, run(self.down3, x3, t, class_labels))  # (N, 4c, H/8, W/8)
        x = run(self.sa3, run(self.up1, x4, x3, t, class_labels))  # (N, 2c, H/4, W/4)
        x = run(self.up2, x, x2, t, class_labels)  # (N, c, H/2, W/2)
        x = run(self.up3, x, x1, t, class_labels)  # (N, c, H, W)
        x = self.outc(x)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def set_default_attn_processor(self) -> None:
        self.set_attn_processor(AttnProcessor())

    def fuse_qkv_projections(self) -> None:
        raise NotImplementedError("Jones keeps query, key and value projections apart")


class DoubleConv(nn.Sequential):
    """(N, in, H, W) to (N, out, H, W). The report's words keep the input's width between the two convolutions, its
    number of parameters the output's."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int | None = None) -> None:
        hidden_channels = hidden_channels or out_channels
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, hidden_channels),
            nn.GELU(),
            nn.Conv2d(hidden_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, out_channels),
        )


class Down(nn.Module):
    """(N, in, H, W) to (N, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.conv1 = DoubleConv(in_channels, in_channels)
        self.conv2 = DoubleConv(in_channels, out_channels)
        self.condition = Condition(out_channels, num_classes)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        x = self.conv2(self.conv1(self.pool(x)))
        return self.condition(x, t, labels)


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


class Up(nn.Module):
    """(N, in / 2, H, W) and the skip (N, in / 2, 2H, 2W) to (N, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2.0, mode="bilinear")
        self.conv1 = DoubleConv(in_channels, in_channels)
        self.conv2 = DoubleConv(in_channels, out_channels, hidden_channels=in_channels // 2)
        self.condition = Condition(out_channels, num_classes)

    def forward(
        self, x: torch.Tensor, skip: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        x = torch.cat([self.upsample(x), skip], dim=1)
        x = self.conv2(self.conv1(x))
        return self.condition(x, t, labels)


class Condition(nn.Module):
    """Adds the time code to every pixel of (N, C, H, W), and an embedding of the label where the model has labels:
    one a place, as the code, which is not learned, has no room for it."""

    def __init__(self, channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.label_embedding = None if num_classes is None else LabelEmbedding(num_classes, channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        x = x + time_code(t, x.shape[1]).to(x.dtype)[:, :, None, None]
        if self.label_embedding is not None:
            x = x + self.label_embedding(labels)[:, :, None, None]
        return x


class LabelEmbedding(nn.Embedding):
    """(N,) labels to (N, C); the null class, the id after the last label, adds nothing: a row of zeros."""

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return F.embedding(labels, F.pad(self.weight, (0, 0, 0, 1)))


def time_code(t: torch.Tensor, channels: int) -> torch.Tensor:
    """
    Equation 11, float32 (N, C): channel c is the sine, if c is even, or the cosine, if c is odd, of t * 10000^(-c / C).

    The exponent is printed without its sign. Frequencies up to 10000 would leave noise of neighbouring steps, where the
    report has low frequencies tell the coarse course of time.
    """
    c = torch.arange(channels, device=t.device)
    angle = t.float()[:, None] * 10000.0 ** (-c / channels)
    return torch.where(c % 2 == 0, angle.sin(), angle.cos())
