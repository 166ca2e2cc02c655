"""Errors of the server, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An error response: HTTP ``status``, and the fields of OpenAI's error object.

    ``param`` names the field of the body, ``code`` is a word for programs, and ``wait_s`` goes into ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        wait_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.wait_s = status, message, param, code, wait_s

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable"}


class BusyError(ApiError):
    """The queue is full."""

    def __init__(self, waiting: int, wait_s: int) -> None:
        super().__init__(
            429,
            f"{waiting} answers are waiting and the queue is full; try again in {wait_s} s",
            code="queue_full",
            wait_s=wait_s,
        )


class DrainingError(ApiError):
    """The server is draining: it finishes the running requests and accepts no others."""

    def __init__(self) -> None:
        super().__init__(
            503, "the server is shutting down; send the request to another server", code="draining", wait_s=1
        )
