"""Starts and stops a simulated backend, inside the event loop of a test or as a process."""

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiohttp import web

from llmqueue.errors import Failure
from llmqueue.fake_backend.call_log import CallLog
from llmqueue.fake_backend.config import SimulatorConfig
from llmqueue.fake_backend.server import build_app
from llmqueue.fake_backend.simulation import Simulation

KEEPALIVE_S = 75.0
_LISTEN_BACKLOG = 4096  # thousands of connections may arrive in one burst
_STOP_GRACE_S = 0.05  # it stops at once, without waiting for pending replies


class CannotListen(Failure):
    """The address cannot be listened on, or the log file cannot be written."""


@dataclass(frozen=True, slots=True)
class RunningBackend:
    """A running backend, reachable at `url`."""

    url: str
    log: CallLog


@asynccontextmanager
async def running(
    config: SimulatorConfig | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RunningBackend]:
    """Serves in the current event loop until the context ends; port 0 picks a free port.

    Raises CannotListen. The log is readable after the end too.
    """
    config = config or SimulatorConfig()
    log = _open_log(config)
    runner = web.AppRunner(
        build_app(Simulation(config, log)),
        access_log=None,
        handler_cancellation=True,  # a client that leaves ends its call, which the log records
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=_STOP_GRACE_S,
    )
    try:
        await runner.setup()
        yield RunningBackend(await _listen(runner, host, port), log)
    finally:
        log.stop()
        await runner.cleanup()
        log.close()


def serve(config: SimulatorConfig, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C; calls `announce` with the URL when it is ready. Raises CannotListen."""
    _raise_open_files()
    asyncio.run(_serve_until_signal(config, host, port, announce))


async def _serve_until_signal(config: SimulatorConfig, host: str, port: int, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(config, host, port) as backend:
        announce(backend.url)
        await stop.wait()


def _open_log(config: SimulatorConfig) -> CallLog:
    try:
        return CallLog(config.log_path, config.log_size)
    except OSError as error:
        raise CannotListen(f"cannot write the call log {config.log_path}: {error.strerror}") from error


async def _listen(runner: web.AppRunner, host: str, port: int) -> str:
    """Opens the port and returns the URL."""
    try:
        await web.TCPSite(runner, host, port, backlog=_LISTEN_BACKLOG).start()
    except OSError as error:
        remedy = "free it or take another with --port; 0 picks a free one"
        raise CannotListen(f"cannot listen on {host} port {port} ({error.strerror}): {remedy}") from error
    bound_port = runner.addresses[0][1]
    return f"http://[{host}]:{bound_port}" if ":" in host else f"http://{host}:{bound_port}"


def _raise_open_files() -> None:
    """Raises the soft limit of open files, usually 1,024, because each call in flight holds a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS reports "unlimited" but refuses it: the soft limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
