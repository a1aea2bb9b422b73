"""A folder that a Hugging Face Space runs as it is: the demo, the package's own code and, of local models, the weights."""

import re
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import ddpm_hf
import ddpm_hf.app
from ddpm_hf.app.models import names_of
from ddpm_hf.config.checks import REPO_ID
from ddpm_hf.config.files import shipped_configs
from ddpm_hf.errors import UserError
from ddpm_hf.files import beside
from ddpm_hf.publishing.ownership import check_place, replace, write_list

# of what setup.cfg lists, what the demo imports; Gradio comes with the Space
REQUIREMENTS = ("accelerate", "diffusers", "filelock", "markdown-it-py", "matplotlib", "numpy", "pillow", "pydantic", "pyyaml",
    "safetensors", "torch", "torchvision", "tqdm", "transformers")  # fmt: skip


def write_space(folder: Path, models: Sequence[str]) -> Path:
    """Makes `folder`, anew if it is an earlier one as it was written, and gives it back.

    `models`: Hub ids, which the Space downloads, and folders with a pipeline, which are copied into it. Raises
    `UserError` where there is no such model, or where `folder` holds what was not written here.
    """
    final = Path(folder)
    check_place(final)
    models = list(dict.fromkeys(models))  # each once
    sources = {model: _pipeline(model) for model in models}
    folder = beside(final, "new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source, place in (
        (Path(ddpm_hf.__file__).parent, "ddpm_hf"),
        (Path(ddpm_hf.app.__file__).parent, "ddpm_hf/app"),
        (shipped_configs(), "ddpm_hf/configs"),
    ):
        _copy(source, folder / place)
    lines = []
    for (model, source), name in zip(sources.items(), names_of(models), strict=True):
        if source is None:
            lines.append(model)
        else:
            lines.append(f"models/{_unused(name, lines)}")
            _copy(source, folder / lines[-1])
    (folder / "models.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    shutil.copyfile(Path(ddpm_hf.app.__file__).parent / "app.py", folder / "app.py")
    pins = [f"{name}=={version(name).split('+')[0]}\n" for name in REQUIREMENTS]
    (folder / "requirements.txt").write_text("".join(pins), encoding="utf-8")
    (folder / "README.md").write_text(
        _readme(names_of(models), [m for m, s in sources.items() if s is None]), encoding="utf-8"
    )
    write_list(folder)
    replace(final, folder)
    return final


def _pipeline(model: str) -> Path | None:
    """The folder with the pipeline, None for a Hub id."""
    path = Path(model)
    for folder in (path, path / "pipeline"):
        if (folder / "model_index.json").is_file():
            return folder
    if path.exists() or not REPO_ID.fullmatch(model):
        raise UserError(f"{model}: no folder with a pipeline; give a run's, a published one or a Hub id")
    return None


def _unused(name: str, lines: Sequence[str]) -> str:
    """A folder's name in plain letters, which no other model has, capitals or not."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
    taken = {line.lower() for line in lines}
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(lines) + 2))
    return next(other for other in numbered if f"models/{other}".lower() not in taken)


def _copy(source: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _readme(names: Sequence[str], ids: Sequence[str]) -> str:
    title = f"Draw with {names[0]}" if len(names) == 1 else "Draw with diffusion models"
    metadata = [
        f"title: {title!r}",
        "sdk: gradio",
        f"sdk_version: {version('gradio')}",
        f"python_version: '{sys.version_info.major}.{sys.version_info.minor}'",
        "app_file: app.py",
    ]
    if ids:
        metadata += ["models:", *(f"- {model}" for model in ids)]
    secret = (
        """
A model that is private is found once a token that may read it is the secret `HF_TOKEN` in the Space's settings.
"""
        if ids
        else ""
    )
    return f"""---
{chr(10).join(metadata)}
---

# {title}

`app.py` is the demo of ddpm_hf, whose code is in `ddpm_hf/`, with the models that `models.txt` names. Elsewhere than in a
Space: `pip install -r requirements.txt gradio=={version("gradio")}`, then `python app.py`.
{secret}"""
