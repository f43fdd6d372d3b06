"""Finds the SQL files: inside the package in a wheel, at the top of the repository in an editable install."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One file of `sql/`; `name` appears in messages and in the dry run."""

    name: str
    text: str


def sql_dir() -> Path:
    """Return the folder with `schema`, `mapping`, `api` and the folders of llmqueue_internal.

    Raises:
        FileNotFoundError: the installation is broken: neither place has the folder.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "sql", package.parent.parent / "sql"):
        if (candidate / "schema").is_dir():
            return candidate
    msg = f"the SQL files of llmqueue are missing beside {package}: install the package again"
    raise FileNotFoundError(msg)


def sql_files(part: str) -> tuple[SqlFile, ...]:
    """Return the files of one folder of `sql/` in name order; empty if the folder has none."""
    return tuple(_read(path) for path in sorted((sql_dir() / part).glob("*.sql")))


def function_files() -> tuple[SqlFile, ...]:
    """Return the files of functions, those of `api` first; each file has the name of its function."""
    root = sql_dir()
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name not in {"schema", "mapping", "api"})
    return tuple(_read(path) for folder in (root / "api", *folders) for path in sorted(folder.glob("*.sql")))


def _read(path: Path) -> SqlFile:
    return SqlFile(path.relative_to(sql_dir()).as_posix(), path.read_text(encoding="utf-8"))
