"""Evaluation records as the results that the Hub shows."""

import math

from huggingface_hub import EvalResult

from ddpm_hf.evaluation.metrics import label
from ddpm_hf.evaluation.records import main_keys
from ddpm_hf.publishing.run import Record, Run

# the Hub's only task for images from no text and no other image; class-conditional models there have it too, and a tag
TASK = "unconditional-image-generation"
_INCEPTIONS_OWN = ("fid", "kid", "inception_score")


def eval_results(run: Run) -> list[EvalResult]:
    """Of records of the published weights: what compares their images with others."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image generation" if run.class_names is None else "Class-conditional image generation",
            dataset_type=str(record["reference"]["source"]),
            dataset_name=str(record["reference"]["source"]),
            dataset_config=record["reference"].get("subset"),
            dataset_split=record["reference"].get("split"),
            metric_type=_metric_type(key, record),
            metric_name=metric_name(key, record),
            metric_value=record["metrics"][key],
            metric_args=_arguments(record),
        )
        for record in run.measured().values()
        if record.get("reference") is not None and record.get("extractor") is not None
        for key in main_keys(record["metrics"])
        if _compares(key) and math.isfinite(record["metrics"][key])
    ]


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


def _arguments(record: Record) -> dict[str, str | int | float]:
    sampling = record.get("sampling") or {}
    found = {
        "num_images": record["num_images"],
        "reference_images": record["reference"].get("num_images"),
        "extractor": record["extractor"]["name"],
        **{name: sampling.get(name) for name in ("sampler", "steps", "guidance_scale")},
    }
    return {name: value for name, value in found.items() if value is not None}
