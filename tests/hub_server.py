"""A small Hub on the loopback: the endpoints that huggingface_hub's client calls to push and to fetch a model.

Repositories live in memory. `faults` is a list of rules; the first whose method and path fragment fit a request
answers it once: with a status, by cutting the connection after some bytes, or by storing other bytes than were sent.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.fork_server import ForkServer

TOKEN = "hf_" + "a" * 34
LICENCES = ("mit", "apache-2.0", "cc-by-nc-nd-4.0", "other")
PIPELINES = ("text-classification", "text-generation", "tabular-classification", "image-classification")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
LARGE = (".safetensors", ".onnx")


@dataclass
class Fault:
    """What goes wrong with the next request that fits: a status, "cut", "corrupt", or "hang" until the client is gone.

    Both ways: a PUT is cut or stored with other bytes, a GET is cut or answered with other bytes.
    """

    method: str
    fragment: str
    kind: int | str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {"main": [{}]})
    """Branch -> its commits: path -> sha256 of the content."""

    def commits(self, revision: str) -> list[dict[str, str]]:
        return self.branches[revision if revision in self.branches else "main"]


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded, by SHA-256."""
    faults: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """Method and path of each request, with its range where it asks for one."""
    hanging: threading.Event = field(default_factory=threading.Event)
    clients: ForkServer = field(init=False)
    """What runs this Hub's clients, where a test has one."""
    """Set when a request hangs."""
    uploaded: int = 0
    """Bytes of large files that were sent."""
    endpoint: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables of a client of this Hub, whose cache is in `home`; it stores by LFS, not by Xet."""
        own = {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
        return own | {"HF_HUB_DISABLE_XET": "1"}

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """What a reader of a branch sees."""
        return {path: self.contents[oid] for path, oid in self.repositories[repository].commits(revision)[-1].items()}

    def commits(self, repository: str, revision: str = "main") -> int:
        return len(self.repositories[repository].commits(revision)) - 1

    def commit_of(self, repository: str, revision: str) -> str:
        """The id of a branch's last commit."""
        return commit_id(repository, revision, self.commits(repository, revision))

    def branch_of(self, repository: str, revision: str) -> str | None:
        """The branch that is meant by its name or by the id of its last commit."""
        branches = self.repositories[repository].branches
        if revision in branches:
            return revision
        return next((b for b in branches if self.commit_of(repository, b) == revision), None)

    def keep(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        self.contents[oid] = content
        return oid


def commit_id(repository: str, revision: str, number: int) -> str:
    return hashlib.sha1(f"{repository} {revision} {number}".encode()).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that answers on the loopback until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set by `serve`."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        part = self.headers.get("Range")
        self.hub.log.append(f"{self.command} {self.path}" + (f" {part}" if part else ""))

    def do(self) -> None:
        length, path = int(self.headers.get("Content-Length") or 0), unquote(urlsplit(self.path).path)
        fault = next((f for f in self.hub.faults if f.method == self.command and f.fragment in path), None)
        half = fault is not None and fault.kind == "cut" and self.command == "PUT"
        body = self.rfile.read(length // 2 if half else length)
        if fault is not None:
            self.hub.faults.remove(fault)
            if isinstance(fault.kind, int):
                return self.answer({"error": f"fault {fault.kind}"}, fault.kind, fault.headers)
            if fault.kind == "hang":
                return self.hang()
            if fault.kind == "cut" and self.command == "PUT":
                return self.cut()
            if fault.kind == "corrupt":
                body = other_bytes(body)
        for method, pattern, call in ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                if method in ("POST", "PUT") and call is not Handler.paths_info and not self.may_write():
                    return self.answer({"error": "Invalid credentials"}, 401)
                return call(self, match, body, fault)
        return self.answer({"error": "no such endpoint"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = do

    def cut(self) -> None:
        """Break the connection amid whatever is going on."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Answer nothing until the client is gone."""
        self.hub.hanging.set()
        while self.rfile.read(1):
            pass
        self.close_connection = True

    def may_write(self) -> bool:
        presigned = "/lfs/store/" in self.path
        return presigned or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":  # a body would be read as the next answer
            self.wfile.write(content)

    def create(self, match: Any, body: bytes, fault: Fault | None) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = name in self.hub.repositories
        private = asked.get("private") or asked.get("visibility") == "private"  # the latter by huggingface_hub 2
        self.hub.repositories.setdefault(name, Repository(bool(private)))
        self.answer({"url": f"{self.hub.endpoint}/{name}", "name": name}, 409 if known else 200)

    def branch(self, match: Any, body: bytes, fault: Fault | None) -> None:
        branches = self.hub.repositories[match[1]].branches
        known = match[2] in branches
        branches.setdefault(match[2], list(branches["main"][-1:]))
        self.answer({}, 409 if known else 200)

    def asked(self, match: Any) -> tuple[str, str] | None:
        """The repository and the branch of a request; None when there is no such, and that was answered."""
        name = key(match)
        if name not in self.hub.repositories:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        branch = self.hub.branch_of(name, match[3] or "main")
        if branch is None:
            self.answer({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return name, branch

    def entries(self, name: str, branch: str) -> list[dict[str, Any]]:
        files = self.hub.files(name, branch)
        return [{"type": "file", "path": p, "size": len(c), "oid": git_oid(c)} for p, c in files.items()]

    def tree(self, match: Any, body: bytes, fault: Fault | None) -> None:
        if asked := self.asked(match):
            self.answer(self.entries(*asked))

    def paths_info(self, match: Any, body: bytes, fault: Fault | None) -> None:
        """Of the files that a form or a JSON object names."""
        if asked := self.asked(match):
            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            self.answer([entry for entry in self.entries(*asked) if entry["path"] in wanted])

    def information(self, match: Any, body: bytes, fault: Fault | None) -> None:
        if asked := self.asked(match):
            name, branch = asked
            self.answer(
                {
                    "id": match[2],
                    "sha": self.hub.commit_of(name, branch),
                    "private": self.hub.repositories[name].private,
                    "siblings": [{"rfilename": f} for f in self.hub.files(name, branch)],
                }
            )

    def validate(self, match: Any, body: bytes, fault: Fault | None) -> None:
        content = json.loads(body)["content"]
        metadata = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else {}
        errors = [{"message": message} for message in what_is_wrong(metadata)]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, match: Any, body: bytes, fault: Fault | None) -> None:
        files, answers = self.hub.files(match[1], match[2]), []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LARGE)
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if (old := files.get(file["path"])) is not None:
                answer["oid"] = hashlib.sha256(old).hexdigest() if large else git_oid(old)
            answers.append(answer)
        return self.answer({"files": answers})

    def batch(self, match: Any, body: bytes, fault: Fault | None) -> None:
        objects = []
        for entry in json.loads(body)["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.contents:
                store = f"{self.hub.endpoint}/lfs/store/{entry['oid']}"
                verify = f"{self.hub.endpoint}/lfs/verify/{entry['oid']}"
                answer["actions"] = {"upload": {"href": store}, "verify": {"href": verify}}
            objects.append(answer)
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, match: Any, body: bytes, fault: Fault | None) -> None:
        self.hub.uploaded += len(body)
        self.hub.contents[match[1]] = body
        self.answer({})

    def verify(self, match: Any, body: bytes, fault: Fault | None) -> None:
        content = self.hub.contents.get(match[1], b"")
        if hashlib.sha256(content).hexdigest() != match[1]:
            self.hub.contents.pop(match[1], None)
            return self.answer({"error": "the content has another SHA-256"}, 422)
        return self.answer({})

    def commit(self, match: Any, body: bytes, fault: Fault | None) -> None:
        repository, pull = self.hub.repositories[match[1]], "create_pr" in parse_qs(urlsplit(self.path).query)
        revision = "refs/pr/1" if pull else match[2]
        files = dict(repository.commits(revision)[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.contents:
                    return self.answer({"error": f"{value['path']} was not uploaded"}, 400)
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commits = repository.branches.setdefault(revision, list(repository.commits(match[2])))
        commits.append(files)
        if fault is not None and fault.kind == "cut":  # the commit is there, the answer gets lost
            return self.cut()
        oid = self.hub.commit_of(match[1], revision)
        answer = {"commitUrl": f"{self.hub.endpoint}/{match[1]}/commit/{oid}", "commitOid": oid}
        return self.answer(
            answer | ({"pullRequestUrl": f"{self.hub.endpoint}/{match[1]}/discussions/1"} if pull else {})
        )

    def resolve(self, match: Any, body: bytes, fault: Fault | None) -> None:
        if not (asked := self.asked(match)):
            return None
        name, branch = asked
        content = self.hub.files(name, branch).get(match[4])
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        start = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or "bytes=0-")[1])  # type: ignore[index]
        part = (other_bytes(content) if fault and fault.kind == "corrupt" else content)[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", self.hub.commit_of(name, branch))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part[: len(part) // 2] if fault and fault.kind == "cut" else part)
            if fault and fault.kind == "cut":
                self.cut()
        return None


NAME = r"([\w.-]+/[\w.-]+)"
KIND = "(models|datasets)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", f"/api/models/{NAME}/branch/(.+)", Handler.branch),
    ("GET", f"/api/{KIND}/{NAME}/tree/([^/]+)(?:/.*)?", Handler.tree),
    ("POST", f"/api/{KIND}/{NAME}/paths-info/(.+)", Handler.paths_info),
    ("GET", f"/api/{KIND}/{NAME}(?:/revision/(.+))?", Handler.information),
    ("HEAD", f"/api/{KIND}/{NAME}(?:/revision/(.+))?", Handler.information),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/store/([0-9a-f]+)", Handler.store),
    ("POST", "/lfs/verify/([0-9a-f]+)", Handler.verify),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("HEAD", f"/(datasets/)?{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET", f"/(datasets/)?{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


def key(match: Any) -> str:
    """A repository's name in the Hub's dictionary: datasets/org/name for a data set."""
    return f"datasets/{match[2]}" if (match[1] or "").startswith("datasets") else str(match[2])


def other_bytes(content: bytes) -> bytes:
    """As many, the last one another."""
    return content[:-1] + bytes([content[-1] ^ 1]) if content else content


def what_is_wrong(metadata: dict[str, Any]) -> list[str]:
    """The Hub's rules for a card's metadata, as its documentation of model cards and of `model-index` states them."""
    wrong = []
    if metadata.get("license") not in LICENCES:
        wrong.append('"license" must be one of a list')
    if metadata.get("license") == "other" and "license_name" not in metadata:
        wrong.append('"license_name" is required with the license "other"')
    if metadata.get("pipeline_tag") not in PIPELINES:
        wrong.append('"pipeline_tag" must be one of a list')
    relation = metadata.get("base_model_relation")
    if relation is not None and (relation not in RELATIONS or "base_model" not in metadata):
        wrong.append(f'"base_model_relation" must be one of {RELATIONS}, beside a "base_model"')
    for name in ("base_model", "datasets"):
        given = metadata.get(name, [])
        if not all(re.fullmatch(f"{NAME}", one) for one in ([given] if isinstance(given, str) else given)):
            wrong.append(f'"{name}" must be ids of repositories')
    for name in ("tags", "metrics"):
        if not all(isinstance(one, str) for one in metadata.get(name, [])):
            wrong.append(f'"{name}" must be texts')
    if not re.fullmatch("[a-z]{2,3}", str(metadata.get("language", "en"))):
        wrong.append('"language" must be a code of ISO 639')
    return wrong + wrong_index(metadata.get("model-index"))


def wrong_index(index: Any) -> list[str]:
    if not index:
        return ["no model-index"]
    wrong = []
    for result in index[0].get("results", []):
        data = result.get("dataset", {})
        if not result.get("task", {}).get("type") or not data.get("type") or not data.get("name"):
            wrong.append('"model-index[0].results[0]" needs task.type, dataset.type and dataset.name')
        for metric in result["metrics"]:
            value = metric.get("value")
            if not isinstance(metric.get("type"), str) or not isinstance(value, int | float) or value != value:
                wrong.append('"model-index[0].results[0].metrics" need a type and a value each')
    return wrong


def git_oid(content: bytes) -> str:
    """The id git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
