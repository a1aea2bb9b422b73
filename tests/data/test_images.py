import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.data.base import Example
from ddpm_hf.data.images import UnreadableImage, read_image, resize, to_uint8


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def one_pixel(raw, channels=3):
    """The value of an image's first pixel."""
    value = np.asarray(to_uint8(raw, channels))[0, 0]
    return value.tolist()


def flat(mode, colour, size=(4, 4)):
    return Image.new(mode, size, colour)


# ---- every mode against a known answer ---------------------------------------------------------------------

PALETTE = Image.new("P", (4, 4), 1)
PALETTE.putpalette([0, 0, 0, 10, 20, 30])
DEEP = np.full((4, 4), 25_700, np.uint16)  # 100 * 257
WHITE_AND_RED = (255, 127, 127)  # half of red over white


@pytest.mark.parametrize(
    ("raw", "rgb"),
    [
        (encoded(flat("RGB", (10, 20, 30)), "PNG"), (10, 20, 30)),
        (encoded(flat("L", 77), "PNG"), (77, 77, 77)),
        (encoded(flat("1", 1), "PNG"), (255, 255, 255)),
        (encoded(PALETTE, "PNG"), (10, 20, 30)),
        (encoded(PALETTE, "PNG", transparency=1), (255, 255, 255)),
        (encoded(PALETTE, "PNG", transparency=bytes([255, 0])), (255, 255, 255)),
        (encoded(PALETTE, "GIF"), (10, 20, 30)),
        (encoded(flat("RGBA", (255, 0, 0, 128)), "PNG"), WHITE_AND_RED),
        (encoded(flat("RGBA", (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encoded(flat("RGBA", (255, 0, 0, 128)), "TIFF"), WHITE_AND_RED),
        (encoded(flat("LA", (0, 128)), "PNG"), (127, 127, 127)),
        (encoded(flat("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)), (255, 255, 255)),
        (encoded(Image.fromarray(DEEP), "PNG"), (100, 100, 100)),
        (encoded(Image.fromarray(DEEP), "TIFF"), (100, 100, 100)),
        (encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), (100, 100, 100)),
        (b"P5 1 1 65535\n" + struct.pack(">H", 25_700), (100, 100, 100)),
        (encoded(Image.fromarray(np.full((4, 4), 0.4, np.float32)), "TIFF"), (102, 102, 102)),
        (encoded(Image.fromarray(np.full((4, 4), 102, np.float32)), "TIFF"), (102, 102, 102)),
        (encoded(flat("CMYK", (0, 255, 0, 0)), "TIFF"), (255, 0, 255)),
        (encoded(flat("CMYK", (255, 255, 0, 0)), "JPEG", quality=100), (0, 0, 255)),
        (encoded(flat("YCbCr", (76, 85, 255)), "JPEG", quality=100), (254, 0, 0)),
        (encoded(flat("LAB", (255, 128, 128)), "TIFF"), (255, 255, 255)),
        (np.full((4, 4), 77, np.uint8), (77, 77, 77)),
        (np.full((4, 4, 1), 77, np.uint8), (77, 77, 77)),
        (np.full((4, 4, 3), (10, 20, 30), np.uint8), (10, 20, 30)),
        (DEEP, (100, 100, 100)),
    ],
)
def test_every_mode(raw, rgb):
    np.testing.assert_allclose(one_pixel(raw), rgb, atol=1)
    gray = round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])
    assert one_pixel(raw, channels=1) == pytest.approx(gray, abs=2)


def test_16_bit_gray_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(
        np.asarray(to_uint8(encoded(Image.fromarray(ramp), "PNG"), 1)).ravel(), np.arange(256)
    )


def test_orientation_from_the_camera_is_applied():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to be upright
    upright = np.asarray(to_uint8(encoded(image, "PNG", exif=exif), 1))
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(image), -1))


def test_an_animation_gives_its_first_frame():
    frames = [flat("L", value) for value in (50, 100, 150)]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert one_pixel(raw, channels=1) == 50


# ---- resizing ----------------------------------------------------------------------------------------------


def test_shrinking_averages_over_the_area():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # taking every eighth pixel would give all black
    small = resize(Image.fromarray(stripes), (8, 8), "center")
    assert small.shape == (1, 8, 8) and small.dtype == np.uint8
    assert abs(small[:, :, 1:-1].astype(int) - 127).max() <= 2


def test_a_linear_ramp_stays_linear():
    ramp = np.tile(np.arange(128, dtype=np.uint8) * 2, (128, 1))
    small = resize(Image.fromarray(ramp), (32, 32), "center")[0, 16]
    np.testing.assert_allclose(small[2:-2], (np.arange(32) * 8 + 3)[2:-2], atol=1)  # mean of each four: 8i + 3


@pytest.mark.parametrize("shape", [(300, 517), (517, 300), (40, 41), (9, 31), (64, 48), (1, 700)])
def test_center_crop_equals_the_middle_of_the_whole(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    whole = resize(image, (64, 48), "random")
    h, w = whole.shape[1:]
    assert h >= 64 and w >= 48 and (h == 64 or w == 48)
    top, left = (h - 64) // 2, (w - 48) // 2
    middle = whole[:, top : top + 64, left : left + 48].astype(int)
    center = resize(image, (64, 48), "center")
    assert center.shape == (3, 64, 48) and abs(center - middle).max() <= 1


def test_an_image_of_the_right_size_is_untouched(digits):
    np.testing.assert_array_equal(resize(Image.fromarray(digits[0][0]), (8, 8), "center")[0], digits[0][0])


def test_photographs_as_torchvision_shows_them(photographs):
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(64, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(64)])
    for photograph in photographs:
        ours = resize(image := to_uint8(photograph, 3), (64, 64), "center")
        difference = abs(ours.astype(int) - np.asarray(transform(image)).transpose(2, 0, 1))
        assert np.median(difference) <= 3  # it may round the longer side and the crop the other way


# ---- bad files ---------------------------------------------------------------------------------------------


def png_with_a_corrupted_chunk() -> bytes:
    raw = bytearray(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)), "PNG"))
    raw[raw.index(b"IDAT") + 200] ^= 0xFF
    return bytes(raw)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def png_with_a_bad_palette() -> bytes:
    raw = bytearray(encoded(PALETTE, "PNG"))
    raw[raw.index(b"PLTE") + 5] ^= 0xFF
    return bytes(raw)


