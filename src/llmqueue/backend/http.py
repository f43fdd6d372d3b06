"""The HTTP client of the adapters: httpx on aiohttp's connections, which stay cheap with thousands of calls in flight.

httpx's own pool walks all its connections for every request: 216 requests/s at 256 in flight, against 3,150 here.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import httpx
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from httpx_aiohttp import AiohttpTransport

from llmqueue.backend import sending
from llmqueue.models import Breakdown, Late, Refusal, Rejection, Reply, Unreachable

CONNECT_TIMEOUT_S = 10.0
# Below the 5 s after which uvicorn, the usual server of such a backend, closes an idle connection: a request that
# meets the closing would look like a reset, and might be paid twice.
KEEPALIVE_S = 3.0
REFUSALS = {429: "rate_limited", 503: "unavailable", 529: "overloaded"}
# Our credentials are wrong, not the task: nothing is buried for them.
CREDENTIALS = {401, 407}
CREDENTIALS_PAUSE_S = 60.0
MESSAGE_CHARS = 300
# A backend that says "in a year" is mistaken more often than right; a day later it may say so again.
RETRY_AFTER_CAP_S = 86_400.0


class PunctualConnector(aiohttp.TCPConnector):
    """Hands out a connection only while the grant of the call is good, and notes when it did."""

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:  # noqa: ASYNC109 - aiohttp's signature
        connection = await super().connect(req, traces, timeout)
        try:
            sending.send_now()
        except sending.LateGrant:
            connection.release()
            raise
        return connection


def client(base_url: str, headers: dict[str, str]) -> httpx.AsyncClient:
    """Returns a client without limits or timeouts of its own: slots and attempts have theirs."""

    def session() -> aiohttp.ClientSession:
        connector = PunctualConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=httpx.create_ssl_context())
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    transport = AiohttpTransport(client=session)
    return httpx.AsyncClient(base_url=base_url, headers=headers, transport=transport, timeout=timeout)


async def post(http: httpx.AsyncClient, path: str, body: object, key: str) -> httpx.Response | Reply:
    """Returns the response of a 200, else the reply that its status or the failure stands for."""
    try:
        response = await http.post(path, json=body, headers={"Idempotency-Key": key})
    except sending.LateGrant:
        return Late()
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        return _failed(error)
    if response.status_code == httpx.codes.OK:
        return response
    return _refused(response)


def _failed(error: Exception) -> Reply:
    """Whether anything was sent decides: aiohttp's and httpx's exception classes do not tell it reliably."""
    message = f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]
    noted = sending.current.get()
    if noted is None or noted.sent_at is None:
        return Unreachable(message)
    return Breakdown("connection_lost", message)


def _refused(response: httpx.Response) -> Reply:
    status = response.status_code
    message = f"HTTP {status} {_excerpt(response)}".strip()
    if status in REFUSALS:
        return Refusal(REFUSALS[status], message, retry_after_s(response.headers.get("retry-after")))
    if status in CREDENTIALS:
        return Refusal("credentials_refused", message, CREDENTIALS_PAUSE_S)
    if status == httpx.codes.REQUEST_TIMEOUT or not httpx.codes.is_client_error(status):
        return Breakdown(f"http_{status}", message)
    return Rejection(f"http_{status}", message)


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:MESSAGE_CHARS].replace("\x00", "")


def retry_after_s(value: str | None) -> float | None:
    """Returns the seconds of a Retry-After header (a number or an HTTP date), or None if there is no readable one."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return min(max(0.0, seconds), RETRY_AFTER_CAP_S) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, seconds), RETRY_AFTER_CAP_S)
    except (ValueError, TypeError):
        return None


async def probe(http: httpx.AsyncClient) -> str | None:
    """Returns None when anything answers at the base URL, else why not."""
    try:
        await http.head("/", timeout=CONNECT_TIMEOUT_S)
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        return f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]
    return None
