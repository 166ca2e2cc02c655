"""Opens the model, listens, and shuts down: SIGTERM or Ctrl-C drains running requests, a second signal aborts them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from armillary.generate import open_backend
from armillary.recipe import ArmillaryError, UsageError
from armillary.serve.options import Listening, ServeOptions, read_token

BACKENDS = ("auto", "native", "llama.cpp", "vllm", "transformers")
# How long the engine's thread may hold the interpreter while the event loop has work; Python's default is 5 ms.
_SWITCH_S = 0.0005


def serve(target: str, options: ServeOptions, backend: str, listening: Callable[[Listening], None]) -> None:
    """Serve the model at ``target`` until a signal ends it.

    Args:
        target: a model folder, a run or a ``.gguf`` file.
        options: where to listen, and how to open the model.
        backend: one of ``BACKENDS``; "auto" takes vLLM where it is installed and reads the folder, else the engine
            that recognises the target.
        listening: called once requests are accepted.

    Raises:
        UsageError: an unknown backend, an address that cannot be used, no token where one is needed, a model that
            cannot be served.
        ArmillaryError: the model cannot be loaded, or the extra is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is unknown; known are {', '.join(BACKENDS)}")
    if "://" in target:
        raise UsageError(f"{target}: is already a server; give a model folder, a run or a .gguf file")
    token = read_token(options.host)
    from armillary.serve.vllm import find_vllm, run_vllm, vllm_reads

    if backend == "vllm" or (backend == "auto" and find_vllm() is not None and vllm_reads(target)):
        run_vllm(target, options, token)
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ArmillaryError(f"serving needs {error.name}; pip install 'armillary[serve]'") from None
    with _listen(options.host, options.port) as bound:  # before the model is loaded, which may take minutes
        engine, identity = _open(target, options, None if backend == "auto" else backend)
        from armillary.serve.app import Serving

        name = options.name or Path(target).resolve().name
        fingerprint = str(identity.get("sha256", "unknown"))[:16]
        serving = Serving(engine, name, fingerprint, token, int(time.time()))
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        facts = Listening(
            f"http://{shown}:{port}/v1", name, engine.name, engine.context, engine.slots, engine.queue, bool(token)
        )
        sys.setswitchinterval(_SWITCH_S)
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_run(serving, bound, lambda: listening(facts)))
        finally:
            engine.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found


def _open(target: str, options: ServeOptions, backend: str | None) -> tuple[Any, dict[str, Any]]:
    """The engine, and the identity of its model."""
    from armillary.generate import native
    from armillary.serve.batching import SLOTS, BatchingEngine
    from armillary.serve.borrowing import BorrowingEngine

    given = options.backend
    opened = open_backend(target, given, backend)
    if isinstance(opened, native.NativeBackend):
        return BatchingEngine(opened, given.batch_size or SLOTS, options.queue), opened.identity
    name = str(opened.identity["backend"])
    return BorrowingEngine(opened, name, given.batch_size or 1, options.queue), opened.identity


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host}: is not an address of this machine ({error}); 127.0.0.1 always works"
        ) from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"{host} port {port} cannot be used ({error.strerror}); another program may listen there: give another "
            "--port, or 0 for any free one"
        ) from None
    return bound


async def _run(serving: Any, bound: socket.socket, started: Callable[[], None]) -> None:
    """Serve requests until a signal ends the server."""
    import uvicorn

    from armillary.serve.app import build_app

    class Server(uvicorn.Server):
        """uvicorn without its signal handlers: it would close the port before the running requests have finished."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        build_app(serving),
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
    )
    server, loop = Server(config), asyncio.get_running_loop()
    engine = serving.engine
    engine.start(loop)
    tasks = set()

    async def drain() -> None:
        await engine.idle()
        server.should_exit = True

    def on_signal() -> None:
        if serving.draining:
            server.force_exit = server.should_exit = True
            engine.abort()
        else:
            serving.draining = True
            tasks.add(loop.create_task(drain()))

    async def announce() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        started()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    tasks.add(loop.create_task(announce()))
    try:
        await server.serve(sockets=[bound])
    finally:
        for task in tasks:
            task.cancel()
