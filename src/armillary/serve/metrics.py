"""Counters of the server in Prometheus' text format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from armillary.serve.engine import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "armillary_requests", "Requests by path and HTTP status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "armillary_request_seconds",
            "Time of a whole request, from its headers to the last byte of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_piece = Histogram(
            "armillary_first_piece_seconds",
            "Time from a request to the first chunk of its answer (streamed: its first text).",
            buckets=_SECONDS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "armillary_step_seconds", "Time of one step of the batch.", buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("armillary_prompt_tokens", "Prompt tokens.", registry=registry)
        self.reused_tokens = Counter(
            "armillary_reused_tokens", "Prompt tokens reused from the cache.", registry=registry
        )
        self.new_tokens = Counter("armillary_new_tokens", "Answer tokens.", registry=registry)
        self.cancelled = Counter(
            "armillary_cancelled_requests", "Requests cancelled because the client disconnected.", registry=registry
        )

    def watch(self, engine: Engine) -> None:
        """Add gauges of the engine's slots."""
        for name, what, read in (
            ("armillary_running", "Answers in progress.", lambda: engine.running),
            ("armillary_waiting", "Answers waiting for a slot.", lambda: engine.waiting),
            ("armillary_slots", "Maximum number of concurrent answers.", lambda: engine.slots),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self.registry)
