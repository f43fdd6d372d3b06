"""The HTTP client of the adapters: httpx on aiohttp's connections, which stay cheap with thousands of calls in flight.

httpx's own pool walks all its connections for every request: 216 requests/s at 256 in flight, against 3,150 here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from urllib.parse import quote

import aiohttp
import httpx
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from httpx_aiohttp import AiohttpTransport

from llmqueue.backend import retry_after, sending
from llmqueue.backend.body import TooLarge, Undecodable, read_body
from llmqueue.backend.classify import MESSAGE_CHARS, reply_of_status
from llmqueue.types import Late, Reply, TransientError, Unreachable

CONNECT_TIMEOUT_S = 5.0
# A header takes ASCII only; keys of the usual kinds go out as they are.
KEY_CHARS = 1000
KEY_SAFE = "!#$&'()*+,/:;=?@[]-_.~ "
# Below the 5 s after which uvicorn, the usual server of such a backend, closes an idle connection: a request that
# meets the closing would look like a reset, and might be paid twice.
KEEPALIVE_S = 3.0
# What the headers say about the body does not hold any more once it has been read and decoded.
OF_THE_BODY = {b"content-encoding", b"content-length", b"transfer-encoding"}
# An answer is paid for, so this is far above any; what is larger is a backend gone mad, and is not read to its end.
MAX_REPLY_BYTES = 64 * 1024 * 1024
# Of an error only its words and its pause are of use.
MAX_ERROR_BYTES = 64 * 1024
MAX_PATHS = 100


class PunctualConnector(aiohttp.TCPConnector):
    """Hands out a connection only while the grant of the call is good, and notes when it did."""

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:  # noqa: ASYNC109 - aiohttp's signature
        connection = await super().connect(req, traces, timeout)
        try:
            sending.check()
        except sending.LateGrant:
            connection.release()
            raise
        return connection


class PunctualRequest(ClientRequest):
    """Checks once more in the very step that writes: before Python 3.12 that is a task of its own, begun later."""

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None
    ) -> None:
        try:
            sending.send_now()
        except sending.LateGrant as late:
            if conn.protocol is not None:
                conn.protocol.set_exception(late)  # what waits for the reply raises it; nothing was written
            conn.close()
            return
        await super().write_bytes(writer, conn, content_length)


class LegibleResponse(aiohttp.ClientResponse):
    """Makes the words behind the status text: bytes of another encoding would cost the answer, in httpx."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        started = await super().start(connection)
        self.reason = (self.reason or "").encode("utf-8", "replace").decode()
        return started


class Client(httpx.AsyncClient):
    """An httpx client that can also post straight to its transport.

    Nothing of what lies between is of use for a call (redirects, cookies, hooks, merging of URLs), and it takes longer
    than the call itself (docs/decisions.md, 8).
    """

    def __init__(self, base_url: str, headers: dict[str, str], transport: httpx.AsyncBaseTransport) -> None:
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        super().__init__(base_url=base_url, headers=headers, transport=transport, timeout=timeout)
        self._straight = transport
        self._usual: dict[str, httpx.Request] = {}  # by path: what all its calls have in common

    async def open(self, path: str, content: bytes, headers: Sequence[tuple[bytes, bytes]]) -> httpx.Response:
        """Posts JSON. Returns the response, to be read and closed by the caller; raises what httpx raises.

        The client's own headers are those that it has at the first call of a path.
        """
        usual = self._usual.get(path)
        if usual is None:
            usual = self._usual[path] = self._what_is_usual(path)
        all_headers = [*usual.headers.raw, *headers]
        request = httpx.Request("POST", usual.url, headers=all_headers, content=content, extensions=usual.extensions)
        return await self._straight.handle_async_request(request)

    def _what_is_usual(self, path: str) -> httpx.Request:
        if len(self._usual) >= MAX_PATHS:  # an adapter that writes ids into them
            self._usual.clear()
        usual = self.build_request("POST", path)
        usual.headers.setdefault("Content-Type", "application/json")
        usual.headers.pop("Content-Length", None)
        return usual


def client(base_url: str, headers: dict[str, str]) -> Client:
    """Returns a client without limits or timeouts of its own: slots and attempts have theirs."""
    # Reading the CA certificates takes up to 0.1 s: now, and not of the first grant's time.
    trusted = httpx.create_ssl_context()

    def session() -> aiohttp.ClientSession:
        connector = PunctualConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=trusted)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=PunctualRequest,
            response_class=LegibleResponse,
        )

    # Compressed replies are read if they come, and not asked for: their size is not known before they are.
    headers = {"Accept-Encoding": "identity", **headers}
    return Client(base_url, headers, AiohttpTransport(verify=trusted, client=session))


