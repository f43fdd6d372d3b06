"""An end of an attempt on its way to the database: in memory, or with its answer in the spill."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from llmqueue.models import Bury, Complete, Settlement
from llmqueue.spill import Place


@dataclass(slots=True, eq=False)
class End:
    """`settlement` lacks its answer while that lies at `place` in the spill."""

    settlement: Settlement
    chars: int
    since: float = field(default_factory=time.monotonic)
    place: Place | None = None
    is_settled: bool = False
    # not JSON: only the database's own error would tell, and it stays in memory
    is_unspillable: bool = False
    # it was turned into a word that any database can take, and that word is in memory
    is_buried: bool = False
    # since when the disk does not give its answer back
    unread_since: float | None = None

    @property
    def is_in_memory(self) -> bool:
        return self.place is None and not self.is_settled


def end_of(settlement: Settlement) -> End:
    """Returns an end that is in memory."""
    decision = settlement.decision
    answer = decision.answer if isinstance(decision, Complete | Bury) else None
    return End(settlement, len(answer) if isinstance(answer, str) else len(json.dumps(answer)))
