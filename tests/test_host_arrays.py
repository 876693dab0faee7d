"""Tensors of PyTorch and arrays of JAX in the memory of the host: read in place, answered in kind.

Where one of the two is not installed, what stands for it here has the methods that nbbce uses and no others.
"""

import sys
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from devices import (
    FLOATS,
    FUNCTIONS,
    LOGITS,
    PROBABILITIES,
    REDUCTIONS,
    as_tuple,
    assert_same_bits,
    labels,
    of_function,
    predictions,
)

import nbbce
from nbbce import _host_arrays

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LOSS, GRADIENT, BOTH = (getattr(nbbce, name) for name in PROBABILITIES)
OF_LOGITS = getattr(nbbce, LOGITS[0])


class Tensor:
    """Stands for one of PyTorch, which shows NumPy no bfloat16, and nothing that requires a gradient."""

    def __init__(self, values, dtype=None, requires_grad=False, is_cpu=True):
        self.values, self.dtype = values, f"torch.{dtype or values.dtype.name}"
        self.requires_grad, self.is_cpu, self._version = requires_grad, is_cpu, 0

    def detach(self):
        return Tensor(self.values, self.dtype[6:])

    def view(self, dtype):
        return Tensor(self.values, dtype[6:])

    def numpy(self):
        if self.requires_grad or self.dtype == "torch.bfloat16" or not self.is_cpu:
            raise TypeError("no")
        return self.values

    def __array__(self, *_, **__):
        return self.numpy()


class JaxArray:
    """Stands for one of JAX, which nobody may write to."""

    def __init__(self, values, platform="cpu", sharding=None):
        self.values = values.view()
        self.values.flags.writeable = False
        self.shape, self.platform, self.sharding, self.committed = values.shape, platform, sharding, bool(sharding)

    def devices(self):
        return (SimpleNamespace(platform=self.platform),) if self.platform else 1 / 0

    def __array__(self, *_, **__):
        return self.values


class _Library:
    def __init__(self, module):
        self.module = module


class Torch(_Library):
    """PyTorch, or what stands for it."""

    type = property(lambda self: self.module.Tensor)

    def place(self, array):
        if array.dtype == BFLOAT16:
            return self.module.from_numpy(array.view(np.int16)).view(self.module.bfloat16)
        return self.module.from_numpy(array)

    def fetch(self, array):
        if array.dtype == self.module.bfloat16:
            return array.view(self.module.int16).numpy().view(BFLOAT16)
        return array.numpy()


class Jax(_Library):
    """JAX, or what stands for it."""

    type = property(lambda self: self.module.Array)

    def place(self, array):
        return self.module.device_put(array)

    def fetch(self, array):
        return np.asarray(array)


def increment_version(tensor):
    tensor._version += 1


def stand_in(name):
    module = ModuleType(name)
    if name == "torch":
        module.autograd = SimpleNamespace(graph=SimpleNamespace(increment_version=increment_version))
        module.Tensor, module.from_numpy, module.bfloat16, module.int16 = (
            Tensor,
            Tensor,
            "torch.bfloat16",
            "torch.int16",
        )
    else:
        module.Array = JaxArray
        module.device_put = lambda array, sharding=None: JaxArray(np.asarray(array), sharding=sharding)
    return module


def library_named(name, request, monkeypatch):
    """The library 'torch' or 'jax', or what stands for it; if it is to be the real one, the test is skipped without."""
    *real, name = name.split()
    if real:
        module = pytest.importorskip(name)
        if name == "jax":
            module.config.update("jax_enable_x64", True)
            request.addfinalizer(lambda: module.config.update("jax_enable_x64", False))
    else:
        module = stand_in(name)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(_host_arrays, "_library_of_type", {})
    return Torch(module) if name == "torch" else Jax(module)


@pytest.fixture(params=["torch", "jax", "real torch", "real jax"])
def library(request, monkeypatch):
    return library_named(request.param, request, monkeypatch)


@pytest.fixture(params=["torch", "real torch"])
def torch(request, monkeypatch):
    return library_named(request.param, request, monkeypatch)


@pytest.fixture(params=["jax", "real jax"])
def jax(request, monkeypatch):
    return library_named(request.param, request, monkeypatch)


def pair(rng, shape=(5, 8), dtype="float32", logits=False):
    return predictions(rng, shape, FLOATS[dtype], logits), labels(rng, shape, FLOATS[dtype])


