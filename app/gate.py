"""What of the network reaches Gradio: the routes that the page needs, with small bodies of plain values."""

import json
import re
from collections import Counter
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs

from starlette._utils import get_route_path

from ddpm_hf.app.visits import Visits

API = "/gradio_api/"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/pwa_icon", "/robots.txt")
READ = ("info", "startup-events", "app_id", "theme.css", "login_check", "openapi.json", "queue/data")
WRITTEN = ("queue/join", "cancel", "reset")
LARGEST_BODY = 8 * 2**10  # bytes: a request is a few settings
LONGEST_NAME = 64  # letters, of a session or an event: Gradio keeps them
PER_SESSION = 4  # requests that wait

# what a model's card could make a browser do: nothing beyond this server. Gradio's own page needs what is inline, and
# makes functions of text
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self' data: blob:;"
    " worker-src 'self' blob:; object-src 'none'; frame-src 'none'; form-action 'none'; base-uri 'self'"
)


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """ASGI: lets through what the page needs, notes who follows what they asked for."""

    def __init__(self, app: Any, visits: Visits, queue: Any = None, queue_size: int = 32) -> None:
        """`queue`: Gradio's; one address may fill half of its `queue_size` places."""
        self.app, self.visits, self.queue = app, visits, queue
        self.per_address = max(1, (queue_size + 1) // 2)
        self._joining: Counter[str] = Counter()  # by address: on their way into the queue

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            except Refused as refused:
                headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
                await send({"type": "http.response.start", "status": refused.status, "headers": headers})
                await send({"type": "http.response.body", "body": json.dumps({"detail": str(refused)}).encode()})
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: dict, receive: Any, send: Any) -> None:
        path = get_route_path(scope)  # what the routes are matched against, whatever GRADIO_ROOT_PATH is
        wanted = path.removeprefix(API) if path.startswith(API) else None
        if scope["method"] in ("GET", "HEAD"):
            if not (_is_page(path) if wanted is None else _is_read(wanted)):
                raise Refused(404, "not served here")
        elif scope["method"] != "POST" or wanted is None or not _is_written(wanted):
            raise Refused(404, "not served here")
        with ExitStack() as until_answered:
            if scope["method"] == "POST":
                body = await _body(scope, receive)
                if wanted.startswith("call/"):
                    body.pop("session_hash", None)  # each is a session of its own, named as its event is
                if wanted == "queue/join" or wanted.startswith("call/"):
                    until_answered.enter_context(self._join(scope, body))
                receive = _given(json.dumps(body).encode(), receive)
            elif session := _followed(wanted, scope):
                until_answered.enter_context(self.visits.following(session))

            async def with_policy(message: dict) -> None:
                if message["type"] == "http.response.start":
                    policy = (b"content-security-policy", POLICY.encode())
                    message = message | {"headers": [*message.get("headers", ()), policy]}
                await send(message)

            await self.app(scope, receive, with_policy)

    def _join(self, scope: dict, body: dict) -> Any:
        """Keeps a place for one more request; raises where its session or its address has enough of them."""
        address, session = (scope.get("client") or ("",))[0], body.get("session_hash")
        lines = () if self.queue is None else self.queue.event_queue_per_concurrency_id.values()
        waiting = [event for line in lines for event in line.queue]
        here = sum(event.request.client is not None and event.request.client.host == address for event in waiting)
        if here + self._joining[address] >= self.per_address:
            raise Refused(503, "too many requests of yours wait already")
        if session and sum(event.session_hash == session for event in waiting) >= PER_SESSION:
            raise Refused(503, "too many requests of yours wait already")
        self._joining[address] += 1
        joined = ExitStack()
        joined.callback(self._joined, address)
        return joined

    def _joined(self, address: str) -> None:
        self._joining[address] -= 1
        if not self._joining[address]:
            del self._joining[address]


def _is_page(path: str) -> bool:
    return path in PAGES or path.startswith(("/static/", "/assets/"))


def _is_read(wanted: str) -> bool:
    if wanted.startswith("file="):
        return not re.match(r"file=\s*[a-z][a-z0-9+.-]+:", wanted, re.I)  # another site's
    return wanted in READ or bool(re.fullmatch(r"call/[\w-]+/\w+|heartbeat/[\w-]+", wanted))


def _is_written(wanted: str) -> bool:
    return wanted in WRITTEN or bool(re.fullmatch(r"(call|run)/[\w-]+", wanted))


def _followed(wanted: str | None, scope: dict) -> str | None:
    """The session whose answers somebody begins to read."""
    if wanted == "queue/data":
        return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
    if wanted is not None and wanted.startswith("call/"):
        return wanted.rsplit("/", 1)[1]
    return None


async def _body(scope: dict, receive: Any) -> dict:
    """The JSON object that was sent, made of plain values: Gradio would fetch what looks like a file."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or not length.isdigit():
        raise Refused(411, "a request says how long it is")
    if int(length) > LARGEST_BODY:
        raise Refused(413, "a request is a few settings")
    content, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the request broke off")
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > LARGEST_BODY:
            raise Refused(413, "a request is a few settings")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(422, "a request is a JSON object") from None
    if not isinstance(body, dict):
        raise Refused(422, "a request is a JSON object")
    given = body.get("data", [])
    if not isinstance(given, list) or not all(map(_is_plain, given)):
        raise Refused(422, "data is a list of numbers, texts and nulls")
    about = body.pop("event_data", None)
    if not all(map(_is_plain, (value for name, value in body.items() if name != "data"))):
        raise Refused(422, "a request is numbers, texts and nulls")
    for name in ("session_hash", "event_id"):
        if body.get(name) is not None and not re.fullmatch(rf"[\w-]{{1,{LONGEST_NAME}}}", str(body[name])):
            raise Refused(422, f"{name} is at most {LONGEST_NAME} letters and digits")
    if isinstance(about, dict) and _is_plain(about.get("index")):  # of what was chosen, its place is enough
        body["event_data"] = {"index": about.get("index"), "value": None}
    return body


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _given(content: bytes, receive: Any) -> Any:
    """A `receive` that gives these bytes first."""
    left = [{"type": "http.request", "body": content, "more_body": False}]

    async def given() -> dict:
        return left.pop() if left else await receive()

    return given
