"""Images a second of the whole program beside the bare loop: forward, backward, clip, step and EMA on one batch in memory.

    python benchmarks/training_speed.py --source ../shared/data/cifar10
    python benchmarks/training_speed.py --source cifar10 --model ddpm --precision bf16 --channels_last --compile --steps 100

The two run in turn, each in a process of its own, on whichever device there is; the median of the ratios counts.
`--diffusers_example PATH` also runs Diffusers' examples/unconditional_image_generation/train_unconditional.py, on the
same network and images.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
MODELS = {
    "small": {"block_out_channels": [64, 64, 128, 128], "layers_per_block": 1},  # 4.7M
    "medium": {"block_out_channels": [64, 128, 128, 128], "layers_per_block": 2},  # 9M
    "ddpm": {"block_out_channels": [128, 256, 256, 256], "layers_per_block": 2, "dropout": 0.1},  # 35.7M
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="CIFAR-10, as data.source takes it")
    parser.add_argument("--model", choices=MODELS, default="medium")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="steps measured in each run, after as many to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--no_gradient_scaler", action="store_true")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--diffusers_example", type=Path)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)  # this process is the bare loop
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare_loop(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    contenders = {"bare loop": run_bare_loop, "ddpm_hf": run_program}
    if options.diffusers_example:
        contenders["diffusers example"] = run_diffusers_example
    run_program(options, folder / "warm-up", steps=1)  # prepares the store
    speeds = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, run in contenders.items():
            speeds[name].append(run(options, folder / f"{name} {number}"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    variant = [options.precision] + [
        flag for flag in ("no_gradient_scaler", "channels_last", "compile") if getattr(options, flag)
    ]
    print(
        f"{options.model} U-Net, batch {options.batch_size}, {', '.join(variant)}; {gpu or f'{platform.machine()} processor, {torch.get_num_threads()} threads'}, torch {torch.__version__}"
    )
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(values, speeds["bare loop"], strict=True))
        print(
            f"{name:18} {statistics.median(values):9.1f} images/s   {ratio:6.1%} of the bare loop   ({min(values):.1f} to {max(values):.1f})"
        )


def overrides(options: argparse.Namespace) -> dict[str, object]:
    return {
        **{f"model.{key}": value for key, value in MODELS[options.model].items()},
        "data.source": options.source,
        "train.batch_size": options.batch_size,
        "train.precision": options.precision,
        "train.channels_last": json.dumps(options.channels_last),
        "train.compile": json.dumps(options.compile),
        **({"train.gradient_scaler": "false"} if options.no_gradient_scaler else {}),
    }


def run_bare_loop(options: argparse.Namespace, folder: Path) -> float:
    done = subprocess.run([sys.executable, *sys.argv, "--bare"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_program(options: argparse.Namespace, folder: Path, steps: int | None = None) -> float:
    """The program as a user starts it; its own figure of the second half, so that imports and warm-up are left out."""
    steps = steps or options.steps
    settings = overrides(options) | {
        "run.output_dir": folder,
        "train.max_steps": 2 * steps,
        "train.warmup_steps": 1,
        "train.checkpoint_every": 10**6,
        "sample.steps": 1,
        "sample.num_images": 1,
        "track.log_every": steps,
    }
    command = [sys.executable, "train_unconditional.py", "--config", "cifar10"]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads((folder / "cifar10" / "metrics.jsonl").read_text().splitlines()[1])["images_per_second"]


def bare_loop(options: argparse.Namespace) -> float:
    """The least that a training step needs, written plainly."""
    import copy
    from contextlib import nullcontext

    from ddpm_hf.build import build_denoiser
    from ddpm_hf.config import load_recipe

    model = {f"model.{key}": value for key, value in MODELS[options.model].items()}
    recipe = load_recipe("cifar10", {**model, "data.source": options.source})
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    unet = build_denoiser(recipe).to(device, memory_format=memory_format).train()
    ema = copy.deepcopy(unet).requires_grad_(False)
    denoiser = torch.compile(unet) if options.compile else unet
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-4, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16" and not options.no_gradient_scaler)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(options.precision)
    x0 = torch.rand(options.batch_size, 3, 32, 32, device=device) * 2 - 1
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)

    def step() -> None:
        t = torch.randint(1000, (len(x0),), device=device)
        noise = torch.randn_like(x0)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        with torch.autocast(device.type, half) if half else nullcontext():
            prediction = denoiser(a.sqrt() * x0 + (1 - a).sqrt() * noise, t).sample
        loss = (prediction.float() - noise).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1e-4)

    def timed() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    for _ in range(options.steps):
        step()
    start = timed()
    for _ in range(options.steps):
        step()
    return options.steps * len(x0) / (timed() - start)


def run_diffusers_example(options: argparse.Namespace, folder: Path) -> float:
    """Its second epoch, as the difference between runs of two epochs and of one: start and saving cancel out."""
    from datasets import Dataset, Image

    from ddpm_hf.build import build_denoiser
    from ddpm_hf.config import load_recipe
    from ddpm_hf.data.prepare import prepare
    from ddpm_hf.pictures import to_pil

    model = {f"model.{key}": value for key, value in MODELS[options.model].items()}
    recipe = load_recipe("cifar10", {**model, "data.source": options.source})
    build_denoiser(recipe).save_pretrained(folder / "unet")
    store, count = prepare(recipe.data), options.steps * options.batch_size
    images = [to_pil(store.read(i)) for i in range(count)]
    Dataset.from_dict({"image": images}).cast_column("image", Image()).to_parquet(folder / "data" / "train.parquet")
    times = []
    for epochs in (1, 2):
        command = [sys.executable, options.diffusers_example, "--dataset_name", folder / "data", "--resolution", 32]
        command += ["--model_config_name_or_path", folder / "unet", "--train_batch_size", options.batch_size]
        command += ["--num_epochs", epochs, "--save_images_epochs", 1000, "--save_model_epochs", 1000, "--use_ema"]
        command += ["--ddpm_num_inference_steps", 1, "--eval_batch_size", 1, "--output_dir", folder / f"out{epochs}"]
        command += ["--mixed_precision", options.precision, "--checkpointing_steps", 10**6]
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return count / (times[1] - times[0])


if __name__ == "__main__":
    main()
