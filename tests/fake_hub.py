"""A small Hugging Face Hub on 127.0.0.1, for round trips without a network: models live in `<root>/<user>/<repo>/`."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FakeHub:
    """
    Serves what huggingface_hub asks for when a pipeline is loaded or pushed, and answers 404 to everything else.

    Use it as a context manager. Clients need `HF_ENDPOINT=hub.url` before huggingface_hub is imported, so they run in
    a subprocess with [`FakeHub.environment`].
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.requests: list[tuple[str, str]] = []
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
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_TOKEN": "hf_dummy", "NO_PROXY": "127.0.0.1"}

    def files(self, repo: str) -> dict[str, Path]:
        folder = self.root / repo
        return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}

    def revision(self, repo: str) -> str:
        """A commit hash that depends on the content."""
        names_and_hashes = (name + _hash(file) for name, file in self.files(repo).items())
        return hashlib.sha1("\n".join(names_and_hashes).encode()).hexdigest()

    def store(self, repo: str, lines: list[dict]) -> None:
        """Apply a commit in the Hub's format: a header line, then one line for each file."""
        for line in lines:
            if line["key"] == "file":
                target = self.root / repo / line["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(line["value"]["content"]))


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _handler_for(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(
                (r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", self.send_model),
                (r"/api/models/([^/]+/[^/]+)/tree/[^/]+", self.send_tree),
                (r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.send_file),
            )

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.answer(
                (r"/api/repos/create", self.create),
                (r"/api/validate-yaml", lambda: self.send_json({"warnings": [], "errors": []})),
                (r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", self.plan_upload),
                (r"/api/models/([^/]+/[^/]+)/commit/[^/]+", self.commit),
            )

        def answer(self, *routes) -> None:
            path = unquote(urlsplit(self.path).path)
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append((self.command, path))
            for pattern, respond in routes:
                if match := re.fullmatch(pattern, path):
                    return respond(*match.groups())
            self.send(404)

        def send_model(self, repo: str) -> None:
            names = [{"rfilename": name} for name in hub.files(repo)]
            if not names:
                return self.send(404, X_Error_Code="RepoNotFound")
            self.send_json({"id": repo, "sha": hub.revision(repo), "siblings": names})

        def send_tree(self, repo: str) -> None:
            files = hub.files(repo).items()
            self.send_json(
                [{"type": "file", "path": name, "size": f.stat().st_size, "oid": _hash(f)} for name, f in files]
            )

        def send_file(self, repo: str, name: str) -> None:
            file = hub.files(repo).get(name)
            if file is None:
                return self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.revision(repo))
            self.send(200, file.read_bytes(), ETag=f'"{_hash(file)}"', X_Repo_Commit=hub.revision(repo))

        def create(self) -> None:
            request = json.loads(self.body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            self.send_json({"url": f"{hub.url}/{name}", "name": name})

        def plan_upload(self, repo: str) -> None:
            files = json.loads(self.body)["files"]
            self.send_json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )

        def commit(self, repo: str) -> None:
            hub.store(repo, [json.loads(line) for line in self.body.splitlines()])
            revision = hub.revision(repo)
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
