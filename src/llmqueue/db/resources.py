"""Where the SQL files are: in the wheel beside the package, in an editable install at the top of the repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One file of `sql/`, by the name that messages and the dry run show."""

    name: str
    text: str


def sql_dir() -> Path:
    """Return the folder with `migrations`, `functions`, `views` and `seam`.

    Raises:
        FileNotFoundError: the installation is broken: neither place has the folder.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "sql", package.parent.parent / "sql"):
        if (candidate / "migrations").is_dir():
            return candidate
    msg = f"the SQL files of llmqueue are missing beside {package}: install the package again"
    raise FileNotFoundError(msg)


def sql_files(part: str) -> tuple[SqlFile, ...]:
    """Return the files of one part of `sql/` in name order; nothing where the part has none."""
    folder = sql_dir() / part
    return tuple(
        SqlFile(f"{part}/{path.name}", path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.sql"))
    )
