"""Sums and means along axes on the simulated device, beside those of the CPU: rows, columns, segments of them; products
and what refuses them; masks, layouts, own arrays, empty ones, grids.
"""

import contextlib
import math

import devices
import ml_dtypes
import numpy as np
import pytest
import simulator
from devices import DTYPES, FLOATS, FOCAL, FUNCTIONS, LOGITS, PROBABILITIES, WITH_GRADIENT, aligned
from simulator import agree, place, to_host

import nbbce
from nbbce import _axes, _cuda, _device_arrays
from nbbce._axes import lanes_of, segments_of, step_of_rows
from nbbce._generated_cuda import PIECE

REDUCED = ("sum", "mean")
LOSS, BOTH = PROBABILITIES[0], PROBABILITIES[2]
# In float64, so that no bit of a sum is rounded away.
EXACT = {"dtype": "float64"}


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that run, in order."""
    run, names = _cuda.compiler.run, []

    def noting(kernel, *arguments):
        names.append(simulator.task_of(kernel))
        run(kernel, *arguments)

    monkeypatch.setattr(_cuda.compiler, "run", noting)
    return names


def arrays(rng, function, shape, dtype="float32", kind="mixed"):
    """Predictions and labels that a function takes."""
    _, logits = devices.of_function(function)
    pair = devices.predictions(rng, shape, dtype, logits), devices.labels(rng, shape, dtype, kind)
    return tuple(map(np.asarray, pair))


def warned_if(empty):
    """Expects NumPy's warning, of the CPU, if some mean is over nothing: a device has not counted by then."""
    return pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$") if empty else contextlib.nullcontext()


def called(name, *given, **options):
    """Hold a function, by name, to the bits of the CPU."""
    agree(devices.of_function(name)[0], *given, **options)


# ------------------------------------------------------------------------------------------ functions and options
@pytest.mark.parametrize("reduction", REDUCED)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_the_bits_of_the_cpu_along_any_axes(function, reduction, rng):
    x, y = arrays(rng, function, (4, 3, 9))
    for axis in (0, 1, -1, (0, 1), (2, 0), ()):
        called(function, x, y, reduction=reduction, axis=axis)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_option_at_once_gives_the_bits_of_the_cpu(function, rng):
    x, y = arrays(rng, function, (7, 9))
    options = {"weight": rng.random(9), "where": rng.random((7, 9)) < 0.7, "dtype": "float64"}
    if function in FOCAL:
        options |= {"alpha": 0.3, "gamma": 1.5}
    else:
        options |= {"pos_weight": rng.random((7, 1)).astype("float32"), "label_smoothing": 0.125}
    for axis, length in ((0, 9), (1, 7)):
        if function in WITH_GRADIENT:
            options["grad_output"] = rng.normal(size=length)
        for reduction in REDUCED:
            called(function, x, y, reduction=reduction, axis=axis, **options)


@pytest.mark.parametrize("target", list(DTYPES))
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_every_dtype_of_predictions_and_labels_has_the_bits_of_the_cpu(dtype, target, rng):
    x = devices.predictions(rng, (9, 11), FLOATS[dtype])
    y = devices.labels(rng, (9, 11), DTYPES[target], "soft")
    for axis in (0, 1):
        called(BOTH if axis else LOSS, x, y, reduction="sum", axis=axis)


@pytest.mark.parametrize("dtype", list(FLOATS))
def test_every_dtype_of_results_has_the_bits_of_the_cpu(dtype, rng):
    for k, result in enumerate(FLOATS.values()):
        for name, axis in ((BOTH, k % 2), (LOGITS[0], (k + 1) % 2), (FOCAL[0], k % 2)):
            x, y = arrays(rng, name, (8, 12), FLOATS[dtype])
            called(name, x, y, reduction="mean", axis=axis, dtype=result)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_masked_results_of_16_bits_are_those_of_float64_rounded_by_way_of_float32(dtype, rng):
    # The CPU lets NumPy round them to float16 at once, so a tie may go the other way there.
    for name in (LOSS, LOGITS[0], FOCAL[0]):
        x, y = arrays(rng, name, (40, 12), FLOATS[dtype])
        where = rng.random(x.shape) < 0.7
        function = devices.of_function(name)[0]
        for axis in (0, 1):
            for reduction in REDUCED:
                wide = function(x, y, reduction=reduction, axis=axis, where=where, dtype="float64")
                got = function(place(x), place(y), reduction=reduction, axis=axis, where=place(where))
                devices.assert_same_bits(to_host(got), wide.astype(np.float32).astype(FLOATS[dtype]))


