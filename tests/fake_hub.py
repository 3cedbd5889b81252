"""
A small Hugging Face Hub on 127.0.0.1, for round trips without a network: models live in `<root>/<user>/<repo>/`, data
sets in `<root>/datasets/<user>/<repo>/`.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


TOKEN = "hf_dummy"
API_REPO = r"(?:models/)?((?:datasets/)?[^/]+/[^/]+)"


class FakeHub:
    """
    Serves what huggingface_hub asks for when a pipeline or a data set is loaded or pushed; the rest gets 404.
    A data set is named with its folder, `datasets/<user>/<repo>`.

    Branches other than main, and commits that main has left behind, live in `<root>/<user>/<repo>@<name>/`.
    Repositories in `private` answer 401 without the token.

    Use it as a context manager. This process talks to it after [`FakeHub.connect`]; another process needs
    [`FakeHub.environment`], because the address is read when huggingface_hub is imported.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, int]] = []  # what was asked for in part: path and number of bytes
        self.private: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment variables of a client with its own cache."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}

    def connect(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make this process a client with its own cache, which [`FakeHub.environment`] shares."""
        from huggingface_hub import constants, hf_api

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def folder(self, repo: str, revision: str = "main") -> Path | None:
        """Where a branch or a commit lies; `None` if there is none."""
        places = [self.root / repo, *sorted(self.root.glob(f"{repo}@*"))]
        names = ["main", *(place.name.partition("@")[2] for place in places[1:])]
        for place, name in zip(places, names):
            if place.is_dir() and (revision == name or revision == self.revision(repo, name)):
                return place
        return None

    def files(self, repo: str, revision: str = "main") -> dict[str, Path]:
        folder = self.root / (repo if revision == "main" else f"{repo}@{revision}")
        return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}

    def revision(self, repo: str, name: str = "main") -> str:
        """A commit hash that depends on the content of a branch."""
        names_and_hashes = (path + _hash(file) for path, file in self.files(repo, name).items())
        return hashlib.sha1("\n".join(names_and_hashes).encode()).hexdigest()

    def branch(self, repo: str, name: str) -> None:
        """A branch from what main holds now."""
        (self.root / repo).mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.root / repo, self.root / f"{repo}@{name}")

    def store(self, repo: str, lines: list[dict], branch: str = "main") -> None:
        """Apply a commit in the Hub's format: a header line, then one line for each file."""
        if branch == "main" and self.files(repo) and not (self.root / f"{repo}@{self.revision(repo)}").exists():
            self.branch(repo, self.revision(repo))
        folder = self.root / (repo if branch == "main" else f"{repo}@{branch}")
        for line in lines:
            if line["key"] == "file":
                target = folder / line["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                (folder / line["value"]["path"]).unlink()


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _handler_for(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(
                (rf"/api/{API_REPO}(?:/revision/([^/]+))?", self.send_model),
                (rf"/api/{API_REPO}/tree/([^/]+)(?:/(.+))?", self.send_tree),
                (r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.send_file),
            )

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.answer(
                (r"/api/repos/create", self.create),
                (r"/api/validate-yaml", lambda: self.send_json({"warnings": [], "errors": []})),
                (rf"/api/{API_REPO}/branch/([^/]+)", self.create_branch),
                (rf"/api/{API_REPO}/preupload/[^/]+", self.plan_upload),
                (rf"/api/{API_REPO}/commit/([^/]+)", self.commit),
            )

        def answer(self, *routes) -> None:
            path = unquote(urlsplit(self.path).path)
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append((self.command, path))
            for pattern, respond in routes:
                if match := re.fullmatch(pattern, path):
                    token = self.headers.get("Authorization")
                    if match.groups() and match[1] in hub.private and token != f"Bearer {TOKEN}":
                        # huggingface_hub also knows a missing repository by 401 alone, but only behind https
                        return self.send(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                    return respond(*match.groups())
            self.send(404)

        def revision_or_404(self, repo: str, revision: str | None) -> str | None:
            """The name of a branch, also for a commit; `None` after the answer that there is no such thing."""
            if not (hub.root / repo).is_dir():
                return self.send(404, X_Error_Code="RepoNotFound")
            folder = hub.folder(repo, revision or "main")
            if folder is None:
                return self.send(404, X_Error_Code="RevisionNotFound")
            return folder.name.partition("@")[2] or "main"

        def send_model(self, repo: str, revision: str | None = None) -> None:
            if name := self.revision_or_404(repo, revision):
                siblings = [{"rfilename": path} for path in hub.files(repo, name)]
                self.send_json({"id": repo, "sha": hub.revision(repo, name), "siblings": siblings})

        def send_tree(self, repo: str, revision: str, below: str | None = None) -> None:
            if name := self.revision_or_404(repo, revision):
                files = hub.files(repo, name).items()
                self.send_json(
                    [
                        {"type": "file", "path": path, "size": f.stat().st_size, "oid": _hash(f)}
                        for path, f in files
                        if below is None or path.startswith(f"{below}/")
                    ]
                )

        def send_file(self, repo: str, revision: str, path: str) -> None:
            if name := self.revision_or_404(repo, revision):
                commit, file = hub.revision(repo, name), hub.files(repo, name).get(path)
                if file is None:
                    return self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                headers = {"ETag": f'"{_hash(file)}"', "X_Repo_Commit": commit}
                data, wanted = file.read_bytes(), self.headers.get("Range")
                if wanted is None:
                    return self.send(200, data, **headers)
                first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
                part = data[first : last + 1]
                hub.ranges.append((path, len(part)))
                self.send(206, part, **headers, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(data)}")

        def create(self) -> None:
            request = json.loads(self.body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            folder = "datasets/" * (request.get("type") == "dataset")
            (hub.root / f"{folder}{name}").mkdir(parents=True, exist_ok=True)
            self.send_json({"url": f"{hub.url}/{folder}{name}", "name": name})

        def create_branch(self, repo: str, name: str) -> None:
            if (hub.root / f"{repo}@{name}").exists():
                return self.send(409)
            hub.branch(repo, name)
            self.send_json({})

        def plan_upload(self, repo: str) -> None:
            files = json.loads(self.body)["files"]
            self.send_json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )

        def commit(self, repo: str, branch: str) -> None:
            hub.store(repo, [json.loads(line) for line in self.body.splitlines()], branch)
            revision = hub.revision(repo, branch)
            self.send_json({"commitOid": revision, "commitUrl": f"{hub.url}/{repo}/commit/{revision}"})

        def send_json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode())

        def send(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args) -> None:
            pass

    return Handler
