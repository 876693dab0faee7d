"""Arrays on a device as places in memory, the libraries they belong to, and what a call is told where none can be used.

No device is needed: what stands for PyTorch and CuPy here are modules of that name with what is asked of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbbce
from nbbce import __file__ as package
from nbbce import _arrays, functional

device_arrays = pytest.importorskip(
    "nbbce._device_arrays", reason="what nbbce[cuda12] and nbbce[cuda13] install is not here", exc_type=ImportError
)
DeviceArray, layout = device_arrays.DeviceArray, _arrays.layout


def seen(array, library=None):
    """The memory of a NumPy array as that of a device."""
    address = array.__array_interface__["data"][0]
    return DeviceArray(address, array.shape, array.strides, array.dtype, 0, library, array, not array.flags.writeable)


# ------------------------------------------------------------------------------------------------- places in memory
@st.composite
def any_array(draw, least=0):
    """A view of an array: some of its elements, its axes in any order and direction, and broadcast."""
    shape = tuple(draw(st.lists(st.integers(least, 4), min_size=least, max_size=4)))
    dtype = draw(st.sampled_from([np.int8, np.float16, np.float32, np.float64]))
    array = np.zeros(shape, dtype, order=draw(st.sampled_from("CF")))
    steps = [draw(st.sampled_from([1, 1, 2, -1])) for _ in shape]
    array = array[(..., *(slice(None, None, step) for step in steps))]  # an array of no dimensions stays one
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    if draw(st.booleans()):
        array = np.broadcast_to(array, (draw(st.integers(max(1, least), 3)), *array.shape))
    return array


def assert_same_place(found, array):
    """That a place is the memory of a NumPy array."""
    assert found.address == array.__array_interface__["data"][0]
    assert (found.shape, found.ndim, found.size) == (array.shape, array.ndim, array.size)
    assert (found.dtype, found.itemsize) == (array.dtype, array.itemsize)
    # The stride of one element, and those of none, are never walked.
    walked = [d for d, n in enumerate(array.shape) if n != 1] if array.size else []
    assert [found.strides[d] for d in walked] == [array.strides[d] for d in walked]


@given(any_array())
@settings(max_examples=200)
def test_place_has_the_shape_and_size_of_the_array(array):
    assert_same_place(seen(array), array)
    assert seen(array).readonly == (not array.flags.writeable)


@given(any_array(least=1))
@settings(max_examples=300)
def test_place_is_contiguous_where_numpy_says_so(array):
    assert seen(array).is_c_contiguous == array.flags.c_contiguous


@given(any_array(), st.lists(st.integers(1, 3), max_size=2), st.booleans())
@settings(max_examples=300)
def test_broadcast_is_that_of_numpy(array, more, widen):
    shape = (*more, *(3 if n == 1 and widen else n for n in array.shape))
    assert_same_place(seen(array).broadcast_to(shape), np.broadcast_to(array, shape))


@pytest.mark.parametrize(
    ("shape", "wanted"), [((3,), (2,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 1), (1, 3)), ((4,), ()), ((0,), (2,))]
)
def test_broadcast_that_numpy_refuses_is_a_value_error(shape, wanted):
    array = np.zeros(shape)
    with pytest.raises(ValueError):
        np.broadcast_to(array, wanted)
    with pytest.raises(ValueError):
        seen(array).broadcast_to(wanted)


@given(any_array(), st.randoms(use_true_random=False))
def test_transpose_is_that_of_numpy(array, random):
    axes = list(range(array.ndim))
    random.shuffle(axes)
    assert_same_place(seen(array).transpose(axes), array.transpose(axes))


@given(any_array(least=1), st.lists(st.integers(0, 4), max_size=3))
@settings(max_examples=200)
def test_reshape_puts_dimensions_of_one_in_and_leaves_them_out_as_numpy_does(array, places):
    shape = [n for n in array.shape if n != 1]
    for place in places:
        shape.insert(place, 1)
    expected = array.reshape(shape)
    assert np.shares_memory(expected, array)
    assert_same_place(seen(array).reshape(tuple(shape)), expected)


@given(any_array())
@settings(max_examples=300)
def test_extent_is_that_of_numpy(array):
    low, high = seen(array).extent()
    if array.size:
        assert (low, high) == np.lib.array_utils.byte_bounds(array)
    else:
        assert low == high


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (slice(0, 4), slice(4, 8)),
        (slice(0, 5), slice(4, 8)),
        (slice(None, None, -1), slice(0, 1)),
        (slice(0, 0), slice(0, 8)),
        (slice(3, 0, -1), slice(4, 8)),
        (slice(4, 0, -1), slice(4, 8)),
        (slice(2, 6), slice(3, 4)),
    ],
    ids=str,
)
def test_arrays_overlap_where_their_extents_do(a, b):
    memory = np.zeros(8)
    one, other = memory[a], memory[b]
    # Of one dimension without gaps the extents decide, so NumPy's exact answer is the same.
    assert device_arrays.overlap(seen(one), seen(other)) == np.shares_memory(one, other)
    assert device_arrays.overlap(seen(other), seen(one)) == np.shares_memory(one, other)


def test_arrays_on_two_devices_never_overlap():
    memory = np.zeros(8)
    other = seen(memory)
    other.device = 1
    assert not device_arrays.overlap(seen(memory), other)


@st.composite
def operands(draw):
    """Some arrays of one shape, each of another layout."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    found = []
    for k in range(draw(st.integers(1, 3))):
        order = draw(st.permutations(range(len(shape))))
        wide = [shape[d] * draw(st.sampled_from([1, 1, 2])) for d in order]
        array = np.arange(np.prod(wide)).reshape(wide)[tuple(slice(shape[d]) for d in order)]
        array = array.transpose(np.argsort(order)) + 1000 * k
        if draw(st.booleans()):
            axis = draw(st.integers(0, len(shape) - 1))
            array = np.broadcast_to(array.take([0], axis), shape)
        found.append(array)
    return found


