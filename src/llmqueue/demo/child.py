"""A process of the demo that does not outlive it: `python -m llmqueue.demo.child VERB …` is `llmqueue VERB …`.

It ends as soon as its standard input ends, and the kernel closes that pipe with the demo, also on kill -9.
"""

from __future__ import annotations

import os
import runpy
import threading

_STDIN = 0


def end_with_parent() -> None:
    """Ends this process at once when nobody holds the other end of its standard input any more."""

    def watch() -> None:
        while os.read(_STDIN, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    runpy.run_module("llmqueue", run_name="__main__")
