"""The same bits for any number of threads, any memory layout, any way to ask for them, and on any processor.

Run as a script this file prints a digest of many answers; tests compare those of processes with other numbers of
threads.  With the argument `small` it leaves out those of many elements.
"""

import gc
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives NumPy the dtype "bfloat16")
import numba
import numpy as np
import pytest

from nbbce import __file__ as package
from nbbce import (
    _arrays,
    _call,
    _cpu,
    binary_cross_entropy,
    binary_cross_entropy_grad,
    binary_cross_entropy_value_and_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_grad,
    binary_cross_entropy_with_logits_grad_and_hess,
    binary_cross_entropy_with_logits_value_and_grad,
    sigmoid_focal_loss,
    sigmoid_focal_loss_value_and_grad,
)

WIDE = ["float32", "float64"]
FLOATS = ["float16", "bfloat16", *WIDE]
SIZES = [1, 300, 4096, 5003, 43_993, 300_001]
THREADS = [1, 2, 3, 7, 16]


def three(size, dtype, labels="both"):
    """Predictions, labels and weights, made without arithmetic that could differ from process to process."""
    rng = np.random.default_rng([size, len(dtype)])
    x, y, w = (rng.integers(0, 2**20 + 1, size) / 2**20 for _ in range(3))
    hard = rng.integers(0, 2, size)
    if labels == "both":  # blocks of hard labels, of soft ones, and mixed
        hard = np.where(np.arange(size) // 3000 % 2, y, hard)
    return x.astype(dtype), (y if labels == "soft" else hard).astype(dtype), w.astype(dtype)


def digest(*results):
    return hashlib.sha256(b"".join(np.asarray(r).tobytes() for r in results)).hexdigest()[:16]


def digest_of(answer):
    return digest(*answer) if isinstance(answer, tuple) else digest(answer)


def every_answer(small=False):
    """Digests of answers about all kinds of arrays, by name."""
    answers = {}
    for dtype in FLOATS:
        for size in SIZES[:4] if small else SIZES:
            for labels in ("soft", "hard", "both"):
                x, y, w = three(size, dtype, labels)
                for weight in (None, w) if labels == "both" else (None,):
                    name = f"{dtype}, {size} elements, labels {labels}, {'plain' if weight is None else 'weighted'}"
                    answers[f"{name}, losses"] = digest(binary_cross_entropy(x, y, weight, "none"))
                    answers[f"{name}, mean"] = digest(binary_cross_entropy(x, y, weight))
                    # The bits that the sum of smaller dtypes is rounded from.
                    answers[f"{name}, sum"] = digest(binary_cross_entropy(x, y, weight, "sum", dtype=np.float64))
                    both = binary_cross_entropy_value_and_grad(x, y, weight)
                    answers[f"{name}, gradient"] = digest(binary_cross_entropy_grad(x, y, weight))
                    answers[f"{name}, value and gradient"] = digest(*both)
        x, y, w = (a[:299_792].reshape(656, 457) for a in three(300_001, dtype))
        where = w.astype(np.float32) < 0.7
        column = w[:, :1]
        answers[f"{dtype}, strided"] = digest(binary_cross_entropy(x[::3, ::-2], y[::3, ::-2], column[::3]))
        answers[f"{dtype}, masked"] = digest(*binary_cross_entropy_value_and_grad(x, y, column, where=where))
        answers[f"{dtype}, bytes"] = digest(binary_cross_entropy(x, where.view(np.uint8)))
    if small:
        return answers
    # More blocks than one wave of the block walker holds (67 million elements).
    x, y, _ = (np.broadcast_to(a, (16500, 4096)) for a in three(4096, "float64"))
    answers["68 million elements"] = digest(binary_cross_entropy(x, y, reduction="sum"))
    return answers


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    different = [name for name in expected if got[name] != expected[name]]
    assert not different, f"{len(different)} of {len(expected)} differ, first: {different[:5]}"


@pytest.fixture(scope="module")
def expected():
    """Every answer of one thread of this process."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        return every_answer()
    finally:
        numba.set_num_threads(before)


def answers_of_process(*arguments, **environment):
    environment = os.environ | {"PYTHONPATH": str(Path(package).parents[1])} | environment
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("threads", THREADS)
def test_process_with_another_number_of_threads_gives_the_same_bits(threads, expected):
    printed = answers_of_process(NUMBA_NUM_THREADS=str(threads))
    assert printed.pop("threads") == threads
    assert_same(printed, expected)


def test_processor_without_vectors_or_fma_gives_the_same_bits(expected):
    printed = answers_of_process("small", NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_NUM_THREADS="1")
    del printed["threads"]
    assert_same(printed, {name: expected[name] for name in printed})


@pytest.mark.usefixtures("restored_threads")
def test_every_number_of_threads_of_a_process_gives_the_same_bits(expected):
    # What set_num_threads allows is up to the machine; on one core the processes above are the test.
    for threads in range(1, min(numba.config.NUMBA_NUM_THREADS, 4) + 1):
        numba.set_num_threads(threads)
        assert_same(every_answer(), expected)


def test_eight_threads_that_call_at_once_get_the_same_bits():
    x, y, w = three(300_001, "float32")
    alone = digest(*binary_cross_entropy_value_and_grad(x, y, w))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: digest(*binary_cross_entropy_value_and_grad(x, y, w)), range(40)))
    assert set(together) == {alone}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("options", ["plain", "number", "weight", "column", "mask", "weight and mask", "grad_output"])
@pytest.mark.parametrize("labels", ["soft", "hard", "both", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_value_and_grad_has_the_bits_of_the_separate_calls(dtype, labels, options, reduction):
    for size in (1, 300, 5000, 44_000) if options in ("plain", "weight and mask") else (1, 300, 5000):
        x, y, w = three(size, dtype, "hard" if labels == "uint8" else labels)
        y = y.astype("uint8") if labels == "uint8" else y
        x, y, w = (a.reshape(-1, 100) if size > 1 else a.reshape(1, 1) for a in (x, y, w))
        weight = {"number": 0.7, "weight": w, "weight and mask": w, "column": w[:, :1]}.get(options)
        where = x.astype(np.float32) < 0.7 if "mask" in options else None
        if where is not None:
            where[0, 0] = True
        follows = None if options != "grad_output" else w if reduction == "none" else 0.7
        value = binary_cross_entropy(x, y, weight, reduction, where=where)
        gradient = binary_cross_entropy_grad(x, y, weight, reduction, where=where, grad_output=follows)
        both = binary_cross_entropy_value_and_grad(x, y, weight, reduction, where=where, grad_output=follows)
        assert both[0].tobytes() == value.tobytes()
        assert both[1].tobytes() == gradient.tobytes()


def variants(x, y, folder):
    """The same numbers in other layouts, and where all labels are hard in other dtypes; without validation."""
    arrays = {
        "strided": (np.repeat(x, 2)[::2], np.repeat(y, 3)[::3]),
        "backwards": (x[::-1].copy()[::-1], y[::-1].copy()[::-1]),
        "only labels strided": (x, np.repeat(y, 2)[::2]),
        "only predictions strided": (np.repeat(x, 2)[::2], y),
        "two dimensions": (x.reshape(-1, 20), y.reshape(-1, 20)),
        "fortran": (np.asfortranarray(x.reshape(-1, 20)), np.asfortranarray(y.reshape(-1, 20))),
        "misaligned": tuple(np.frombuffer(b"1" + a.tobytes(), a.dtype, offset=1) for a in (x, y)),
        "float64 labels": (x, y.astype(np.float64)),
    }
    if ((y == 0) | (y == 1)).all():
        for dtype in ("bool", "uint8", "int8", "int32", "int64", "uint16", "float16"):
            arrays[f"{dtype} labels"] = (x, y.astype(dtype))
        arrays["strided uint8 labels"] = (x, np.repeat(y.astype(np.uint8), 2)[::2])
        arrays["strided predictions, uint8 labels"] = (np.repeat(x, 2)[::2], y.astype(np.uint8))
    for name, array in (("x", x), ("y", y)):
        np.save(folder / f"{name}.npy", array)
    arrays["memory-mapped"] = tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy")
    for name, pair in arrays.items():
        yield name, pair, {}
    yield "no validation", (x, y), {"validate": False}


ASK = {
    "none": lambda x, y, **options: binary_cross_entropy(x, y, reduction="none", **options),
    "sum": lambda x, y, **options: binary_cross_entropy(x, y, reduction="sum", **options),
    "mean": binary_cross_entropy,
    # The bits that a float32 sum is rounded from.
    "float64 sum": lambda x, y, **options: binary_cross_entropy(x, y, reduction="sum", dtype=np.float64, **options),
    "gradient": binary_cross_entropy_grad,
}


@pytest.mark.parametrize("labels", ["hard", "both"])
@pytest.mark.parametrize("size", [20, 1020, 4100, 44_000])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("answer", ASK)
def test_same_numbers_give_the_same_bits_in_any_layout(answer, dtype, size, labels, tmp_path):
    x, y, _ = three(size, dtype, labels)
    expected = ASK[answer](x, y).tobytes()
    for name, arrays, options in variants(x, y, tmp_path):
        assert ASK[answer](*arrays, **options).tobytes() == expected, name


@pytest.mark.parametrize("labels", ["soft", "hard", "both", "uint8"])
@pytest.mark.parametrize("size", [20, 300, 1020, 4100, 44_000])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("answer", ASK)
def test_mask_that_keeps_all_gives_the_bits_of_no_mask(answer, dtype, size, labels):
    x, y, _ = three(size, dtype, "hard" if labels == "uint8" else labels)
    y = y.astype("uint8") if labels == "uint8" else y
    assert ASK[answer](x, y, where=np.ones(size, bool)).tobytes() == ASK[answer](x, y).tobytes()


# Rows of more than 16384 elements that memory runs across are walked side by side, 8 to 32 of them.
LONG_ROWS = [(2, 16_385), (3, 40_960), (9, 20_011), (35, 16_500)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", LONG_ROWS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_long_rows_that_memory_runs_across_give_the_same_bits(dtype, shape, threads):
    x, y, w = (a.reshape(shape) for a in three(shape[0] * shape[1], dtype))
    where = w.astype(np.float32) < 0.7
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        for options in ({}, {"weight": w[:, :1]}, {"where": where}, {"label_smoothing": 0.1}):
            options = {"reduction": "sum", "dtype": np.float64, **options}
            expected = binary_cross_entropy_value_and_grad(x, y, **options)
            across = {k: np.asfortranarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
            for pair in ((np.asfortranarray(x), np.asfortranarray(y)), (x, np.asfortranarray(y))):
                assert digest(*binary_cross_entropy_value_and_grad(*pair, **across)) == digest(*expected), options
                assert digest(binary_cross_entropy(*pair, **across)) == digest(expected[0]), options
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("bad", [[(0, 40_000), (1, 3)], [(1, 9000), (2, 1)], [(2, 40_959), (2, 40_958)]], ids=str)
def test_first_bad_value_of_long_rows_is_the_one_that_is_named(bad):
    x = np.full((3, 40_960), 0.5, np.float32)
    for k, place in enumerate(bad):
        x[place] = 2.0 + k
    first = min(bad)
    x = np.asfortranarray(x)
    with pytest.raises(ValueError, match=re.escape(f"got input[{first[0]}, {first[1]}] = {x[first]}")):
        binary_cross_entropy(x, np.asfortranarray(np.zeros_like(x)))


@pytest.mark.parametrize("labels", ["hard", "both"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("family", ["", "_with_logits"])
def test_mask_of_long_runs_leaves_out_what_it_should_and_writes_to_no_input(family, dtype, labels):
    # Pieces that keep all are computed where they lie, others from buffers, and what comes next is asked for ahead.
    both = globals()[f"binary_cross_entropy{family}_value_and_grad"]
    x, y, w = three(20_011, dtype, labels)
    place = np.arange(x.size)
    where = (place < 5000) | (place > 15_000) | ((place > 9000) & (w.astype(np.float64) < 0.5))
    gradient = both(x, y, reduction="sum", dtype=np.float64)[1]
    value = both(x[where], y[where], reduction="sum", dtype=np.float64)[0]
    for array in (x, y):
        array[~where] = np.nan
    before = x.tobytes(), y.tobytes()
    kept_value, kept = both(x, y, reduction="sum", where=where, dtype=np.float64)
    np.testing.assert_allclose(kept_value, value, rtol=1e-7)
    assert kept[where].tobytes() == gradient[where].tobytes()
    assert not kept[~where].any()
    assert (x.tobytes(), y.tobytes()) == before


@pytest.mark.parametrize("dtype", WIDE)
def test_losses_and_gradients_do_not_depend_on_their_neighbours(dtype):
    x, y, w = three(5003, dtype)
    losses = binary_cross_entropy(x, y, w, "none")
    gradients = binary_cross_entropy_grad(x, y, w, "none")
    for start, stop in ((0, 1), (1, 4), (255, 513), (4090, 5003)):
        part = slice(start, stop)
        assert binary_cross_entropy(x[part], y[part], w[part], "none").tobytes() == losses[part].tobytes()
        assert binary_cross_entropy_grad(x[part], y[part], w[part], "none").tobytes() == gradients[part].tobytes()


# Calls alike but for one thing: their vectors are remembered by what they depend on (see _cpu.py).
SHAPE = (32, 48)
OPTIONS = [
    {},
    {"weight": 2.0},
    {"weight": 3.0},
    {"weight": "row"},
    {"weight": "column"},
    {"weight": "whole"},
    {"pos_weight": 2.0},
    {"pos_weight": 3.0},
    {"pos_weight": "row"},
    {"label_smoothing": 0.25},
    {"label_smoothing": 0.5},
    {"where": "mask"},
    {"where": "other mask"},
    {"where": "mask", "weight": "row"},
    {"dtype": np.float64},
    {"dtype": np.float16},
    {"validate": False},
]
OF_LOGITS = [
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_grad,
    binary_cross_entropy_with_logits_value_and_grad,
    binary_cross_entropy_with_logits_grad_and_hess,
]
WAYS = [
    {"axis": axis, "reduction": how, "keepdims": kept}
    for axis in (None, 0, 1)
    for how in ("mean", "sum")
    for kept in (False, True)
]
FORMS = {
    "as it is": lambda a: a,
    "float64": lambda a: a.astype(np.float64),
    "bytes": lambda a: a,
    "transposed memory": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "fewer rows": lambda a: a[:20],
    "turned": lambda a: a.reshape(SHAPE[::-1]),
    "one row": lambda a: a.reshape(-1),
}


def alike_calls():
    """Functions without arguments whose answers differ, by name."""
    rng = np.random.default_rng(1)
    x = (rng.integers(1, 2**20, SHAPE) / 2**20).astype(np.float32)
    y = (rng.random(SHAPE) < x).astype(np.float32)
    calls = {}
    for form, change in FORMS.items():
        a, b = change(x), change(y.astype(np.uint8) if form == "bytes" else y)
        w = (rng.integers(1, 9, a.shape) / 8).astype(np.float32)
        named = {"row": w[:1] if a.ndim > 1 else w, "column": w[..., :1], "whole": w}
        named |= {"mask": w < 0.7, "other mask": w < 0.4}
        for options in OPTIONS:
            taken = {
                name: named.get(value, value) if isinstance(value, str) else value for name, value in options.items()
            }
            for way in WAYS if a.ndim > 1 else ({}, {"reduction": "sum"}):
                calls[f"{form}, {options}, {way}"] = partial(binary_cross_entropy, a, b, **taken, **way)
            calls[f"{form}, {options}, none"] = partial(binary_cross_entropy, a, b, **taken, reduction="none")
            if "dtype" not in options:
                for of_logits in OF_LOGITS:
                    calls[f"{form}, {options}, {of_logits.__name__}"] = partial(of_logits, a, b, **taken)
            calls[f"{form}, {options}, both"] = partial(binary_cross_entropy_value_and_grad, a, b, **taken)
            calls[f"{form}, {options}, gradient"] = partial(binary_cross_entropy_grad, a, b, **taken)
            own = np.empty((), options.get("dtype", a.dtype))
            calls[f"{form}, {options}, out"] = partial(binary_cross_entropy, a, b, **taken, out=own)
            if a.ndim > 1:
                follows = partial(binary_cross_entropy_grad, a, b, axis=0, grad_output=w[0], **taken)
                calls[f"{form}, {options}, gradient of sums"] = follows
    return calls


def test_calls_alike_but_for_one_thing_do_not_take_each_others_way():
    def forget():
        for known in (
            _cpu._flat_vectors,
            _cpu._laid_out_vectors,
            _cpu._axes_plans,
            _cpu._known,
            _cpu._known_with_options,
        ):
            known.clear()

    calls, alone = alike_calls(), {}
    for name, ask in calls.items():
        forget()
        alone[name] = digest_of(ask())
    for names in (list(calls), list(calls)[::-1]):
        forget()
        assert_same({name: digest_of(calls[name]()) for name in names}, alone)
    assert len(_cpu._axes_plans) > 100


PLAIN = [binary_cross_entropy, binary_cross_entropy_grad, binary_cross_entropy_value_and_grad, *OF_LOGITS]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_float32_weights_have_the_bits_of_the_same_in_float64(dtype, reduction):
    # Those of float32 may be read where they lie.
    functions = [*PLAIN, sigmoid_focal_loss, sigmoid_focal_loss_value_and_grad]
    for size in (1, 257, 5003, 43_993):
        x, y, w = three(size, dtype)
        for function in functions:
            answers = [function(x, y, w.astype(kind), reduction) for kind in ("float32", "float64")]
            assert digest_of(answers[0]) == digest_of(answers[1])
        answers = [
            binary_cross_entropy_with_logits_value_and_grad(x, y, w.astype(kind), reduction, pos_weight=2.0)
            for kind in ("float32", "float64")
        ]
        assert digest_of(answers[0]) == digest_of(answers[1])


@pytest.fixture
def no_check(monkeypatch):
    """Lets calls that are checked fail once it is called."""

    def refuse(*arguments):
        raise AssertionError("was checked")

    return lambda: monkeypatch.setattr(_call, "Call", refuse)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", PLAIN, ids=lambda function: function.__name__)
def test_plain_call_like_one_before_is_not_checked_again_and_has_the_same_bits(function, dtype, reduction, no_check):
    for size in (1, 300, 5003, 43_993):
        arrays = three(size, dtype)[:2]
        # With `where` no call is plain, and True leaves nothing out.
        expected = digest_of(function(*arrays, reduction=reduction, where=True))
        function(*arrays, reduction=reduction)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_call, "Call", None)
            again = function(*arrays, reduction=reduction)
        assert digest_of(again) == expected
    x, y = (a.reshape(7, -1) for a in three(700, dtype)[:2])
    expected = function(x, y, reduction=reduction, where=True)
    no_check()
    for validate in (None, True):
        assert digest_of(function(x, y, reduction=reduction, validate=validate)) == digest_of(expected)


NUMBERS = {
    "weight": {"weight": 2.5},
    "shares": {"pos_weight": 3, "label_smoothing": 0.1},
    "all": {"weight": 1e-3, "pos_weight": 0.7, "label_smoothing": 0.25},
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_plain_call_with_numbers_like_one_before_is_not_checked_again(dtype, numbers, reduction, no_check):
    expected, calls = [], []
    for function in PLAIN:
        for size in (300, 43_993):
            x, y = three(size, dtype)[:2]
            expected.append(digest_of(function(x, y, reduction=reduction, where=True, **numbers)))
            function(x, y, reduction=reduction, **numbers)
            calls.append(lambda f=function, x=x, y=y: f(x, y, reduction=reduction, **numbers))
    no_check()
    assert [digest_of(call()) for call in calls] == expected


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_focal_call_like_one_before_is_not_checked_again(dtype, reduction, no_check):
    expected, calls = [], []
    for function in (sigmoid_focal_loss, sigmoid_focal_loss_value_and_grad):
        for numbers in ({}, {"alpha": None}, {"gamma": 1.5}, {"alpha": 0.75, "gamma": 3, "weight": 2}):
            x, y = three(5003, dtype)[:2]
            expected.append(digest_of(function(x, y, reduction=reduction, where=True, **numbers)))
            function(x, y, reduction=reduction, **numbers)
            calls.append(lambda f=function, n=numbers, x=x, y=y: f(x, y, reduction=reduction, **n))
    no_check()
    assert [digest_of(call()) for call in calls] == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: ((x[::2], y[::2]), {}),
        lambda x, y: ((x[::-1], y), {}),
        lambda x, y: ((x.reshape(2, -1).T, y.reshape(2, -1).T), {}),
        lambda x, y: ((x, y.astype(np.int8)), {}),
        lambda x, y: ((x.astype(np.float64), y), {}),
        lambda x, y: ((x.astype(x.dtype.newbyteorder()), y), {}),
        lambda x, y: ((x.view(np.matrix), y.view(np.matrix)), {}),
        lambda x, y: ((x[:0], y[:0]), {"reduction": "sum"}),
        lambda x, y: ((x, y), {"reduction": "sum"}),
        lambda x, y: ((x, y), {"validate": False}),
        lambda x, y: ((x, y), {"validate": np.True_}),
        lambda x, y: ((x, y, 1.0), {}),
        lambda x, y: ((x, y, np.float32(1)), {}),
        lambda x, y: ((x, y), {"label_smoothing": 0}),
        lambda x, y: ((x, y), {"pos_weight": True}),
    ],
    ids="strided reversed order target input bytes matrix empty sum validate flag weight scalar number share".split(),
)
def test_call_that_differs_from_one_before_is_checked(change, no_check):
    x, y = three(400, "float32")[:2]
    _cpu._known.clear()
    binary_cross_entropy(x, y)
    arrays, options = change(x, y)
    no_check()
    with pytest.raises(AssertionError, match="was checked"):
        binary_cross_entropy(*arrays, **options)
    with pytest.raises(AssertionError, match="was checked"):
        binary_cross_entropy_with_logits(x, y)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("function", [*PLAIN, sigmoid_focal_loss, sigmoid_focal_loss_value_and_grad])
def test_empty_call_after_one_of_its_dtypes_writes_nothing(function, reduction):
    # A vector is of any size, 0 too: taken for "the size in the vector", 0 once wrote where nothing was.
    x, y = three(400, "float64")[:2]
    canary = np.full(400, 7.0)
    function(x, y, reduction=reduction)
    for options in ({}, {"validate": False}, {"weight": 2.0}):
        results = function(x[:0], y[:0], reduction=reduction, **options)
        for result in results if isinstance(results, tuple) else (results,):
            assert np.size(result) == 0 or result == 0.0
    if reduction == "none":
        outs = [canary[:0]] * len(results) if isinstance(results, tuple) else canary[:0]
        function(x[:0], y[:0], reduction=reduction, out=tuple(outs) if isinstance(outs, list) else outs)
    assert (canary == 7.0).all()


# How a function gives one array, and with what `out`.
INTO = {
    "losses": (binary_cross_entropy, "none", lambda out: out),
    "gradients": (binary_cross_entropy_grad, "mean", lambda out: out),
    "mean and gradients": (binary_cross_entropy_value_and_grad, "mean", lambda out: (None, out)),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("size", [1, 300, 43_993])
@pytest.mark.parametrize("way", INTO.values(), ids=INTO)
def test_call_into_an_array_like_one_before_is_not_checked_again_and_has_the_same_bits(way, size, validate, no_check):
    function, reduction, given = way
    x, y = three(size, "float32")[:2]
    expected = digest_of(function(x, y, reduction=reduction, where=True))
    _cpu._known.clear()
    function(x, y, reduction=reduction, out=given(np.empty_like(x)), validate=validate)
    out = np.empty_like(x)
    no_check()
    results = function(x, y, reduction=reduction, out=given(out), validate=validate)
    assert (results[1] if isinstance(results, tuple) else results) is out
    assert digest_of(results) == expected


@pytest.mark.parametrize(
    "another",
    [
        lambda out, x: np.empty(2 * x.size, x.dtype)[::2],
        lambda out, x: out.astype(np.float64),
        lambda out, x: out[:-1],
        lambda out, x: np.lib.stride_tricks.as_strided(out, writeable=False),
        lambda out, x: x,
        lambda out, x: np.ma.masked_array(out),
        lambda out, x: out.tolist(),
        lambda out, x: (None, out),
    ],
    ids="strided dtype shape read-only overlapping masked list tuple".split(),
)
def test_array_that_may_not_be_written_as_it_is_is_checked(another, no_check):
    x, y = three(400, "float32")[:2]
    out = np.empty_like(x)
    for validate in (None, False):
        binary_cross_entropy(x, y, reduction="none", out=out, validate=validate)
    no_check()
    for validate in (None, False):
        with pytest.raises(AssertionError, match="was checked"):
            binary_cross_entropy(x, y, reduction="none", out=another(out, x), validate=validate)


def test_array_is_as_it_was_if_a_value_of_a_call_like_one_before_is_bad():
    x, y = three(400, "float32")[:2]
    out = np.full_like(x, 7)
    binary_cross_entropy(x, y, reduction="none", out=np.empty_like(x))
    x[17] = 1.5
    with pytest.raises(ValueError, match=r"got input\[17\] = 1\.5"):
        binary_cross_entropy(x, y, reduction="none", out=out)
    assert (out == 7).all()


def test_call_like_one_before_that_is_wrong_is_told_so():
    x, y = three(400, "float32")[:2]
    for reduction in ("mean", "none"):
        binary_cross_entropy(x, y, reduction=reduction)
        bad = x.copy()
        bad[17] = 1.5
        with pytest.raises(ValueError, match=r"values must be in \[0, 1\]; got input\[17\] = 1\.5"):
            binary_cross_entropy(bad, y, reduction=reduction)
        binary_cross_entropy(x, y, reduction=reduction, validate=False)
        for _ in range(2):
            assert np.isnan(binary_cross_entropy(bad, y, reduction=reduction, validate=False)).any()
    with pytest.raises(ValueError, match="'target' must have the shape of 'input'"):
        binary_cross_entropy(x, y[:-1])
    with pytest.raises(ValueError, match="'reduction' must be one of"):
        binary_cross_entropy(x, y, reduction=["mean"])
    with pytest.raises(TypeError, match="'validate' must be True or False"):
        binary_cross_entropy(x, y, validate=[])


def with_options(rng, x):
    """Options of small calls, by name."""
    rows, columns = x.shape
    return {
        "weight of columns": {"weight": rng.random(columns)},
        "weight of rows": {"weight": rng.random((rows, 1)).astype("f4")},
        "weights": {"weight": rng.random(x.shape)[:, ::-1], "label_smoothing": 0.25},
        "pos_weight": {"pos_weight": rng.random(columns), "weight": 2.5},
        "mask": {"where": rng.random(x.shape) < 0.5},
        "mask of rows": {"where": rng.random((rows, 1)) < 0.5, "weight": 3},
        "dtype": {"dtype": "float64"},
        "axis": {"axis": -1},
        "first axis": {"axis": 0, "keepdims": True, "weight": rng.random(columns)},
    }


SMALL = [*PLAIN, sigmoid_focal_loss, sigmoid_focal_loss_value_and_grad]


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every second"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_small_call_with_options_like_one_before_is_not_checked_again(reduction, dtype, layout, no_check, monkeypatch):
    rng = np.random.default_rng(4)
    shape = {"contiguous": (20, 10), "transposed": (10, 20), "every second": (20, 20)}[layout]
    calls, expected = [], []
    for options in with_options(rng, np.empty((20, 10))).values():
        for function in SMALL:
            names = inspect.signature(function).parameters
            if ("axis" in options and reduction == "none") or not options.keys() <= names.keys():
                continue
            for _ in range(2):  # what is given again is elsewhere
                x, y = (rng.random(shape).astype(dtype) for _ in range(2))
                if layout != "contiguous":
                    x, y = (x.T, y.T) if layout == "transposed" else (x[:, ::2], y[:, ::2])
                if "grad_output" in names and reduction == "none" and "weight" in options:
                    options = options | {"grad_output": rng.random((20, 10))}
                here = {name: v.copy() if isinstance(v, np.ndarray) else v for name, v in options.items()}
                calls.append(lambda f=function, x=x, y=y, o=here: f(x, y, reduction=reduction, **o))
                with monkeypatch.context() as patch:
                    patch.setattr(_call, "again_with_options", None)
                    expected.append(digest_of(calls[-1]()))
            calls[-2]()
    assert [digest_of(call()) for call in calls] == expected
    no_check()
    assert [digest_of(call()) for call in calls] == expected


def test_small_call_that_differs_in_one_thing_from_one_before_is_checked(no_check):
    x, y, w = (a.reshape(20, 10) for a in three(200, "float32"))
    mask = y > 0.5
    known = {"weight": w, "where": mask, "label_smoothing": 0.5, "axis": None, "keepdims": False, "dtype": None}
    binary_cross_entropy(x, y, **known)
    binary_cross_entropy(x, y, axis=1)
    binary_cross_entropy(x, y, 2.0, axis=1)
    no_check()
    binary_cross_entropy(x, y, **known)
    for change in (
        {"weight": w.astype("f8")},
        {"weight": w[0]},
        {"weight": w[:, ::-1]},
        {"weight": np.asfortranarray(w)},
        {"weight": np.float32(2.0)},
        {"weight": np.array(2.0)},
        {"weight": -0.0},
        {"where": mask[:1]},
        {"label_smoothing": 0.25},
        {"axis": 1},
        {"keepdims": True},
        {"dtype": "float64"},
        {"validate": False},
        {"reduction": "sum"},
        {"pos_weight": 1.0},
        {"out": np.zeros((), "f4")},
    ):
        with pytest.raises(AssertionError, match="was checked"):
            binary_cross_entropy(x, y, **(known | change))
    for arrays in ((x[:-1], y[:-1]), (x.T, y.T), (x.astype("f8"), y), (x, y.astype("f8")), (x, y[:, ::-1])):
        with pytest.raises(AssertionError, match="was checked"):
            binary_cross_entropy(*arrays, axis=1)
    with pytest.raises(AssertionError, match="was checked"):
        binary_cross_entropy_with_logits(x, y, axis=1)
    for axis in (True, (1,), np.int64(1), [1]):  # equal to 1, and some an error
        with pytest.raises(AssertionError, match="was checked"):
            binary_cross_entropy(x, y, axis=axis)


def test_numbers_of_small_calls_may_be_arrays_of_no_dimension():
    x, y, _ = (a.reshape(20, 10) for a in three(200, "float32"))
    weight = np.array(2.0)
    for value in (2.0, 3.0, 0.0):
        weight[...] = value
        expected = binary_cross_entropy(x, y, np.full(10, value), "none")
        assert np.array_equal(binary_cross_entropy(x, y, weight, "none"), expected)
        gradient = binary_cross_entropy_grad(x, y, grad_output=weight, reduction="sum")
        assert np.array_equal(gradient, binary_cross_entropy_grad(x, y, np.full(10, value), "sum"))


def test_mask_of_a_small_call_may_keep_another_number_of_elements():
    x, y, _ = (a.reshape(20, 10) for a in three(200, "float64"))
    for shape in ((20, 10), (20, 1), (10,), ()):
        for kept in (1, 0, 3, 5):
            mask = np.zeros(shape, bool)
            mask.flat[:kept] = True
            where = np.broadcast_to(mask, x.shape)
            if not kept:
                with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$"):
                    assert np.isnan(binary_cross_entropy(x, y, where=mask))
                continue
            value, gradient = binary_cross_entropy_value_and_grad(x, y, where=mask)
            losses = binary_cross_entropy(x, y, reduction="none")[where]
            assert np.isclose(value, losses.mean(), rtol=1e-15)
            assert value == binary_cross_entropy(x, y, where=mask)
            expected = binary_cross_entropy_grad(x[where], y[where])
            assert np.array_equal(gradient[where], expected)
            assert not gradient[~where].any()


def test_bad_value_of_a_small_call_like_one_before_is_named():
    x, y, w = (a.reshape(20, 10) for a in three(200, "float32"))
    for options in ({"weight": w}, {"axis": 1}, {"axis": 0}, {"weight": w, "reduction": "none"}, {"where": w > 0}):
        for _ in range(2):
            binary_cross_entropy(x, y, **options)
        bad = x.copy()
        bad[3, 4] = 1.5
        with pytest.raises(ValueError, match=r"values must be in \[0, 1\]; got input\[3, 4\] = 1\.5"):
            binary_cross_entropy(bad, y, **options)
        for _ in range(2):
            assert np.isnan(binary_cross_entropy(bad, y, validate=False, **options)).any()


def test_no_array_is_kept_by_what_is_remembered_of_small_calls():
    x, y, w = (a.reshape(20, 10).copy() for a in three(200, "float32"))
    options = {"weight": w, "where": w > 0.1, "grad_output": np.ones((20, 10)), "reduction": "none"}
    made = [binary_cross_entropy_value_and_grad(x, y, **options) for _ in range(3)]
    kept = [weakref.ref(array) for array in (x, y, w, *options.values(), *sum(made, ())) if hasattr(array, "shape")]
    del x, y, w, options, made
    gc.collect()
    assert [array() for array in kept] == [None] * 12


def test_what_is_remembered_of_calls_has_a_limit(monkeypatch):
    monkeypatch.setattr(_cpu, "MOST_VECTORS", 10)
    known = (_cpu._flat_vectors, _cpu._laid_out_vectors, _cpu._axes_plans)
    for vectors in (*known, _cpu._known):
        vectors.clear()
    x = np.linspace(0.1, 0.9, 40, dtype=np.float32)
    for dtype in "?bBhHiIlL":
        for function in (binary_cross_entropy, binary_cross_entropy_with_logits):
            function(x, np.ones(40, dtype))
            assert 0 < len(_cpu._known) <= 10
    _cpu._flat_vectors.clear()
    for size in range(1, 41):
        binary_cross_entropy(x[:size], x[:size], pos_weight=float(size))
        binary_cross_entropy(x[:size], x[:size], x[:size])
        binary_cross_entropy(x[:size, None], x[:size, None], axis=0)
        assert [len(vectors) for vectors in known] == [(size - 1) % 10 + 1] * 3
        assert 0 < len(_cpu._known_with_options) <= 10


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_weight_of_another_sign_of_zero_is_another_weight(axis):
    x, y = np.full((4, 20), 0.5, np.float32), np.ones((4, 20), np.float32)
    for weight in (0.0, -0.0, 0.0):
        assert (np.signbit(binary_cross_entropy(x, y, weight, axis=axis)) == np.signbit(weight)).all()


if __name__ == "__main__":
    print(json.dumps({**every_answer(sys.argv[1:] == ["small"]), "threads": numba.get_num_threads()}))


@pytest.mark.parametrize(
    "kind", ["plain", "read-only", "memmap", "swapped", "bfloat16", "bool", "every second", "backwards"]
)
@pytest.mark.parametrize("shape", [(8,), (1, 8), (6, 1), (1, 1)], ids=str)
def test_weight_that_is_broadcast_again_gives_the_bits_of_one_of_the_whole_shape(shape, kind, tmp_path):
    x, y, _ = (a.reshape(6, 8) for a in three(48, "float32"))
    rng = np.random.default_rng(3)
    for _ in range(3):
        w = np.asarray(rng.integers(0, 2**10, shape) / 2**10)
        if kind == "memmap":
            mapped = np.memmap(tmp_path / "w", w.dtype, "w+", shape=shape)
            mapped[...] = w
            w = mapped
        elif kind in ("every second", "backwards"):
            w = np.repeat(w, 2, axis=-1)[..., ::2] if kind == "every second" else w[..., ::-1]
        elif kind in ("swapped", "bfloat16", "bool"):
            w = w.astype({"swapped": ">f8", "bool": "?"}.get(kind, kind))
        w.flags.writeable = w.flags.writeable and kind != "read-only"
        whole = np.broadcast_to(w, x.shape).copy()
        for reduction in ("mean", "none"):
            expected = binary_cross_entropy(x, y, whole, reduction)
            assert np.array_equal(binary_cross_entropy(x, y, w, reduction), expected)


def test_what_is_remembered_of_broadcasts_has_a_limit():
    most = _arrays.broadcast_strides.cache_info().maxsize
    weight = np.array([1.0, 2.0, 3.0])
    for rows in range(2, most + 100):
        x = np.full((rows, 3), 0.5)
        assert binary_cross_entropy(x, x, weight) == binary_cross_entropy(x, x, np.tile(weight, (rows, 1)))
        assert _arrays.broadcast_strides.cache_info().currsize <= most
    assert most <= 1000
