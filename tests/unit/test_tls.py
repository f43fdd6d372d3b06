"""TLS to the backend: a CA of one's own is named in SSL_CERT_FILE, and whoever else answers is sent nothing."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from llmqueue.backend import Call, sending
from llmqueue.backend.models_backend import Fields, ModelsBackend
from llmqueue.types import Answer, Reply, Unreachable, Usage
from tests.support.serving import serving

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.fixture(autouse=True)
def untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@asynccontextmanager
async def server(context: ssl.SSLContext | None, asked: list[str]) -> AsyncIterator[int]:
    """The port of a backend with that certificate; None: without TLS."""

    async def single(request: web.Request) -> web.Response:
        asked.append((await request.json())["prompt"])
        return web.json_response({"answer": "42"})

    async with serving({"/single": single}, ssl_context=context) as port:
        yield port


def certified(ca: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return context


async def ask(url: str) -> tuple[Reply, str | None]:
    """A call's reply, and what the gate's probe says."""
    backend = ModelsBackend(url, "secret", Fields())
    noted = sending.Sending(time.monotonic() + 60)
    sending.current.set(noted)
    try:
        reply = await backend.call(Call("m", "why?", None, "1:0", 60.0))
        assert (noted.sent_at is None) == isinstance(reply, Unreachable)
        return reply, await backend.probe()
    finally:
        await backend.aclose()


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_of_the_ca_in_ssl_cert_file_is_trusted(ca: trustme.CA) -> None:
    asked: list[str] = []
    async with server(certified(ca, "localhost"), asked) as port:
        assert await ask(f"https://localhost:{port}") == (Answer("42", Usage()), None)

    assert asked == ["why?"]


async def test_an_unknown_ca_is_sent_nothing_and_the_remedy_is_named(ca: trustme.CA) -> None:
    asked: list[str] = []
    async with server(certified(ca, "localhost"), asked) as port:
        reply, why = await ask(f"https://localhost:{port}")

    assert isinstance(reply, Unreachable)
    assert why is not None
    for said in (reply.message, why):
        assert f"localhost port {port}: its certificate is not trusted (" in said
        assert "SSL_CERT_FILE" in said
    assert asked == []


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_of_another_host_is_sent_nothing(ca: trustme.CA) -> None:
    asked: list[str] = []
    async with server(certified(ca, "somebody.example"), asked) as port:
        reply, why = await ask(f"https://localhost:{port}")

    assert isinstance(reply, Unreachable)
    assert why is not None
    assert "not trusted" in why
    assert "localhost" in why.partition("(")[2], "what is wrong with it: the name"
    assert asked == []


async def test_a_server_without_tls_is_told_from_an_untrusted_one() -> None:
    asked: list[str] = []
    async with server(None, asked) as port:
        reply, why = await ask(f"https://localhost:{port}")

    assert isinstance(reply, Unreachable)
    assert why is not None
    assert f"localhost port {port}: no TLS there" in why
    assert asked == []
