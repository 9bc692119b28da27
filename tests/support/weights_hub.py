"""A double of the hub: it answers as the hub does for a file of a repository, and says in every answer what it is."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHAT_IT_IS = "nightshift-test-double-of-the-hub"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Files by path (`/timm/<name>/resolve/main/<file>`); what was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    claimed: dict[str, str] = field(default_factory=dict)
    """Path -> SHA-256 that the hub says the file has; by default its own."""
    breaks_off_after: int | None = None
    """Bytes of an answer after which its connection is closed, once."""
    failures: int = 0
    """How many answers from now on are 503."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of each call."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Yield a hub on a port of the loopback interface."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        server_version = WHAT_IT_IS

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            hub.asked.append((self.path, wanted))
            stored = self.path.removeprefix("/stored")
            content = hub.files.get(stored)
            if hub.failures:
                hub.failures -= 1
                return self.answer(503)
            if content is None:
                return self.answer(404)
            digest = hashlib.sha256(content).hexdigest()
            if not self.path.startswith("/stored"):  # the hub's own answer leads to where large files lie
                claimed = hub.claimed.get(stored, digest)
                return self.answer(302, Location=f"/stored{stored}", X_Linked_Etag=f'"{claimed}"', X_Repo_Commit=COMMIT)
            start = 0
            if wanted and self.headers.get("If-Range") in (None, f'"{digest}"'):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            return self.answer(206 if start else 200, content[start:], ETag=f'"{digest}"')

        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if content and hub.breaks_off_after is not None:
                content, hub.breaks_off_after = content[: hub.breaks_off_after], None
                self.close_connection = True
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
