"""The card's code, and what it draws."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddpm_hf.diffusion.samplers import SAMPLERS, num_steps
from ddpm_hf.export import is_stock
from ddpm_hf.publishing.run import Run
from ddpm_hf.sample_grid import sampling_of_recipe
from ddpm_hf.sampling import Sampling, draw_images, passes

SEED = 0
_STEPS = 100  # of DDPM, unless the recipe says how many: fewer make poor pictures
_AS_THEY_ARE = ("ddim", "dpmsolver++", "unipc")  # Diffusers' schedulers need no more than the model's own configuration


@dataclass(frozen=True)
class Snippet:
    """Lines of Python that draw the image of seed `SEED` and save it as `picture`; later ones go on from the first."""

    code: str
    picture: str
    sampling: Sampling


def snippets(run: Run, called: str, revision: str | None = None) -> list[Snippet]:
    """The recipe's own sampler comes second where it draws the same in Diffusers.

    called: what `from_pretrained` is given; revision: its branch there, None for main
    """
    options = "" if is_stock(run.pipe) else ", trust_remote_code=True"
    if revision not in (None, "main"):
        options += f", revision={_text(revision)}"
    first = _sampling(run, "ddpm", first_steps(run))
    load = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({_text(called)}{options})",
    ]
    found = [_snippet(run, load, "image.png", first)]
    sample = run.recipe.sample
    if not is_stock(run.pipe) and sample.sampler in _AS_THEY_ARE:
        scheduler = SAMPLERS[sample.sampler].__name__
        change = [
            f"from diffusers import {scheduler}",
            "",
            f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config)",
        ]
        sampling = _sampling(run, sample.sampler, num_steps(sample.sampler, sample.steps, run.pipe.scheduler))
        found.append(_snippet(run, change, "faster.png", sampling))
    return found


def variant_snippet(run: Run, called: str, variant: str, revision: str | None = None) -> Snippet:
    """The first of `snippets` with the weights of half precision, computed with in float32."""
    first = snippets(run, called, revision)[0]
    half = f'from_pretrained({_text(called)}, variant="{variant}", dtype=torch.float32'
    code = first.code.replace(f"from_pretrained({_text(called)}", half)
    return Snippet(code.replace(first.picture, f"{variant}.png"), f"{variant}.png", first.sampling)


def first_steps(run: Run) -> int:
    """DDPM's steps in the card: the recipe's, or about a hundred.

    A stock pipeline needs a number that divides T; with variance "fixed_large", T itself, since Diffusers adds the last
    step's noise to the image otherwise.
    """
    config, sample = run.pipe.scheduler.config, run.recipe.sample
    T = config.num_train_timesteps
    stock = is_stock(run.pipe)
    if stock and config.variance_type == "fixed_large":
        return T
    if sample.sampler == "ddpm" and sample.steps is not None and not (stock and T % sample.steps):
        return sample.steps
    if not stock:
        return min(_STEPS, T)
    few = max(steps for steps in range(1, min(_STEPS, T) + 1) if T % steps == 0)
    return few if few >= min(_STEPS, T) // 2 else T


def drawn_by_run(run: Run, found: list[Snippet], progress: Callable[[int], None]) -> dict[str, np.ndarray]:
    """What the run itself draws for each snippet, on the CPU: uint8 (C, H, W), by the picture's name."""
    return {one.picture: draw_images(run.pipe, [SEED], 1, one.sampling, progress)[0] for one in found}


def num_passes(run: Run, found: list[Snippet]) -> int:
    return sum(passes(run.pipe, one.sampling) for one in found)


def _sampling(run: Run, sampler: str, steps: int) -> Sampling:
    own = sampling_of_recipe(run.recipe)
    eta = own.eta if sampler == "ddim" else 0.0
    label = None if run.class_names is None else 0
    return Sampling(sampler, steps, eta, label, own.guidance_scale, own.guidance_interval)


def _snippet(run: Run, lines: list[str], picture: str, sampling: Sampling) -> Snippet:
    options = {}
    if run.class_names is not None:
        name = run.class_names[sampling.class_label]
        options["class_labels"] = _text(name) if run.class_names.count(name) == 1 else str(sampling.class_label)
        options["guidance_scale"] = f"{sampling.guidance_scale:g}"
        if sampling.guidance_interval is not None:
            low, high = (f"{end:g}" if np.isfinite(end) else 'float("inf")' for end in sampling.guidance_interval)
            options["guidance_interval"] = f"({low}, {high})"
    options["num_inference_steps"] = str(sampling.steps)
    if sampling.eta:
        options["eta"] = f"{sampling.eta:g}"
    call = ", ".join(f"{name}={value}" for name, value in {**options, "generator": "seed"}.items())
    code = [
        *lines,
        f"seed = torch.Generator().manual_seed({SEED})",
        f"pipe({call}).images[0].save({_text(picture)})",
    ]
    return Snippet("\n".join(code), picture, sampling)


def _text(text: str) -> str:
    """A Python literal; JSON's texts are."""
    return json.dumps(text, ensure_ascii=False)
