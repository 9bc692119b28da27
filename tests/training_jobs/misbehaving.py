"""A collection service over real HTTP that can be told to misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from services.collect.importers import Item

Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


def status(code: int) -> Fault:
    """Answer with a status and no content."""

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def half_body(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Announce the whole body, send half of it, hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.connection.close()


def hang(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    """Say nothing until the client gives up."""
    handler.connection.settimeout(20)
    with suppress(OSError):
        handler.connection.recv(1)


def hang_up(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    """End the connection without an answer."""
    handler.connection.close()


def page(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    """Answer with a page for people, as a proxy does."""
    content = b"<html>maintenance</html>"
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


class Service:
    """The calls that a pull makes, and how the next answers to each path are spoiled."""

    def __init__(self, pictures: list[Item]) -> None:
        self.pictures = {f"files/{item.category}/{item.name}": item for item in pictures}
        self.url = ""
        self.requests: list[str] = []
        self._faults: list[tuple[str, Fault, int]] = []
        self._lock = threading.Lock()

    def spoil(self, path: str, fault: Fault, times: int = 10**6) -> None:
        """Answer the next `times` requests whose path holds `path` with `fault`."""
        self._faults.append((path, fault, times))

    def mend(self) -> None:
        """Behave from now on."""
        self._faults.clear()

    def fault(self, path: str) -> Fault | None:
        """Return how to spoil the answer to a request, if it is to be spoiled."""
        with self._lock:
            self.requests.append(path)
            for index, (part, fault, times) in enumerate(self._faults):
                if part in path and times > 0:
                    self._faults[index] = (part, fault, times - 1)
                    return fault
        return None

    def content(self, path: str) -> bytes | None:
        """Return the right answer."""
        if path == "/login":
            return json.dumps({"token": "t"}).encode()
        if path == "/meta/pictures":
            data: dict[str, dict[str, list[dict[str, str]]]] = {}
            for filepath, item in self.pictures.items():
                row = {"filepath": filepath.removeprefix("files/"), "picsetGuid": item.picset}
                data.setdefault(item.category, {"pictures": []})["pictures"].append(row)
            return json.dumps({"data": data}).encode()
        if path == "/meta/picsets":
            return json.dumps({"data": []}).encode()
        found = self.pictures.get(path.lstrip("/"))
        return found.content if found else None


@contextmanager
def service(pictures: list[Item]) -> Iterator[Service]:
    """Run such a service."""
    found = Service(pictures)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = found.content(self.path)
            if fault := found.fault(self.path):
                self.close_connection = True
                fault(self, content or b"nothing")
            elif content is None:
                status(404)(self, b"")
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
