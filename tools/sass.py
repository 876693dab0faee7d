"""Machine code of a device kernel, taken apart: what its loops are made of, and how near to memory speed they can be.

    python tools/sass.py        the main kernels, by model: no device is needed

Needs nvdisasm (the package nvidia-cuda-nvdisasm).  The model: an element takes as long as the pipe that it keeps
busiest, or the scheduler; a loop is as near to memory speed as that time allows.  It knows nothing of latencies.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# An H200: multiprocessors, Hz at full speed, and bytes a second of a copy (a little below the 4.8e12 of its memory).
PROCESSORS, CLOCK, COPY = 132, 1.98e9, 4.3e12
# Results of a multiprocessor in a clock, compute capability 9.0 (CUDA C++ Programming Guide, arithmetic instructions).
PIPES = {
    "scheduler": (128, r"."),
    "float32": (128, r"FADD|FMUL|FFMA|IMAD"),
    "float64": (64, r"DADD|DMUL|DFMA|DSETP"),
    "integer and compare": (
        64,
        r"IADD3|VIADD|LOP3|SHF|LEA|ISETP|FSETP|FSEL|SEL|FMNMX|VIMNMX|IMNMX|PLOP3|I2FP|PRMT|F2FP",
    ),
    "conversion and special": (16, r"F2F|F2I|I2F|MUFU"),
    "memory": (32, r"LDG|STG|LDS|STS|SHFL"),
}


class Loop(NamedTuple):
    """A loop of a kernel."""

    instructions: list[str]

    def count(self, pattern: str = ".") -> int:
        """Instructions whose name begins with what the pattern matches."""
        return sum(bool(re.match(pattern, line)) for line in self.instructions)


def nvdisasm() -> str:
    """Path of the disassembler; a FileNotFoundError if its package is not installed."""
    packages = importlib.util.find_spec("nvidia")
    for folder in packages.submodule_search_locations or () if packages else ():
        found = sorted(Path(folder).glob("cu*/bin/nvdisasm*")) + sorted(
            Path(folder).glob("cuda_nvdisasm/bin/nvdisasm*")
        )
        if found:
            return str(found[-1])
    raise FileNotFoundError("nvdisasm: install nvidia-cuda-nvdisasm")


def sass_of(code: bytes, *options: str) -> str:
    """Text of machine code, and of what else `options` of nvdisasm ask for; with ``-c`` of the code alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        return subprocess.run([nvdisasm(), *options, str(path)], capture_output=True, text=True, check=True).stdout


def _lines(sass: str) -> list[tuple[str, str]]:
    """Instructions without predicates, each with the label that stands before it, if one does."""
    found, label = [], ""
    for text in sass.splitlines():
        if name := re.match(r"^(\.L_x_\d+):", text):
            label = name[1]
        elif line := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", text):
            found.append((line[1], label))
            label = ""
    return found


def loops_of(sass: str) -> list[Loop]:
    """The loops of a kernel, in the order of their ends."""
    lines = _lines(sass)
    start = {label: k for k, (_, label) in enumerate(lines) if label}
    found = []
    for k, (line, _) in enumerate(lines):
        back = re.match(r"BRA\b.*`\((\.L_x_\d+)\)", line)
        if back and start.get(back[1], len(lines)) <= k:
            found.append(Loop([line for line, _ in lines[start[back[1]] : k + 1]]))
    return found


def elements_of(loop: Loop, bytes_of_input: int) -> float:
    """Elements that one turn of a loop of loads takes: half of its loads are of the input."""
    widths = {"LDG.E.128": 16, "LDG.E.64": 8, "LDG.E.U16": 2, "LDG.E.U8": 1, "LDG.E": 4}
    loaded = [next(widths[w] for w in widths if line.startswith(w)) for line in loop.instructions if line[:3] == "LDG"]
    return sum(loaded) / 2 / bytes_of_input


def model(loop: Loop, elements: float, bytes_of_element: int) -> tuple[float, str]:
    """Speed of a loop by model, as a share of that of a copy (more than 1: memory decides), and its busiest pipe."""
    clocks = {pipe: loop.count(pattern) / elements / rate for pipe, (rate, pattern) in PIPES.items()}
    busiest = max(clocks, key=lambda pipe: clocks[pipe])
    return PROCESSORS * CLOCK / clocks[busiest] * bytes_of_element / COPY, busiest


