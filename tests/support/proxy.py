"""A TCP proxy that simulates network faults: it can cut connections, become silent, and be restored."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 65_536
# makes close() send a reset instead of a FIN
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on 127.0.0.1:`port` and forwards to a TCP address, or to a Unix socket given by its path."""

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._flows = threading.Event()
        self._flows.set()
        self._stranded: list[threading.Event] = []
        self._is_refusing = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Resets every connection, and every new one at once."""
        self._is_refusing = True
        self.reset()

    def reset(self) -> None:
        """Resets every connection; new ones are served."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def silence(self) -> None:
        """Makes the link half-open: connections stay and new ones are accepted, but no byte passes."""
        self._flows.clear()

    def strand(self) -> None:
        """Makes the present connections half-open for ever: no byte passes, but new connections work."""
        self._flows.clear()
        self._stranded.append(self._flows)
        self._flows = threading.Event()
        self._flows.set()

    def lead_to(self, target: tuple[str, int] | str) -> None:
        """Leads to another server, as after a failover. Connections to the old server are reset."""
        self._target = target
        self.reset()

    def restore(self) -> None:
        """Serves again, and forwards the bytes that silence() held back."""
        self._is_refusing = False
        self._flows.set()

    def close(self) -> None:
        self._listener.close()
        self.reset()
        for flows in (*self._stranded, self._flows):
            flows.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_refusing:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                near.close()
                continue
            try:
                far = self._connect()
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.add((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink, (near, far), self._flows), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, tuple):
            return socket.create_connection(self._target)
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._target)
        return far

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        flows: threading.Event,
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                flows.wait()
                sink.sendall(data)
        flows.wait()
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def proxied(target: tuple[str, int] | str) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
