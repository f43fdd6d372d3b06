"""The spill file: what is in it comes back as it was, what is torn is found out, and nobody else's is touched."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmqueue.spill import file as spill_module
from llmqueue.spill.codec import Damaged, decode, encode, frame, unframe
from llmqueue.spill.file import Database, Place, Spill, SpillFull
from llmqueue.spill.inheritance import Inheritance, NotOurs, inherit
from llmqueue.types import Bury, Complete, Decision, Grant, Release, Retry, Settlement, Task, Usage

HERE = Database("7312/16384", "production")
WORKER = UUID(int=7)


def end(decision: Decision, fence: int = 1, key: int | str | UUID = 1) -> Settlement:
    return Settlement(Grant("m", Task(key, fence, 2, 5, 0, "why?", None), 5.0, 6.0, 60.0), decision, 0.01, 1.5, 9)


def answer(text: object = "42", fence: int = 1) -> Settlement:
    return end(Complete(text, Usage(3, None)), fence)


def write(folder: Path, *settlements: Settlement, worker: UUID = WORKER, database: Database = HERE) -> list[Place]:
    """What a worker that was killed has left."""
    spill = Spill(folder, worker, database)
    places = spill.append([encode(settlement) for settlement in settlements])
    spill.close()
    return places


def the_file(folder: Path) -> Path:
    [path] = folder.glob("*.jsonl")
    return path


def taken(folder: Path, database: Database = HERE) -> Inheritance:
    inheritance = inherit(the_file(folder), database)
    assert inheritance is not None
    return inheritance


# --- records ------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=()))  # lone surrogates and NUL too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
counts = st.none() | st.integers(0, 2**31 - 1)
seconds = st.none() | st.floats(0, 1e9)
decisions = st.one_of(
    st.builds(Complete, values, st.builds(Usage, counts, counts)),
    st.builds(
        Retry, texts, texts, st.floats(0, 1e9), st.booleans(), st.none() | st.just("quota"), seconds, st.booleans()
    ),
    st.builds(Bury, texts, texts, st.none() | texts),
    st.builds(Release, texts),
)
keys = st.integers() | st.text(min_size=1) | st.uuids()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    decisions,
    keys,
    st.integers(1, 2**63 - 1),
    st.none() | st.floats(0, 1e9),
    st.none() | st.integers(0, 2**31 - 1),
)
def test_every_end_comes_back_as_it_was(
    decision: Decision, key: int | str | UUID, fence: int, latency_s: float | None, estimate: int | None
) -> None:
    settlement = Settlement(
        Grant("m", Task(key, fence, 2, 5, 0, "why?", None), 5.0, 6.0, 60.0), decision, latency_s, latency_s, estimate
    )

    line = encode(settlement, 1.5)

    record = decode(line)
    read = record.settlement
    assert record.ended_at == 1.5
    assert read.decision == decision
    assert (read.sent_after_s, read.latency_s, read.char_class_estimate) == (latency_s, latency_s, estimate)
    assert (str(read.grant.task.id), read.grant.task.fence, read.grant.task.attempt_no) == (str(key), fence, 2)
    assert line.isascii()
    assert line.count(b"\n") == 1


@pytest.mark.parametrize(
    "text", ["\U0001f680" * 250_000, "\x00\ud800\n\r", "x" * 5_000_000], ids=["1 MB", "bad", "5 MB"]
)
def test_large_and_strange_answers_come_back(tmp_path: Path, text: str) -> None:
    [place] = write(tmp_path, answer(text))

    assert taken(tmp_path).spill.read(place).decision == Complete(text, Usage(3, None))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_no_line_that_was_cut_off_or_changed_is_believed(data: st.DataObject) -> None:
    line = encode(answer("some answer"))
    at = data.draw(st.integers(0, len(line) - 1))
    changed = bytes([line[at] ^ data.draw(st.integers(1, 255))])

    for wrong in (line[:at], line[:at] + changed + line[at + 1 :]):
        try:
            believed = decode(wrong)
        except Damaged:
            continue
        # a changed sign or case in the numbers before the text says the same
        assert believed == decode(line)
        assert at < line.index(b"{")


def test_the_prompt_is_not_written() -> None:
    assert b"why?" not in encode(answer())


def test_a_line_that_is_json_of_something_else_is_damaged() -> None:
    with pytest.raises(Damaged):
        decode(frame({"some": "thing"}))
    with pytest.raises(Damaged):
        decode(frame(["complete"]))
    assert unframe(frame([1, "a"])) == [1, "a"]


# --- the owner ----------------------------------------------------------------------------------------------------


def test_folder_and_file_are_closed_to_others(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        write(tmp_path / "home" / "spill", answer())
    finally:
        os.umask(umask)

    folder = tmp_path / "home" / "spill"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert the_file(folder).stat().st_mode & 0o777 == 0o600


class Disk:
    """Notes what is made durable, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self._pwrite, self._fsync = os.pwrite, os.fsync
        monkeypatch.setattr(spill_module.os, "pwrite", self.pwrite)  # type: ignore[attr-defined]
        monkeypatch.setattr(spill_module.os, "fsync", self.fsync)  # type: ignore[attr-defined]
        self.fails_with: int | None = None
        self.fails_for_folders_with: int | None = None
        self.room = 1 << 60

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self.steps.append("write")
        if offset + len(data) > self.room:
            if self.room > offset:
                return self._pwrite(fd, data[: self.room - offset], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        is_folder = Path(f"/proc/self/fd/{fd}").resolve().is_dir()
        self.steps.append("sync folder" if is_folder else "sync file")
        if self.fails_with is not None and not is_folder:
            raise OSError(self.fails_with, os.strerror(self.fails_with))
        if self.fails_for_folders_with is not None and is_folder:
            raise OSError(self.fails_for_folders_with, os.strerror(self.fails_for_folders_with))
        self._fsync(fd)


def test_what_append_returned_is_on_disk_name_and_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    spill = Spill(tmp_path / "spill", WORKER, HERE)

    spill.append([encode(answer())])
    first = [*disk.steps]
    disk.steps.clear()
    spill.append([encode(answer()), encode(answer())])

    assert first == ["sync folder", "write", "sync folder", "write", "sync file"]
    assert disk.steps == ["write", "sync file"]


def test_a_removal_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spill = Spill(tmp_path, WORKER, HERE)
    spill.append([encode(answer())])
    spill.settled(is_known=True)
    disk = Disk(monkeypatch)

    assert spill.finish() is None

    assert disk.steps == ["sync folder"]
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_cannot_be_synced_leaves_no_file_without_a_name_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill = Spill(tmp_path, WORKER, HERE)
    spill.append([encode(answer("first"))])
    spill.settled(is_known=True)
    disk = Disk(monkeypatch)
    disk.fails_for_folders_with = errno.EIO

    with pytest.raises(OSError, match="Input/output"):
        spill.finish()
    disk.fails_for_folders_with = None
    spill.append([encode(answer("second"))])
    spill.close()

    [left] = taken(tmp_path).left
    assert left.place.offset > 0


def test_a_file_that_cannot_be_removed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spill = Spill(tmp_path, WORKER, HERE)
    spill.append([encode(answer("first"))])
    spill.settled(is_known=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", read_only)
        with pytest.raises(OSError, match="read-only"):
            spill.finish()

    [place] = spill.append([encode(answer("second"))])
    assert spill.read(place).decision == Complete("second", Usage(3, None))
    spill.settled(is_known=True)
    assert spill.finish() is None
    assert list(tmp_path.iterdir()) == []


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "the disk is read-only")


@pytest.mark.parametrize("why", ["no space", "the disk is broken"])
def test_a_failed_write_leaves_what_was_there_and_the_next_one_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    spill = Spill(tmp_path, WORKER, HERE)
    [first] = spill.append([encode(answer("first"))])
    disk = Disk(monkeypatch)

    if why == "no space":
        disk.room = spill.path.stat().st_size + 20  # half a record goes through
    else:
        disk.fails_with = errno.EIO
    with pytest.raises(OSError, match=r"No space|Input/output"):
        spill.append([encode(answer("lost" * 100))])
    disk.room, disk.fails_with = 1 << 60, None
    [second] = spill.append([encode(answer("2"))])
    spill.close()

    inheritance = taken(tmp_path)
    assert [left.place for left in inheritance.left] == [first, second]
    assert (inheritance.damaged, inheritance.spill.waiting) == (0, 2)


def test_a_file_that_could_not_be_begun_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.room = 0
    spill = Spill(tmp_path, WORKER, HERE)

    with pytest.raises(OSError, match="No space"):
        spill.append([encode(answer())])
    assert list(tmp_path.iterdir()) == []

    disk.room = 1 << 60
    spill.append([encode(answer())])
    assert spill.waiting == 1


def test_the_file_does_not_grow_beyond_its_bound(tmp_path: Path) -> None:
    spill = Spill(tmp_path, WORKER, HERE, max_bytes=2000)
    spill.append([encode(answer("x" * 1000))])

    with pytest.raises(SpillFull):
        spill.append([encode(answer("x" * 1000))])

    spill.append([encode(answer("small"))])
    assert spill.path.stat().st_size <= 2000


def test_the_file_stays_until_its_last_end_is_settled(tmp_path: Path) -> None:
    spill = Spill(tmp_path, WORKER, HERE)
    spill.append([encode(answer(fence=1)), encode(answer(fence=2))])

    spill.settled(is_known=True)
    assert (spill.is_done, spill.finish()) == (False, None)
    assert spill.path.exists()

    spill.settled(is_known=True)
    assert spill.is_done
    spill.finish()
    assert not spill.path.exists()


def test_an_end_that_the_database_does_not_know_is_kept_for_a_person(tmp_path: Path) -> None:
    for number in (1, 2):
        spill = Spill(tmp_path, WORKER, HERE)
        spill.append([encode(answer("precious"))])
        spill.settled(is_known=False)

        assert spill.finish() == tmp_path / f"{WORKER}.{number}.kept"

    assert list(tmp_path.glob("*.jsonl")) == []
    assert b"precious" in (tmp_path / f"{WORKER}.2.kept").read_bytes()


def test_a_second_outage_begins_a_new_file(tmp_path: Path) -> None:
    spill = Spill(tmp_path, WORKER, HERE)
    spill.append([encode(answer("first"))])
    spill.settled(is_known=True)
    spill.finish()

    [place] = spill.append([encode(answer("second"))])

    assert spill.read(place).decision == Complete("second", Usage(3, None))
    spill.close()
    assert len(taken(tmp_path).left) == 1


# --- the recovery -----------------------------------------------------------------------------------------------------


def test_an_heir_gets_every_end_in_order_and_light(tmp_path: Path) -> None:
    settlements = [answer("a", 1), end(Retry("reset", "x", 2.0, counts=True), 2), end(Release("late_grant"), 3)]
    write(tmp_path, *settlements)

    inheritance = taken(tmp_path)

    assert inheritance.spill.worker == WORKER
    assert [left.settlement.grant.task.fence for left in inheritance.left] == [1, 2, 3]
    assert inheritance.left[0].settlement.decision == Complete(None, Usage(3, None))
    read = [inheritance.spill.read(left.place).decision for left in inheritance.left]
    assert read == [settlement.decision for settlement in settlements]


def test_a_file_is_not_inherited_while_its_owner_lives(tmp_path: Path) -> None:
    owner = Spill(tmp_path, WORKER, HERE)
    owner.append([encode(answer())])

    assert inherit(owner.path, HERE) is None
    owner.close()
    first = inherit(owner.path, HERE)
    assert first is not None
    assert inherit(owner.path, HERE) is None
    first.spill.close()
    assert inherit(owner.path, HERE) is not None


def test_a_file_that_its_owner_removes_at_that_moment_is_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, answer())
    path = the_file(tmp_path)
    lock = fcntl.flock

    def removed_before_it_is_locked(fd: int, how: int) -> None:
        path.unlink(missing_ok=True)
        lock(fd, how)

    monkeypatch.setattr(spill_module.fcntl, "flock", removed_before_it_is_locked)  # type: ignore[attr-defined]

    assert inherit(path, HERE) is None


