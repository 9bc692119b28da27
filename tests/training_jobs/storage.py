"""The calls of the model storage that an evaluation makes."""

from __future__ import annotations

import json
import re


class Storage:
    """The calls of the model storage that an evaluation makes, over real HTTP.

    Stands in for the service, which promotes a version only through a running Triton.
    """

    def __init__(self) -> None:
        self.champion: str | None = None
        self.archive: bytes = b""
        self.earlier: dict[str, bytes] = {}  # version -> archive, the first one in production first
        self.first_action = "promote"
        self.status = 200
        self.authorization = ""
        self.url = ""

    def answer(self, path: str) -> tuple[int, bytes]:
        if self.status != 200:
            return self.status, b"no"
        if self.champion is None:
            return 404, b'{"detail": "no version is in production"}'
        if re.fullmatch(r"/models/\w+/champion", path):
            return 200, b'{"version": "%s", "triton_version": 3}' % self.champion.encode()
        if path.startswith("/history/"):
            rows = [{"action": "promote", "version": v} for v in [*self.earlier, self.champion]]
            rows[0]["action"] = self.first_action
            return 200, json.dumps([*reversed(rows)]).encode()
        asked = path.split("/")[-2]
        if path.endswith("/archive") and asked in self.earlier:
            return 200, self.earlier[asked]
        return (200, self.archive) if path.endswith(f"/versions/{self.champion}/archive") else (404, b"unknown")
