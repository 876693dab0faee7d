"""On a device: the bits of the CPU, every library's arrays, streams, graphs, threads and memory.

    python -m pytest -m gpu                 these tests; each library is tested if it is installed
    compute-sanitizer --tool memcheck --error-exitcode 1 python -m pytest -m gpu -k "not (thousand or 32_bits or large)"
    compute-sanitizer --tool racecheck --error-exitcode 1 python -m pytest -m gpu -k "every_function or grid"
    compute-sanitizer --tool initcheck --error-exitcode 1 python -m pytest -m gpu -k "numba and every_function"
    compute-sanitizer --tool synccheck --error-exitcode 1 python -m pytest -m gpu -k "every_function"

Without a device all of them are skipped.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import devices
import ml_dtypes
import numpy as np
import pytest
from devices import DTYPES, FLOATS, FOCAL, FUNCTIONS, LOGITS, PROBABILITIES, REDUCTIONS, WITH_GRADIENT, as_tuple

import nbbce


def _has_device():
    """Whether there is a device, and no simulator."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return False
    try:
        from nbbce import _device_arrays
    except ImportError:
        return False
    return _device_arrays.is_available()


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not _has_device(), reason="no CUDA device, or not what nbbce[cuda13] installs"),
    # What the libraries say about each other while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Grid size .* low occupancy"),  # where Numba transposes a small array
]
ON_PTX = os.environ.get("NBBCE_TESTS_ON") == "ptx"


# -------------------------------------------------------------------------------------------------------- libraries
class Torch:
    """PyTorch."""

    def __init__(self):
        self.module = importlib.import_module("torch")
        if not self.module.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")

    def place(self, array):
        array = np.array(array)  # in order, and writeable
        if array.dtype == ml_dtypes.bfloat16:
            return self.module.from_numpy(array.view(np.int16)).cuda().view(self.module.bfloat16)
        return self.module.from_numpy(array).cuda()

    def fetch(self, tensor):
        assert isinstance(tensor, self.module.Tensor)
        assert tensor.is_cuda
        assert not tensor.requires_grad
        if tensor.dtype == self.module.bfloat16:
            return tensor.view(self.module.int16).cpu().numpy().view(ml_dtypes.bfloat16)
        return tensor.cpu().numpy()

    def synchronize(self):
        self.module.cuda.synchronize()

    def stream(self):
        return self.module.cuda.Stream()


class Cupy:
    """CuPy."""

    def __init__(self):
        self.module = importlib.import_module("cupy")

    def place(self, array):
        try:
            return self.module.asarray(np.array(array))
        except (TypeError, ValueError) as error:
            pytest.skip(f"not of CuPy: {error}")

    def fetch(self, array):
        assert isinstance(array, self.module.ndarray)
        return self.module.asnumpy(array)

    def synchronize(self):
        self.module.cuda.Device().synchronize()

    def stream(self):
        return self.module.cuda.Stream(non_blocking=True)


class Numba:
    """Numba."""

    def __init__(self):
        self.module = importlib.import_module("numba.cuda")
        from nbbce import _compile_cuda

        _compile_cuda._load_registries()  # without which it transposes nothing with NumPy 2.5

    def place(self, array):
        try:
            return self.module.to_device(np.array(array))
        except (TypeError, ValueError, NotImplementedError) as error:  # of bfloat16
            pytest.skip(f"not of Numba: {error}")

    def fetch(self, array):
        assert array.__cuda_ndarray__
        return array.copy_to_host()

    def synchronize(self):
        self.module.synchronize()

    def stream(self):
        return self.module.stream()


class Jax:
    """JAX."""

    def __init__(self):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.module = importlib.import_module("jax")
        self.module.config.update("jax_enable_x64", True)
        try:
            self.device = self.module.devices("gpu")[0]
        except RuntimeError as error:
            pytest.skip(f"this JAX has no CUDA: {error}")

    def place(self, array):
        return self.module.device_put(np.array(array), self.device)

    def fetch(self, array):
        assert isinstance(array, self.module.Array)
        return np.asarray(array)

    def synchronize(self):
        self.module.effects_barrier()
        for array in self.module.live_arrays():
            array.block_until_ready()

    def stream(self):
        pytest.skip("JAX has no streams of the caller")


class Interface:
    """An array of which all that is known is its `__cuda_array_interface__`."""

    def __init__(self, array):
        self.array, self.__cuda_array_interface__ = array, array.__cuda_array_interface__

    def __getitem__(self, index):
        return Interface(self.array[index])

    @property
    def T(self):
        return Interface(self.array.T)


class Offered(Numba):
    """Arrays that offer themselves, of no library that is known; what comes back offers itself by DLPack."""

    def place(self, array):
        return Interface(super().place(array))

    def fetch(self, array):
        if isinstance(array, Interface):
            return super().fetch(array.array)
        assert array.__dlpack_device__() == (2, 0)
        return array.fetched()


LIBRARIES = {"torch": Torch, "cupy": Cupy, "numba": Numba, "jax": Jax, "offered": Offered}
_made: dict[str, Any] = {}


