"""Latents killed while they are encoded and while they are trained on, by one process and by two: the same bits."""

import random
import time
from pathlib import Path

import pytest

from ddpm_hf.config import load_recipe
from tests.conftest import write_autoencoder
from tests.training.conftest import TINY_LATENT
from tests.training.test_processes import (
    SIXTY_STEPS,
    assert_same_bits,
    finish,
    kill,
    kill_at_random_moments,
    launch,
    tensors,
)

pytestmark = pytest.mark.slow
SCRIPT = "train_cfg_latent.py"


def bytes_of(store):
    files = sorted([*Path(store).glob("shard-*"), Path(store) / "manifest.json"])
    assert len(files) >= 2 * 2 + 1  # of two shards or more
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_while_encoding_and_while_training_the_bits_are_the_same(processes, tmp_path):
    autoencoder = write_autoencoder(tmp_path / "autoencoder", widths=(32, 64))

    def recipe(name):
        settings = {
            **TINY_LATENT,
            **SIXTY_STEPS,
            "train.batch_size": 4,
            "autoencoder.source": autoencoder,
            "autoencoder.batch_size": 1,  # slow, so that there is time to kill
            "run.name": name,
            "run.output_dir": str(tmp_path / "runs"),
            "data.store": str(tmp_path / f"{name}-latents"),
        }
        return load_recipe("latent/digits", settings)

    alone, killed = recipe("alone"), recipe("killed")
    finish(launch(alone, tmp_path, processes, SCRIPT))
    moments, caught = random.Random(processes), 0
    store = Path(killed.data.store)
    for _ in range(4):
        for left in store.glob("*.tmp"):
            left.unlink()
        process = launch(killed, tmp_path, processes, SCRIPT)
        while not any(store.glob("shard-*.tmp")) and process.poll() is None and not (store / "manifest.json").exists():
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.6))
        caught += not (store / "manifest.json").exists()
        kill(process)
    assert caught >= 2  # killed before the store was complete
    kill_at_random_moments(killed, tmp_path, processes, kills=3, seed=processes, script=SCRIPT)
    assert bytes_of(alone.data.store) == bytes_of(killed.data.store)
    assert_same_bits(tensors(alone), tensors(killed))


def test_two_processes_train_an_autoencoder_with_a_discriminator_and_resume(tiny_autoencoder, tmp_path):
    """A kill on the way; the discriminator's parameters have no gradient before its start."""
    settings = {
        "train.max_steps": 30,
        "train.checkpoint_every": 5,
        "track.log_every": 1,
        "loss.discriminator_start": 12,
    }
    alone, killed = (tiny_autoencoder(**settings, **{"run.name": name}) for name in ("alone", "killed"))
    finish(launch(alone, tmp_path, 2, "train_autoencoder.py"))
    kill_at_random_moments(killed, tmp_path, 2, kills=2, seed=4, script="train_autoencoder.py")
    assert_same_bits(tensors(alone, 30), tensors(killed, 30))
    assert all("module." not in name for name in tensors(alone, 30)["model"])
    assert (tmp_path / "runs" / "killed" / "autoencoder" / "config.json").is_file()
