"""What a person is shown."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from ddpm_hf.pictures import Sheet, _shortened, class_grid, to_pil


def images(rows=3, scales=2, per_scale=2, channels=1, height=8, width=8):
    """Each image of one gray or colour of its own."""
    shape = (rows, scales, per_scale, channels)
    levels = np.random.default_rng(0).permutation(200)[: np.prod(shape)].reshape(shape).astype(np.uint8) + 20
    return levels[..., None, None].repeat(height, axis=-2).repeat(width, axis=-1)


def found(picture, image):
    """The corner (x, y) of an image, by its own colour, and how many pixels have that."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    here = (pixels == image[:, 0, 0]).all(axis=-1)
    block = here[:-7, :-7] & here[7:, :-7] & here[:-7, 7:] & here[7:, 7:]  # no letter's edge of the same gray
    y, x = np.nonzero(block)
    return (x.min(), y.min()), here.sum()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_a_class_and_a_group_a_scale(channels):
    batch = images(channels=channels)
    picture = class_grid(batch, [1, 3], ["cat", "dog", "a very long name that nobody could read beside a picture"])
    assert picture.mode == ("L" if channels == 1 else "RGB")
    corners = np.array([[[found(picture, i)[0] for i in group] for group in row] for row in batch])
    assert (corners[..., 1] == corners[:, :1, :1, 1]).all()  # a class is a row
    assert (corners[..., 0] == corners[:1, ..., 0]).all()
    x = corners[0, ..., 0]
    assert x[0, 1] - x[0, 0] == 66  # 8 pixels, enlarged to 64, and a gap
    assert x[1, 0] - x[0, 1] > 66 + 8  # groups are further apart
    assert x.min() < 180  # the long name was cut
    assert (np.diff(corners[:, 0, 0, 1]) == 66).all()
    left = np.asarray(picture.convert("L"))[:, : x.min()]
    for y in corners[:, 0, 0, 1]:
        assert (left[y : y + 64] < 128).any()  # each row has its name
    assert (np.asarray(picture.convert("L"))[: corners[..., 1].min()] < 128).any()  # and there are headers
    corner = np.asarray(picture)[-1, -1]
    assert (corner == 255).all()


def test_every_image_is_shown_whole():
    batch = images(rows=2, scales=3, per_scale=1, channels=3, height=32, width=64)
    picture = class_grid(batch, [0, 1, 7.5], ["1", "2"])
    assert all(found(picture, image)[1] == 4 * 32 * 64 for image in batch.reshape(6, 3, 32, 64))


def test_rows_of_flat_images_leave_room_for_their_names():
    picture = class_grid(images(height=2, width=64), [1, 3], ["a", "b", "c"])
    assert picture.height > 3 * 14


def test_long_names_end_in_an_ellipsis():
    font = ImageFont.load_default(size=14)
    assert _shortened("cat", font, 100) == "cat"
    cut = _shortened("golden retriever of the north", font, 100)
    assert cut.endswith("\u2026")
    assert cut[:-1] in "golden retriever of the north"
    assert 60 < font.getlength(cut) <= 100


def test_one_and_three_channels_are_pictures():
    assert [to_pil(np.zeros((c, 4, 6), np.uint8)).mode for c in (1, 3)] == ["L", "RGB"]
    assert isinstance(to_pil(np.zeros((1, 4, 6), np.uint8)), Image.Image)


def test_a_long_label_gets_smaller_letters_before_it_is_cut():
    images = np.zeros((1, 1, 8, 8), np.uint8)
    longest = "DPM-Solver++, 10 steps"
    sheet = Sheet([[images], [images]], [longest, "DDIM"], tall=48, text=26)
    assert sheet.labels == [[longest], ["DDIM"]] and 3 * 26 // 4 <= sheet.label_font.size < 26
    assert Sheet([[images]], ["DDIM"], tall=48, text=26).label_font.size == 26
    assert Sheet([[images]], ["w" * 60], tall=48, text=26).labels[0][0].endswith("…")
