"""What an evaluation costs beside drawing its images and passing them through the extractor once.

    python benchmarks/evaluation_cost.py runs/quickstart --extractor efficientnet_lite0

Both in turn, on whichever device there is; the median of the ratios counts. The reference's statistics are there already,
as they are from the second evaluation on.
"""

import argparse
import platform
import statistics
import time

import torch
from accelerate import PartialState

from ddpm_hf.config import load_recipe
from ddpm_hf.evaluation.evaluate import build_evaluator
from ddpm_hf.evaluation.images import DrawnImages
from ddpm_hf.evaluation.reference import pixels
from ddpm_hf.loading import load_pipeline
from ddpm_hf.sampling import Sampling, draw_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--extractor", default="inception")
    parser.add_argument("--metrics", nargs="+", default=["frechet", "kernel"])
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--reference_images", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    state = PartialState(cpu=not torch.accelerator.is_available())
    pipe = load_pipeline(options.run).to(state.device)
    recipe = load_recipe(f"{options.run}/recipe.yaml")
    sampling = Sampling("ddim", options.steps)
    images = DrawnImages(pipe, options.num_images, sampling, batch_size=options.batch_size)
    data = pixels(recipe.data, recipe.autoencoder.source is not None)
    evaluator = build_evaluator(
        options.metrics,
        images,
        state,
        data=data,
        seed=recipe.run.seed,
        reference_images=options.reference_images,
        extractor=options.extractor,
    )

    def apart() -> None:
        """The images, whole in memory, then the extractor over all of them."""
        drawn = torch.from_numpy(draw_images(pipe, images.seeds, options.batch_size, sampling))
        for batch in drawn.split(options.batch_size):
            evaluator.extractor(batch.to(state.device)).values.cpu()

    evaluator(images)  # warms up, and sees to the reference
    ratios, seconds = [], []
    for _ in range(options.rounds):
        bare, whole = timed(apart), timed(lambda: evaluator(images))
        ratios.append(whole / bare)
        seconds.append((bare, whole))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} processor"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{options.num_images} images, ddim in {options.steps} steps, {options.extractor}, {' '.join(options.metrics)}"
    )
    for name, values in zip(("drawn and extracted", "evaluated"), zip(*seconds, strict=True), strict=True):
        print(f"{name:20} {statistics.median(values):8.2f} s   ({min(values):.2f} to {max(values):.2f})")
    print(f"ratio {statistics.median(ratios):.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")


def timed(action) -> float:
    """Seconds; on a processor those that this program spent on it, which others' work on the machine changes little."""
    clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
    start = clock()
    action()
    return clock() - start


if __name__ == "__main__":
    main()
