"""A headless Chromium on the demo, for tests, and for the pictures of the docs:

python -m tests.app.browser runs/digits screenshots
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browsing() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


def opened(browser, url: str, size=WIDE, scheme="light", wait=120_000):
    """A page of its own visitor, ready to be used; `page.requested` are the addresses it has asked for."""
    phone = size is PHONE
    context = browser.new_context(
        viewport=size, color_scheme=scheme, has_touch=phone, is_mobile=phone, accept_downloads=True
    )
    context.set_default_timeout(wait)
    page = context.new_page()
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    with page.expect_response(lambda answer: "run/predict" in answer.url):  # what the link says
        page.goto(url)
    page.wait_for_selector("#draw-go", state="attached")
    page.wait_for_timeout(500)
    return page


def draw(page) -> None:
    page.click("#draw-go")
    page.wait_for_selector("#draw-stage .stage:not(.done)")
    page.wait_for_selector("#draw-stage .done")
    pictures_loaded(page, "#draw-gallery")


def compare(page) -> None:
    page.click("#compare-go")
    page.wait_for_selector("#compare-stage-b .done")
    page.wait_for_selector("#compare-link")
    for side in "ab":
        pictures_loaded(page, f"#compare-gallery-{side}")


def pictures_loaded(page, gallery: str) -> None:
    # without lazy loading, which would leave out what is below the window
    page.wait_for_selector(f"{gallery} .thumbnail-lg img")
    page.evaluate(f"document.querySelectorAll('{gallery} img').forEach(i => i.loading = 'eager')")
    page.wait_for_function(f"[...document.querySelectorAll('{gallery} img')].every(i => i.complete && i.naturalWidth)")


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def tour(browser, url: str, folder: Path, size, scheme: str, name: str) -> list[Path]:
    """Screenshots of every state of the page."""
    page, shots = opened(browser, url, size, scheme), []

    def shot(state: str) -> None:
        page.mouse.move(0, 0)
        page.wait_for_timeout(400)  # for transitions
        shots.append(folder / f"demo_{state}_{name}_{scheme}.png")
        page.screenshot(path=shots[-1], full_page=True)

    shot("empty")
    steps = page.locator("#draw-steps input[type=number]")
    usual = steps.input_value()
    steps.fill(steps.get_attribute("max"))  # for long enough that it is seen on the way
    steps.press("Tab")
    page.click("#draw-go")
    page.wait_for_selector("#draw-stage .cell img")
    shot("drawing")
    page.click("#draw-stop")
    page.wait_for_selector("#draw-go:enabled")
    steps.fill(usual)
    steps.press("Tab")
    draw(page)
    shot("drawn")
    page.click("#draw-gallery .thumbnail-lg >> nth=3")
    page.click("#draw-ask-strip")
    page.wait_for_selector("#draw-strip img")
    shot("strip")
    tab(page, "Compare")
    compare(page)
    shot("compared")
    tab(page, "About")
    page.wait_for_selector(".card")
    shot("about")
    page.context.close()
    return shots


def main(model: str, folder: str) -> None:
    from ddpm_hf.app.server import Demo

    Path(folder).mkdir(parents=True, exist_ok=True)
    with Demo([model]) as demo, browsing() as browser:
        for size, name in ((WIDE, "wide"), (PHONE, "phone")):
            for scheme in ("light", "dark"):
                for file in tour(browser, demo.url, Path(folder), size, scheme, name):
                    print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