@given(operands(), st.data())
@settings(max_examples=300)
def test_merged_layout_walks_the_same_elements_in_the_same_order(arrays, data):
    shape = arrays[0].shape
    apart = data.draw(st.none() | st.integers(0, len(shape) - 1))
    extents, steps = layout(shape, [array.strides for array in arrays], apart)
    assert len(extents) >= 2
    assert len(extents) <= max(2, arrays[0].ndim)
    if apart is not None and shape[apart] > 1:
        assert np.prod(shape[apart:]) in np.cumprod(extents[::-1])  # it begins an extent
    for array, step in zip(arrays, steps, strict=True):
        walked = np.lib.stride_tricks.as_strided(array, extents, step)
        np.testing.assert_array_equal(walked.ravel(), array.ravel())


def test_dense_arrays_of_many_dimensions_merge_into_one():
    array = np.zeros((2, 3, 1, 4))
    assert layout(array.shape, [array.strides, array.strides]) == ([1, 24], [[0, 8], [0, 8]])
    row = np.broadcast_to(np.zeros(4), array.shape)
    assert layout(array.shape, [array.strides, row.strides]) == ([6, 4], [[32, 8], [0, 8]])


# -------------------------------------------------------------------------------------------------------- libraries
class Tensor:
    """A tensor of PyTorch on a device, over the memory of a NumPy array."""

    is_cuda, is_cpu = True, False

    def __init__(self, array, device=0, dtype=None, requires_grad=False, negative=False):
        self.array, self.requires_grad, self.negative = array, requires_grad, negative
        self.shape, self.device = array.shape, SimpleNamespace(index=device, type="cuda")
        self.dtype = f"torch.{dtype or array.dtype.name}"  # what the dtypes of PyTorch are printed as

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

    def stride(self):
        return tuple(n // self.array.itemsize for n in self.array.strides)

    def data_ptr(self):
        return self.array.__array_interface__["data"][0]

    def numel(self):
        return self.array.size

    def get_device(self):
        return self.device.index

    def is_neg(self):
        return self.negative


class CupyArray:
    """An array of CuPy, over the memory of a NumPy array."""

    def __init__(self, array, device=0):
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.data = SimpleNamespace(ptr=array.__array_interface__["data"][0])
        self.device = SimpleNamespace(id=device)
        self.__cuda_array_interface__ = {"shape": array.shape}


@pytest.fixture
def libraries(monkeypatch):
    """Modules that stand for PyTorch and CuPy, whose current streams are 0x70 and 0xc0; and a driver."""
    torch, cupy = ModuleType("torch"), ModuleType("cupy")
    torch.Tensor = Tensor
    torch.autograd = SimpleNamespace(graph=SimpleNamespace(increment_version=lambda tensor: None))
    torch.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=0x70 + device))
    cupy.ndarray = CupyArray
    current = SimpleNamespace(ptr=0xC0)
    cupy.cuda = SimpleNamespace(
        Device=lambda device: contextlib.nullcontext(), get_current_stream=lambda: current, ExternalStream=None
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(device_arrays, "is_available", lambda: True)
    kept = (device_arrays._libraries, device_arrays.library_of_type, _arrays.device_types)
    copies = [dict(one) for one in kept]
    yield
    for one, copy in zip(kept, copies, strict=True):
        one.clear()
        one.update(copy)


@pytest.fixture
def calls(libraries, monkeypatch):
    """The calls that would go to a device; each gives (None, None)."""
    found = []

    def run(call):
        found.append(call)
        return None, None

    monkeypatch.setattr(functional, "_run_on_device", run)
    return found


@pytest.mark.parametrize(("make", "name", "stream"), [(Tensor, "torch", 0x71), (CupyArray, "cupy", 0xC0)])
def test_library_of_an_array_and_its_stream(libraries, make, name, stream):
    array = np.zeros((3, 4), "f4")[:, ::2]
    found = device_arrays.view(make(array, 1))
    assert_same_place(found, array)
    assert found.device == 1
    assert found.library.name == name
    assert found.library.stream(1) == stream
    assert device_arrays.view(make(array)).library is found.library


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bool", "uint8", "int64"])
def test_dtype_of_a_tensor_is_that_of_numpy(libraries, dtype):
    assert device_arrays.view(Tensor(np.zeros(3, dtype))).dtype == dtype


def test_bfloat16_of_a_tensor_is_that_of_ml_dtypes(libraries):
    found = device_arrays.view(Tensor(np.zeros((2, 3), "u2"), dtype="bfloat16"))
    assert found.dtype == ml_dtypes.bfloat16
    assert found.strides == (6, 2)


def test_tensor_of_a_dtype_that_numpy_has_not_is_a_type_error(calls):
    x = Tensor(np.zeros(3, "u1"), dtype="float8_e4m3fnuz_x")
    message = "binary_cross_entropy: 'input' must be an array that can be read in place; got arrays must have a dtype"
    with pytest.raises(TypeError, match=message):
        nbbce.binary_cross_entropy(x, x)


def test_tensor_that_is_not_in_memory_as_it_is_seen_is_a_type_error(calls, monkeypatch):
    y = Tensor(np.ones(3, "f4"))
    message = r"\Abinary_cross_entropy: 'input' must be an array that can be read in place; got one "
    with pytest.raises(
        TypeError, match=message + r"whose sign is not yet in memory \(see torch\.Tensor\.resolve_neg\)\Z"
    ):
        nbbce.binary_cross_entropy(Tensor(np.ones(3, "f4"), negative=True), y)

    def refuse():
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    outs = r"\Abinary_cross_entropy: 'out' must be an array that can be read in place; got one whose sign is not yet"
    with pytest.raises(TypeError, match=outs):
        nbbce.binary_cross_entropy(y, y, reduction="none", out=Tensor(np.ones(3, "f4"), negative=True))
    for name, told in (
        ("stride", "as sparse tensors"),
        ("data_ptr", "as sparse tensors"),
        ("data_ptr", "as zeros of PyTorch's gradients"),
    ):
        bare = Tensor(np.ones(3, "f4"))
        monkeypatch.setattr(bare, name, refuse if "sparse" in told else lambda: 0)
        with pytest.raises(TypeError, match=rf"{message}that has no memory of its own, {told}\Z"):
            nbbce.binary_cross_entropy(bare, y)
        assert device_arrays.library_of(bare).place(bare) is None
    assert device_arrays.library_of(y).place(y)[0] == y.data_ptr()


def test_scalars_of_pytorch_are_made_like_one_that_is_kept_but_in_a_graph(libraries):
    import torch

    made, capturing = [], [True]
    torch.empty = lambda shape, dtype, device: made.append("empty") or Tensor(np.zeros(shape, dtype[6:]))
    torch.empty_like = lambda tensor: made.append("like") or Tensor(np.zeros_like(tensor.array))
    torch.float32, torch.float64 = "torch.float32", "torch.float64"
    torch.cuda.is_current_stream_capturing = lambda: capturing[0]
    like = device_arrays.view(Tensor(np.zeros(3, "f4")))
    empty = like.library.empty
    for dtype in ("float32", "float32", "float64", "float32"):
        assert empty((), np.dtype(dtype), like, 0).array.dtype == dtype
        capturing[0] = False
    # Nothing is kept of the first, which is of a graph; what is kept is a scalar of its own, which nobody writes.
    assert made == ["empty", "empty", "like", "empty", "like", "like"]
    library = device_arrays.Torch()  # nor of what is no tensor but of a kind of its own, as under a mode of PyTorch's
    torch.empty = lambda shape, dtype, device: type("Fake", (Tensor,), {})(np.zeros(shape, dtype[6:]))
    for _ in range(2):
        assert type(library.empty((), np.dtype("float32"), like, 0)) is not Tensor


def pair(make, device=0):
    return make(np.full((2, 3), 0.5, "f4"), device), make(np.ones((2, 3), "f4"), device)


@pytest.mark.parametrize("make", [Tensor, CupyArray])
def test_call_on_device_arrays_goes_to_the_device_and_is_not_validated(calls, make):
    for _ in range(2):  # the second time the type is known
        nbbce.binary_cross_entropy(*pair(make, 1))
        assert calls[-1].on_device
        assert calls[-1].stream is None
        assert not calls[-1].validate
        assert calls[-1].input.device == 1
    nbbce.binary_cross_entropy(*pair(make), validate=True)
    assert calls[-1].validate


def test_tensor_on_the_host_goes_nowhere_but_to_the_host(calls):
    x, y = pair(Tensor)
    nbbce.binary_cross_entropy(x, y)
    x.is_cuda = y.is_cuda = False
    with pytest.raises(TypeError, match="must be an array"):  # this fake has no __array__, which PyTorch's has
        nbbce.binary_cross_entropy(x, y)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["target", "weight", "pos_weight", "where", "grad_output"])
