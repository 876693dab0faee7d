"""The generated source: fresh, the same text as plain Python and as machine code, and compiled as it is meant."""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from nbbce import _blocks_cpu, _compile
from nbbce import _generated_cpu as generated

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> Any:
    """The module tools/`name`.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = tool("generate_kernels")
filenames = pytest.mark.parametrize("filename", generator.TARGETS)


def run(tree: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, tree / "tools" / f"{name}.py", *arguments], capture_output=True, text=True, timeout=100
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the tools read and write."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "nbbce").mkdir()
    for filename in generator.TARGETS:
        shutil.copy(ROOT / "nbbce" / filename, tmp_path / "nbbce")
    return tmp_path


def with_last_digit_changed(text: str) -> str:
    """`text` with another last digit in the first of its numbers that has more than ten."""
    number = re.search(r"\d\.\d{10,}", text)
    assert number is not None
    last = number.end() - 1
    return text[:last] + str((int(text[last]) + 1) % 10) + text[last + 1 :]


# ------------------------------------------------------------------------------------------------------- freshness
@filenames
def test_committed_module_is_byte_for_byte_what_the_generator_renders(filename):
    committed = (ROOT / "nbbce" / filename).read_bytes()
    assert committed == generator.TARGETS[filename]().encode(), (
        f"{filename} is stale: run python tools/generate_kernels.py"
    )


def test_every_generated_module_is_one_that_the_generator_writes():
    assert {path.name for path in (ROOT / "nbbce").glob("_generated_*.py")} == set(generator.TARGETS)


def test_check_of_the_committed_modules_succeeds_silently():
    checked = run(ROOT, "generate_kernels", "--check")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@filenames
def test_check_fails_on_a_changed_module_and_names_it(tree, filename):
    module = tree / "nbbce" / filename
    changed = with_last_digit_changed(module.read_text())
    module.write_text(changed)
    checked = run(tree, "generate_kernels", "--check")
    assert checked.returncode == 1
    assert checked.stderr == f"nbbce/{filename} is stale: run python tools/generate_kernels.py\n"
    assert module.read_text() == changed, "--check writes nothing"


@filenames
def test_check_fails_on_a_missing_module_and_writing_restores_every_byte(tree, filename):
    module = tree / "nbbce" / filename
    module.unlink()
    assert run(tree, "generate_kernels", "--check").returncode == 1
    assert run(tree, "generate_kernels").returncode == 0
    assert module.read_bytes() == (ROOT / "nbbce" / filename).read_bytes()
    assert run(tree, "generate_kernels", "--check").returncode == 0


def test_check_fails_after_a_coefficient_has_changed(tree):
    coefficients = tree / "tools" / "coefficients.json"
    coefficients.write_text(with_last_digit_changed(coefficients.read_text()))
    assert run(tree, "generate_kernels", "--check").returncode == 1


@filenames
def test_no_line_of_a_generated_module_carries_a_date(filename):
    month = "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
    day_first, year_first = r"\d\d?[-/.]\d\d?[-/.](19|20)\d\d", r"(19|20)\d\d[-/.]\d\d?[-/.]\d\d?"
    date = re.compile(rf"\b({day_first}|{year_first}|{month}\.? \d+|\d\d?:\d\d)\b")
    dated = "2024-05-31", "31.12.2024", "5/31/2024", "May 31", "December 2024", "17:03"
    assert all(date.search(text) for text in dated)
    assert [line for line in (ROOT / "nbbce" / filename).read_text().splitlines() if date.search(line)] == []


def test_fits_give_the_committed_coefficients_to_the_last_bit():
    checked = run(ROOT, "minimax", "--check")
    assert checked.returncode == 0, checked.stderr


def test_check_of_the_fits_fails_after_a_digit_has_changed(tree):
    coefficients = tree / "tools" / "coefficients.json"
    changed = with_last_digit_changed(coefficients.read_text())
    coefficients.write_text(changed)
    checked = run(tree, "minimax", "--check")
    assert checked.returncode == 1
    assert checked.stderr.endswith("coefficients.json is not what the fits give: run python tools/minimax.py\n")
    assert coefficients.read_text() == changed, "--check writes nothing"


@filenames
def test_every_coefficient_of_the_source_is_a_fitted_one(filename):
    fits = json.loads((ROOT / "tools" / "coefficients.json").read_text())
    on_host = filename == "_generated_cpu.py"
    names = [name for name in fits if not (on_host and name.endswith("_16_bits"))]  # that fit is for devices alone
    fitted = {float(number) for name in names for number in fits[name]["coefficients"]}
    source = (ROOT / "nbbce" / filename).read_text()
    shown = re.findall(
        r"^(?:NEAR|LOG|SUMMED_LOG|EXP|LOG1P)_(?:\d\d|WIDE)_\d+ = (?:F32\()?([-+.\de]+)\)?$", source, re.MULTILINE
    )
    assert sorted(map(float, shown)) == sorted(fitted)


# ---------------------------------------------------------------------------------------------- plain Python
# Digits, and exponent of the smallest subnormal.
FORMATS = {np.float32: (24, -149), np.float64: (53, -1074)}


def rounded(exact: Fraction, dtype: type) -> Any:
    """The float nearest to `exact`, ties to even.  Python's integers, no float arithmetic."""
    digits, least = FORMATS[dtype]
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()  # 2^exponent is within a factor of 2
    if size < Fraction(2) ** exponent:
        exponent -= 1
    unit = max(exponent - digits + 1, least)
    # `round` of a Fraction is to even on ties.  The product is exact, but for overflow to inf.
    nearest = np.ldexp(np.float64(round(size / Fraction(2) ** unit)), unit)
    with np.errstate(over="ignore"):
        return dtype(nearest if exact > 0 else -nearest)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, in the type of `a` as Numba takes it."""
    dtype = np.float32 if isinstance(a, np.float32) else np.float64
    assert dtype is np.float64 or type(b) is type(c) is np.float32, "b or c would be rounded"
    if np.isfinite([a, b, c]).all():
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        if exact:
            return rounded(exact, dtype)
    # A zero has the sign that separate steps give it, and what is not finite has no rounding.
    return dtype(a) * dtype(b) + dtype(c)


STAND_INS = {
    "fma": fma,
    "bits_of_float32": lambda x: np.float32(x).view(np.uint32),
    "bits_of_float64": lambda x: np.float64(x).view(np.uint64),
    "float32_of_bits": lambda b: np.uint32(b).view(np.float32),
    "float64_of_bits": lambda b: np.uint64(b).view(np.float64),
}
FORMULAS = [row.name for row in generator.formulas()]
# Scales of gradients: those that float32 will do for, the first and last of them, and others.
SCALES = [
    1.0,
    -1.0,
    1e-7,
    -0.7,
    3.3e5,
    *(s * t for s in (2.0**-60, 2.0**60) for t in (1 - 2.0**-53, 1.0, 1 + 2.0**-52)),
]
SCALES += [0.0, -0.0, 1e-30, -1e30, 1e300, np.inf, np.nan]
formulas = pytest.mark.parametrize("name", FORMULAS)


def plain() -> dict[str, Any]:
    """The names of the generated module, with each formula as the Python function that its text is."""
    namespace = dict(vars(generated)) | STAND_INS
    # Constants of the module are Python floats where it says so; NumPy's arithmetic on them is float64's.
    namespace |= {name: np.float64(value) for name, value in namespace.items() if type(value) is float}
    for name in FORMULAS:
        namespace[name] = types.FunctionType(getattr(generated, name).py_func.__code__, namespace, name)
    return namespace


PLAIN = plain()


def types_of(name: str) -> list[type]:
    """The type of each parameter of a formula: that in its name, but for the one that mixes them."""
    if "wide_loss" in name or "_wide_" in name:
        return [np.float32, *[np.float64] * (len(inspect.signature(PLAIN[name]).parameters) - 1)]
    dtype = {"float32": np.float32, "float64": np.float64}[name.rsplit("_", 1)[1]]
    return [dtype] * len(inspect.signature(PLAIN[name]).parameters)


def neighbours(value: float, dtype: type) -> list[Any]:
    middle = dtype(value)
    return [np.nextafter(middle, dtype(-np.inf)), middle, np.nextafter(middle, dtype(np.inf))]


def points(parameter: str, dtype: type) -> list[Any]:
    """Where to try a formula's parameter: the ends of its range, what is special inside, and some random ones."""
    rng = np.random.default_rng(7)
    tiny, least = np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal
    below_half = [0.0, least, tiny, *neighbours(1e-12, dtype), *neighbours(np.exp(-100), dtype), 1e-9, 1e-3, 0.25]
    below_half += [*neighbours(1 / 3, dtype), 0.49, *neighbours(0.5, dtype)[:2], *rng.uniform(0, 0.5, 12)]
    far = [0.0, least, tiny, 1e-3, 0.3, *neighbours(np.log(2) / 2, dtype), *neighbours(1.5 * np.log(2), dtype), 17.0]
    far += [*neighbours(60.0, dtype), *neighbours(80.0, dtype), *neighbours(86.0, dtype), 87.5, 104.0]
    far += [*neighbours(150.0, dtype), *neighbours(220.0, dtype)[:2]]
    if dtype is np.float64:
        far += [*neighbours(600.0, dtype), 708.5, 745.0, *neighbours(760.0, dtype), *neighbours(1300.0, dtype)]
    far += [*rng.uniform(0, 105, 12)]
    shares = [0.0, 1.0, 0.5, 0.3, 1e-5, least, *neighbours(1.0, dtype)[:1], *rng.uniform(0, 1, 6)]
    errors = [0.0, np.finfo(dtype).eps / 5, -np.finfo(dtype).eps / 7]
    inside = [*below_half, *(1 - dtype(t) for t in below_half), *neighbours(0.5, dtype), *neighbours(2 / 3, dtype)]
    values = {
        "t": below_half,
        "x": inside,
        "y": [0.0, 1.0, 0.5, 0.3, *neighbours(1.0, dtype)[:1], 1e-5, least],
        "e": [-1074.0, -149.0, -127.0, -2.0, -1.0, 0.0],
        "m": [
            *neighbours(2 / 3, dtype)[1:],
            *neighbours(1.0, dtype),
            *neighbours(4 / 3, dtype)[:2],
            *rng.uniform(0.67, 1.33, 9),
        ],
        "g": [-1 / 3, 1 / 3, 0.0, *neighbours(0.0, dtype), 2.0**-23, -1e-4, *rng.uniform(-0.333, 0.333, 24)],
        # Logits, and how far they are from 0: the range reduction, where `late` sets in, and what is held.
        "z": [sign * z for z in (*far, np.inf) for sign in (1, -1)],
        "away": far,
        "u": [0.0, least, tiny, 1e-30, *neighbours(1.0, dtype)[:2], *rng.uniform(0, 1, 24)],
        # Shares of a label on either side of 0, their rounding errors, and shares with weights of their own.
        "wrong": shares,
        "right": shares,
        "error": errors,
        "wrong_error": errors,
        "right_error": errors,
        "whole": [1.0, 0.0, 3.7, 1e-30],
        "a": [*shares, 12.5],
        "b": [*shares, 12.5],
        "a_error": errors,
        "b_error": errors,
        "n_error": errors,
        "d": [1.0, 0.7, *rng.uniform(0.1, 2, 9)],
        "d_error": errors,
        # The parts of an exponential.
        "r": [0.0, *rng.uniform(-0.3466, 0.3466, 9)],
        "s": [0.0, *rng.uniform(-0.002, 0.066, 9)],
        "v": [0.0, *rng.uniform(-0.3, 0.415, 9)],
        "power": [1.0, 0.0, 2.0**-1, 2.0**-116],
        # What results are multiplied by, as it is and in parts: of float32's numbers, and beyond them.
        "factor": [*SCALES, *rng.uniform(-3, 3, 9)],
        "scale": [1.0, -1e-7, 0.7, 2.0**60, 2.0**-60],
        "inverse": [1.0, -1e7, 1.4, 2.0**-60, 2.0**60],
        # Of the focal loss: what is left of an argument after rounding, an argument of the logarithm, the exponent, and
        # the weights of the labels.
        "rest": [0.0, 1e-17, -1e-15],
        "small": [0.0, 1e-320, -1e-310],
        "late": [1.0, 2.0**-256],
        "tail": [0.0, least, 1e-30, *rng.uniform(0, 0.69, 9)],
        "tail_error": errors,
        "log": [-760.0, 0.0, *rng.uniform(-40, 0, 9)],
        "log_error": errors,
        "n": [least, tiny, 1e-300, *neighbours(1.0, dtype)[:2], *rng.uniform(0, 1, 24)],
        "gamma": [0.0, 0.5, 2.0, 7.3],
        "positive": [0.25, 1.0, 0.0],
        "negative": [0.75, 1.0],
        "value": [0.0, -1e-300, 0.7, np.inf, -np.inf, np.nan],
        # Values of the polynomials.
        "q": [0.5, *rng.uniform(0.5, 0.8, 9)],
        "p": [-0.5, *rng.uniform(-0.65, -0.4, 9)],
        "h": [0.0, *rng.uniform(-0.405, 0.288, 9)],
        "log_m": [0.0, *rng.uniform(-0.405, 0.288, 9)],
    }[parameter]
    return [dtype(value) for value in values]


