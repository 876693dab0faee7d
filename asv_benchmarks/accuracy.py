"""How far float32 losses are from the exact value, in ULP: nbbce and its rivals, against mpmath.

    python asv_benchmarks/accuracy.py --json FILE        measure nbbce and who is installed, and keep the figures
    python asv_benchmarks/accuracy.py --plot FILE.png    draw the figures in asv_benchmarks/accuracy.json
    python asv_benchmarks/accuracy.py --markdown         print them as the rows of README's table

An ULP is the distance of float32 numbers at the exact value.  The range of inputs is cut into bins, and what is kept
is the worst error in each: that of one input jumps, since an exact hit is a matter of luck.  The oracle is that of the
tests, `tests/reference.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import nbbce

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import reference  # noqa: E402

KEPT = ROOT / "asv_benchmarks" / "accuracy.json"
IN_BIN = 48
# Probabilities from 1e-12 to the last float32 below 1, about evenly in log(x/(1-x)), so that both ends have room.
RANGES = {
    "probabilities": np.concatenate(
        [np.geomspace(1e-12, 0.1, 45), np.linspace(0.15, 0.85, 9), 1 - np.geomspace(0.1, 2.0**-24, 29)]
    ),
    "logits": np.linspace(-40, 40, 81),
}
LABELS = (0, 1)
# What is drawn of smaller errors: no rounded result can be relied on to be nearer than half a unit.
LEAST = 0.5
# Lines that lie on each other are all to be seen: the first wide, the later ones with gaps.
STYLES: tuple[dict[str, Any], ...] = (
    {"linewidth": 4, "zorder": 3},
    {"linewidth": 5, "alpha": 0.4},
    {"linewidth": 2.2},
    {"linewidth": 2.2, "linestyle": (0, (6, 3)), "zorder": 4},
    {"linewidth": 2.2, "linestyle": (0, (4, 4)), "zorder": 4},
    {"linewidth": 2.2, "linestyle": (0, (1, 2)), "zorder": 4},
)
Array = np.ndarray[Any, Any]
Losses = Callable[[Array, Array], Any]


def one_liner(x: Array, y: Array) -> Array:
    """What one writes in NumPy."""
    return -(y * np.log(x) + (1 - y) * np.log(1 - x))


def one_liner_of_logits(z: Array, y: Array) -> Array:
    """The same of logits."""
    return np.logaddexp(np.float32(0), z) - y * z


def torch() -> dict[str, Losses]:
    """PyTorch."""
    import torch

    def of(function: Any) -> Losses:
        return lambda x, y: function(torch.from_numpy(x), torch.from_numpy(y), reduction="none").numpy()

    functional = torch.nn.functional
    return {
        "probabilities": of(functional.binary_cross_entropy),
        "logits": of(functional.binary_cross_entropy_with_logits),
    }


def jax() -> dict[str, Losses]:
    """JAX has no loss of its own: the formulas are those of Optax and of its users."""
    import jax
    import jax.numpy as jnp

    return {
        "probabilities": jax.jit(lambda x, y: -(y * jnp.log(x) + (1 - y) * jnp.log1p(-x))),
        "logits": jax.jit(lambda z, y: -(y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z))),
    }


def paddle() -> dict[str, Losses]:
    """Paddle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses a compiler cache that nothing here needs
        import paddle

    def of(function: Any) -> Losses:
        return lambda x, y: function(paddle.to_tensor(x), paddle.to_tensor(y), reduction="none").numpy()

    functional = paddle.nn.functional
    return {
        "probabilities": of(functional.binary_cross_entropy),
        "logits": of(functional.binary_cross_entropy_with_logits),
    }


def sklearn() -> dict[str, Losses]:
    """scikit-learn: its metric, of one element at a time, as it gives nothing but means; the loss inside its models."""
    from sklearn._loss.loss import HalfBinomialLoss
    from sklearn.metrics import log_loss

    def each(x: Array, y: Array) -> list[float]:
        return [log_loss(y[i : i + 1], x[i : i + 1], labels=[0, 1]) for i in range(x.size)]

    return {"probabilities": each, "logits": lambda z, y: HalfBinomialLoss().loss(y, z, None)}


