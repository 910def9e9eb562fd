"""The benchmark's median times as a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.axes import Axes

from .cases import (
    BARE,
    BARE_KEPT_PAGES,
    GATEWAY,
    IN_PROCESS,
    KEPT_PAGES,
    REFERENCE,
    SAME_PICTURE,
    TORCHSERVE,
)
from .pictures import named
from .report import TITLES, Results, seconds, sizes

COLORS = {
    REFERENCE: "#7f7f7f",
    KEPT_PAGES: "#a6a6a6",
    SAME_PICTURE: "#c49c6b",
    BARE: "#d9c8ae",
    BARE_KEPT_PAGES: "#e8dfd0",
    IN_PROCESS: "#08519c",
    TORCHSERVE: "#3182bd",
    GATEWAY: "#74a9cf",
}


def plot(results: Results, path: Path) -> None:
    """Write the plot: a row of panels per case, a column per size, a bar per contender.

    Each bar has its spread and its median as text.
    """
    mpl.use("agg")
    # Keep text as text in the SVG, and give the same file for the same results.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "samserve", "font.size": 9})
    cases = [case for case in TITLES if sizes(results["times"], case)]
    rows = {case: [row for row in results["times"] if row["case"] == case] for case in cases}
    names = {
        case: [name for name in COLORS if name in {row["contender"] for row in rows[case]}]
        for case in cases
    }
    columns = max(len(sizes(results["times"], case)) for case in cases)
    figure, panels = pyplot.subplots(
        len(cases),
        columns,
        figsize=(2.2 + 2.8 * columns, 0.28 * sum(len(names[case]) + 3 for case in cases)),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": [len(names[case]) + 1 for case in cases]},
    )
    for case, line in zip(cases, panels, strict=True):
        # A logarithmic axis has no zero. Leave room for the text on the right.
        medians = [statistics.median(row["wall"]) for row in rows[case]]
        line[0].set_xscale("log")
        line[0].xaxis.set_major_formatter("{x:g}")
        line[0].set_xlim(min(medians) / 2, max(medians) * 6)
        line[0].set_title(f"{TITLES[case]}\n", loc="left", fontweight="bold")
        measured = sizes(results["times"], case)
        for panel, size in zip(line[: len(measured)], measured, strict=True):
            _bars(panel, [row for row in rows[case] if row["size"] == size], names[case])
            panel.set_title(named(size), loc="right", fontsize=8)
        for panel in line[len(measured) :]:  # some cases run at one size
            panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("seconds")
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)


def _bars(panel: Axes, rows: list[dict[str, Any]], names: list[str]) -> None:
    """Draw a bar per contender, from the top down."""
    for row in rows:
        place, median = names.index(row["contender"]), statistics.median(row["wall"])
        spread = [[median - min(row["wall"])], [max(row["wall"]) - median]]
        panel.barh(place, median, color=COLORS[row["contender"]], xerr=spread, ecolor="#333333")
        panel.annotate(
            seconds(median),
            (max(row["wall"]), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.spines[["top", "right"]].set_visible(False)
