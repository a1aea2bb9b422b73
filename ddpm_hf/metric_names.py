"""What `ddpm-hf evaluate` can measure, by name; how, ddpm_hf.evaluation.metrics says."""

METRICS = (
    "frechet",
    "kernel",
    "score",
    "precision_recall",
    "density_coverage",
    "class_agreement",
    "bits_per_dimension",
    "validation_loss",
)
DEFAULT_METRICS = ("frechet", "kernel", "precision_recall", "density_coverage")
