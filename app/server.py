"""Puts the page on the network, with no more of Gradio's routes than it needs."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from ddpm_hf.app.drawing import Studio
from ddpm_hf.app.files import Shelf
from ddpm_hf.app.models import load_models
from ddpm_hf.app.page import build_page, look
from ddpm_hf.app.request import Limits
from ddpm_hf.errors import UserError

API = "/gradio_api/"
# joining the queue and following it, the page's own files, who is still there; not: uploads, fetching of other sites'
# pages, monitoring, recording, run history
SERVED = ("queue/join", "queue/data", "call/", "run/", "api/", "file=", "heartbeat/", "cancel", "reset", "info",
          "startup-events", "app_id", "theme.css", "login_check", "openapi.json")  # fmt: skip
CLOSED = ("/monitoring", "/login", "/svelte", "/proxy=", "/file", "/custom_component")
LARGEST_BODY = 64 * 2**10  # bytes: a request is a few settings


class Gate:
    """ASGI: lets through what the page needs."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (status := _refusal(scope)):
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not served here\n"})
            return
        await self.app(scope, receive, send)


def _refusal(scope: dict) -> int | None:
    """The status of what is refused."""
    path = scope["path"]
    if path.startswith(API):
        wanted = path.removeprefix(API)
        if not wanted.startswith(SERVED) or wanted.startswith(("file=http:", "file=https:")):
            return 404
    elif path.startswith(CLOSED):
        return 404
    if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411
        if int(length) > LARGEST_BODY:
            return 413
    return None


class Demo:
    """A running demo; a context that ends with it, and with the files it has made."""

    def __init__(
        self,
        models: Sequence[str],
        *,
        device: Any = "cpu",
        host: str | None = None,
        port: int | None = None,
        limits: Limits | None = None,
        queue_size: int = 32,
        concurrency: int = 1,
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ) -> None:
        """`host` and `port`: None for what GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, else 127.0.0.1 and the first
        free one from 7860. Raises `UserError` where no model can be loaded or the port is taken."""
        limits = limits or Limits()
        loaded, failures = load_models(models, device, trust_remote_code)
        for failure in failures:
            print(f"warning: {failure.name}: {failure.message}", file=sys.stderr, flush=True)
        if not loaded:
            raise UserError(f"none of the models can be used; the last: {failures[-1].name}: {failures[-1].message}")
        self._folder = tempfile.TemporaryDirectory(prefix="ddpm_hf_demo_", ignore_cleanup_errors=True)
        # where Gradio reads from when it builds the page and when it serves: it knows no parameter for them
        os.environ["GRADIO_TEMP_DIR"] = self._folder.name
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(Path(self._folder.name) / "examples")
        try:
            page = build_page(loaded, failures, limits, Studio(concurrency, batch_size), Shelf(Path(self._folder.name)))
            page.queue(max_size=queue_size, default_concurrency_limit=concurrency, api_open=False)
            _, self.url, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                share=False,
                ssr_mode=False,
                run_history=False,
                mcp_server=False,
                enable_monitoring=False,
                footer_links=[],
                allowed_paths=None,
                state_session_capacity=100,  # a session takes 200 KB, long after its visitor has left
                app_kwargs={"middleware": [Middleware(Gate)]},
                **look(),
            )
        except OSError as error:
            self._folder.cleanup()
            raise UserError(f"--port: {port} cannot be used: {error}") from None
        except BaseException:
            self._folder.cleanup()
            raise
        self.page, self.models = page, loaded

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close(verbose=False)
        self._folder.cleanup()


def serve(models: Sequence[str], **options: Any) -> None:
    """Serves until Ctrl-C or SIGTERM; options as `Demo`'s."""
    over = threading.Event()
    with Demo(models, **options) as demo:
        print(f"Serving on {demo.url}  (Ctrl-C ends it)", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: over.set())
        try:
            over.wait()
        except KeyboardInterrupt:
            print()
