"""The demo as a person meets it: in a headless Chromium, with a mouse, a keyboard and two windows at once."""

import io
import json
import re
import time
import zipfile
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.pictures import enlarged
from ddpm_hf.sampling import Sampling, draw_images
from tests.app import browser as chrome

try:
    import playwright.sync_api  # noqa: F401

    missing = None if chrome.chromium() else "no chromium on this machine"
except ImportError:
    missing = "playwright is not installed"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing is not None, reason=str(missing))]


@pytest.fixture(scope="module")
def browser():
    with chrome.browsing() as browser:
        yield browser


@pytest.fixture
def page(browser, demo):
    page = chrome.opened(browser, demo.url)
    yield page
    page.context.close()


def shown(page, gallery="#draw-gallery"):
    """The pictures of a gallery, (N, H, W)."""
    urls = page.eval_on_selector_all(f"{gallery} .thumbnail-lg img", "images => images.map(i => i.src)")
    return np.stack([np.asarray(Image.open(io.BytesIO(page.request.get(url).body()))) for url in urls])


def expected(models, name, seeds, sampling):
    return enlarged(draw_images(models[name].pipe, seeds, 32, sampling), 256)[:, 0]


def choose(page, box, choice):
    page.click(f"#{box} input")
    page.get_by_role("option", name=choice, exact=True).click()


def number(page, box, value):
    page.fill(f"#{box} input[type=number]", str(value))
    page.press(f"#{box} input[type=number]", "Tab")


def toast(page):
    page.wait_for_selector(".toast-body")
    return page.inner_text(".toast-body")


def test_draw_then_another_class_and_guidance(page, models):
    assert "Nothing drawn yet" in page.inner_text("#draw-stage")
    number(page, "draw-count", 6)
    chrome.draw(page)
    every = expected(models, "kinds", range(6), Sampling("dpmsolver++", 25, guidance_scale=2.0))
    np.testing.assert_array_equal(shown(page), every)
    choose(page, "draw-class", "kind 1")
    number(page, "draw-guidance", 5)
    number(page, "draw-seed", 40)
    choose(page, "draw-sampler", re.compile("DDIM"))
    number(page, "draw-steps", 9)
    chrome.draw(page)
    ones = expected(models, "kinds", range(40, 46), Sampling("ddim", 9, class_label=1, guidance_scale=5.0))
    np.testing.assert_array_equal(shown(page), ones)


def test_every_request_goes_to_the_demo(page, demo):
    chrome.draw(page)
    for name in ("Compare", "About"):
        chrome.tab(page, name)
    page.wait_for_selector(".card img")  # the card's own picture; its others would be asked of elsewhere
    page.wait_for_timeout(1000)
    assert page.get_attribute(".card :text('a link')", "href") == "https://elsewhere.example/o.html"
    chrome.tab(page, "Draw")
    hosts = {urlparse(url).netloc for url in page.requested if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlparse(demo.url).netloc}
    assert len(page.requested) > 10


def test_another_model_has_its_own_controls(page, models):
    assert page.is_visible("#draw-class")
    choose(page, "draw-model", "plain")
    page.wait_for_selector("#draw-class", state="hidden")
    assert not page.is_visible("#draw-guidance")
    assert not page.is_visible("#draw-advanced")
    number(page, "draw-count", 2)
    chrome.draw(page)
    np.testing.assert_array_equal(shown(page), expected(models, "plain", range(2), Sampling("dpmsolver++", 25)))


def test_a_model_that_failed_is_told(page):
    told = page.inner_text("#failures")
    assert "broken" in told
    assert "/" not in told.split("broken", 1)[1].split(" ")[0]


def test_a_guidance_interval(page, models):
    page.click("#draw-advanced button")
    number(page, "draw-low", 0.3)
    number(page, "draw-high", 5)
    number(page, "draw-count", 3)
    chrome.draw(page)
    sampling = Sampling("dpmsolver++", 25, guidance_scale=2.0, guidance_interval=(0.3, 5))
    np.testing.assert_array_equal(shown(page), expected(models, "kinds", range(3), sampling))


def test_the_die_rolls_another_seed(page):
    seeds = set()
    for _ in range(3):
        page.click("#draw-dice")
        page.wait_for_timeout(200)
        seeds.add(int(page.input_value("#draw-seed input")))
    assert len(seeds) == 3


