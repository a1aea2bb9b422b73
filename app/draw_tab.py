"""The tab that draws."""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from ddpm_hf.app import stage
from ddpm_hf.app.controls import Controls, count_and_seed
from ddpm_hf.app.drawing import Progress, Stopped
from ddpm_hf.app.errors import one_line, told
from ddpm_hf.app.files import TALL, Side, save_all, save_pictures, save_strip, writing
from ddpm_hf.app.link import link_box
from ddpm_hf.app.request import EACH, OF_SETTINGS, Request, check_request, default_count, from_query, to_query
from ddpm_hf.app.visits import Rooms, before_you
from ddpm_hf.errors import UserError

EMPTY = "Nothing drawn yet. Press Draw: the pictures appear here while they come out of noise."
TAB = "draw"
FAILED = "Nothing was drawn."
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
                self.told = gr.HTML(elem_id="draw-told", elem_classes="told")
                self.head = gr.HTML(visible=False, elem_id="draw-head")
                self.stage = gr.HTML(stage.empty(EMPTY), elem_id="draw-stage")
                self.gallery = gallery("draw-gallery")
                with gr.Row(visible=False, elem_id="draw-takings") as self.takings:
                    self.grid = gr.DownloadButton("Grid (PNG)", size="md", elem_id="draw-grid")
                    self.archive = gr.DownloadButton("All, with settings (zip)", size="md", elem_id="draw-zip")
                self.ask_strip = gr.Button(visible=False, size="md", elem_id="draw-ask-strip")
                self.strip_stage = gr.HTML(visible=False, elem_id="draw-strip-stage")
                with gr.Column(visible=False, elem_id="draw-strip") as self.strip:
                    self.strip_title = gr.HTML(elem_id="draw-strip-title")
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
        # all that is remembered of what is shown is on the page itself: `query`, and which was chosen
        self.chosen = gr.Number(visible="hidden")
        self._events()

    def _count_and_seed(self) -> None:
        first = next(iter(self.rooms.models.values()))
        self.count, self.seed = count_and_seed(self.rooms.limits, default_count(first, self.rooms.limits), "draw")

    def _events(self) -> None:
        inputs = [self.count, self.seed, *self.controls.inputs]
        busy = [
            self.told,
            self.head,
            self.stage,
            self.gallery,
            self.takings,
            self.go,
            self.halt,
            self.link,
            self.query,
            self.ask_strip,
            self.strip,
        ]
        queued = {"preprocess": False, "show_progress": "hidden", "concurrency_id": "drawing"}
        prepared = gr.on([self.go.click, self.seed.submit], self._prepare, inputs, busy, **AT_ONCE)
        prepared.success(None, None, None, js=stage.IN_SIGHT.format("draw-head"), api_visibility="private")
        drawing = prepared.success(self._draw, inputs, [*busy, self.grid, self.archive], api_name="draw", **queued)
        drawing.failure(self._fail, None, [self.told, self.head, self.stage, self.go, self.halt], **PRIVATE)
        around = [self.told, self.strip_stage, self.ask_strip, self.go, self.halt]
        asking = self.ask_strip.click(
            self._draw_strip,
            [self.query, self.chosen],
            [*around, self.strip, self.strip_title, self.strip_picture, self.strip_file],
            api_visibility="private",
            **queued,
        )
        asking.failure(self._strip_over, None, around, **PRIVATE)
        self.gallery.select(
            self._choose, self.query, [self.chosen, self.ask_strip, self.strip], preprocess=False, **PRIVATE
        )
        self.halt.click(
            self._stop,
            self.query,
            [self.told, self.head, self.stage, self.strip_stage, self.go, self.halt, self.ask_strip],
            cancels=[drawing, asking],
            preprocess=False,
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

    def _drawn(self, query: Any) -> Request | None:
        """The request of the pictures shown, from their link's query, as any visitor may have written it."""
        if not isinstance(query, str) or not query:
            return None
        wanted, wrong = from_query(dict(parse_qsl(query.removeprefix("?"))), self.rooms.models, self.rooms.limits)
        return None if wrong or len(wanted.settings) != 1 else wanted

    def _prepare(self, request: gr.Request, *given: Any) -> dict:
        """What the page shows at once, though others may be before."""
        wanted, columns = self._wanted(*given)
        with told():
            if self.rooms.visits.is_drawing(request.session_hash, TAB):
                raise UserError("something is being drawn; wait for it, or stop it first")
        self.rooms.visits.was_stopped(request.session_hash, TAB)  # an earlier one
        words = before_you(self.rooms.visits.ahead())
        return {
            self.told: now(stage.told(words)),
            self.head: gr.update(value=stage.waiting(words), visible=True),
            self.stage: now(stage.Sheet(wanted.count, columns).html()),
            self.gallery: gr.update(value=None, visible=False),
            self.takings: gr.update(visible=False),
            self.go: gr.update(interactive=False),
            self.halt: gr.update(visible=True),
            self.link: gr.update(visible=False),
            self.query: now(""),
            self.ask_strip: gr.update(visible=False),
            self.strip: gr.update(visible=False),
        }

    def _fail(self, request: gr.Request) -> dict:
        return self._over(STOPPED if self.rooms.visits.was_stopped(request.session_hash, TAB) else FAILED)

    def _over(self, text: str) -> dict:
        return {
            self.told: now(stage.told(text)),
            self.head: gr.update(value="", visible=False),
            self.stage: now(stage.empty(text)),
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
        sheet = stage.Sheet(wanted.count, columns)
        with rooms.visits.drawing(request.session_hash, TAB) as stop:
            yield {
                self.told: now(stage.told("Drawing")),
                self.head: gr.update(value=stage.waiting("Starting"), visible=True),
            }
            began = time.monotonic()
            try:
                for news in rooms.studio.draw(drawing, settings, wanted.seeds, stop):
                    if isinstance(news, Progress):
                        update = {self.head: now(stage.drawing(news, began))}
                        if news.images is not None:
                            update[self.stage] = now(sheet.html(news))
                        yield update
                took = time.monotonic() - began
                side, place = Side(drawing, settings, wanted.seeds, news), rooms.shelf.place()
                with writing():
                    page, archive = save_all(wanted, [side], place)
                    files = save_pictures(side, place)
            except Stopped:
                yield self._over(stop.why)
                return
            except UserError as error:
                raise one_line(error) from None
        words = f"{stage.pictures(wanted.count)} in {took:.1f} s. Choose one to see it large."
        yield self._over("") | {
            self.told: now(stage.told(words)),
            self.stage: now(stage.done(words)),
            self.gallery: shown(files, side, columns),
            self.takings: gr.update(visible=True),
            self.grid: now(page),
            self.archive: now(archive),
            self.link: gr.update(visible=True),
            self.query: now(to_query(wanted)),
        }

    def _choose(self, query: Any, event: gr.SelectData) -> dict:
        drawn, index = self._drawn(query), event.index
        if drawn is None or not isinstance(index, int) or not 0 <= index < drawn.count:
            return {self.ask_strip: gr.update(visible=False)}
        return {
            self.chosen: now(index),
            self.ask_strip: gr.update(visible=True, value=f"Show how seed {drawn.seeds[index]} came out of noise"),
            self.strip: gr.update(visible=False),
        }

    def _draw_strip(self, query: Any, index: Any, request: gr.Request) -> Iterator[dict]:
        drawn, visits = self._drawn(query), self.rooms.visits
        with told():
            if drawn is None or not isinstance(index, int) or not 0 <= index < drawn.count:
                raise UserError("draw some pictures first, then choose one")
            if visits.is_drawing(request.session_hash, TAB):
                raise UserError("something is being drawn; wait for it, or stop it first")
        settings, model, seed = drawn.settings[0], self.rooms.models[drawn.settings[0].model], drawn.seeds[index]
        with visits.drawing(request.session_hash, TAB) as stop:
            yield {
                self.told: now(stage.told(f"Drawing seed {seed} again")),
                self.strip_stage: gr.update(value=stage.waiting("Starting"), visible=True),
                self.strip: gr.update(visible=False),
                self.ask_strip: gr.update(interactive=False),
                self.go: gr.update(interactive=False),
                self.halt: gr.update(visible=True),
            }
            began = time.monotonic()
            try:
                for news in self.rooms.studio.strip(model, settings, seed, stop):
                    if isinstance(news, Progress):
                        yield {self.strip_stage: now(stage.drawing(news, began))}
                with writing():
                    file = save_strip(news, self.rooms.shelf.place())
            except Stopped:
                yield self._strip_over()
                return
            except UserError as error:
                raise one_line(error) from None
        words = f"Seed {seed}, from noise to the picture"
        yield self._strip_over() | {
            self.told: now(stage.told(words)),
            self.strip: gr.update(visible=True),
            self.strip_title: now(stage.done(words)),
            self.strip_picture: gr.update(value=file, alt_text=f"{words}, in {len(news)} states"),
            self.strip_file: now(file),
        }

    def _strip_over(self) -> dict:
        return {
            self.told: now(""),
            self.strip_stage: gr.update(value="", visible=False),
            self.ask_strip: gr.update(interactive=True),
            self.go: gr.update(interactive=True),
            self.halt: gr.update(visible=False),
        }

    def _stop(self, query: Any, request: gr.Request) -> dict:
        self.rooms.visits.stop(request.session_hash, TAB)
        if self._drawn(query) is not None:  # it was a strip
            return self._strip_over()
        return self._over(STOPPED)
