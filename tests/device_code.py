"""Device kernels as machine code: compiled without a device, taken apart, and counted."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import sass

ARCHITECTURES = ((7, 5), (8, 0), (9, 0), (10, 0), (12, 0))
LOADED_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def specs() -> dict[str, Any]:
    """Kernels by name: task, what it is of, and how it lies in memory."""
    from nbbce._elements_cuda import Memory, Spec

    def at(kind: str, access: str = "vector") -> Any:
        return Memory(kind, access)

    f, d, h, b, u = at("float32"), at("float64"), at("float16"), at("bfloat16"), at("uint8")
    mask = at("bool")
    one, two = "float32", "float64"
    unscaled, mean = {"scale_fits": True}, {"gradient_scaled": True, "scale_fits": True}
    strided = {"input": at(one, "strided"), "target": at("uint8", "strided"), "dimensions": 2}
    return {
        "each: loss, float32": Spec("each", "", one, f, f, loss=f),
        "each: loss, float64": Spec("each", "", two, d, d, loss=d),
        "each: loss, float16": Spec("each", "", one, h, h, loss=h),
        "each: loss, bfloat16": Spec("each", "", one, b, b, loss=b),
        "each: loss, float32, labels of uint8": Spec("each", "", one, f, u, loss=f),
        "each: loss, float32, weight": Spec("each", "", one, f, f, weight=f, loss=f),
        "each: loss, float32, misaligned": Spec("each", "", one, at(one, "dense"), f, loss=f),
        "each: loss, float32, strided": Spec("each", "", one, loss=f, **strided),
        "each: gradient, float32": Spec("each", "", one, f, f, gradient=f, **unscaled),
        "each: gradient of a mean, float32": Spec("each", "", one, f, f, gradient=f, **mean),
        "each: gradient, float64": Spec("each", "", two, d, d, gradient=d, **unscaled),
        "each: loss and gradient, float32": Spec("each", "", one, f, f, loss=f, gradient=f, **unscaled),
        "each: loss of logits, float32": Spec("each", "logits_", one, f, f, loss=f),
        "each: gradient of logits, float32": Spec("each", "logits_", one, f, f, gradient=f, **unscaled),
        "each: gradient and hessian of logits, float32": Spec(
            "each", "logits_", one, f, f, gradient=f, hessian=f, **unscaled
        ),
        "sum: float32": Spec("sum", "", one, f, f, result=one),
        "sum: float64": Spec("sum", "", two, d, d, result=two),
        "sum: float16": Spec("sum", "", one, h, h, result="float16"),
        "sum: bfloat16": Spec("sum", "", one, b, b, result="bfloat16"),
        "sum: float32, labels of uint8": Spec("sum", "", one, f, u, result=one),
        "sum: float32, weight": Spec("sum", "", one, f, f, weight=f, result=one),
        "sum: float32, mask": Spec("sum", "", one, f, f, where=mask, result=one),
        "sum: float32, strided": Spec("sum", "", one, result=one, **strided),
        "sum: float32, shares": Spec("sum", "", one, f, f, result=one, shares=True),
        "sum: logits, float32": Spec("sum", "logits_", one, f, f, result=one),
        "sum: logits, float64": Spec("sum", "logits_", two, d, d, result=two),
        "sum: focal, float32": Spec("sum", "focal_", one, f, f, result=one),
        "sum and gradient: float32": Spec("sum", "", one, f, f, gradient=f, result=one, **mean),
        "sum and gradient: logits, float32": Spec("sum", "logits_", one, f, f, gradient=f, result=one, **mean),
        "rows: float32": Spec("rows", "", one, f, f, result=one, products=True),
        "rows: logits, float32": Spec("rows", "logits_", one, f, f, result=one, products=True),
        "rows: float64": Spec("rows", "", two, d, d, result=two),
        "rows: count": Spec("rows", "", one, mask, None, result=two, counting=True),
        "columns: float32": Spec("columns", "", one, f, f, result=one, products=True, lanes=256),
        "columns: logits, float32": Spec("columns", "logits_", one, f, f, result=one, products=True, lanes=256),
        "columns: float64": Spec("columns", "", two, d, d, result=two, lanes=256),
        "segments: float32": Spec("segments", "", one, f, f, result=one, products=True, lanes=256),
        "count": Spec("count", "", one, mask, None, result=two),
        "check: float32": Spec("check", "", one, f, f),
    }


# What is compiled for every architecture; the others for that of data centres alone, (9, 0).
EVERYWHERE = (
    "each: loss, float32",
    "each: loss, float64",
    "each: loss, bfloat16",
    "each: gradient, float32",
    "sum: float32",
    "sum: float64",
    "sum: bfloat16",
    "sum: logits, float32",
    "rows: float32",
    "columns: float32",
    "check: float32",
)


def keys() -> list[tuple[str, tuple[int, int]]]:
    """Every kernel and architecture that tests look at."""
    return [(name, arch) for name in specs() for arch in ARCHITECTURES if name in EVERYWHERE or arch == (9, 0)]


class Code(NamedTuple):
    """A kernel, compiled."""

    ptx: str
    registers: int
    frame: int
    """Bytes of local memory of a thread."""
    instructions: list[str]
    """With their predicates, in order."""
    loops: list[list[str]]
    """Instructions of each loop that has none in it, from the shortest on."""


def without_environments(ptx: str) -> str:
    """PTX without the variables that Numba declares for each function and numbers anew; no instruction uses one."""
    left = re.sub(r"^\.common \.global .*NumbaEnv.*;\n", "", ptx, flags=re.MULTILINE)
    assert "NumbaEnv" not in left
    return left


def ptx_of(spec: Any, arch: tuple[int, int]) -> str:
    """The PTX of a kernel, from disk if it was compiled before: some take 5 s."""
    from nbbce import _compile_cuda

    folder = _compile_cuda._folder()  # its name says all that decides the text
    if folder is None:
        return _compile_cuda.ptx_of(spec, arch)
    name = hashlib.sha256(repr((spec, arch)).encode()).hexdigest()[:24]
    path = folder / f"{spec.task}-{name}.ptx"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(_compile_cuda.ptx_of(spec, arch))
        temporary.replace(path)
    return path.read_text()


def compiled(key: tuple[str, tuple[int, int]]) -> Code:
    """The kernel of a name for an architecture, as it would run there."""
    from nbbce._compile_cuda import code_of

    name, arch = key
    ptx = ptx_of(specs()[name]._replace(pairs=arch >= (8, 0)), arch)
    text = sass.sass_of(code_of(ptx, arch))
    kernel = re.search(r"^\.text\.nbbce_kernel:\n(.*?)(?=^\t\.section)", text, re.MULTILINE | re.DOTALL)
    assert kernel is not None
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in kernel[1].splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(found[1])
    ranges = []
    for k, line in enumerate(instructions):
        back = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        if back and labels.get(back[1], k) < k:
            ranges.append((labels[back[1]], k + 1))
    inner = [(a, b) for a, b in ranges if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in ranges)]
    loops = [instructions[a:b] for a, b in inner]
    return Code(
        ptx,
        _noted(text, "REGCOUNT"),
        _noted(text, "FRAME_SIZE"),
        instructions,
        sorted(loops, key=lambda loop: len(loop)),
    )


def _noted(text: str, attribute: str) -> int:
    """A number that the linker notes for the kernel."""
    found = re.search(
        rf"EIATTR_{attribute}\n(?:(?!EIATTR).)*?index@\(nbbce_kernel\).*?\.word\s+0x([0-9a-f]+)", text, re.DOTALL
    )
    assert found is not None
    return int(found[1], 16)


def bytes_of_element(name: str) -> int:
    """Bytes that an element has in all that a kernel reads."""
    import numpy as np

    sizes = {"bfloat16": 2}
    read = specs()[name].operands[:6]
    return sum(sizes.get(memory.kind) or np.dtype(memory.kind).itemsize for memory in read if memory is not None)


def loops_of(name: str, code: Code) -> list[tuple[int, list[str]]]:
    """The loops that read what a kernel is of, with the elements that a turn takes."""
    size = bytes_of_element(name)
    found = [(sum(loaded(loop)) // size, loop) for loop in code.loops if loaded(loop)]
    # The loops that add the sums of blocks do nothing but add; those that leave factors for products convert them.
    computing = {"FFMA", "DFMA", "DMUL", "F2F"}
    return [(elements, loop) for elements, loop in found if elements and computing & set(opcodes(loop))]


def opcodes(instructions: list[str]) -> collections.Counter[str]:
    """How often each instruction stands there, by its name without modifiers and predicate."""
    return collections.Counter(name_of(line).split(".")[0] for line in instructions)


def name_of(instruction: str) -> str:
    """Name of an instruction with its modifiers, without its predicate."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def loaded(loop: list[str]) -> list[int]:
    """Bytes of each load from memory."""
    loads = [name_of(line).split(".") for line in loop if name_of(line).startswith("LDG")]
    return [next((LOADED_BYTES[part] for part in load if part in LOADED_BYTES), 4) for load in loads]


def recorded() -> str:
    """The instructions of an element, as tests/test_cuda_code.py records them."""
    lines: dict[str, list[str]] = {}
    for name, (major, minor) in keys():
        found = loops_of(name, compiled((name, (major, minor))))
        counts = ", ".join(f"{len(loop) / elements:.1f}" for elements, loop in found)
        lines.setdefault(name, []).append(f'"{major}{minor}": ({counts}{"," if len(found) == 1 else ""})')
    return "".join(f'    "{name}": {{{", ".join(counts)}}},\n' for name, counts in lines.items())


if __name__ == "__main__":
    print(recorded(), end="")
