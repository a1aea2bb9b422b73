import json

import pytest
import torch

from ddpm_hf.codec import weights_digest
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.evaluate import Evaluator
from ddpm_hf.evaluation.image_files import FolderImages
from ddpm_hf.evaluation.images import Chosen, DrawnImages
from ddpm_hf.evaluation.records import about_model, record_of, settings_digest, settings_of, table, write_record
from ddpm_hf.evaluation.reference import PublishedStatistics
from ddpm_hf.sampling import Sampling
from tests.evaluation.conftest import random_images, write_images

FAST = Sampling("ddim", 3, eta=0.5, guidance_scale=1.0)


@pytest.fixture
def real(own_folder):
    return FolderImages(write_images(own_folder / "real", random_images(30)), "real", progress=False)


@pytest.fixture
def made(real, tiny_pipe, pooled, state):
    """An evaluator, its images and the record."""
    evaluator = Evaluator(("frechet", "kernel"), state, pooled, None, Chosen(real, 20))
    images = DrawnImages(tiny_pipe, 12, FAST, first_seed=3, batch_size=5)
    evaluation = evaluator(images)
    settings = settings_of(evaluator, images)
    return evaluator, images, record_of({"model": "mine", "step": 8}, settings, evaluation, state)


def test_the_record_holds_every_setting_that_matters(made, real):
    evaluator, _, record = made
    record = json.loads(json.dumps(record))  # all of it is JSON
    assert (record["model"], record["step"], record["num_images"], record["distinct_images"]) == ("mine", 8, 12, 12)
    assert record["sampling"] == {
        "sampler": "ddim", "steps": 3, "network_evaluations": 3, "eta": 0.5, "class": None, "guidance_scale": 1.0,
        "guidance_interval": None, "first_seed": 3, "batch_size": 5,
    }  # fmt: skip
    assert record["extractor"] == evaluator.extractor.identity
    reference = record["reference"]
    assert reference["source"] == str(real.folder) and reference["num_images"] == 20
    assert reference["fingerprint"] == evaluator.reference.content and reference["shape"] == [1, 8, 8]
    assert set(record["metrics"]) == {
        "frechet_distance_pooled",
        "kernel_distance_pooled",
        "kernel_distance_pooled_standard_error",
    }
    assert {"sampling_seconds", "images_per_second", "extraction_seconds", "metrics_seconds", "total_seconds"} <= set(
        record["times"]
    )
    packages = {"torch", "torchvision", "diffusers", "transformers", "clean-fid", "numpy", "pillow"}
    assert set(record["versions"]) == {"ddpm_hf", "python", *packages}
    assert record["processes"] == 1 and record["device"].startswith("cpu") and record["date"]


def test_the_table_is_for_reading(made):
    text = table(made[2])
    lines = text.splitlines()
    assert lines[0].startswith("Fréchet distance (pooled) ↓  ")
    assert lines[1].startswith("kernel distance (pooled) ↓   ") and " ± " in lines[1]
    assert "12 images of mine, ddim in 3 steps, seeds 3 to 14" in lines
    assert any(line.startswith("against 20 images of ") for line in lines)
    assert any(line.startswith("warning: 12 images against 20") for line in lines)
    assert "extractor: pooled, none" in lines


def test_a_folder_s_record_says_which_images(real, pooled, state):
    evaluator = Evaluator(("frechet",), state, pooled, None, PublishedStatistics("x", 8, "test"))
    settings = settings_of(evaluator, real, others=("validation_loss",))
    assert settings["images"] == {"source": str(real.folder), "fingerprint": real.content}
    assert settings["sampling"] is None
    assert settings["reference"] == {"source": "cleanfid:x:8:test", "num_images": None, "fingerprint": None}
    assert settings["metrics_asked"] == ["frechet", "validation_loss"]


def test_other_settings_have_another_digest_but_not_another_batch_size(real, tiny_pipe, pooled, state):
    def digest(sampling=FAST, number=12, seed=0, batch_size=5, metrics=("frechet",), reference=real):
        images = DrawnImages(tiny_pipe, number, sampling, first_seed=seed, batch_size=batch_size)
        return settings_digest(settings_of(Evaluator(metrics, state, pooled, None, reference), images))

    assert digest() == digest(batch_size=12)
    others = [
        digest(Sampling("ddim", 4)),
        digest(Sampling("ddpm", 3)),
        digest(number=13),
        digest(seed=1),
        digest(metrics=("kernel",)),
        digest(reference=Chosen(real, 29)),
    ]
    assert len({digest(), *others}) == 7


def test_a_record_is_written_whole(own_folder):
    path = own_folder / "a" / "b" / "record.json"
    write_record(path, {"metrics": {"fid": 1.5}, "name": "Fréchet"})
    assert json.loads(path.read_text()) == {"metrics": {"fid": 1.5}, "name": "Fréchet"}
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]
    (own_folder / "file").write_text("")
    with pytest.raises(UserError, match=r"file/record\.json cannot be written"):
        write_record(own_folder / "file" / "record.json", {})


def test_what_a_record_says_of_the_model(tiny_pipe):
    about = json.loads(json.dumps(about_model(tiny_pipe)))
    assert about["weights"] == weights_digest(tiny_pipe.unet)
    assert (about["autoencoder"], about["variance_exponent"]) == (None, None)
    scheduler = about["scheduler"]
    assert (scheduler["class"], scheduler["num_train_timesteps"]) == ("DDPMScheduler", 50)
    assert {"beta_schedule", "beta_start", "prediction_type", "clip_sample", "variance_type"} <= set(scheduler)
    assert not any(name.startswith("_") for name in scheduler)
    tiny_pipe.vae = torch.nn.Linear(2, 2)
    assert about_model(tiny_pipe)["autoencoder"] == weights_digest(tiny_pipe.vae)
