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
STOPPED = "Stopped. Press Draw to begin again."
PRIVATE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


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
        first = next(iter(rooms.models.values()))
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=2, min_width=300, elem_classes="settings"):
                self.controls = Controls(rooms.models, rooms.limits, "draw")
                self.count, self.seed = count_and_seed(rooms.limits, default_count(first, rooms.limits), "draw")
            with gr.Column(scale=3, min_width=300, elem_classes="results"):
                with gr.Row():
                    self.go = gr.Button("Draw", variant="primary", elem_id="draw-go")
                    self.halt = gr.Button("Stop", variant="stop", visible=False, elem_id="draw-stop")
                self.stage = gr.HTML(stage.empty(EMPTY), elem_id="draw-stage")
                self.gallery = gallery("draw-gallery")
                with gr.Row(visible=False, elem_id="draw-takings") as self.takings:
                    self.grid = gr.DownloadButton("Grid (PNG)", size="md", elem_id="draw-grid")
                    self.archive = gr.DownloadButton("All, with settings (zip)", size="md", elem_id="draw-zip")
                self.ask_strip = gr.Button(visible=False, elem_id="draw-ask-strip")
                self.strip_stage = gr.HTML(elem_id="draw-strip-stage")
                self.strip = gr.Image(
                    visible=False,
                    label="From noise to picture",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="draw-strip",
                    elem_classes="pixels",
                )
                self.link, self.query = link_box("draw")
        self.drawn = gr.State(None)  # the request of the pictures shown
        self.chosen = gr.State(None)  # one of them
        self._events()

    def _events(self) -> None:
        results = [self.stage, self.gallery, self.takings, self.grid, self.archive, self.link, self.query, self.go,
            self.halt, self.drawn, self.chosen, self.ask_strip, self.strip_stage, self.strip]  # fmt: skip
        queued = {"preprocess": False, "show_progress": "hidden", "concurrency_id": "drawing"}
        drawing = gr.on(
            [self.go.click, self.seed.submit],
            self._draw,
            [self.count, self.seed, *self.controls.inputs],
            results,
            api_name="draw",
            **queued,
        )
        asking = self.ask_strip.click(
            self._draw_strip,
            [self.drawn, self.chosen],
            [self.strip_stage, self.strip, self.ask_strip, self.halt],
            api_visibility="private",
            **queued,
        )
        self.gallery.select(self._choose, self.drawn, [self.chosen, self.ask_strip, self.strip], **PRIVATE)
        self.halt.click(
            self._stop,
            None,
            [self.stage, self.strip_stage, self.go, self.halt, self.ask_strip],
            cancels=[drawing, asking],
            **PRIVATE,
        )

    @property
    def restored(self) -> list[Any]:
        return [self.count, self.seed, *self.controls.outputs]

    def showing(self, request: Request) -> list[Any]:
        return [
            gr.update(value=request.count),
            gr.update(value=request.seed),
            *self.controls.showing(request.settings[0]),
        ]

    def _draw(self, count: Any, seed: Any, *given: Any, request: gr.Request) -> Iterator[dict]:
        rooms = self.rooms
        values = {"count": count, "seed": seed} | dict(zip(OF_SETTINGS, given, strict=True))
        with told():
            wanted = check_request(values, rooms.models, rooms.limits)
        settings = wanted.settings[0]
        model = rooms.models[settings.model]
        columns = stage.columns_for_page(wanted.count, model.num_classes if settings.class_label == EACH else None)
        with rooms.visits.drawing(request.session_hash) as stop:
            yield {
                self.stage: stage.waiting(wanted.count, columns),
                self.gallery: gr.update(value=None, visible=False),
                self.takings: gr.update(visible=False),
                self.go: gr.update(interactive=False),
                self.halt: gr.update(visible=True),
                self.drawn: None,
                self.ask_strip: gr.update(visible=False),
                self.strip: gr.update(visible=False),
            }
            idle = {self.go: gr.update(interactive=True), self.halt: gr.update(visible=False)}
            began, seen = time.monotonic(), None
            try:
                for news in rooms.studio.draw(model, settings, wanted.seeds, stop):
                    if isinstance(news, Progress):
                        seen = news.images if news.images is not None else seen
                        yield {self.stage: stage.drawing(news, began, seen, wanted.count, columns)}
            except Stopped:
                yield idle | {self.stage: stage.empty(STOPPED)}
                return
            except UserError as error:
                yield idle | {self.stage: stage.empty(EMPTY)}
                raise one_line(error) from None
            took = time.monotonic() - began
            side, place = Side(model, settings, wanted.seeds, news), rooms.shelf.place()
            page, archive = save_all(wanted, [side], place)
        yield idle | {
            self.stage: stage.done(f"{stage.pictures(wanted.count)} in {took:.1f} s. Choose one to see it large."),
            self.gallery: shown(save_pictures(side, place), side, columns),
            self.takings: gr.update(visible=True),
            self.grid: page,
            self.archive: archive,
            self.link: gr.update(visible=True),
            self.query: to_query(wanted),
            self.drawn: wanted,
        }

    def _choose(self, drawn: Request | None, event: gr.SelectData) -> dict:
        index = event.index if isinstance(event.index, int) else -1
        if drawn is None or not 0 <= index < drawn.count:
            return {self.ask_strip: gr.update(visible=False)}
        return {
            self.chosen: index,
            self.ask_strip: gr.update(visible=True, value=f"Show how picture {index + 1} came out of noise"),
            self.strip: gr.update(visible=False),
        }

    def _draw_strip(self, drawn: Request | None, index: int | None, request: gr.Request) -> Iterator[dict]:
        with told():
            if drawn is None or index is None:
                raise UserError("draw some pictures first, then choose one")
        settings, model = drawn.settings[0], self.rooms.models[drawn.settings[0].model]
        with self.rooms.visits.drawing(request.session_hash) as stop:
            yield {
                self.strip_stage: stage.waiting(0, 1),
                self.strip: gr.update(visible=False),
                self.ask_strip: gr.update(interactive=False),
                self.halt: gr.update(visible=True),
            }
            idle = {
                self.strip_stage: "",
                self.ask_strip: gr.update(interactive=True),
                self.halt: gr.update(visible=False),
            }
            began = time.monotonic()
            try:
                for news in self.rooms.studio.strip(model, settings, drawn.seeds[index], stop):
                    if isinstance(news, Progress):
                        yield {self.strip_stage: stage.drawing(news, began, None, 0, 1)}
            except Stopped:
                yield idle
                return
            except UserError as error:
                yield idle
                raise one_line(error) from None
            yield idle | {self.strip: gr.update(value=save_strip(news, self.rooms.shelf.place()), visible=True)}

    def _stop(self, request: gr.Request) -> dict:
        self.rooms.visits.stop(request.session_hash)
        return {
            self.stage: gr.skip(),
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
            self.ask_strip: gr.update(interactive=True),
            self.strip_stage: "",
        }
