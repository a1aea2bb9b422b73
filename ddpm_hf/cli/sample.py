"""`ddpm-hf sample`."""

import argparse
from typing import Any

from ddpm_hf.cli.parser import positive
from ddpm_hf.cli.sampling import add_sampling


def add(commands: Any) -> None:
    sample = commands.add_parser("sample", help="draw images with a model", description="Draw images with a model.")
    sample.add_argument("model", metavar="MODEL", help="a run folder, a pipeline folder or a Hub id")
    sample.add_argument("--num_images", type=positive, default=16, metavar="INT", help="images to draw (default: 16)")
    add_sampling(sample)
    sample.add_argument(
        "--out",
        default="samples",
        metavar="PATH",
        help="a folder for PNG files, a .png file for one grid, or an .npz file (default: samples)",
    )
    sample.add_argument(
        "--strip", metavar="PNG", help="also save the denoising film strip of the first images there (default: none)"
    )
    sample.set_defaults(run=_sample)


def _sample(options: argparse.Namespace) -> None:
    from ddpm_hf.commands.sample import sample

    sample(options)