LIBRARIES: dict[str, Callable[[], dict[str, Losses]]] = {
    "nbbce": lambda: {
        "probabilities": lambda x, y: nbbce.binary_cross_entropy(x, y, reduction="none"),
        "logits": lambda z, y: nbbce.binary_cross_entropy_with_logits(z, y, reduction="none"),
    },
    "NumPy one-liner": lambda: {"probabilities": one_liner, "logits": one_liner_of_logits},
    "torch": torch,
    "JAX": jax,
    "Paddle": paddle,
    "scikit-learn": sklearn,
}
PACKAGES = {"NumPy one-liner": "numpy", "JAX": "jax", "Paddle": "paddlepaddle"}


def points(edges: Array) -> Array:
    """Random float32 numbers of each bin, one bin a row; none is an end of its range."""
    rng = np.random.default_rng(22)
    shares = rng.random((len(edges) - 1, IN_BIN))
    found = (edges[:-1, None] + shares * np.diff(edges)[:, None]).astype(np.float32)
    return np.clip(found, edges[0], np.nextafter(np.float32(edges[-1]), np.float32(0)), dtype=np.float32)


def ulps(losses: Any, exact: list[Any]) -> list[float]:
    """The distance of each loss from its exact value, in float32's distance of numbers there."""
    found = np.asarray(losses, np.float64).ravel().tolist()
    return [float(d) for d in (reference.ulps(a, e, "float32") for a, e in zip(found, exact, strict=True))]


def measured() -> Iterator[tuple[str, dict[str, dict[str, list[float]]]]]:
    """Of each library that is installed its worst error in each bin, by kind of input and label."""
    inputs = {kind: points(edges) for kind, edges in RANGES.items()}
    oracles = {"probabilities": reference.losses, "logits": reference.logits_losses}
    exact = {(kind, y): oracles[kind](x.ravel(), y) for kind, x in inputs.items() for y in LABELS}
    for name, make in tqdm(LIBRARIES.items(), disable=not sys.stderr.isatty()):
        try:
            functions = make()
        except ImportError:
            print(f"{name} is not installed: left out", file=sys.stderr)
            continue
        found: dict[str, dict[str, list[float]]] = {}
        for (kind, y), truth in exact.items():
            x = inputs[kind].ravel()
            with np.errstate(all="ignore"):
                errors = ulps(functions[kind](x, np.full(x.shape, y, np.float32)), truth)
            worst = np.reshape(errors, inputs[kind].shape).max(axis=1)
            found.setdefault(kind, {})[str(y)] = [float(f"{error:.4g}") for error in worst]
        yield name, found


