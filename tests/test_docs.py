"""What the documentation shows exists: options, recipes, files, links, messages."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
import yaml

import ddpm_hf
import train_autoencoder
import train_cfg_latent
import train_unconditional
from ddpm_hf.cli import parse
from ddpm_hf.cli.recipes import read_recipe, recipe_from
from ddpm_hf.config import AutoencoderRecipe, Recipe, load_recipe, recipe_kind, setting_keys
from ddpm_hf.errors import UserError
from ddpm_hf.studies.study import load_study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {
    "train_unconditional": (train_unconditional.__doc__, Recipe, {}),
    "train_cfg_latent": (train_cfg_latent.__doc__, Recipe, train_cfg_latent.DEFAULTS),
    "train_autoencoder": (train_autoencoder.__doc__, AutoencoderRecipe, {}),
}
OWN_RECIPES = ("mine.yaml", "my_recipe.yaml")  # what pages call a reader's own


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """A folder with the reader's own recipes in it, copies of the template."""
    for name in OWN_RECIPES:
        shutil.copyfile(ROOT / "configs" / "image_folder.yaml", tmp_path / name)
    monkeypatch.chdir(tmp_path)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The commands of a block of shell, in words; a loop's variable has its first value."""
    for name, first in re.findall(r"^for (\w+) in (\S+)", block, flags=re.MULTILINE):
        block = block.replace(f"${name}", first)
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
            found.append(words[:end])
            words = words[end + 1 :]
    return [command for command in found if command]


def check(command: list[str]) -> bool:
    """Whether it is one of this package's, with options, settings and recipes that there are; raises where not."""
    names = [re.sub(r"\.py$", "", word) for word in command]
    if "ddpm-hf" in names[:1] or "ddpm_hf" in names:
        check_subcommand(command[1:] if names[0] == "ddpm-hf" else command[names.index("ddpm_hf") + 1 :])
        return True
    script = next((name for name in names if name in SCRIPTS), None)
    if script is None:
        return check_files(command)
    doc, kind, defaults = SCRIPTS[script]
    arguments = command[names.index(script) + 1 :]
    if "--help" not in arguments:
        read_recipe(doc, arguments, kind, defaults)
    launcher = command[: names.index(script)]
    if "--config_file" in launcher:
        assert (ROOT / launcher[launcher.index("--config_file") + 1]).is_file(), command
    return True


