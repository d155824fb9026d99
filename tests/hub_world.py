"""A hub without a network: repositories laid out as its client caches them, and a server that answers as it does.

Addresses, headers and error codes are those that ``huggingface_hub`` asks for and reads.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


def cache_repository(
    cache: Path, repository: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main", kind: str = "model"
) -> Path:
    """Put files into a hub cache: ``blobs``, the commit's ``snapshots`` with links to them, and ``refs``."""
    root = cache / "--".join([f"{kind}s", *repository.split("/")])
    for name, data in files.items():
        blob = root / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    return root / "snapshots" / commit


def folder_files(folder: Path) -> dict[str, bytes]:
    """Files of a folder by their names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Hub:
    """What a server of repositories has, and what it was asked.

    Attributes:
        files: of each repository.
        errors: of each repository that is refused, the status and the hub's code.
        cuts: how often each file is still cut off in the middle.
        asked: every method and path, in order.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.revisions = {"main": COMMIT, "v1.0": COMMIT, COMMIT: COMMIT}
        self.errors: dict[str, tuple[int, str]] = {}
        self.cuts: dict[str, int] = {}
        self.asked: list[str] = []
        self.endpoint = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            api = path.startswith("/api/")
            parts = path.removeprefix("/api/").removeprefix("models/").removeprefix("datasets/").strip("/").split("/")
            repository, rest = "/".join(parts[:2]), parts[2:]
            if repository in hub.errors:
                self._refuse(*hub.errors[repository])
            elif repository not in hub.files:
                self._refuse(401, "RepoNotFound")
            elif rest[:1] == ["auth-check"]:
                self._send(b"{}")
            elif len(rest) > 1 and rest[1] not in hub.revisions:
                self._refuse(404, "RevisionNotFound")
            elif api and rest[:1] == ["tree"]:
                self._send(json.dumps(self._tree(repository)).encode())
            elif api:
                commit = hub.revisions[rest[1] if len(rest) > 1 else "main"]
                self._send(json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())
            elif (name := "/".join(rest[2:])) in hub.files[repository]:
                self._file(name, hub.files[repository][name])
            else:
                self._refuse(404, "EntryNotFound")

        def _tree(self, repository: str) -> list[dict]:
            return [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in hub.files[repository].items()
            ]

        def _file(self, name: str, data: bytes) -> None:
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if self.command == "GET" and hub.cuts.get(name, 0):
                hub.cuts[name] -= 1
                self._send(data[: len(data) // 2], headers, length=len(data))
                self.close_connection = True
            else:
                self._send(data, headers)

        def _send(self, data: bytes, headers: dict | None = None, length: int | None = None) -> None:
            self.send_response(200)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on this machine; its address is ``endpoint``."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