def cases(name: str) -> list[tuple[Any, ...]]:
    """Arguments of one formula: every combination of the points of its parameters, or 500 where that is too many."""
    columns = [
        points(parameter, dtype)
        for parameter, dtype in zip(inspect.signature(PLAIN[name]).parameters, types_of(name), strict=True)
    ]
    if name == "split_float64":  # for normal t > 0 alone
        columns[0] = [t for t in columns[0] if t >= np.finfo(np.float64).tiny]
    if len(columns) <= 2:
        return list(itertools.product(*columns))
    rng = np.random.default_rng(11)
    return [tuple(column[rng.integers(len(column))] for column in columns) for _ in range(500)]


def in_plain_python(name: str, *arguments: Any) -> tuple[Any, ...]:
    # Integers wrap around, and at the ends a branch that is not taken divides by zero.
    with np.errstate(all="ignore"):
        result = PLAIN[name](*arguments)
    return result if isinstance(result, tuple) else (result,)


def bits(values: Any, dtype: type) -> list[int]:
    """Bits of floats; one pattern for every NaN."""
    array = np.array(values, dtype)
    array[np.isnan(array)] = np.nan
    return array.view(f"u{array.itemsize}").tolist()


def test_stand_in_for_fma_rounds_once():
    # (1 + 2^-27) (1 - 2^-27) - 1 = -2^-54, where the rounded product leaves 0.
    a, b = np.float64(1 + 2**-27), np.float64(1 - 2**-27)
    assert fma(a, b, np.float64(-1)) == -(2.0**-54)
    # 2^-24 is half a unit of the last place of 1: a tie, to even, that a further 2^-60 breaks.
    one, half_unit = np.float32(1), np.float32(2**-24)
    assert fma(half_unit, one, one) == 1
    assert fma(half_unit, np.float32(1 + 2**-23), one) == np.float32(1 + 2**-23)
    # Halves of the smallest subnormals, and overflow.
    least = np.float32(2**-149)
    assert fma(least, np.float32(0.5), np.float32(0)) == 0
    assert fma(least, np.float32(1.5), np.float32(0)) == 2 * least
    assert fma(np.float32(2**127), np.float32(2), np.float32(0)) == np.inf
    assert np.signbit(fma(np.float32(-0.0), one, np.float32(-0.0)))


