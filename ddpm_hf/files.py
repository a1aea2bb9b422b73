"""Files that are complete or as they were, whatever happens while they are written."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