def test_keepdims_keeps_the_axes_with_length_1(rng):
    x, y = arrays(rng, BOTH, (3, 4, 5))
    for axis in (0, 1, 2, (0, 2), (1, -1), ()):
        for reduction in REDUCED:
            called(BOTH, x, y, reduction=reduction, axis=axis, keepdims=True)
    factors = rng.normal(size=(3, 1, 5))
    called(BOTH, x, y, axis=1, keepdims=True, grad_output=factors)
    called(BOTH, x, y, axis=1, keepdims=True, grad_output=factors, where=rng.random(x.shape) < 0.6)


def test_many_dimensions_are_reduced(rng):
    shape = (2, 1) * 5 + (2, 3)
    x, y = arrays(rng, LOSS, shape)
    for axes in (tuple(range(0, 12, 4)), tuple(range(1, 12, 2)), (0, 11), (10,)):
        called(LOSS, x, y, axis=axes)
        called(LOSS, x.T, y.T, axis=axes)


@pytest.mark.parametrize("function", [BOTH, LOGITS[2], LOGITS[3], FOCAL[1]])
def test_factors_of_any_shape_give_the_bits_of_the_cpu(function, rng):
    x, y = arrays(rng, function, (11, 9))
    values = [2.5, np.array(3.0), np.linspace(0, 2, 9), np.linspace(-1, 2, 11).reshape(11, 1)]
    values += [rng.random((11, 9)).astype("float32"), np.arange(99, dtype="int16").reshape(11, 9)]
    values += [np.linspace(0, 3, 9).astype(ml_dtypes.bfloat16)]
    for k, value in enumerate(values):
        called(function, x, y, value, "mean", axis=k % 2)
        if function not in FOCAL:
            called(function, x, y, pos_weight=value, axis=(k + 1) % 2)
            called(function, x, y, pos_weight=value, label_smoothing=0.2, axis=k % 2, reduction="sum")


@pytest.mark.parametrize("function", [BOTH, LOGITS[3], FOCAL[1]])
def test_grad_output_along_axes_gives_the_bits_of_the_cpu(function, rng):
    x, y = arrays(rng, function, (4, 6, 5))
    for axis, shape in ((0, (6, 5)), (1, (4, 5)), (2, (4, 6)), ((0, 2), (6,)), ((1, 2), (4,))):
        factors = rng.normal(size=shape)
        for reduction in REDUCED:
            called(function, x, y, reduction=reduction, axis=axis, grad_output=factors)
        called(function, x, y, 0.5, "mean", axis=axis, grad_output=factors[..., :1])
        called(function, x, y, reduction="mean", axis=axis, grad_output=-1.5)