@pytest.fixture(params=list(LIBRARIES))
def library(request):
    """Each library that is installed."""
    pytest.importorskip({"offered": "numba"}.get(request.param, request.param))
    if request.param not in _made:
        _made[request.param] = LIBRARIES[request.param]()
    return _made[request.param]


@pytest.fixture
def torch():
    """PyTorch alone."""
    pytest.importorskip("torch")
    return _made.setdefault("torch", Torch())


@pytest.fixture
def cupy():
    """CuPy alone."""
    pytest.importorskip("cupy")
    return _made.setdefault("cupy", Cupy())


def agree(library, function, *arrays, **options):
    """Assert that the bits are those of the CPU."""
    got, expected = devices.called_on_both(library.place, library.fetch, function, *arrays, **options)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        devices.assert_same_bits(one, other)


def arrays_for(rng, function, shape, dtype="float32", kind="mixed"):
    """Predictions and labels that a function takes."""
    _, logits = devices.of_function(function)
    pair = devices.predictions(rng, shape, FLOATS[dtype], logits), devices.labels(rng, shape, FLOATS[dtype], kind)
    return tuple(map(np.asarray, pair))


def unrounded(dtype, reduction):
    """Sums of 16 bits that are rounded to 16 bits take another logarithm; in float32 their bits are the CPU's."""
    return {"dtype": "float32"} if "16" in dtype and reduction != "none" else {}


# ------------------------------------------------------------------------------------------------------ the same bits
@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_and_reduction_has_the_bits_of_the_cpu(library, function, reduction, dtype, rng):
    for shape in ((1,), (5,), (300,), (1025,), (4097,), (641, 1000), (), (3, 0)):
        x, y = arrays_for(rng, function, shape, dtype)
        if x.size or reduction != "mean":
            options = {"reduction": reduction} | unrounded(dtype, reduction)
            agree(library, devices.of_function(function)[0], x, y, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["hard", "soft", "mixed"])
@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[2]])
def test_sums_of_every_size_have_the_bits_of_the_cpu(library, function, kind, dtype, rng):
    for size in (255, 256, 257, 1023, 1024, 1025, 1279, 4095, 4096, 4097, 8191, 12_289, 1_000_003, 3_000_001):
        agree(library, devices.of_function(function)[0], *arrays_for(rng, function, size, dtype, kind))


@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[2], LOGITS[3], FOCAL[1]])
def test_each_pair_of_edges_has_the_bits_of_the_cpu(library, function, dtype):
    function, logits = devices.of_function(function)
    x, y = devices.pairs_of_edges(FLOATS[dtype], logits)
    for weight in (None, 0.5, np.linspace(0, 2, x.size)):
        agree(library, function, x, y, weight, reduction="none")


@pytest.mark.parametrize("seed", range(100))
def test_random_calls_have_the_bits_of_the_cpu(library, seed):
    rng = np.random.default_rng(seed)
    function, dtype = rng.choice(FUNCTIONS), str(rng.choice(list(FLOATS)))
    reduction, shape = str(rng.choice(REDUCTIONS)), tuple(int(n) for n in rng.integers(1, 90, rng.integers(1, 4)))
    x, y = arrays_for(rng, function, shape, dtype, str(rng.choice(["hard", "soft", "mixed"])))
    x.flat[rng.integers(x.size, size=3)] = rng.choice(devices.edges(FLOATS[dtype], function not in PROBABILITIES), 3)
    options: dict[str, Any] = {"reduction": reduction} | unrounded(dtype, reduction)
    if rng.random() < 0.5:
        options["weight"] = rng.random(shape[-1:])
    if rng.random() < 0.3:
        options["where"] = rng.random(shape) < 0.8
        options["where"].flat[0] = True
    if function not in FOCAL and rng.random() < 0.3:
        options["pos_weight"] = rng.random(shape[-1:]).astype("float32") * 3
    if function not in FOCAL and rng.random() < 0.3:
        options["label_smoothing"] = 0.125
    if function in WITH_GRADIENT and rng.random() < 0.5:
        options["grad_output"] = rng.normal(size=shape) if reduction == "none" else 2.5
    agree(library, devices.of_function(function)[0], x, y, **options)


@pytest.mark.parametrize("target", list(DTYPES))
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_labels_of_every_dtype_have_the_bits_of_the_cpu(library, dtype, target, rng):
    x, y = devices.predictions(rng, 5001, FLOATS[dtype]), devices.labels(rng, 5001, DTYPES[target], "soft")
    agree(library, nbbce.binary_cross_entropy, x, y, reduction="sum", dtype="float64")
    agree(library, nbbce.binary_cross_entropy_value_and_grad, x, y, reduction="none")


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sum_rounded_to_16_bits_is_within_half_a_unit_and_1e_5_of_the_exact(library, dtype, kind, rng):
    for size in (300, 5000, 40_000):
        x, y = arrays_for(rng, PROBABILITIES[0], size, dtype, kind)
        exact = float(nbbce.binary_cross_entropy(x, y, dtype="float64"))
        got = library.fetch(nbbce.binary_cross_entropy(library.place(x), library.place(y)))
        unit = 2.0 ** (np.floor(np.log2(exact)) + 1 - {"float16": 11, "bfloat16": 8}[dtype])
        assert got.dtype == FLOATS[dtype]
        assert abs(float(got) - exact) <= unit / 2 + 1e-5 * exact


