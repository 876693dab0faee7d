"""Sums and means of the device's kernels: the tree, its tails, products, what refuses them, grids."""

import devices
import numpy as np
import pytest
import simulator
from devices import FLOATS, FOCAL, LOGITS, PROBABILITIES, REDUCTIONS, aligned, as_tuple
from simulator import agree, place

import nbbce
from nbbce import _blocks_cuda, _cuda, _elements_cuda
from nbbce._generated_cuda import BLOCK

# Sizes around a row of lanes (256), the threshold of products (1024), a block (4096), and of three blocks.
ROW = [1, 2, 31, 255, 256, 257]
BLOCKS = [1023, 1024, 1025, 1279, 1280, 4095, 4096, 4097, 9001]


def sums():
    for kind, sizes in (("mixed", [*ROW, *BLOCKS]), ("hard", [1, 300, 1024, 1025, 4097, 9001]), ("soft", [1025, 4097])):
        yield from (("binary_cross_entropy", "float32", kind, size) for size in sizes)
    for kind, sizes in (("mixed", [3, 257, 4097]), ("hard", [1024, 1100, 4095, 5001]), ("soft", [1023])):
        yield from (("binary_cross_entropy", "float64", kind, size) for size in sizes)
    yield from (("binary_cross_entropy_with_logits", "float32", "mixed", size) for size in (1, 255, 1024, 1025, 4097))
    yield from (("binary_cross_entropy_with_logits", "float64", "mixed", size) for size in (5, 1024, 4097))
    yield from (("sigmoid_focal_loss", "float32", "mixed", size) for size in (3, 300))
    yield ("sigmoid_focal_loss", "float64", "mixed", 257)
    for dtype in ("float16", "bfloat16"):
        yield from (("binary_cross_entropy", dtype, kind, 1025) for kind in ("hard", "soft"))
        yield ("binary_cross_entropy_with_logits", dtype, "mixed", 1025)