@formulas
def test_formula_as_plain_python_gives_the_bits_of_the_compiled_one(name):
    compiled, arguments = getattr(generated, name), cases(name)
    assert len(arguments) >= 24
    for case in arguments:
        expected = in_plain_python(name, *case)
        result = compiled(*case)
        dtype = type(expected[0])
        # In a float64 formula a literal is a Python float, which NumPy's float64 is one of.
        assert all(isinstance(value, float if dtype is np.float64 else dtype) for value in expected)
        assert bits(result if isinstance(result, tuple) else (result,), dtype) == bits(expected, dtype), f"{name}{case}"


@pytest.mark.parametrize("name", [name for name in FORMULAS if name.endswith("_float32")])
def test_float32_formula_stays_float32_in_numba(name):
    # A bare literal, or a division of integers, would pull it up to float64.
    compiled = getattr(generated, name)
    signature = (numba.float32,) * len(types_of(name))
    compiled.compile(signature)
    result = compiled.overloads[signature].signature.return_type
    assert set(result if isinstance(result, numba.types.BaseTuple) else [result]) == {numba.float32}


MAKER = ctypes.CFUNCTYPE(ctypes.c_double, *(ctypes.c_int64,) * 3, ctypes.c_double, *(ctypes.c_int64,) * 3)


