"""The same numbers give the same bits, whatever dtype holds labels and weights, and wherever in memory they lie."""

from fractions import Fraction

import ml_dtypes  # noqa: F401  (gives NumPy the dtype "bfloat16")
import numpy as np
import pandas as pd
import pytest
import reference

from nbbce import _call, _cpu, binary_cross_entropy, binary_cross_entropy_grad, binary_cross_entropy_value_and_grad

FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SWAPPED = [
    np.dtype(name).newbyteorder("S") for name in ("f2", "bfloat16", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")
]
SHAPE = (37, 29, 41)  # 43993 elements: parallel, with a last block that is not full


def answers(x, y, weight=None, **options):
    """The bytes of every answer about some arrays, by name."""
    results = {
        "losses": binary_cross_entropy(x, y, weight, "none", **options),
        "sum": binary_cross_entropy(x, y, weight, "sum", **options),
        "mean": binary_cross_entropy(x, y, weight, "mean", **options),
        "gradient": binary_cross_entropy_grad(x, y, weight, "none", **options),
        "gradient of the mean": binary_cross_entropy_grad(x, y, weight, "mean", **options),
    }
    return {name: (result.shape, str(result.dtype), result.tobytes()) for name, result in results.items()}


def assert_same(got, expected):
    for name, (shape, dtype, data) in expected.items():
        assert got[name][:2] == (shape, dtype), name
        assert got[name][2] == data, f"the bits of the {name} differ"


# Dtypes.


@pytest.mark.parametrize("size", [1, 300, 5003], ids=["one", "part of a block", "two blocks"])
@pytest.mark.parametrize("target", [*FLOATS, "longdouble", "bool", *INTEGERS, *SWAPPED])
@pytest.mark.parametrize("dtype", FLOATS)
def test_hard_labels_give_the_same_bits_in_every_dtype(dtype, target, size, rng):
    x = rng.random(size).astype(dtype)
    y = rng.integers(0, 2, size)
    assert_same(answers(x, y.astype(target)), answers(x, y.astype(dtype)))


@pytest.mark.parametrize("size", [1, 300, 5003], ids=["one", "part of a block", "two blocks"])
@pytest.mark.parametrize("target", [*FLOATS, "longdouble", *SWAPPED[:4]])
@pytest.mark.parametrize("dtype", FLOATS)
def test_soft_labels_give_the_same_bits_in_every_dtype_that_holds_them(dtype, target, size, rng):
    x = rng.random(size).astype(dtype)
    y = rng.integers(0, 129, size) / 128  # eight bits: bfloat16 has them too
    assert_same(answers(x, y.astype(target)), answers(x, y.astype(dtype)))


@pytest.mark.parametrize("target", ["float64", "longdouble", ">f8"])
def test_labels_of_float32_predictions_are_rounded_to_float32(target, rng):
    x, y = rng.random(5003).astype(np.float32), rng.random(5003).astype(target)
    assert_same(answers(x, y), answers(x, y.astype(np.float32)))


def test_metadata_of_the_dtype_of_another_call_are_not_those_of_a_result():
    # Dtypes that differ in their metadata alone are equal, so what is remembered of one is found for the other.
    x, y = np.array([0.5, 0.25], np.float32), np.array([1.0, 0.0], np.float32)
    noted = x.view(np.dtype(np.float32, metadata={"unit": "probability"}))
    assert noted.dtype == x.dtype
    assert noted.dtype.metadata is not None
    for first, second in ((noted, x), (x, noted)):
        _call._seen.clear()
        for array in (first, second):
            gradient = binary_cross_entropy_grad(array, y)
            assert gradient.dtype == np.float32
            assert gradient.dtype.metadata is None


def test_where_the_struct_of_an_array_cannot_be_read_results_are_the_same(monkeypatch, rng):
    x, y = rng.random((30, 700), np.float32), rng.random((30, 700), np.float32)
    w, kept, out = rng.random(700), rng.random((30, 700)) < 0.7, np.empty_like(x)

    def results():
        whole, strided = (x, y), (x[:, ::2], y[:, ::2])
        return [
            *(binary_cross_entropy(*arrays, reduction=r) for arrays in (whole, strided) for r in ("mean", "none")),
            *(binary_cross_entropy(x, y, w, axis=axis, where=kept) for axis in (None, 0, 1)),
            *(binary_cross_entropy(x, y, 2.5, axis=axis) for axis in (0, 1)),
            *binary_cross_entropy_value_and_grad(x, y, w, pos_weight=3.0, label_smoothing=0.1),
            binary_cross_entropy(x, y, w, "none", out=out).copy(),
        ]

    expected = results()
    monkeypatch.setattr(_cpu, "_quick", False)
    monkeypatch.setattr(_cpu, "_known", {})
    for result, wanted in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("target", ["longdouble", np.dtype(np.longdouble).newbyteorder("S")], ids=["native", "swapped"])
def test_longdouble_labels_are_rounded_once(target):
    # Just above the middle of two float32 numbers, and in float64 the middle itself, which would go to the even one.
    label = np.array([np.longdouble(0.5) + np.longdouble(2.0**-25) + np.longdouble(2.0**-60)])
    x = np.array([0.9], np.float32)
    assert_same(answers(x, label.astype(target)), answers(x, label.astype(np.float32)))


@pytest.mark.parametrize("target", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_labels_of_16_bit_predictions_keep_the_bits_of_a_float32(dtype, target, rng):
    x, y = rng.random(2000).astype(dtype), rng.random(2000).astype(np.float32)
    exact = reference.losses(x, y)
    results = binary_cross_entropy(x, y.astype(target), reduction="none")
    distance, message = reference.worst(reference.steps, results, exact, dtype, x, y)
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", FLOATS)
def test_byte_swapped_predictions_give_the_same_bits(dtype, rng):
    x, y = rng.random(5003).astype(dtype), rng.random(5003).astype(dtype)
    swapped = np.dtype(dtype).newbyteorder("S")
    assert x.astype(swapped).tobytes() == x.byteswap().tobytes()
    expected = answers(x, y)
    assert_same(answers(x.astype(swapped), y), expected)
    assert_same(answers(x.astype(swapped), y.astype(swapped), y.astype(swapped)), answers(x, y, y))


@pytest.mark.parametrize("shape", [(60, 90), (90,), (60, 1), ()], ids=["whole", "row", "column", "one"])
@pytest.mark.parametrize("weight", [*FLOATS, "longdouble", "bool", *INTEGERS, *SWAPPED])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_give_the_same_bits_in_every_dtype_that_holds_them(dtype, weight, shape, rng):
    x, y = (rng.random((60, 90)).astype(dtype) for _ in range(2))
    w = rng.integers(0, 2 if weight == "bool" else 10, shape)  # their sum is not beyond float16
    w = np.asarray(w).astype(weight)
    # For a 0-d weight a number is as good.
    wide = np.broadcast_to(w.astype(np.float64), x.shape).copy() if shape else float(w)
    assert_same(answers(x, y, w), answers(x, y, wide))


@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_byte_of_a_bool_array_but_0_is_true(dtype, layout, rng):
    # As to NumPy: a mask of an image, 0 or 255, seen as bool.
    bytes_ = rng.choice(np.array([0, 1, 2, 255], np.uint8), (60, 90))
    x = rng.random((60, 90)).astype(dtype)
    if layout == "strided":
        x, bytes_ = x[:, ::2], bytes_[:, ::2]
    elif layout == "transposed":
        bytes_ = np.asfortranarray(bytes_)
    odd, plain = bytes_.view(bool), bytes_ != 0
    for function in (binary_cross_entropy, binary_cross_entropy_grad):
        for changes in ({}, {"weight": odd}, {"pos_weight": odd}, {"where": odd}):
            as_it_is = {name: plain for name in changes}
            got, expected = (
                function(x, labels, reduction="none", **options)
                for labels, options in ((odd, changes), (plain, as_it_is))
            )
            assert got.tobytes() == expected.tobytes()
    got, expected = (binary_cross_entropy_grad(x, x, reduction="none", grad_output=g) for g in (odd, plain))
    assert got.tobytes() == expected.tobytes()
    for axis in (None, 0, 1):
        got, expected = (
            binary_cross_entropy(x, labels, reduction="sum", axis=axis, dtype=np.float64) for labels in (odd, plain)
        )
        # Blocks of other bytes are not summed by products, which are right to more digits than float32 losses are.
        np.testing.assert_allclose(got, expected, 1e-15 if dtype == "float64" else 2.0**-26)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "float32"])