@pytest.mark.parametrize(("function", "dtype", "kind", "size"), list(sums()))
def test_mean_has_the_bits_of_the_cpu(function, dtype, kind, size, rng):
    function, logits = devices.of_function(function)
    x = devices.predictions(rng, size, FLOATS[dtype], logits)
    y = devices.labels(rng, size, FLOATS[dtype], kind)
    # In float64, so that no bit of the sum is rounded away.
    agree(function, x, y, reduction="mean", dtype="float64")


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("weight", [None, "array"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sum_rounded_to_16_bits_is_within_half_a_unit_and_1e_5_of_the_exact(dtype, weight, kind, rng):
    # Such a sum takes the device's own logarithm, so its bits are not those of the CPU.  Products are (hard labels).
    x, y = devices.predictions(rng, 1500, FLOATS[dtype]), devices.labels(rng, 1500, FLOATS[dtype], kind)
    x[:2] = 0, 1
    weight = None if weight is None else rng.random(1500).astype(np.float32)
    (got,), (exact,) = simulator.both(nbbce.binary_cross_entropy, x, y, weight, reduction="sum")
    exact = nbbce.binary_cross_entropy(x, y, weight, reduction="sum", dtype="float64")
    digits = {"float16": 11, "bfloat16": 8}[dtype]
    unit = 2.0 ** (np.floor(np.log2(exact)) + 1 - digits)
    assert got.dtype == FLOATS[dtype]
    assert abs(float(got) - exact) <= unit / 2 + 1e-5 * exact


@pytest.mark.parametrize("kind", ["hard", "soft", "mixed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", ["binary_cross_entropy_value_and_grad", LOGITS[2]])
def test_value_and_gradient_of_a_block_have_the_bits_of_the_cpu(function, dtype, kind, rng):
    function, logits = devices.of_function(function)
    x, y = devices.predictions(rng, 1300, dtype, logits), devices.labels(rng, 1300, dtype, kind)
    agree(function, x, y, reduction="sum")


def refused():
    """Hard labels whose product is refused, by name: predictions, labels."""
    rng = np.random.default_rng(5)
    x, y = rng.random(1100), (rng.random(1100) < 0.5).astype(float)
    for name, place_, value in (("0", 3, 0.0), ("1", 1099, 1.0), ("beyond 1", 1050, 1.5), ("NaN", 700, np.nan)):
        changed = x.copy()
        changed[place_] = value
        yield name, changed, y
    yield "negative", np.where(np.arange(1100) == 900, -0.25, x), y
    yield "sum that is tiny", np.where(y == 1, 1 - 1e-9, 1e-9), y
    yield "sum that is 0", y, y
    yield "product that is tiny", np.where(y == 1, 1e-30, 1 - 1e-3), y
    yield "soft label behind the first eight", x, np.where(np.arange(1100) == 8, 0.5, y)
    yield "soft label in the tail", x, np.where(np.arange(1100) == 1099, 0.5, y)
    yield "label 2", x, np.where(np.arange(1100) == 1099, 2.0, y)


REFUSED = {name: (x, y) for name, x, y in refused()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", list(REFUSED))
def test_block_whose_product_is_refused_has_the_bits_of_the_cpu(name, dtype):
    x, y = (a.astype(dtype) for a in REFUSED[name])
    agree(nbbce.binary_cross_entropy_value_and_grad, x, y, reduction="sum")


@pytest.mark.parametrize(
    ("function", "dtype"), [("binary_cross_entropy", "float32"), (LOGITS[0], "float32"), (LOGITS[0], "float64")]
)
def test_sum_of_each_pair_of_edges_has_the_bits_of_the_cpu(function, dtype):
    function, logits = devices.of_function(function)
    x, y = devices.pairs_of_edges(dtype, logits)
    with np.errstate(invalid="ignore"):
        costs = np.asarray(function(x, y, reduction="none", validate=False))
    agree(function, x, y, reduction="sum")
    finite = np.isfinite(costs)  # without what is NaN or infinite there is a number to compare
    assert finite.sum() > 100
    agree(function, x[finite], y[finite], reduction="sum")


def test_sum_with_an_infinite_loss_is_infinite():
    x, y = np.array([np.inf, 0.5] * 600), np.zeros(1200)
    for dtype in ("float32", "float64"):
        value = nbbce.binary_cross_entropy_with_logits(place(x.astype(dtype)), place(y.astype(dtype)))
        assert value.copy_to_host() == np.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_grid_makes_no_difference_to_the_bits(grid, dtype, rng, monkeypatch):
    x, y = devices.predictions(rng, 3 * 4096 + 5, dtype), devices.labels(rng, 3 * 4096 + 5, dtype)
    run, grids = _cuda.compiler.run, []

    def with_grid(spec, device, stream, wanted, threads, arguments):
        grids.append(wanted)
        run(spec, device, stream, grid, threads, arguments)

    monkeypatch.setattr(_cuda.compiler, "run", with_grid)
    agree(nbbce.binary_cross_entropy, x, y)
    assert len(grids) == 1


def test_sums_of_more_blocks_than_lanes_are_added_as_the_cpu_adds_them(monkeypatch):
    # In each of 600 blocks the first element alone costs something, 1000 times its weight; so a block's sum can be
    # read, where the simulator would take minutes to compute it.  What is tested is how 600 of them are added.
    # What runs PTX computes them all.
    def first_alone(spec):
        read = _elements_cuda._reader(spec, "weight", 1)

        def sum_of_losses(begin, count, at, layout, writing, scale, numbers):
            return np.float64(read(at, begin, layout)[0]) * 1000.0

        return sum_of_losses

    if not simulator.ON_PTX:
        monkeypatch.setattr(_blocks_cuda, "_sum_of_losses", first_alone)
    monkeypatch.setattr(_cuda, "_kernels", {})
    monkeypatch.setattr(_cuda, "_known", {})
    rng = np.random.default_rng(11)
    weight = np.zeros((600, BLOCK))
    weight[:, 0] = rng.normal(size=600) * 10.0 ** rng.integers(-8, 9, 600)
    x, y = np.full(weight.shape, 1000.0), np.zeros(weight.shape, np.int8)
    agree(nbbce.binary_cross_entropy_with_logits, x, y, weight, "sum")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", [PROBABILITIES[0], LOGITS[0], FOCAL[0]])
def test_sum_of_no_element_is_0_and_the_mean_nan(function, reduction):
    function, _ = devices.of_function(function)
    for shape in ((0,), (3, 0)):
        x = np.zeros(shape, np.float32)
        if reduction == "sum":
            agree(function, x, x, reduction=reduction)
        else:
            with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$"):
                agree(function, x, x, reduction=reduction)


def test_room_for_sums_grows_and_larger_and_smaller_calls_have_the_bits_of_the_cpu(rng, monkeypatch):
    monkeypatch.setattr(_cuda, "_rooms", {})
    for size, blocks in ((5000, 2), (9000, 4), (5000, 4), (13000, 4), (300, 4)):
        x, y = devices.predictions(rng, size, "float32"), devices.labels(rng, size, "float32")
        agree(nbbce.binary_cross_entropy, x, y)
        ((_, _, room),) = _cuda._rooms.values()
        assert room == blocks


@pytest.mark.parametrize("weight", [None, 3.0, -(2.0**70), 2.0**-70])
@pytest.mark.parametrize("deviation", [3.0, 60.0])
def test_gradients_of_logits_made_of_the_exponentials_of_products_have_the_bits_of_the_cpu(deviation, weight, rng):
    # A whole block, one that products refuse, and one too short for them; beyond 80 the exponential is another.
    size = 2 * BLOCK + 700
    z = rng.normal(0.0, deviation, size).astype(np.float32)
    z[BLOCK : 2 * BLOCK] = 90.0
    y = (rng.random(size) < 0.5).astype(np.float32)
    y[BLOCK : 2 * BLOCK] = 1.0
    z[5:9], y[5:9] = [np.inf, -np.inf, 80.0, -80.00001], [1.0, 0.0, 0.25, -0.0]
    agree(nbbce.binary_cross_entropy_with_logits_value_and_grad, z, y, weight)
    z[[3, BLOCK - 1]], y[[7, size - 1]] = np.nan, 1.5
    agree(nbbce.binary_cross_entropy_with_logits_value_and_grad, z, y, weight)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", [*PROBABILITIES, *LOGITS])
def test_calls_alike_launch_alike_with_arrays_of_their_own(function, reduction, rng, monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {})
    function, logits = devices.of_function(function)
    for count, shape, offset in ((1, (5, 8), 0), (1, (5, 8), 0), (2, (8, 5), 0), (3, (8, 5), 1), (3, (5, 8), 0)):
        x = aligned(devices.predictions(rng, shape, "float32", logits), offset)
        y = aligned(devices.labels(rng, shape, "float32"))
        agree(function, x, y, reduction=reduction)
        assert len(_cuda._known) == count
    if reduction != "none" and "value" in function.__name__:
        x, y = devices.predictions(rng, 9000, "float32", logits), devices.labels(rng, 9000, "float32")
        agree(function, x, y, reduction=reduction)
        monkeypatch.setattr(_cuda, "_rooms", {})  # another stream's would be elsewhere too
        agree(function, x, y, reduction=reduction)
        assert len(_cuda._known) == 4


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "names",
    [
        ("weight",),
        ("pos_weight",),
        ("where",),
        ("grad_output",),
        ("dtype",),
        ("weight", "where", "grad_output", "dtype"),
    ],
    ids="+".join,
)
def test_calls_alike_with_arrays_for_options_launch_alike(names, reduction, rng, monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {})
    for function in (PROBABILITIES[2], LOGITS[2]):
        function, logits = devices.of_function(function)
        for _ in range(3):
            x = aligned(devices.predictions(rng, (5, 8), "float32", logits))
            options = {
                "weight": aligned(rng.random(8)),
                "pos_weight": aligned(rng.random((5, 1), "float32")),
                "where": aligned(rng.random((5, 8)) < 0.5),
                "grad_output": aligned(rng.random((5, 8))) if reduction == "none" else np.array(rng.random()),
                "dtype": "float64",
            }
            agree(
                function,
                x,
                aligned(devices.labels(rng, (5, 8), "float32")),
                reduction=reduction,
                **{name: options[name] for name in names},
            )
    # A masked mean counts first.
    assert len(_cuda._known) == (0 if "where" in names and reduction == "mean" else 2)


def test_calls_alike_with_outs_or_strides_launch_alike(rng, monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {})
    for _ in range(3):
        x = aligned(devices.predictions(rng, (6, 8), "float32"))
        y = aligned(devices.labels(rng, (6, 8), "float32"))
        agree(nbbce.binary_cross_entropy_value_and_grad, x[:, ::2], y[:, ::2])
        agree(nbbce.binary_cross_entropy_value_and_grad, x.T, y.T, reduction="none")
        out = place(aligned(np.zeros((6, 8), np.float32)))
        assert nbbce.binary_cross_entropy(place(x), place(y), reduction="none", out=out) is out
        devices.assert_same_bits(out.copy_to_host(), nbbce.binary_cross_entropy(x, y, reduction="none"))
        assert len(_cuda._known) == 3


def test_calls_alike_with_numbers_or_along_an_axis_launch_alike(rng, monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {})
    functions = (nbbce.binary_cross_entropy, nbbce.binary_cross_entropy_grad, nbbce.sigmoid_focal_loss)
    asked = [
        (functions[0], {"weight": 2.0}),
        (functions[0], {"weight": -2.0}),
        (functions[0], {"pos_weight": 2.0}),
        (functions[0], {"label_smoothing": 0.1}),
        (functions[0], {"axis": 1}),
        (functions[0], {"axis": 1, "keepdims": True}),
        (functions[1], {"grad_output": 2.0}),
        (functions[1], {"grad_output": 3}),
        (functions[2], {}),
        (functions[2], {"gamma": 1.0, "reduction": "sum"}),
        (functions[2], {"alpha": 0.5, "gamma": 1.0, "reduction": "sum"}),
    ]
    for _ in range(3):
        x, y = aligned(devices.predictions(rng, (6, 8), "float32")), aligned(devices.labels(rng, (6, 8), "float32"))
        for function, options in asked:
            agree(function, x, y, **options)
        assert len(_cuda._known) == len(asked)


def test_zeros_of_either_sign_and_what_is_equal_to_an_axis_are_told_apart(rng):
    x, y = devices.predictions(rng, (6, 8), "float32"), devices.labels(rng, (6, 8), "float32")
    for _ in range(2):
        for zero in (0.0, -0.0):
            agree(nbbce.binary_cross_entropy, x, y, zero, "none")
            agree(nbbce.binary_cross_entropy_grad, x, y, grad_output=zero)
        agree(nbbce.binary_cross_entropy, x, y, axis=1)
        with pytest.raises(TypeError, match="'axis' must be"):
            nbbce.binary_cross_entropy(place(x), place(y), axis=True)


def test_calls_that_wait_name_a_stream_or_launch_twice_are_not_remembered(rng, monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {})
    x, y = devices.predictions(rng, (6, 8), "float32"), devices.labels(rng, (6, 8), "float32")
    agree(nbbce.binary_cross_entropy, x, y, where=y > 0.5)
    agree(nbbce.binary_cross_entropy_value_and_grad, x, y, axis=0)
    nbbce.binary_cross_entropy(place(x), place(y), validate=True)
    nbbce.binary_cross_entropy(place(x), place(y), stream=0)
    agree(nbbce.binary_cross_entropy, x, y, np.float32(2.0))
    assert _cuda._known == {}


def test_no_more_calls_than_a_limit_are_remembered(rng, monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {})
    monkeypatch.setattr(_cuda, "MOST_REMEMBERED", 3)
    for size in range(1, 9):
        agree(
            nbbce.binary_cross_entropy, devices.predictions(rng, size, "float32"), devices.labels(rng, size, "float32")
        )
        assert len(_cuda._known) <= 3


def test_calls_one_after_another_give_the_same_bits(rng):
    x, y = (place(a) for a in (devices.predictions(rng, 5000, "float32"), devices.labels(rng, 5000, "float32")))
    first, second = (as_tuple(nbbce.binary_cross_entropy(x, y))[0].copy_to_host() for _ in range(2))
    devices.assert_same_bits(first, second)
