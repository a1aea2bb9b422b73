"""Fresh environments that reuse what is installed here."""

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

_OURS = re.compile(r"ddpm_hf|__editable__|train_|distutils-precedence|.*\.pth$")


def environment(folder: Path, wanted: str) -> str:
    """The Python of a fresh environment with what is wanted, a requirement or a wheel, and all else that is installed here.

    Of this package, and of Diffusers where that is wanted, there is no other.
    """
    not_shared = _OURS if not wanted.startswith("diffusers") else re.compile(f"{_OURS.pattern}|diffusers")
    venv.create(folder, with_pip=True, symlinks=True)
    python = str(folder / "bin" / "python")
    (site,) = (folder / "lib").glob("python*/site-packages")
    shared = folder / "shared"
    shared.mkdir()
    for place in filter(Path.is_dir, map(Path, sys.path)):
        if place.name in ("site-packages", "dist-packages"):
            for entry in place.iterdir():
                if not not_shared.match(entry.name) and not (shared / entry.name).exists():
                    (shared / entry.name).symlink_to(entry)
    (site / "shared.pth").write_text(f"{shared}\n")
    asked = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", wanted]
    installed = subprocess.run(asked, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install {wanted}: {(installed.stderr.strip().splitlines() or ['?'])[-1]}")
    return python
