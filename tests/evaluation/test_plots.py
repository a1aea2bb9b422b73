"""Plots hold the data, say what they leave out, can be read on any page and come out the same each time."""

import os
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.plot_labels import spread
from ddpm_hf.evaluation.plot_style import CARD, MARKERS, PALETTE, SOFT, _apart, contrast, look
from ddpm_hf.evaluation.plots import Series, curves, dots, picture, running_mean, save, trade_off
from ddpm_hf.pictures import INK

STEPS = np.arange(1, 101) * 100
WEIGHTS = ["1", "1.5", "2", "3", "4"]


def lines(figure):
    """(x, y) of the lines that have a marker, which is one a series."""
    return [line.get_xydata() for line in figure.axes[0].lines if line.get_marker() in MARKERS]


def words(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def names(figure, labels):
    return [text for text in figure.texts if text.get_text().replace("\n", " ") in labels]


def boxes(texts):
    return [text.get_window_extent() for text in texts]


def none_overlap(boxes):
    return not any(a.overlaps(b) for a, b in combinations(boxes, 2))


# ---- what is drawn


def test_curves_hold_the_data_and_say_what_they_are():
    loss, held_out = 1 / STEPS, 1.1 / STEPS[::25]
    figure = curves(
        [Series("T = 100", STEPS, loss), Series("T = 100", STEPS[::25], held_out, dashed=True)],
        "step",
        "loss",
        "Title",
        log_y=True,
    )
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    np.testing.assert_array_equal(lines(figure)[0], np.stack([STEPS, loss], axis=1))
    np.testing.assert_array_equal(lines(figure)[1], np.stack([STEPS[::25], held_out], axis=1))
    solid, dashed = (line for line in axes.lines if line.get_marker() in MARKERS)
    assert solid.get_color() == dashed.get_color()
    assert not solid.is_dashed() and dashed.is_dashed()
    assert {"Title", "T = 100", "training", "validation"} <= set(words(figure))
    assert words(figure).count("T = 100") == 1
    assert "validation" not in words(curves([Series("a", STEPS, loss)], "step", "loss"))


def test_a_smoothed_line_has_its_points_faint_behind_it():
    noisy = 1 + np.random.default_rng(0).normal(size=100)
    figure = curves([Series("a", STEPS, noisy), Series("a", STEPS, noisy, dashed=True)], "step", "loss", smooth=9)
    faint = [line for line in figure.axes[0].lines if line.get_alpha() is not None]
    assert len(faint) == 1  # of the solid one alone
    np.testing.assert_array_equal(faint[0].get_ydata(), noisy)
    smoothed, held_out = (line[:, 1] for line in lines(figure))
    np.testing.assert_allclose(smoothed[50], noisy[46:55].mean())
    np.testing.assert_array_equal(held_out, noisy)


def test_running_means():
    y = np.array([8.0, 4, 6, np.nan, 2, 1])
    np.testing.assert_allclose(running_mean(y, 3), [8, 6, 5, np.nan, 1.5, 1.5])
    np.testing.assert_array_equal(running_mean(y, 1), y)
    np.testing.assert_allclose(running_mean(np.r_[1e30, np.ones(9)], 3)[2:], 1)  # a spike leaves nothing behind
    line = np.arange(20.0)
    np.testing.assert_allclose(running_mean(line, 7)[:17], line[:17])  # unbiased where it falls fast
    assert running_mean(np.empty(0), 5).shape == (0,)
    assert running_mean(np.ones(2), 50).tolist() == [1, 1]


def test_few_points_have_markers_each_and_many_a_few():
    figure = curves([Series("few", range(10), np.ones(10)), Series("many", STEPS, np.ones(100))], "x", "y")
    few, many = (line for line in figure.axes[0].lines if line.get_marker() in MARKERS)
    assert len(few.get_markevery()) == 10
    assert len(many.get_markevery()) == 5


def test_a_series_keeps_its_colour_where_another_is_missing():
    both = curves([Series("a", [1, 2], [1, 2]), Series("b", [1, 2], [3, 4])], "x", "y")
    one = curves([Series("b", [1, 2], [3, 4], place=1)], "x", "y")
    gone = curves([Series("a", [1, 2], [np.nan] * 2), Series("b", [1, 2], [3, 4])], "x", "y")
    colours = [figure.axes[0].lines[-1].get_color() for figure in (both, one, gone)]
    assert colours == [PALETTE[1]] * 3


def test_a_trade_off_has_errors_point_names_and_ticks_at_its_points():
    steps, distance = [10, 20, 50, 250], [40.0, 20, 12, 11]
    series = [Series("DDIM", steps, distance, error=[4, None, 1, 1], points=["a", "b", "c", "d"])]
    figure = trade_off(series, "steps", "distance", levels={"test images": 5})
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == steps
    np.testing.assert_array_equal(lines(figure)[0], np.stack([steps, distance], axis=1))
    bars = axes.collections[0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars if len(bar)] == [[36, 44], [11, 13], [10, 12]]
    assert {"a", "b", "c", "d", "DDIM", "test images"} <= set(words(figure))
    assert any((line.get_ydata() == np.array([5, 5])).all() for line in axes.lines if len(line.get_ydata()) == 2)


def test_dots_show_each_variant_with_its_value():
    figure = dots({"float32": 20.5, "bfloat16": 21.25, "float16": None}, "FD", "Precision", errors={"float32": 2})
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["float32", "bfloat16", "float16"]
    assert {"20.5", "21.25", "no finite value", "FD", "Precision"} <= set(words(figure))
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # from the top down
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() in MARKERS] == [20.5, 21.25]
    assert axes.collections[0].get_segments()[0][:, 0].tolist() == [18.5, 22.5]
    with pytest.raises(UserError, match="Precision: nothing to plot"):
        dots({"float16": float("inf")}, "FD", "Precision")