@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[2]])
def test_twenty_runs_give_the_same_bits(library, function, rng):
    x, y = (library.place(a) for a in arrays_for(rng, function, 4_000_003))
    function = devices.of_function(function)[0]
    first = [library.fetch(r) for r in as_tuple(function(x, y))]
    for _ in range(19):
        for one, other in zip(as_tuple(function(x, y)), first, strict=True):
            devices.assert_same_bits(library.fetch(one), other)


def test_grid_makes_no_difference_to_the_bits(library, rng, monkeypatch):
    from nbbce import _cuda

    x, y = arrays_for(rng, PROBABILITIES[2], 1_000_003)
    run = _cuda.compiler.run
    for grid in (1, 2, 7, 100, 1000):

        def with_grid(kernel, device, stream, wanted, threads, arguments, grid=grid):
            run(kernel, device, stream, grid, threads, arguments)

        monkeypatch.setattr(_cuda.compiler, "run", with_grid)
        agree(library, nbbce.binary_cross_entropy_value_and_grad, x, y)


def test_more_elements_than_32_bits_count_are_summed(torch):
    size = 2**31 + 4097
    if torch.module.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("less than 6 GiB of free memory")
    x = torch.module.full((size,), 0.5, dtype=torch.module.float16, device="cuda")
    y = torch.module.zeros((size,), dtype=torch.module.uint8, device="cuda")
    # Each costs log 2, in float32 terms within 1e-8 of it.
    value = torch.fetch(nbbce.binary_cross_entropy(x, y, reduction="sum", dtype="float64"))
    assert abs(value / (size * np.log(2)) - 1) < 1e-8
    x[-1] = 2.0
    assert np.isnan(torch.fetch(nbbce.binary_cross_entropy(x, y, reduction="sum", dtype="float64")))
    with pytest.raises(ValueError, match=rf"got input\[{size - 1}\] = 2\.0"):
        nbbce.binary_cross_entropy(x, y, reduction="sum", validate=True)


# ------------------------------------------------------------------------------------------------------------ axes
@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_along_any_axis_has_the_bits_of_the_cpu(library, function, reduction, dtype, rng):
    for shape in ((97, 10), (5, 300), (700, 3), (6, 40, 20), (2, 1030, 4), (3, 2050)):
        x, y = arrays_for(rng, function, shape, dtype)
        for axis in range(len(shape)):
            agree(library, devices.of_function(function)[0], x, y, reduction=reduction, axis=axis)


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1_000_000, 10), 0),
        ((1_000_000, 10), 1),
        ((64, 1_000_000), 1),
        ((300_000, 100), 0),
        ((300_000, 100), 1),
        ((10_000, 1024), 1),
        ((3000, 2050), 0),
        ((40, 5000, 30), 1),
        ((200, 7, 3000), 1),
        ((200, 70, 300), (0, 2)),
        ((500_000, 2, 2), 1),
        ((20_000, 10, 10), 1),
        ((2, 500_000, 2), 0),
        ((8, 100, 60, 30), 0),
    ],
    ids=str,
)
def test_large_sums_along_axes_have_the_bits_of_the_cpu(library, shape, axis, dtype, kind, rng):
    for function in (PROBABILITIES[0], LOGITS[0])[: 1 if dtype == "float64" else 2]:
        x, y = arrays_for(rng, function, shape, dtype, kind)
        agree(library, devices.of_function(function)[0], x, y, axis=axis, dtype="float64")


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@pytest.mark.parametrize("function", [PROBABILITIES[0], LOGITS[0]])
def test_rows_of_every_length_have_the_bits_of_the_cpu(library, function, kind, rng):
    for length in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 511, 512, 1000, 1023, 1024, 1025, 5000):
        x, y = arrays_for(rng, function, (3001, length), "float32", kind)
        agree(library, devices.of_function(function)[0], x, y, axis=1, dtype="float64")


@pytest.mark.parametrize("seed", range(100))
def test_random_calls_along_axes_have_the_bits_of_the_cpu(library, seed):
    rng = np.random.default_rng([2, seed])
    function, dtype = rng.choice(FUNCTIONS), str(rng.choice(list(FLOATS)))
    ndim = int(rng.integers(1, 5))
    shape = tuple(int(n) for n in rng.integers(1, (20_000, 400, 70, 20)[ndim - 1], ndim))
    axes = tuple(int(d) for d in np.flatnonzero(rng.random(ndim) < 0.5))
    x, y = arrays_for(rng, function, shape, dtype, str(rng.choice(["hard", "soft", "mixed"])))
    x.flat[rng.integers(x.size, size=3)] = rng.choice(devices.edges(FLOATS[dtype], function not in PROBABILITIES), 3)
    options: dict[str, Any] = {"reduction": str(rng.choice(["mean", "sum"])), "axis": axes}
    options |= unrounded(dtype, "sum")
    options["keepdims"] = bool(rng.random() < 0.3)
    if rng.random() < 0.4:
        options["weight"] = rng.random(shape[-1:])
    if rng.random() < 0.4:
        options["where"] = rng.random(shape) < 0.8
        options["where"][tuple(slice(1) if d in axes else slice(None) for d in range(ndim))] = True
    if function not in FOCAL and rng.random() < 0.3:
        options["pos_weight"] = rng.random(shape[-1:]).astype("float32") * 3
    if function not in FOCAL and rng.random() < 0.3:
        options["label_smoothing"] = 0.125
    if function in WITH_GRADIENT and rng.random() < 0.5:
        of_result = tuple(n for d, n in enumerate(shape) if d not in axes)
        options["grad_output"] = rng.normal(size=of_result) if of_result and not options["keepdims"] else 2.5
    agree(library, devices.of_function(function)[0], x, y, **options)


