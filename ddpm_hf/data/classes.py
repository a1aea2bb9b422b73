"""Some of a source's classes, chosen by a file: data.classes."""

import difflib
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ddpm_hf.config import Data
from ddpm_hf.data.base import NO_LABEL, Example, Source, near_names
from ddpm_hf.errors import UserError


class ChosenClasses(Source):
    """The images of the classes that a file lists; label k is the k-th listed.

    A line is a class name of the source, then, after a space, the name to show if that is another. Blank lines and
    those that start with # are left out. What a line names is looked up when first read, as it opens the source.
    """

    def __init__(self, source: Source, data: Data):
        """Raises `UserError` where there is no such file, or no class in it."""
        self._source, self._title = source, data.source
        self._path = Path(os.path.expanduser(data.classes))
        self._lines = _read_lines(self._path)
        text = "\n".join(line for _, line in self._lines)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.fingerprint = source.fingerprint | {"classes": f"{len(self._lines)} ({digest[:10]})"}

    @cached_property
    def _chosen(self) -> dict[str, int]:
        """Shown name → the source's label, in the order of the list."""
        names, chosen = self._source.class_names, {}
        if names is None:
            raise UserError(
                f"data.classes: {self._title} has no labels to choose by; leave it out, or name data.label_column"
            )
        labels, seen = defaultdict(list), set()
        for label, name in enumerate(names):
            labels[name].append(label)
        for number, line in self._lines:
            label, shown = self._find(number, line, labels)
            if shown in chosen or label in seen:
                where = f"data.classes: line {number} of {self._path}"
                if label in seen:
                    raise UserError(f"{where} lists {names[label]} a second time; remove one")
                raise UserError(f"{where} calls a second class {shown}; call one of them otherwise")
            chosen[shown] = label
            seen.add(label)
        return chosen

    def _find(self, number: int, line: str, labels: dict[str, list[int]]) -> tuple[int, str]:
        """The source's label, and the name to show; labels: those of each name."""
        first, *rest = line.split(maxsplit=1)
        name, shown = (first, rest[0]) if rest and line not in labels else (line, line)  # a name may itself have spaces
        if len(found := labels.get(name, [])) == 1:
            return found[0], shown
        where = f"data.classes: line {number} of {self._path}"
        if found:
            raise UserError(f"{where}: {self._title} has several classes named {name}, which a list cannot tell apart")
        names = list(labels)
        near = difflib.get_close_matches(line, names, n=1) or difflib.get_close_matches(first, names, n=1)
        help_ = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:5])}{', …' * (len(names) > 5)}"
        raise UserError(f"{where}: {self._title} has no class {line}; {help_}")

    @cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the kept images stand in the source, and their labels here, both int64 (N,)."""
        chosen = list(self._chosen.values())
        labels, known = self._source.labels, len(self._source.class_names)
        new = np.full(known + 1, NO_LABEL)  # the last is for images without a label
        new[chosen] = np.arange(len(chosen))
        labels = new[np.where(labels < known, labels, NO_LABEL)]
        rows = np.flatnonzero(labels != NO_LABEL)
        return rows, labels[rows]

    @property
    def class_names(self) -> list[str]:
        return list(self._chosen)

    @property
    def labels(self) -> np.ndarray:
        return self._kept[1]

    def __len__(self) -> int:
        return len(self._kept[0])

    def take(self, indices: Sequence[int]) -> list[Example]:
        rows, labels = (kept[np.asarray(indices, np.int64)].tolist() for kept in self._kept)
        return [example._replace(label=label) for example, label in zip(self._source.take(rows), labels, strict=True)]


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that list a class, each with its number in the file, from 1."""
    if not path.is_file():
        raise UserError(f"data.classes: no such file: {path}{near_names(path)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.classes: {path} cannot be read as text: {error}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"data.classes: {path} lists no class; write one class name of data.source a line")
    return lines