def test_arrays_in_two_places_are_a_type_error(calls, name):
    x, y = pair(Tensor)
    function = "binary_cross_entropy_grad"
    for other, place in (
        (Tensor(np.ones((2, 3), bool), 1), "device 1"),
        (np.ones((2, 3), bool), "the host"),
        (CupyArray(np.ones((2, 3), bool), 2), "device 2"),
    ):
        message = rf"\A{function}: arrays must be in one place; got 'input' on device 0 and {name!r} on {place}\Z"
        with pytest.raises(TypeError, match=message):
            nbbce.binary_cross_entropy_grad(**({"input": x, "target": y, "reduction": "none"} | {name: other}))
    assert calls == []


def test_arrays_of_two_libraries_on_one_device_are_one_place(calls):
    nbbce.binary_cross_entropy(pair(Tensor)[0], pair(CupyArray)[1])
    assert calls[0].input.library.name == "torch"
    assert calls[0].target.library.name == "cupy"


class WithProtocol:
    """A stream of cuda.core or CuPy."""

    def __cuda_stream__(self):
        return 0, 0x123


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (0, 0),
        (0x456, 0x456),
        (np.int64(7), 7),
        (WithProtocol(), 0x123),
        (SimpleNamespace(cuda_stream=0x789), 0x789),
        (SimpleNamespace(ptr=0xABC), 0xABC),
        (SimpleNamespace(handle=SimpleNamespace(value=0xDEF)), 0xDEF),
        (SimpleNamespace(handle=SimpleNamespace(value=None)), 0),
    ],
    ids=["0", "int", "numpy", "protocol", "torch", "cupy", "numba", "numba-default"],
)
def test_stream_is_a_handle_or_an_object_of_a_library(calls, stream, handle):
    nbbce.binary_cross_entropy(*pair(Tensor), stream=stream)
    assert calls[0].stream == handle


