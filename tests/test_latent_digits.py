"""From nothing to digits on demand, through an autoencoder of one's own, judged by a classifier of real digits."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ddpm_hf.cli import main
from tests.conftest import ROOT


def train(script, recipe, settings):
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, script, "--config", recipe, *options]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)


@pytest.mark.slow
def test_digits_through_an_autoencoder_are_those_asked_for(tmp_path):
    folders = {"run.output_dir": tmp_path, "track.trackers": []}
    train("train_autoencoder.py", "latent/digits_autoencoder",
          {**folders, "data.store": tmp_path / "pixels", "train.max_steps": 700, "train.checkpoint_every": 700})  # fmt: skip
    train("train_cfg_latent.py", "latent/digits",
          {**folders, "data.store": tmp_path / "latents", "train.max_steps": 1200, "train.checkpoint_every": 1200,
           "autoencoder.source": tmp_path / "digits_autoencoder" / "autoencoder"})  # fmt: skip

    images, labels = load_digits(return_X_y=True)
    classifier = SVC(C=10).fit(images[::2], labels[::2])

    def agreement(scale):
        out = tmp_path / f"{scale}.npz"
        main(["sample", str(tmp_path / "digits_latent"), "--num_images", "300", "--batch_size", "100", "--sampler",
              "dpmsolver++", "--steps", "15", "--guidance_scale", str(scale), "--out", str(out)])  # fmt: skip
        samples = np.load(out)
        seen = classifier.predict(samples["images"].reshape(300, 64) / 255 * 16)
        return (seen == samples["labels"]).mean()

    unguided, guided = agreement(1), agreement(3)
    print(f"agreement: unguided {unguided:.1%}, guided {guided:.1%}")
    assert guided > unguided
    assert guided >= 0.9
