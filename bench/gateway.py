"""The LiteLLM proxy in a separate environment, configured as its documentation recommends for production.

It answers from memory (`mock_response`), so this measures the gateway and not a model.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from bench import peers
from bench.parts import bare, loop, spread, table
from tests.support import processes

MODEL = "mock"
PATH = "/chat/completions"
IN_FLIGHT = 256
START_S = 120.0
STOP_S = 20.0
TAIL_CHARS = 3000
CONFIG = {
    "model_list": [
        {
            "model_name": MODEL,
            # a model of its price list, as in production; it is never called
            "litellm_params": {"model": "openai/gpt-4o-mini", "api_key": "none", "mock_response": "42"},
        }
    ],
    "litellm_settings": {"set_verbose": False, "json_logs": False, "request_timeout": 600},
}
SETTINGS = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "DISABLE_ADMIN_UI": "True",
    # no key to check: it listens on the loopback only, has nothing behind it, and this favours the gateway
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    # use the copies in its package instead of downloads
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "HF_HUB_OFFLINE": "1",
}


def gateway(_dsn: str, quick: bool) -> str:
    """Measures the same loop of calls against the proxy and against the simulated backend, alternating."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "p1"}]}
    theirs, ours = [], []
    with litellm() as url:
        loop(url, PATH, body, IN_FLIGHT, quick=True)  # not counted: its first seconds are slower
        for _ in range(1 if quick else 3):
            theirs.append(loop(url, PATH, body, IN_FLIGHT, quick))
            ours.append(bare(IN_FLIGHT, quick))
    rows = [("LiteLLM proxy, one worker, a mocked model", spread(theirs, 0))]
    rows.append(("the simulated backend", spread(ours, 0)))
    about = f"A bare loop of calls, {IN_FLIGHT} in flight. The proxy checks no key and has no database."
    return f"## A gateway in the way\n\n{about}\n\n{table(('', 'calls/s'), rows)}"


@contextmanager
def litellm() -> Iterator[str]:
    """Yields the base URL of a proxy with one worker and one model, MODEL, whose answer is "42"."""
    command = Path(peers.python("litellm")).with_name("litellm")
    with tempfile.TemporaryDirectory(prefix="llmqueue-gateway-") as name:
        folder = Path(name)
        config, log = folder / "config.yaml", folder / "log"
        config.write_text(json.dumps(CONFIG), encoding="utf-8")  # JSON is YAML too
        port = processes.free_port()
        arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        with log.open("wb") as out:
            proxy = subprocess.Popen(
                [str(command), *arguments],
                cwd=folder,
                # without our variables: it needs no secret, and a DATABASE_URL would change its behaviour
                env={"PATH": os.environ["PATH"], "HOME": name, **SETTINGS},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(proxy, url, log)
            yield url
        finally:
            _stop(proxy)


def _wait(proxy: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    with httpx.Client(base_url=url, timeout=2, trust_env=False) as http:
        while time.monotonic() < deadline and proxy.poll() is None:
            with suppress(httpx.HTTPError):
                if http.get("/health/liveliness").status_code == httpx.codes.OK:
                    return
            time.sleep(0.2)
    code = proxy.poll()
    what = f"did not answer within {START_S:.0f} s" if code is None else f"ended with {code}"
    tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARS:]
    raise RuntimeError(f"the LiteLLM proxy {what}; the end of its log:\n{tail}")


def _stop(proxy: subprocess.Popen[bytes]) -> None:
    """Ends its whole process group, which it leads."""
    with suppress(ProcessLookupError):
        os.killpg(proxy.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        proxy.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(proxy.pid, signal.SIGKILL)
    proxy.wait()
