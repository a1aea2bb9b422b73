"""The tab that compares two settings on the same seeds."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ddpm_hf.app import stage
from ddpm_hf.app.controls import Controls, count_and_seed
from ddpm_hf.app.draw_tab import PRIVATE, STOPPED, gallery, shown
from ddpm_hf.app.drawing import Progress, Stopped
from ddpm_hf.app.errors import one_line, told
from ddpm_hf.app.files import Side, described, save_all, save_pictures
from ddpm_hf.app.link import link_box
from ddpm_hf.app.request import OF_SETTINGS, Request, check_comparison, default_count, to_query
from ddpm_hf.app.visits import Rooms
from ddpm_hf.errors import UserError

EMPTY = "Change something in B, then press Compare: both draw the same seeds."
COLUMNS = 4


class CompareTab:
    """`restored` are the components that a link sets, `showing` their updates."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        first = next(iter(rooms.models.values()))
        with gr.Row():
            self.count, self.seed = count_and_seed(rooms.limits, min(12, default_count(first, rooms.limits)), "compare")
        self.controls, self.stages, self.galleries = [], [], []
        with gr.Row(elem_classes="sides", equal_height=False):
            for letter in "AB":
                with gr.Column(min_width=280, elem_classes="settings"):
                    gr.Markdown(f"### {letter}")
                    self.controls.append(Controls(rooms.models, rooms.limits, f"compare-{letter.lower()}"))
        with gr.Row():
            self.go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            self.halt = gr.Button("Stop", variant="stop", visible=False, elem_id="compare-stop")
        with gr.Row(elem_classes="results pair", equal_height=False):
            for letter in "AB":
                with gr.Column(min_width=120):
                    self.stages.append(
                        gr.HTML(stage.empty(EMPTY) if letter == "A" else "", elem_id=f"compare-stage-{letter.lower()}")
                    )
                    self.galleries.append(gallery(f"compare-gallery-{letter.lower()}"))
        with gr.Row(visible=False, elem_id="compare-takings") as self.takings:
            self.page = gr.DownloadButton("Both on a page (PNG)", size="md", elem_id="compare-grid")
            self.archive = gr.DownloadButton("All, with settings (zip)", size="md", elem_id="compare-zip")
        self.link, self.query = link_box("compare")
        self._events()

    def _events(self) -> None:
        comparing = gr.on(
            [self.go.click, self.seed.submit],
            self._compare,
            [self.count, self.seed, *self.controls[0].inputs, *self.controls[1].inputs],
            [
                *self.stages,
                *self.galleries,
                self.takings,
                self.page,
                self.archive,
                self.link,
                self.query,
                self.go,
                self.halt,
            ],
            api_name="compare",
            preprocess=False,
            show_progress="hidden",
            concurrency_id="drawing",
        )
        self.halt.click(self._stop, None, [*self.stages, self.go, self.halt], cancels=[comparing], **PRIVATE)

    @property
    def restored(self) -> list[Any]:
        return [self.count, self.seed, *self.controls[0].outputs, *self.controls[1].outputs]

    def showing(self, request: Request) -> list[Any]:
        updates = [gr.update(value=request.count), gr.update(value=request.seed)]
        for controls, settings in zip(self.controls, request.settings, strict=True):
            updates += controls.showing(settings)
        return updates

    def _compare(self, count: Any, seed: Any, *given: Any, request: gr.Request) -> Iterator[dict]:
        rooms, fields = self.rooms, len(OF_SETTINGS)
        with told():
            sides = [dict(zip(OF_SETTINGS, part, strict=True)) for part in (given[:fields], given[fields:])]
            wanted = check_comparison({"count": count, "seed": seed}, sides, rooms.models, rooms.limits)
        columns = min(COLUMNS, wanted.count)
        with rooms.visits.drawing(request.session_hash) as stop:
            yield {
                **{box: stage.waiting(wanted.count, columns) for box in self.stages},
                **{gallery: gr.update(value=None, visible=False) for gallery in self.galleries},
                self.takings: gr.update(visible=False),
                self.go: gr.update(interactive=False),
                self.halt: gr.update(visible=True),
            }
            idle = {self.go: gr.update(interactive=True), self.halt: gr.update(visible=False)}
            place, drawn = rooms.shelf.place(), []
            try:
                for i, settings in enumerate(wanted.settings):
                    model, began, seen = rooms.models[settings.model], time.monotonic(), None
                    for news in rooms.studio.draw(model, settings, wanted.seeds, stop):
                        if isinstance(news, Progress):
                            seen = news.images if news.images is not None else seen
                            yield {self.stages[i]: stage.drawing(news, began, seen, wanted.count, columns)}
                    took = time.monotonic() - began
                    side = Side(model, settings, wanted.seeds, news)
                    drawn.append(side)
                    yield {
                        self.stages[i]: stage.done(f"{'AB'[i]}: {described(settings)} · {took:.1f} s"),
                        self.galleries[i]: shown(save_pictures(side, place, f"{'ab'[i]}_"), side, columns),
                    }
            except Stopped:
                yield idle | dict(zip(self.stages, (stage.empty(STOPPED), ""), strict=True))
                return
            except UserError as error:
                yield idle | dict(zip(self.stages, (stage.empty(EMPTY), ""), strict=True))
                raise one_line(error) from None
            page, archive = save_all(wanted, drawn, place)
        yield idle | {
            self.takings: gr.update(visible=True),
            self.page: page,
            self.archive: archive,
            self.link: gr.update(visible=True),
            self.query: to_query(wanted),
        }

    def _stop(self, request: gr.Request) -> dict:
        self.rooms.visits.stop(request.session_hash)
        return {
            self.stages[0]: stage.empty(STOPPED),
            self.stages[1]: "",
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
        }
