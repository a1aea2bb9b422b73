"""Where pictures appear, as HTML: nothing yet, on the way, or done."""

import base64
import io
import math
import time
from html import escape

import numpy as np
from PIL import Image

from ddpm_hf.app.drawing import Progress
from ddpm_hf.app.files import TALL
from ddpm_hf.durations import rough_duration
from ddpm_hf.pictures import to_pil

MOST_COLUMNS = 6
SIDE = 160  # pixels: no preview is larger
# on a phone the pictures begin below the window
IN_SIGHT = """() => {{ const place = document.getElementById("{}");
    if (place && place.getBoundingClientRect().top > window.innerHeight - 200) place.scrollIntoView({{block: "start"}}); }}"""


def empty(text: str) -> str:
    return f'<div class="stage empty"><p>{escape(text)}</p></div>'


def done(text: str) -> str:
    return f'<div class="stage done"><p>{escape(text)}</p></div>'


def compared(letter: str, words: list[str], others: list[str], took: float) -> str:
    """One side's settings; what the other's are not is marked."""
    parts = ", ".join(escape(word) if word in others else f"<b>{escape(word)}</b>" for word in words)
    return f'<div class="stage done"><p>{letter}: {parts} · {took:.1f} s</p></div>'


def told(text: str) -> str:
    """What a screen reader says."""
    return f"<p>{escape(text)}</p>"


def waiting(text: str) -> str:
    """The line above the pictures while nothing is counted yet."""
    return _head(f'<span>{escape(text)}</span><progress aria-label="{escape(text)}"></progress>')


def drawing(progress: Progress, began: float) -> str:
    """The line above the pictures. `began`: of `time.monotonic`."""
    if progress.doing == "waiting":
        return waiting("Waiting for the last drawing to end")
    if progress.doing == "decoding" and progress.done == progress.total:
        return waiting("Decoding")
    left = (time.monotonic() - began) * (progress.total - progress.done) / progress.done
    remaining = "a moment" if left < 1 else rough_duration(left)
    share = f"{100 * progress.done / progress.total:.0f}%"
    return _head(
        f"<span>{share}</span><span>{remaining} left</span>"
        f'<progress aria-label="Steps" max="{progress.total}" value="{progress.done}"></progress>'
    )


class Sheet:
    """The pictures on their way. Each is encoded once, when it is new."""

    def __init__(self, count: int, columns: int) -> None:
        self._columns = columns
        self._images: list[np.ndarray | None] = [None] * count
        self._cells = [""] * count

    def html(self, progress: Progress | None = None) -> str:
        """With what `progress` shows: the first n of the pictures, uint8 (n, C, H, W)."""
        if progress is not None and progress.images is not None:
            began = time.monotonic()
            for i, image in enumerate(progress.images):
                if self._images[i] is None or not np.array_equal(self._images[i], image):
                    self._images[i], self._cells[i] = image, _preview(image)
            progress.showing_took(time.monotonic() - began)
        sheet = "".join(f'<div class="cell">{cell}</div>' for cell in self._cells)
        return f'<div class="stage"><div class="sheet" style="--columns: {self._columns}">{sheet}</div></div>'


def pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def columns_for_page(count: int, classes_in_turn: int | None) -> int:
    """Columns of a gallery: those that a round of the classes fills where each has its turn, else about as many as make
    it wider than tall."""
    if classes_in_turn is not None and classes_in_turn <= count:
        rows = math.ceil(classes_in_turn / MOST_COLUMNS)
        return math.ceil(classes_in_turn / rows)  # of ten classes two rows of five
    return max(1, min(MOST_COLUMNS, count, math.ceil(math.sqrt(1.5 * count))))


def _head(parts: str) -> str:
    return f'<div class="stage"><div class="head">{parts}</div></div>'


def _preview(image: np.ndarray) -> str:
    """uint8 (C, H, W): small pictures as they are, large ones smaller and in JPEG, which is quick to send."""
    picture, content = to_pil(image), io.BytesIO()
    if max(picture.size) <= SIDE:
        picture.save(content, "PNG", compress_level=1)
        kind = "png"
    else:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        picture.save(content, "JPEG", quality=80)
        kind = "jpeg"
    crisp = ' class="pixels"' if image.shape[-2] < TALL else ""
    return f'<img{crisp} alt="" src="data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}">'