@pytest.mark.parametrize(("stream", "got"), [("main", "'main'"), (True, "True"), (2.5, "2.5"), ([], "list")], ids=str)
def test_stream_of_a_wrong_kind_is_a_type_error(calls, stream, got):
    message = rf"\Abinary_cross_entropy: 'stream' must be a stream or its handle; got {got}\Z"
    with pytest.raises(TypeError, match=message):
        nbbce.binary_cross_entropy(*pair(Tensor), stream=stream)
    assert calls == []


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_stream_for_arrays_on_the_host_is_a_type_error(reduction):
    x, y = np.full(3, 0.5), np.ones(3)
    with pytest.raises(
        TypeError, match=r"\Abinary_cross_entropy: 'stream' must be None for arrays on the host; got 0\Z"
    ):
        nbbce.binary_cross_entropy(x, y, reduction=reduction, stream=0)


OUTS = {
    "host": (lambda memory: memory, TypeError, "must be an array on the device of 'input'; got ndarray"),
    "library": (CupyArray, TypeError, "must be an array of torch on device 0; got one of cupy on device 0"),
    "device": (
        lambda m: Tensor(m, 1),
        TypeError,
        "must be an array of torch on device 0; got one of torch on device 1",
    ),
    "dtype": (lambda m: Tensor(m.astype("f8")), TypeError, "must have dtype float32; got float64"),
    "shape": (lambda m: Tensor(m.T), ValueError, r"must have shape \(2, 3\); got \(3, 2\)"),
    "repeats": (
        lambda m: Tensor(np.broadcast_to(m[:1], (2, 3))),
        ValueError,
        "must have memory for each element; got one that repeats some",
    ),
}


