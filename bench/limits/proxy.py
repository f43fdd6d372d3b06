"""The network between a worker and the backend: delays the first bytes of each request by up to MOST_S seconds.

    python -m bench.limits.proxy UPSTREAM_PORT MOST_S

The network delay to a provider differs from call to call. It comes after the worker has sent the call and checked the
grant, so the worker cannot see it.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from random import Random

CHUNK = 65_536
SEED = 1


class Way:
    """One connection. A request begins with the first bytes after a reply."""

    def __init__(self, most_s: float, rng: Random) -> None:
        self._most_s = most_s
        self._rng = rng
        self._begins = True

    async def up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                if self._begins:
                    self._begins = False
                    await asyncio.sleep(self._rng.uniform(0, self._most_s))
                writer.write(data)
                await writer.drain()

    async def down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                self._begins = True
                writer.write(data)
                await writer.drain()


async def serve(upstream_port: int, most_s: float) -> None:
    rng = Random(SEED)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", upstream_port)
        way = Way(most_s, rng)
        directions = [
            asyncio.create_task(way.up(reader, far_writer)),
            asyncio.create_task(way.down(far_reader, writer)),
        ]
        try:
            # The end of one direction ends both: a worker that aborts a call, or a backend that closes.
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
