"""The spill: a worker's file of finished ends that wait for the database, LLMQUEUE_HOME/spill/<worker>.jsonl.

The first line says whose ends they are and which database they belong to, each other line is an end (codec.py). The
owner holds a lock on the file as long as it lives, and kill -9 frees it: a file whose lock is free has no owner any
more, and a worker that starts here inherits it (inheritance.py). A file is removed when the database has given an
outcome for every end in it; sent twice, an end is settled once, so nothing is marked in between.

Answers are the user's: folder 0700, file 0600. What append() has returned survives a loss of power.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from llmqueue.spill.codec import Damaged, decode, frame
from llmqueue.types import Settlement

FOLDER = "spill"
SUFFIX = ".jsonl"
# Not inherited any more: for a person to look at.
KEPT = ".kept"
FORMAT = 2
MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Database:
    """Which database it is: the same after a failover to its standby, another after a dump was restored elsewhere."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the file an end is."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Left:
    """An end that a former worker left, without its answer, and where that is; `ended_at` as in codec.Record."""

    place: Place
    settlement: Settlement
    ended_at: float | None


class SpillFull(OSError):
    """The file would grow beyond its bound."""


class Spill:
    """One worker's file, made with the first append and removed by finish(). Safe to use from several threads."""

    def __init__(self, folder: Path, worker: UUID, database: Database, max_bytes: int = MAX_BYTES) -> None:
        self.worker = worker
        self.database = database
        self.path = folder / f"{worker}{SUFFIX}"
        self._max_bytes = max_bytes
        self._mutex = Lock()  # held over a write
        self._counting = Lock()
        self._fd: int | None = None
        self._end = 0
        self._waiting = 0
        self._keeps = False

    @property
    def waiting(self) -> int:
        """How many ends in the file are not settled."""
        return self._waiting

    @property
    def is_done(self) -> bool:
        """There is a file, and nothing waits in it."""
        return self._fd is not None and not self._waiting

    def append(self, records: Sequence[bytes]) -> list[Place]:
        """Returns where the records are, once they are on disk; raises OSError, and then holds none of them."""
        with self._mutex:
            fd = self._create() if self._fd is None else self._fd
            data = b"".join(records)
            if self._end + len(data) > self._max_bytes:
                raise SpillFull(0, f"{self.path} would be larger than {self._max_bytes >> 20} MB")
            try:
                _write(fd, data, self._end)
                os.fsync(fd)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(fd, self._end)
                raise
            places = []
            for record in records:
                places.append(Place(self._end, len(record)))
                self._end += len(record)
            with self._counting:
                self._waiting += len(records)
            return places

    def read(self, place: Place) -> Settlement:
        """Raises Damaged or OSError."""
        if self._fd is None:
            raise Damaged("the file has gone")
        parts: list[bytes] = []
        offset, missing = place.offset, place.length
        while missing and (part := os.pread(self._fd, missing, offset)):
            parts.append(part)
            offset += len(part)
            missing -= len(part)
        return decode(b"".join(parts)).settlement

    def keep(self) -> None:
        """Says that a person should look at the file in the end: an answer in it could not be read."""
        with self._counting:
            self._keeps = self._fd is not None

    def settled(self, *, is_known: bool) -> None:
        """Says that the database has dealt with an end of the file. One that it does not know is kept in the end."""
        with self._counting:
            self._waiting -= 1
            self._keeps = self._keeps or not is_known

    def finish(self) -> Path | None:
        """Removes the file if nothing waits in it. Returns where it was moved to instead, if a person should look.

        Raises OSError. If the file is still there then it is still ours, to write to and to finish; else it is closed.
        """
        with self._mutex:
            if self._fd is None or self._waiting:
                return None
            kept = _free_name(self.path) if self._keeps else None
            if kept is not None:
                self.path.rename(kept)
            else:
                self.path.unlink(missing_ok=True)
            # Closed whatever the sync says: what append() wrote to a file without a name would be lost. A name that
            # comes back after a loss of power is of a file in which all is settled: harmless.
            self.close()
            _sync_folder(self.path.parent)
            return kept

    def close(self) -> None:
        """Lets go of the file, and of its lock: who comes next inherits what waits in it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._end = 0
            self._keeps = False

    def _create(self) -> int:
        make_folder(self.path.parent)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            database = {"id": self.database.id, "name": self.database.name}
            header = frame({"llmqueue_spill": FORMAT, "worker": str(self.worker), "database": database})
            _write(fd, header, 0)
            # The name must outlive a loss of power as surely as what append() writes under it.
            _sync_folder(self.path.parent)
        except OSError:
            self.path.unlink(missing_ok=True)
            os.close(fd)
            raise
        self._fd = fd
        self._end = len(header)
        return fd

    def take_over(self, path: Path, fd: int, end: int, waiting: int, *, keeps: bool) -> None:
        """Makes it the locked file of a former owner, with `waiting` ends before the offset `end`."""
        self.path = path
        self._fd = fd
        self._end = end
        self._waiting = waiting
        self._keeps = keeps


def read_database(conn: psycopg.Connection[TupleRow]) -> Database:
    """Returns which database this is."""
    row = conn.execute("select oid::text, datname from pg_database where datname = current_database()").fetchone()
    oid, name = row or ("", "")
    try:
        system = conn.execute("select system_identifier::text from pg_control_system()").fetchone()
    except psycopg.errors.InsufficientPrivilege:
        system = None
    return Database(f"{system[0] if system else 'unknown'}/{oid}", str(name))


def make_folder(folder: Path) -> None:
    """Makes the folder, closed to others; raises OSError."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _free_name(path: Path) -> Path:
    number = 1
    while (name := path.with_suffix(f".{number}{KEPT}")).exists():
        number += 1
    return name
