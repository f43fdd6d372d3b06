"""Takes over the spill file of a worker that is gone: its lock is free."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from llmqueue.spill.codec import Damaged, decode, unframe
from llmqueue.spill.file import FORMAT, Database, Left, Place, Spill

# An owner that has just made its file has not locked it yet.
EMPTY_FOR_S = 60.0


class NotOurs(Exception):
    """A spill that is left alone; `reason` and `remedy` are for a person."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Inheritance:
    """A spill whose owner is gone, now locked by us; `damaged` lines cannot be read, `is_torn`: only the last one."""

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
    spill.take_over(path, fd, end, len(left), keeps=bool(damaged) and not is_torn)
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
