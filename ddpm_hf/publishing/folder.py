"""The folder that the Hub shows.

README.md                  the card
model_index.json, unet/, scheduler/, vae/, *.py     the pipeline, and the code it needs where stock Diffusers does not suffice
recipe.yaml                what it was trained with
samples.png, curves.png, quality.png                what it draws, and how it learned
evaluations/               the records
publication.json           what of this is `ddpm-hf publish`'s own, by SHA-256
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from ddpm_hf.config import dump_recipe
from ddpm_hf.devices import default_device
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation import plots
from ddpm_hf.evaluation.metrics import label
from ddpm_hf.export import save_pipeline, save_variant
from ddpm_hf.publishing.card import Card
from ddpm_hf.publishing.ownership import write_list
from ddpm_hf.publishing.run import Run, curve
from ddpm_hf.sample_grid import layout_of, sample_grid, sampling_of_recipe
from ddpm_hf.sampling import draw_images, passes


def build(folder: Path, run: Run, card: Card, variants: Sequence[str] = (), samples: Path | None = None) -> None:
    """Writes a whole folder, which must not exist. The model is on the CPU before and after.

    samples: the recipe's grid, where these weights have drawn it already
    Raises `UserError` where the disk is full.
    """
    try:
        folder.mkdir(parents=True)
        save_pipeline(run.pipe, folder)
        for variant in variants:
            save_variant(run.pipe, folder, variant)
        (folder / "recipe.yaml").write_text(_recipe_text(run), encoding="utf-8")
        if samples is None:
            draw_samples(run, folder / "samples.png")
        else:
            shutil.copyfile(samples, folder / "samples.png")
        draw_curves(run, folder)
        for weights in folder.rglob("*.safetensors"):  # which are saved for their owner's eyes alone
            shutil.copymode(folder / "recipe.yaml", weights)
        if run.records:
            (folder / "evaluations").mkdir()
        for name, record in run.records.items():
            text = json.dumps(record, indent=2, ensure_ascii=False)
            (folder / "evaluations" / name).write_text(text + "\n", encoding="utf-8")
        card.save(folder)
        write_list(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{folder} cannot be written: {error}; make room and run the same command again") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _recipe_text(run: Run) -> str:
    lines = [f"# What {run.name} was trained with; `ddpm-hf` trains it again."]
    if run.places:
        lines.append(f"# Of places on the author's machine the last name is left: {', '.join(run.places)}")
    if "autoencoder.source" in run.places:
        lines.append("# As autoencoder.source name this folder, or its id on the Hub, whose vae/ is the autoencoder")
    return "\n".join([*lines, dump_recipe(run.recipe)])


def draw_samples(run: Run, path: Path) -> None:
    """The grid of the recipe's `sample` section, in float32, on a GPU if there is one."""
    recipe, pipe, layout = run.recipe, run.pipe, layout_of(run.recipe)
    steps = passes(pipe, sampling_of_recipe(recipe))
    total = len(layout.seeds) * len(layout.scales) * steps
    pipe.to(device := default_device())
    try:
        with tqdm(total=total, unit="image step", desc="samples", dynamic_ncols=True, disable=None) as bar:
            picture = sample_grid(
                recipe,
                run.class_names,
                lambda seeds, sampling: draw_images(pipe, seeds, recipe.sample.batch_size, sampling, bar.update),
            )
    except torch.OutOfMemoryError:
        raise UserError(
            f"out of memory on {device}: lower sample.batch_size, {recipe.sample.batch_size}, in {run.folder / 'recipe.yaml'}"
        ) from None
    finally:
        pipe.to("cpu")
    plots.save(picture, path)


def draw_curves(run: Run, folder: Path) -> None:
    """`curves.png` of the losses, `quality.png` of the Fréchet distance; neither where there is nothing to draw."""
    x, y = curve(run.metrics, "loss")
    series = [plots.Series("", x, y)] if x else []  # the axis says what it is
    if (validation := curve(run.metrics, "validation_loss"))[0]:
        series.append(plots.Series("", *validation, dashed=True))
    with suppress(UserError):  # not a finite value in it
        figure = plots.curves(series, "optimizer step", "loss", log_y=True, smooth=max(1, len(x) // 20))
        plots.save(figure, folder / "curves.png")
    if (key := distance_key(run)) is not None:
        steps, values = curve(run.metrics, key)
        name = label(key).rstrip(" ↑↓")
        with suppress(UserError):
            figure = plots.curves([plots.Series("", steps, values)], "optimizer step", name)
            plots.save(figure, folder / "quality.png")


def distance_key(run: Run) -> str | None:
    """The Fréchet distance that training measured more than once; None where there is none."""
    keys = {key for line in run.metrics for key in line if key == "fid" or key.startswith("frechet_distance_")}
    return next((key for key in sorted(keys, reverse=True) if len(curve(run.metrics, key)[0]) > 1), None)
