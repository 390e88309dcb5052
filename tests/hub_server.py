"""A local server that speaks enough of ModelScope's and Hugging Face's protocols for a download.

It serves one model from memory, keeps what it was asked, and can fail in the ways that hubs and
networks do.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "facebook/dinov3-vitb16-pretrain-lvd1689m"
COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Hub:
    """What the server serves, and how it misbehaves.

    Attributes:
        files: content by name.
        cut_after: close the connection after so many bytes of a weights file, so many times.
        cuts: how many times that is left to do.
        hang: keep a connection that would be cut open instead, until this is unset.
        hanging: set once that has happened.
        refuse: answer every request for the model with this status and message.
        corrupt: names of files that arrive with their last byte changed.
        asked: method, path and Range of every request.
    """

    files: Mapping[str, bytes]
    cut_after: int = 0
    cuts: int = 0
    hang: bool = False
    hanging: threading.Event = field(default_factory=threading.Event)
    refuse: tuple[int, str] | None = None
    corrupt: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take_cut(self, name: str) -> bool:
        """Return whether this answer is to be cut."""
        with self.lock:
            if self.cuts and name.endswith(".safetensors"):
                self.cuts -= 1
                return True
            return False

    def ranges(self) -> list[str]:
        """Return the ranges of weights that were asked for with GET."""
        return [r for method, path, r in self.asked if method == "GET" and "safetensors" in path]


class Handler(BaseHTTPRequestHandler):
    """Answers for the server's hub."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.answer()

    def do_GET(self) -> None:
        """Answer."""
        self.answer()

    def answer(self) -> None:
        """Find what is asked for."""
        hub, url = self.server.hub, urlsplit(self.path)
        hub.asked.append((self.command, self.path, self.headers.get("Range", "")))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        # Hugging Face shows a gated model's listing to everyone, ModelScope does not.
        if hub.refuse is not None and REPOSITORY in path and not path.startswith("/api/models/"):
            self.refuse(*hub.refuse)
        elif path == f"/api/v1/models/{REPOSITORY}/repo/files":
            self.json({"Code": 200, "Success": True, "Message": "success",
                       "Data": {"Files": self.modelscope_files()}})  # fmt: skip
        elif path == f"/api/v1/models/{REPOSITORY}/revisions":
            branches = {"Branches": [{"Revision": "master"}], "Tags": []}
            self.json({"Code": 200, "Success": True, "Data": {"RevisionMap": branches}})
        elif path == f"/api/v1/models/{REPOSITORY}/repo":
            self.file(query["FilePath"])
        elif path == f"/api/v1/models/{REPOSITORY}":
            self.json({"Code": 200, "Success": True, "Data": {"Id": 1, "Name": "dinov3"}})
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            self.json(self.huggingface_info())
        elif path.startswith(f"/{REPOSITORY}/resolve/"):
            self.file(path.split("/", 5)[5])
        else:
            self.json({"Code": 404, "Success": False, "Message": "not found"}, 404)

    def refuse(self, status: int, message: str) -> None:
        """Answer as a hub does for a model behind a licence."""
        headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
        body = {"Code": status, "Success": False, "Message": message, "error": message}
        self.json(body, status, headers)

    def modelscope_files(self) -> list[dict[str, object]]:
        """Return the listing of ModelScope."""
        return [
            {"Name": name, "Path": name, "Type": "blob", "Size": len(content),
             "Sha256": hashlib.sha256(content).hexdigest(), "Revision": "master"}
            for name, content in self.server.hub.files.items()
        ]  # fmt: skip

    def huggingface_info(self) -> dict[str, object]:
        """Return the model's description of Hugging Face, with hashes as ?blobs=true has them."""
        siblings = []
        for name, content in self.server.hub.files.items():
            entry: dict[str, object] = {
                "rfilename": name,
                "size": len(content),
                "blobId": git_blob_id(content),
            }
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "private": False,
                "gated": False, "tags": [], "downloads": 0, "siblings": siblings}  # fmt: skip

    def json(
        self, body: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send JSON."""
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def file(self, name: str) -> None:
        """Send a file or the range of it that is asked for; perhaps not all."""
        hub = self.server.hub
        if name not in hub.files:
            self.json({"Code": 404, "Success": False, "Message": f"no {name}"}, 404)
            return
        content = whole = hub.files[name]
        if name in hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, wanted = 0, self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first)
            content = content[start : int(last) + 1 if last else None]
        self.send_response(206 if wanted else 200)
        if wanted:
            end = start + len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(whole)}")
        etag = hashlib.sha256(whole).hexdigest()
        for key, value in {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT,
                           "X-Linked-Size": str(len(whole)), "X-Linked-Etag": f'"{etag}"',
                           "Accept-Ranges": "bytes"}.items():  # fmt: skip
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.take_cut(name):
            self.wfile.write(content[: hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            hub.hanging.set()
            while hub.hang:
                time.sleep(0.02)
        else:
            self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """The server of one hub."""

    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        """Listen on a free port."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"


def git_blob_id(content: bytes) -> str:
    """Return what git names a file's content by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve a hub while the block runs; yields its address."""
    server = Server(hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(url: str, home: Path) -> dict[str, str]:
    """Return an environment whose hub is the local server, with nothing of the user's own."""
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "TMPDIR")}
    return {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MODELSCOPE_ENDPOINT": url,
        "MODELSCOPE_DOMAIN": url,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "127.0.0.1",
    }
