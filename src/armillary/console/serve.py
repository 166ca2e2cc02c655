"""Runs the console until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

import uvicorn

from armillary.console.app import ConsoleOptions, create_app
from armillary.console.security import TOKEN, check_token
from armillary.recipe import ArmillaryError, UsageError


def serve(options: ConsoleOptions, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the console on ``host`` and ``port`` (0: any free one) until Ctrl-C; ``say`` receives the address.

    Raises:
        UsageError: a place does not exist, the host needs a token, or the port is taken.
    """
    token = check_token(host, os.environ.get(TOKEN))
    app = create_app(options, token)
    app.state.watch.warm()
    with contextlib.closing(_listen(host, port)) as listening:
        address = listening.getsockname()
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{address[1]}/" + (f"?token=… (the value of {TOKEN})" if token else ""))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=1
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    app.state.watch.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: no such address ({error})") from error
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if port and error.errno is not None and "in use" in str(error):
            raise UsageError(f"--port {port}: already in use; give another, or 0 for any free port") from error
        raise ArmillaryError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from error
    return listening