@pytest.mark.parametrize("axis", [0, 1])
def test_masked_mean_along_an_axis_has_the_bits_of_the_cpu(library, axis, rng):
    for shape in ((50_000, 10), (3000, 700)):
        x, y = arrays_for(rng, PROBABILITIES[2], shape)
        where = rng.random(shape) < 0.3
        where[0], where[:, 0] = True, True
        x[~where] = np.nan
        for grad_output in (None, rng.normal(size=shape[1 - axis])):
            options = {"where": where, "axis": axis, "grad_output": grad_output}
            agree(library, nbbce.binary_cross_entropy_value_and_grad, x, y, **options)


def test_mean_over_nothing_is_nan_and_its_gradient_0(library, rng):
    x, y = arrays_for(rng, PROBABILITIES[2], (300, 100))
    where = np.ones(x.shape, bool)
    where[7] = False
    value, gradient = nbbce.binary_cross_entropy_value_and_grad(
        *map(library.place, (x, y)), axis=1, where=library.place(where)
    )
    assert np.flatnonzero(np.isnan(library.fetch(value))).tolist() == [7]
    assert (library.fetch(gradient)[7] == 0).all()


@pytest.mark.parametrize("axis", [0, 1, ()])
@pytest.mark.parametrize("name", ["every second", "shifted", "transposed"])
def test_view_along_an_axis_has_the_bits_of_the_cpu(library, name, axis, rng):
    view = VIEWS[name]
    x, y = arrays_for(rng, PROBABILITIES[2], (60, 70))
    where = rng.random(x.shape) < 0.7
    where[:4], where[:, :3] = True, True
    function = nbbce.binary_cross_entropy_value_and_grad
    for reduction in ("mean", "sum"):
        options = {"reduction": reduction, "axis": axis}
        a, b, mask = (view(library.place(array)) for array in (x, y, where))
        pairs = [(function(a, b, **options), function(view(x), view(y), **options))]
        # All is kept along no axis, where a mean is over one element.
        kept = np.ones_like(where) if axis == () else where
        mask = view(library.place(kept)) if axis == () else mask
        pairs += [(function(a, b, where=mask, **options), function(view(x), view(y), where=view(kept), **options))]
        for got, expected in pairs:
            for one, other in zip(got, expected, strict=True):
                devices.assert_same_bits(library.fetch(one), np.asarray(other))


def test_out_along_an_axis_takes_the_bits_of_the_cpu(library, rng):
    if isinstance(library, Jax):
        pytest.skip("arrays of JAX do not change")
    x, y = arrays_for(rng, PROBABILITIES[2], (60, 70, 80))
    function = nbbce.binary_cross_entropy_value_and_grad
    for axis, shape in ((0, (70, 80)), (1, (60, 80)), (2, (60, 70))):
        expected = function(x, y, axis=axis)
        for value in (library.place(np.zeros(shape, "f4")), transposed(library.place(np.zeros(shape[::-1], "f4")))):
            gradient = library.place(np.zeros(x.shape, "f4"))
            got = function(library.place(x), library.place(y), axis=axis, out=(value, gradient))
            assert got[0] is value
            assert got[1] is gradient
            for one, other in zip(got, expected, strict=True):
                devices.assert_same_bits(library.fetch(one), other)


def test_twenty_runs_along_axes_give_the_same_bits(library, rng):
    x, y = (library.place(a) for a in arrays_for(rng, PROBABILITIES[0], (400_000, 10)))
    for axis in (0, 1):
        first = library.fetch(nbbce.binary_cross_entropy(x, y, axis=axis))
        for _ in range(19):
            devices.assert_same_bits(library.fetch(nbbce.binary_cross_entropy(x, y, axis=axis)), first)


@pytest.mark.parametrize("axis", [0, 1])
def test_grid_makes_no_difference_to_the_bits_along_axes(library, axis, rng, monkeypatch):
    from nbbce import _cuda

    x, y = arrays_for(rng, PROBABILITIES[2], (100_000, 10))
    where = rng.random(x.shape) < 0.7
    where[0], where[:, 0] = True, True
    run = _cuda.compiler.run
    for grid in (1, 2, 7, 100, 1000):

        def with_grid(kernel, device, stream, wanted, threads, arguments, grid=grid):
            run(kernel, device, stream, grid, threads, arguments)

        monkeypatch.setattr(_cuda.compiler, "run", with_grid)
        agree(library, nbbce.binary_cross_entropy_value_and_grad, x, y, axis=axis)
        agree(library, nbbce.binary_cross_entropy_value_and_grad, x, y, axis=axis, where=where)


