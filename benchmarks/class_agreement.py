"""How often a small classifier, trained on the real images, sees the class that was asked for.

    ddpm-hf sample runs/peng_cfg_ema --num_images 500 --guidance_scale 3 --out guided.npz
    ddpm-hf sample runs/peng_cfg_ema --num_images 500 --out unguided.npz
    python benchmarks/class_agreement.py reports/peng_cfg_ema guided.npz unguided.npz

The classifier is trained on nine tenths of the recipe's images and first says how often it is right on the rest.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn

from ddpm_hf.config import load_recipe
from ddpm_hf.data.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("samples", nargs="+", help=".npz files of ddpm-hf sample")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    store = prepare(load_recipe(options.recipe).data)
    images = torch.from_numpy(np.stack([store.read(i) for i in range(len(store))]))
    labels = torch.from_numpy(store.labels)
    start = time.perf_counter()
    classifier, accuracy = train(images, labels, len(store.class_names), options.epochs)
    print(f"classifier: {accuracy:.1%} right on real images it has not seen, {time.perf_counter() - start:.0f} s")
    for file in options.samples:
        drawn = np.load(file)
        seen = classify(classifier, torch.from_numpy(drawn["images"].transpose(0, 3, 1, 2)))
        agrees = seen.numpy() == drawn["labels"]
        each = ", ".join(f"{agrees[drawn['labels'] == c].mean():.0%}" for c in np.unique(drawn["labels"]))
        print(f"{file}: {agrees.mean():.1%} of {len(agrees)} (by class: {each})")


def train(images: torch.Tensor, labels: torch.Tensor, classes: int, epochs: int) -> tuple[nn.Module, float]:
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    held_out, order = order[: len(order) // 10], order[len(order) // 10 :]
    model = nn.Sequential(
        nn.Conv2d(images.shape[1], 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(64 * 9, classes),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = epochs * (len(order) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        batch = order[torch.arange(step * 128, (step + 1) * 128) % len(order)]
        nn.functional.cross_entropy(model(scaled(images[batch])), labels[batch]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, (classify(model, images[held_out]) == labels[held_out]).float().mean().item()


@torch.no_grad()
def classify(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The class that it sees in each of the images, uint8 (N, C, H, W)."""
    model.eval()
    return torch.cat([model(scaled(batch)).argmax(dim=1) for batch in images.split(500)])


def scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


if __name__ == "__main__":
    main()