# ------------------------------------------------------------------------------------------------------------ rows
LENGTHS = [1, 2, 7, 8, 9, 10, 15, 16, 17, 33, 63, 64, 65, 100, 1023, 1024]
THREE = [(LOSS, "float32"), (LOGITS[0], "float32"), (LOSS, "float64")]
three = pytest.mark.parametrize(("function", "dtype"), THREE, ids=["float32", "logits", "float64"])


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@three
def test_rows_of_any_length_have_the_bits_of_the_cpu(function, dtype, kind, launched, rng):
    for length in LENGTHS:
        called(function, *arrays(rng, function, (3, length), dtype, kind), axis=1, **EXACT)
    assert launched == ["rows"] * len(LENGTHS)


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@three
def test_any_number_of_rows_has_the_bits_of_the_cpu(function, dtype, kind, launched, rng):
    assert step_of_rows(10) == 960
    for count in (1, 95, 96, 97, 200):
        called(function, *arrays(rng, function, (count, 10), dtype, kind), axis=1, **EXACT)
    for length in (1, 7, 17, 65):
        count = step_of_rows(length) // length + 1
        called(function, *arrays(rng, function, (count, length), dtype, kind), axis=1, **EXACT)
    assert set(launched) == {"rows"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_focal_losses_have_the_bits_of_the_cpu(dtype, rng):
    for shape in ((40, 7), (5, 33), (3, 64), (2, 100)):
        called(FOCAL[0], *arrays(rng, FOCAL[0], shape, dtype), axis=1, reduction="sum", **EXACT)


def test_rows_that_are_several_axes_have_the_bits_of_the_cpu(launched, rng):
    x, y = arrays(rng, LOSS, (5, 4, 3, 6), kind="hard")
    for axes in ((1, 3), (0, 3), (2, 3), (1, 2, 3), (0, 2, 3)):
        called(LOSS, x, y, axis=axes, **EXACT)
    assert launched == ["rows"] * 5


def test_room_of_a_warp_holds_rows_of_every_length():
    for length in range(1, PIECE + 1):
        step = step_of_rows(length)
        assert step % length == 0
        assert 0 < step <= PIECE


# --------------------------------------------------------------------------------------------------------- columns
@pytest.mark.parametrize("kind", ["hard", "mixed"])
@three
def test_columns_of_any_width_have_the_bits_of_the_cpu(function, dtype, kind, launched, rng):
    shapes = [(520, 1), (172, 3), (53, 10), (3, 250), (15, 250)]
    shapes += [(rows, width) for width in (255, 256, 257) for rows in (16, 17)]
    shapes += [(33, 256), (1, 1024), (17, 1024), (2, 1025), (17, 1025), (3, 2050)]
    for shape in shapes:
        called(function, *arrays(rng, function, shape, dtype, kind), axis=0, **EXACT)
    assert launched == ["columns"] * len(shapes)


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@three
def test_blocks_of_columns_of_any_height_have_the_bits_of_the_cpu(function, dtype, kind, launched, rng):
    # Of ten columns 16 rows lie side by side, so that 256 rows make a block of products, and 96 one of losses.
    assert lanes_of(10) == 160
    for rows in (95, 97, 255, 257, 520):
        called(function, *arrays(rng, function, (2, rows, 10), dtype, kind), axis=1, **EXACT)
    assert launched == ["columns"] * 5


@three
def test_rows_beyond_a_block_are_columns_of_width_1(function, dtype, launched, rng):
    for shape in ((3, 1025), (2, 2049), (2, 4097)):
        for kind in ("hard", "mixed"):
            called(function, *arrays(rng, function, shape, dtype, kind), axis=1, **EXACT)
    assert set(launched) == {"columns"}


@three
def test_high_columns_are_shared_by_thread_blocks_where_they_are_few(function, dtype, launched, rng):
    for shape, axis in (((1000, 10), 0), ((1, 5000), 1)):
        for kind in ("hard", "mixed"):
            x, y = arrays(rng, function, shape, dtype, kind)
            del launched[:]
            called(function, x, y, axis=axis, **EXACT)
            assert launched == ["columns", "segments"]
            del launched[:]  # two of them are as many as run at once
            called(function, np.stack([x, x]), np.stack([y, y]), axis=axis + 1, **EXACT)
            assert launched == ["columns"]


def test_shared_columns_with_options_have_the_bits_of_the_cpu(launched, rng):
    x, y = arrays(rng, BOTH, (1000, 10))
    where = rng.random(x.shape) < 0.5
    where[:, 3] = False
    x[:, 3] = np.nan
    weight, factors = rng.random(10), rng.normal(size=10)
    with warned_if(True):
        called(BOTH, x, y, weight, axis=0, where=where, grad_output=factors)
    assert launched == ["columns", "segments", "columns", "segments", "each"]
    x[:, 3] = 0.5
    called(BOTH, x, y, axis=0, pos_weight=2.0, keepdims=True)
    x[999, 4] = -1.0
    called(LOSS, x, y, axis=0, reduction="sum")
    called(FOCAL[0], *arrays(rng, FOCAL[0], (600, 2)), axis=0, reduction="sum", **EXACT)
    assert launched.count("segments") == 5
    out = np.full(20, 7.25, "float32")
    called_with_out(out[::-2], LOSS, np.where(np.isnan(x), 0.5, np.abs(x)), y, axis=0)
    assert (out[::2] == 7.25).all()
    assert launched.count("segments") == 6


@pytest.mark.parametrize("axis", [0, 1, (0, 1), (0, 2), (1, 2)])
def test_axes_in_the_middle_have_the_bits_of_the_cpu(axis, rng):
    for shape in ((6, 17, 5), (2, 40, 30)):
        for name in (LOSS, LOGITS[0]):
            called(name, *arrays(rng, name, shape, kind="hard"), axis=axis, **EXACT)


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@three
def test_small_groups_are_summed_as_rows_with_the_bits_of_the_cpu(function, dtype, kind, launched, rng):
    most = _axes.GROUP[dtype]
    shapes = [(300, 2, 2), (40, 3, 10), (11, 10, 10), (5, 2, 40), (3, 1, most), (3, most // 64, 64), (2, most, 1)]
    for shape in shapes:
        called(function, *arrays(rng, function, shape, dtype, kind), axis=1, **EXACT)
    called(function, *arrays(rng, function, (3, 4, 5, 2), dtype, kind), axis=(1, 2), **EXACT)
    called(function, *arrays(rng, function, (4, 3, 5, 2), dtype, kind), axis=(0, 2), **EXACT)
    assert launched == ["rows"] * (len(shapes) + 2)


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@three
def test_columns_of_several_dimensions_are_cut_into_tiles_with_the_bits_of_the_cpu(
    function, dtype, kind, launched, rng
):
    # Tiles of 204 * 5, 25 * 40, 512 * 2 and 2 * 400 columns, of which the last are not full.
    cases = [((2, 300, 5), 0), ((3, 41, 20, 2), 0), ((2, 2, 1000, 2), (0, 1)), ((2, 3, 3, 400), 1)]
    tiles = [1020, 1000, 1024, 800]
    for (shape, axis), tile in zip(cases, tiles, strict=True):
        axes = axis if isinstance(axis, tuple) else (axis,)
        assert _axes.order_of(shape, axes, dtype)[2] == tile
        called(function, *arrays(rng, function, shape, dtype, kind), axis=axis, **EXACT)
    x, y = arrays(rng, function, (20, 2, 41, 2), dtype, kind)
    called(function, x.transpose(1, 2, 0, 3), y.transpose(1, 2, 0, 3), axis=0, **EXACT)
    assert launched == ["columns"] * (len(cases) + 1)


def test_axis_in_the_middle_of_tiled_columns_has_the_bits_of_the_cpu(rng):
    for kind in ("hard", "mixed"):
        called(LOSS, *arrays(rng, LOSS, (2, 3, 1030), kind=kind), axis=1, **EXACT)


def test_lanes_of_every_width_have_room():
    for width in range(1, _axes.TILE + 1):
        assert lanes_of(width) % width == 0
        assert lanes_of(width) <= _cuda.ROOMS_OF_LANES[-1]


# ------------------------------------------------------------------------------------------------------------ grids
@pytest.mark.parametrize(("multiprocessors", "resident"), [(1, 1), (1, 3), (7, 2)])
def test_grid_makes_no_difference_to_the_bits(multiprocessors, resident, launched, rng, monkeypatch):
    for name in ("_kernels", "_known"):
        monkeypatch.setattr(_cuda, name, {})
    monkeypatch.setattr(_cuda.compiler, "multiprocessors", lambda device: multiprocessors)
    monkeypatch.setattr(_cuda.compiler, "resident", lambda kernel, threads: resident)
    for dtype in ("float32", "float64"):
        for shape, axis in (((300, 10), 1), ((2, 600, 10), 1), ((3, 17, 300), 1)):
            called(LOSS, *arrays(rng, LOSS, shape, dtype), axis=axis, **EXACT)
    # Of two groups of 600 rows each is shared where more thread blocks than two run at once.
    assert ("segments" in launched) == (multiprocessors * resident > 2)


def test_thread_blocks_that_share_columns_are_no_more_than_run_at_once(rng, monkeypatch):
    run, grids = _cuda.compiler.run, []

    def noting(kernel, device, stream, grid, threads, arguments):
        grids.append((simulator.task_of(kernel), grid))
        run(kernel, device, stream, grid, threads, arguments)

    monkeypatch.setattr(_cuda.compiler, "run", noting)
    x, y = arrays(rng, LOSS, (1000, 10), kind="hard")
    assert segments_of(1000, 10, 2560) == 4
    called(LOSS, x, y, axis=0)
    assert grids == [("columns", 2), ("segments", 1)]


# ------------------------------------------------------------------------------------------------ refused products
def changes(family):
    """What makes a product be refused, or nearly, by name: where, the prediction, and the label."""
    if family:
        yield "logit of 40", (50, 40.0, 0.0)
        yield "logit beyond 40", (50, 40.000004, 0.0)
        yield "logit beyond -40", (50, -41.0, 1.0)
        yield "huge logit", (50, 1e30, 0.0)
        yield "huge logit on the right side", (50, 1e30, 1.0)
        yield "infinite logit", (50, np.inf, 0.0)
        yield "infinite logit on the right side", (50, -np.inf, 0.0)
    else:
        yield "prediction of 2^-60", (50, 2.0**-60, 1.0)
        yield "prediction below 2^-60", (50, 2.0**-61, 1.0)
        yield "wrong prediction of 0", (50, 0.0, 1.0)
        yield "wrong prediction of 1", (50, 1.0, 0.0)
        yield "right prediction of 0", (50, 0.0, 0.0)
        yield "right prediction of 1", (50, 1.0, 1.0)
        yield "negative zero", (50, -0.0, 0.0)
        yield "negative", (50, -(2.0**-149), 0.0)
        yield "beyond 1", (50, 1 + 2.0**-23, 1.0)
        yield "infinite", (50, np.inf, 0.0)
    yield "NaN", (50, np.nan, 1.0)
    yield "label of -0.0", (50, 0.25, -0.0)
    yield "label of -0.0 among the first eight", (3, 0.25, -0.0)
    yield "soft label", (50, 0.25, 0.5)
    yield "soft label among the first eight", (7, 0.25, 2.0**-149)
    yield "soft label behind the first eight", (8, 0.25, 0.5)
    yield "soft label at the end", (119, 0.25, 1 - 2.0**-24)
    yield "label beyond 1", (50, 0.25, 1 + 2.0**-23)
    yield "negative label", (119, 0.25, -1.0)
    yield "label of NaN", (50, 0.25, np.nan)


CHANGES = [(family, name) for family in ("", "logits_") for name, _ in changes(family)]


@pytest.mark.parametrize(("family", "name"), CHANGES)
def test_sums_whose_product_is_refused_have_the_bits_of_the_cpu(family, name, rng):
    function = LOGITS[0] if family else LOSS
    x, y = arrays(rng, function, (12, 10), kind="hard")
    at, *changed = dict(changes(family))[name]
    x.flat[at], y.flat[at] = changed
    for axis in (0, 1):
        called(function, x, y, axis=axis, **EXACT)


@pytest.mark.parametrize("function", [LOSS, LOGITS[0]])
def test_products_near_1_have_the_bits_of_the_cpu(function, rng):
    y = devices.labels(rng, (20, 20), "float32", "hard")
    for away in (1e-3, 2.0**-20, 1e-6, 2.0**-24, 1e-10, 1e-30):
        if function == LOSS:
            x = np.where(y == 1, np.float32(1 - away), np.float32(away))
        else:
            x = np.where(y == 1, 1, -1) * np.float32(-np.log(away))
        for axis in (0, 1):
            called(function, x.astype("float32"), y, axis=axis, **EXACT)
    mixed = np.where(np.arange(20) % 7 == 0, x, x * np.float32(0.5) if function == LOSS else x / 8).astype("float32")
    for axis in (0, 1):
        called(function, mixed, y, axis=axis, **EXACT)


def test_sums_of_logits_below_2_to_the_minus_64_have_the_bits_of_the_cpu(rng):
    y = devices.labels(rng, (20, 16), "float32", "hard")
    for logit in (44.0, 44.3, 44.5, 47.2, 60.0, 79.0, 81.0, 104.0, 200.0):
        x = np.where(y == 1, 1, -1).astype("float32") * np.float32(logit)
        for axis in (0, 1):
            called(LOGITS[0], x, y, axis=axis, reduction="sum", **EXACT)
        x[7, 3] = 0.5
        for axis in (0, 1):
            called(LOGITS[0], x, y, axis=axis, reduction="sum", **EXACT)


def test_right_predictions_cost_nothing(rng):
    y = devices.labels(rng, (20, 16), "float32", "hard")
    for axis in (0, 1):
        called(LOSS, y, y, axis=axis)
        assert (to_host(nbbce.binary_cross_entropy(place(y), place(y), axis=axis)) == 0).all()


@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("function", [BOTH, LOGITS[2], FOCAL[1]])
def test_each_pair_of_edges_has_the_bits_of_the_cpu(function, dtype):
    function, logits = devices.of_function(function)
    count = devices.edges(FLOATS[dtype]).size
    x, y = (a.reshape(-1, count) for a in devices.pairs_of_edges(FLOATS[dtype], logits))
    for axis in (0, 1):
        agree(function, x, y, reduction="sum", axis=axis)
    with np.errstate(invalid="ignore"):  # without what is out of the domain there are numbers to compare
        rows, columns = (x[:, 0] >= 0) & (x[:, 0] <= 1) | logits, (y[0] >= 0) & (y[0] <= 1)
    for axis in (0, 1):
        agree(function, x[rows][:, columns], y[rows][:, columns], reduction="sum", axis=axis)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "hard"), ("float32", "soft"), ("float64", "mixed")])