# ---- what cannot be drawn


def test_values_that_are_not_finite_leave_a_gap_and_a_note():
    y = np.ones(100)
    y[40:50] = np.nan, *[np.inf] * 9
    figure = curves([Series("float16", STEPS, y), Series("float8", STEPS, y * np.nan)], "step", "loss", smooth=5)
    (line,) = lines(figure)
    assert np.isnan(line[40:50, 1]).all() and np.isfinite(line[:40, 1]).all() and np.isfinite(line[50:, 1]).all()
    note = "float16: 10 of 100 points left out, not finite\nfloat8: 100 of 100 points left out, not finite"
    assert note in words(figure)
    assert "float8" not in words(figure)  # no name without a line


@pytest.mark.parametrize(
    "y, why",
    [
        ([1, 0, -1], "a: 2 of 3 points left out, not positive"),
        ([1, None, 2], "a: 1 of 3 points left out, not finite"),
        ([1, 0, np.inf], "a: 2 of 3 points left out, not positive and finite"),
    ],
)
def test_a_logarithmic_axis_says_why_it_leaves_points_out(y, why):
    assert why in words(trade_off([Series("a", [1, 2, 3], y)], "x", "y", log_y=True))


def test_a_series_or_a_level_without_values_is_named():
    series = [Series("a", [1, 2], [1, 2]), Series("a", [], [], dashed=True)]
    figure = curves(series, "x", "y", log_y=True, levels={"quality": 0})
    assert "a (validation): no points\nquality: left out, 0" in words(figure)


def test_nothing_left_to_draw_is_a_users_error():
    with pytest.raises(UserError, match="Loss: nothing to plot, none of 2 series has a finite value"):
        curves([Series("a", [], []), Series("b", [1], [np.nan])], "step", "loss", "Loss")
    with pytest.raises(UserError, match="loss: nothing to plot, none of 1 series has a positive, finite value"):
        curves([Series("a", [1], [0])], "step", "loss", log_y=True)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="'a': 2 x, but 1 y"):
        curves([Series("a", [1, 2], [1])], "x", "y")
    with pytest.raises(ValueError, match="'a': 2 x, but 3 points"):
        trade_off([Series("a", [1, 2], [1, 2], points=["1", "2", "3"])], "x", "y")


# ---- names beside what they name


@pytest.mark.parametrize("count", [3, 8, 24])
def test_names_of_lines_that_end_together_do_not_overlap(count):
    labels = [f"variant {i}, which ends where all the others end" for i in range(count)]
    series = [Series(label, STEPS, 1 + 0.001 * i / STEPS) for i, label in enumerate(labels)]
    figure = curves(series, "step", "loss", "Title", levels={"quality": 1})
    named = names(figure, [*labels, "quality"])
    assert len(named) == count + 1
    found = boxes(named)
    assert none_overlap(found)
    area, page = figure.axes[0].get_window_extent(), figure.bbox
    assert all(box.x0 > area.x1 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in found)
    assert area.width > 0.5 * page.width  # the plot is not squeezed away