def test_weights_may_be_negative(dtype, rng):
    x, y = (rng.random(5003).astype(np.float32) for _ in range(2))
    w = rng.integers(-128, 128, 5003)
    exact = reference.losses(x, y, w)
    results = binary_cross_entropy(x, y, w.astype(dtype), "none")
    distance, message = reference.worst(reference.ulps, results, exact, "float32", x, y, w)
    assert distance <= 2, message


NUMBERS = [3, 3.0, np.float32(3), np.float64(3), np.int8(3), np.uint64(3), np.longdouble(3), np.array(3, ">i4")]
NUMBERS += [np.array(3, "bfloat16"), np.array(3, "bfloat16")[()]]


@pytest.mark.parametrize("weight", NUMBERS, ids=lambda w: f"{type(w).__name__} {np.asarray(w).dtype}")
@pytest.mark.parametrize("dtype", FLOATS)
def test_number_of_any_kind_is_a_weight(dtype, weight, rng):
    x, y = (rng.random(500).astype(dtype) for _ in range(2))
    assert_same(answers(x, y, weight), answers(x, y, np.float64(3)))
    # One rounding, and one more in float64: 3 times the exact loss.
    exact = reference.losses(x, y, 3.0)
    results = binary_cross_entropy(x, y, weight, "none")
    assert reference.worst(reference.ulps, results, exact, dtype)[0] <= 2


