"""Prometheus metrics of the service."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "model_storage_requests_total",
            "Answered requests, by the name of their token",
            ["method", "route", "status", "token"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "model_storage_request_seconds",
            "Time to answer",
            ["method", "route"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
            registry=self.registry,
        )
        self.uploaded_bytes = Counter("model_storage_uploaded_bytes_total", "Bytes received", registry=self.registry)
        self.changes = Counter(
            "model_storage_production_changes_total",
            "Promotions and rollbacks by outcome",
            ["action", "outcome"],
            registry=self.registry,
        )
        self.not_serving = Gauge(
            "model_storage_champions_not_served", "Champions that Triton does not serve", registry=self.registry
        )


class Measured:
    """ASGI middleware that counts requests by route, not by path: a path of a stranger makes no new series."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            method = scope["method"] if route != "(none)" else "(any)"
            token = getattr(Request(scope).state, "token_name", "")
            self._metrics.requests.labels(method, route, status, token).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - started)
