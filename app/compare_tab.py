"""The tab that compares two settings on the same seeds."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ddpm_hf.app import stage
from ddpm_hf.app.controls import Controls, count_and_seed
from ddpm_hf.app.draw_tab import AT_ONCE, FAILED, PRIVATE, STOPPED, gallery, now, shown
from ddpm_hf.app.drawing import Progress, Stopped
from ddpm_hf.app.errors import one_line, told
from ddpm_hf.app.files import Side, described, save_all, save_pictures, writing
from ddpm_hf.app.link import link_box
from ddpm_hf.app.request import ANY, EACH, OF_SETTINGS, Request, check_comparison, default_count, to_query
from ddpm_hf.app.visits import Rooms, before_you
from ddpm_hf.errors import UserError

EMPTY = "Nothing compared yet. Press Compare: A and B draw the same seeds, each in its own way."
COLUMNS = 4
TAB = "compare"


class CompareTab:
    """`restored` are the components that a link sets, `showing` their updates."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        first = next(iter(rooms.models.values()))
        with gr.Row(equal_height=True):
            self.count, self.seed = count_and_seed(rooms.limits, min(12, default_count(first, rooms.limits)), "compare")
        self.controls, self.heads, self.stages, self.galleries = [], [], [], []
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
        self.told = gr.HTML(elem_id="compare-told", elem_classes="told")
        self.note = gr.HTML(stage.empty(EMPTY), elem_id="compare-note")
        with gr.Row(equal_height=False, visible=False, elem_classes="pair") as self.pair:
            for letter in "AB":
                with gr.Column(min_width=120):
                    self.heads.append(gr.HTML(elem_id=f"compare-head-{letter.lower()}"))
                    self.stages.append(gr.HTML(elem_id=f"compare-stage-{letter.lower()}"))
                    self.galleries.append(gallery(f"compare-gallery-{letter.lower()}"))
        with gr.Row(visible=False, elem_id="compare-takings") as self.takings:
            self.page = gr.DownloadButton("Both on a page (PNG)", size="md", elem_id="compare-grid")
            self.archive = gr.DownloadButton("All, with settings (zip)", size="md", elem_id="compare-zip")
        self.link, self.query = link_box("compare")
        self._events()

    def _events(self) -> None:
        inputs = [self.count, self.seed, *self.controls[0].inputs, *self.controls[1].inputs]
        both = [*self.heads, *self.stages, *self.galleries]
        busy = [self.told, self.note, self.pair, *both, self.takings, self.go, self.halt, self.link, self.query]
        prepared = gr.on([self.go.click, self.seed.submit], self._prepare, inputs, busy, **AT_ONCE)
        prepared.success(None, None, None, js=stage.IN_SIGHT.format("compare-head-a"), api_visibility="private")
        comparing = prepared.success(
            self._compare,
            inputs,
            [*busy, self.page, self.archive],
            api_name="compare",
            preprocess=False,
            show_progress="hidden",
            concurrency_id="drawing",
        )
        over = [self.told, self.note, self.pair, self.go, self.halt]
        comparing.failure(self._fail, None, over, **PRIVATE)
        self.halt.click(self._stop, None, over, cancels=[comparing], **PRIVATE)

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

    def _prepare(self, request: gr.Request, *given: Any) -> dict:
        """What the page shows at once, though others may be before."""
        wanted = self._wanted(*given)
        with told():
            if self.rooms.visits.is_drawing(request.session_hash, TAB):
                raise UserError("something is being drawn; wait for it, or stop it first")
        self.rooms.visits.was_stopped(request.session_hash, TAB)  # an earlier one
        words = before_you(self.rooms.visits.ahead())
        sheet = stage.Sheet(wanted.count, min(COLUMNS, wanted.count)).html()
        return {
            self.told: now(stage.told(words)),
            self.note: gr.update(visible=False),
            self.pair: gr.update(visible=True),
            self.heads[0]: now(stage.waiting(f"A: {words[:1].lower()}{words[1:]}")),
            self.heads[1]: now(stage.waiting("B: after A")),
            **{box: now(sheet) for box in self.stages},
            **{gallery: gr.update(value=None, visible=False) for gallery in self.galleries},
            self.takings: gr.update(visible=False),
            self.go: gr.update(interactive=False),
            self.halt: gr.update(visible=True),
            self.link: gr.update(visible=False),
            self.query: now(""),
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
        words = self._words(wanted)
        with rooms.visits.drawing(request.session_hash, TAB) as stop:
            yield {self.told: now(stage.told("Drawing A")), self.heads[0]: now(stage.waiting("Starting"))}
            place, drawn, pictures = rooms.shelf.place(), [], []
            try:
                for i, settings in enumerate(wanted.settings):
                    drawing, began = rooms.models[settings.model], time.monotonic()
                    sheet = stage.Sheet(wanted.count, columns)
                    for news in rooms.studio.draw(drawing, settings, wanted.seeds, stop):
                        if isinstance(news, Progress):
                            update = {self.heads[i]: now(stage.drawing(news, began))}
                            if news.images is not None:
                                update[self.stages[i]] = now(sheet.html(news))
                            yield update
                    took = time.monotonic() - began
                    side = Side(drawing, settings, wanted.seeds, news)
                    drawn.append(side)
                    with writing():
                        pictures.append(save_pictures(side, place, f"{'ab'[i]}_"))
                    yield {
                        self.told: now(stage.told("Drawing B" if i == 0 else "Both are drawn")),
                        self.heads[i]: now(""),
                        self.stages[i]: now(stage.compared("AB"[i], words[i], words[1 - i], took)),
                        self.galleries[i]: shown(pictures[i], side, columns),
                    }
                with writing():
                    page, archive = save_all(wanted, drawn, place)
            except Stopped:
                yield self._over(stop.why)
                return
            except UserError as error:
                raise one_line(error) from None
        yield {
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
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

    def _words(self, wanted: Request) -> list[list[str]]:
        """What each side's settings are, in words; model and class where they differ."""
        a, b = wanted.settings
        both = []
        for settings in (a, b):
            words = [settings.model] if a.model != b.model else []
            if a.class_label != b.class_label and settings.class_label is not None:
                label, model = settings.class_label, self.rooms.models[settings.model]
                words.append({EACH: "each class", ANY: "any class"}.get(label) or model.class_name(int(label)))
            both.append([*words, *described(settings).split(", ")])
        return both

    def _stop(self, request: gr.Request) -> dict:
        self.rooms.visits.stop(request.session_hash, TAB)
        return self._over(STOPPED)

    def _fail(self, request: gr.Request) -> dict:
        return self._over(STOPPED if self.rooms.visits.was_stopped(request.session_hash, TAB) else FAILED)

    def _over(self, text: str) -> dict:
        return {
            self.told: now(stage.told(text)),
            self.note: gr.update(value=stage.empty(text), visible=True),
            self.pair: gr.update(visible=False),
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
        }