def test_names_stand_where_their_lines_end_if_there_is_room():
    ends = {"low": 1.0, "middle": 5.0, "high": 9.0}
    figure = curves([Series(label, [0, 1], [5, y]) for label, y in ends.items()], "x", "y")
    for text in names(figure, ends):
        wanted = figure.axes[0].transData.transform((1, ends[text.get_text()]))[1]
        box = text.get_window_extent()
        assert box.y0 < wanted < box.y1


def test_spread_is_the_nearest_that_does_not_overlap():
    np.testing.assert_allclose(spread([5, 50, 20], [10, 10, 10], 0, 100), [5, 50, 20])
    np.testing.assert_allclose(spread([50, 50], [10, 20], 0, 100), [42.5, 57.5])  # moved by as much each
    np.testing.assert_allclose(spread([0, 0, 0], [10, 10, 10], 0, 100), [5, 15, 25])
    np.testing.assert_allclose(spread([99, 98], [10, 10], 0, 100), [95, 85])
    np.testing.assert_allclose(spread([1, 1], [10, 10], 0, 15), [5, 15])  # no room: from the bottom up


def test_names_of_points_overlap_neither_each_other_nor_their_lines():
    agreement = np.array([0.72, 0.83, 0.90, 0.95, 0.97])
    series = [
        Series(name, agreement, [14 + k, 10 + k, 9 + k, 12, 18 - k], points=WEIGHTS) for k, name in enumerate("ab")
    ]
    figure = trade_off(series, "class agreement", "FD", log_x=False)
    axes = figure.axes[0]
    written = [text for text in axes.texts if text.get_text() in WEIGHTS]
    assert len(written) == 10
    found = boxes(written)
    assert none_overlap(found)
    area = axes.get_window_extent()
    assert all(area.x0 <= box.x0 and box.x1 <= area.x1 and area.y0 <= box.y0 and box.y1 <= area.y1 for box in found)
    t = np.linspace(0, 1, 400)[:, None]
    for line in axes.lines:
        points = axes.transData.transform(line.get_xydata())
        for a, b in pairwise(points):
            along = a + t * (b - a)
            assert not any(((along > box.min) & (along < box.max)).all(axis=1).any() for box in found)


def test_point_names_without_room_are_left_out_and_never_written_over():
    series = [Series(f"{i}", [1, 1.0001], [5, 5.0001], points=["a long name", "another one"]) for i in range(9)]
    series.append(Series("far", [0, 2], [0, 10]))
    figure = trade_off(series, "x", "y", log_x=False)
    written = [text for text in figure.axes[0].texts if "n" in text.get_text()]
    assert 2 <= len(written) < 18
    assert none_overlap(boxes(written))


def test_ticks_leave_room_for_each_others_text():
    assert _apart(np.array([10, 20, 50, 100.0]), 0.1) == [10, 20, 50, 100]
    assert _apart(np.array([10, 11, 50, 99, 100.0]), 0.1) == [10, 50, 100]
    figure = trade_off([Series("a", np.arange(10, 26), np.ones(16))], "steps", "FD")
    figure.canvas.draw()
    assert none_overlap(boxes(figure.axes[0].get_xticklabels()))
    half = curves([Series("training", STEPS * 10, 1 / STEPS)], "steps", "loss", size=(3.4, 2.8))
    half.canvas.draw()
    assert none_overlap(boxes(half.axes[0].get_xticklabels()))


@pytest.mark.parametrize("top, texts", [(100_000, {"0", "20k", "100k"}), (4, {"0.0", "1.0"}), (4e6, {"0", "1M"})])
def test_ticks_are_short_numbers(top, texts):
    figure = curves([Series("a", np.linspace(0, top, 5) / (1 if top > 4 else 2), np.ones(5))], "x", "y")
    figure.canvas.draw()
    assert texts <= {label.get_text() for label in figure.axes[0].get_xticklabels()}


