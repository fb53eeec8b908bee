"""A model hub on loopback: the part of huggingface.co's protocol that downloads use, over real HTTP, with faults on demand.

Two servers, as there: the hub lists, redirects and checks tokens; a second host ("CDN") sends the large files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_NAMES = re.compile(r".*\.(safetensors|gguf|bin|pth|pt|model)|tokenizer\.json")
OWNER, STRANGER = "hf_owner", "hf_stranger"  # tokens: one that may read gated models, one that may not
RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
INFO = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)")
TREE = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
CACHED = re.compile(r"/api/resolve-cache/models/(?P<repository>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that came. `sent`: bytes of content that were answered."""

    host: str
    method: str
    path: str
    range: str | None
    authorised: bool
    sent: int


@dataclass(slots=True)
class Fault:
    """What goes wrong with one answer. `status` in place of it; `cut_after` so many bytes the connection ends."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    alter: Callable[[bytes], bytes] | None = None  # the content, and with it its length
    ignore_range: bool = False
    content_range: str | None = None
    unsized: bool = False  # no Content-Length: the end of the connection is the end of the content
    before: Callable[[], None] | None = None
    silent: bool = False  # no answer at all


@dataclass(slots=True)
class HubServer:
    """`repositories`: files by commit; `refs`: commits by revision. Faults wait in `faults` for requests of their path."""

    endpoint: str = ""
    cdn: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    found: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def publish(self, repository: str, source: Path | Mapping[str, bytes], revision: str = "main") -> str:
        """Make a commit of a directory's files, and let the revision be it. Returns the commit."""
        if isinstance(source, Path):
            files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
        else:
            files = dict(source)
        told = "".join(f"{name} {blob_id(data)}\n" for name, data in sorted(files.items()))
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.repositories.setdefault(repository, {})[commit] = files
        self.refs.setdefault(repository, {})[revision] = commit
        return commit

    def fail(self, path: str, *faults: Fault) -> None:
        """The next answers to requests for a file (its name) or the listing ("info")."""
        self.faults.setdefault(path, []).extend(faults)

    def requests(self, name: str) -> list[Asked]:
        """Those that were answered with (a part of) a file's content, or refused."""
        return [asked for asked in self.asked if asked.path.endswith(name) and asked.method == "GET" and asked.sent >= 0]

    @property
    def sent_bytes(self) -> int:
        return sum(max(0, asked.sent) for asked in self.asked)

    def take(self, path: str) -> Fault:
        waiting = self.faults.get(path)
        return waiting.pop(0) if waiting else Fault()