@pytest.mark.parametrize("result", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_result_has_the_dtype_that_is_asked_for(dtype, result, rng):
    x, y = (rng.random(1000).astype(dtype) for _ in range(2))
    losses, gradients = reference.losses(x, y), reference.gradients(x, y)
    total = reference.total(losses)
    value, gradient = binary_cross_entropy_value_and_grad(x, y, None, "none", dtype=result)
    assert value.tobytes() == binary_cross_entropy(x, y, reduction="none", dtype=result).tobytes()
    assert gradient.tobytes() == binary_cross_entropy_grad(x, y, reduction="none", dtype=np.dtype(result)).tobytes()
    # A float64 result of other predictions is what was computed: float32 (16-bit ones are computed in float32).
    computed = "float64" if dtype == "float64" else "float32"
    for results, exact in ((value, losses), (gradient, gradients)):
        assert results.dtype == result
        if result in ("float16", "bfloat16"):
            assert reference.worst(reference.steps, results, exact, result)[0] <= 1
        else:
            coarser = min(computed, result)  # in this order "float32" comes before "float64"
            assert max(reference.ulps(r, e, coarser) for r, e in zip(results, exact, strict=True)) <= 2
    for reduction, exact in (("sum", total), ("mean", total / 1000)):
        reduced = binary_cross_entropy(x, y, reduction=reduction, dtype=result)
        assert reduced.dtype == result
        if result in ("float16", "bfloat16"):
            assert reference.steps(reduced, exact, result) <= 1
        else:
            assert reference.ulps(reduced, exact, min(computed, result)) <= 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_asked_for_in_float16_is_held_at_its_largest_number(dtype):
    x, y = np.array([0, 1, 0.5, 0], dtype), np.array([1, 0, 1, 0], dtype)
    results = binary_cross_entropy_grad(x, y, reduction="none", dtype=np.float16)
    np.testing.assert_array_equal(results, np.array([-65504, 65504, -2, 1], np.float16))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("source", FLOATS)
def test_gradient_asked_for_in_another_dtype_than_float16_is_not_held(source, dtype):
    x, y = np.array([0, 1], source), np.array([1, 0], source)
    results = binary_cross_entropy_grad(x, y, reduction="none", dtype=dtype)
    # Of smaller predictions the gradient is computed in float32, whose number next to 1e12 is 999999995904.
    wrong = 1e12 if source == "float64" else np.float32(1e12)
    np.testing.assert_array_equal(results, np.array([-wrong, wrong], dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_and_mean_are_numpy_scalars_of_the_dtype_of_the_input(dtype):
    x = np.full(10, 0.5, dtype)
    for reduction in ("sum", "mean"):
        result = binary_cross_entropy(x, x, reduction=reduction)
        assert isinstance(result, np.generic)
        assert result.dtype == dtype


# Layouts.


def strided(array):
    return np.repeat(array, 3, axis=-1)[..., ::3]


def stepped_outside(array):
    return np.repeat(array, 2, axis=0)[::2]


def backwards(array):
    everything = (slice(None, None, -1),) * array.ndim
    return array[everything].copy()[everything]


def rows_backwards(array):
    return array[::-1].copy()[::-1]


def fortran(array):
    return np.asfortranarray(array)


def turned(array):
    axes = [*range(1, array.ndim), 0]
    return array.transpose(axes).copy().transpose(np.argsort(axes))


def swapped_inside(array):
    return array.swapaxes(-1, -2).copy().swapaxes(-1, -2)


def cut_out(array):
    larger = np.zeros([n + 7 for n in array.shape], array.dtype)
    inside = larger[tuple(slice(3, n + 3) for n in array.shape)]
    inside[...] = array
    return inside


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def field_of_records(array):
    records = np.zeros(array.shape, [("before", "u1"), ("value", array.dtype), ("after", "i4")])
    records["value"] = array
    return records["value"]


def aligned_field_of_records(array):
    # An item of 24 bytes: a multiple of the alignment, but not a power of two.
    records = np.zeros(array.shape, [("value", array.dtype), ("after", f"V{24 - array.itemsize}")])
    records["value"] = array
    return records["value"]


LAYOUTS = {
    function.__name__: function
    for function in (
        strided,
        stepped_outside,
        backwards,
        rows_backwards,
        fortran,
        turned,
        swapped_inside,
        cut_out,
        read_only,
        misaligned,
        field_of_records,
        aligned_field_of_records,
    )
}


def three(dtype, rng):
    """Predictions, labels and weights; labels are hard in places and soft in others."""
    x, y, w = (rng.random(SHAPE).astype(dtype) for _ in range(3))
    y[:20] = rng.integers(0, 2, (20, *SHAPE[1:]))
    return x, y, w


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_layout_of_predictions_labels_and_weights_does_not_change_the_bits(dtype, layout, rng):
    x, y, w = three(dtype, rng)
    relaid = [LAYOUTS[layout](a) for a in (x, y, w)]
    for a, b in zip(relaid, (x, y, w), strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.strides != b.strides or layout in ("read_only", "misaligned")
    plain, weighted = answers(x, y), answers(x, y, w)
    assert_same(answers(relaid[0], relaid[1]), plain)
    assert_same(answers(relaid[0], y), plain)
    assert_same(answers(x, relaid[1]), plain)
    assert_same(answers(*relaid), weighted)
    assert_same(answers(x, y, relaid[2]), weighted)


# Blocks, windows of blocks and tiles start and end within rows: few columns, as many as a tile has, and rows of which a
# window of 32768 elements holds several, parts of two, or a part of one.
WIDTHS = [2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33, 64, 65, 100, 1000, 1025, 3000, 10_000, 33_000]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_number_of_columns_in_fortran_order_does_not_change_the_bits(dtype, columns, rng):
    most = 40_000 if dtype == "float16" else 100_000  # a sum in float16 is below 65520
    for rows in {2, 20, most // columns}:
        if rows < 2 or rows * columns > most:
            continue
        x, y, w = (rng.random((rows, columns)).astype(dtype) for _ in range(3))
        where = rng.random((rows, columns)) < 0.7
        expected = answers(x, y, w, where=where)
        assert_same(answers(fortran(x), fortran(y), fortran(w), where=fortran(where)), expected)
        soft, hard, flags = answers(x, y), answers(x, where.astype(dtype)), fortran(where)
        assert_same(answers(fortran(x), fortran(y)), soft)
        assert_same(answers(rows_backwards(fortran(x)), np.asfortranarray(y, np.float64)), soft)
        assert_same(answers(fortran(x), flags.astype(dtype)), hard)
        assert_same(answers(fortran(x), flags), hard)


# Planes of the last two dimensions that are copied side by side: small ones, and in Fortran order those of up to 1024
# elements.  Blocks begin and end within planes.
PLANES = [(2, 2), (3, 3), (1, 5), (4, 16), (5, 13), (2, 100), (20, 25), (32, 32), (25, 41)]


@pytest.mark.parametrize("layout", ["fortran", "turned", "cut_out", "backwards"])
@pytest.mark.parametrize("plane", PLANES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_small_planes_in_any_layout_give_the_same_bits(dtype, plane, layout, rng):
    size = 40_000 // np.prod(plane)
    for shape in ((size, *plane), (3, size // 3, *plane)):
        x, y, w = (rng.random(shape).astype(dtype) for _ in range(3))
        where, relay = rng.random(shape) < 0.7, LAYOUTS[layout]
        assert_same(answers(relay(x), relay(y)), answers(x, y))
        assert_same(answers(relay(x), y, relay(w)), answers(x, y, w))
        assert_same(answers(x, relay(y), where=relay(where)), answers(x, y, where=where))
        out = relay(np.empty_like(x))
        binary_cross_entropy_grad(x, y, reduction="none", out=out)
        assert out.tobytes() == binary_cross_entropy_grad(x, y, reduction="none").tobytes()


@pytest.mark.parametrize("step", [2, 3, 4, 5, -1, -2, -3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_step_does_not_change_the_bits(dtype, step, rng):
    for size in (1, 15, 16, 17, 33, 4097, 35_001):
        x, y = (rng.random(size * abs(step)).astype(dtype)[::step] for _ in range(2))
        expected = answers(x.copy(), y.copy())
        assert_same(answers(x, y), expected)
        assert_same(answers(x, y.copy()), expected)
        table = np.stack([x] * abs(step), axis=1)
        assert_same(answers(table[:, 0], y), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("labels", ["uint8", "bool", "int32"])
def test_layout_of_integer_labels_does_not_change_the_bits(labels, layout, rng):
    x, y = rng.random(SHAPE).astype(np.float32), rng.integers(0, 2, SHAPE).astype(labels)
    assert_same(answers(x, LAYOUTS[layout](y)), answers(x, y))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_layout_of_a_mask_does_not_change_the_bits(dtype, layout, rng):
    x, y, w = three(dtype, rng)
    where = rng.random(SHAPE) < 0.5
    x[~where] = np.nan
    expected = answers(x, y, w, where=where)
    assert_same(answers(x, y, w, where=LAYOUTS[layout](where)), expected)
    assert_same(answers(*(LAYOUTS[layout](a) for a in (x, y, w)), where=LAYOUTS[layout](where)), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_what_follows_does_not_change_the_bits(layout, rng):
    x, y, w = three("float32", rng)
    results = binary_cross_entropy_grad(x, y, None, "none", grad_output=LAYOUTS[layout](w))
    assert results.tobytes() == binary_cross_entropy_grad(x, y, None, "none", grad_output=w).tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_array_may_have_a_layout_of_its_own(dtype, rng):
    shape = (7, 11, 9, 71)
    x, y, w = (rng.random(shape).astype(dtype) for _ in range(3))
    where = rng.random(shape) < 0.7
    got = answers(turned(x), strided(y), swapped_inside(backwards(w)), where=fortran(where))
    assert_same(got, answers(x, y, w, where=where))
    got = answers(x[:, ::-1, ::2], y[:, ::-1, ::2], w[:, ::-1, ::2])
    assert_same(got, answers(*(a[:, ::-1, ::2].copy() for a in (x, y, w))))


@pytest.mark.parametrize("columns", [6, 20_000], ids=["one thread", "several"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_call_is_not_taken_for_one_before_of_arrays_with_other_shapes_or_layouts(reduction, columns, rng):
    # What a call of contiguous arrays needs is remembered by dtypes alone.
    x, y = (rng.choice(np.float32([0.125, 0.25, 0.75]), (2, columns)) for _ in range(2))
    for _ in range(2):
        binary_cross_entropy(x, y, reduction=reduction)
    for labels in (y.T, y.ravel(), y.reshape(2, columns, 1), y[:, :-1], y[0]):
        with pytest.raises(ValueError, match="'target' must have the shape of 'input'"):
            binary_cross_entropy(x, labels, reduction=reduction)
    for a, b in ((x.T, y.T), (x[:, ::2], y[:, ::2]), (x, np.asfortranarray(y)), (x[::-1], y)):
        result, exact = binary_cross_entropy(a, b, reduction=reduction), reference.losses(a.ravel(), b.ravel())
        if reduction == "none":
            distance, message = reference.worst(reference.ulps, result.ravel(), exact, "float32", a.ravel(), b.ravel())
            assert distance <= 2, message
        else:
            assert reference.ulps(result, sum(exact) / a.size, "float32") <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1, 1), (500, 1), (1, 500), (5, 1, 100), (1, 5, 1, 100, 1)], ids=str)
def test_dimensions_of_one_element_do_not_change_the_bits(shape, rng):
    x, y = (rng.random(shape).astype(np.float32) for _ in range(2))
    flat, expected = answers(x.ravel(), y.ravel()), answers(x, y)
    assert {name: data for name, (_, _, data) in flat.items()} == {n: data for n, (_, _, data) in expected.items()}
    assert_same(answers(fortran(x), strided(y)), expected)


def test_thirty_dimensions_are_walked(rng):
    # 2^16 elements in 16 dimensions of two, the others of one.
    shape = (2, 1) * 14 + (2, 2)
    x, y = (rng.random(shape).astype(np.float32) for _ in range(2))
    expected = answers(x.copy(), y.copy())
    assert_same(answers(x.T.copy().T, y.swapaxes(0, 28).copy().swapaxes(0, 28)), expected)


@pytest.mark.parametrize("shape", [(1, 1, 41), (1, 29, 1), (37, 1, 1), (37, 1, 41), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_broadcast_views_give_the_bits_of_their_copies(dtype, shape, rng):
    small = [rng.random(shape).astype(dtype) for _ in range(3)]
    views = [np.broadcast_to(a, SHAPE) for a in small]
    copies = [a.copy() for a in views]
    expected = answers(*copies)
    assert_same(answers(*views), expected)
    assert_same(answers(copies[0], views[1], small[2]), expected)
    where = np.broadcast_to(rng.random(shape) < 0.7, SHAPE)
    if where.any():
        assert_same(answers(*views, where=where), answers(*copies, where=where.copy()))


@pytest.mark.parametrize("shape", [(41,), (29, 1), (37, 1, 1), (37, 1, 41), (1, 1, 1), (1,)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_weight_broadcasts_to_the_input(dtype, shape, rng):
    x, y, _ = three(dtype, rng)
    w = rng.random(shape).astype(dtype)
    wide = np.broadcast_to(w, SHAPE).copy()
    assert_same(answers(x, y, w), answers(x, y, wide))
    if len(shape) == 3:
        assert_same(answers(x, y, np.broadcast_to(w, SHAPE)), answers(x, y, wide))


def test_more_than_2_to_the_31_elements_are_summed():
    size = 2**31 + 5
    x, y = np.broadcast_to(np.float32(0.3), (size,)), np.broadcast_to(np.uint8(1), (size,))
    exact = size * reference.loss(float(np.float32(0.3)), 1.0)
    assert reference.ulps(binary_cross_entropy(x, y, reduction="sum"), exact, "float32") <= 1


def test_elements_more_than_2_to_the_31_bytes_apart_are_found(tmp_path, rng):
    # A file with holes: three rows of 4 GiB, of which 5000 elements each, more than a block, are written and read.
    rows = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(3, 2**30))
    x, y = rng.random((3, 5000)).astype(np.float32), rng.random((3, 5000)).astype(np.float32)
    rows[:, -5000:] = x
    assert_same(answers(rows[:, -5000:], y), answers(x, y))
    assert_same(answers(rows[::-1, -5000:], y[::-1]), answers(x[::-1].copy(), y[::-1].copy()))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_memory_mapped_files_give_the_bits_of_arrays(dtype, mode, tmp_path, rng):
    x, y, w = three(dtype, rng)
    for name, array in (("x", x), ("y", y), ("w", w)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode=mode) for name in "xyw"]
    assert_same(answers(*mapped), answers(x, y, w))
    assert_same(answers(*mapped[:2]), answers(x, y))


def test_raw_file_that_is_mapped_at_an_odd_offset_gives_the_bits_of_an_array(tmp_path, rng):
    x, y = (rng.random(50_000).astype(np.float32) for _ in range(2))
    (tmp_path / "x").write_bytes(b"123" + x.tobytes())
    mapped = np.memmap(tmp_path / "x", np.float32, "r", offset=3)
    assert_same(answers(mapped, y), answers(x, y))


# Results.


@pytest.mark.parametrize("layout", ["strided", "stepped_outside", "backwards", "fortran", "turned", "cut_out"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_out_of_any_layout_is_filled_and_nothing_beside_it(dtype, layout, rng):
    x, y, w = three(dtype, rng)
    for function, options in ((binary_cross_entropy, {"reduction": "none"}), (binary_cross_entropy_grad, {})):
        out = LAYOUTS[layout](np.full(SHAPE, 7, dtype))
        memory = out
        while memory.base is not None:
            memory = memory.base
        memory[...] = 7
        result = function(x, y, w, **options, out=out)
        assert result is out
        assert out.tobytes() == function(x, y, w, **options).tobytes()
        # No result is 7, nor is what was not written anything else.
        out[...] = 7
        assert (memory == 7).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_value_and_gradient_go_to_their_two_outs(dtype, rng):
    x, y, w = three(dtype, rng)
    value, gradient = strided(np.zeros(SHAPE, dtype)), fortran(np.zeros(SHAPE, dtype))
    results = binary_cross_entropy_value_and_grad(x, y, w, "none", out=(value, gradient))
    assert results[0] is value
    assert results[1] is gradient
    assert value.tobytes() == binary_cross_entropy(x, y, w, "none").tobytes()
    assert gradient.tobytes() == binary_cross_entropy_grad(x, y, w, "none").tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_and_mean_go_to_a_zero_dimensional_out(dtype, rng):
    x, y = (rng.random(100).astype(dtype) for _ in range(2))
    for reduction in ("sum", "mean"):
        row = np.zeros(3, dtype)
        out = row[1:2].reshape(())
        assert binary_cross_entropy(x, y, reduction=reduction, out=out) is out
        assert row[1] == binary_cross_entropy(x, y, reduction=reduction)
        assert row[0] == row[2] == 0


# Other kinds of arrays.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pandas_series_are_arrays(dtype, rng):
    index = rng.permutation(5003)  # alignment by index is not for a loss: elements are paired in order
    x, w = rng.random(5003).astype(dtype), rng.random(5003).astype(dtype)
    y = rng.integers(0, 2, 5003)
    series = [pd.Series(x, index), pd.Series(y), pd.Series(w, index[::-1])]
    expected = answers(x, y, w)
    assert_same(answers(*series), expected)
    assert_same(answers(x, series[1], series[2]), expected)
    where = rng.random(5003) < 0.5
    assert_same(answers(x, y, w, where=pd.Series(where)), answers(x, y, w, where=where))
    frame = pd.DataFrame({"prediction": x, "other": w, "label": y})
    assert_same(answers(frame["prediction"], frame["label"]), answers(x, y))


def test_object_that_offers_an_array_is_one(rng):
    class Wrapped:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    x, y, w = (rng.random(5003) for _ in range(3))
    assert_same(answers(Wrapped(x), Wrapped(y), Wrapped(w)), answers(x, y, w))


def test_inputs_are_left_as_they_were(rng):
    x, y, w = three("float32", rng)
    where = rng.random(SHAPE) < 0.5
    before = [a.tobytes() for a in (x, y, w, where)]
    answers(x, y, w, where=where)
    binary_cross_entropy_value_and_grad(x, y, w, "none", where=where, grad_output=w)
    assert [a.tobytes() for a in (x, y, w, where)] == before


@pytest.mark.parametrize("x", ["float16", "float32"])
def test_results_own_their_memory(x):
    array = np.full(10, 0.5, x)
    for results in binary_cross_entropy_value_and_grad(array, array, reduction="none"):
        assert results.flags.owndata
        assert results.flags.writeable
        assert not np.shares_memory(results, array)


@pytest.mark.parametrize(
    ("weight", "loss"), [(Fraction(1, 2), 0.34657359027997264), (True, 0.6931471805599453)], ids=repr
)
def test_weight_may_be_any_real_number_of_python(weight, loss):
    # w log 2, rounded: 0.693147180559945309417... and half of it
    assert binary_cross_entropy(np.array([0.5]), np.array([1]), weight, "sum") == loss


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_matrices_are_taken_as_arrays_of_their_memory(axis, rng):
    # Each index of a matrix is two-dimensional, also in rows of more than 1024 elements, whose first one is looked at.
    x, y, weight = rng.random((3, 2000)), rng.random((3, 2000)) < 0.5, rng.random((3, 2000)).astype("float32")
    function, options = binary_cross_entropy_value_and_grad, {"reduction": "sum", "axis": axis}
    expected = function(x, y, weight, where=y, **options)
    out = (None, np.matrix(np.zeros(x.shape)))
    got = function(*map(np.matrix, (x, y, weight)), where=np.matrix(y), out=out, **options)
    assert got[1] is out[1]
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(np.asarray(got[1]), expected[1])