def test_rows_beyond_what_32_bits_count_are_summed(torch):
    size = 2**31 + 4096
    if torch.module.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("less than 10 GiB of free memory")
    x = torch.module.full((size // 16, 16), 0.5, dtype=torch.module.float16, device="cuda")
    y = torch.module.zeros((size // 16, 16), dtype=torch.module.uint8, device="cuda")
    x[-1, -1] = 2.0
    # Each costs log 2, in float32 terms within 1e-8 of it.
    for axis in (0, 1):
        value = torch.fetch(nbbce.binary_cross_entropy(x, y, axis=axis, dtype="float32"))
        assert np.flatnonzero(np.isnan(value)).tolist() == [value.size - 1]
        np.testing.assert_allclose(value[:-1], np.log(2), rtol=1e-6)


# --------------------------------------------------------------------------------------------------------- layouts
def transposed(array):
    """The transpose, which arrays of Numba make by a kernel of their own."""
    if ON_PTX and not isinstance(array, np.ndarray):
        pytest.skip("tests/ptx_driver.py runs kernels of nbbce alone")
    return array.T


VIEWS = {
    "every second": lambda a: a[:, ::2],
    "a column": lambda a: a[:, 1:2],
    "shifted": lambda a: a[3:, 1:],
    "a row": lambda a: a[2],
    "transposed": transposed,
}


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", list(VIEWS))
def test_view_of_an_array_has_the_bits_of_the_cpu(library, name, reduction, rng):
    view = VIEWS[name]
    x, y = arrays_for(rng, PROBABILITIES[2], (60, 70))
    function = nbbce.binary_cross_entropy_value_and_grad
    got = function(view(library.place(x)), view(library.place(y)), reduction=reduction)
    for one, other in zip(got, function(view(x), view(y), reduction=reduction), strict=True):
        devices.assert_same_bits(library.fetch(one), np.asarray(other))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_dense_array_that_starts_anywhere_has_the_bits_of_the_cpu(library, offset, dtype, rng):
    x, y = arrays_for(rng, PROBABILITIES[2], 5001, dtype)
    function = nbbce.binary_cross_entropy_value_and_grad
    got = function(library.place(x)[offset:], library.place(y)[offset:], reduction="none")
    for one, other in zip(got, function(x[offset:], y[offset:], reduction="none"), strict=True):
        devices.assert_same_bits(library.fetch(one), other)


def test_negative_strides_of_cupy_have_the_bits_of_the_cpu(cupy, rng):
    x, y = arrays_for(rng, PROBABILITIES[0], (60, 70))
    for reduction in ("none", "sum"):
        got = nbbce.binary_cross_entropy(cupy.place(x)[::-1, ::-2], cupy.place(y)[:, ::-2], reduction=reduction)
        devices.assert_same_bits(
            cupy.fetch(got), np.asarray(nbbce.binary_cross_entropy(x[::-1, ::-2], y[:, ::-2], reduction=reduction))
        )


def test_out_of_the_library_takes_the_bits_of_the_cpu(library, rng):
    x, y = arrays_for(rng, PROBABILITIES[2], (60, 70))
    if isinstance(library, Jax):
        pytest.skip("arrays of JAX do not change")
    value, gradient = library.place(np.zeros((), "f4")), library.place(np.zeros(x.shape, "f4"))
    function = nbbce.binary_cross_entropy_value_and_grad
    got = function(library.place(x), library.place(y), out=(value, gradient))
    assert got[0] is value
    assert got[1] is gradient
    for one, other in zip(got, function(x, y), strict=True):
        devices.assert_same_bits(library.fetch(one), np.asarray(other))


def test_what_comes_back_goes_in_again(library, rng):
    x, y = arrays_for(rng, LOGITS[0], 5001)
    function, stream = nbbce.binary_cross_entropy_with_logits, None if isinstance(library, Jax) else library.stream()
    losses = function(library.place(x), library.place(y), reduction="none", stream=stream)
    got = function(losses, library.place(y), reduction="none", stream=stream)
    expected = function(function(x, y, reduction="none"), y, reduction="none")
    devices.assert_same_bits(library.fetch(got), expected)


# --------------------------------------------------------------------------------------------------------- PyTorch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_of_pytorch_are_derived_on_the_device_with_the_bits_of_the_cpu(torch, reduction, rng):
    import nbbce.torch as derived

    z, y = arrays_for(rng, LOGITS[2], 5001)
    scale = np.asarray(rng.random(z.shape if reduction == "none" else ()), z.dtype)
    gradients, values = [], []
    for place in (torch.place, torch.module.from_numpy):
        x = place(z).requires_grad_()
        loss = derived.binary_cross_entropy_with_logits(x, place(y), reduction=reduction)
        loss.backward(place(scale))
        values.append(loss.detach().cpu().numpy())
        gradients.append(x.grad.cpu().numpy())
    devices.assert_same_bits(*values)
    devices.assert_same_bits(*gradients)


def test_tensor_that_requires_its_gradient_is_read_and_the_results_do_not(torch, rng):
    x, y = arrays_for(rng, LOGITS[2], 5001)
    z = torch.place(x).requires_grad_()
    for one, other in zip(
        nbbce.binary_cross_entropy_with_logits_value_and_grad(z, torch.place(y)),
        nbbce.binary_cross_entropy_with_logits_value_and_grad(x, y),
        strict=True,
    ):
        assert not one.requires_grad
        devices.assert_same_bits(torch.fetch(one), np.asarray(other))
    parameter = torch.module.nn.Parameter(torch.place(x))
    assert not nbbce.binary_cross_entropy_with_logits(parameter, torch.place(y)).requires_grad


def test_gradient_of_the_loss_on_the_device_is_a_grad_output(torch, rng):
    x, y = arrays_for(rng, LOGITS[1], 5001)
    scale = torch.module.tensor(2.5, device="cuda")
    got = nbbce.binary_cross_entropy_with_logits_grad(torch.place(x), torch.place(y), grad_output=scale)
    expected = nbbce.binary_cross_entropy_with_logits_grad(x, y, grad_output=2.5)
    # An array of factors is multiplied in another order than a number, so the last bit may differ.
    np.testing.assert_allclose(torch.fetch(got), expected, rtol=3e-7, atol=0)


def test_gradient_is_near_that_of_autograd(torch, rng):
    x, y = arrays_for(rng, LOGITS[1], 5001)
    z = torch.place(x).requires_grad_()
    torch.module.nn.functional.binary_cross_entropy_with_logits(z, torch.place(y)).backward()
    ours = torch.fetch(nbbce.binary_cross_entropy_with_logits_grad(torch.place(x), torch.place(y)))
    np.testing.assert_allclose(ours, z.grad.cpu().numpy(), rtol=1e-5, atol=1e-9)


def test_tensor_of_pytorch_on_the_host_stays_there(torch, rng):
    x, y = arrays_for(rng, PROBABILITIES[0], 100)
    nbbce.binary_cross_entropy(torch.place(x), torch.place(y))
    on_host = nbbce.binary_cross_entropy(torch.module.from_numpy(x), torch.module.from_numpy(y))
    devices.assert_same_bits(np.asarray(on_host), np.asarray(nbbce.binary_cross_entropy(x, y)))


def test_expanded_tensor_has_the_bits_of_the_cpu(torch, rng):
    x, y = arrays_for(rng, PROBABILITIES[0], (60, 70))
    got = nbbce.binary_cross_entropy(torch.place(x[:1]).expand(60, 70), torch.place(y), reduction="none")
    expected = nbbce.binary_cross_entropy(np.broadcast_to(x[:1], (60, 70)), y, reduction="none")
    devices.assert_same_bits(torch.fetch(got), expected)


# --------------------------------------------------------------------------------------------------------- streams
def test_stream_that_is_named_is_the_one_that_works(library, rng):
    x, y = arrays_for(rng, PROBABILITIES[0], 500_000)
    stream = library.stream()
    a, b = library.place(x), library.place(y)
    library.synchronize()
    for reduction in REDUCTIONS:
        got = nbbce.binary_cross_entropy(a, b, reduction=reduction, stream=stream)
        library.synchronize()
        expected = nbbce.binary_cross_entropy(x, y, reduction=reduction)
        devices.assert_same_bits(library.fetch(got), np.asarray(expected))


@pytest.mark.parametrize("axis", [0, 1])
def test_stream_that_is_named_is_the_one_that_works_along_axes(library, axis, rng):
    x, y = arrays_for(rng, PROBABILITIES[2], (50_000, 10))
    where = rng.random(x.shape) < 0.7
    where[0], where[:, 0] = True, True
    stream = library.stream()
    a, b, mask = map(library.place, (x, y, where))
    library.synchronize()
    function = nbbce.binary_cross_entropy_value_and_grad
    for _ in range(20):
        got = function(a, b, axis=axis, where=mask, stream=stream)
        library.synchronize()
        for one, other in zip(got, function(x, y, axis=axis, where=where), strict=True):
            devices.assert_same_bits(library.fetch(one), other)


def test_call_follows_what_the_current_stream_of_pytorch_has_to_do_first(torch, rng):
    x, y = arrays_for(rng, PROBABILITIES[0], 500_000)
    a, b = torch.place(x), torch.place(y)
    late = torch.module.zeros_like(a)
    nbbce.binary_cross_entropy(a, b)  # the kernel is there
    torch.synchronize()
    stream = torch.module.cuda.Stream()
    with torch.module.cuda.stream(stream):
        torch.module.cuda._sleep(500_000_000)  # some tenths of a second
        late.copy_(a)
        got = nbbce.binary_cross_entropy(late, b)
        assert not stream.query(), "the call has waited for the device"
    stream.synchronize()
    devices.assert_same_bits(torch.fetch(got), np.asarray(nbbce.binary_cross_entropy(x, y)))


def test_call_follows_what_the_current_stream_of_cupy_has_to_do_first(cupy, rng):
    x, y = arrays_for(rng, PROBABILITIES[0], 500_000)
    a, b = cupy.place(x), cupy.place(y)
    many = cupy.module.zeros((4000, 4000), "f4")
    with cupy.module.cuda.Stream(non_blocking=True) as stream:
        late = cupy.module.zeros_like(a)
        for _ in range(20):
            many = many @ many  # some tenths of a second
        late[...] = a + many[0, 0]
        got = nbbce.binary_cross_entropy(late, b)
    stream.synchronize()
    devices.assert_same_bits(cupy.fetch(got), np.asarray(nbbce.binary_cross_entropy(x, y)))


def test_results_of_jax_are_ready_when_jax_reads_them(rng):
    pytest.importorskip("jax")
    jax = _made.setdefault("jax", Jax())
    x, y = arrays_for(rng, PROBABILITIES[0], 500_000)
    for _ in range(20):
        a = jax.module.numpy.asarray(jax.place(x)) + 0.0
        losses = nbbce.binary_cross_entropy(a, jax.place(y), reduction="none")
        doubled = losses * 2
        del a, losses
        np.testing.assert_array_equal(np.asarray(doubled), 2 * nbbce.binary_cross_entropy(x, y, reduction="none"))


# ---------------------------------------------------------------------------------------------------------- graphs
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[2]])
def test_graph_of_pytorch_gives_the_bits_of_the_cpu_for_other_values(torch, function, reduction, rng):
    first, second = (arrays_for(rng, function, 100_000) for _ in range(2))
    called = devices.of_function(function)[0]
    a, b = map(torch.place, first)
    side = torch.module.cuda.Stream()
    side.wait_stream(torch.module.cuda.current_stream())
    with torch.module.cuda.stream(side):
        called(a, b, reduction=reduction)
    torch.module.cuda.current_stream().wait_stream(side)
    graph = torch.module.cuda.CUDAGraph()
    with torch.module.cuda.graph(graph):
        results = called(a, b, reduction=reduction)
    for x, y in (first, second, first):
        a.copy_(torch.place(x))
        b.copy_(torch.place(y))
        graph.replay()
        torch.synchronize()
        for one, other in zip(results, called(x, y, reduction=reduction), strict=True):
            devices.assert_same_bits(torch.fetch(one), np.asarray(other))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[2]])
