"""The spill: a worker's file of finished ends that wait for the database, LLMQUEUE_HOME/spill/<worker>.jsonl.

The first line says whose ends they are and which database they belong to, each other one is an end (record.py). The
owner holds a lock on the file as long as it lives, also through kill -9: a file whose lock is free has no owner any
more, and a worker that starts here inherits it (recovery.py). A file goes when the database has said something of every
end in it; sent twice, an end is settled once, so nothing is marked in between.

Answers are the user's: folder 0700, file 0600. What append() has returned survives a loss of power.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from llmqueue.spill.codec import Damaged, decode, frame, unframe
from llmqueue.types import Settlement

FOLDER = "spill"
SUFFIX = ".jsonl"
# Not inherited any more: for a person to look at.
KEPT = ".kept"
FORMAT = 1
MAX_BYTES = 1 << 30
# An owner that has just made its file has not locked it yet.
EMPTY_FOR_S = 60.0


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
    """An end that a former worker left, without its answer, and where that is; `ended_at` as in Record."""

    place: Place
    settlement: Settlement
    ended_at: float | None


class NotOurs(Exception):
    """A spill that is left alone; `reason` and `remedy` are for a person."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


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

    def _inherit(self, fd: int, end: int, waiting: int, *, keeps: bool) -> None:
        self._fd = fd
        self._end = end
        self._waiting = waiting
        self._keeps = keeps


@dataclass(frozen=True, slots=True)
class Inheritance:
    """A spill whose owner is gone, now locked by us; `damaged` lines could not be read, `is_torn`: but for the last."""

    spill: Spill
    left: Sequence[Left]
    damaged: int
    is_torn: bool


def inherit(path: Path, database: Database) -> Inheritance | None:
    """Takes over a file whose lock is free. Returns None when it is not, or when there is nothing in it.

    Raises NotOurs for a file that must be left alone, OSError for one that cannot be read.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    inheritance = None
    try:
        if _is_free(fd, path):
            inheritance = _take_over(fd, path, database)
    finally:
        if inheritance is None:
            os.close(fd)
    return inheritance


def _is_free(fd: int, path: Path) -> bool:
    """Locks the file; no, if somebody has it, or had it until now and has removed it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = path.stat()
    except (BlockingIOError, FileNotFoundError):
        return False
    mine = os.fstat(fd)
    if mine.st_size == 0:
        if time.time() - mine.st_mtime > EMPTY_FOR_S:
            path.unlink(missing_ok=True)
        return False
    return os.path.samestat(there, mine)


def _take_over(fd: int, path: Path, database: Database) -> Inheritance:
    left: list[Left] = []
    damaged = []
    with os.fdopen(os.dup(fd), "rb") as file:
        first = file.readline()
        worker, owner = _read_header(first)
        if owner.id != database.id:
            raise NotOurs(
                f"it belongs to another database ({owner.name})",
                "start a worker of that database with this LLMQUEUE_HOME, or delete the file and its answers",
            )
        end = len(first)
        for line in file:
            place = Place(end, len(line))
            end += len(line)
            try:
                record = decode(line)
                left.append(Left(place, record.settlement.without_answer(), record.ended_at))
            except Damaged:
                damaged.append(end)
    # A last line that is cut off was never relied on. Damage before it is no crash: a person should look.
    is_torn = damaged == [end]
    spill = Spill(path.parent, worker, owner)
    spill.path = path
    spill._inherit(fd, end, len(left), keeps=bool(damaged) and not is_torn)
    return Inheritance(spill, left, len(damaged), is_torn)


def _read_header(line: bytes) -> tuple[UUID, Database]:
    delete = "delete it if you do not need it"
    try:
        value = unframe(line)
        if value["llmqueue_spill"] != FORMAT:
            raise NotOurs("it was written by another release of llmqueue", "start that release here once")
        return UUID(value["worker"]), Database(value["database"]["id"], value["database"]["name"])
    except (KeyError, TypeError, ValueError):
        raise NotOurs("its first line is not that of a spill file", delete) from None


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