@pytest.mark.parametrize("name", list(OUTS))
def test_out_that_does_not_fit_is_an_error_and_nothing_is_run(calls, name):
    make, error, message = OUTS[name]
    out = make(np.zeros((2, 3), "f4"))
    with pytest.raises(error, match=rf"\Abinary_cross_entropy: 'out' {message}\Z"):
        nbbce.binary_cross_entropy(*pair(Tensor), reduction="none", out=out)
    outs = r"binary_cross_entropy_value_and_grad: 'out\[1\]' "
    with pytest.raises(error, match=rf"\A{outs}{message}\Z"):
        nbbce.binary_cross_entropy_value_and_grad(*pair(Tensor), out=(None, out))
    assert calls == []


def test_out_that_overlaps_an_input_or_the_other_out_is_a_value_error(calls):
    memory = np.zeros(12, "f4")
    x, y = Tensor(memory[:6]), Tensor(np.ones(6, "f4"))
    function = "binary_cross_entropy_value_and_grad"

    def message(k, whose):
        return rf"\A{function}: 'out\[{k}\]' must not overlap '{whose}' in memory; got arrays that share it\Z"

    with pytest.raises(ValueError, match=message(0, "input")):
        nbbce.binary_cross_entropy_value_and_grad(x, y, reduction="none", out=(Tensor(memory[5:11]), None))
    one, other = Tensor(np.zeros(6, "f4")), Tensor(memory[6:])
    with pytest.raises(ValueError, match=message(1, r"out\[0\]")):
        nbbce.binary_cross_entropy_value_and_grad(x, y, reduction="none", out=(one, one))
    nbbce.binary_cross_entropy_value_and_grad(x, y, reduction="none", out=(one, other))
    assert calls[0].value_out.owner is one
    assert calls[0].gradient_out.owner is other


def test_axes_and_the_shape_that_they_leave_are_as_on_the_host(calls):
    nbbce.binary_cross_entropy(*pair(Tensor), axis=1)
    nbbce.binary_cross_entropy(*pair(Tensor), axis=-1, keepdims=True)
    nbbce.binary_cross_entropy(*pair(Tensor), axis=(1, 0), keepdims=True)
    assert [call.axes for call in calls] == [(1,), (1,), None]
    rows = calls[0].input.shape[0]
    assert [call.result_shape for call in calls] == [(rows,), (rows, 1), (1, 1)]


