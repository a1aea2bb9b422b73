"""The controls of one drawing, for whichever model is chosen."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from ddpm_hf.app.models import Model
from ddpm_hf.app.request import (
    ANY,
    EACH,
    LARGEST_GUIDANCE,
    LARGEST_SEED,
    OF_SETTINGS,
    Limits,
    Settings,
    default_settings,
)

SAMPLERS = [  # what a person wants to know of each
    ("DPM-Solver++ · good from 15 steps", "dpmsolver++"),
    ("UniPC · good from 10 steps", "unipc"),
    ("DDIM · plain, good from 50 steps", "ddim"),
    ("Heun · two passes a step, good from 15", "heun"),
    ("DDPM · the original, wants hundreds of steps", "ddpm"),
]


class Controls:
    """One set of controls; `inputs` are its components in the order of `OF_SETTINGS`."""

    def __init__(
        self, models: Mapping[str, Model], limits: Limits, name: str, below_class: Callable[[], None] = lambda: None
    ) -> None:
        """Builds them where it is called. `name` begins their ids on the page; `below_class` builds what stands there."""
        self.models, self.limits = models, limits
        first = next(iter(models.values()))
        self.model = gr.Dropdown(
            list(models),
            value=first.name,
            label="Model",
            visible=len(models) > 1,
            filterable=False,
            elem_id=f"{name}-model",
        )
        self.class_label = gr.Dropdown(label="Class", elem_id=f"{name}-class", **self._classes(first))
        below_class()
        conditional = first.num_classes is not None
        self.guidance = gr.Slider(
            1,
            LARGEST_GUIDANCE,
            value=default_settings(first, limits).guidance,
            step=0.25,
            label="Guidance",
            info="How closely the class is followed. 1 is off: most variety, some pictures unclear. 2 to 4 are clearer;"
            " more makes them alike and overdone.",
            buttons=[],
            visible=conditional,
            elem_id=f"{name}-guidance",
        )
        self.sampler = gr.Dropdown(
            SAMPLERS, value="dpmsolver++", label="Sampler", filterable=False, elem_id=f"{name}-sampler"
        )
        self.steps = gr.Slider(1, step=1, label="Steps", elem_id=f"{name}-steps", buttons=[], **self._steps(first))
        with gr.Accordion("Advanced", open=False, visible=conditional, elem_id=f"{name}-advanced") as self.advanced:
            gr.Markdown(
                "Guide only while the noise is between two levels, which keeps more of the variety. Noise falls from"
                " above 100 to 0.01; 0.3 to 5 is worth a try.",
                elem_classes="hint",
            )
            with gr.Row():
                self.low = gr.Number(0, label="Lowest noise level", minimum=0, min_width=100, elem_id=f"{name}-low")
                self.high = gr.Number(
                    None,
                    label="Highest",
                    placeholder="no limit",
                    minimum=0,
                    min_width=100,
                    elem_id=f"{name}-high",
                )
        self.model.change(
            self._of_model,
            self.inputs,
            [*self.inputs[1:], self.advanced],
            queue=False,
            show_progress="hidden",
            preprocess=False,
            api_visibility="private",
        )

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [getattr(self, field) for field in OF_SETTINGS]

    @property
    def outputs(self) -> list[Any]:
        return [*self.inputs, self.advanced]

    def showing(self, settings: Settings) -> list[Any]:
        """Updates of `outputs`."""
        model = self.models[settings.model]
        conditional = model.num_classes is not None
        return [
            gr.update(value=settings.model),
            gr.update(**self._classes(model) | ({"value": settings.class_label} if conditional else {})),
            gr.update(value=settings.sampler),
            gr.update(**self._steps(model) | {"value": settings.steps}),
            gr.update(value=settings.guidance, visible=conditional),
            gr.update(value=settings.low),
            gr.update(value=None if math.isinf(settings.high) else settings.high),
            gr.update(visible=conditional),
        ]

    def _of_model(
        self, name: Any, class_label: Any, sampler: Any, steps: Any, guidance: Any, *interval: Any
    ) -> list[Any]:
        """What the other controls become with another model: as they were where that makes sense."""
        if not isinstance(name, str) or name not in self.models:
            return [gr.skip()] * (len(self.inputs))
        model = self.models[name]
        conditional = model.num_classes is not None
        classes = self._classes(model)
        if conditional and class_label in [value for _, value in classes["choices"]]:
            classes["value"] = class_label
        most = self.limits.steps(model)
        steps = min(steps, most) if isinstance(steps, int | float) else min(25, most)
        return [
            gr.update(**classes),
            gr.skip(),
            gr.update(maximum=most, value=steps),
            gr.update(visible=conditional),
            gr.skip(),
            gr.skip(),
            gr.update(visible=conditional),
        ]

    def _classes(self, model: Model) -> dict[str, Any]:
        if model.num_classes is None:
            return {"choices": [], "value": None, "visible": False}
        choices = [("One of each, in turn", EACH), ("Any: none in particular", ANY)]
        if model.num_classes > self.limits.max_images:  # there is no room for one of each
            choices = choices[1:]
        choices += [(model.class_name(label), str(label)) for label in range(model.num_classes)]
        return {"choices": choices, "value": choices[0][1], "visible": True}

    def _steps(self, model: Model) -> dict[str, Any]:
        return {"maximum": self.limits.steps(model), "value": default_settings(model, self.limits).steps}


def count_and_seed(limits: Limits, count: int, name: str) -> tuple[gr.Slider, gr.Number]:
    """How many pictures, and the seed of the first, with a die to roll."""
    how_many = gr.Slider(
        1, limits.max_images, value=count, step=1, label="How many", min_width=200, buttons=[], elem_id=f"{name}-count"
    )
    with gr.Row(equal_height=True):
        seed = gr.Number(
            0,
            label="Seed",
            precision=0,
            minimum=0,
            maximum=LARGEST_SEED,
            scale=3,
            min_width=120,
            elem_id=f"{name}-seed",
        )
        dice = gr.Button("Roll", elem_id=f"{name}-dice", elem_classes="dice", scale=1, min_width=80)
    dice.click(None, None, seed, js="() => Math.floor(Math.random() * 1e6)")
    return how_many, seed
