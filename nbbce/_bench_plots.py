"""The plot of `nbbce bench`: throughput over size under the roof of memory, and bars against others."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbce._bench import MEMORY, READS, RIVAL_NAMES, RIVALS, WRITE, needed, ratio
from nbbce._files import Problem, one_line

# Lines of the plot by what a function has to read and write, which decides the roof over it.
PANELS = {
    "reading: a mean": (READS, ("mean, labels 0/1", "mean, soft labels", "logits: mean, labels 0/1")),
    "reading and writing: each loss, a gradient": (
        WRITE,
        ("none, soft labels", "value_and_grad, labels 0/1", "logits: value_and_grad, labels 0/1"),
    ),
}
# Soft labels cost every rival the same as labels 0/1, and so are no bars of their own.
BARS = {
    "mean, labels 0/1": "probabilities:\nmean",
    "none, soft labels": "probabilities:\nnone",
    "value_and_grad, labels 0/1": "probabilities:\nvalue_and_grad",
    "logits: mean, labels 0/1": "logits:\nmean",
    "logits: none, labels 0/1": "logits:\nnone",
    "logits: value_and_grad, labels 0/1": "logits:\nvalue_and_grad",
    "logits: grad_and_hess, labels 0/1": "logits:\ngrad_and_hess",
}


def plot(figures: dict[str, Any], path: str) -> None:
    """Throughput over size under the roof of memory, and bars against rivals; a row of panels for each dtype."""
    pyplot = needed("matplotlib.pyplot", "--plot")
    facts, rows = figures["machine"], figures["rows"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = pyplot.figure(figsize=(13, 8.5 * len(dtypes)), layout="constrained")
    for part, dtype in zip(np.atleast_1d(figure.subfigures(len(dtypes), 1)), dtypes, strict=True):
        mine = [row for row in rows if row["dtype"] == dtype]
        part.suptitle(
            f"nbbce {facts['nbbce']}, {dtype}, {facts['threads']} threads of {facts['processor']}", fontweight="bold"
        )
        bars = [row for row in mine if row["group"] == RIVALS]
        panels = part.subplot_mosaic([["a", "b"], ["c", "c"]] if bars else [["a", "b"]])
        panels["b"].sharey(panels["a"])
        for key, (title, (roof, questions)) in zip("ab", PANELS.items(), strict=True):
            _throughput(panels[key], mine, title, roof, questions)
        if bars:
            _bars(panels["c"], bars)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise Problem(f"cannot write {path}: {one_line(error)}") from None
    finally:
        pyplot.close(figure)


def _throughput(axes: Any, rows: list[dict[str, Any]], title: str, roof: str, questions: tuple[str, ...]) -> None:
    def line(question: str, key: str) -> tuple[list[int], list[float]]:
        found = [row for row in rows if row["group"] == MEMORY and row["question"] == question]
        return [row["size"] for row in found], [row["bytes"] / row[key] / 1e9 for row in found]

    near, top = line(questions[0], "base_s")
    axes.fill_between(near, top, color="0.9", zorder=0)
    axes.plot(near, top, color="0.45", linestyle="--", label=f"memory roof: {roof}")
    for question in questions:
        axes.plot(*line(question, "nbbce_s"), marker="o", markersize=4, linewidth=2, label=question)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(title, loc="left")
    axes.set_xlabel("elements")
    axes.set_ylabel("GB/s")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = [name for name in RIVAL_NAMES if any(row["against"] == name for row in rows)]
    at, labels = 0.0, []
    for question, label in BARS.items():
        found = {row["against"]: ratio(row) for row in rows if row["question"] == question}
        present = [name for name in names if name in found]
        if not present:
            continue
        places = at + np.arange(len(present))
        labels.append((places.mean(), label))
        heights = [found[name] for name in present]
        # From 1, where a rival is as fast as nbbce: a bar downwards is one that is faster.
        axes.bar(places, np.subtract(heights, 1), bottom=1, width=0.9, color=[f"C{names.index(n)}" for n in present])
        for place, height in zip(places, heights, strict=True):
            text = f"{height:.0f}" if height >= 9.95 else f"{height:.2g}"
            axes.annotate(
                text,
                (place, max(height, 1)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
            )
        at = places[-1] + 2
    axes.axhline(1, color="black", linewidth=1.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(top=axes.get_ylim()[1] * 2)
    axes.set_xticks(*zip(*labels, strict=True))
    axes.tick_params(axis="x", length=0)
    size = max(row["size"] for row in rows)
    axes.set_title(f"time of others over time of nbbce, {size:,} elements (black line: nbbce)", loc="left")
    axes.set_ylabel("times as long as nbbce")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for k, name in enumerate(names):
        axes.bar(0, 0, bottom=1, color=f"C{k}", label=name)
    axes.legend(loc="upper center", ncols=len(names), frameon=False)