def made(
    maker: str,
    x: np.ndarray,
    y: np.ndarray,
    count: int,
    out: np.ndarray | None = None,
    scale: float = 1.0,
    weights: np.ndarray | None = None,
) -> float:
    """What a compiled maker returns for the block of `x` and `y`, which fills `out` if it makes something of each."""
    memory = np.full(128 + generated.SCRATCH + 64, 165, np.uint8)
    memory[80:88].view(np.int64)[0] = 8  # bytes of a weight, which stand 48 before the scratch memory
    memory[40:80] = 0  # nothing to ask for ahead
    scratch = memory[128:]
    native = MAKER(getattr(generated, maker).address)
    result = native(
        x.ctypes.data,
        y.ctypes.data,
        0 if weights is None else weights.ctypes.data,
        float(generated.FIRST + generated.LAST) if out is None else scale,
        0 if out is None else out.ctypes.data,
        count,
        scratch.ctypes.data,
    )
    assert (scratch[generated.SCRATCH :] == 165).all(), "the maker wrote behind its scratch memory"
    return result


EACH = ["loss_float32", "loss_float64", "gradient_float64", "logits_loss_float32", "logits_loss_float64"]
EACH += ["logits_gradient_float64", "logits_hessian_float32", "logits_hessian_float64"]


