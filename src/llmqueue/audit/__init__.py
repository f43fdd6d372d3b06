"""The audit: was any sliding window over the limit that was in force? Pure, but for log.py and plot.py.

What is judged. A window is the 60 s (t - 60, t] that end with a call. It holds the calls that were sent in it, and
those that may have been: a call whose moment is not known (it still runs, or its worker was lost) went out at some
moment between its grant and half a guard later, or never. Each window is taken at its worst, see sliding.py.

The limit of a window is the one its newest grant was judged by: every attempt stores rpm, tpm and output_tpm as they
were at its grant. So a raise counts from its first grant on, and so does a lowering: the windows before that grant were
filled under the old limit and nobody could call the calls back, but the grant itself was only given since all that came
before it fits into the new limit, and so must every window that holds it.

What was given back unsent counts nothing: it was refunded. Charges of input and output are those before sending; where
the backend reported less later on, what was given back to the ledger counts only until then. Where it reported more,
that is published as the overshoot and is no violation: the bound of 0 is on charges (design I5).
"""

from llmqueue.audit.calls import KINDS, Call
from llmqueue.audit.chart import Change, Chart
from llmqueue.audit.judge import Auditor, Scope
from llmqueue.audit.report import EPOCH, Final, Judged, ModelReport, Window, moment

__all__ = [
    "EPOCH",
    "KINDS",
    "Auditor",
    "Call",
    "Change",
    "Chart",
    "Final",
    "Judged",
    "ModelReport",
    "Scope",
    "Window",
    "moment",
]
