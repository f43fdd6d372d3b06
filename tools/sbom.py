"""Writes the version into the list of what an installation holds: pyproject.toml, where it would be read, has none."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]


def main(name: str) -> None:
    """Rewrites the file and says how many packages it names."""
    found = re.search(r'__version__ = "(.+)"', (ROOT / "src/llmqueue/__init__.py").read_text(encoding="utf-8"))
    if not found:
        raise SystemExit("src/llmqueue/__init__.py has no __version__")
    path = Path(name)
    listed = json.loads(path.read_text(encoding="utf-8"))
    listed["metadata"]["component"]["version"] = found[1]
    path.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{name}: llmqueue {found[1]}, {len(listed['components'])} packages\n")


if __name__ == "__main__":
    main(sys.argv[1])
