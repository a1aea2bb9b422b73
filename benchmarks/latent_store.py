"""Images a second of training on stored latents beside encoding at every step, with an autoencoder of Stable Diffusion's
size and shape (random weights serve for timing) and a small denoiser, at 128x128.

    python benchmarks/latent_store.py --source ../shared/data/imagenet_samples --label_column wnid

The program itself runs both, in turn, on whichever device there is; the median of the ratios counts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="photographs, as data.source takes them")
    parser.add_argument("--label_column", help="data.label_column of the source, where it must be named")
    parser.add_argument("--classes", type=int, default=64, help="how many of its classes to take")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps of encoding measured in each round, after one more")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    ).save_pretrained(folder / "autoencoder")
    choose_classes(options, folder)
    costs = json.loads(run(options, folder, "estimate", True, 1, "--dry_run").splitlines()[-1])
    run(options, folder, "warm-up", True, 1)  # encodes the store
    speeds = {True: [], False: []}
    for number in range(options.rounds):
        for stored, steps in ((True, 20 * options.steps), (False, options.steps)):
            run(options, folder, f"{stored}{number}", stored, steps + 1)
            lines = (folder / "runs" / f"{stored}{number}" / "metrics.jsonl").read_text().splitlines()
            measured = [json.loads(line)["images_per_second"] for line in lines][1:]  # the first step warms up
            speeds[stored].append(statistics.median(measured))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} processor"
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {options.batch_size}, float32;"
    )
    print(
        f"a denoiser of {costs['parameters'] / 1e6:.1f}M parameters, {costs['flops_per_image'] / 1e9:.2f} GFLOP forward"
    )
    for stored, name in ((True, "stored latents"), (False, "encoded at every step")):
        values = speeds[stored]
        print(f"{name:22} {statistics.median(values):8.2f} images/s   ({min(values):.2f} to {max(values):.2f})")
    ratio = statistics.median(a / b for a, b in zip(speeds[True], speeds[False], strict=True))
    print(f"ratio {ratio:.0f}")


def choose_classes(options: argparse.Namespace, folder: Path) -> None:
    from ddpm_hf.config import Data
    from ddpm_hf.data.sources import open_source

    data = Data(source=options.source, resolution=128, label_column=options.label_column)
    names = open_source(data).class_names[: options.classes]
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))


def run(options: argparse.Namespace, folder: Path, name: str, stored: bool, steps: int, *more: str) -> str:
    settings = {
        "run.name": name,
        "run.output_dir": folder / "runs",
        "data.source": options.source,
        "data.classes": folder / "classes.txt",
        "data.label_column": options.label_column or "null",
        "data.flip": False,
        "data.validation_split": "null",
        "data.store": folder / f"stored-{stored}",
        "autoencoder.source": folder / "autoencoder",
        "autoencoder.store_latents": stored,
        "model.block_out_channels": [64, 128],
        "model.attention_resolutions": [8],
        "model.layers_per_block": 1,
        "condition.num_classes": options.classes,
        "train.max_steps": steps,
        "train.batch_size": options.batch_size,
        "train.checkpoint_every": 10**6,
        "sample.num_images": 1,
        "sample.grid_guidance_scales": [1],
        "sample.steps": 1,
        "track.trackers": [],
        "track.log_every": 1,
    }
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, ROOT / "train_cfg_latent.py", "--config", "latent/imagenet100_128", *arguments, *more]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


if __name__ == "__main__":
    main()