def main_kernels() -> dict[str, tuple[Any, int]]:
    """The kernels of the table, each with the bytes that an element moves; labels have the dtype of the input."""
    from nbbce._elements_cuda import Memory, Spec

    found: dict[str, tuple[Any, int]] = {}
    for kind, size in (("float32", 4), ("bfloat16", 2), ("float16", 2), ("float64", 8)):
        memory, computed = Memory(kind, "vector"), "float64" if kind == "float64" else "float32"
        found[f"none, {kind}"] = Spec("each", "", computed, memory, memory, loss=memory), 3 * size
        found[f"mean, {kind}"] = Spec("sum", "", computed, memory, memory, result=kind), 2 * size
    memory = Memory("float32", "vector")
    for family, says in (("", ""), ("logits_", " of logits")):
        gradient = Spec(
            "each", family, "float32", memory, memory, gradient=memory, gradient_scaled=True, scale_fits=True
        )
        both = gradient._replace(task="sum", result="float32")
        found[f"gradient{says}, float32"] = gradient, 12
        found[f"value and gradient{says}, float32"] = both, 12
    found["none of logits, float32"] = Spec("each", "logits_", "float32", memory, memory, loss=memory), 12
    found["mean of logits, float32"] = Spec("sum", "logits_", "float32", memory, memory, result="float32"), 8
    return found


def reading_loops(spec: Any, capability: tuple[int, int] = (9, 0)) -> list[tuple[Loop, float]]:
    """The loops of a kernel that read the input, each with the elements of one turn."""
    from nbbce._compile_cuda import code_of, ptx_of

    size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[spec.input.kind]
    sass = sass_of(code_of(ptx_of(spec, capability), capability), "-c")
    # Two accesses of neighbours at a time, or a row of eight lanes; other loops are for what is left, or look for what
    # is out of its domain.
    full = spec.at_once * spec.width if spec.task == "each" else 8
    computing = [loop for loop in loops_of(sass) if loop.count("FFMA|DFMA|DMUL")]
    loops = [loop for loop in computing if elements_of(loop, size) == full and loop.count("LDG") <= 16]
    return [(loop, elements_of(loop, size)) for loop in loops[: 2 if spec.by_products else 1]]


def rows_of_table(capability: tuple[int, int] = (9, 0)) -> list[dict[str, Any]]:
    """One row for each loop of a kernel that reads the input."""
    rows = []
    for name, (spec, bytes_of_element) in main_kernels().items():
        loops = reading_loops(spec, capability)
        labels = ["any labels"] if len(loops) == 1 else ["labels 0/1", "other labels"]
        if spec.family == "logits_" and len(loops) == 2:
            labels = ["any labels", "a block that the product refuses: its second pass"]
        for k, (label, (loop, elements)) in enumerate(zip(labels, loops, strict=True)):
            moved = 8 if spec.family and k == 1 else bytes_of_element  # that pass writes nothing
            share, busiest = model(loop, elements, moved)
            rows.append(
                {
                    "kernel": name,
                    "labels": label,
                    "instructions": round(loop.count() / elements, 1),
                    "float64": round(loop.count(PIPES["float64"][1]) / elements, 1),
                    "share_of_copy": round(share, 2),
                    "busiest": busiest,
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The figures as a table."""
    lines = [
        "| kernel | labels | instructions an element | of these float64 | busiest | share of a copy's speed |",
        "| --- | --- | ---: | ---: | --- | ---: |",
    ]
    for row in rows:
        share = f"{min(row['share_of_copy'], 1.0):.2f}" + (
            f" ({row['share_of_copy']:.1f})" * (row["share_of_copy"] > 1)
        )
        figures = f"{row['instructions']:.1f} | {row['float64']:.1f} | {row['busiest']} | {share}"
        lines.append(f"| {row['kernel']} | {row['labels']} | {figures} |")
    return "\n".join(lines)


def main() -> int:
    """Make the figures and print them."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(markdown(rows_of_table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
