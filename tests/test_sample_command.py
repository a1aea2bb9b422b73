"""`ddpm-hf sample`: exactly the images asked for, whatever they are asked as."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline
from PIL import Image

from ddpm_hf.cli import main
from ddpm_hf.config import Diffusion
from ddpm_hf.diffusion.schedule import build_scheduler


@pytest.fixture
def pipeline(tiny_unet, tmp_path):
    folder = tmp_path / "pipeline"
    DDPMPipeline(tiny_unet, build_scheduler(Diffusion(num_train_timesteps=50))).save_pretrained(folder)
    return str(folder)


def sample(*arguments):
    main(["sample", *map(str, arguments)])


@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 16), (7, 3), (8, 4)])
def test_exactly_so_many_distinct_files(pipeline, tmp_path, num_images, batch_size):
    sample(
        pipeline,
        "--num_images",
        num_images,
        "--batch_size",
        batch_size,
        "--steps",
        5,
        "--seed",
        10,
        "--out",
        tmp_path / "out",
    )
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [f"{10 + i:06d}.png" for i in range(num_images)]
    assert len({Image.open(f).tobytes() for f in files}) == num_images
    assert Image.open(files[0]).mode == "L"


def test_files_grid_and_archive_show_the_same_images(pipeline, tmp_path, capsys):
    for out in ("files", "grid.png", "all.npz"):
        sample(pipeline, "--num_images", 4, "--sampler", "ddim", "--steps", 5, "--out", tmp_path / out)
    archive = np.load(tmp_path / "all.npz")
    assert archive["images"].shape == (4, 8, 8, 1)
    assert archive["seeds"].tolist() == [0, 1, 2, 3]
    for i in range(4):
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "files" / f"{i:06d}.png")), archive["images"][i, ..., 0]
        )
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    scale = (grid.shape[0] - 6) // 16
    np.testing.assert_array_equal(
        grid[2 : 2 + 8 * scale : scale, 2 : 2 + 8 * scale : scale], archive["images"][0, ..., 0]
    )
    assert "4 images in" in capsys.readouterr().out


def test_the_film_strip(pipeline, tmp_path):
    sample(pipeline, "--num_images", 2, "--steps", 20, "--out", tmp_path / "x.png", "--strip", tmp_path / "strip.png")
    width, height = Image.open(tmp_path / "strip.png").size
    assert width > 4 * height  # ten states, two rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["."], "neither a run folder (recipe.yaml) nor a pipeline folder (model_index.json)"),
        (
            ["someone/not-there"],
            "someone/not-there: not downloaded to this machine, and HF_HUB_OFFLINE forbids to reach",
        ),
        (["PIPELINE", "--sampler", "dimm"], "choose from ddpm, ddim"),
        (["PIPELINE", "--steps", "51"], "51 denoising steps cannot be taken; this model has timesteps for 1 to 50"),
        (["PIPELINE", "--out", "x.jpg"], "--out: x.jpg should be a folder, a .png file or an .npz file"),
        (["PIPELINE", "--device", "gpu"], "--device: gpu cannot be used"),
        (["PIPELINE", "--seed", "-1"], "--seed"),
    ],
)
def test_mistakes(arguments, message, pipeline, capsys):
    with pytest.raises(SystemExit) as error:
        sample(*[pipeline if a == "PIPELINE" else a for a in arguments])
    assert error.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said


def test_a_run_that_has_no_pipeline_yet(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(SystemExit):
        sample(tmp_path)
    assert "this run has no pipeline yet" in capsys.readouterr().err


def test_labels_given_to_an_unconditional_model_are_an_error(pipeline, capsys):
    with pytest.raises(SystemExit):
        sample(pipeline, "--class", "3")
    assert "--class: this model is unconditional" in capsys.readouterr().err


def test_it_works_from_any_folder(pipeline, tmp_path):
    program = Path(sys.executable).parent / "ddpm-hf"
    if not program.exists():
        pytest.skip("ddpm-hf is not installed beside this Python")
    subprocess.run(
        [program, "sample", pipeline, "--num_images", "1", "--steps", "2", "--out", "one.png"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "one.png").is_file()


def test_a_folder_with_other_pictures_is_refused_before_drawing(pipeline, tmp_path, capsys):
    sample(pipeline, "--num_images", 3, "--steps", 2, "--out", tmp_path / "out")
    sample(pipeline, "--num_images", 3, "--steps", 2, "--out", tmp_path / "out")  # the same again is fine
    with pytest.raises(SystemExit):
        sample(pipeline, "--num_images", 2, "--steps", 2, "--out", tmp_path / "out")
    assert "already holds 1 other PNG files" in capsys.readouterr().err


def test_prepare_says_where_and_shows_what(tmp_path, capsys):
    main(["prepare", "quickstart", "--data.store", str(tmp_path / "store"), "--preview", str(tmp_path / "preview.png")])
    assert f"1,797 images in {tmp_path / 'store'}" in capsys.readouterr().out
    assert Image.open(tmp_path / "preview.png").mode == "L"


def test_mixed_precision_is_nearly_the_same_and_no_other_than_asked_for(pipeline, tmp_path, capsys):
    found = {}
    for precision in ("no", "bf16"):
        out = tmp_path / f"{precision}.npz"
        sample(pipeline, "--num_images", 2, "--sampler", "ddim", "--steps", 5, "--precision", precision, "--out", out)
        found[precision] = np.load(out)["images"].astype(int)
    difference = np.abs(found["no"] - found["bf16"])
    assert 0 < difference.mean() < 3  # bfloat16 has 8 bits of mantissa
    with pytest.raises(SystemExit):
        sample(pipeline, "--precision", "fp16", "--device", "cpu", "--out", tmp_path / "out")
    assert "--precision: fp16 needs a GPU; bf16 runs on processors too" in capsys.readouterr().err
