"""A local HTTP server that answers what huggingface_hub asks of the Hub when something is uploaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of the Hub when it creates a repository and uploads a folder."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}  # repository (datasets/… of data), branch, path
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.committed: list[list[dict]] = []
        self.tokens: set[str | None] = set()
        self.lfs = True
        self.refusal: int | None = None
        self.card_errors: list[str] = []

    def files(self, repo: str, branch: str = "main") -> set[str]:
        return set(self.repos[repo][branch]) - {".gitattributes"}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, content, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def handle_any(self) -> None:
        body, path = self.body(), unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith(("/api/repos", "/api/models", "/api/datasets")):
            self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refusal:
            return self.answer({"error": "refused"}, self.server.refusal)
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return getattr(self, method)(body, *found.groups())
        return self.answer({"error": "no such page"}, 404)

    do_GET = do_POST = do_PUT = handle_any

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        repo = f"{kind}{asked.get('organization') or 'somebody'}/{asked['name']}"
        is_new = repo not in self.server.repos
        if is_new:
            self.server.repos[repo] = {"main": {".gitattributes": b""}}
            self.server.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
        self.answer({"url": f"{self.server.url}/{repo}"}, 200 if is_new else 409)

    def info(self, body: bytes, repo: str) -> None:
        self.answer({"id": repo.removeprefix("datasets/"), "private": self.server.private[repo], "sha": "0" * 40})

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        self.server.repos[repo][branch] = dict(self.server.repos[repo]["main"])
        self.answer({})

    def tree(self, body: bytes, repo: str, branch: str) -> None:
        files = self.server.repos[repo][branch]
        self.answer([{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in files])

    def validate(self, body: bytes) -> None:
        errors = [{"message": message} for message in self.server.card_errors]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, repo: str, branch: str) -> None:
        there, files = self.server.repos[repo][branch], []
        for path in (file["path"] for file in json.loads(body)["files"]):
            lfs = self.server.lfs and path.endswith((".safetensors", ".parquet"))
            oid = there.get(path) and (sha256(there[path]) if lfs else git_hash(there[path]))
            files.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}", "header": {}}}}
            for asked in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        self.server.blobs[oid] = body
        self.answer({})

    def commit(self, body: bytes, repo: str, branch: str) -> None:
        steps = [json.loads(line) for line in body.splitlines()]
        self.server.committed.append(steps)
        files = self.server.repos[repo][branch]
        for step in steps:
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40})


REPO = "((?:datasets/)?[^/]+/[^/]+)"
API = f"/api/(?:models/)?{REPO}"
ROUTES = {
    "POST /api/repos/create": "create",
    "POST /api/validate-yaml": "validate",
    f"POST {API}/branch/(.+)": "branch",
    f"GET {API}/tree/(.+)": "tree",
    f"POST {API}/preupload/(.+)": "preupload",
    f"POST {API}/commit/(.+)": "commit",
    rf"GET {API}(?:/revision/\w+)?": "info",
    f"POST /{REPO}.git/info/lfs/objects/batch": "batch",
    "PUT /lfs/(.+)": "upload",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
