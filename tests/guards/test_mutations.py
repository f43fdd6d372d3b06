"""Each mutation still finds the line that it breaks."""

from __future__ import annotations

from tools.mutate import stale
from tools.mutations import MUTATIONS


def test_no_mutation_is_stale() -> None:
    assert stale(MUTATIONS) == []
