"""Pages of images show every image whole, in its place, with its name, at a size that a person can see."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.pages import TEXT, WIDTH, neighbours_page, rows_page, side_by_side
from ddpm_hf.pictures import Sheet, distance_captions, font, wrapped


def colours(n, size=8, start=0):
    """uint8 (n, 3, size, size), each of one colour that is nowhere else: no gray, as letters and their edges are."""
    ids = np.arange(start, start + n)
    rgb = np.stack([40 + ids % 200, 250 - ids // 200, np.full(n, 5)], axis=1).astype(np.uint8)
    return rgb[:, :, None, None].repeat(size, 2).repeat(size, 3)


def corners(page, images):
    """(N, 2) the left upper corner (x, y) of each, and (N, 2) its size; each is whole and without holes."""
    one_number = np.array([65536, 256, 1])
    pixels = (np.asarray(page) @ one_number).ravel()
    order = np.argsort(pixels, kind="stable")
    found, sizes = [], []
    for image in images:
        colour = image[:, 0, 0] @ one_number
        start, end = (np.searchsorted(pixels, colour, side, sorter=order) for side in ("left", "right"))
        y, x = np.divmod(order[start:end], page.width)
        assert len(x), "an image is missing"
        found.append((x.min(), y.min()))
        sizes.append((np.ptp(x) + 1, np.ptp(y) + 1))
        assert len(x) == np.prod(sizes[-1])
    return np.array(found), np.array(sizes)


def has_letters(page, left, top, right, bottom):
    return (np.asarray(page.convert("L"))[top:bottom, left:right] < 128).any()


def test_a_row_a_class_with_its_name():
    batch = colours(12)
    page = rows_page({"cat": batch[:5], "dog": batch[5:10], "": batch[10:]}, "Title")
    at, sizes = corners(page, batch)
    assert (sizes == 128).all()  # 8 pixels, sixteen times as large
    assert len(np.unique(at[:5, 1])) == len(np.unique(at[5:10, 1])) == 1
    assert (at[:5, 0] == at[5:10, 0]).all() and (np.diff(at[:5, 0]) == 132).all()
    for y, named in ((at[0, 1], True), (at[5, 1], True), (at[10, 1], False)):
        assert has_letters(page, 0, y, at[0, 0], y + 128) == named
    assert has_letters(page, 0, 0, page.width, at[0, 1])  # the title
    assert page.width <= WIDTH


def test_columns_have_their_names_above():
    batch = colours(8)
    rows = {"T = 100": batch[:4], "T = 1000": batch[4:]}
    page = rows_page(rows, columns=["t = 999", "t = 500", "t = 100", "t = 0"])
    at, sizes = corners(page, batch)
    for (x, y), (width, _) in zip(at[:4], sizes[:4], strict=True):
        assert has_letters(page, x, 0, x + width, y)
    assert not has_letters(page, at[3, 0] + 128, 0, page.width, page.height)
    with pytest.raises(ValueError):
        rows_page(rows, columns=["t = 999"])


def test_enlarging_keeps_the_pixels():
    digits = (load_digits().images[:10] / 16 * 255).round().astype(np.uint8)[:, None]
    page = rows_page({"": digits})
    assert page.mode == "L"
    pixels = np.asarray(page)
    y, x = np.argwhere(pixels < 255)[0]  # the first digit's corner is black
    np.testing.assert_array_equal(pixels[y : y + 128, x : x + 128], digits[0, 0].repeat(16, 0).repeat(16, 1))


@pytest.mark.parametrize("size, rows, columns", [(8, 10, 10), (32, 10, 10), (28, 4, 12), (64, 3, 8), (128, 2, 6)])
def test_a_page_of_common_sizes_is_no_wider_than_a_page(size, rows, columns):
    batch = colours(rows * columns, size)
    page = rows_page({f"class {i}": batch[i * columns : (i + 1) * columns] for i in range(rows)})
    _, sizes = corners(page, batch)
    assert (sizes % size == 0).all() and len(np.unique(sizes)) == 1
    assert sizes[0, 0] >= 64
    assert 0.6 * WIDTH < page.width <= WIDTH
    assert page.height <= 1.5 * WIDTH + 60


def test_many_rows_are_folded_and_read_down_first():
    batch = colours(120)
    page = rows_page({f"{i}": batch[2 * i : 2 * i + 2] for i in range(60)})
    at, _ = corners(page, batch)
    assert page.width <= WIDTH and page.height <= 1.5 * WIDTH
    first = at[::2]
    blocks = np.unique(first[:, 0])
    assert len(blocks) > 1
    assert (np.diff(first[:, 0]) >= 0).all()
    assert all((np.diff(first[first[:, 0] == x, 1]) > 0).all() for x in blocks)


def test_long_rows_go_on_below_and_unnamed_ones_form_a_square():
    batch = colours(100, 32)
    page = rows_page({"cat": batch[:60], "dog": batch[60:]})
    at, sizes = corners(page, batch)
    assert page.width <= WIDTH and (sizes == 64).all()
    lines = np.unique(at[:60, 1])
    assert len(lines) > 1
    assert has_letters(page, 0, lines[0], at[0, 0], lines[0] + sizes[0, 1])
    assert not has_letters(page, 0, lines[1], at[0, 0], lines[1] + sizes[0, 1])
    at, _ = corners(rows_page({"": batch}), batch)
    assert len(np.unique(at[:, 0])) == len(np.unique(at[:, 1])) == 10


def test_a_page_wider_than_a_page_has_larger_letters():
    batch = colours(24, 128)
    page = rows_page({"cat": batch}, columns=[f"t = {i}" for i in range(24)])
    at, sizes = corners(page, batch)
    assert (sizes == 128).all() and page.width > 2 * WIDTH
    ink = np.asarray(page.convert("L"))[at[0, 1] : at[0, 1] + 128, : at[0, 0] - 4] < 128
    tall = np.ptp(np.nonzero(ink.any(axis=1))[0]) + 1
    assert tall > 0.6 * TEXT * page.width / WIDTH  # the t of "cat"


def test_images_of_two_sizes_are_shown_as_large():
    small, large = colours(3, 16), colours(3, 64, start=3)
    at, sizes = corners(rows_page({"pixels": small, "latents": large}), [*small, *large])
    assert (sizes == 128).all()
    assert (at[:3, 0] == at[3:, 0]).all()


def test_neighbours_stand_beside_their_sample_with_their_distances():
    samples, nearest = colours(3), colours(12, start=3).reshape(3, 4, 3, 8, 8)
    distances = np.arange(1.0, 13).reshape(3, 4)
    page = neighbours_page(samples, nearest, distances, "Title")
    left, sizes = corners(page, samples)
    right, _ = corners(page, nearest.reshape(-1, 3, 8, 8))
    right = right.reshape(3, 4, 2)
    assert (right[..., 1] == left[:, None, 1]).all()
    size = sizes[0, 0]
    gaps = np.diff(np.concatenate([left[:, None, 0], right[..., 0]], axis=1)) - size
    assert (gaps[:, 0] > 3 * gaps[:, 1]).all() and (gaps[:, 1:] == gaps[0, 1]).all()
    for row in range(3):
        below = left[row, 1] + size
        assert not has_letters(page, left[row, 0], below, left[row, 0] + size, below + TEXT)
        for x in right[row, :, 0]:
            assert has_letters(page, x, below, x + size, below + TEXT)
    assert has_letters(page, right[0, 0, 0], 0, page.width, left[0, 1])


def test_distances_have_as_many_decimals_as_say_something():
    assert distance_captions(np.array([[20.06, 22], [3, 9]])) == [[[""], ["20.1", "22.0"]], [[""], ["3.0", "9.0"]]]
    assert distance_captions(np.array([[0.01234, 0.02]])) == [[[""], ["0.0123", "0.0200"]]]
    assert distance_captions(np.array([[1234.5, 900]])) == [[[""], ["1234", "900"]]]
    assert distance_captions(np.zeros((1, 2))) == [[[""], ["0.00", "0.00"]]]


def test_panels_side_by_side():
    batch = colours(8)
    halves = [rows_page({"cat": batch[:4]}, width=680), rows_page({"cat": batch[4:]}, width=680)]
    page = side_by_side({"without EMA": halves[0], "with EMA": halves[1]})
    at, _ = corners(page, batch)
    assert page.width <= WIDTH
    assert (at[:4, 1] == at[4:, 1]).all() and at[:4, 0].max() < at[4:, 0].min()
    assert has_letters(page, 0, 0, halves[0].width, at[0, 1]) and has_letters(page, at[4, 0], 0, page.width, at[0, 1])
    gray, colour = Image.new("L", (20, 50), 7), Image.new("RGB", (20, 10), (1, 2, 3))
    mixed = side_by_side({"": gray, " ": colour})
    assert mixed.mode == "RGB" and mixed.getpixel((0, 49)) == (7, 7, 7) and mixed.height >= 50


def test_nothing_to_show_is_a_users_error():
    with pytest.raises(UserError, match="Samples: there are no images"):
        rows_page({"cat": np.empty((0, 3, 8, 8), np.uint8)}, "Samples")
    with pytest.raises(UserError, match="there are no images"):
        rows_page({})
    with pytest.raises(UserError, match="there are no samples"):
        neighbours_page(np.empty((0, 3, 8, 8)), np.empty((0, 2, 3, 8, 8)), np.empty((0, 2)))


def test_an_empty_row_keeps_its_name():
    batch = colours(2)
    page = rows_page({"cat": batch, "dog, which failed": np.empty((0, 3, 8, 8), np.uint8)})
    at, _ = corners(page, batch)
    assert has_letters(page, 0, at[0, 1] + 132, at[0, 0], page.height)


def test_headers_shrink_before_they_move_columns_apart():
    batch = colours(2, 32)
    rows = [[image[None] for image in batch]]
    short, long = (Sheet(rows, (), [name, name], tall=96, text=26, gap=4, between=4) for name in ("cat", "airplane"))
    assert short.size == long.size
    assert Sheet(rows, (), ["automobile"] * 2, tall=32, text=26, gap=4, between=4).size[0] > 2 * 32 + 4 + 40


def test_names_are_broken_between_words():
    letters = font(26)
    text = "latent diffusion, guided, learned variance"
    lines = wrapped(text, letters, 260, 3)
    assert " ".join(lines) == text and len(lines) == 3
    assert all(letters.getlength(line) <= 260 for line in lines)
    two = wrapped(text, letters, 260, 2)
    assert len(two) == 2 and two[0] == lines[0] and two[1].endswith("…")
    assert all(letters.getlength(line) <= 260 for line in two)
    assert wrapped("", letters, 260, 3) == []
    assert font(26) is letters