def test_downloads(page, models):
    number(page, "draw-count", 3)
    chrome.draw(page)
    sampling = Sampling("dpmsolver++", 25, guidance_scale=2.0)
    true = draw_images(models["kinds"].pipe, range(3), 32, sampling)[:, 0]
    with page.expect_download() as download:
        page.click("#draw-zip")
    archive = zipfile.ZipFile(download.value.path())
    assert json.loads(archive.read("settings.json"))["seeds"] == [0, 1, 2]
    np.testing.assert_array_equal(np.asarray(Image.open(archive.open("true_size/000002.png"))), true[2])
    with page.expect_download() as download:
        page.click("#draw-grid")
    assert Image.open(download.value.path()).size[0] >= 3 * 64
    page.click("#draw-gallery .thumbnail-lg >> nth=1")
    with page.expect_download() as download:
        page.click("#draw-gallery button[title=Download]")
    np.testing.assert_array_equal(np.asarray(Image.open(download.value.path())), enlarged(true[1], 256))


def test_how_a_picture_came_out_of_noise(page):
    number(page, "draw-count", 3)
    chrome.draw(page)
    page.click("#draw-gallery .thumbnail-lg >> nth=2")
    page.wait_for_selector("#draw-ask-strip")
    assert "seed 2" in page.inner_text("#draw-ask-strip")
    page.click("#draw-ask-strip")
    page.wait_for_selector("#draw-strip img")
    url = page.get_attribute("#draw-strip img", "src")
    strip = np.asarray(Image.open(io.BytesIO(page.request.get(url).body())))
    assert "Seed 2" in page.inner_text("#draw-strip-title")
    last = shown_large(page)
    np.testing.assert_array_equal(strip[-128:, -128:][::16, ::16, 0], last[::32, ::32])


def shown_large(page):
    url = page.get_attribute("#draw-gallery [data-testid=detailed-image]", "src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(url).body())))


def test_compare(page, models):
    chrome.tab(page, "Compare")
    number(page, "compare-count", 3)
    number(page, "compare-seed", 9)
    choose(page, "compare-b-sampler", re.compile("Heun"))
    number(page, "compare-b-steps", 4)
    number(page, "compare-b-guidance", 1)
    chrome.compare(page)
    a, b = Sampling("dpmsolver++", 25, guidance_scale=2.0), Sampling("heun", 4)
    np.testing.assert_array_equal(shown(page, "#compare-gallery-a"), expected(models, "kinds", range(9, 12), a))
    np.testing.assert_array_equal(shown(page, "#compare-gallery-b"), expected(models, "kinds", range(9, 12), b))
    assert "Heun, 4 steps, no guidance" in page.inner_text("#compare-stage-b")
    link = page.input_value("#compare-link input, #compare-link textarea")
    again = chrome.opened(page.context.browser, link)
    again.wait_for_selector("#compare-go")  # on its tab
    assert again.input_value("#compare-b-steps input[type=number]") == "4"
    assert again.input_value("#compare-seed input") == "9"
    again.context.close()


@pytest.fixture
def slow_steps(demo):
    """A tenth of a second each; gives the times at which they were taken."""
    unet = demo.models["kinds"].pipe.unet
    forward, taken = unet.forward, []

    def slowly(*args, **kwargs):
        taken.append(time.monotonic())
        time.sleep(0.1)
        return forward(*args, **kwargs)

    unet.forward = slowly
    yield taken
    del unet.forward


def test_stop_stops_the_drawing(page, slow_steps):
    number(page, "draw-steps", 30)
    page.click("#draw-go")
    page.wait_for_selector("#draw-stage .cell img")  # seen while it is drawn
    page.click("#draw-stop")
    page.wait_for_selector("#draw-stage :text('Stopped')")
    stopped = time.monotonic()
    assert page.is_enabled("#draw-go")
    assert not page.is_visible("#draw-stop")
    page.wait_for_timeout(1000)
    assert len(slow_steps) < 30
    assert max(slow_steps) < stopped + 0.2
    number(page, "draw-steps", 2)
    chrome.draw(page)


def test_leaving_stops_it_too(browser, demo, slow_steps):
    page = chrome.opened(browser, demo.url)
    number(page, "draw-steps", 30)
    page.click("#draw-go")
    page.wait_for_selector("#draw-stage .cell img")
    page.context.close()
    time.sleep(1.5)
    taken = len(slow_steps)
    time.sleep(1)
    assert len(slow_steps) == taken < 30


def test_a_link_restores_the_settings(page, browser, models):
    number(page, "draw-count", 2)
    number(page, "draw-seed", 77)
    choose(page, "draw-class", "kind 2")
    number(page, "draw-guidance", 3.5)
    number(page, "draw-steps", 6)
    chrome.draw(page)
    before = shown(page)
    link = page.input_value("#draw-link input, #draw-link textarea")
    assert page.url == link  # reloading keeps them too
    again = chrome.opened(browser, link)
    assert again.input_value("#draw-seed input") == "77"
    assert again.input_value("#draw-class input") == "kind 2"
    assert again.input_value("#draw-guidance input[type=number]") == "3.5"
    chrome.draw(again)
    np.testing.assert_array_equal(shown(again), before)
    again.context.close()


def test_about_begins_with_the_models_of_the_link(browser, demo):
    page = chrome.opened(browser, f"{demo.url}?model=plain")
    chrome.tab(page, "About")
    page.wait_for_selector(".card :text('unconditional')")
    assert not page.is_visible(".card :text('a link')")  # of the other's card
    page.context.close()


def test_what_is_wrong_in_a_link_is_told(browser, demo):
    page = chrome.opened(browser, f"{demo.url}?count=1000000&seed=5&model=%3Cb%3Ex&steps=7")
    told = page.inner_text("#notice")
    assert "1000000 should be a whole number from 1 to 12" in told
    assert '"<b>x" is none of kinds, plain' in told
    assert page.input_value("#draw-seed input") == "5"
    assert page.input_value("#draw-steps input[type=number]") == "7"
    chrome.draw(page)
    page.context.close()


def test_bad_input_is_told_and_the_page_goes_on(page):
    page.fill("#draw-seed input", "-5")
    page.click("#draw-go")
    assert "seed: -5 should be a whole number from 0" in toast(page)
    assert page.is_enabled("#draw-go")
    assert not page.is_visible("#draw-stop")
    page.fill("#draw-seed input", "5")
    chrome.draw(page)


def test_by_keyboard_alone(page):
    """From the top of the page to a picture seen large, and back."""
    page.focus("#draw-seed input")
    page.keyboard.press("Control+A")
    page.keyboard.type("12")
    page.keyboard.press("Enter")  # draws
    page.wait_for_selector("#draw-stage .done")
    chrome.pictures_loaded(page, "#draw-gallery")

    def focused():
        return page.evaluate("[document.activeElement.id, document.activeElement.getAttribute('aria-label')]")

    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(focused())
        if seen[-1][1] == "Thumbnail 1 of 12":
            break
    names = [id or label for id, label in seen]
    assert "draw-dice" in names
    assert names.index("draw-dice") < names.index("draw-go") < names.index("Thumbnail 1 of 12")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-testid=detailed-image]")
    page.wait_for_selector("#draw-ask-strip")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#draw-ask-strip:has-text('seed 13')")
    page.keyboard.press("Escape")
    page.wait_for_selector("[data-testid=detailed-image]", state="detached")


