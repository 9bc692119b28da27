"""Bodies of hundreds of MB, sent by hand: what a service answers, when, and what memory it takes meanwhile."""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
BLOCK = b"x" * (1 << 16)


@dataclass
class Answer:
    """The status of the answer, and how many bytes of the body had been sent when it came."""

    status: int
    sent: int


def flood(port: int, path: str, total: int, *headers: str, length: int | None) -> Answer:
    """Send `total` bytes as the body, with that Content-Length or, with None, in chunks; go on after the answer."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"POST {path} HTTP/1.1", "Host: x", framing, *headers]
    block = b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if length is None else BLOCK
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall("\r\n".join([*lines, "", ""]).encode())
        answer, sent, sent_before_it = b"", 0, 0
        try:
            while sent < total:
                readable, _, _ = select.select([line], [line], [], 30)
                if readable:
                    received = line.recv(1 << 16)
                    if not received:
                        break
                    sent_before_it = sent_before_it or sent
                    answer += received
                else:
                    line.sendall(block)
                    sent += len(BLOCK)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the service has closed the connection: it wants no more of it
        if not answer:
            answer, sent_before_it = line.recv(1 << 16), sent
    return Answer(int(answer.split()[1]), sent_before_it)


def peak_memory(pid: int) -> int:
    """Return the most bytes of memory that a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
