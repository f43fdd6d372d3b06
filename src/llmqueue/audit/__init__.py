"""The audit: did any sliding window exceed the limit in force? Pure functions, except in log.py and plot.py.

Windows. A window is the 60 s (t - 60, t] that end with a call. It holds the calls that were sent in it, and those that
may have been: if the moment of sending is unknown (the call still runs, or its worker was lost), the call was sent
between its grant and half a guard later, or never. Each window counts the most that it can have held, see sliding.py.

Limits. The limit of a window is that of its newest grant: every attempt stores rpm, tpm and output_tpm as they were at
its grant. So a raised limit counts from its first grant on, and so does a lowered one. The windows before that grant
were filled under the old limit, and sent calls cannot be undone. But the grant itself was given because all calls
before it fit into the new limit, so every window that holds it must fit too.

Charges. A grant returned unsent counts nothing, because it was refunded. Charges of input and output are those before
sending. If the backend reported less later, the difference counts only until then. If it reported more, the audit
publishes the excess as the overshoot; it is no violation, because the limit applies to charges (design I5).
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
