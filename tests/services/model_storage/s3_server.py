"""An S3 server for tests (moto's), behind a proxy that can make it fail the way that S3 does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from moto.server import ThreadedMotoServer

from local.settings import HOST

Fault = Literal["500", "cut", "lost answer"]


class S3Server:
    """`fail` makes the next requests of a kind fail: answered 500 at once, their answer cut off, or done but lost."""

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer(HOST, 0, verbose=False)
        self._moto.start()
        self.port = self._moto.get_host_and_port()[1]
        self._proxy = ThreadingHTTPServer((HOST, 0), _handler(self))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.url = f"http://{HOST}:{self._proxy.server_address[1]}"
        self.faults: list[tuple[str, str, Fault]] = []
        self.writing = threading.Lock()  # moto looks and then writes; S3 does both at once

    def fail(self, method: str, part: str, fault: Fault, times: int = 1) -> None:
        """Make the next `times` requests of `method` whose path contains `part` fail."""
        self.faults += [(method, part, fault)] * times

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return how this request should fail, if it should."""
        for number, (wanted, part, fault) in enumerate(self.faults):
            if wanted == method and part in path:
                del self.faults[number]
                return fault
        return None

    def stop(self) -> None:
        """Stop proxy and server."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run an S3 server."""
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


def _handler(server: S3Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: two would wait for each other (Nagle)

        def handle_expect_100(self) -> bool:
            go_on = super().handle_expect_100()
            self.wfile.flush()
            return go_on

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = server.take_fault(self.command, self.path)
            status, headers, content = 500, {}, b""
            if fault != "500":
                with server.writing:
                    connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
                    connection.request(self.command, self.path, body, dict(self.headers))
                    reply = connection.getresponse()
                    status, headers, content = reply.status, dict(reply.getheaders()), reply.read()
                    connection.close()
            if fault == "lost answer":
                status, content, headers = 500, b"", {}
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = int(headers.get("Content-Length", 0)) if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
            self.close_connection = fault == "cut"

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
