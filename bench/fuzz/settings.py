"""Environment variables and .env: they load, or are refused with a message that contains no secret."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from random import Random
from unittest.mock import patch

from bench.fuzz import nonsense
from bench.fuzz.hunt import Case, Failed
from llmqueue.errors import UsageError
from llmqueue.settings import DOTENV, PREFIX, Settings, load_settings

SECRET = "sw0rdf1sh"
GOOD = {
    "DATABASE_URL": f"postgresql://user:{SECRET}@host:5432/db?sslmode=prefer",
    "LISTEN_URL": f"host=h user=u password={SECRET}",
    "BACKEND_URL": f"http://user:{SECRET}@host/path",
    "BACKEND_TOKEN": SECRET,
    "BACKEND": "package.module:factory",
    "CONCURRENCY": "100",
    "LEASE_S": "20",
    "KEEP_ATTEMPTS": "30d",
    "LOG_LEVEL": "INFO",
    "HOME": "~/x",
}
OTHER_NAMES = ("DATABSE_URL", "PORT", "SERVICE_HOST", "METRICS_PORT", "TEST_PG", "", "lease_s", "ÄÖ")


class Environment:
    """The pieces of a case are lines of .env; `about` is the environment."""

    name = "settings"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        logging.getLogger("dotenv.main").setLevel(logging.ERROR)  # it warns about each invalid line

    def make(self, rng: Random) -> Case:
        names = [name.upper() for name in Settings.model_fields]
        given: dict[str, str] = {}
        for _ in range(rng.randrange(4)):
            name = rng.choice(names) if rng.random() < 0.85 else rng.choice(OTHER_NAMES)
            given[PREFIX + name] = self._value(rng, name)
        lines = []
        for _ in range(rng.randrange(5)):
            name = rng.choice(names)
            line = f"{PREFIX}{name}={self._value(rng, name)}\n".encode("utf-8", "surrogatepass")
            # a mutation may move a part of the secret into a field that is not secret
            is_whole = rng.random() < 0.5
            lines.append(line if is_whole else nonsense.mutated(line.replace(SECRET.encode(), b"s"), rng, 1))
        return Case(lines, given)

    def _value(self, rng: Random, name: str) -> str:
        text = nonsense.text(rng)
        if rng.random() < 0.5:
            good = GOOD.get(name, "5")
            text = nonsense.mutated(good.encode(), rng, 1).decode(errors="replace") if rng.random() < 0.5 else good
        return text.replace("\0", "0")[:50_000]  # an environment variable holds no NUL and at most 128 kB

    def note(self) -> str:
        return ""

    def check(self, case: Case) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        before = Path.cwd()
        os.chdir(self._folder)
        try:
            Path(DOTENV).write_bytes(b"".join(case.pieces))
            with patch.dict(os.environ, kept | case.about, clear=True):
                shown = self._load()
        finally:
            Path(DOTENV).unlink(missing_ok=True)
            os.chdir(before)
        if SECRET in shown:
            raise Failed(f"a secret is shown: {shown!r}")

    def _load(self) -> str:
        try:
            settings = load_settings()
            return f"{settings.database_url!r} {settings.listen_url!r} {settings.backend_token!r}"
        except UsageError as error:
            if not str(error).strip():
                raise Failed("refused without a message") from error
            return str(error)