def test_a_users_dollar_signs_are_no_mathematics():
    figure = curves([Series("$5 and $6_x", [1, 2], [1, 2])], "a_$b$", "y")
    assert "$5 and $6_x" in words(figure)
    picture(figure)
    assert not any(text.get_parse_math() for text in [*figure.texts, figure.axes[0].xaxis.label])


# ---- seen by anyone, anywhere


def luminance(rgb):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_contrast_is_wcags():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#0d1117", "#ffffff") == contrast("#ffffff", "#0d1117") == pytest.approx(18.93, abs=0.01)


def test_lines_and_letters_can_be_read_on_the_card():
    assert all(contrast(colour, CARD) >= 3 for colour in [*PALETTE, SOFT])
    assert all(contrast(look(i).text, CARD) >= 4.5 for i in range(len(PALETTE)))
    assert contrast(INK, CARD) >= 7 and contrast(SOFT, CARD) >= 4.5


def test_no_colour_of_letters_would_do_without_a_card():
    """Why plots are not transparent: 4.5:1 on white and on a dark page cannot be had at once, with any colour."""
    ways = np.stack(np.meshgrid(*[np.linspace(0, 1, 52)] * 3), axis=-1).reshape(-1, 3)
    light = luminance(ways) + 0.05
    dark = luminance(np.array([0x0D, 0x11, 0x17]) / 255) + 0.05
    assert (np.minimum(1.05 / light, light / dark)).max() < 4.5


def test_a_plot_and_its_edge_are_opaque():
    figure = curves([Series("a", STEPS, 1 / STEPS)], "step", "loss")
    image = picture(figure)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge == 255).all()  # nothing is cut, and letters do not touch a dark page


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_any_eye_tells_the_colours_apart(sight):
    """CIELAB distance of any two; 2.3 is just noticeable, next to each other."""
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in PALETTE]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1)
    to_xyz = np.array([[0.412456, 0.357576, 0.180438], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]])
    xyz = seen @ to_xyz.T / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), (29 / 6) ** 2 * xyz / 3 + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    assert min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 15


def test_in_gray_the_marker_tells_series_apart():
    assert len({look(i).marker for i in range(8)}) == 8
    assert len({(look(i).colour, look(i).marker) for i in range(64)}) == 64


def test_letters_are_large_enough_at_700_pixels():
    figure = trade_off([Series("a", [1, 2], [1, 2], points=["x", "y"]), Series("b", [1], [None])], "x", "y", "Title")
    image = picture(figure)
    assert image.width == 1400
    written = [text for text in figure.findobj(match=lambda a: hasattr(a, "get_fontsize")) if text.get_text()]
    assert min(text.get_fontsize() for text in written) * figure.dpi / 72 / 2 >= 12  # pixels, where it is shown


# ---- the same each time


def test_the_same_plot_is_the_same_bytes_whatever_the_users_own_style(tmp_path):
    code = """
import sys
from ddpm_hf.evaluation.plots import Series, curves, save
series = [Series("a", range(30), [1 / (i + 1) for i in range(30)]), Series("b", [0, 9], [1, 2], error=[0.1, 0.2])]
save(curves(series, "step", "loss", "Title", log_y=True, smooth=3), sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""
    style = tmp_path / "matplotlibrc"
    style.write_text(
        "axes.facecolor: black\nfont.size: 30\nxtick.major.size: 20\ngrid.linestyle: --\nlegend.fontsize: 4\n"
    )
    made = tmp_path / "new" / "made.png"
    environment = os.environ | {"MATPLOTLIBRC": str(style), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(made)], check=True, env=environment)
    series = [Series("a", range(30), [1 / (i + 1) for i in range(30)]), Series("b", [0, 9], [1, 2], error=[0.1, 0.2])]
    save(curves(series, "step", "loss", "Title", log_y=True, smooth=3), tmp_path / "here.png")
    assert made.read_bytes() == (tmp_path / "here.png").read_bytes()
    with Image.open(made) as image:
        assert image.info == {}  # no date, no version


def test_saving_takes_plots_and_pictures(tmp_path):
    figure = curves([Series("a", [1, 2], [1, 2])], "x", "y")
    save(figure, tmp_path / "new" / "plot.png")
    save(picture(figure), tmp_path / "picture.png")
    assert (tmp_path / "new" / "plot.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
