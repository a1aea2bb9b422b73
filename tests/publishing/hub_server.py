"""A stand-in for the Hub on loopback: as much of its HTTP interface as uploading and loading a model needs.

Clients reach it through `HF_ENDPOINT`, with Xet storage switched off (`HF_HUB_DISABLE_XET`), which it does not speak. Faults
come on demand, and every request is written down with the bytes of its body that arrived.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

from tests.publishing.hub_repos import Blob, Commit, Refusal, Repo, tree, upload_mode

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"  # STRANGER's is a good token of somebody else
FINE, FINE_READER = "hf_fine", "hf_fine_reader"  # fine-grained ones: of ada's repositories, and to read them alone
TOKENS = {
    WRITER: ("ada", "write"),
    READER: ("ada", "read"),
    STRANGER: ("bob", "write"),
    FINE: ("ada", "fineGrained"),
    FINE_READER: ("ada", "fineGrained"),
}
RIGHTS = {FINE: ["repo.content.read", "repo.write"], FINE_READER: ["repo.content.read"]}


class HubServer:
    """Repositories of models and Spaces in memory; `with HubServer() as hub` serves them at `hub.url`."""

    def __init__(self, chunk_size: int | None = None) -> None:
        """Large files of more than `chunk_size` bytes are asked for in parts of it."""
        self.chunk_size = chunk_size
        self.repos: dict[tuple[str, str], Repo] = {}  # by kind ("models" or "spaces") and id
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.holds: list[tuple[str, Callable[[], bool]]] = []
        self.stopped = False
        self.orgs = {"lab": "admin"}  # of each user, by what follows their name; and their role in it
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on nobody answers, not even on connections that are open."""
        self.stopped = True
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home, token: str | None = WRITER) -> dict[str, str]:
        """What a process needs to take this for the Hub; `home` is where it caches."""
        given = {} if token is None else {"HF_TOKEN": token}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), **quiet, **given}

    def fail(self, request: str, status: int, times: int = 1) -> None:
        """Answers the next `times` requests that match ("PUT /lfs") with a status."""
        self.faults.append(Fault(request, times, status=status))

    def cut(self, request: str, after: int, times: int = 1) -> None:
        """Drops the connection once so many bytes of the body have arrived."""
        self.faults.append(Fault(request, times, after=after))

    def lose_answer(self, request: str) -> None:
        """Does what is asked, and drops the connection instead of saying so."""
        self.faults.append(Fault(request, 1))

    def hold(self, request: str, until: Callable[[], bool]) -> None:
        """Answers matching requests only from then on, within minutes."""
        self.holds.append((request, until))

    def answered(self, request: str) -> bool:
        return any(r.status for r in self.requests if re.search(request, r.name))

    def count(self, request: str) -> int:
        return len([r for r in self.requests if re.search(request, r.name)])

    def received(self, request: str) -> int:
        """Bytes of bodies."""
        return sum(r.received for r in self.requests if re.search(request, r.name))

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        head = self.repos[kind, repo_id].branches[revision][-1]
        return {path: blob.content for path, blob in head.files.items() if path != ".gitattributes"}

    def messages(self, repo_id: str, revision: str = "main", kind: str = "models") -> list[str]:
        """Of the commits, but for the one that a repository begins with."""
        return [commit.message for commit in self.repos[kind, repo_id].branches[revision][1:]]


@dataclass
class Request:
    name: str  # method and path
    received: int = 0
    status: int | None = None  # of the answer, once it is on its way


@dataclass
class Fault:
    request: str
    times: int
    status: int | None = None
    after: int | None = None