def assert_in_kind(library, results, expected):
    for one, other in zip(as_tuple(results), as_tuple(expected), strict=True):
        assert isinstance(one, library.type)
        assert_same_bits(library.fetch(one), np.asarray(other))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_of_the_library_with_the_bits_of_numpy(library, name, reduction, dtype, rng):
    function, logits = of_function(name)
    for shape in ((5, 8), ()):
        x, y = (np.asarray(array) for array in pair(rng, shape, dtype, logits))
        for _ in range(2):  # checked, and as a call like one before
            expected = function(x, y, reduction=reduction)
            assert_in_kind(library, function(library.place(x), library.place(y), reduction=reduction), expected)


@pytest.mark.parametrize("target", ["bool", "int64", "uint8", "float64"])
def test_labels_and_options_may_be_of_numpy_and_of_the_library(library, target, rng):
    x, y = predictions(rng, (5, 8), "float32"), labels(rng, (5, 8), target)
    options = {
        "weight": rng.random(8),
        "pos_weight": rng.random((5, 1)).astype("f4"),
        "where": rng.random((5, 8)) < 0.5,
        "axis": 1,
    }
    expected = LOSS(x, y, **options)
    placed = {name: library.place(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    assert_in_kind(library, LOSS(library.place(x), library.place(y), **placed), expected)
    assert_in_kind(library, LOSS(library.place(x), y, **options), expected)
    of_numpy = LOSS(x, library.place(y), **placed)
    assert type(of_numpy) is np.ndarray
    assert_same_bits(of_numpy, expected)


def test_number_for_a_gradient_may_be_an_array_of_no_dimension(library, rng):
    x, y = pair(rng)
    for value in (0.5, 0.5, 3.0, 0.0, -0.0):  # the second as a call like one before
        scale, whole = np.asarray(value), np.full(x.shape, value)
        expected = GRADIENT(x, y, reduction="none", grad_output=whole)
        found = GRADIENT(library.place(x), library.place(y), reduction="sum", grad_output=library.place(scale))
        assert_in_kind(library, found, expected)


def test_calls_with_options_like_one_before_take_the_arrays_that_they_are_given(library, rng):
    for _ in range(3):
        x, y = pair(rng, (20, 10))
        options = {"weight": rng.random(10), "where": rng.random((20, 10)) < 0.5, "grad_output": rng.random((20, 10))}
        expected = BOTH(x, y, reduction="none", **options)
        placed = {name: library.place(v) for name, v in options.items()}
        found = BOTH(library.place(x), library.place(y), reduction="none", **placed)
        assert_in_kind(library, found, expected)


def test_no_element_costs_0_and_the_mean_is_nan(library):
    x = library.place(np.zeros((0, 3), "f4"))
    assert_in_kind(library, LOSS(x, x, reduction="sum"), np.float32(0))
    assert_in_kind(library, LOSS(x, x, reduction="none"), np.zeros((0, 3), "f4"))
    with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$"):
        assert_in_kind(library, LOSS(x, x), np.float32(np.nan))


def test_value_out_of_its_domain_is_told_as_of_numpy(library):
    x, y = np.array([[0.5, 1.5]], "f4"), np.ones((1, 2), "f4")
    with pytest.raises(
        ValueError, match=r"^binary_cross_entropy: values must be in \[0, 1\]; got input\[0, 1\] = 1\.5$"
    ):
        LOSS(library.place(x), library.place(y))
    with pytest.raises(ValueError, match=r"target\[0, 1\] = 1\.5$"):
        OF_LOGITS(library.place(y), library.place(x), reduction="none")
    assert_in_kind(library, LOSS(library.place(x), library.place(y), validate=False), np.float32(np.nan))


def test_shape_that_does_not_fit_and_dtype_that_is_none_are_told_as_of_numpy(library):
    x, y = library.place(np.zeros(3, "f4")), library.place(np.zeros(2, "f4"))
    with pytest.raises(ValueError, match=r"^binary_cross_entropy: 'target' must have the shape of 'input', \(3,\);"):
        LOSS(x, y)
    numbers = library.place(np.zeros(3, "i4"))
    with pytest.raises(TypeError, match=r"^binary_cross_entropy: 'input' must have dtype float16, .*; got int32$"):
        LOSS(numbers, x)
    with pytest.raises(TypeError, match=r"^binary_cross_entropy: 'stream' must be None for arrays on the host; got 0$"):
        LOSS(x, x, stream=0)


def test_compat_answers_in_kind(library, rng):
    x, y = pair(rng)
    for compat in (nbbce.compat.mindspore, nbbce.compat.paddle):
        expected = compat.binary_cross_entropy(x, y, x)
        assert_in_kind(library, compat.binary_cross_entropy(*map(library.place, (x, y, x))), expected)


# ------------------------------------------------------------------------------------------------------------ PyTorch
@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_for_results_are_filled_and_given_back(torch, dtype, rng):
    x, y = pair(rng, dtype=dtype)
    a, b = torch.place(x), torch.place(y)
    losses, gradient = BOTH(x, y, reduction="none")
    mean = LOSS(x, y)
    for _ in range(2):
        outs = tuple(torch.place(np.zeros_like(x)) for _ in range(2))
        assert LOSS(a, b, reduction="none", out=outs[0]) is outs[0]
        assert GRADIENT(a, b, reduction="none", out=outs[1]) is outs[1]
        assert_in_kind(torch, outs, (losses, gradient))
        found = BOTH(a, b, reduction="none", out=(None, outs[0]))
        assert found[1] is outs[0]
        assert_in_kind(torch, found, (losses, gradient))
        found = BOTH(a, b, reduction="none", out=outs)
        assert found[0] is outs[0]
        assert found[1] is outs[1]
        assert_in_kind(torch, found, (losses, gradient))
        number = torch.place(np.zeros((), x.dtype))
        assert LOSS(a, b, out=number) is number
        assert_in_kind(torch, number, mean)


def test_tensors_that_are_written_are_known_to_have_changed(torch, rng):
    x, y = pair(rng)
    out = torch.place(np.zeros_like(x))
    for count in (1, 2, 3):
        LOSS(torch.place(x), torch.place(y), reduction="none", out=out)
        assert out._version == count
    BOTH(torch.place(x), torch.place(y), reduction="none", out=(None, out))
    assert out._version == 4


def test_tensor_for_results_may_not_require_a_gradient(torch, rng):
    x, y = pair(rng)
    out = torch.place(np.zeros_like(x))
    out.requires_grad = True
    with pytest.raises(
        TypeError, match=r"^binary_cross_entropy: 'out' must not require a gradient; got a tensor that "
    ):
        LOSS(torch.place(x), torch.place(y), reduction="none", out=out)
    assert not torch.fetch(out.detach()).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_of_results_may_be_one_of_the_library(dtype, rng):
    torch = pytest.importorskip("torch")
    x, y = map(torch.from_numpy, pair(rng))
    for named in (dtype, getattr(torch, dtype)):
        assert LOSS(x, y, dtype=named).dtype == getattr(torch, dtype)
    with pytest.raises(TypeError, match=r"^binary_cross_entropy: 'dtype' must be one of float16, .*; got int8$"):
        LOSS(x, y, dtype=torch.int8)


def test_array_for_results_is_of_the_library_of_the_input(torch, rng):
    x, y = pair(rng)
    a, b, out = torch.place(x), torch.place(y), np.zeros_like(x)
    with pytest.raises(TypeError, match=r"^binary_cross_entropy: 'out' must be an array of torch; got ndarray$"):
        LOSS(a, b, reduction="none", out=out)
    with pytest.raises(TypeError, match=r"^binary_cross_entropy_value_and_grad: 'out\[1\]' must be an array of torch;"):
        BOTH(a, b, reduction="none", out=(torch.place(out), out))
    with pytest.raises(TypeError, match=r"^binary_cross_entropy: 'out' must be a NumPy array; got Tensor$"):
        LOSS(x, y, reduction="none", out=torch.place(out))
    with pytest.raises(TypeError, match=r"'out' must be a tuple of two, \(value, gradient\)"):
        BOTH(a, b, reduction="none", out=torch.place(out))
    with pytest.raises(ValueError, match=r"^binary_cross_entropy: 'out' must not overlap 'input' in memory;"):
        LOSS(a, b, reduction="none", out=a)
    assert not out.any()


def test_tensor_that_requires_a_gradient_is_read_and_results_require_none(torch, rng):
    x, y = pair(rng)
    a = torch.place(x)
    a.requires_grad = True
    results = BOTH(a, torch.place(y))
    assert_in_kind(torch, results, BOTH(x, y))
    assert [result.requires_grad for result in results] == [False, False]


def test_tensors_are_read_where_they_lie(torch, rng):
    for dtype in FLOATS.values():
        x = rng.random((6, 8)).astype(dtype)
        found = _host_arrays.library_of(torch.place(x)).view(torch.place(x[::2, 1:].T))
        assert found.dtype == dtype
        assert found.ctypes.data == x[:, 1:].ctypes.data
        assert found.strides == x[::2, 1:].T.strides


def test_results_of_transposed_tensors_lie_as_they_do(torch, rng):
    x, y = pair(rng)
    found = LOSS(torch.place(x.T), torch.place(y.T), reduction="none")
    assert torch.fetch(found).strides == x.T.strides
    assert_in_kind(torch, found, LOSS(x.T, y.T, reduction="none"))


def test_subclass_of_a_tensor_is_answered_by_a_tensor(torch, rng):
    x, y = pair(rng)
    if torch.type is Tensor:
        parameter = type("Parameter", (Tensor,), {})(x)
    else:
        parameter = torch.module.nn.Parameter(torch.place(x))
    found = LOSS(parameter, torch.place(y))
    assert type(found) is torch.type
    assert_in_kind(torch, found, LOSS(x, y))


def test_tensor_that_numpy_cannot_see_is_a_type_error_that_says_why(torch):
    x = torch.place(np.zeros(3, "f4"))
    if torch.type is Tensor:
        away = {"no$": Tensor(np.zeros(3, "f4"), is_cpu=False)}
    else:
        away = {"can't convert meta": x.to("meta"), "can't convert Sparse": x.to_sparse()}
    for reason, tensor in away.items():
        with pytest.raises(TypeError, match=rf"'input' must be an array that NumPy reads; got Tensor, {reason}"):
            LOSS(tensor, x)


# ---------------------------------------------------------------------------------------------------------------- JAX
def test_arrays_of_jax_are_not_written_to(jax, rng):
    x, y = map(jax.place, pair(rng))
    with pytest.raises(TypeError, match=r"^binary_cross_entropy: 'out' must be None for arrays of jax; got "):
        LOSS(x, y, reduction="none", out=x)
    with pytest.raises(TypeError, match=r"^binary_cross_entropy_value_and_grad: 'out\[0\]' must be None for arrays of"):
        BOTH(x, y, reduction="none", out=(x, None))


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_jax_takes_results_over_without_a_copy(jax, size, rng, monkeypatch):
    x, y = map(jax.place, pair(rng, size))
    taken = []
    put = jax.module.device_put
    monkeypatch.setattr(jax.module, "device_put", lambda *given: taken.append(given[0]) or put(*given))
    for _ in range(2):
        found = BOTH(x, y, reduction="none")
        for result, memory in zip(found, taken, strict=True):
            start = memory.ctypes.data
            assert start % 64 == 0
            own = result.values.ctypes.data if jax.type is JaxArray else result.unsafe_buffer_pointer()
            assert own == start
        taken.clear()


def test_results_are_where_the_input_is_if_that_was_asked_for(request, monkeypatch, rng):
    jax = library_named("jax", request, monkeypatch)
    x, y = pair(rng)
    for sharding in (None, "there"):
        value, gradient = BOTH(JaxArray(x, sharding=sharding), JaxArray(y))
        assert (value.sharding, gradient.sharding) == (sharding, sharding)
    monkeypatch.setattr(JaxArray, "devices", lambda self: [SimpleNamespace(platform="cpu")] * 2)
    value, gradient = BOTH(JaxArray(x, sharding="spread"), JaxArray(y))
    assert (value.sharding, gradient.sharding) == (None, "spread")
    assert_in_kind(jax, (value, gradient), BOTH(x, y))


def test_results_of_jax_go_with_arrays_anywhere_as_its_own_do(request, monkeypatch, rng):
    jax = library_named("real jax", request, monkeypatch)
    x, y = map(jax.place, pair(rng))
    assert [result.committed for result in BOTH(x, y)] == [False, False]
    x = jax.module.device_put(x, jax.module.sharding.SingleDeviceSharding(jax.module.devices()[0]))
    if x.committed:
        assert [result.committed for result in BOTH(x, y)] == [True, True]


@pytest.mark.parametrize("platform", ["tpu", None])
def test_array_of_jax_elsewhere_or_nowhere_is_not_taken_for_one_of_the_host(platform, request, monkeypatch):
    library_named("jax", request, monkeypatch)
    assert _host_arrays.library_of(JaxArray(np.zeros(3, "f4"))) is not None
    assert _host_arrays.library_of(JaxArray(np.zeros(3, "f4"), platform)) is None


def test_traced_array_is_a_type_error_that_says_what_it_is(request, monkeypatch, rng):
    jax = library_named("real jax", request, monkeypatch)
    x, y = map(jax.place, pair(rng))
    with pytest.raises(TypeError, match=r"'input' must be an array that NumPy reads; got DynamicJaxprTracer, .*traced"):
        jax.module.jit(lambda x: LOSS(x, y))(x)
