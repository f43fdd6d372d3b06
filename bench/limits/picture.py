"""Draws the calls of each algorithm: those of the last 60 s over time, against the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.limits.judge import Verdict, trailing

EVERY_S = 0.1
TOP_PCT = 215
COLUMNS = 2
PANEL_INCHES = (5.0, 1.7)
CALLS = "#1f77b4"
OVER = "#d62728"


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    arrivals: Sequence[float]
    verdict: Verdict


def draw(curves: Sequence[Curve], seconds: float, file: Path) -> None:
    """Writes an SVG with one panel per algorithm. The same arrivals give the same file."""
    rows = -(-len(curves) // COLUMNS)
    width, height = PANEL_INCHES
    with mpl.rc_context({"svg.hashsalt": "llmqueue", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(width * COLUMNS, height * rows), layout="constrained")
        panels = list(figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True).flat)
        for axes, curve in zip(panels, curves, strict=False):
            _draw(axes, curve, seconds)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        figure.supylabel("calls of the last 60 s, % of the limit")
        figure.supxlabel("minutes")
        figure.savefig(file, metadata={"Date": None})


def _draw(axes: Axes, curve: Curve, seconds: float) -> None:
    rpm = curve.verdict.rpm
    points = _peaks(trailing(curve.arrivals, EVERY_S, seconds))
    minutes = [at_s / 60 for at_s, _ in points]
    shares = [min(100 * calls / rpm, TOP_PCT) for _, calls in points]
    axes.plot(minutes, shares, color=CALLS, linewidth=1)
    axes.fill_between(minutes, 100, shares, where=[share > 100 for share in shares], color=OVER, alpha=0.5, linewidth=0)
    axes.axhline(100, color=OVER, linewidth=0.8)
    axes.set_ylim(0, TOP_PCT)
    axes.set_xlim(0, seconds / 60)
    refused = curve.verdict.refused
    axes.set_title(curve.name, loc="left", fontweight="bold")
    axes.text(
        0.99,
        0.06,
        f"use {curve.verdict.use:.1%}, worst {curve.verdict.worst / rpm:.0%}, "
        f"429s {refused['sliding']} / {refused['bucket']} / {refused['minute']}",
        transform=axes.transAxes,
        horizontalalignment="right",
    )


def _peaks(points: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Returns the highest point of every second, which keeps the file small without losing a peak."""
    per_second = round(1 / EVERY_S)
    return [max(points[at : at + per_second], key=itemgetter(1)) for at in range(0, len(points), per_second)]
