"""How images are drawn: the options that `sample` and `evaluate` share."""

import argparse

from ddpm_hf.cli.parser import number, positive, seed_number


def add_sampling(parser: argparse.ArgumentParser, batch_size: int = 16) -> None:
    parser.add_argument(
        "--batch_size",
        type=positive,
        default=batch_size,
        metavar="INT",
        help=f"images drawn at once; changes no image (default: {batch_size})",
    )
    parser.add_argument(
        "--sampler",
        default="ddpm",
        metavar="{ddpm,ddim,dpmsolver++,unipc,heun}",
        help="ancestral sampling, DDIM, DPM-Solver++(2M), UniPC or Heun's method (default: ddpm)",
    )
    parser.add_argument(
        "--steps", type=positive, metavar="INT", help="denoising steps (default: every timestep for ddpm, else 50)"
    )
    parser.add_argument(
        "--eta", type=number, default=0.0, metavar="NUMBER", help="noise of ddim's steps, 0 to 1 (default: 0)"
    )
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        metavar="INT",
        help="seed of the first image; image i has seed + i (default: 0)",
    )
    parser.add_argument(
        "--class",
        dest="class_label",
        metavar="TEXT",
        help="class to draw, by id or name; conditional models only (default: every class in turn)",
    )
    parser.add_argument(
        "--guidance_scale",
        type=number,
        default=1.0,
        metavar="NUMBER",
        help="s of classifier-free guidance, uncond + s (cond - uncond); the papers' w is s - 1 (default: 1, off)",
    )
    parser.add_argument(
        "--guidance_interval",
        type=number,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guide only between these noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar) (default: everywhere)",
    )
    parser.add_argument(
        "--precision",
        choices=("no", "bf16", "fp16"),
        default="no",
        metavar="{no,bf16,fp16}",
        help="mixed precision of the network, as train.precision has it; no is float32 (default: no)",
    )
    parser.add_argument(
        "--device", metavar="TEXT", help="where to draw, such as cpu or cuda:1 (default: a GPU if there is one)"
    )
