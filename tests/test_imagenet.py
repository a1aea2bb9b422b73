"""ImageNet-100's mechanics on real photographs: folders by WordNet id, classes out of a file, 128x128, latents."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddpm_hf.cli import main
from tests.conftest import ROOT, SHARED, write_autoencoder

PHOTOGRAPHS = SHARED / "imagenet_samples" / "train.parquet"


@pytest.fixture
def imagenet(tmp_path):
    """train/<wnid>/<n>.JPEG of all 1,000 classes, val/ of the same, and a file that chooses every tenth of them."""
    if not PHOTOGRAPHS.is_file():
        pytest.skip(f"needs the photographs at {PHOTOGRAPHS}")
    chosen = []
    for number, row in enumerate(pq.read_table(PHOTOGRAPHS).to_pylist()):
        for split in ("train", "val"):
            folder = tmp_path / "imagenet" / split / row["wnid"]
            folder.mkdir(parents=True)
            (folder / f"{number}.JPEG").write_bytes(row["image"]["bytes"])
        if number % 10 == 0:
            chosen.append((row["wnid"], row["name"]))
    (tmp_path / "imagenet100.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in chosen))
    return tmp_path, chosen


def test_a_hundred_of_a_thousand_classes_are_encoded_trained_on_sampled_and_decoded(imagenet):
    folder, chosen = imagenet
    autoencoder = write_autoencoder(folder / "vae", channels=3, latent_channels=4, widths=(8, 8, 8, 8))  # as SD's: 8
    settings = {
        "data.source": folder / "imagenet",
        "data.classes": folder / "imagenet100.txt",
        "data.store": folder / "latents",
        "autoencoder.source": autoencoder,
        "run.output_dir": folder / "runs",
        "model.block_out_channels": [16, 32],
        "model.norm_num_groups": 8,
        "model.attention_head_dim": 8,
        "model.attention_resolutions": [8],
        "train.epochs": 0.2,
        "train.checkpoint_every": 5,
        "train.validate_every": 5,
        "sample.steps": 4,
        "sample.num_images": 16,
        "track.trackers": [],
    }
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    ran = subprocess.run(
        [sys.executable, "train_cfg_latent.py", "--config", "latent/imagenet100_128", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    manifest = json.loads((folder / "latents" / "manifest.json").read_text())
    assert manifest["num_images"] == 100
    assert manifest["channels"] == 2 * 2 * 4  # mean and log variance, of each photograph and its mirror image
    assert manifest["class_names"] == [name for _, name in chosen]
    run = folder / "runs" / "imagenet100_128"
    index = json.loads((run / "pipeline" / "model_index.json").read_text())
    assert index["num_classes"] == 100
    assert index["id2label"]["99"] == chosen[99][1]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 5
    assert last["validation_loss"] > 0
    assert last["validation_loss_unlabelled"] > 0
    picture = Image.open(run / "samples" / "step-00000005.png")
    assert picture.mode == "RGB"
    name = chosen[7][1]
    main(["sample", str(run), "--num_images", "2", "--steps", "3", "--class", name, "--guidance_scale", "4",
          "--out", str(folder / "drawn.npz")])  # fmt: skip
    drawn = np.load(folder / "drawn.npz")
    assert drawn["images"].shape == (2, 128, 128, 3)
    assert drawn["labels"].tolist() == [7, 7]
