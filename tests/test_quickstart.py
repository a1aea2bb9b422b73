"""The quickstart's own recipe, trained as `make quickstart` does, judged by a classifier of real digits."""

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
@pytest.mark.filterwarnings("ignore:The `probability` parameter")
def test_most_digits_are_clear_and_all_ten_occur(tmp_path):
    folders = ["--run.output_dir", str(tmp_path), "--data.store", str(tmp_path / "store")]
    command = [sys.executable, "train_unconditional.py", "--config", "quickstart", *folders]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    drawn = ["--num_images", "256", "--batch_size", "256", "--steps", "100", "--out", str(tmp_path / "digits.npz")]
    main(["sample", str(tmp_path / "quickstart"), *drawn])

    images, labels = load_digits(return_X_y=True)
    images = np.round(images / 16 * 255) / 255
    classifier = SVC(C=10, probability=True, random_state=0).fit(images[::2], labels[::2])

    def clear(pictures):
        probability = classifier.predict_proba(pictures)
        return probability.argmax(1)[probability.max(1) >= 0.8]

    assert len(clear(images[1::2])) > 0.85 * len(images[1::2])  # real digits that it never saw
    assert len(clear(np.random.default_rng(0).random((256, 64)))) == 0  # noise
    ours = clear(np.load(tmp_path / "digits.npz")["images"].reshape(256, 64) / 255)
    assert len(ours) >= 0.7 * 256
    assert set(ours) == set(range(10))
