"""`llmqueue doctor`: is everything as a worker needs it? Reads only; the checks are in checks.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.output import Column, clean, console, show

if TYPE_CHECKING:
    from llmqueue.cli.checks import Finding

COLUMNS = (Column("state", "state"), Column("check", "check"), Column("found", "found"), Column("remedy", "remedy"))
STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """Check database, schema, backend and settings, and name the remedy of what is wrong; exit code 1 on a problem.

    Changes nothing and calls no model. A warning is worth a look, and does not fail.
    """
    findings = _examine()
    if as_json or not console().is_terminal:
        show(findings, COLUMNS, as_json=as_json, none="")
    else:
        _write_page(findings)
    raise typer.Exit(1 if any(finding.state == "problem" for finding in findings) else 0)


def _examine() -> list[Finding]:
    import anyio

    from llmqueue.cli.adapter import load_adapter
    from llmqueue.cli.checks import Finding, examine_backend, examine_database
    from llmqueue.db import connect
    from llmqueue.settings import load_settings

    settings = load_settings()  # a wrong one ends here, by its name and with exit code 2

    async def probe() -> list[Finding]:
        backend = load_adapter(settings)
        try:
            return await examine_backend(backend, settings.backend_url, has_token=settings.backend_token is not None)
        finally:
            await backend.aclose()

    findings = [Finding("settings", "ok", "every LLMQUEUE_ variable is known and valid")]
    dsn = connect.dsn(settings)
    findings += examine_database(dsn, connect.listen_dsn(settings, dsn))
    return findings + anyio.run(probe)


def _write_page(findings: list[Finding]) -> None:
    from rich.text import Text

    screen = console()
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = Text(f"{finding.state:<8}", STYLES[finding.state])
        screen.print(line.append(f"  {finding.check:<{width}}  ", "bold").append(clean(finding.found), "default"))
        if finding.remedy:
            screen.print(Text(f"{'':<{width + 12}}{clean(finding.remedy)}", "dim"))
    problems = sum(finding.state == "problem" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    typer.echo(f"{problems} problems, {warnings} warnings" if problems or warnings else "all is well")