def test_a_file_that_has_just_been_made_is_left_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / f"{WORKER}.jsonl"
    path.touch(0o600)

    assert inherit(path, HERE) is None
    assert path.exists()

    os.utime(path, (1, 1))
    assert inherit(path, HERE) is None
    assert not path.exists()


@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    write(tmp_path, answer(fence=1), answer(fence=2))
    path = the_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])

    inheritance = taken(tmp_path)

    assert [left.settlement.grant.task.fence for left in inheritance.left] == [1]
    assert (inheritance.damaged, inheritance.is_torn) == (1, True)
    inheritance.spill.settled(is_known=True)
    assert inheritance.spill.finish() is None
    assert list(tmp_path.iterdir()) == []


def test_damage_in_the_middle_costs_that_line_and_the_file_is_kept(tmp_path: Path) -> None:
    places = write(tmp_path, *(answer(fence=fence) for fence in (1, 2, 3)))
    path = the_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[places[1].offset + 40] ^= 1
    path.write_bytes(content)

    inheritance = taken(tmp_path)

    assert [left.settlement.grant.task.fence for left in inheritance.left] == [1, 3]
    assert (inheritance.damaged, inheritance.is_torn) == (1, False)
    for _ in inheritance.left:
        inheritance.spill.settled(is_known=True)
    assert inheritance.spill.finish() == tmp_path / f"{WORKER}.1.kept"


