"""A child process of the demo that ends with it: `python -m llmqueue.demo.child VERB …` runs `llmqueue VERB …`.

It ends as soon as its standard input ends. The kernel closes that pipe when the demo ends, also after kill -9.
"""

from __future__ import annotations

import os
import runpy
import threading

_STDIN = 0


def end_with_parent() -> None:
    """Ends this process as soon as no process holds the other end of its standard input."""

    def watch() -> None:
        while os.read(_STDIN, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    runpy.run_module("llmqueue", run_name="__main__")
