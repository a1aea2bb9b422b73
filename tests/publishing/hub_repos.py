"""What the stand-in for the Hub keeps: repositories, their branches and commits, and large files by their content."""

import base64
import hashlib
from dataclasses import dataclass, field

LFS_SIZE = 10 * 1024**2


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = text.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    message: str
    files: dict[str, Blob]
    number: int

    @property
    def oid(self) -> str:
        return hashlib.sha1(repr((self.number, self.message, sorted(self.files))).encode()).hexdigest()


@dataclass
class Repo:
    id: str
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)  # by sha256, committed or not
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def commit_of(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commit in (commit for commits in self.branches.values() for commit in commits):
            if commit.oid == revision:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content is not what its name says")
        self.lfs[oid] = content

    def add_commit(self, revision: str, lines: list[dict]) -> str:
        """Lines of the commit's ndjson; gives its id."""
        head, *changes = lines
        last = self.commit_of(revision)
        if head["value"].get("parentCommit", last.oid) != last.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(last.files)
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.lfs:
                    raise Refusal(400, f"LFS pointer to a file that does not exist: {value['path']}")
                files[value["path"]] = Blob(self.lfs[value["oid"]], lfs=True)
            elif change["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        commit = Commit(head["value"]["summary"], files, last.number + 1)
        self.branches[revision].append(commit)
        return commit.oid


def tree(commit: Commit, folder: str) -> list[dict]:
    """All that lies below a folder."""
    entries = []
    for path, blob in sorted(commit.files.items()):
        if path.startswith(f"{folder}/" if folder else ""):
            size = len(blob.content)
            lfs = {"lfs": {"oid": blob.sha256, "size": size, "pointerSize": 130}} if blob.lfs else {}
            entries.append({"type": "file", "path": path, "size": size, "oid": blob.oid, **lfs})
    return entries


def upload_mode(asked: dict, files: dict[str, Blob]) -> dict:
    large = asked["path"].endswith(".safetensors") or asked["size"] > LFS_SIZE
    known = files.get(asked["path"])
    oid = {} if known is None else {"oid": known.sha256 if known.lfs else known.oid}
    return {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid}
