"""The latency of a simulated call: quantile tables fitted to real calls, one row per model.

Provenance (`bench/fit_latency.py` recomputes every row from the two data sets, which are not part of the project):

- `PROVIDER-llama-2-SIZE`: ray-project/llmperf-leaderboard at 27aa9b6 (Apache-2.0), raw_data/individual, December 2023:
  550 input and about 150 output tokens, five calls at a time, end-to-end latency, without errors. The 70b of each
  provider, except for together: its 13b has stragglers (2 of 149 calls took 64 times the median), which a batch has to
  survive. Lepton refused most calls with 429, so its row is based on 20 calls.
- `kimi-k2.5`, `deepseek-v3.2`: Exgentic/agent-llm-traces, shard 12 (CDLA-Permissive-2.0), April 2026: agents with a
  median of 27,000 input tokens, without errors and replayed calls (below 0.1 s).
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from random import Random

# Without p05 a single fast call would lower half of the draws. p98 and p99 are needed for the stragglers: a straight
# line from p95 to the maximum gives three times as many slow calls as were measured.
SHARES = (0.0, 0.05, 0.50, 0.95, 0.98, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class LatencyFit:
    """The latencies of one model in seconds at the quantiles SHARES, in that order."""

    min_s: float
    p05_s: float
    p50_s: float
    p95_s: float
    p98_s: float
    p99_s: float
    max_s: float

    def quantile_s(self, share: float) -> float:
        """Returns the seconds that `share` (0 to 1) of the calls do not exceed; log-linear between the points."""
        points = zip(SHARES, astuple(self), strict=True)
        for (low, low_s), (high, high_s) in pairwise(points):
            if share <= high:
                part = (share - low) / (high - low)
                return math.exp(math.log(low_s) + part * (math.log(high_s) - math.log(low_s)))
        return self.max_s

    def draw_s(self, rng: Random) -> float:
        """Returns the seconds of one call, drawn so that p50, p95 and maximum match the table."""
        return self.quantile_s(rng.random())


def percentiles(latencies_s: Sequence[float]) -> LatencyFit:
    """Fits measured latencies by nearest rank, so that every point of the row is a measured call."""
    ordered = sorted(latencies_s)
    ranks = (max(math.ceil(share * len(ordered)), 1) - 1 for share in SHARES)
    return LatencyFit(*(round(ordered[rank], 3) for rank in ranks))


FITS = {
    # 150 calls, mean 0.82 s, fitted 0.82 s
    "groq-llama-2-70b": LatencyFit(0.717, 0.721, 0.804, 0.942, 0.950, 1.003, 1.006),
    # 149 calls, mean 2.95 s, fitted 2.90 s
    "together-llama-2-13b": LatencyFit(1.241, 1.413, 1.586, 1.913, 3.201, 101.496, 101.932),
    # 150 calls, mean 2.35 s, fitted 2.37 s
    "anyscale-llama-2-70b": LatencyFit(0.749, 1.852, 2.257, 3.163, 3.619, 3.734, 3.797),
    # 150 calls, mean 3.77 s, fitted 3.77 s
    "fireworks-llama-2-70b": LatencyFit(2.606, 3.365, 3.771, 4.217, 4.349, 4.494, 4.552),
    # 20 calls, mean 4.47 s, fitted 4.16 s
    "lepton-llama-2-70b": LatencyFit(3.033, 3.033, 4.566, 4.696, 4.845, 4.845, 4.845),
    # 148 calls, mean 4.94 s, fitted 4.77 s
    "perplexity-llama-2-70b": LatencyFit(0.487, 3.921, 4.971, 5.749, 5.793, 5.877, 6.098),
    # 101 calls, mean 7.06 s, fitted 7.06 s
    "bedrock-llama-2-70b": LatencyFit(5.568, 6.459, 6.989, 7.834, 7.995, 8.093, 8.167),
    # 145 calls, mean 15.61 s, fitted 18.23 s
    "replicate-llama-2-70b": LatencyFit(2.309, 10.301, 12.371, 35.042, 71.545, 77.618, 82.189),
    # 1321 calls, mean 7.30 s, fitted 8.36 s
    "kimi-k2.5": LatencyFit(1.170, 2.088, 5.108, 19.324, 32.809, 40.752, 144.490),
    # 799 calls, mean 20.04 s, fitted 21.05 s
    "deepseek-v3.2": LatencyFit(2.587, 4.525, 15.194, 49.965, 57.400, 67.491, 295.068),
}

DEFAULT_MODELS = tuple(FITS)


def fit_for(model: str, position: int) -> LatencyFit:
    """Returns the row of `model`; a model that was never measured gets the row at its position."""
    return FITS.get(model) or FITS[DEFAULT_MODELS[position % len(DEFAULT_MODELS)]]
