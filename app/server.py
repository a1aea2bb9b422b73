"""Puts the page on the network."""

import errno
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from ddpm_hf.app.drawing import Studio
from ddpm_hf.app.files import Shelf
from ddpm_hf.app.gate import Gate
from ddpm_hf.app.models import load_models
from ddpm_hf.app.page import build_page, look
from ddpm_hf.app.request import Limits
from ddpm_hf.app.visits import Rooms, Visits
from ddpm_hf.errors import UserError

FIRST_PORT = 7860


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
        free one from 7860. Raises `UserError` where no model can be loaded or the address cannot be used."""
        limits = limits or Limits()
        host, port = _free(host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", port)
        _without_proxy(host)
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
            rooms = Rooms(loaded, limits, Studio(concurrency, batch_size), Shelf(Path(self._folder.name)), Visits())
            page = build_page(rooms, failures)
            page.queue(max_size=queue_size, default_concurrency_limit=concurrency, api_open=False)
            rooms.visits.queue = page._queue
            gate = Middleware(Gate, visits=rooms.visits, queue=page._queue, queue_size=queue_size)
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
                allowed_paths=[str(rooms.shelf.cards)],
                state_session_capacity=100,  # a session takes 200 KB, long after its visitor has left
                app_kwargs={"middleware": [gate]},
                **look(),
            )
        except OSError as error:
            self._folder.cleanup()
            raise UserError(f"--host {host} --port {port}: cannot be served on: {error}") from None
        except BaseException:
            self._folder.cleanup()
            raise
        self.page, self.models, self.rooms = page, loaded, rooms

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close(verbose=False)
        self._folder.cleanup()


def _free(host: str, port: int | None) -> tuple[str, int]:
    """An address that can be served on. Raises `UserError` where there is none, before anything is loaded."""
    if port is None:
        given = os.environ.get("GRADIO_SERVER_PORT", "")
        ports = [int(given)] if given.isdigit() else list(range(FIRST_PORT, FIRST_PORT + 100))
    else:
        ports = [port]
    if not 1 <= ports[0] <= 65535:
        raise UserError(f"--port: {ports[0]} should be from 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host: {host} is no address of this machine") from None
    for port in ports:
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((address[0], port, *address[2:]))
                return host, port
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise UserError(f"--host: {host} is no address of this machine") from None
                why = error.strerror
    raise UserError(f"--port: {ports[0]} cannot be used: {why}" if len(ports) == 1 else "--port: none is free from"
        f" {ports[0]} to {ports[-1]}")  # fmt: skip


def _without_proxy(host: str) -> None:
    """Gradio asks its own page whether it is there, which no proxy could answer."""
    for name in ("NO_PROXY", "no_proxy"):
        known = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*known, "127.0.0.1", "localhost", "::1", host]))


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
