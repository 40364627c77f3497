"""A stand-in for the Hugging Face Hub: what its client asks for when it makes, fills and reads a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants


class Hub:
    """Repositories in memory; a commit is a dict of files under a hash of 40 digits, a branch or tag a name for one."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.names: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []  # method and path of each request
        self.tokens: set[str] = set()
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def believed(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        """Have the client in this process take this for the real hub, with an empty cache."""
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("no_proxy", "127.0.0.1")

    def commit(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a branch and return the commit."""
        commits, names = self.commits.setdefault(repository, {}), self.names.setdefault(repository, {})
        whole = (commits[names[branch]] if branch in names else {}) | files
        commit = hashlib.sha1(repr((len(commits), sorted(whole.items()))).encode()).hexdigest()
        commits[commit], names[branch] = whole, commit
        return commit

    def resolve(self, repository: str, revision: str) -> str | None:
        commit = self.names.get(repository, {}).get(revision, revision)
        return commit if commit in self.commits.get(repository, {}) else None


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            return self._info()
        return self._file(body=True)

    def do_POST(self) -> None:
        hub, content = self.served, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"POST {self.path}")
        hub.tokens.add(str(self.headers.get("Authorization")))
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            told = json.loads(content)
            repository = f"{told['organization']}/{told['name']}"
            if repository in hub.private:
                return self._json(
                    {"url": f"{hub.url}/{repository}", "error": "You already created this model repo"}, 409
                )
            hub.private[repository] = told.get("visibility") == "private"
            hub.commit(repository, {".gitattributes": b""})
            return self._json({"url": f"{hub.url}/{repository}", "name": repository})
        repository, _, rest = path.removeprefix("/api/models/").partition("/preupload/")
        if rest:
            files = json.loads(content)["files"]
            return self._json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        repository, _, branch = path.removeprefix("/api/models/").partition("/commit/")
        lines = [json.loads(line) for line in content.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        commit = hub.commit(repository, files, unquote(branch))
        return self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{repository}/commit/{commit}"}
        )

    def _info(self) -> None:
        repository = "/".join(urlsplit(self.path).path.removeprefix("/api/models/").split("/")[:2])
        commit = self.served.resolve(repository, "main")
        self._json({"id": repository, "sha": commit, "siblings": []}, 200 if commit else 404)

    def _file(self, *, body: bool) -> None:
        hub = self.served
        hub.asked.append(f"{self.command} {self.path}")
        owner, name, _, revision, file = unquote(urlsplit(self.path).path).lstrip("/").split("/", 4)
        repository = f"{owner}/{name}"
        commit = hub.resolve(repository, revision)
        if repository not in hub.commits:
            return self._refuse("RepoNotFound")
        if commit is None:
            return self._refuse("RevisionNotFound")
        content = hub.commits[repository][commit].get(file)
        if content is None:
            return self._refuse("EntryNotFound", commit)
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def _refuse(self, code: str, commit: str | None = None) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
