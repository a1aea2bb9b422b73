"""Evaluation records as the results that the Hub shows."""

import math

from huggingface_hub import EvalResult

from ddpm_hf.evaluation.metrics import label
from ddpm_hf.evaluation.records import main_keys
from ddpm_hf.publishing.run import Record, Run

# the Hub's only task for images from no text and no other image; class-conditional models there have it too, and a tag
TASK = "unconditional-image-generation"
_NOT_ON_THE_HUB = "other"  # the Hub's metadata wants a type
_INCEPTIONS_OWN = ("fid", "kid", "inception_score")


def eval_results(run: Run) -> list[EvalResult]:
    """Of records of the published weights: what compares their images with others.

    Not of one class alone: by the names of the metadata such a value would stand beside those of all classes.
    """
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image generation" if run.class_names is None else "Class-conditional image generation",
            dataset_type=_dataset_id(record, run) or _NOT_ON_THE_HUB,
            dataset_name=str(record["reference"]["source"]),
            dataset_config=record["reference"].get("subset"),
            dataset_split=record["reference"].get("part") or record["reference"].get("split"),
            metric_type=_metric_type(key, record),
            metric_name=metric_name(key, record),
            metric_value=record["metrics"][key],
            metric_args=_arguments(record),
        )
        for record in run.measured().values()
        if record.get("reference") is not None and record.get("extractor") is not None and not _of_one_class(record)
        for key in main_keys(record["metrics"])
        if _compares(key) and math.isfinite(record["metrics"][key])
    ]


def _of_one_class(record: Record) -> bool:
    return (record.get("sampling") or {}).get("class") is not None


def _dataset_id(record: Record, run: Run) -> str | None:
    """Of a reference that is the run's own data set, where that is the Hub's."""
    return run.dataset if record["reference"]["source"] == run.dataset else None


def _compares(key: str) -> bool:
    return not key.startswith(("validation_loss", "bits_per_dimension"))


def _of_extractor(key: str, record: Record) -> str | None:
    """The network whose features a value rests on where its key does not say so."""
    network = (record.get("classifier") if key == "class_agreement" else None) or record.get("extractor") or {}
    name = network.get("name")
    if name is None or not _compares(key) or key in _INCEPTIONS_OWN or key.endswith(f"_{name}"):
        return None
    return name


def _metric_type(key: str, record: Record) -> str:
    network = _of_extractor(key, record)
    return key if network is None else f"{key}_{network}"


def metric_name(key: str, record: Record) -> str:
    """Such as FID, which is Inception's alone, or precision (dinov2)."""
    network, name = _of_extractor(key, record), label(key).rstrip(" ↑↓")
    return name if network is None else f"{name} ({network})"


def _arguments(record: Record) -> dict[str, str | int | float | list[float]]:
    sampling = record.get("sampling") or {}
    found = {
        "num_images": record["num_images"],
        "reference_images": record["reference"].get("num_images"),
        "extractor": record["extractor"]["name"],
        "precision": record.get("precision"),
        **{name: sampling.get(name) for name in ("sampler", "steps", "eta", "guidance_scale", "guidance_interval")},
    }
    if sampling:
        found["seeds"] = seeds(record)
    return {name: value for name, value in found.items() if value is not None}


def seeds(record: Record) -> str:
    """Such as 0 to 4999."""
    first = record["sampling"]["first_seed"]
    return f"{first} to {first + record['num_images'] - 1}"