def test_value_out_of_its_domain_makes_only_its_own_sum_nan(dtype, kind, rng):
    for shape in ((30, 10), (3, 100), (18, 256)):
        x, y = arrays(rng, LOSS, shape, dtype, kind)
        given = {"input": x, "target": y}
        for name, value in (("input", -0.25), ("target", 1.5), ("input", np.nan)):
            changed = given | {name: given[name].copy()}
            changed[name][2, 7] = value
            for axis in (0, 1):
                got = to_host(nbbce.binary_cross_entropy(*map(place, changed.values()), axis=axis, reduction="sum"))
                assert np.flatnonzero(np.isnan(got)).tolist() == [2 if axis else 7]
                expected = nbbce.binary_cross_entropy(**changed, axis=axis, reduction="sum", validate=False)
                devices.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [LOGITS[0], FOCAL[0]])
def test_infinite_loss_makes_only_its_own_sum_infinite(function, dtype, rng):
    for shape in ((30, 10), (3, 100), (18, 256)):
        x, y = arrays(rng, function, shape, dtype, "hard")
        x[2, 7], y[2, 7] = np.inf, 0
        x[2, 8], y[2, 8] = -np.inf, 0
        for axis in (0, 1):
            called(function, x, y, axis=axis, reduction="sum")
            got = to_host(devices.of_function(function)[0](place(x), place(y), axis=axis, reduction="sum"))
            assert np.flatnonzero(np.isinf(got)).tolist() == [2 if axis else 7]
            assert not np.isnan(got).any()


