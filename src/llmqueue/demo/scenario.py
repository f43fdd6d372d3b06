"""The scenario of the demo: the models with their limits, the number of prompts, and the change half-way."""

from __future__ import annotations

from dataclasses import dataclass

# Calls per minute, 3,330 together. The model with the longest stragglers of the ten has few calls.
RPM = {
    "groq-llama-2-70b": 900,
    "anyscale-llama-2-70b": 600,
    "fireworks-llama-2-70b": 480,
    "kimi-k2.5": 360,
    "lepton-llama-2-70b": 300,
    "perplexity-llama-2-70b": 240,
    "bedrock-llama-2-70b": 180,
    "deepseek-v3.2": 120,
    "together-llama-2-13b": 90,
    "replicate-llama-2-70b": 60,
}

# A little more than a minute of these quotas: no schedule can finish before a second window opens.
WAITING = 3350
SOLVED_BEFORE = 400

WORKERS = 2
# Measured latencies are divided by SPEED. SEED repeats the same draws, so that the length of the demo does not depend
# on whether the slowest call of a thousand (295 s as measured) comes last.
SPEED = 12.0
SEED = 242

# A call granted before the change may arrive this long after the change's COMMIT.
GRACE_S = 0.75
# Two minutes more than any measured run: something is stuck then.
GIVE_UP_AFTER_S = 200.0


@dataclass(frozen=True, slots=True)
class Change:
    """A limit that is changed while the workers run, `after_s` seconds from their start."""

    model: str
    rpm: int
    after_s: float

    @property
    def sql(self) -> str:
        """The statement as a person would type it; it is only displayed, never run."""
        return f"update llmqueue.model_config set rpm = {self.rpm} where model = '{self.model}'"  # noqa: S608


CHANGE = Change("groq-llama-2-70b", 450, after_s=30.0)