def test_graph_of_pytorch_along_an_axis_gives_the_bits_of_the_cpu_for_other_values(torch, function, axis, rng):
    first, second = (arrays_for(rng, function, (30_000, 10)) for _ in range(2))
    where = rng.random((30_000, 10)) < 0.7
    where[0], where[:, 0] = True, True
    called = devices.of_function(function)[0]
    a, b, mask = map(torch.place, (*first, where))
    side = torch.module.cuda.Stream()
    side.wait_stream(torch.module.cuda.current_stream())
    with torch.module.cuda.stream(side):
        called(a, b, axis=axis)
        called(a, b, axis=axis, where=mask)
    torch.module.cuda.current_stream().wait_stream(side)
    graph = torch.module.cuda.CUDAGraph()
    with torch.module.cuda.graph(graph):
        results = (*called(a, b, axis=axis), *called(a, b, axis=axis, where=mask))
    for x, y in (first, second, first):
        a.copy_(torch.place(x))
        b.copy_(torch.place(y))
        graph.replay()
        torch.synchronize()
        expected = (*called(x, y, axis=axis), *called(x, y, axis=axis, where=where))
        for one, other in zip(results, expected, strict=True):
            devices.assert_same_bits(torch.fetch(one), other)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_graph_of_cupy_gives_the_bits_of_the_cpu_for_other_values(cupy, reduction, rng):
    first, second = (arrays_for(rng, PROBABILITIES[0], 100_000) for _ in range(2))
    a, b = map(cupy.place, first)
    out = cupy.place(np.zeros((100_000,) if reduction == "none" else (), "f4"))
    stream = cupy.module.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(2):  # the kernels, and blocks of memory in the pool of this stream
            nbbce.binary_cross_entropy(a, b, reduction=reduction, out=out)
            cupy.module.full((1,), 0, "i4")
        stream.synchronize()
        stream.begin_capture()
        nbbce.binary_cross_entropy(a, b, reduction=reduction, out=out)
        graph = stream.end_capture()
        for x, y in (first, second, first):
            a.set(x)
            b.set(y)
            cupy.synchronize()
            graph.launch(stream)
            stream.synchronize()
            devices.assert_same_bits(cupy.fetch(out), np.asarray(nbbce.binary_cross_entropy(x, y, reduction=reduction)))