# ----------------------------------------------------------------------------------------------------------- masks
@pytest.mark.parametrize("function", [BOTH, LOGITS[2], LOGITS[3], FOCAL[1]])
def test_mask_of_any_shape_gives_the_bits_of_the_cpu(function, rng):
    shape = (11, 9)
    masks = [rng.random(9) < 0.5, rng.random((11, 1)) < 0.5, rng.random(shape) < 0.5, np.ones(shape, bool), True]
    masks[0][:2], masks[1][:2] = (True, False), [[True], [False]]
    masks[2][4], masks[2][:, 5] = False, False
    nothing = {(0, 0), (1, 1), (2, 0), (2, 1)}
    for k, where in enumerate(masks):
        x, y = arrays(rng, function, shape, kind="hard" if k % 2 else "mixed")
        x[~np.broadcast_to(where, shape)] = np.nan  # what does not count may hold anything
        for axis in (0, 1):
            grad_output = (None, -1.5, rng.normal(size=shape[1 - axis]))[k % 3]
            options = {"where": where, "axis": axis, "grad_output": grad_output}
            called(function, x, y, reduction="sum", **options)
            with warned_if("grad_and" not in function and (k, axis) in nothing):
                called(function, x, y, reduction="mean", **options)


def test_masked_mean_with_weights_has_the_bits_of_the_cpu(rng):
    x, y = arrays(rng, BOTH, (11, 9))
    where = rng.random(x.shape) < 0.7
    where[0] = True
    where[:, 0] = True
    for k, weight in enumerate((2.5, rng.random(9), rng.random((11, 1)).astype("float32"), rng.normal(size=(11, 9)))):
        called(BOTH, x, y, weight, axis=k % 2, where=where, grad_output=3.0)
        called(LOGITS[3], x, y, weight, axis=(k + 1) % 2, where=where)


