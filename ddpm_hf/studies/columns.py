"""What tables, claims and figures may show of a measurement or a variant."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """header: None of those that the extractor names; unit: of a value, written behind it; whole: counts."""

    header: str | None
    unit: str = ""
    whole: bool = False


COLUMNS = {
    # of a measurement's record
    "frechet": Column(None),
    "kernel": Column(None),
    "score": Column(None),
    "precision": Column("precision ↑"),
    "recall": Column("recall ↑"),
    "density": Column("density ↑"),
    "coverage": Column("coverage ↑"),
    "class_agreement": Column("class agreement ↑"),
    "bits_per_dimension": Column("bits per dimension ↓"),
    "sampling_seconds": Column("sampling time", "s"),
    "images_per_second": Column("images/s ↑"),
    "network_evaluations": Column("network evaluations", whole=True),
    "steps": Column("sampling steps", whole=True),
    "guidance_scale": Column("guidance scale"),
    # of a variant's training
    "loss": Column("training loss"),
    "validation_loss": Column("validation loss ↓"),
    "training_hours": Column("training time", "h"),
    "optimizer_steps": Column("optimizer steps", whole=True),
    "epochs": Column("epochs"),
    "epochs_to_quality": Column("epochs to quality ↓"),
    "parameters": Column("parameters", whole=True),
    "skipped_steps": Column("steps skipped", whole=True),
}
EXTRACTED = ("frechet", "kernel", "score")  # whose keys in a record name the extractor
