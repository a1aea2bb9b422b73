"""A model's card as the page shows it: nothing in it makes a visitor's browser ask anyone else for anything."""

import base64
import re
from pathlib import Path

import yaml
from huggingface_hub import try_to_load_from_cache

from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

LARGEST_PICTURE = 4 * 2**20  # bytes; a larger one is left out
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def card_of(source: str, pipe: ImageGenerationPipeline) -> str:
    """Markdown: the README.md beside the model, its pictures included; without one, what the model is."""
    readme = _readme(source)
    if readme is None:
        return f"{_table(_facts(pipe))}\n\n*This model has no card. `ddpm-hf publish` writes one.*"
    about, written = _front_matter(readme.read_text(encoding="utf-8", errors="replace"))
    return f"{_table(_named(about))}\n\n{_with_pictures(written, readme.parent)}"


def _table(rows: dict[str, str]) -> str:
    head, *others = [f"| {name} | {value} |" for name, value in rows.items()] or [""]
    return "\n".join([head, "| --- | --- |", *others]) if head else ""


def _readme(source: str) -> Path | None:
    """A folder's, or what was downloaded of a Hub id."""
    if Path(source).is_dir():
        file = Path(source) / "README.md"
        return file if file.is_file() else None
    cached = try_to_load_from_cache(source, "README.md")
    return Path(cached) if isinstance(cached, str) else None


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
    except yaml.YAMLError:
        about = {}
    return (about if isinstance(about, dict) else {}), text[match.end() :]


def _named(about: dict) -> dict[str, str]:
    rows = {}
    for key, name in (("license", "License"), ("datasets", "Data")):
        value = about.get(key)
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if isinstance(value, str) and value:
            rows[name] = value.replace("|", "\\|").replace("\n", " ")
    return rows


def _with_pictures(text: str, folder: Path) -> str:
    """Pictures beside the card become part of it; of any other only its description stays."""

    def inlined(description: str, place: str) -> str:
        file = (folder / place).resolve()
        kind = KINDS.get(file.suffix.lower())
        beside = "://" not in place and kind is not None and file.is_relative_to(folder.resolve()) and file.is_file()
        if not beside or file.stat().st_size > LARGEST_PICTURE:
            return f"*{description}*" if description else ""
        content = base64.b64encode(file.read_bytes()).decode()
        return f"![{description}](data:{kind};base64,{content})"

    text = re.sub(r"!\[([^\]]*)\]\(\s*<?([^)\s>]+)>?[^)]*\)", lambda m: inlined(m[1], m[2]), text)
    text = re.sub(r"!\[([^\]]*)\]\[[^\]]*\]", r"*\1*", text)  # by reference
    return re.sub(
        r"<\s*/?\s*(?:img|picture|source|video|audio|iframe|object|embed|link|style|svg|image)\b[^>]*>",
        "",
        text,
        flags=re.I,
    )
