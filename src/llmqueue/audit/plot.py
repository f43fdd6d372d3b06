"""Draws the use of each model and its limits, as SVG or PNG. Needs matplotlib (llmqueue[plot]), but no display."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llmqueue.audit.calls import KINDS
from llmqueue.audit.report import EPOCH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo
    from pathlib import Path

    from matplotlib.axes import Axes

    from llmqueue.audit.chart import Change, Chart
    from llmqueue.audit.report import ModelReport

CALLS, TOKENS, OUTPUT = range(len(KINDS))
COLOURS = {CALLS: "#1f77b4", TOKENS: "#e8820c", OUTPUT: "#7a4fb5"}
LABELS = {CALLS: "calls", TOKENS: "tokens charged", OUTPUT: "output tokens charged"}
NOUNS = {CALLS: "calls", TOKENS: "tokens", OUTPUT: "output tokens"}
VIOLATION = "#d62728"
PANEL_INCHES = (10.0, 2.6)
# Agg draws at most 65,535 pixels, and nobody reads more panels.
MOST_PANELS = 60
MOST_MARKS = 60
MOST_LABELS = 12
DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Panel:
    """A model's chart and report."""

    report: ModelReport
    chart: Chart


def draw(panels: Sequence[Panel], file: Path, window_s: float, zone: tzinfo | None) -> int:
    """Writes the file, one panel per model. If there are too many models, draws the fullest. Returns their number."""
    chosen = sorted(range(len(panels)), key=lambda n: -_fullest(panels[n].report))[:MOST_PANELS]
    drawn = [panels[n] for n in sorted(chosen)]
    width, height = PANEL_INCHES
    # Names are not parsed as formulas, text is not drawn as paths, and the same log gives the same file.
    with mpl.rc_context(
        {"date.converter": "concise", "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "llmqueue"}
    ):
        figure = Figure(figsize=(width, height * len(drawn) + 0.4), layout="constrained")
        for axes, panel in zip(figure.subplots(len(drawn), 1, squeeze=False, sharex=True)[:, 0], drawn, strict=True):
            axes.xaxis_date(zone)
            axes.set_xlim(_days(panel.chart.from_us), _days(panel.chart.to_us))
            axes.tick_params(axis="x", labelbottom=True)
            _draw_model(axes, panel, window_s)
        figure.savefig(file, dpi=100, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
    return len(drawn)


def _fullest(report: ModelReport) -> float:
    return max((kind.worst.used / max(kind.worst.limit, 1e-9) for kind in report.limits), default=0.0)


def _draw_model(axes: Axes, panel: Panel, window_s: float) -> None:
    report = panel.report
    _draw_kind(axes, panel, CALLS)
    axes.set_title(report.model + (": over its limit" if report.is_violated else ""), loc="left", fontsize="medium")
    axes.set_ylabel(f"calls in {window_s:g} s")
    kinds = [kind for kind in (TOKENS, OUTPUT) if any(limit is not None for limit in panel.chart.limits[kind])]
    lines, labels = axes.get_legend_handles_labels()
    if kinds:
        right = axes.twinx()
        for number, kind in enumerate(kinds):
            _draw_kind(right, panel, kind, is_second=number > 0)
        right.set_ylabel(f"tokens in {window_s:g} s")
        more = right.get_legend_handles_labels()
        lines, labels = [*lines, *more[0]], [*labels, *more[1]]
    chart = panel.chart
    _mark_changes(axes, [change for change in chart.changes if chart.from_us <= change.at_us <= chart.to_us])
    axes.legend(
        lines,
        labels,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        frameon=False,
        fontsize="x-small",
        ncols=len(labels),
    )


def _draw_kind(axes: Axes, panel: Panel, kind: int, *, is_second: bool = False) -> None:
    chart, colour = panel.chart, COLOURS[kind]
    times = [_days(chart.start_of(column)) for column in range(chart.columns)]
    used = [float("nan") if n is None else float(n) for n in chart.used[kind]]
    limits = [float("nan") if n is None else float(n) for n in chart.limits[kind]]
    axes.plot(times, used, color=colour, linewidth=1.0, label=LABELS[kind])
    axes.step(times, limits, where="post", color=colour, linewidth=1.0, linestyle="--", label=f"limit of {NOUNS[kind]}")
    for judged in panel.report.limits:
        if judged.what == KINDS[kind] and judged.violations:
            at = [(window.to_at - EPOCH) / timedelta(days=1) for window in judged.violations]
            over = [float(window.used) for window in judged.violations]
            axes.plot(at, over, "x", color=VIOLATION, label=f"{LABELS[kind]}: over")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    top = max((n for n in (*chart.used[kind], *chart.limits[kind]) if n is not None), default=1)
    axes.set_ylim(0, max(axes.get_ylim()[1] if is_second else 0, 1.2 * max(top, 1)))


def _mark_changes(axes: Axes, changes: Sequence[Change]) -> None:
    """Draws a line where a limit changed; the first ones have the old and the new value."""
    for number, change in enumerate(changes[:MOST_MARKS]):
        at = _days(change.at_us)
        axes.axvline(at, color=COLOURS[change.kind], linewidth=0.8, linestyle=":")
        if number < MOST_LABELS:
            text = f"{_limit(change.before)} → {_limit(change.after)}"
            axes.annotate(
                text,
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(2, -9),
                textcoords="offset points",
                fontsize="x-small",
                color=COLOURS[change.kind],
            )


def _days(at_us: int) -> float:
    """Returns matplotlib's time, in days since 1970."""
    return at_us / DAY_US


def _limit(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
