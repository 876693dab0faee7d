"""README's table of a device, from what `nbbce bench --target cuda --json` has printed there.

    python asv_benchmarks/device.py asv_benchmarks/device-h100.json

The speed of each function as a share of that of a copy, in every dtype; and of float32 how many times as fast as others
it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from nbbce._bench import MEMORY, ratio

DTYPES = ("float32", "float64", "bfloat16", "float16")
OTHERS = ("torch eager", "torch.compile", "jax.jit", "CuPy one-liner")


def markdown(figures: dict[str, Any]) -> str:
    """The table."""
    near = {(row["question"], row["dtype"]): row for row in figures["rows"] if row["group"] == MEMORY}
    against = {(row["question"], row["against"]): row for row in figures["rows"] if row["dtype"] == DTYPES[0]}
    lines = [
        f"| work | GB/s | {' | '.join(f'share, {dtype}' for dtype in DTYPES)} | {' | '.join(OTHERS)} |",
        "| --- |" + " ---: |" * (1 + len(DTYPES) + len(OTHERS)),
    ]
    for question in dict.fromkeys(question for question, _ in near):
        row = near[question, DTYPES[0]]
        cells = [question, f"{row['bytes'] / row['nbbce_s'] / 1e9:.0f}"]
        shares = [near.get((question, dtype)) for dtype in DTYPES]
        cells += ["" if found is None else f"{ratio(found):.2f}" for found in shares]
        times = [against.get((question, other)) for other in OTHERS]
        cells += ["" if found is None else f"{ratio(found):.2f}" for found in times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="a file of JSON")
    print(markdown(json.loads(parser.parse_args().figures.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
