"""A small classifier, trained on the labelled images themselves: offline, for small studies and for class agreement."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.functional import cross_entropy

from ddpm_hf.data.images import center_crop
from ddpm_hf.data.store import PreparedStore, read_json, replacing, write_json
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extractors.base import Extractor, Features, resize
from ddpm_hf.files import sha256_of

logger = logging.getLogger(__name__)

SETTINGS = {  # all that the weights depend on besides the images; a change makes new files
    "version": 1,
    "widths": [32, 64, 128, 128],
    "largest_side": 64,
    "most_images": 100_000,  # of the set that are used
    "examples": 80_000,  # images that training sees, counted anew each time
    "most_epochs": 40,
    "least_steps": 200,  # however few images there are
    "batch_size": 128,
    "learning_rate": 4e-3,
    "seed": 0,
}


class Classifier(Extractor):
    """The features are its penultimate layer, the strongest answer of each of the last convolution's filters.

    Trained on nine tenths of the images, once: the weights are kept beside the store, in classifiers/, under a digest of
    the images, their labels and the settings. `identity` says how often it is right on the rest, `accuracy`.
    Raises `UserError` for images without labels.
    """

    name, dimensions, has_probabilities = "classifier", SETTINGS["widths"][-1], True
    at_once = 64

    def __init__(self, store: PreparedStore, device: torch.device | str, option: str = "--") -> None:
        _check(store, option)
        self.device, self.channels = torch.device(device), store.channels
        self._size = _size(store)
        try:
            path, about = _trained(store, self._size, self.device)
        except OSError as error:
            raise UserError(
                f"{option}extractor: {_folder(store)}, where the classifier is kept, cannot be written"
                f" ({error.strerror or error}); name a store that lies elsewhere by data.store, or make room"
            ) from None
        with torch.device("meta"):  # draws no weights only to replace them
            network = Network(store.channels, len(store.class_names), self._size)
        network.load_state_dict(load_file(path), assign=True)
        self._network = network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        height, width = self._size
        self.identity = {
            "name": self.name,
            "weights": path.name,
            "sha256": about["sha256"],
            "resize": f"{height}x{width}, bicubic with antialias",
            "dimensions": self.dimensions,
            "accuracy": about["accuracy"],
            "accuracy_images": min(len(store), SETTINGS["most_images"]) // 10,
            "training_set": store.content,
        }

    def extract(self, images: torch.Tensor) -> Features:
        x = _fitted(self.to_input(images), self._size)
        values = self._network.features(x / 127.5 - 1)
        return Features(values, self._network.output(values).softmax(dim=1))


class Network(nn.Module):
    """Four convolutions, each halving but the last; float32 (N, C, H, W) in [-1, 1] → logits (N, K)."""

    def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        layers, widths = [], [channels, *SETTINGS["widths"]]
        for level, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if level == 0 and max(size) > 32 else 1  # large images cost no more than small ones
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if level < len(widths) - 2:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.layers, self.output = nn.Sequential(*layers), nn.Linear(widths[-1], classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last)).amax(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.features(x))


def _check(store: PreparedStore, option: str) -> None:
    missing = int((store.labels < 0).sum())
    labels = f"{missing} of {len(store)} images in {store.folder} have no label"
    if "latents" in store.fingerprint:
        problem = f"{store.folder} holds latents; name a recipe of pixels as the reference"
    elif store.class_names is None or missing == len(store):
        problem = f"those in {store.folder} have no labels; name a labelled set, or another extractor"
    elif missing:
        problem = f"{labels}; name a labelled set, or another extractor"
    elif len(store) < 20 or len(np.unique(store.labels)) < 2:
        problem = (
            f"{store.folder} has {len(store)} images of {len(np.unique(store.labels))} classes; 20 of 2 are the least"
        )
    else:
        return
    raise UserError(f"{option}extractor: classifier is trained on labelled images: {problem}")


def _resolution(store: PreparedStore) -> tuple[int, int]:
    """Of the images that training sees; those stored may be larger, for random crops."""
    return tuple(store.fingerprint["transforms"]["resolution"])


def _size(store: PreparedStore) -> tuple[int, int]:
    """Height and width that the network sees: the images' own, or smaller."""
    resolution = _resolution(store)
    factor = min(1, SETTINGS["largest_side"] / max(resolution))
    return tuple(max(1, round(side * factor)) for side in resolution)