def versions() -> dict[str, str]:
    """The versions of Python and of what is installed."""
    found = {"python": platform.python_version(), "nbbce": nbbce.__version__}
    for name in ("numpy", "numba", "torch", "jax", "paddlepaddle", "scikit-learn"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def markdown(figures: dict[str, Any]) -> str:
    """The rows of README's table: the worst error of each library, by kind of input and label."""
    columns = [(kind, str(y)) for kind in RANGES for y in LABELS]
    heads = [f"{kind}, label {y}" for kind, y in columns]
    lines = [f"| worst error in ULP | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for name, found in figures["libraries"].items():
        label = f"{name} {figures['versions'].get(PACKAGES.get(name, name), '')}".strip()
        lines.append(f"| {label} | " + " | ".join(shown(max(found[kind][y])) for kind, y in columns) + " |")
    return "\n".join(lines)


def shown(error: float) -> str:
    """An error to read."""
    return f"{error:.2f}" if error < 99.5 else f"{error:,.0f}" if error < 1e5 else f"{error:.1e}"


def plot(figures: dict[str, Any], path: str) -> None:
    """Error over input, a panel for each kind of input and label."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(13, 8.5), sharey=True, layout="constrained")
    for row, (kind, edges) in zip(panels, figures["edges"].items(), strict=True):
        for axes, y in zip(row, map(str, LABELS), strict=True):
            panel(axes, kind, np.array(edges), y, figures)
    for axes in panels[:, 0]:
        axes.set_ylabel("worst error in ULP (0.5: 0.5 or less)")
    figure.suptitle("How far a float32 loss is from the exact value (lower is better)", fontweight="bold", fontsize=14)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        fontsize=11,
        handlelength=3.5,
        columnspacing=1.5,
    )
    figure.savefig(path, dpi=110)


def panel(axes: Any, kind: str, edges: Array, y: str, figures: dict[str, Any]) -> None:
    """One panel of the plot."""
    low, high = edges[:-1], edges[1:]
    # Half way between the ends of a bin as the axis shows it.
    middle = 1 / (1 + np.sqrt((1 - low) / low * (1 - high) / high)) if kind == "probabilities" else (low + high) / 2
    for k, (name, found) in enumerate(figures["libraries"].items()):
        label = f"{name} {figures['versions'].get(PACKAGES.get(name, name), '')}".strip()
        errors = np.maximum(found[kind][y], LEAST)
        axes.plot(middle, errors, label=label, color=f"C{k}" if k else "black", **STYLES[k % len(STYLES)])
    axes.set_yscale("log")
    axes.set_ylim(0.2, 1e13)
    axes.set_yticks(
        [0.5, 100, 1e4, 1e6, 1e8, 1e10, 1e12], ["0.5", "100", *(f"$10^{{{k}}}$" for k in (4, 6, 8, 10, 12))]
    )
    axes.set_yticks([], minor=True)
    if kind == "probabilities":
        axes.set_xscale("logit")
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_minor_formatter("")
        axes.set_xticks(
            [1e-12, 1e-9, 1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6],
            ["$10^{-12}$", "$10^{-9}$", "$10^{-6}$", "0.001", "0.5", "0.999", "$1-10^{-6}$"],
        )
        axes.set_xticks([], minor=True)
        axes.set_xlabel("predicted probability")
    else:
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("logit")
    axes.set_title(f"{kind}, label {y}", loc="left")
    # An error of 2^23 to 2^24 ULP is as large as the value itself.
    axes.axhspan(2.0**23, 1e13, color="tab:red", alpha=0.07, linewidth=0, zorder=0)
    axes.axhspan(0.2, 2.0, color="tab:green", alpha=0.15, linewidth=0, zorder=0)
    axes.annotate("not one digit is right", (0.5, 0.96), xycoords="axes fraction", ha="center", va="top", color="0.35")
    # Where no line runs.
    x, side = (0.02, "left") if (kind, y) == ("logits", "1") else (0.98, "right")
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": side, "va": "bottom"}
    axes.annotate("2 ULP: what nbbce is held to", (x, 2.0), (0, 3), color="0.35", **place)
    axes.grid(axis="y", alpha=0.25)


def main() -> int:
    """Measure, draw or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="measure, and write the figures to FILE")
    parser.add_argument("--from", dest="kept", metavar="FILE", default=KEPT, help="the figures to draw or print")
    parser.add_argument("--plot", metavar="FILE.png", help="draw kept figures")
    parser.add_argument("--markdown", action="store_true", help="print kept figures as a table")
    arguments = parser.parse_args()
    if arguments.json:
        figures: dict[str, Any] = {
            "versions": versions(),
            "edges": {kind: edges.tolist() for kind, edges in RANGES.items()},
            "libraries": dict(measured()),
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file)
            file.write("\n")
        arguments.kept = arguments.json
    with open(arguments.kept, encoding="utf-8") as file:
        figures = json.load(file)
    if arguments.plot:
        plot(figures, arguments.plot)
    if arguments.markdown or not arguments.plot:
        print(markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
