"""Whether a published folder works elsewhere: its card's own code, in a fresh process that cannot import this package."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_hf.durations import rough_duration
from ddpm_hf.errors import UserError

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# each job in an empty folder where the model lies under the name that the code gives it
_ELSEWHERE = """
import json, os, sys
sys.modules["ddpm_hf"] = None  # whoever imports it fails
for folder, code in json.load(sys.stdin):
    os.chdir(folder)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Job:
    """folder: a published one; called: what its code calls it; code: Python that saves pictures in the current folder"""

    folder: Path
    called: str
    code: str


def code_of(card: str) -> str:
    """All Python of a card, in order."""
    return "\n".join(_BLOCK.findall(card))


def run_elsewhere(
    jobs: Sequence[Job], python: str = sys.executable, limit: float | None = None
) -> list[dict[str, np.ndarray]]:
    """The pictures that each job saved, by name: uint8 (H, W) or (H, W, 3).

    In one process of `python`, without a network, that takes modules from where they are installed and from the folders, and
    never from this package. Raises `UserError` with its last line where it fails, or where it takes more than `limit` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="ddpm_hf-check-") as scratch:
        places = []
        for i, job in enumerate(jobs):
            place = Path(scratch) / str(i)
            (place / job.called).parent.mkdir(parents=True)
            _show_as(job.folder.resolve(), place / job.called)
            places.append(place)
        try:
            shown = subprocess.run(
                [python, "-P", "-c", _ELSEWHERE],
                input=json.dumps([(str(place), job.code) for place, job in zip(places, jobs, strict=True)]),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                cwd=scratch,
                env=_environment(Path(scratch)),
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"the card's code took more than {rough_duration(limit)} here; if this machine is busy, run the same again"
            ) from None
        if shown.returncode:
            said = shown.stderr.strip().splitlines()
            raise UserError(said[-1] if said else f"its process ended with {shown.returncode}")
        return [{path.name: np.asarray(Image.open(path)) for path in sorted(place.glob("*.png"))} for place in places]


def _environment(scratch: Path) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DIFFUSERS_VERBOSITY": "error"}
    # modules of its own: Diffusers keeps them by name, and takes those of another model for these
    return os.environ | offline | {"HF_MODULES_CACHE": str(scratch / "modules")}


def _show_as(folder: Path, place: Path) -> None:
    try:
        place.symlink_to(folder, target_is_directory=True)
    except OSError:  # Windows without the right to
        shutil.copytree(folder, place)


def difference(drawn: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with the pictures drawn elsewhere; None where they are the run's own, within one gray level.

    expected: uint8 (C, H, W), by name
    """
    for name, image in expected.items():
        ours = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        theirs = drawn.get(name)
        if theirs is None:
            return f"the card's code saved no {name}"
        if theirs.shape != ours.shape:
            return f"{name} is of shape {theirs.shape}, the run's own of {ours.shape}"
        apart = int(np.abs(theirs.astype(int) - ours.astype(int)).max())
        if apart > 1:
            return f"{name} is another picture than the run's own of the same seed, by up to {apart} gray levels"
    return None