def truncated_jpeg() -> bytes:
    raw = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    return raw[: len(raw) // 2]


BAD = {
    "truncated.jpg": (truncated_jpeg(), "image file is truncated"),
    "empty.png": (b"", "is empty"),
    "text.png": (b"not an image, but some words", "is not an image that Pillow can read"),
    "archive.png": (b"PK\x03\x04" + b"\0" * 100, "is not an image that Pillow can read"),
    "header.png": (b"\x89PNG\r\n\x1a\n", "is not an image that Pillow can read"),
    "corrupted.png": (png_with_a_corrupted_chunk(), "broken data stream"),
    "zero.png": (png_of_size(0, 4), "is not an image that Pillow can read"),
    "bomb.png": (png_of_size(60_000, 60_000), "could be decompression bomb"),
    "palette.png": (png_with_a_bad_palette(), "is not an image that Pillow can read"),
    "cut.tif": (encoded(flat("RGB", (1, 2, 3), (64, 64)), "TIFF")[:200], "image file is truncated"),
    "cut.gif": (encoded(PALETTE, "GIF")[:20], "is not an image that Pillow can read"),
    "range.tif": (
        encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"),
        "70000 to 70000, are not 16-bit gray",
    ),
    "nan.tif": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "nan to nan, are not within"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_bad_file_is_named_with_its_reason(tmp_path, name, as_file):
    raw, reason = BAD[name]
    (tmp_path / name).write_bytes(raw)
    example = Example(str(tmp_path / name) if as_file else raw, 0, name)
    with warnings.catch_warnings(), pytest.raises(UnreadableImage) as error:
        warnings.simplefilter("ignore")
        read_image(example, (8, 8), 3, "center")
    assert error.value.name == name and reason in error.value.reason and error.value.reason
    assert "\n" not in str(error.value) and "BytesIO" not in str(error.value)


def test_a_file_that_is_gone():
    with pytest.raises(UnreadableImage, match="gone: no such file"):
        read_image(Example("/gone.png", None, "gone"), (8, 8), 3, "center")