class _Cut(Exception):
    """The connection is to be dropped."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = property(lambda self: self.server.hub)

    def log_message(self, *_) -> None:
        pass

    def _handle(self) -> None:
        self.request_seen = Request(f"{self.command} {self.path}")
        self.hub.requests.append(self.request_seen)
        fault = next((f for f in self.hub.faults if f.times and re.search(f.request, self.request_seen.name)), None)
        if fault:
            fault.times -= 1
        try:
            self.body = self._read(fault.after if fault else None)
            if self.hub.stopped:
                raise _Cut
            for request, until in self.hub.holds:
                end = time.monotonic() + 600
                while re.search(request, self.request_seen.name) and not until():
                    if time.monotonic() > end or self.hub.stopped:
                        raise _Cut
                    time.sleep(0.02)
            if fault and fault.status:
                raise Refusal(fault.status, "as the test wants it")
            answer = self._route([unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")])
            if fault:
                raise _Cut
            self._send(*answer)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._send(refusal.status, {"error": refusal.message}, headers)
        except _Cut:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read(self, limit: int | None) -> bytes:
        length, body = int(self.headers.get("Content-Length") or 0), b""
        assert not self.headers.get("Transfer-Encoding"), "bodies are expected with their length"
        while len(body) < length:
            if limit is not None and len(body) >= limit:
                raise _Cut
            piece = self.rfile.read1(min(65536, length - len(body), *([] if limit is None else [limit - len(body)])))
            if not piece:
                raise _Cut
            body += piece
            self.request_seen.received = len(body)
        return body

    def _send(self, status: int, content: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.request_seen.status = status

    # ---- who asks, and for what

    def _user(self) -> tuple[str | None, str | None]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token, (None, None))

    def _rights(self) -> list[str] | None:
        """Of a fine-grained token, in its user's own repositories."""
        return RIGHTS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _may_write(self, repo_id: str) -> None:
        user, role = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        rights, owners = self._rights(), (user, *(f"{user}-{org}" for org, of in self.hub.orgs.items() if of != "read"))
        if rights is not None:
            role, owners = "write" if "repo.write" in rights else "read", (user,)
        if role != "write" or repo_id.partition("/")[0] not in owners:
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")

    def _repo(self, kind: str, repo_id: str) -> Repo:
        user, _ = self._user()
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and repo_id.partition("/")[0] not in (user, f"{user}-lab")):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _json(self) -> dict:
        return json.loads(self.body)

    def _route(self, path: list[str]) -> tuple:
        match path:
            case ["api", "whoami-v2"]:
                user, role = self._user()
                if user is None:
                    raise Refusal(401, "Invalid username or password.")
                access = {"displayName": "test", "role": role}
                if (rights := self._rights()) is not None:
                    scope = {"entity": {"type": "user", "name": user}, "permissions": rights}
                    access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": [scope]}
                orgs = [{"name": f"{user}-{org}", "roleInOrg": of} for org, of in self.hub.orgs.items()]
                return 200, {"type": "user", "name": user, "orgs": orgs, "auth": {"accessToken": access}}
            case ["api", "validate-yaml"]:
                return self._validate_yaml()
            case ["api", "repos", "create"]:
                return self._create()
            case ["api", "models" | "spaces" as kind, owner, name, *rest]:
                return self._api(kind, f"{owner}/{name}", rest)
            case ["storage", kind, owner, name, oid, *part]:
                return self._store(self.hub.repos[kind, f"{owner}/{name}"], oid, part)
            case [*prefix, owner, name, "info", "lfs", "objects", "batch"]:
                return self._batch(prefix[0] if prefix else "models", f"{owner}/{name.removesuffix('.git')}")
            case ["spaces", owner, name, "resolve", revision, *file]:
                return self._resolve(self._repo("spaces", f"{owner}/{name}"), revision, "/".join(file))
            case [owner, name, "resolve", revision, *file]:
                return self._resolve(self._repo("models", f"{owner}/{name}"), revision, "/".join(file))
        raise Refusal(404, f"the stand-in has no {self.path}")

    def _api(self, kind: str, repo_id: str, rest: list[str]) -> tuple:
        repo = self._repo(kind, repo_id)
        match rest:
            case ["auth-check", *write]:
                if write:
                    self._may_write(repo_id)
                return 200, {}
            case [] | ["revision", _]:
                commit = repo.commit_of(rest[1] if rest else "main")
                siblings = [{"rfilename": path} for path in sorted(commit.files)]
                return 200, {
                    "id": repo_id,
                    "sha": commit.oid,
                    "private": repo.private,
                    "siblings": siblings,
                    "tags": [],
                }
            case ["tree", revision, *folder]:
                return 200, tree(repo.commit_of(revision), "/".join(folder))
            case ["branch", branch]:
                self._may_write(repo_id)
                if branch.startswith("refs/") or not re.fullmatch(r"[\w./-]+", branch):
                    raise Refusal(400, f"Invalid reference for a branch: {branch}")
                if branch in repo.branches:
                    raise Refusal(409, f"Reference already exists: {branch}")
                repo.branches[branch] = list(repo.branches[self._json().get("startingPoint", "main")])
                return 200, {}
            case ["preupload", revision]:
                self._may_write(repo_id)
                files = repo.commit_of(revision).files
                return 200, {"files": [upload_mode(asked, files) for asked in self._json()["files"]]}
            case ["commit", revision]:
                self._may_write(repo_id)
                oid = repo.add_commit(revision, [json.loads(line) for line in self.body.splitlines()])
                where = f"{self.hub.url}/{'' if kind == 'models' else 'spaces/'}{repo.id}"
                return 200, {"success": True, "commitOid": oid, "commitUrl": f"{where}/commit/{oid}"}
        raise Refusal(404, f"the stand-in has no {self.path}")

    # ---- writing

    def _validate_yaml(self) -> tuple:
        front = self._json()["content"].split("---\n")[1:2]
        try:
            fine = isinstance(yaml.safe_load(front[0]) if front else {}, dict)
        except yaml.YAMLError:
            fine = False
        return (
            (200, {"errors": [], "warnings": []}) if fine else (400, {"errors": [{"message": "YAML: not a mapping"}]})
        )

    def _create(self) -> tuple:
        asked = self._json()
        repo_id = f"{asked['organization'] or self._user()[0]}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        self._may_write(repo_id)
        url = {"url": f"{self.hub.url}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"}
        if (kind, repo_id) in self.hub.repos:
            return 409, url | {"error": "You already created this repo"}
        if kind == "spaces" and not asked.get("sdk"):
            raise Refusal(400, "sdk is missing")
        first = Commit("initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")}, 0)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[kind, repo_id] = Repo(repo_id, private, {"main": [first]})
        return 200, url

    def _batch(self, kind: str, repo_id: str) -> tuple:
        self._may_write(repo_id)
        repo, asked, answers = self._repo(kind, repo_id), self._json(), []
        for wanted in asked["objects"]:
            href = f"{self.hub.url}/storage/{kind}/{repo_id}/{wanted['oid']}"
            upload: dict = {"href": href}
            size = self.hub.chunk_size
            if size and wanted["size"] > size and "multipart" in asked["transfers"]:
                parts = range(1, -(-wanted["size"] // size) + 1)
                upload = {"href": f"{href}/complete", "header": {"chunk_size": str(size)}}
                upload["header"] |= {f"{part:05d}": f"{href}/{part}" for part in parts}
            actions = {"upload": upload, "verify": {"href": f"{href}/verify"}}
            answers.append({**wanted} if wanted["oid"] in repo.lfs else {**wanted, "actions": actions})
        return 200, {"transfer": "basic", "objects": answers}

    def _store(self, repo: Repo, oid: str, part: list[str]) -> tuple:
        match part:
            case []:
                repo.keep(oid, self.body)
                return 200, {}
            case ["verify"]:
                self._may_write(repo.id)
                return (200, {}) if len(repo.lfs.get(oid, b"")) == self._json()["size"] else (404, {})
            case ["complete"]:
                parts = repo.parts.pop(oid)
                repo.keep(oid, b"".join(parts[sent["partNumber"]] for sent in self._json()["parts"]))
                return 200, {}
        repo.parts.setdefault(oid, {})[int(part[0])] = self.body
        return 200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}

    # ---- reading

    def _resolve(self, repo: Repo, revision: str, file: str) -> tuple:
        commit = repo.commit_of(revision)
        blob = commit.files.get(file)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        etag = blob.sha256 if blob.lfs else blob.oid
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if begin := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, size = int(begin[1]), len(blob.content)
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            return 206, blob.content[start:], headers
        return 200, blob.content, headers