# --------------------------------------------------------------------------------------------------------- threads
@pytest.mark.parametrize("named", [True, False])
def test_threads_on_streams_of_their_own_get_the_bits_of_the_cpu(library, named, rng):
    # A call that names no stream, where one is current, is one that is remembered.
    x, y = arrays_for(rng, PROBABILITIES[2], 300_001)
    a, b = library.place(x), library.place(y)
    library.synchronize()
    expected = nbbce.binary_cross_entropy_value_and_grad(x, y)
    at_once = threading.Barrier(2)

    def work(_):
        stream = None if isinstance(library, Jax) else library.stream()
        current = contextlib.nullcontext()
        if not named:
            stream, current = None, stream if isinstance(library, Cupy) else current
            if isinstance(library, Torch):
                current = library.module.cuda.stream(library.stream())
        at_once.wait(timeout=60)
        with current:
            for _ in range(100):
                got = nbbce.binary_cross_entropy_value_and_grad(a, b, stream=stream)
                library.synchronize()
                for one, other in zip(got, expected, strict=True):
                    devices.assert_same_bits(library.fetch(one), np.asarray(other))
        return True

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [True, True]


def test_threads_that_compile_at_once_get_the_bits_of_the_cpu(library, rng, monkeypatch):
    from nbbce import _compile_cuda, _cuda

    monkeypatch.setattr(_compile_cuda, "_folder", lambda: None)
    monkeypatch.setattr(_cuda, "_kernels", {})
    monkeypatch.setattr(_cuda, "_known", {})
    _compile_cuda.loaded.cache_clear()
    names = [PROBABILITIES[0], PROBABILITIES[1], LOGITS[0], LOGITS[1]]
    given = {name: arrays_for(rng, name, 5001) for name in names}
    placed = {name: tuple(map(library.place, pair)) for name, pair in given.items()}
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(names, pool.map(lambda name: getattr(nbbce, name)(*placed[name]), names), strict=True))
    for name, got in found.items():
        devices.assert_same_bits(library.fetch(got), np.asarray(getattr(nbbce, name)(*given[name])))


