"""A database of its own on an embedded server with default durability, installed, thrown away afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmqueue import embedded
from llmqueue.adoption.adopt import AdoptionSpec, install


@contextmanager
def embedded_database(**options: str) -> Iterator[str]:
    """Yields its DSN; `options` are settings of the server."""
    home = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    home.chmod(0o755)  # as root the server runs as a user of its own, who must get in
    try:
        dsn = embedded.start(home, options=options)
        install(dsn, AdoptionSpec())
        yield dsn
    finally:
        embedded.leave(home)
        shutil.rmtree(home, ignore_errors=True)
