"""A visitor's mistake, told on the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

from ddpm_hf.errors import UserError


def one_line(error: UserError) -> gr.Error:
    """Escaped, since Gradio shows a message as HTML; nothing of it goes to the server's log."""
    return gr.Error(escape(str(error), quote=False), print_exception=False)


@contextmanager
def told() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise one_line(error) from None