def test_two_windows_at_once(browser, demo, models):
    """Both drawing at the same time, each its own."""
    pages = [chrome.opened(browser, demo.url) for _ in range(2)]
    for page, seed, kind in zip(pages, (100, 200), (0, 2), strict=True):
        choose(page, "draw-class", f"kind {kind}")
        number(page, "draw-seed", seed)
        number(page, "draw-steps", 30)
    for page in pages:
        page.click("#draw-go")
    for page in pages:
        page.wait_for_selector("#draw-stage .done")
        chrome.pictures_loaded(page, "#draw-gallery")
    for page, seed, kind in zip(pages, (100, 200), (0, 2), strict=True):
        sampling = Sampling("dpmsolver++", 30, class_label=kind, guidance_scale=2.0)
        np.testing.assert_array_equal(shown(page), expected(models, "kinds", range(seed, seed + 12), sampling))
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [chrome.WIDE, chrome.PHONE], ids=["wide", "phone"])
def test_every_state_fits_its_window(browser, demo, slow_steps, tmp_path, size, scheme):
    """Nothing is wider than the window; the pictures are for a person to look at."""
    shots = chrome.tour(browser, demo.url, tmp_path, size, scheme, "x")
    assert len(shots) == 6
    assert {Image.open(shot).size[0] for shot in shots} == {size["width"]}
    page = np.asarray(Image.open(shots[0]).convert("L"))
    assert (np.median(page) < 64) == (scheme == "dark")


def test_on_a_phone_nothing_is_cut(browser, demo):
    page = chrome.opened(browser, demo.url, chrome.PHONE)
    chrome.draw(page)
    width = chrome.PHONE["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#draw-go", "#draw-gallery", "#draw-zip", "#draw-class", "#draw-dice"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert selector in ("#draw-gallery", "#draw-class") or box["height"] >= 30  # for a finger
    page.context.close()