def test_mean_over_nothing_is_nan_and_its_gradient_0(rng):
    x, y = arrays(rng, BOTH, (6, 9))
    where = np.ones(x.shape, bool)
    where[2] = False
    x[2] = np.nan
    value, gradient = nbbce.binary_cross_entropy_value_and_grad(place(x), place(y), where=place(where), axis=1)
    assert np.flatnonzero(np.isnan(to_host(value))).tolist() == [2]
    assert (devices.bits(to_host(gradient))[2] == 0).all()
    assert to_host(nbbce.binary_cross_entropy(place(x), place(y), where=place(where), axis=1, reduction="sum"))[2] == 0


def test_masked_mean_with_a_number_for_weight_is_over_the_elements_that_are_kept():
    # 2 log 2 for each that is kept
    x, y = np.full((2, 3), 0.5), np.ones((2, 3))
    where = np.array([[True, False, True], [True, True, True]])
    loss = to_host(nbbce.binary_cross_entropy(place(x), place(y), 2.0, where=place(where), axis=1))
    assert loss.tolist() == [1.3862943611198906, 1.3862943611198906]


@pytest.mark.parametrize("shape", [(1, 5, 6), (4, 1, 6)])
def test_new_arrays_in_the_order_of_the_input_hold_the_right_counts(shape, rng, monkeypatch):
    # As those of PyTorch and CuPy are, where a new array has the shape of the input.
    def empty(self, wanted, dtype, like, stream):
        order = "F" if wanted == like.shape else "C"
        return place(np.full(wanted, 7, dtype, order))

    axis = shape.index(1)
    x, y = (np.asfortranarray(a) for a in arrays(rng, BOTH, shape))
    where = np.asfortranarray(rng.random(shape) < 0.6)
    monkeypatch.setattr(_device_arrays.Numba, "empty", empty)
    for options in ({"axis": axis}, {"axis": axis, "keepdims": True}, {"axis": ()}):
        with warned_if(True):
            called(BOTH, x, y, where=where, **options)
        called(BOTH, x, y, reduction="sum", **options)