def check_subcommand(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.command == "prepare":
        recipe_from(vars(options), recipe_kind(options.config))
    if options.command == "study":
        load_study(options.study)


def check_files(command: list[str]) -> bool:
    """Of commands that are not this package's: the files of this repository that they name."""
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(command[1:]) <= set(targets), command
    for word in command[1:]:
        if re.match(r"(configs|benchmarks|docs)/\S+\.\w+$", word):
            assert (ROOT / word).is_file(), command
    return command[0] in ("make", "cp", "sbatch")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_right(page, readers_folder):
    for block in blocks(page.read_text(), "bash"):
        for command in commands(block):
            try:
                check(command)
            except UserError as error:
                pytest.fail(f"{shlex.join(command)}: {error}")


def test_these_tests_see_the_commands_and_what_is_wrong_with_them(readers_folder):
    (block,) = blocks(
        "text\n```bash\nfor s in 1 3; do\n    ddpm-hf sample runs/x \\\n  --steps $s --out a.png  # so\ndone\n```\n",
        "bash",
    )
    assert ["ddpm-hf", "sample", "runs/x", "--steps", "1", "--out", "a.png"] in commands(block)
    for wrong in (
        "ddpm-hf sample runs/x --stepz 3",
        "ddpm-hf smple runs/x",
        "ddpm-hf prepare quickstrat",
        "ddpm-hf study smplers",
        "python train_unconditional.py --config quickstart --train.max_step 3",
        "accelerate launch train_unconditional.py --config reports/nobody",
        "accelerate launch -m train_cfg_latent --config quickstart --condition.classes 3",
    ):
        with pytest.raises(UserError):
            check(shlex.split(wrong))
    for wrong in ("make qickstart", "cp configs/nothing.yaml mine.yaml"):
        with pytest.raises(AssertionError):
            check(shlex.split(wrong))
    readme = (ROOT / "README.md").read_text()
    assert sum(check(command) for block in blocks(readme, "bash") for command in commands(block)) > 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_and_settings_are_right(page):
    text = page.read_text()
    for block in blocks(text, "python"):
        compile(block, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    keys = setting_keys(Recipe).keys() | setting_keys(AutoencoderRecipe).keys()
    for block in blocks(text, "yaml"):
        tree = yaml.safe_load(block)
        if not {"study", "variants"} & tree.keys():
            assert {f"{section}.{name}" for section, settings in tree.items() for name in settings} <= keys
    sections = {key.partition(".")[0] for key in keys}
    for key in re.findall(r"`(?:--)?([a-z]+\.[a-z_]+)(?:: [^`]*)?`", text):
        section, _, name = key.partition(".")
        if section in sections and name not in ("py", "failed"):  # a file's suffix, a folder's
            assert key in keys, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_environment_is_activated_before_its_commands(page, readers_folder):
    """In the first block that has them; `make` needs none."""
    of_environment = ("ddpm-hf", "python", "accelerate", "torchrun")
    for block in blocks(page.read_text(), "bash"):
        programs = [command[0] for command in commands(block)]
        if any(program in of_environment for program in programs):
            assert "source" in programs, page.name  # .venv/bin/activate
            return


# ---- Python


def test_what_python_trains_has_a_name_of_its_own():
    """Neither README's commands nor the quickstart may have trained it with other settings; the docstring's is the same run."""
    readme = (ROOT / "README.md").read_text()
    taken = set(re.findall(r"runs/([\w-]+)", readme)) | set(re.findall(r"(\w+)\.yaml", readme))
    assert {"quickstart", "mine"} <= taken
    docstring = "".join(re.findall(r"^    .*\n", ddpm_hf.__doc__, flags=re.MULTILINE))
    recipes = []
    for code in ("".join(blocks(readme, "python")), textwrap.dedent(docstring)):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ddpm_hf.load_recipe":
                recipes.append(load_recipe(*map(ast.literal_eval, node.args)))
    assert len(recipes) == 2 and recipes[0] == recipes[1]
    assert recipes[0].run.name not in taken


@pytest.mark.slow
def test_the_readme_s_python_runs_after_the_quickstart(tmp_path):
    """With fewer steps than it says, but others than the quickstart's."""
    code = "".join(blocks((ROOT / "README.md").read_text(), "python"))
    for before, after in (
        ('"train.max_steps": 600', '"train.max_steps": 8, "train.warmup_steps": 2, "sample.steps": 3'),
        ("steps=100", "steps=3"),
    ):
        assert before in code
        code = code.replace(before, after)
    settings = {"train.max_steps": 6, "train.warmup_steps": 2, "sample.steps": 3}
    quickstart = f"ddpm_hf.train(ddpm_hf.load_recipe('quickstart', {settings}))"
    (tmp_path / "readme.py").write_text(f"import ddpm_hf\n{quickstart}\n{code}\nassert images.shape == (16, 1, 8, 8)\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "readme.py"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "digit.png").is_file()


# ---- links


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> set[str]:
    plain = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", plain, flags=re.MULTILINE)}


def links(text: str) -> list[str]:
    plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", plain) if not re.match(r"https?://", link)]


def check_links(text: str, page: Path) -> None:
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    check_links(page.read_text(), page)


def test_every_page_is_in_the_index():
    index = set(links((ROOT / "docs" / "README.md").read_text()))
    pages = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")} - {"README.md"}
    assert pages <= index


# ---- messages


@cache
def templates() -> str:
    """Every text in the package, with … for what varies, a line each."""
    found = []
    for file in [*(ROOT / "ddpm_hf").rglob("*.py"), *(ROOT / "app").rglob("*.py"), *ROOT.glob("train_*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]|%\.\d+g", "…", node.value))
    return "\n".join(found)


def test_messages_are_those_that_the_program_gives():
    table = [
        line.split(" | ")[0]
        for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    quoted = [
        text
        for cell in table
        for text in re.findall(r"`([^`]+)`", cell)
        if " " in text and not text.startswith(("ddpm-hf ", "accelerate "))
    ]
    assert len(quoted) > 30
    assert [text for text in quoted if text not in templates()] == []


# ---- the notebook


def test_the_notebook_shows_what_it_drew():
    notebook = json.loads((ROOT / "docs" / "digits.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert (ROOT / "docs" / "digits.ipynb").stat().st_size < 1_000_000
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            check_links("".join(cell["source"]), ROOT / "docs" / "digits.ipynb")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """Its cells one after another, with fewer steps and images."""
    notebook = json.loads((ROOT / "docs" / "digits.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for before, after in (
        ('"train.max_steps": 600', '"train.max_steps": 20, "train.warmup_steps": 0, "track.log_every": 5'),
        ('"train.checkpoint_every": 200', '"train.checkpoint_every": 10'),
        ('"num_images": 300', '"num_images": 20'),
        ("steps=100", "steps=3"),
    ):
        assert any(before in cell for cell in cells), before
        cells = [cell.replace(before, after) for cell in cells]
    (tmp_path / "cells.py").write_text("\n".join(cells))
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "runs" / "digits" / "hub" / "model_index.json").is_file()


def test_the_oldest_diffusers_is_the_one_that_is_taken():
    oldest = re.search(r"^    diffusers>=([\d.]+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]
    page = " ".join((ROOT / "docs" / "publishing.md").read_text().split())
    assert f"the oldest Diffusers that this package takes, {oldest}, and the newest" in page