async def post(http: Client, path: str, body: object, key: str) -> httpx.Response | Reply:
    """Returns the response of a 200, read and decoded, else the reply that its status or the failure stands for."""
    sent_key = header_key(key).encode()
    try:
        stream = await http.open(path, json_bytes(body), [(b"Idempotency-Key", sent_key)])
        try:
            response = await _read(stream)
        finally:
            await stream.aclose()
    except sending.LateGrant:
        return Late()
    except TooLarge as error:
        return TransientError("reply_too_large", f"the reply is larger than {error.limit:,} bytes")
    except Undecodable as error:
        return TransientError("unreadable_reply", str(error)[:MESSAGE_CHARS])
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        return _failed(error)
    # as bytes: httpx finds out the encoding of all headers to tell the value of one
    if any(name.lower() == b"idempotency-key" and value != sent_key for name, value in response.headers.raw):
        return TransientError("reply_of_another", "the reply carries the Idempotency-Key of another call")
    return response if response.status_code == httpx.codes.OK else reply_of(response)


async def _read(stream: httpx.Response) -> httpx.Response:
    """Reads at most what is of use. Leaving the stream early closes its connection."""
    if stream.status_code == httpx.codes.OK:
        content = await read_body(stream, MAX_REPLY_BYTES)
    else:
        content = await read_body(stream, MAX_ERROR_BYTES, is_cut=True)
    # as bytes: httpx takes only ASCII for text, and a backend may send anything
    headers = [(name, value) for name, value in stream.headers.raw if name.lower() not in OF_THE_BODY]
    return httpx.Response(stream.status_code, headers=headers, content=content)


def json_bytes(body: object) -> bytes:
    """As httpx would send it."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def header_key(key: str) -> str:
    """Returns a key as a header can hold it: as it is in the usual case, percent-encoded, hashed when it is long."""
    encoded = quote(key, safe=KEY_SAFE)
    return encoded if len(encoded) <= KEY_CHARS else hashlib.sha256(key.encode()).hexdigest()


def _failed(error: Exception) -> Reply:
    """Whether anything was sent decides: aiohttp's and httpx's exception classes do not tell it reliably."""
    message = why(error)
    noted = sending.current.get()
    if noted is None or noted.sent_at is None:
        return Unreachable(message)
    return TransientError("connection_lost", message)


def reply_of(response: httpx.Response) -> Reply:
    """Returns what a status other than 200 stands for."""
    status = response.status_code
    message = f"HTTP {status} {_excerpt(response)}".strip()
    if httpx.codes.is_redirect(status):
        return TransientError(
            f"http_{status}", f"HTTP {status}: a redirect to {_target(response)}, which is not followed"
        )
    asked_s = retry_after.read(response.headers, response.content)
    if asked_s is None and status == httpx.codes.TOO_MANY_REQUESTS:
        asked_s = retry_after.until_reset(response.headers)
    return reply_of_status(status, message, asked_s)


def _target(response: httpx.Response) -> str:
    """Where to, without what may be secret in it."""
    location: str = response.headers.get("Location", "nowhere")
    return location.partition("?")[0][:MESSAGE_CHARS]


def _excerpt(response: httpx.Response) -> str:
    # Not response.text: it believes whatever charset the backend names.
    return " ".join(response.content[: 4 * MESSAGE_CHARS].decode("utf-8", "replace").split())[:MESSAGE_CHARS]


async def probe(base_url: str) -> str | None:
    """Returns None when anything answers at the base URL over a fresh connection, else why not."""
    async with client(base_url, {}) as http:
        try:
            await http.head("/", timeout=CONNECT_TIMEOUT_S)
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            return why(error)
    return None


def why(error: BaseException) -> str:
    """Returns what the operating system said, which the HTTP libraries wrap in names of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorDNSError):
            return f"unknown host name {cause.host}"
        if isinstance(cause, aiohttp.ClientConnectorCertificateError):
            return _untrusted(cause)[:MESSAGE_CHARS]
        if isinstance(cause, aiohttp.ClientConnectorSSLError):
            return f"{cause.host} port {cause.port}: no TLS there ({_reason(cause.os_error)})"[:MESSAGE_CHARS]
        if isinstance(cause, aiohttp.ClientConnectorError) and cause.os_error.errno is not None:
            return f"{cause.host} port {cause.port}: {os.strerror(abs(cause.os_error.errno)).lower()}"[:MESSAGE_CHARS]
        cause = cause.__cause__
    return f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]


def _untrusted(error: aiohttp.ClientConnectorCertificateError) -> str:
    certificate = error.certificate_error
    said = getattr(certificate, "verify_message", "") or _reason(certificate)
    remedy = "if its certificate is signed by a CA of your own, name that CA's file in SSL_CERT_FILE"
    return f"{error.host} port {error.port}: its certificate is not trusted ({said}); {remedy}"


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or type(error).__name__).lower().replace("_", " ")
