"""The tab that compares two settings on the same seeds."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ddpm_hf.app import stage
from ddpm_hf.app.controls import Controls, count_and_seed
from ddpm_hf.app.draw_tab import AT_ONCE, PRIVATE, STOPPED, gallery, now, shown
from ddpm_hf.app.drawing import Progress, Stopped
from ddpm_hf.app.errors import one_line, told
from ddpm_hf.app.files import Side, described, save_all, save_pictures
from ddpm_hf.app.link import link_box
from ddpm_hf.app.request import OF_SETTINGS, Request, check_comparison, default_count, to_query
from ddpm_hf.app.visits import Rooms
from ddpm_hf.errors import UserError

EMPTY = "Nothing compared yet. Press Compare: A and B draw the same seeds, each in its own way."
COLUMNS = 4


class CompareTab:
    """`restored` are the components that a link sets, `showing` their updates."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        first = next(iter(rooms.models.values()))
        with gr.Row(equal_height=True):
            self.count, self.seed = count_and_seed(rooms.limits, min(12, default_count(first, rooms.limits)), "compare")
        self.controls, self.stages, self.galleries = [], [], []
        with gr.Row(elem_classes="sides", equal_height=False):
            for letter in "AB":
                with gr.Column(min_width=280, elem_classes="settings"):
                    gr.Markdown(f"### {letter}")
                    self.controls.append(Controls(rooms.models, rooms.limits, f"compare-{letter.lower()}"))
        if first.num_classes is not None:  # something to see at once
            self.controls[1].guidance.value = 5.0
        with gr.Row():
            self.go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            self.halt = gr.Button("Stop", variant="stop", visible=False, elem_id="compare-stop")
        self.note = gr.HTML(stage.empty(EMPTY), elem_id="compare-note")
        with gr.Row(equal_height=False, visible=False, elem_classes="pair") as self.pair:
            for letter in "AB":
                with gr.Column(min_width=120):
                    self.stages.append(gr.HTML(elem_id=f"compare-stage-{letter.lower()}"))
                    self.galleries.append(gallery(f"compare-gallery-{letter.lower()}"))
        with gr.Row(visible=False, elem_id="compare-takings") as self.takings:
            self.page = gr.DownloadButton("Both on a page (PNG)", size="md", elem_id="compare-grid")
            self.archive = gr.DownloadButton("All, with settings (zip)", size="md", elem_id="compare-zip")
        self.link, self.query = link_box("compare")
        self.stopped = gr.State(False)
        self._events()

    def _events(self) -> None:
        inputs = [self.count, self.seed, *self.controls[0].inputs, *self.controls[1].inputs]
        busy = [self.note, self.pair, *self.stages, *self.galleries, self.takings, self.go, self.halt, self.stopped]
        prepared = gr.on([self.go.click, self.seed.submit], self._prepare, inputs, busy, **AT_ONCE)
        comparing = prepared.success(
            self._compare,
            inputs,
            [*busy, self.page, self.archive, self.link, self.query],
            api_name="compare",
            preprocess=False,
            show_progress="hidden",
            concurrency_id="drawing",
        )
        over = [self.note, self.pair, self.go, self.halt]
        comparing.failure(self._fail, self.stopped, over, **PRIVATE)
        self.halt.click(self._stop, None, [*over, self.stopped], cancels=[comparing], **PRIVATE)

    @property
    def restored(self) -> list[Any]:
        return [self.count, self.seed, *self.controls[0].outputs, *self.controls[1].outputs]

    def showing(self, request: Request) -> list[Any]:
        updates = [now(request.count), now(request.seed)]
        for controls, settings in zip(self.controls, request.settings, strict=True):
            updates += controls.showing(settings)
        return updates

    def _wanted(self, count: Any, seed: Any, *given: Any) -> Request:
        fields = len(OF_SETTINGS)
        with told():
            sides = [dict(zip(OF_SETTINGS, side, strict=True)) for side in (given[:fields], given[fields:])]
            return check_comparison({"count": count, "seed": seed}, sides, self.rooms.models, self.rooms.limits)

    def _prepare(self, *given: Any) -> dict:
        """What the page shows at once, though others may be before."""
        wanted = self._wanted(*given)
        waiting = [
            now(stage.waiting(text, wanted.count, min(COLUMNS, wanted.count)))
            for text in ("A: waiting for a free place", "B: after A")
        ]
        return {
            self.note: gr.update(visible=False),
            self.pair: gr.update(visible=True),
            **dict(zip(self.stages, waiting, strict=True)),
            **{gallery: gr.update(value=None, visible=False) for gallery in self.galleries},
            self.takings: gr.update(visible=False),
            self.go: gr.update(interactive=False),
            self.halt: gr.update(visible=True),
            self.stopped: False,
        }

    def _compare(
        self,
        count: Any,
        seed: Any,
        model: Any,
        class_label: Any,
        sampler: Any,
        steps: Any,
        guidance: Any,
        low: Any,
        high: Any,
        model2: Any,
        class_label2: Any,
        sampler2: Any,
        steps2: Any,
        guidance2: Any,
        low2: Any,
        high2: Any,
        request: gr.Request,
    ) -> Iterator[dict]:
        rooms = self.rooms
        a = (model, class_label, sampler, steps, guidance, low, high)
        b = (model2, class_label2, sampler2, steps2, guidance2, low2, high2)
        wanted = self._wanted(count, seed, *a, *b)
        columns = min(COLUMNS, wanted.count)
        idle = {self.go: gr.update(interactive=True), self.halt: gr.update(visible=False)}
        with rooms.visits.drawing(request.session_hash) as stop:
            yield {self.stages[0]: now(stage.waiting("Starting", wanted.count, columns))}
            place, drawn, pictures = rooms.shelf.place(), [], []
            try:
                for i, settings in enumerate(wanted.settings):
                    drawing, began, seen = rooms.models[settings.model], time.monotonic(), None
                    for news in rooms.studio.draw(drawing, settings, wanted.seeds, stop):
                        if isinstance(news, Progress):
                            seen = news.images if news.images is not None else seen
                            yield {self.stages[i]: now(stage.drawing(news, began, seen, wanted.count, columns))}
                    took = time.monotonic() - began
                    side = Side(drawing, settings, wanted.seeds, news)
                    drawn.append(side)
                    pictures.append(save_pictures(side, place, f"{'ab'[i]}_"))
                    yield {
                        self.stages[i]: now(stage.done(f"{'AB'[i]}: {described(settings)} · {took:.1f} s")),
                        self.galleries[i]: shown(pictures[i], side, columns),
                    }
            except Stopped:
                yield self._over(STOPPED)
                return
            except UserError as error:
                raise one_line(error) from None
            page, archive = save_all(wanted, drawn, place)
        yield {
            **idle,
            # once more, for programs that look at the last answer
            **{
                box: shown(some, side, columns) for box, some, side in zip(self.galleries, pictures, drawn, strict=True)
            },
            self.takings: gr.update(visible=True),
            self.page: now(page),
            self.archive: now(archive),
            self.link: gr.update(visible=True),
            self.query: now(to_query(wanted)),
        }

    def _stop(self, request: gr.Request) -> dict:
        self.rooms.visits.stop(request.session_hash)
        return self._over(STOPPED) | {self.stopped: True}

    def _fail(self, stopped: bool) -> dict:
        return self._over(STOPPED if stopped else EMPTY)

    def _over(self, text: str) -> dict:
        return {
            self.note: gr.update(value=stage.empty(text), visible=True),
            self.pair: gr.update(visible=False),
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
        }
