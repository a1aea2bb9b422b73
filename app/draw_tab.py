"""The tab that draws."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ddpm_hf.app import stage
from ddpm_hf.app.controls import Controls, count_and_seed
from ddpm_hf.app.drawing import Progress, Stopped
from ddpm_hf.app.errors import one_line, told
from ddpm_hf.app.files import TALL, Side, save_all, save_pictures, save_strip
from ddpm_hf.app.link import link_box
from ddpm_hf.app.request import EACH, OF_SETTINGS, Request, check_request, default_count, to_query
from ddpm_hf.app.visits import Rooms
from ddpm_hf.errors import UserError

EMPTY = "Nothing drawn yet. Press Draw: the pictures appear here while they come out of noise."
STOPPED = "Stopped. Nothing of it was kept."
PRIVATE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# through the queue, where mistakes are told on the page, but waiting for nobody
AT_ONCE: dict[str, Any] = PRIVATE | {
    "queue": True,
    "concurrency_id": "at once",
    "concurrency_limit": None,
    "preprocess": False,
}


def now(value: Any) -> dict:
    """A component's new value as an update: each bare value that followed an update would leave a component more in the
    session's memory, as Gradio 6.31 keeps them."""
    return gr.update(value=value)


def gallery(name: str) -> gr.Gallery:
    return gr.Gallery(
        visible=False,
        show_label=False,
        format="png",
        object_fit="contain",
        height="auto",
        fit_columns=False,
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=name,
    )


def shown(pictures: list[tuple[str, str]], side: Side, columns: int) -> dict:
    """The update of a gallery that shows them."""
    crisp = "pixels" if side.images.shape[-2] < TALL else ""
    return gr.update(value=pictures, visible=True, columns=columns, elem_classes=crisp, selected_index=None)


