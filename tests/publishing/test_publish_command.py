"""`ddpm-hf publish`, whole: built, checked in a fresh process, in place."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ddpm_hf.cli import main
from ddpm_hf.publishing import folder as folders
from ddpm_hf.publishing.card import Card
from ddpm_hf.publishing.check import code_of, difference
from ddpm_hf.publishing.run import read_run
from ddpm_hf.publishing.snippets import drawn_by_run, snippets

pytestmark = pytest.mark.slow

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_a_published_run_is_replaced_by_the_next(trained, tmp_path, capsys):
    out = tmp_path / "digits"
    command = ["publish", str(trained[0]["latent"]), "--out", str(out), "--license", "mit"]
    main(command)
    said = capsys.readouterr()
    assert f"{out} is ready" in said.out
    assert "no license" not in said.err
    assert "license: mit" in (out / "README.md").read_text()
    first = {path: path.stat().st_ino for path in out.rglob("*")}
    main([*command[:-2], "--variant", "fp16", "--variant", "bf16"])  # which the check loads too
    assert "warning: no license is stated" in capsys.readouterr().err
    assert {path.name for path in (out / "unet").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bf16.safetensors",
    }  # fmt: skip
    assert 'With `variant="fp16", dtype={"unet": torch.float16' in (out / "README.md").read_text()
    assert {path: path.stat().st_ino for path in out.rglob("*")} != first
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]  # nothing aside is left


def test_a_folder_that_draws_something_else_does_not_take_the_place(trained, tmp_path, monkeypatch, capsys):
    run = tmp_path / "guided"
    shutil.copytree(trained[0]["guided"], run)
    main(["publish", str(run)])
    before = (run / "hub" / "publication.json").read_text()

    save = folders.save_pipeline

    def save_another(pipe, folder):
        weight = next(pipe.unet.parameters())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.1)
        save(pipe, folder)
        with torch.no_grad():
            weight.copy_(kept)

    monkeypatch.setattr(folders, "save_pipeline", save_another)
    for _ in range(2):  # the second replaces what the first left
        with pytest.raises(SystemExit) as error:
            main(["publish", str(run)])
        assert error.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        failed = f"{run / 'hub.failed'}"
        assert said.startswith(
            f"error: {failed}: does not work without this package: image.png is another picture than"
        )
        assert Path(failed, "README.md").is_file()
        assert (run / "hub" / "publication.json").read_text() == before
    monkeypatch.setattr(folders, "save_pipeline", save)
    main(["publish", str(run)])
    assert not Path(failed).exists()
    assert json.loads((run / "hub" / "publication.json").read_text()) == json.loads(before)


def test_code_that_needs_this_package_does_not_pass(trained, tmp_path, monkeypatch, capsys):
    save = folders.save_pipeline

    def save_dependent(pipe, folder):
        save(pipe, folder)
        code = folder / "image_generation.py"
        code.write_text(code.read_text().replace("import torch\n", "import torch\nimport ddpm_hf\n", 1))

    monkeypatch.setattr(folders, "save_pipeline", save_dependent)
    with pytest.raises(SystemExit):
        main(["publish", str(trained[0]["custom"]), "--out", str(tmp_path / "hub")])
    assert "hub.failed: does not work without this package: " in (said := capsys.readouterr().err)
    assert "ddpm_hf" in said.strip().splitlines()[-1].partition("this package: ")[2]
    assert not (tmp_path / "hub").exists()


def test_what_was_pushed_works_by_its_cards_code(trained, tmp_path, hub, capsys):
    """The Hub downloads other files than a folder holds: those alone that a pipeline's index asks for."""
    out = tmp_path / "hub"
    main(["publish", str(trained[0]["custom"]), "--out", str(out), "--push", "ada/digits", "--private"])
    assert f"{hub.url}/ada/digits/commit/" in capsys.readouterr().out
    code = code_of((out / "README.md").read_text())
    assert 'from_pretrained("ada/digits", trust_remote_code=True)' in code
    elsewhere = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.modules['ddpm_hf'] = None\n" + code],
        cwd=tmp_path,
        env=os.environ | hub.environment(tmp_path / "home") | elsewhere,
        check=True,
    )
    run = read_run(trained[0]["custom"])
    drawn = {"image.png": np.asarray(Image.open(tmp_path / "image.png"))}
    assert difference(drawn, drawn_by_run(run, snippets(run, "ada/digits"), lambda images: None)) is None


def test_a_refused_token_is_told_before_anything_is_made(trained, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    with pytest.raises(SystemExit):
        main(["publish", str(trained[0]["custom"]), "--out", str(tmp_path / "hub"), "--push", "ada/digits"])
    assert "refuses the token in HF_TOKEN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_goes_on_where_the_connection_was_cut(trained, tmp_path, hub, monkeypatch, capsys):
    """Of two large files one arrives; the repeat, a new process in everyday life, makes the folder again and sends the other."""
    monkeypatch.setattr("ddpm_hf.publishing.upload.WAITS", (0.01,))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's own tries
    out = tmp_path / "hub"
    command = ["publish", str(trained[0]["latent"]), "--out", str(out), "--push", "ada/digits"]
    oid = hashlib.sha256((trained[0]["latent"] / "pipeline" / WEIGHTS).read_bytes()).hexdigest()
    hub.cut(f"PUT .*{oid}", after=1000, times=1000)
    with pytest.raises(SystemExit) as error:
        main(command)
    assert error.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"error: ada/digits: the connection to {hub.url} broke; try again later; {out} stays as it is")
    made = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert hub.files("ada/digits") == {}
    hub.faults.clear()
    hub.requests.clear()
    main(command)
    assert hub.files("ada/digits") == {path.relative_to(out).as_posix(): content for path, content in made.items()}
    assert hub.received("PUT /storage") == len(made[out / WEIGHTS])
    assert len(hub.messages("ada/digits")) == 1


@pytest.mark.parametrize("kind", ["stock", "latent"])
def test_half_precision_loads_as_the_card_says(trained, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    run = read_run(trained[0][kind])
    folders.build(tmp_path / "hub", run, Card(run, snippets(run, "x"), ["bf16"]), ["bf16"])
    card = (tmp_path / "hub" / "README.md").read_text()
    (said,) = re.findall(r'`(variant="bf16", dtype=.+?)`', card)
    options = eval(f"dict({said})", {"torch": torch, "dict": dict})
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "hub", trust_remote_code=kind != "stock", **options)
    assert pipe.unet.dtype == torch.bfloat16
    if kind == "latent":
        assert pipe.vae.dtype == torch.float32
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(weight, run.pipe.unet.state_dict()[name].bfloat16()), name
    assert ('Give `output_type="pt"` then' in card) == (kind == "stock")
    assert pipe(num_inference_steps=2, output_type="pt").images.std() > 0
