"""One image, from whatever a source holds to uint8 pixels of the recipe's size."""

import io
import os

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ddpm_hf.data.base import Example

Picture = Image.Image


class UnreadableImage(Exception):
    """An image that cannot be read: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it survives the way back from a worker process
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def read_image(example: Example, resolution: tuple[int, int], channels: int, crop: str) -> np.ndarray:
    """An example as uint8 (C,H,W), scaled and cropped. Raises `UnreadableImage`."""
    try:
        return resize(to_uint8(example.image, channels), resolution, crop)
    except (
        Exception
    ) as error:  # Pillow's decoders raise nearly everything: OSError, SyntaxError, struct.error, zlib.error, …
        raise UnreadableImage(example.name, _reason(example, error)) from error


def to_uint8(raw: str | bytes | np.ndarray, channels: int) -> Picture:
    """An image of any mode and depth as 8-bit gray (channels 1) or RGB (3), upright, on white where it is transparent.

    raw: path, encoded bytes, or array uint8/uint16 (H,W), (H,W,1) or (H,W,3). Animations give their first frame.
    16-bit gray is scaled by 1/257; floats are taken as 0..1, or as 0..255 if any exceeds 1. Raises what Pillow raises.
    """
    if isinstance(raw, np.ndarray):
        return _to_channels(_from_array(raw), channels)
    with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) as image:
        image.load()  # a truncated file is an error here
        return _to_channels(ImageOps.exif_transpose(image), channels)


def resize(image: Picture, resolution: tuple[int, int], crop: str) -> np.ndarray:
    """Scaled by antialiased bicubic until it just covers the resolution (H,W), then the middle of it, as uint8 (C,H,W).

    With crop "random" the whole of it, (C,h,w) with h >= H and w >= W: the crop is drawn when it is read.
    """
    height, width = resolution
    scale = max(height / image.height, width / image.width)
    h, w = max(height, round(image.height * scale)), max(width, round(image.width * scale))
    if (h, w) != (image.height, image.width):
        if crop == "center":  # only what is kept is computed, from the same neighbours as in the whole
            left, top = (w - width) // 2, (h - height) // 2
            x, y = image.width / w, image.height / h
            box = (left * x, top * y, (left + width) * x, (top + height) * y)
            image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        else:
            image = image.resize((w, h), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return center_crop(pixels, resolution) if crop == "center" else pixels


def center_crop(pixels: np.ndarray, resolution: tuple[int, int]) -> np.ndarray:
    """The middle (C,H,W) of (C,h,w), a view."""
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape[1:], resolution, strict=True))
    return pixels[:, top : top + resolution[0], left : left + resolution[1]]


def _from_array(pixels: np.ndarray) -> Picture:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(_scaled(pixels, 1 / 257) if pixels.dtype == np.uint16 else pixels)


def _to_channels(image: Picture, channels: int) -> Picture:
    image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _to_8_bit(image: Picture) -> Picture:
    """Deep gray scaled to its 8 bits: Pillow's own conversion would clip it at 255."""
    if image.mode.startswith("I"):  # I;16 and its byte orders; I, which holds 16-bit gray in 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values, {values.min()} to {values.max()}, are not 16-bit gray")
        return Image.fromarray(_scaled(values, 1 / 257))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 255):  # so written, NaN fails too
            raise ValueError(f"its values, {values.min()} to {values.max()}, are not within 0 to 1 or 0 to 255")
        return Image.fromarray(_scaled(values, 255 if values.max() <= 1 else 1))
    return image


def _scaled(values: np.ndarray, factor: float) -> np.ndarray:
    return np.round(values * np.float64(factor)).astype(np.uint8)


def _reason(example: Example, error: Exception) -> str:
    """Pillow's reason in one line, without the memory address that it gives for bytes."""
    if isinstance(example.image, np.ndarray):
        return str(error)
    if example.image == b"" or (
        isinstance(example.image, str) and os.path.isfile(example.image) and not os.path.getsize(example.image)
    ):
        return "is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image that Pillow can read"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
