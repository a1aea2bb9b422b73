"""Imports go one way, as CONTRIBUTING.md says."""

import ast
from pathlib import Path

import pytest

import ddpm_hf

ROOT = Path(ddpm_hf.__file__).parent
# each room imports from those above its line alone
ROOMS = [
    {"denoisers", "pipelines", "durations", "errors", "files", "metric_names", "pictures", "__version__"},
    {"config", "devices", "export"},
    {"codec"},
    {"autoencoder", "data", "diffusion"},
    {"build", "sampling"},
    {"evaluation", "loading", "sample_grid"},
    {"training"},
    {"app", "measuring"},
    {"publishing"},
    {"api", "studies"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
PROGRAMS = {"studies/measure.py"}  # run by itself, in a process of its own
MODULES = {
    **{path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py") if path.parent.name != "app"},
    **{f"app/{path.name}": path for path in (ROOT.parent / "app").glob("*.py")},
}


def imported(code: str) -> set[str]:
    """The rooms of this package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("ddpm_hf.")}


def test_what_is_seen_of_imports():
    code = "import torch\nfrom ddpm_hf import config\ndef f():\n    from ddpm_hf.cli.parser import Parser\n"
    assert imported(code + "import ddpm_hf.data.store\nfrom .here import x\n") == {"config", "cli", "data"}
    assert {"training/loop.py", "app/server.py", "sampling.py"} <= MODULES.keys()


@pytest.mark.parametrize("module", sorted(MODULES.keys() - PROGRAMS - {"__init__.py"}))
def test_imports_go_one_way(module):
    room = module.partition("/")[0].removesuffix(".py")
    for other in imported(MODULES[module].read_text(encoding="utf-8")) - {room}:
        assert LEVELS[other] < LEVELS[room], f"{module} imports {other}"
