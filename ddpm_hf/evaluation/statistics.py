"""What the metrics need to know of a set of images: accumulated in one pass, saved, loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddpm_hf.data.store import replacing
from ddpm_hf.errors import UserError

UNKNOWN_COUNT = 2**53  # of images behind published statistics, which do not say


class Moments:
    """Mean and covariance of features, in float64, from batches (Chan, Golub & LeVeque 1983, equation 2.1).

    Each batch is centred by its own mean, so that features far from zero lose no digits; batches and processes merge in
    any order to the same up to rounding.

    count: images so far, an int
    mean: (D,), scatter: (D, D), the sum of (x - mean)(x - mean)^T; float64, zero at first
    """

    def __init__(self, dimensions: int, device: torch.device | str = "cpu"):
        """device: where the sums are kept, best where the features are; of MPS, which has no float64, the processor."""
        device = torch.device(device)
        home = torch.device("cpu") if device.type == "mps" else device
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64, device=home)
        self.scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64, device=home)

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray, count: int) -> Moments:
        """Of published statistics: mean (D,) and covariance (D, D), with its divisor count - 1; UNKNOWN_COUNT will do."""
        moments = cls(len(mean))
        moments.count = count
        moments.mean = torch.as_tensor(np.array(mean, dtype=np.float64))
        moments.scatter = torch.as_tensor(np.asarray(covariance, dtype=np.float64) * (count - 1))
        return moments

    def add(self, features: torch.Tensor) -> None:
        """features: float (N, D), any device, N may be 0. Never waits for a GPU."""
        if not len(features):
            return
        x = features.detach().to(self.mean.device).double()  # moved first: MPS has no float64
        mean = x.mean(dim=0)
        self._update(len(x), mean, x - mean)

    def merge(self, other: Moments) -> None:
        """Adds what another accumulator has seen."""
        if other.count:
            self.scatter += other.scatter.to(self.scatter.device)
            self._update(other.count, other.mean.to(self.mean.device))

    @property
    def covariance(self) -> torch.Tensor:
        """(D, D) float64, with the divisor count - 1. Raises `UserError` below two images."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images; there are {self.count}")
        return self.scatter / (self.count - 1)

    def _update(self, count: int, mean: torch.Tensor, centred: torch.Tensor | None = None) -> None:
        """Takes in `count` images of this mean; `centred`, (N, D), are those whose scatter is not added yet."""
        total = self.count + count
        delta = mean - self.mean
        if centred is not None:
            self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.mean.add_(delta, alpha=count / total)
        self.count = total


@dataclass
class Statistics:
    """Of a set of images; arrays are in the images' order, and None where no metric needs them."""

    moments: Moments
    features: np.ndarray | None = None  # float32 (N, D)
    probabilities: np.ndarray | None = None  # float32 (N, K), rows sum to 1
    labels: np.ndarray | None = None  # int64 (N,), the classes that were asked for, or the data set's

    def save(self, path: str | Path) -> None:
        """Writes an .npz file, which appears when it is complete; its folder must exist."""
        moments = {"mean": self.moments.mean.cpu().numpy(), "scatter": self.moments.scatter.cpu().numpy()}
        arrays = {"features": self.features, "probabilities": self.probabilities, "labels": self.labels}
        with replacing(Path(path)) as file:
            present = {name: array for name, array in arrays.items() if array is not None}
            np.savez(file, count=np.int64(self.moments.count), **moments, **present)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Reads what `save` wrote, with the moments on the processor."""
        with np.load(path) as file:
            arrays = dict(file)
        moments = Moments(len(arrays["mean"]))
        moments.count = int(arrays.pop("count"))
        moments.mean, moments.scatter = (torch.from_numpy(arrays.pop(name)) for name in ("mean", "scatter"))
        return cls(moments, **arrays)
