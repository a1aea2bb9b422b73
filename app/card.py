"""A model's card as the page shows it: nothing in it makes a visitor's browser ask anyone else for anything."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ddpm_hf.loading import is_run
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

LARGEST_PICTURE = 4 * 2**20  # bytes; a larger one is left out
LARGEST_ALL = 16 * 2**20  # bytes of a card's pictures
LONGEST = 200_000  # letters of a card
KINDS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Card:
    """Markdown, and where the pictures that it shows lie, by the names it gives them."""

    text: str = "*The card cannot be read.*"
    pictures: dict[str, Path] = field(default_factory=dict)

    def html(self, folder: Path | None = None, address: str = "") -> str:
        """HTML of a few safe elements; the pictures are copied to `folder`, which browsers find at `address`."""
        parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        tokens = parser.parse(self.text)
        places = {} if folder is None else self._copied(folder)
        for token in tokens:
            if token.type == "html_block":
                token.content = ""
            token.children = [_safe(child, places, address) for child in token.children or []] or token.children
        return parser.renderer.render(tokens, parser.options, {})

    def _copied(self, folder: Path) -> dict[str, str]:
        places = {}
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, file) in enumerate(self.pictures.items()):
            places[name] = f"{number}{file.suffix.lower()}"
            shutil.copyfile(file, folder / places[name])
        return places


def _safe(token: Token, places: dict[str, str], address: str) -> Token:
    """What is inside a line: of pictures those that were copied, of any other what describes it; no HTML."""
    if token.type == "html_inline":
        token.content = ""
    elif token.type == "image":
        place = places.get(str(token.attrs.get("src")))
        if place is None:
            return Token("text", "", 0, content=token.content)
        token.attrs = {"src": f"{address}/{place}", "alt": token.content, "loading": "lazy"}
    elif token.type == "link_open":
        token.attrs = {"href": token.attrs.get("href", ""), "rel": "noopener noreferrer nofollow", "target": "_blank"}
    return token


def card_of(source: str, pipe: ImageGenerationPipeline) -> Card:
    """The README.md beside the model, of a run that of its publication; without one, what the model is."""
    file = _finder(source)
    readme = file("README.md")
    if readme is None:
        return Card(f"{_table(_facts(pipe))}\n\n*This model has no card. `ddpm-hf publish` writes one.*")
    about, written = _front_matter(readme.read_text(encoding="utf-8", errors="replace")[:LONGEST])
    text = f"{_table(_named(about))}\n\n{written}"
    return Card(text, _pictures(text, file))


def _finder(source: str) -> Callable[[str], Path | None]:
    """Gives the file of a name beside the model, or None: a folder's, or a Hub id's of the same revision.

    Of a Hub id it raises what the Hub's client does where it cannot ask.
    """

    def beside(name: str) -> Path | None:
        folder = Path(source) / "hub" if is_run(Path(source)) else Path(source)
        file = Path(os.path.normpath(folder / name))
        if not file.is_relative_to(os.path.normpath(folder)) or not file.is_file():
            return None
        real, roots = file.resolve(), [folder.resolve()]
        if folder.absolute().parent.name == "snapshots":  # of the Hub's cache, whose files are links to its blobs
            roots.append(folder.resolve().parents[1] / "blobs")
        return file if any(real.is_relative_to(root) for root in roots) else None

    def downloaded(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(source, name))
        except LocalEntryNotFoundError:  # a kind of the other, but nobody could be asked
            raise
        except EntryNotFoundError:
            return None

    return beside if Path(source).is_dir() else downloaded


def _pictures(text: str, file: Callable[[str], Path | None]) -> dict[str, Path]:
    """Pictures beside the card that it shows."""
    found: dict[str, Path] = {}
    left = LARGEST_ALL
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for child in token.children or []:
            name = str(child.attrs.get("src", "")) if child.type == "image" else ""
            path = PurePosixPath(name)
            plain = name and ":" not in name and not path.is_absolute() and ".." not in path.parts
            if not plain or name in found or path.suffix.lower() not in KINDS:
                continue
            try:
                picture = file(name)
            except (OSError, HfHubHTTPError):  # the card does without
                continue
            if picture is not None and (size := picture.stat().st_size) <= min(LARGEST_PICTURE, left):
                found[name] = picture
                left -= size
    return found


def _table(rows: dict[str, str]) -> str:
    head, *others = [f"| {name} | {value} |" for name, value in rows.items()] or [""]
    return "\n".join([head, "| --- | --- |", *others]) if head else ""


def _facts(pipe: ImageGenerationPipeline) -> dict[str, str]:
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if pipe.vae is not None:
        factor = 2 ** (len(pipe.vae.config.get("block_out_channels", [0])) - 1)
        pictures = f"{width * factor}x{height * factor} pixels, drawn as latents of {width}x{height}"
    else:
        pictures = f"{width}x{height} pixels"
    classes = pipe.config.num_classes
    parameters = sum(p.numel() for p in pipe.unet.parameters())
    return {
        "Pictures": pictures,
        "Classes": "none: unconditional" if classes is None else f"{classes:,}",
        "Network": f"{type(pipe.unet).__name__}, {parameters:,} parameters",
        "Trained with": f"{pipe.scheduler.config.num_train_timesteps:,} timesteps,"
        f" {pipe.scheduler.config.prediction_type} prediction",
    }


def _front_matter(text: str) -> tuple[dict, str]:
    """A card's metadata, and the rest of it."""
    match = re.match(r"\A---\s*\n(.*?)\n---\s*\n", text, flags=re.DOTALL)
    if match is None:
        return {}, text
    try:
        about = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError):  # the latter of a date that is none
        about = {}
    return (about if isinstance(about, dict) else {}), text[match.end() :]


def _named(about: dict) -> dict[str, str]:
    rows = {}
    for key, name in (("license", "License"), ("datasets", "Data")):
        value = about.get(key)
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if isinstance(value, str) and value:
            rows[name] = re.sub(r"([\\`*_\[\]<>!|~])", r"\\\1", " ".join(value.split()))
    return rows