@pytest.mark.parametrize("name", EACH)
def test_maker_of_each_element_gives_the_bits_of_the_formula_as_plain_python(name):
    dtype, arguments = types_of(name)[0], cases(name)
    x, y = (np.array(column, dtype) for column in zip(*arguments, strict=True))
    out = np.full(x.size, np.nan, dtype)
    assert x.size <= generated.BLOCK
    assert made(f"each_{name}", x, y, x.size, out) == 0.0
    # A logit's result comes in two factors.
    factors = [in_plain_python(name, *case) for case in arguments]
    expected = [pair[0] * pair[1] if len(pair) == 2 else pair[0] for pair in factors]
    assert bits(out, dtype) == bits(expected, dtype)


@pytest.mark.parametrize("weighted", [False, True], ids=["scale", "weights"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("family", ["", "logits_"], ids=["probabilities", "logits"])
def test_maker_of_float32_gradients_gives_the_bits_of_the_formula_as_plain_python(family, scale, weighted):
    # A row and more without what the quick loop leaves to others, logits far from 0 and probabilities near an end.
    every, y = (points(name, np.float32) for name in ("z" if family else "x", "y"))
    quick = [p for p in every if (abs(p) <= 80 if family else 1e-11 < p < 1)]
    pairs = [*itertools.product(quick, y), *itertools.product(every, y)]
    assert len(quick) * len(y) > generated.LANES
    parts = in_plain_python("scale_parts_float64", np.float64(scale))
    (left,) = in_plain_python("scale_left_float64", np.float64(scale))
    x, labels = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    out = np.full(x.size, np.nan, np.float32)
    weights = np.full(x.size, scale) if weighted else None
    maker = f"each_{family}gradient_float32"
    assert made(maker, x, labels, x.size, out, 1.0 if weighted else scale, weights) == 0.0
    expected = []
    with np.errstate(all="ignore"):
        for pair in pairs:
            value, *late = map(np.float64, in_plain_python(f"{family}gradient_float32", *pair, *parts))
            expected.append(np.float32(value * left * (late[0] if late else 1.0)))
    assert bits(out, np.float32) == bits(expected, np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_maker_of_a_sum_gives_the_bits_of_the_formula_as_plain_python(dtype):
    # A row of LANES elements whose losses but one are exactly 0 (x = y = 0): the sum is that one, in float64.
    for case in cases(f"loss_{dtype.__name__}")[::7]:
        x, y = np.zeros(generated.LANES, dtype), np.zeros(generated.LANES, dtype)
        x[3], y[3] = case
        if dtype is np.float32:
            terms = map(np.float64, in_plain_python("terms_float32", x[3]))
            expected = in_plain_python("wide_loss", x[3], np.float64(y[3]), *terms)
        else:
            expected = in_plain_python("loss_float64", *case)
        total = made(f"sum_{dtype.__name__}", x, y, generated.LANES)
        assert bits([total], np.float64) == bits([0.0 + expected[0]], np.float64), case


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_sum_by_products_refuses_a_block_with_any_other_label_than_0_and_1(dtype):
    one, least = dtype(1), np.nextafter(dtype(0), dtype(1))
    others = [-0.0, least, np.finfo(dtype).tiny, 0.25, 0.5, np.nextafter(one, dtype(0)), np.nextafter(one, dtype(2))]
    others += [2.0, 3.0, np.inf, np.nan, -np.inf, -1.0, -least]
    x, y = np.full(generated.BLOCK, 0.5, dtype), (np.arange(generated.BLOCK) % 2).astype(dtype)
    maker = f"hard_sum_{dtype.__name__}_float"
    # 4096 losses of log 2.
    assert made(maker, x, y, y.size) == pytest.approx(4096 * np.log(2), rel=1e-15)
    for label in others:
        for place in (0, 7, 8, 300, 4095):
            changed = y.copy()
            changed[place] = label
            assert np.isnan(made(maker, x, changed, y.size)), (label, place)


# ---------------------------------------------------------------------------------------------------- machine code
NATIVES = {
    name: native
    for module in (generated, _blocks_cpu)
    for name, native in vars(module).items()
    if isinstance(native, _compile.Native)
}
# Copies from integers do no arithmetic.
FLOAT_NATIVES = [name for name in NATIVES if not re.match(r"copy_u?int", name)]
COMPUTING = [name for name in NATIVES if re.search(r"sum_float|^each_|hard_sum", name)]
IR: dict[str, str] = {}


@pytest.fixture
def llvm(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """LLVM's optimised text of a kernel, compiled afresh: code from the cache has none."""
    monkeypatch.setattr(_compile, "FOLDER", None)

    def text(name: str) -> str:
        if name not in IR:
            native = NATIVES[name]
            IR[name] = _compile.Native(native.function, native.signature).compile().inspect_llvm()
        return IR[name]

    return text


def instructions(text: str) -> list[str]:
    """Lines of LLVM's text without what a name or a string may hold."""
    return [re.sub(r'"[^"]*"|[%@][-\w.$]+', "", line) for line in text.splitlines() if "=" in line and line[:1] == " "]


@pytest.mark.parametrize("name", FLOAT_NATIVES)
def test_kernel_carries_no_flag_that_lets_llvm_change_its_arithmetic(llvm, name):
    text = llvm(name)
    flags = re.compile(r"\b(fast|reassoc|contract|arcp|afn|nsz|nnan|ninf)\b")
    assert flags.search(" %1 = fmul contract <8 x float> %2, %3")
    found = instructions(text)
    assert len(found) > 20
    assert [line for line in found if flags.search(line)] == []
    # The same permissions as attributes of a function, and the intrinsic that may or may not fuse.
    assert not re.search(r'"(unsafe-fp-math|no-\w+-fp-math|approx-func-fp-math)"="true"|llvm\.fmuladd', text)


@pytest.mark.parametrize("name", COMPUTING)
def test_loop_of_a_maker_is_vectorised(llvm, name):
    # By the operation that carries its formula: the fused multiply-add, or the product of hard labels.
    operation = r"= fmul <(\d+) x double>" if name.startswith("hard_sum") else r"<(\d+) x \w+> @llvm\.fma\.v"
    lanes = {int(count) for count in re.findall(operation, llvm(name))}
    assert lanes
    assert max(lanes) > 1


def test_float32_loss_is_computed_in_float32_alone(llvm):
    text = "\n".join(instructions(llvm("each_loss_float32")))
    assert "fmul" in text
    assert "fpext" not in text
    assert not re.search(r"= f(mul|add|sub|div|neg) (<\d+ x )?double", text)


@pytest.mark.parametrize("name", [name for name in COMPUTING if name.startswith("each_loss")])
def test_loop_of_losses_has_no_call_into_the_mathematical_library(llvm, name):
    called = set(re.findall(r"\bcall [^@\n]*@([\w.]+)\(", llvm(name)))
    assert any(function.startswith("llvm.fma") for function in called)
    assert [function for function in called if re.search(r"log|exp|pow", function)] == []