def test_shape_and_dtype_are_told_as_on_the_host(calls):
    x, y = pair(Tensor)
    with pytest.raises(
        ValueError, match=r"\Abinary_cross_entropy: 'target' must have the shape of 'input', \(2, 3\); got"
    ):
        nbbce.binary_cross_entropy(x, Tensor(np.ones((3, 2), "f4")))
    with pytest.raises(TypeError, match=r"\Abinary_cross_entropy: 'input' must have dtype float16, .*; got int32\Z"):
        nbbce.binary_cross_entropy(Tensor(np.zeros((2, 3), "i4")), y)
    with pytest.raises(TypeError, match=r"\Abinary_cross_entropy: 'where' must be an array of bool; got float32\Z"):
        nbbce.binary_cross_entropy(x, y, where=y)
    message = r"\Abinary_cross_entropy: 'weight' must broadcast to the shape of 'input', \(2, 3\); got \(2,\)\Z"
    with pytest.raises(ValueError, match=message):
        nbbce.binary_cross_entropy(x, y, Tensor(np.ones(2)))


# --------------------------------------------------------------------------------------- where there is no such thing
PRELUDE = """
import sys
import numpy as np

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import nbbce

class OnDevice:
    __cuda_array_interface__ = dict(shape=(2,), typestr="<f4", data=(0, False), version=3)

def told(call):
    try:
        call()
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"
    return "nothing"

x, y = np.array([0.5, 0.5]), np.array([0, 1])
"""


WITH_NUMPY_2_5 = ("-W", "ignore:The 'generic' unit:DeprecationWarning")  # while numba-cuda 0.30.4 is imported


def printed(code, *blocked):
    """What a process prints in which some packages are not installed and there is no driver."""
    environment = os.environ | {"PYTHONPATH": str(Path(package).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", *WITH_NUMPY_2_5, "-c", PRELUDE.format(blocked=blocked) + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


CALLS = """
print(nbbce.binary_cross_entropy(x, y))
print(told(lambda: nbbce.binary_cross_entropy(OnDevice(), y)))
print(told(lambda: nbbce.binary_cross_entropy(x, y, stream=1)))
"""
HOST = [
    "0.6931471805599453",  # log 2, rounded to float64
    "TypeError: binary_cross_entropy: 'stream' must be None for arrays on the host; got 1",
]


@pytest.mark.parametrize(
    ("blocked", "missing"),
    [
        (("array_api_compat", "numba_cuda", "cuda"), "array_api_compat"),
        (("array_api_compat",), "array_api_compat"),
        (("numba_cuda",), "numba_cuda"),
    ],
    ids=["all", "array_api_compat", "numba_cuda"],
)
def test_without_its_packages_a_device_array_is_told_what_to_install_and_the_cpu_works(blocked, missing):
    # The import hook that numba-cuda installs makes `numba.cuda` out of numba_cuda, so that is blocked with it.
    value, message, stream = printed(CALLS, *blocked)
    assert [value, stream] == HOST
    assert message == (
        "ImportError: binary_cross_entropy: 'input' is on a device, which needs nbbce[cuda12] or nbbce[cuda13]; "
        f"got no {missing}"
    )


def test_without_a_driver_a_device_array_is_told_so_in_one_line_and_the_cpu_works():
    value, message, stream = printed(CALLS)
    assert [value, stream] == HOST
    assert message == (
        "RuntimeError: binary_cross_entropy: 'input' is on a device, which needs a CUDA driver; "
        "Numba found no usable one"
    )


def test_threads_whose_first_device_arrays_come_at_once_are_all_told_the_same():
    # The first imports for a second what sees device arrays; the others must wait until it has.
    code = """
import threading, time
found = []
threads = [
    threading.Thread(target=lambda: found.append(told(lambda: nbbce.binary_cross_entropy(OnDevice(), OnDevice()))))
    for _ in range(4)
]
for thread in threads:
    thread.start()
    time.sleep(0.02)
for thread in threads:
    thread.join()
print(len(found), *set(found), sep="\\n")
"""
    assert printed(code) == [
        "4",
        "RuntimeError: binary_cross_entropy: 'input' is on a device, which needs a CUDA driver; "
        "Numba found no usable one",
    ]


def test_arrays_on_the_host_import_nothing_of_a_device():
    code = """
nbbce.binary_cross_entropy(x, y)
print(*(name for name in ("array_api_compat", "numba_cuda", "cuda", "nbbce._device_arrays") if name in sys.modules))
"""
    assert printed(code) == [""]


def test_own_array_of_a_library_that_exchanges_comes_back_without_its_view():
    own, view = object(), object()
    assert device_arrays.Exchanged("library").finished((own, view), 0) is own
