"""What the tests of devices share: calls in two places, and a comparison of bits."""

import ml_dtypes
import numpy as np

import nbbce

PROBABILITIES = (
    "binary_cross_entropy",
    "binary_cross_entropy_grad",
    "binary_cross_entropy_value_and_grad",
)
LOGITS = (
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_grad",
    "binary_cross_entropy_with_logits_value_and_grad",
    "binary_cross_entropy_with_logits_grad_and_hess",
)
FOCAL = ("sigmoid_focal_loss", "sigmoid_focal_loss_value_and_grad")
FUNCTIONS = (*PROBABILITIES, *LOGITS, *FOCAL)
WITH_GRADIENT = tuple(name for name in FUNCTIONS if "grad" in name)
REDUCTIONS = ("mean", "sum", "none")

FLOATS = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
FLOATS["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
INTEGERS = {f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
DTYPES = {"bool": np.dtype(bool), **INTEGERS, **FLOATS}


def of_function(name):
    """The public function `name`, and whether it takes logits."""
    return getattr(nbbce, name), name not in PROBABILITIES


def predictions(rng, shape, dtype, logits=False):
    """Random predictions, in [0, 1] or of both signs."""
    x = rng.normal(size=shape) * 6 if logits else rng.random(shape)
    return x.astype(dtype)


def labels(rng, shape, dtype, kind="mixed"):
    """Labels that are all 0 or 1 ('hard'), anything between ('soft'), or hard in the first half alone ('mixed')."""
    y = rng.random(shape)
    hard = y < 0.5
    if kind == "hard" or np.dtype(dtype).kind in "biu":
        return hard.astype(dtype)
    if kind == "mixed":
        flat = np.arange(y.size).reshape(shape)
        y = np.where(flat < y.size // 2, hard, y)
    return y.astype(dtype)


def aligned(array, offset=0):
    """A dense copy whose memory starts `offset` elements behind a multiple of 64 bytes."""
    array = np.ascontiguousarray(array)
    memory = np.zeros(array.nbytes + 64 + offset * array.itemsize, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + offset * array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def edges(dtype, logits=False):
    """0, 1 (for logits: large numbers), their neighbours, subnormals, the middle, infinities and NaN."""
    dtype = np.dtype(dtype)
    info = ml_dtypes.finfo(dtype)
    tiny, smallest, eps = (float(v) for v in (info.tiny, info.smallest_subnormal, info.eps))
    inside = [0.0, smallest, 2 * smallest, tiny - smallest, tiny, eps, 0.25, 0.5 - eps, 0.5, 0.5 + eps, 0.75]
    inside += [1 - eps, 1 - eps / 2, 1.0]
    if logits:
        most = float(info.max)
        inside += [2.0, 17.0, 64.0, 79.5, 88.0, 104.0, 149.0, 151.0, 700.0, 746.0, 761.0, min(1e5, most), most, np.inf]
    else:
        inside += [1 + eps, 2.0, np.inf]
    return np.array([*inside, *(-v for v in inside), np.nan], np.float64).astype(dtype)


def pairs_of_edges(dtype, logits=False):
    """Every prediction of `edges` with every label of them."""
    x, y = edges(dtype, logits), edges(dtype)
    return np.repeat(x, y.size), np.tile(y, x.size)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def bits(array):
    """The bits of an array as integers, every NaN the same."""
    array = np.array(array)
    found = array.view(f"u{array.dtype.itemsize}")
    if array.dtype.kind not in "biu":
        found[np.isnan(array)] = 0x7FFF
    return found


def assert_same_bits(got, expected):
    """Arrays of one dtype and shape, and equal in each bit, but for the payload and the sign of a NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    different = np.flatnonzero(bits(got) != bits(expected))
    assert different.size == 0, (
        f"{different.size} of {got.size} differ, first at {different[:5]}: "
        f"{got.ravel()[different[:5]]} is not {expected.ravel()[different[:5]]}"
    )


def called_on_both(place, to_host, function, *arrays, **options):
    """What `function` gives for arrays that `place` puts on a device, and on the host, both as NumPy arrays.

    A device does not look for what is out of its domain unless it is asked to, so the host does not either.
    """
    elsewhere = {name: place(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    got = function(*(place(a) if isinstance(a, np.ndarray) else a for a in arrays), **elsewhere)
    expected = function(*arrays, **options, validate=False)
    return tuple(map(to_host, as_tuple(got))), tuple(map(np.asarray, as_tuple(expected)))