# ---------------------------------------------------------------------------------------------------------- memory
def free_memory():
    """Free bytes of the current device."""
    import cuda.bindings.driver as driver

    error, free, _ = driver.cuMemGetInfo()
    assert error == driver.CUresult.CUDA_SUCCESS
    return free


def resident():
    """Bytes of this process in the memory of the host."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="looks into /proc")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ten_thousand_calls_leave_no_memory_behind(library, reduction, rng):
    x, y = (library.place(a) for a in arrays_for(rng, PROBABILITIES[2], 20_000))

    def call(times):
        for k in range(times):
            nbbce.binary_cross_entropy_value_and_grad(x, y, reduction=reduction)
            if k % 100 == 0:
                library.synchronize()
        library.synchronize()
        gc.collect()

    call(1000)
    before, before_on_host = free_memory(), resident()
    call(10_000)
    # 10^4 results of 80 kB would be 800 MB; what an allocator holds more or less of is a few of its blocks.
    assert before - free_memory() < 64 * 2**20
    assert resident() - before_on_host < 32 * 2**20


def test_memory_of_pytorch_is_what_it_was_to_the_byte(torch, rng):
    x, y = (torch.place(a) for a in arrays_for(rng, PROBABILITIES[2], 20_000))
    nbbce.binary_cross_entropy_value_and_grad(x, y)
    torch.synchronize()
    before = torch.module.cuda.memory_allocated()
    for _ in range(100):
        nbbce.binary_cross_entropy_value_and_grad(x, y)
    torch.synchronize()
    assert torch.module.cuda.memory_allocated() == before


# ------------------------------------------------------------------------------------------------------ validation
@pytest.mark.parametrize("name", ["input", "target"])
def test_validation_names_the_first_bad_value_and_leaves_the_device_usable(library, name, rng):
    given = dict(zip(("input", "target"), arrays_for(rng, PROBABILITIES[0], (300, 500)), strict=True))
    good = {key: value.copy() for key, value in given.items()}
    given[name][299, 499] = given[name][17, 33] = 1.5
    placed = {key: library.place(value) for key, value in given.items()}
    message = rf"\Abinary_cross_entropy: values must be in \[0, 1\]; got {name}\[17, 33\] = 1\.5\Z"
    for _ in range(3):
        with pytest.raises(ValueError, match=message):
            nbbce.binary_cross_entropy(**placed, validate=True)
    assert np.isnan(library.fetch(nbbce.binary_cross_entropy(**placed)))
    agree(library, nbbce.binary_cross_entropy, *good.values())
    placed = {key: library.place(value) for key, value in good.items()}
    got = nbbce.binary_cross_entropy(**placed, validate=True)
    devices.assert_same_bits(library.fetch(got), np.asarray(nbbce.binary_cross_entropy(**good)))


def test_masked_mean_divides_by_what_the_mask_keeps(library, rng):
    x, y = arrays_for(rng, PROBABILITIES[2], (300, 500))
    where = rng.random((300, 500)) < 0.3
    agree(library, nbbce.binary_cross_entropy_value_and_grad, x, y, where=where)


# --------------------------------------------------------------------------------------------------------- devices
def test_call_on_another_device_leaves_the_current_one_as_it_was(torch, rng):
    if torch.module.cuda.device_count() < 2:
        pytest.skip("one device")
    x, y = arrays_for(rng, PROBABILITIES[0], 5001)
    a, b = torch.place(x).to("cuda:1"), torch.place(y).to("cuda:1")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.module.cuda.device(0))
        got = nbbce.binary_cross_entropy(a, b)
        assert torch.module.cuda.current_device() == 0
        assert got.device.index == 1
    devices.assert_same_bits(torch.fetch(got), np.asarray(nbbce.binary_cross_entropy(x, y)))
    with pytest.raises(TypeError, match="got 'input' on device 1 and 'target' on device 0"):
        nbbce.binary_cross_entropy(a, torch.place(y))
