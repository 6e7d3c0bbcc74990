"""Servers that tests read from: a hub (HF_ENDPOINT) that redirects large files elsewhere, and plain files, both by
ranges; and servers that misbehave. They count the bytes that they send."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: What the hub keeps elsewhere.
LARGE = (".safetensors", ".gguf", ".bin")


class FileServer:
    """`models`: repositories by their names, each a folder. Files of any of them are also under /plain/ORG/NAME/."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.sent: Counter[str] = Counter()
        """Bytes of each file, by its name."""
        self.requests: Counter[str] = Counter()
        self.tokens: list[str] = []
        self.misbehave = ""
        """whole, more, less, other: how a range is answered; changed: another entity tag each time."""
        self.refused = ""
        """What a token is called that is refused."""
        self.failures = 0
        """So many of the next ranges are answered with 503."""
        self.cuts = 0
        """So many of the next ranges of some size end in their middle: the connection is cut."""
        self.lock = threading.Lock()
        self.private: dict[str, bool] = {}
        """Repositories that were made."""
        self.uploaded: dict[str, bytes] = {}

    @property
    def total(self) -> int:
        return sum(self.sent.values())


def handler_of(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            with server.lock:
                server.tokens.append(self.headers.get("Authorization", ""))
            if server.refused and self.headers.get("Authorization") == f"Bearer {server.refused}":
                self.answer(401, b'{"error": "Invalid credentials in Authorization header"}')
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self.model(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                repository, commit, name = match.groups()
                if repository not in server.models or commit != COMMIT:
                    self.answer(404, b"")
                elif name.endswith(LARGE):
                    self.answer(302, b"", Location=f"/plain/{repository}/{name}?signed=1")
                else:
                    self.file(server.models[repository] / name)
            elif match := re.fullmatch(r"/plain/([^/]+/[^/]+)/(.+)", path):
                folder = server.models.get(match[1])
                self.file(folder / match[2]) if folder else self.answer(404, b"")
            else:
                self.answer(404, b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path, here = unquote(urlsplit(self.path).path), f"http://{self.headers['Host']}"
            with server.lock:
                server.tokens.append(self.headers.get("Authorization", ""))
            if not self.headers.get("Authorization"):
                return self.answer(401, b"{}")
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                server.private[name] = asked.get("private") or asked.get("visibility") == "private"
                server.models[name].mkdir(parents=True, exist_ok=True)
                found: dict[str, object] = {"url": f"{here}/{name}", "id": name}
            elif path == "/api/validate-yaml":
                found = {"errors": [], "warnings": []}
            elif path.endswith("/preupload/main"):
                names = [each["path"] for each in json.loads(body)["files"]]
                modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
                found = {
                    "files": [
                        {"path": name, "uploadMode": mode, "shouldIgnore": False}
                        for name, mode in modes.items()
                    ]
                }
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {**each, "actions": {"upload": {"href": f"{here}/upload/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                found = {"transfer": "basic", "objects": objects}
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                for line in map(json.loads, body.splitlines()):
                    self.commit(server.models[match[1]], line["key"], line["value"])
                found = {
                    "success": True,
                    "commitUrl": f"{here}/{match[1]}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            else:
                return self.answer(404, b"{}")
            return self.answer(200, json.dumps(found).encode())

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(data).hexdigest() == oid
            server.uploaded[oid] = data
            self.answer(200, b"")

        def commit(self, folder: Path, key: str, value: dict[str, str]) -> None:
            if key == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                (folder / value["path"]).write_bytes(server.uploaded[value["oid"]])

        def model(self, name: str, revision: str) -> None:
            folder = server.models.get(name)
            if folder is None or revision not in ("main", "v1", COMMIT):
                what = "RepoNotFound" if folder is None else "RevisionNotFound"
                return self.answer(404, b"{}", **{"X-Error-Code": what})
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            siblings = [
                {"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size} for path in files
            ]
            facts = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
            return self.answer(200, json.dumps(facts).encode())

        def file(self, path: Path) -> None:
            if not path.is_file():
                return self.answer(404, b"")
            with server.lock:
                server.requests[path.name] += 1
                failing, server.failures = server.failures > 0, max(server.failures - 1, 0)
            if failing:
                return self.answer(503, b"")
            size = path.stat().st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            assert match, "files are asked for by ranges"
            start, stop = int(match[1]), min(int(match[2]) + 1, size)
            if start >= size:
                return self.answer(416, b"")
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
            with server.lock:
                server.sent[path.name] += len(data)
            tag = hashlib.sha256(f"{path} {size} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]
            place = f"bytes {start}-{stop - 1}/{size}"
            with server.lock:
                cut = server.cuts > 0 and len(data) > 1000
                server.cuts -= cut
            if cut:
                self.send_response(206)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Content-Range", place)
                self.send_header("ETag", f'"{tag}"')
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return None
            match server.misbehave:
                case "whole":
                    return self.answer(200, data)
                case "more":
                    data += bytes(1 << 20)
                case "less":
                    data = data[:-1]
                case "other":
                    place = f"bytes {start + 1}-{stop}/{size + 1}"
                case "changed":
                    tag += str(server.requests[path.name])
                case "shorter":
                    place = f"bytes {start}-{stop - 1}/{max(stop, size - 1)}"
            return self.answer(206, data, **{"Content-Range": place, "ETag": f'"{tag}"'})

        def answer(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextmanager
def serving(models: dict[str, Path]) -> Iterator[tuple[str, FileServer]]:
    """The server's address, and what it counts."""
    files = FileServer(models)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(files))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", files
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