# --------------------------------------------------------------------------------------------------------- layouts
def relaid(rng, dtype):
    """Predictions and labels that lie in memory in many ways, by name."""
    base, hard = devices.predictions(rng, (12, 10, 6), dtype), devices.labels(rng, (12, 10, 6), dtype)
    return {
        "every second": (base[:, ::2], hard[:, ::2]),
        "Fortran": (np.asfortranarray(base[:, 1]), np.asfortranarray(hard[:, 1])),
        "Fortran and C": (np.asfortranarray(base[0]), np.ascontiguousarray(hard[0])),
        "transposed": (base.transpose(2, 0, 1), hard.transpose(2, 0, 1)),
        "reversed": (base[0, ::-1, ::-1], hard[0]),
        "columns": (base[:, 3, 2:5], hard[:, 1, 1:4]),
        "broadcast": (np.broadcast_to(base[0, 0], (15, 6)), np.broadcast_to(hard[0, :5, :1], (3, 5, 6)).reshape(15, 6)),
        "one element broadcast": (np.broadcast_to(base[0, 0, 0], (5, 6)), hard[0, :5]),
        "four dimensions": (base[::2].reshape(6, 2, 5, 6)[:, :, ::2], hard[:6].reshape(6, 2, 5, 6)[:, :, 1:4]),
        "dimensions of one": (base[:1, ::3, None], hard[1:2, ::3, None]),
    }


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", list(relaid(np.random.default_rng(1), "float32")))
def test_any_layout_has_the_bits_of_the_cpu(name, dtype, rng):
    x, y = relaid(rng, dtype)[name]
    for axis in (0, x.ndim - 1):
        called(BOTH, x, y, axis=axis, reduction="sum")
        called(LOSS, x, y, rng.random(x.shape[-1:]), axis=axis)