@pytest.mark.parametrize("how_much", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_file_cut_anywhere_is_no_crash(tmp_path: Path, how_much: float) -> None:
    write(tmp_path, *(answer(fence=fence) for fence in range(20)))
    path = the_file(tmp_path)
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    path.write_bytes(content[: header + int(how_much * (len(content) - header))])

    fences = [left.settlement.grant.task.fence for left in taken(tmp_path).left]

    assert fences == list(range(len(fences)))


def test_a_file_of_another_database_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, answer())
    before = the_file(tmp_path).read_bytes()

    with pytest.raises(NotOurs) as refused:
        inherit(the_file(tmp_path), replace(HERE, id="7312/16385", name="staging"))

    assert "production" in refused.value.reason
    assert "start a worker of that database" in refused.value.remedy
    assert the_file(tmp_path).read_bytes() == before
    assert taken(tmp_path).left, "its lock is free again"


@pytest.mark.parametrize(
    "first",
    [
        b"\x00" * 4096,
        b"what is this\n",
        frame({"llmqueue_spill": 2}),
        frame([]),
        frame({"llmqueue_spill": 2, "worker": "nobody", "database": {"id": "1", "name": "x"}}),
    ],
)
def test_a_file_with_a_strange_first_line_is_left_alone(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / f"{uuid4()}.jsonl"
    path.write_bytes(first + encode(answer()))

    with pytest.raises(NotOurs, match="first line"):
        inherit(path, HERE)

    assert path.read_bytes() == first + encode(answer())


def test_a_file_of_another_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / f"{uuid4()}.jsonl"
    path.write_bytes(frame({"llmqueue_spill": 1, "worker": "?"}))

    with pytest.raises(NotOurs, match="another release"):
        inherit(path, HERE)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", answer())
    link = tmp_path / f"{WORKER}.jsonl"
    link.symlink_to(the_file(tmp_path / "elsewhere"))

    with pytest.raises(OSError, match="symbolic links"):
        inherit(link, HERE)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=12))
def test_places_do_not_overlap_and_each_gives_back_its_own(ends: list[tuple[object, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spill = Spill(Path(folder), WORKER, HERE)
        places: list[Place] = []
        batch: list[bytes] = []
        for value, is_last in ends:
            batch.append(encode(answer(value)))
            if is_last:
                places += spill.append(batch)
                batch = []
        places += spill.append(batch)

        assert [spill.read(place).decision for place in places] == [
            Complete(value, Usage(3, None)) for value, _ in ends
        ]
        assert all(one.offset + one.length == next_.offset for one, next_ in pairwise(places))
        spill.close()


def test_a_line_from_before_it_said_when_and_whose_fault_it_may_be_is_read() -> None:
    value = unframe(encode(end(Retry("http_502", "x", 2.0, counts=True, may_be_backends=True))))
    del value["may_be_backends"], value["ended_at"]

    assert decode(frame(value)).ended_at is None
    assert decode(frame(value)).settlement.decision == Retry("http_502", "x", 2.0, counts=True)