class DrawTab:
    """`restored` are the components that a link sets, `showing` their updates."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=2, min_width=300, elem_classes="settings"):
                self.controls = Controls(rooms.models, rooms.limits, "draw", self._count_and_seed)
            with gr.Column(scale=3, min_width=300, elem_classes="results"):
                with gr.Row():
                    self.go = gr.Button("Draw", variant="primary", elem_id="draw-go")
                    self.halt = gr.Button("Stop", variant="stop", visible=False, elem_id="draw-stop")
                self.stage = gr.HTML(stage.empty(EMPTY), elem_id="draw-stage")
                self.gallery = gallery("draw-gallery")
                with gr.Row(visible=False, elem_id="draw-takings") as self.takings:
                    self.grid = gr.DownloadButton("Grid (PNG)", size="md", elem_id="draw-grid")
                    self.archive = gr.DownloadButton("All, with settings (zip)", size="md", elem_id="draw-zip")
                self.ask_strip = gr.Button(visible=False, size="md", elem_id="draw-ask-strip")
                self.strip_stage = gr.HTML(visible=False, elem_id="draw-strip-stage")
                with gr.Column(visible=False, elem_id="draw-strip") as self.strip:
                    self.strip_picture = gr.Image(
                        show_label=False,
                        container=False,
                        format="png",
                        interactive=False,
                        buttons=[],
                        elem_classes="pixels",
                    )
                    self.strip_file = gr.DownloadButton("Strip (PNG)", size="md")
                self.link, self.query = link_box("draw")
        self.drawn = gr.State(None)  # the request of the pictures shown
        self.chosen = gr.State(None)  # one of them
        self.stopped = gr.State(False)  # so that it is not told as a failure, which it is to Gradio
        self._events()

    def _count_and_seed(self) -> None:
        first = next(iter(self.rooms.models.values()))
        self.count, self.seed = count_and_seed(self.rooms.limits, default_count(first, self.rooms.limits), "draw")

    def _events(self) -> None:
        inputs = [self.count, self.seed, *self.controls.inputs]
        busy = [
            self.stage,
            self.gallery,
            self.takings,
            self.go,
            self.halt,
            self.drawn,
            self.stopped,
            self.ask_strip,
            self.strip,
        ]
        queued = {"preprocess": False, "show_progress": "hidden", "concurrency_id": "drawing"}
        prepared = gr.on([self.go.click, self.seed.submit], self._prepare, inputs, busy, **AT_ONCE)
        drawing = prepared.success(
            self._draw, inputs, [*busy, self.grid, self.archive, self.link, self.query], api_name="draw", **queued
        )
        drawing.failure(self._fail, self.stopped, [self.stage, self.go, self.halt], **PRIVATE)
        asking = self.ask_strip.click(
            self._draw_strip,
            [self.drawn, self.chosen],
            [self.strip_stage, self.strip, self.strip_picture, self.strip_file, self.ask_strip, self.halt],
            api_visibility="private",
            **queued,
        )
        self.gallery.select(self._choose, self.drawn, [self.chosen, self.ask_strip, self.strip], **PRIVATE)
        self.halt.click(
            self._stop,
            self.drawn,
            [self.stage, self.strip_stage, self.go, self.halt, self.ask_strip, self.stopped],
            cancels=[drawing, asking],
            **PRIVATE,
        )

    @property
    def restored(self) -> list[Any]:
        return [self.count, self.seed, *self.controls.outputs]

    def showing(self, request: Request) -> list[Any]:
        return [
            now(request.count),
            now(request.seed),
            *self.controls.showing(request.settings[0]),
        ]

    def _wanted(self, count: Any, seed: Any, *given: Any) -> tuple[Request, int]:
        """What is asked for, and in how many columns to show it."""
        values = {"count": count, "seed": seed} | dict(zip(OF_SETTINGS, given, strict=True))
        with told():
            wanted = check_request(values, self.rooms.models, self.rooms.limits)
        settings = wanted.settings[0]
        in_turn = self.rooms.models[settings.model].num_classes if settings.class_label == EACH else None
        return wanted, stage.columns_for_page(wanted.count, in_turn)

    def _prepare(self, *given: Any) -> dict:
        """What the page shows at once, though others may be before."""
        wanted, columns = self._wanted(*given)
        return {
            self.stage: now(stage.waiting("Waiting for a free place", wanted.count, columns)),
            self.gallery: gr.update(value=None, visible=False),
            self.takings: gr.update(visible=False),
            self.go: gr.update(interactive=False),
            self.halt: gr.update(visible=True),
            self.drawn: None,
            self.stopped: False,
            self.ask_strip: gr.update(visible=False),
            self.strip: gr.update(visible=False),
        }

    def _fail(self, stopped: bool) -> dict:
        return {
            self.stage: now(stage.empty(STOPPED if stopped else EMPTY)),
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
        }

    def _draw(
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
        request: gr.Request,
    ) -> Iterator[dict]:
        rooms = self.rooms
        wanted, columns = self._wanted(count, seed, model, class_label, sampler, steps, guidance, low, high)
        settings = wanted.settings[0]
        drawing = rooms.models[settings.model]
        idle = {self.go: gr.update(interactive=True), self.halt: gr.update(visible=False)}
        with rooms.visits.drawing(request.session_hash) as stop:
            yield {self.stage: now(stage.waiting("Starting", wanted.count, columns))}
            began, seen = time.monotonic(), None
            try:
                for news in rooms.studio.draw(drawing, settings, wanted.seeds, stop):
                    if isinstance(news, Progress):
                        seen = news.images if news.images is not None else seen
                        yield {self.stage: now(stage.drawing(news, began, seen, wanted.count, columns))}
            except Stopped:
                yield idle | {self.stage: now(stage.empty(STOPPED))}
                return
            except UserError as error:
                raise one_line(error) from None
            took = time.monotonic() - began
            side, place = Side(drawing, settings, wanted.seeds, news), rooms.shelf.place()
            page, archive = save_all(wanted, [side], place)
        yield idle | {
            self.stage: now(stage.done(f"{stage.pictures(wanted.count)} in {took:.1f} s. Choose one to see it large.")),
            self.gallery: shown(save_pictures(side, place), side, columns),
            self.takings: gr.update(visible=True),
            self.grid: now(page),
            self.archive: now(archive),
            self.link: gr.update(visible=True),
            self.query: now(to_query(wanted)),
            self.drawn: wanted,
        }

    def _choose(self, drawn: Request | None, event: gr.SelectData) -> dict:
        index = event.index if isinstance(event.index, int) else -1
        if drawn is None or not 0 <= index < drawn.count:
            return {self.ask_strip: gr.update(visible=False)}
        return {
            self.chosen: index,
            self.ask_strip: gr.update(visible=True, value=f"Show how seed {drawn.seeds[index]} came out of noise"),
            self.strip: gr.update(visible=False),
        }

    def _draw_strip(self, drawn: Request | None, index: int | None, request: gr.Request) -> Iterator[dict]:
        with told():
            if drawn is None or index is None:
                raise UserError("draw some pictures first, then choose one")
        settings, model = drawn.settings[0], self.rooms.models[drawn.settings[0].model]
        with self.rooms.visits.drawing(request.session_hash) as stop:
            yield {
                self.strip_stage: gr.update(value=stage.waiting("Waiting for a free place", 0, 1), visible=True),
                self.strip: gr.update(visible=False),
                self.ask_strip: gr.update(interactive=False),
                self.halt: gr.update(visible=True),
            }
            idle = {
                self.strip_stage: gr.update(value="", visible=False),
                self.ask_strip: gr.update(interactive=True),
                self.halt: gr.update(visible=False),
            }
            began = time.monotonic()
            try:
                for news in self.rooms.studio.strip(model, settings, drawn.seeds[index], stop):
                    if isinstance(news, Progress):
                        yield {self.strip_stage: now(stage.drawing(news, began, None, 0, 1))}
            except Stopped:
                yield idle
                return
            except UserError as error:
                yield idle
                raise one_line(error) from None
            file = save_strip(news, self.rooms.shelf.place())
            yield idle | {
                self.strip: gr.update(visible=True),
                self.strip_picture: now(file),
                self.strip_file: now(file),
            }

    def _stop(self, drawn: Request | None, request: gr.Request) -> dict:
        self.rooms.visits.stop(request.session_hash)
        return {
            self.stopped: True,
            self.stage: now(stage.empty(STOPPED))
            if drawn is None
            else gr.skip(),  # else it was a strip that was stopped
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
            self.ask_strip: gr.update(interactive=True),
            self.strip_stage: gr.update(value="", visible=False),
        }
