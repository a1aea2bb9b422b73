"""What a visitor may ask for, and links."""

import math
from dataclasses import asdict
from urllib.parse import parse_qsl

import pytest

from ddpm_hf.app.request import (
    ANY,
    EACH,
    Limits,
    Request,
    Settings,
    check_comparison,
    check_request,
    default_settings,
    from_query,
    to_query,
)
from ddpm_hf.errors import UserError

LIMITS = Limits(max_images=12, max_steps=30)
GOOD = {
    "count": 4,
    "seed": 7,
    "model": "kinds",
    "class_label": "2",
    "sampler": "ddim",
    "steps": 10,
    "guidance": 3,
    "low": 0.3,
    "high": None,
}


def test_what_is_asked_for_is_what_is_drawn(models):
    request = check_request(GOOD, models, LIMITS)
    assert list(request.seeds) == [7, 8, 9, 10]
    sampling = request.settings[0].sampling(models["kinds"])
    assert (sampling.sampler, sampling.steps, sampling.class_label, sampling.guidance_scale) == ("ddim", 10, 2, 3)
    assert sampling.guidance_interval == (0.3, math.inf)


@pytest.mark.parametrize(
    ("class_label", "label", "scale"),
    [(EACH, None, 3), (ANY, 3, 1), ("0", 0, 3)],  # towards the null class, 3 of 3 classes, there is nothing to guide
)
def test_classes(models, class_label, label, scale):
    sampling = check_request(GOOD | {"class_label": class_label}, models, LIMITS).settings[0].sampling(models["kinds"])
    assert (sampling.class_label, sampling.guidance_scale) == (label, scale)


def test_a_model_without_classes_has_nothing_to_guide(models):
    given = GOOD | {"model": "plain", "class_label": None, "guidance": 7}
    sampling = check_request(given, models, LIMITS).settings[0].sampling(models["plain"])
    assert (sampling.class_label, sampling.guidance_scale, sampling.guidance_interval) == (None, 1, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 10**6, "how many: 1000000 should be a whole number from 1 to 12"),
        ("count", 0, "from 1 to 12"),
        ("count", "four", 'how many: "four" should be a whole number from 1 to 12'),
        ("count", 2.5, "how many: 2.5 should be a whole number"),
        ("count", True, "how many: true"),
        ("count", None, "how many: null"),
        ("count", [4], "how many: [4]"),
        ("count", math.nan, "how many: NaN"),
        ("seed", -1, "seed: -1 should be a whole number from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("steps", 31, "steps: 31 should be a whole number from 1 to 30"),
        ("steps", "10", 'steps: "10"'),
        ("guidance", 11, "guidance: 11 should be a number from 1 to 10"),
        ("guidance", math.inf, "guidance: Infinity"),
        ("low", -1, "lowest noise level: -1"),
        ("high", 0.2, "lowest noise level: 0.3 should be below the highest noise level, 0.2"),
        ("sampler", "euler", 'sampler: "euler" is none of ddpm, ddim'),
        ("sampler", {"a": 1}, "sampler:"),
        ("class_label", "3", 'class: "3" is none of each, any and 0 to 2'),
        ("class_label", 1, "class: 1 is none of"),
        ("class_label", ["1"], "class:"),
        ("model", "../kinds", 'model: "../kinds" is none of kinds, plain'),
        ("model", "/etc/passwd", "is none of kinds, plain"),
        ("model", ["kinds"], "is none of kinds, plain"),
        ("model", "x" * 10**6, "..."),
    ],
)
def test_mistakes_are_told_in_a_line(models, field, value, message):
    with pytest.raises(UserError) as error:
        check_request(GOOD | {field: value}, models, LIMITS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_class_for_a_model_without_classes(models):
    with pytest.raises(UserError, match="class: plain knows no classes"):
        check_request(GOOD | {"model": "plain"}, models, LIMITS)


def test_no_more_steps_than_the_model_has_timesteps(models):
    with pytest.raises(UserError, match="from 1 to 50"):  # not 500
        check_request(GOOD | {"steps": 51}, models, Limits(max_steps=500))


def test_a_comparison_says_which_side_is_wrong(models):
    with pytest.raises(UserError, match=r"^B, steps: 0"):
        check_comparison(GOOD, [GOOD, GOOD | {"steps": 0}], models, LIMITS)


SETTINGS = [
    Settings("kinds", EACH, "dpmsolver++", 10, 2.0),
    Settings("kinds", "1", "ddim", 30, 3.25, 0.3, 5.0),
    Settings("kinds", ANY, "ddpm", 1, 1.0, 0.0, 5.0),
    Settings("plain", None, "heun", 7),
]


@pytest.mark.parametrize("settings", [*([s] for s in SETTINGS), SETTINGS[:2], SETTINGS[2:]], ids=len)
def test_a_link_restores_what_it_was_made_of(models, settings):
    request = Request(5, 123, tuple(settings))
    found, wrong = from_query(dict(parse_qsl(to_query(request)[1:])), models, LIMITS)
    assert wrong == []
    assert found == request


def test_of_a_link_what_is_wrong_is_left_out_and_told(models):
    query = {
        "count": "1000000",
        "seed": "seven",
        "model": "/etc/passwd",
        "steps": "12",
        "guidance": "1e9",
        "class": "2",
    }
    found, wrong = from_query(query | {"utm_source": "x"}, models, LIMITS)
    assert [line.split(":")[0] for line in wrong] == ["model", "guidance", "how many", "seed"]
    settings = found.settings[0]
    assert asdict(settings) == asdict(default_settings(models["kinds"], LIMITS)) | {"class_label": "2", "steps": 12}
    assert (found.count, found.seed) == (12, 0)  # 15 of 3 classes, were it not for the limit


def test_an_empty_link_is_the_page_as_it_begins(models):
    found, wrong = from_query({}, models, LIMITS)
    assert (found.settings, wrong) == ((default_settings(models["kinds"], LIMITS),), [])


def test_a_link_keeps_every_digit(models):
    request = check_request(GOOD | {"guidance": 3.123456789, "low": 0.0123456789}, models, LIMITS)
    assert from_query(dict(parse_qsl(to_query(request)[1:])), models, LIMITS) == (request, [])


def test_a_step_of_heun_counts_twice(models):
    heun = GOOD | {"sampler": "heun"}
    assert check_request(heun | {"steps": 15}, models, LIMITS).settings[0].steps == 15
    with pytest.raises(UserError, match=r"steps: 16 of heun.*at most 15"):
        check_request(heun | {"steps": 16}, models, LIMITS)


def test_where_there_is_no_room_for_one_of_each_any_is_drawn(models):
    assert default_settings(models["kinds"], Limits(max_images=2)).class_label == ANY
    assert default_settings(models["kinds"], Limits(max_images=3)).class_label == EACH
