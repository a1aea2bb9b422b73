"""A guided model of real digits, trained as a user would, judged by a classifier of real digits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ddpm_hf.cli import main

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_guided_digits_are_those_asked_for_more_often_than_unguided_ones(tmp_path):
    settings = {
        "run.output_dir": tmp_path,
        "data.store": tmp_path / "store",
        "condition.num_classes": 10,
        "train.max_steps": 900,
        "train.checkpoint_every": 900,
        "sample.sampler": "dpmsolver++",
        "sample.steps": 20,
    }
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "train_unconditional.py", "--config", "quickstart", *options]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)

    images, labels = load_digits(return_X_y=True)
    classifier = SVC(C=10).fit(images[::2], labels[::2])
    assert classifier.score(images[1::2], labels[1::2]) > 0.97  # real digits that it never saw

    def agreement(scale):
        drawn = ["--num_images", "300", "--batch_size", "100", "--sampler", "dpmsolver++", "--steps", "15"]
        out = tmp_path / f"{scale}.npz"
        main(["sample", str(tmp_path / "quickstart"), *drawn, "--guidance_scale", str(scale), "--out", str(out)])
        samples = np.load(out)
        seen = classifier.predict(samples["images"].reshape(300, 64) / 255 * 16)
        return (seen == samples["labels"]).mean()

    unguided, guided = agreement(1), agreement(3)
    assert guided > unguided
    assert guided >= 0.9
    print(f"agreement: unguided {unguided:.1%}, guided {guided:.1%}")
