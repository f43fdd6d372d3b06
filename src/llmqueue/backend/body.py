"""Reads the body of a reply within a bound, compressed or not: a backend may send 10 GB, or 64 kB that become so."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import httpx

# zlib finds out by itself whether it is gzip or zlib; a deflate without a header is told from them by its error.
WITH_HEADER = 32 + zlib.MAX_WBITS
RAW_DEFLATE = -zlib.MAX_WBITS


class TooLarge(Exception):
    """The body is larger than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class Undecodable(Exception):
    """The body is not what its Content-Encoding says."""


async def read_body(response: httpx.Response, limit: int, *, is_cut: bool = False) -> bytes:
    """Returns the decoded body; with `is_cut` only its first `limit` bytes.

    Raises TooLarge when there is more, Undecodable, and what the client raises while it reads.
    """
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > limit and not is_cut:
        raise TooLarge(limit)
    raw = await _take(response.aiter_raw(), limit, is_cut=is_cut)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    match encoding:
        case "identity" | "":
            return raw
        case "gzip" | "x-gzip" | "deflate":
            return _inflate(raw, limit, is_cut=is_cut)
        case _ if is_cut:
            return b""
    raise Undecodable(f"the reply is encoded as {encoding!r}, which was not asked for")


async def _take(chunks: AsyncIterator[bytes], limit: int, *, is_cut: bool) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            if not is_cut:
                raise TooLarge(limit)
            break
    return b"".join(parts)[:limit]


def _inflate(raw: bytes, limit: int, *, is_cut: bool) -> bytes:
    for window_bits in (WITH_HEADER, RAW_DEFLATE):
        inflater = zlib.decompressobj(window_bits)
        try:
            content = inflater.decompress(raw, limit + 1)
        except zlib.error:
            continue
        if len(content) > limit and not is_cut:
            raise TooLarge(limit)
        if not inflater.eof and len(content) <= limit and not is_cut:
            raise Undecodable("the reply is cut off")
        return content[:limit]
    if is_cut:
        return b""
    raise Undecodable("the reply is not compressed as its Content-Encoding says")
