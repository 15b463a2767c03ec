"""A small server that speaks as much of the Hub's API as uploading and loading a model takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants
from transformers.utils import hub as transformers_hub

TOKEN = "hf_secret"
USER = "me"
COMMIT = "1" * 40
"""The only one of every repository."""


class HubServer(ThreadingHTTPServer):
    """What it holds: the files of each repository, its privacy, and what it was asked for.

    fails: beginnings of paths that are answered by an error, as by a Hub that is out of order.
    gated: repositories that may be read after asking for it; others that are not there are private.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fails: tuple[str, ...] = ()
        self.gated: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_server(patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> Iterator[HubServer]:
    """A server that huggingface_hub takes for the Hub, with this token in its environment."""
    server = HubServer()
    patch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(transformers_hub, "_hf_api", None)  # it would go on asking the Hub that it knows
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which speaks to yet another server
    patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    patch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """The same, told in fewer words."""
        self.do_GET()

    def do_GET(self) -> None:
        """Who am I, and may I read or write here? A file."""
        hub, path = self._begun()
        if any(f"/{name}/" in f"{path}/" for name in hub.gated):
            self._answer(403, {"error": "access is restricted"}, "GatedRepo")
        elif "/resolve/" in path:
            self._file(path)
        elif "/tree/" in path:  # of a folder, of which no repository has any
            name, _, place = path.removeprefix("/api/models/").partition("/tree/")
            missing = self._missing(name, place.partition("/")[0])
            self._answer(404, {"error": "not found"}, f"{missing}NotFound")
        elif path == "/api/whoami-v2":
            self._answer(200, {"name": USER, "type": "user", "orgs": []})
        elif path.endswith("/auth-check/write"):
            name = path.removeprefix("/api/models/").removesuffix("/auth-check/write")
            self._answer(200 if name.startswith(f"{USER}/") else 403, {})
        elif path.startswith("/api/models/") and path.removeprefix("/api/models/") in hub.private:
            self._answer(200, {"id": path.removeprefix("/api/models/"), "siblings": []})
        else:
            self._answer(404, {"error": "not found"}, "RepoNotFound")

    def do_POST(self) -> None:
        """A new repository; what is to be uploaded how; a commit."""
        hub, path = self._begun()
        body = self._body()
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**x, "actions": {"upload": {"href": f"{hub.url}/put/{x['oid']}", "header": {}}}}
                for x in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._answer(404, {"error": "not found"})

    def do_PUT(self) -> None:
        """A large file's bytes."""
        hub, path = self._begun()
        body = self._chunks() if "Content-Length" not in self.headers else self._body()
        assert hashlib.sha256(body).hexdigest() == path.removeprefix("/put/")
        hub.large[path.removeprefix("/put/")] = body
        self._answer(200, {})

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _create(self, asked: dict[str, Any]) -> None:
        hub, name = self.server, f"{asked.get('organization') or USER}/{asked['name']}"
        url = {"url": f"{hub.url}/{name}", "name": name}
        if name in hub.private:
            self._answer(409, {**url, "error": "it exists already"})
        elif not name.startswith(f"{USER}/"):
            self._answer(403, {"error": "you may not make repositories there"})
        else:
            hub.repositories[name] = {}
            hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._answer(200, url)

    def _commit(self, name: str, body: bytes) -> None:
        hub, held = self.server, self.server.repositories[name]
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                hub.messages.append(value["summary"])
            elif part["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            else:
                held[value["path"]] = hub.large[value["oid"]]
        url = f"{hub.url}/{name}/commit/{COMMIT}"
        self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def _missing(self, name: str, revision: str) -> str:
        """What is not there where a file or folder is not."""
        if not self.server.repositories.get(name):
            return "Repo"
        return "Entry" if revision in ("main", COMMIT) else "Revision"

    def _file(self, path: str) -> None:
        """A file of a repository, of the one commit that each has."""
        name, _, place = path[1:].partition("/resolve/")
        revision, _, file = place.partition("/")
        missing = self._missing(name, revision)
        content = self.server.repositories[name].get(file) if missing == "Entry" else None
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", f"{missing}NotFound")
        content = content or b""
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> bytes:
        """A body that is sent in chunks, each after its length."""
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _begun(self) -> tuple[HubServer, str]:
        """The server and the path, once the request is known to be allowed."""
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        return self.server, path

    def parse_request(self) -> bool:
        """Refuses strangers, and all that is to fail."""
        if not super().parse_request():
            return False
        status = None
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "/put/" not in self.path:
            status, said = 401, "Invalid username or password."
        if any(part in self.path for part in self.server.fails):
            status, said = 400, "the Hub is out of order"
        if status is not None:
            self._body()
            self._answer(status, {"error": said})
            return False
        return True

    def _answer(self, status: int, content: Any, code: str | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if "error" in content:
            self.send_header("X-Error-Message", content["error"])
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