def _fitted(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Float in [0, 255] of this size, whole numbers, as training keeps them."""
    return resize(images, size).round()


def _folder(store: PreparedStore) -> Path:
    return store.folder.parent / "classifiers"


def _trained(store: PreparedStore, size: tuple[int, int], device: torch.device) -> tuple[Path, dict]:
    """The weights' file and what is known of it. Of several processes one trains, the others wait for it."""
    key = {
        "settings": SETTINGS, "images": store.content, "size": list(size), "resolution": list(_resolution(store)),
        "classes": len(store.class_names),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    folder = _folder(store)
    path, described = folder / f"{digest}.safetensors", folder / f"{digest}.json"
    if (about := _kept(path, described, key)) is not None:  # in a folder that may be another's, to read
        return path, about
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f".{digest}.lock"):
        if (about := _kept(path, described, key)) is not None:
            return path, about
        network, accuracy = train(store, size, device)
        with replacing(path) as file:
            file.write(save({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}))
        about = {"key": key, "sha256": sha256_of(path), "accuracy": accuracy, "class_names": store.class_names}
        write_json(described, about)
    return path, about


def _kept(path: Path, described: Path, key: dict) -> dict | None:
    about = read_json(described)
    whole = about is not None and about["key"] == key and path.is_file() and sha256_of(path) == about["sha256"]
    return about if whole else None


@contextmanager
def _alone(lock_file: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=2)  # longer than reading takes
    except Timeout:
        logger.warning("another process is training the classifier; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def train(store: PreparedStore, size: tuple[int, int], device: torch.device) -> tuple[Network, float]:
    """On nine tenths of the images; with how much of the rest it is right on.

    The same bits each time on the same machine and number of threads; leaves torch's own random state as it was.
    """
    gpus = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.random.fork_rng(gpus), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            torch.manual_seed(SETTINGS["seed"])
            return _train(store, size, device)
    finally:
        torch.backends.cudnn.deterministic = deterministic


def _train(store: PreparedStore, size: tuple[int, int], device: torch.device) -> tuple[Network, float]:
    from tqdm import tqdm

    chosen = torch.randperm(len(store))[: SETTINGS["most_images"]]
    images = _read(store, chosen, size).to(device)
    labels = torch.from_numpy(store.labels[chosen.numpy()]).to(device)
    held_out = len(chosen) // 10
    network = Network(store.channels, len(store.class_names), size).to(device, memory_format=torch.channels_last)
    number = len(chosen) - held_out
    batch = min(SETTINGS["batch_size"], number)
    steps = max(SETTINGS["least_steps"], min(SETTINGS["examples"], SETTINGS["most_epochs"] * number) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=SETTINGS["learning_rate"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SETTINGS["learning_rate"], total_steps=steps)
    epochs = -(-steps * batch // number)
    draws = torch.cat([torch.randperm(number) for _ in range(epochs)])[: steps * batch] + held_out
    for indices in tqdm(draws.split(batch), desc="training a classifier", unit="step", dynamic_ncols=True):
        indices = indices.to(device)
        cross_entropy(network(images[indices].float() / 127.5 - 1), labels[indices]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    network.eval()
    with torch.no_grad():
        right = [
            (network(some.float() / 127.5 - 1).argmax(dim=1) == theirs).sum()
            for some, theirs in zip(images[:held_out].split(256), labels[:held_out].split(256), strict=True)
        ]
    return network, int(sum(right)) / held_out


def _read(store: PreparedStore, indices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 (N, C, *size)."""
    resolution, parts = _resolution(store), []
    for some in indices.split(256):
        part = np.stack([center_crop(store.read(int(i)), resolution) for i in some])
        parts.append(_fitted(torch.from_numpy(part).float(), size).to(torch.uint8))
    return torch.cat(parts)
