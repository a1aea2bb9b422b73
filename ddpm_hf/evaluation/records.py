"""What an evaluation leaves behind: a record of every setting that matters, and a table to read."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ddpm_hf import __version__
from ddpm_hf.codec import weights_digest
from ddpm_hf.durations import duration
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.evaluate import Evaluation, Evaluator
from ddpm_hf.evaluation.images import DrawnImages, Images
from ddpm_hf.evaluation.metrics import label
from ddpm_hf.evaluation.reference import PublishedStatistics, digest
from ddpm_hf.files import write_atomically
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "clean-fid", "numpy", "pillow")
_SPREADS = ("_standard_error", "_deviation")


def about_model(pipe: ImageGenerationPipeline) -> dict[str, Any]:
    """What the images depend on besides the settings: digests of the weights, and what the reverse process is told."""
    config = json.loads(pipe.scheduler.to_json_string())
    scheduler = {"class": type(pipe.scheduler).__name__, **{k: v for k, v in config.items() if not k.startswith("_")}}
    return {
        "weights": weights_digest(pipe.unet),
        "autoencoder": None if pipe.vae is None else weights_digest(pipe.vae),
        "scheduler": scheduler,
        "variance_exponent": pipe.config.variance_exponent,
    }


def settings_of(evaluator: Evaluator, images: Images | None, others: Sequence[str] = ()) -> dict[str, Any]:
    """What the values depend on besides the weights; known before the first image.

    images: None where no metric needs any; others: metrics that do not come from these images
    """
    reference = evaluator.reference
    compared = None
    if isinstance(reference, PublishedStatistics):
        compared = {"source": reference.called, "num_images": None, "fingerprint": None}
    elif reference is not None:
        about = {"num_images": len(reference), "shape": list(reference.shape), "fingerprint": reference.content}
        compared = {**reference.describe(), **about}
    drawn = images if isinstance(images, DrawnImages) else None
    return {
        "metrics_asked": [*evaluator.metrics, *others],
        "sampling": drawn and drawn.describe(),
        "images": None if drawn or images is None else images.describe() | {"fingerprint": images.content},
        "num_images": images and len(images),
        "shape": images and list(images.shape),
        "reference": compared,
        "extractor": evaluator.extractor and evaluator.extractor.identity,
        "classifier": evaluator.classifier and evaluator.classifier.identity,
    }


def record_of(
    model: Mapping[str, Any], settings: Mapping[str, Any], evaluation: Evaluation, state: PartialState
) -> dict[str, Any]:
    """The record, one JSON object.

    model: what is known of the model: its name, step, whether its weights are an average, and what `about_model` gives
    settings: of `settings_of`
    """
    return {
        **model,
        **settings,
        "distinct_images": evaluation.distinct,
        "metrics": evaluation.values,
        "warnings": evaluation.warnings,
        "times": {name: round(value, 4) for name, value in evaluation.times.items()},
        "reference_was_cached": evaluation.reference_was_cached,
        "versions": versions(),
        "device": device_name(state.device),
        "processes": state.num_processes,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def settings_digest(settings: Mapping[str, Any]) -> str:
    """For file names: ten digits that differ where the settings do; the batch size changes no image."""
    sampling = settings.get("sampling")
    if sampling is not None:
        settings = {**settings, "sampling": {k: v for k, v in sampling.items() if k != "batch_size"}}
    return digest(settings)[:10]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appears when it is complete; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def versions() -> dict[str, str]:
    return {
        "ddpm_hf": __version__,
        **{package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"


def table(record: Mapping[str, Any]) -> str:
    """The record's values, what they were measured with and against, and its warnings."""
    values = record["metrics"]
    rows = [(label(key), with_spread(key, values)) for key in main_keys(values)]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += ["", *_explained(record)]
    lines += [f"warning: {warning}" for warning in record["warnings"]]
    return "\n".join(lines)


def main_keys(values: Mapping[str, float]) -> list[str]:
    """Of a record's values, without those that are another's standard error or deviation."""
    return [key for key in values if not key.endswith(_SPREADS)]


def with_spread(key: str, values: Mapping[str, float]) -> str:
    spread = next((values[key + end] for end in _SPREADS if key + end in values), None)
    return f"{values[key]:.4g}" + ("" if spread is None else f" ± {spread:.2g}")


def _explained(record: Mapping[str, Any]) -> list[str]:
    lines = []
    if (sampling := record["sampling"]) is not None:
        guidance = "" if sampling["guidance_scale"] == 1 else f", guidance {sampling['guidance_scale']:g}"
        of_class = "" if sampling["class"] is None else f", class {sampling['class']}"
        lines.append(
            f"{record['num_images']:,} images of {record['model']}, {sampling['sampler']} in {sampling['steps']}"
            f" steps{guidance}{of_class}, seeds {sampling['first_seed']} to"
            f" {sampling['first_seed'] + record['num_images'] - 1}"
        )
    elif record["num_images"] is not None:
        lines.append(f"{record['num_images']:,} images of {record['model']}")
    if (reference := record["reference"]) is not None:
        number = "" if reference["num_images"] is None else f"{reference['num_images']:,} images of "
        part = f" ({reference['part']})" if "part" in reference else ""
        cached = ", statistics computed before" if record["reference_was_cached"] else ""
        lines.append(f"against {number}{reference['source']}{part}{cached}")
    for role in ("extractor", "classifier"):
        if (network := record[role]) is not None and not (role == "classifier" and network == record["extractor"]):
            lines.append(f"{role}: {network['name']}, {network['weights']}")
    times = record["times"]
    spent = [f"{name.removesuffix('_seconds')} {duration(times[name])}" for name in times if name.endswith("_seconds")]
    rate = f" ({times['images_per_second']:.3g} images/s drawn)" if "images_per_second" in times else ""
    return [*lines, f"time: {', '.join(spent)}{rate}, on {record['device']}"]
