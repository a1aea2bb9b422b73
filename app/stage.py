"""Where pictures appear, as HTML: nothing yet, on the way, or done."""

import base64
import io
import math
import time
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from ddpm_hf.app.drawing import Progress
from ddpm_hf.app.files import TALL
from ddpm_hf.pictures import to_pil

SIDE = 160  # pixels: no preview is larger


def empty(text: str) -> str:
    return f'<div class="stage empty"><p>{escape(text)}</p></div>'


def done(text: str) -> str:
    return f'<div class="stage done"><p role="status">{escape(text)}</p></div>'


def waiting(text: str, count: int, columns: int) -> str:
    return _stage(f'<span>{escape(text)}</span><progress aria-label="steps"></progress>', [""] * count, columns)


def drawing(progress: Progress, began: float, images: np.ndarray | None, count: int, columns: int) -> str:
    """`images`: the first of `count` pictures, uint8 (n, C, H, W), as they were seen last. `began`: of `time.monotonic`."""
    left = (time.monotonic() - began) * (progress.total - progress.done) / progress.done
    share = f"{100 * progress.done / progress.total:.0f}%"
    head = (
        f"<span>{share}</span><span>{_duration(left)} left</span>"
        f'<progress aria-label="steps" max="{progress.total}" value="{progress.done}"></progress>'
    )
    shown = [] if images is None else [_preview(image) for image in images]
    return _stage(head, shown + [""] * (count - len(shown)), columns)


def pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def columns_for_page(count: int, classes_in_turn: int | None) -> int:
    """Columns of a gallery: one a class where each has its turn, else about as many as make it wider than tall."""
    if classes_in_turn is not None and classes_in_turn <= min(10, count):
        return classes_in_turn
    return max(1, min(8, count, math.ceil(math.sqrt(1.5 * count))))


def _stage(head: str, cells: Sequence[str], columns: int) -> str:
    sheet = "".join(f'<div class="cell">{cell}</div>' for cell in cells)
    return f'<div class="stage"><div class="head">{head}</div><div class="sheet" style="--columns: {columns}">{sheet}</div></div>'


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


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a moment"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
