"""`ddpm-hf publish`, whole: built, checked in a fresh process, in place."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ddpm_hf.cli import main
from ddpm_hf.publishing import folder as folders

pytestmark = pytest.mark.slow


def test_a_published_run_is_replaced_by_the_next(trained, tmp_path, capsys):
    out = tmp_path / "digits"
    command = ["publish", str(trained[0]["latent"]), "--out", str(out), "--license", "mit"]
    main(command)
    assert f"{out} is ready" in capsys.readouterr().out
    assert "license: mit" in (out / "README.md").read_text()
    first = {path: path.stat().st_ino for path in out.rglob("*")}
    main([*command, "--variant", "fp16", "bf16"])  # which the check loads too
    assert {path.name for path in (out / "unet").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bf16.safetensors",
    }  # fmt: skip
    assert 'With `variant="fp16", torch_dtype={"unet": torch.float16' in (out / "README.md").read_text()
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
