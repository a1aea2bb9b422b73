"""`ddpm-hf evaluate`."""

import argparse
from typing import Any

from ddpm_hf.cli.parser import positive
from ddpm_hf.cli.sampling import add_sampling
from ddpm_hf.config import did_you_mean
from ddpm_hf.metric_names import DEFAULT_METRICS, METRICS


def add(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model's images, or a folder of images",
        description="Measure a model's images, or a folder of images, against real ones. With several processes:"
        " accelerate launch -m ddpm_hf evaluate MODEL ...",
    )
    evaluate.add_argument(
        "model",
        metavar="MODEL",
        help="a run folder, a pipeline folder or a Hub id; or images: a folder, or an .npz file of ddpm-hf sample",
    )
    evaluate.add_argument(
        "--reference",
        metavar="TEXT",
        help="what to compare with: train or validation, of a run; a folder of images or an .npz file; a recipe, whose"
        " training images are meant; or clean-fid's own statistics, cleanfid:NAME:RES:SPLIT (default: train)",
    )
    evaluate.add_argument(
        "--reference_images",
        type=positive,
        metavar="INT",
        help="compare with so many of the reference, chosen by chance (default: all)",
    )
    evaluate.add_argument(
        "--metrics",
        nargs="+",
        type=_metric,
        default=list(DEFAULT_METRICS),
        metavar="NAME",
        help=f"what to measure, of {', '.join(METRICS)} (default: {' '.join(DEFAULT_METRICS)})",
    )
    evaluate.add_argument(
        "--num_images",
        type=positive,
        metavar="INT",
        help="images to draw, or to take from a folder by chance (default: 5000 drawn, all of a folder)",
    )
    evaluate.add_argument(
        "--extractor",
        default="inception",
        metavar="TEXT",
        help="network whose features are compared: inception, dinov2, efficientnet_lite0, classifier (a small one, trained"
        " on the model's own images), or a TorchScript file (default: inception)",
    )
    evaluate.add_argument(
        "--extractor_weights",
        metavar="TEXT",
        help="the extractor's weights, a file, folder or Hub id (default: where they are found or downloaded)",
    )
    evaluate.add_argument(
        "--classifier",
        metavar="TEXT",
        help="network that sees classes for class_agreement, named as --extractor (default: the extractor where it knows as"
        " many classes as the model, else classifier)",
    )
    evaluate.add_argument(
        "--likelihood_images",
        type=positive,
        default=256,
        metavar="INT",
        help="real images that bits_per_dimension is measured on, each in as many forward passes as the model has timesteps"
        " (default: 256)",
    )
    add_sampling(evaluate, batch_size=64)
    evaluate.add_argument(
        "--neighbours",
        metavar="PNG",
        help="also save a picture there of the first 16 samples beside the reference images nearest to them (default: none)",
    )
    evaluate.add_argument(
        "--out",
        metavar="JSON",
        help="the record's file (default: in evaluations/, of the run folder or here, named by step and settings)",
    )
    evaluate.set_defaults(run=_evaluate)


def _metric(text: str) -> str:
    if text in METRICS:
        return text
    hint = did_you_mean(text, list(METRICS)) or f"; choose from {', '.join(METRICS)}"
    raise argparse.ArgumentTypeError(f"{text!r} is no metric{hint}")


def _evaluate(options: argparse.Namespace) -> None:
    from ddpm_hf.commands.evaluate import evaluate

    evaluate(options)