def blob_id(data: bytes) -> str:
    """As git names a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sibling(path: str, data: bytes) -> dict[str, Any]:
    """A file as `/api/models/...?blobs=True` lists it."""
    entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob_id(data)}
    if LFS_NAMES.fullmatch(path):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        entry["blobId"] = blob_id(pointer(data))
    return entry


def pointer(data: bytes) -> bytes:
    oid = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    host: str

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        if self.host == "cdn":
            digest = self.path_only.rpartition("/")[2]
            repository, commit, path = parse_qs(urlsplit(self.path).query)["of"][0].split("|")
            assert hashlib.sha256(self.hub.repositories[repository][commit][path]).hexdigest() == digest
            return self.content(path, self.hub.repositories[repository][commit][path])
        if self.path_only == "/api/models":
            return self.json(self.hub.found)
        for pattern, action in ((INFO, self.info), (TREE, self.tree), (CACHED, self.cached), (RESOLVE, self.resolve)):
            match = pattern.fullmatch(self.path_only if pattern in (RESOLVE, CACHED) else urlsplit(self.path).path)
            if match is not None:
                return action(**{name: unquote(value) for name, value in match.groupdict().items()})
        return self.refuse(404, {})

    def info(self, repository: str, revision: str) -> None:
        fault = self.hub.take("info")
        if fault.status is not None:
            return self.refuse(fault.status, fault.headers)
        files = self.files(repository, revision)
        if files is None:
            return None
        commit, contents = files
        siblings = [sibling(path, data) for path, data in contents.items()]
        data = json.dumps(
            {"id": repository, "sha": commit, "gated": repository in self.hub.gated, "siblings": siblings}
        ).encode()
        return self.send(200, data if fault.alter is None else fault.alter(data), {"Content-Type": "application/json"})

    def tree(self, repository: str, revision: str) -> None:
        files = self.files(repository, revision)
        if files is not None:
            entries = [sibling(path, data) for path, data in files[1].items()]
            self.json([_tree_entry(entry) for entry in entries])

    def resolve(self, repository: str, revision: str, path: str) -> None:
        if not self.allowed(repository):
            return None
        files = self.files(repository, revision)
        if files is None:
            return None
        commit, contents = files
        if path not in contents:
            return self.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        entry = sibling(path, contents[path])
        told = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if "lfs" not in entry:
            told |= {"ETag": f'"{entry["blobId"]}"', "X-Linked-Size": str(entry["size"])}
            return self.send(
                307, b"", told | {"Location": f"/api/resolve-cache/models/{repository}/{commit}/{quote(path)}"}, -1
            )
        digest = entry["lfs"]["sha256"]
        told |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(entry["size"])}
        location = f"{self.hub.cdn}/objects/{digest}?of={quote('|'.join((repository, commit, path)))}"
        return self.send(302, b"", told | {"Location": location}, -1)

    def cached(self, repository: str, revision: str, path: str) -> None:
        data = self.hub.repositories[repository][revision][path]
        self.content(path, data, {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": revision})

    def content(self, path: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A file or the range of it that is asked for."""
        fault = self.hub.take(path) if self.command == "GET" else Fault()
        if fault.before is not None:
            fault.before()
        if fault.silent:
            self.close_connection = True
            return None
        if fault.status is not None:
            return self.refuse(fault.status, fault.headers)
        data = data if fault.alter is None else fault.alter(data)
        told = {"Accept-Ranges": "bytes", **(headers or {})}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None or fault.ignore_range:
            return self.send(200, data, told, cut_after=fault.cut_after, name=path, unsized=fault.unsized)
        start = int(match[1])
        if start >= len(data):
            return self.send(416, b"", told | {"Content-Range": f"bytes */{len(data)}"}, name=path)
        stop = min(int(match[2]) + 1, len(data)) if match[2] else len(data)
        told["Content-Range"] = fault.content_range or f"bytes {start}-{stop - 1}/{len(data)}"
        return self.send(206, data[start:stop], told, cut_after=fault.cut_after, name=path, unsized=fault.unsized)

    def allowed(self, repository: str) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (OWNER, STRANGER):
            self.refuse(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository in self.hub.gated and token != OWNER:
            said = f"Access to model {repository} is restricted."
            self.refuse(403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": said})
        else:
            return True
        return False

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repository not in self.hub.repositories:
            self.refuse(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
            return None
        commit = self.hub.refs[repository].get(revision, revision)
        if commit not in self.hub.repositories[repository]:
            self.refuse(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
            return None
        return commit, self.hub.repositories[repository][commit]

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, headers: Mapping[str, str]) -> None:
        self.send(status, json.dumps({"error": headers.get("X-Error-Message", "no")}).encode(), headers)

    def send(
        self,
        status: int,
        data: bytes,
        headers: Mapping[str, str],
        counted: int | None = None,
        *,
        cut_after: int | None = None,
        name: str | None = None,
        unsized: bool = False,
    ) -> None:
        """`counted` -1: a redirect, which is no answer. Logged before it is sent: the client may read the log when it has it."""
        body = b"" if self.command == "HEAD" else data if cut_after is None else data[:cut_after]
        self.hub.asked.append(
            Asked(
                self.host, self.command, name or self.path_only, self.headers.get("Range"), "Authorization" in self.headers,
                len(body) if counted is None else counted,
            )
        )  # fmt: skip
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        if not unsized:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(body)
        if unsized or (len(body) < len(data) and self.command != "HEAD"):
            self.close_connection = True


def _tree_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    told = {"type": "file", "path": entry["rfilename"], "size": entry["size"], "oid": entry["blobId"]}
    lfs = entry.get("lfs")
    return told if lfs is None else told | {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 135}}


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Both servers, until the context ends."""
    hub = HubServer()
    with ExitStack() as stack:
        for host in ("hub", "cdn"):
            handler = type(f"_{host}", (_Handler,), {"hub": hub, "host": host})
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), name=f"{host} server")
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            address = f"http://127.0.0.1:{server.server_port}"
            if host == "hub":
                hub.endpoint = address
            else:
                hub.cdn = address
        yield hub