@pytest.mark.parametrize("dtype", list(FLOATS))
def test_dense_arrays_that_start_anywhere_have_the_bits_of_the_cpu(dtype, rng):
    for offset in (1, 2, 3, 5):
        x = aligned(devices.predictions(rng, (7, 13), FLOATS[dtype]), offset)
        y = aligned(devices.labels(rng, (7, 13), FLOATS[dtype], "hard"), offset // 2)
        for axis in (0, 1):
            called(LOSS, x, y if axis else y.astype(bool), axis=axis, **EXACT)


def test_strided_columns_and_rows_of_several_blocks_have_the_bits_of_the_cpu(rng):
    for kind in ("hard", "mixed"):
        x, y = arrays(rng, LOSS, (10, 600), kind=kind)
        called(LOSS, x.T[::2], y.T[::2], axis=0, **EXACT)
        called(LOSS, x.T[::2], y.T[::2], axis=1, **EXACT)


# ------------------------------------------------------------------------------------------------------ own arrays
def called_with_out(out, name, *given, **options):
    """Hold what a function writes to `out` to the bits of the CPU."""
    function, own = devices.of_function(name)[0], place(out)
    assert function(*map(place, given), **options, out=own) is own
    devices.assert_same_bits(out, function(*given, **options, dtype=out.dtype))


@pytest.mark.parametrize("layout", ["dense", "Fortran", "every second", "reversed"])
def test_out_takes_the_bits_of_the_cpu_and_is_what_is_returned(layout, rng):
    x, y = arrays(rng, LOSS, (6, 7, 5))
    for axis, shape in ((0, (7, 5)), (1, (6, 5)), (2, (6, 7))):
        wide = np.full((shape[0], 2 * shape[1]), 7.25, "float32")
        out = {
            "dense": np.full(shape, 7.25, "float32"),
            "Fortran": np.full(shape, 7.25, "float32", order="F"),
            "every second": wide[:, ::2],
            "reversed": np.full(shape, 7.25, "float32")[::-1, ::-1],
        }[layout]
        for reduction in REDUCED:
            out[...] = 7.25
            called_with_out(out, LOSS, x, y, axis=axis, reduction=reduction)
        assert (wide[:, 1::2] == 7.25).all()


def test_outs_of_value_and_gradient_take_the_bits_of_the_cpu(rng):
    x, y = arrays(rng, BOTH, (6, 9))
    where, function = rng.random((6, 9)) < 0.8, nbbce.binary_cross_entropy_value_and_grad
    for options in ({}, {"where": where}, {"keepdims": True, "reduction": "sum"}):
        expected = function(x, y, axis=1, dtype="float64", **options)
        outs = tuple(np.full(e.shape[::-1], 7.25).T for e in expected)
        on_device = {k: place(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        placed = tuple(map(place, outs))
        got = function(place(x), place(y), axis=1, dtype="float64", out=placed, **on_device)
        half = function(place(x), place(y), axis=1, dtype="float64", out=(None, placed[1]), **on_device)
        assert got[0] is placed[0]
        assert got[1] is half[1] is placed[1]
        for array, one, own in zip(outs, expected, (half[0], half[1]), strict=True):
            devices.assert_same_bits(array, one)
            devices.assert_same_bits(to_host(own), one)


# ------------------------------------------------------------------------------------------------------ validation
def test_validation_names_the_first_value_out_of_its_domain_and_leaves_out_as_it_was(rng):
    x, y = arrays(rng, LOSS, (40, 10))
    out = np.full(10, 7.25, "float32")
    for index in ((39, 9), (17, 3)):
        x[index] = 1.5
        message = rf"\Abinary_cross_entropy: values must be in \[0, 1\]; got input\[{index[0]}, {index[1]}\] = 1\.5\Z"
        for options in ({"axis": 0, "out": place(out)}, {"axis": 1}):
            with pytest.raises(ValueError, match=message):
                nbbce.binary_cross_entropy(place(x), place(y), validate=True, **options)
    assert (out == 7.25).all()
    where = x <= 1
    got = nbbce.binary_cross_entropy(place(x), place(y), where=place(where), axis=0, validate=True)
    devices.assert_same_bits(to_host(got), nbbce.binary_cross_entropy(x, y, where=where, axis=0))


def test_axis_that_is_none_is_the_error_of_the_cpu():
    x = place(np.full((2, 3), 0.5))
    with pytest.raises(np.exceptions.AxisError, match=r"\Abinary_cross_entropy: 'axis' must be an axis of 'input'; "):
        nbbce.binary_cross_entropy(x, x, axis=2)
    with pytest.raises(ValueError, match=r"\Abinary_cross_entropy: 'axis' must name each axis once; got \(0, -2\)\Z"):
        nbbce.binary_cross_entropy(x, x, axis=(0, -2))


# ------------------------------------------------------------------------------------------------------ empty arrays
EMPTY = [((3, 0), 1), ((0, 3), 0), ((0, 3), 1), ((3, 0), 0), ((2, 0, 4), 1), ((2, 0, 4), (0, 1)), ((0,), None)]
EMPTY += [((0, 3), None), ((0, 3), (0, 1))]


@pytest.mark.parametrize("function", [LOSS, BOTH, LOGITS[0], FOCAL[1]])
@pytest.mark.parametrize(("shape", "axis"), EMPTY, ids=str)
def test_sum_over_nothing_is_0_and_the_mean_nan(shape, axis, function):
    x = np.zeros(shape, np.float32)
    result = np.asarray(np.sum(x, axis=axis))
    called(function, x, x, reduction="sum", axis=axis)
    with warned_if(result.size):
        called(function, x, x, reduction="mean", axis=axis)
    for reduction, value in (("sum", 0.0), ("mean", np.nan)) if function == LOSS else ():
        out = np.full(result.shape, 7.25, "float32")
        own = place(out)
        with warned_if(result.size and reduction == "mean"):
            assert nbbce.binary_cross_entropy(place(x), place(x), reduction=reduction, axis=axis, out=own) is own
        np.testing.assert_array_equal(out, np.full(result.shape, value))


def test_results_without_an_element_of_inputs_with_none_are_empty():
    x = place(np.zeros((0, 3), "float32"))
    for where in (None, place(np.zeros((0, 3), bool))):
        value, gradient = nbbce.binary_cross_entropy_value_and_grad(x, x, axis=1, where=where)
        assert to_host(value).shape == (0,)
        assert to_host(gradient).shape == (0, 3)


def test_reduced_elements_are_all_of_them(rng):
    # One over the shapes: along the axes of a result there are as many elements as the mean divides by.
    x, y = np.full((3, 4, 5), 0.5), np.ones((3, 4, 5))
    for axes in (0, 1, 2, (0, 1), (0, 2), (1, 2)):
        got = to_host(nbbce.binary_cross_entropy(place(x), place(y), reduction="sum", axis=axes))
        count = math.prod(x.shape) // got.size
        np.testing.assert_allclose(got, count * np.log(2), rtol=1e-15)
