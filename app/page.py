"""The page: a tab to draw, one to compare, one about the models."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ddpm_hf.app.compare_tab import CompareTab
from ddpm_hf.app.draw_tab import DrawTab
from ddpm_hf.app.files import KEPT
from ddpm_hf.app.models import Failure, Model
from ddpm_hf.app.request import OF_SETTINGS, from_query
from ddpm_hf.app.visits import Rooms

# what is told stays the same element, so that screen readers notice its change
_ANNOUNCE = """() => document.querySelectorAll(".told").forEach(place => {
    place.setAttribute("role", "status"); place.setAttribute("aria-live", "polite"); })"""


def build_page(rooms: Rooms, failures: Sequence[Failure]) -> gr.Blocks:
    models, limits = rooms.models, rooms.limits
    with gr.Blocks(
        title=_title(models), analytics_enabled=False, delete_cache=(KEPT // 6, KEPT), fill_width=True
    ) as page:
        gr.Markdown(f"# {escape(_title(models))}", elem_id="title")
        if failures:
            gr.HTML(_failures(failures), elem_id="failures")
        notice = gr.HTML(visible=False, elem_id="notice")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Draw", id="draw"):
                draw = DrawTab(rooms)
            with gr.Tab("Compare", id="compare"):
                compare = CompareTab(rooms)
            with gr.Tab("About", id="about") as opened:
                about = About(rooms, opened)

        def restore(request: gr.Request) -> dict:
            """What the link that the visitor came by says."""
            query = dict(request.query_params)
            known = {"count", "seed", *(n + s for n in (*OF_SETTINGS, "class") for s in ("", "2"))}
            if not known & set(query):
                return {notice: gr.skip()}
            wanted, wrong = from_query(query, models, limits)
            tab = compare if len(wanted.settings) == 2 else draw
            updates = dict(zip(tab.restored, tab.showing(wanted), strict=True))
            updates[about.choice] = gr.update(value=wanted.settings[0].model)
            updates[tabs] = gr.update(selected="compare" if tab is compare else "draw")
            if wrong:
                lines = "".join(f"<li>{escape(line)}</li>" for line in wrong)
                updates[notice] = gr.update(
                    value=f'<div class="notice" role="alert">Not everything in this link could be used:<ul>{lines}</ul></div>',
                    visible=True,
                )
            return updates

        def leave(request: gr.Request) -> None:
            rooms.visits.stop(request.session_hash)

        private: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(restore, None, [notice, tabs, about.choice, *draw.restored, *compare.restored], **private)
        page.load(None, None, None, js=_ANNOUNCE, api_visibility="private")
        page.unload(leave)
    return page


def look() -> dict[str, Any]:
    """How the page looks, for `Blocks.launch`. Letters come from Gradio's own files, of which the semibold ones lack most."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
    )
    # of Gradio's own greys and accents some are too light to read
    theme.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color_dark="*neutral_400",
        link_text_color_dark="*primary_300",
    )
    return {"theme": theme, "css_paths": Path(__file__).parent / "style.css"}


def _title(models: Mapping[str, Model]) -> str:
    return f"Draw with {next(iter(models))}" if len(models) == 1 else "Draw with diffusion models"


def _failures(failures: Sequence[Failure]) -> str:
    lines = "".join(f"<li><b>{escape(f.name)}</b>: {escape(f.message)}</li>" for f in failures)
    word = "This model" if len(failures) == 1 else "These models"
    return f'<div class="notice" role="alert">{word} could not be loaded:<ul>{lines}</ul></div>'


class About:
    """Each card is put into the page once; choosing a model shows its own and hides the others, in the browser alone."""

    def __init__(self, rooms: Rooms, opened: gr.Tab) -> None:
        models = list(rooms.models)
        self.choice = gr.Dropdown(
            models, label="Model", visible=len(models) > 1, filterable=False, elem_id="about-model"
        )
        for number, (name, model) in enumerate(rooms.models.items()):
            folder = rooms.shelf.cards / str(number)
            gr.HTML(
                model.card.html(folder, f"gradio_api/file={folder}"),
                elem_classes=["card", "prose", *([] if name == models[0] else ["other"])],
                elem_id=f"card-{number}",
                container=True,
            )
        show = """(name) => document.querySelectorAll('[id^=card-]').forEach(
            (card, i) => card.classList.toggle("other", i !== %s.indexOf(name)))"""
        # a link chooses before the tab has been opened, when there are no cards yet
        gr.on(
            [self.choice.change, opened.select],
            None,
            self.choice,
            None,
            js=show % json.dumps(models),
            api_visibility="private",
        )
