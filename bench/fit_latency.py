"""Recomputes the latency table of the simulated Models Backend from the measured calls.

    python bench/fit_latency.py DATA_FOLDER

DATA_FOLDER holds `llmperf_leaderboard.csv.gz` and `exgentic_llm_calls.jsonl.gz`. Prints the rows of `FITS` in
`llmqueue/fake_backend/latency.py`, each with the number of calls, the measured mean and the fitted mean.
"""

import csv
import gzip
import json
import sys
from collections import defaultdict
from dataclasses import astuple
from pathlib import Path
from statistics import fmean

from llmqueue.fake_backend.latency import percentiles

# One row per provider; latency.py explains why together has its 13b.
LLMPERF_SIZES = {
    "groq": "70b",
    "together": "13b",
    "anyscale": "70b",
    "fireworks": "70b",
    "lepton": "70b",
    "perplexity": "70b",
    "bedrock": "70b",
    "replicate": "70b",
}
EXGENTIC_NAMES = {"azure/Kimi-K2.5": "kimi-k2.5", "azure/DeepSeek-V3.2": "deepseek-v3.2"}
REPLAYED_BELOW_S = 0.1  # hundreds of output tokens in less than 80 ms come from a cache, not from a model


def llmperf_latencies(path: Path) -> dict[str, list[float]]:
    """Returns the seconds of every successful call, by model name."""
    latencies_s = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if LLMPERF_SIZES[row["provider"]] == row["model_size"] and not row["error_code"]:
                name = f"{row['provider']}-llama-2-{row['model_size']}"
                latencies_s[name].append(float(row["end_to_end_latency_s"]))
    return {name: latencies_s[name] for name in (f"{p}-llama-2-{size}" for p, size in LLMPERF_SIZES.items())}


def exgentic_latencies(path: Path) -> dict[str, list[float]]:
    """Returns the seconds of every successful call that was not replayed, by model name."""
    latencies_s: dict[str, list[float]] = {name: [] for name in EXGENTIC_NAMES.values()}
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            call = json.loads(line)
            seconds = call["duration_ms"] / 1000
            if not call["is_error"] and seconds >= REPLAYED_BELOW_S:
                latencies_s[EXGENTIC_NAMES[call["request_model"]]].append(seconds)
    return latencies_s


def measured_latencies(folder: Path) -> dict[str, list[float]]:
    """Returns the seconds of every call that counts, by model name, in the order of `FITS`."""
    return {
        **llmperf_latencies(folder / "llmperf_leaderboard.csv.gz"),
        **exgentic_latencies(folder / "exgentic_llm_calls.jsonl.gz"),
    }


def main(folder: Path) -> None:
    for name, latencies_s in measured_latencies(folder).items():
        fit = percentiles(latencies_s)
        fitted_mean_s = fmean(fit.quantile_s((step + 0.5) / 10_000) for step in range(10_000))
        row = ", ".join(f"{seconds:.3f}" for seconds in astuple(fit))
        note = f"{len(latencies_s)} calls, mean {fmean(latencies_s):.2f} s, fitted {fitted_mean_s:.2f} s"
        print(f'    # {note}\n    "{name}": LatencyFit({row}),')


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python bench/fit_latency.py DATA_FOLDER")
    main(Path(sys.argv[1]))
