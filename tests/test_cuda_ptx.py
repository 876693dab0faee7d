"""What kernels are compiled to, run on the host by tests/ptx.py: the bits of the CPU, and no step that is forbidden.

It is the text that the linker makes machine code of, where Numba's simulator runs the source; so inline assembly,
conversions, the order of operations, and threads of several warps are those of a device.
"""

import gc
import weakref

import numpy as np
import pytest
import test_cuda_code
from devices import (
    FLOATS,
    LOGITS,
    PROBABILITIES,
    aligned,
    as_tuple,
    assert_same_bits,
    called_on_both,
    labels,
    pairs_of_edges,
    predictions,
)

import nbbce
from nbbce._generated_cpu import BLOCK

pytestmark = test_cuda_code.needs_compiler

if not test_cuda_code.MISSING:
    import device_code
    import ptx
    import ptx_device
    from ptx_device import place

    from nbbce import _arguments, _axes_cuda, _call, _cuda


@pytest.fixture(scope="module")
def driver():
    with ptx_device.installed() as driver:
        yield driver


@pytest.fixture
def device(driver):
    """The device; what is allocated on it is freed after the test."""
    driver.launched.clear()
    yield driver
    ptx_device.forget_arrays()


def agree(function, *arrays, **options):
    """Assert that the bits are those of the CPU."""
    got, expected = called_on_both(place, lambda array: array.copy_to_host(), function, *arrays, **options)
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one, other)


# ------------------------------------------------------------------------------------------------ every kind of kernel
LOSS, GRADIENT, BOTH = (getattr(nbbce, name) for name in PROBABILITIES)
OF_LOGITS, GRADIENT_OF_LOGITS, BOTH_OF_LOGITS, WITH_HESSIAN = (getattr(nbbce, name) for name in LOGITS)
FOCAL, BOTH_OF_FOCAL = nbbce.sigmoid_focal_loss, nbbce.sigmoid_focal_loss_value_and_grad
NONE, SUM = {"reduction": "none"}, {"reduction": "sum"}
SIZE = 3 * BLOCK + 700  # whole blocks and the start of one


def pair(shape=SIZE, dtype="float32", of=LOSS, kind="mixed", target=None):
    """Predictions and labels of a function."""
    rng = np.random.default_rng(3)
    dtype = FLOATS[dtype]
    x = predictions(rng, shape, dtype, logits=of not in (LOSS, GRADIENT, BOTH))
    return aligned(x), aligned(labels(rng, shape, target or dtype, kind))


def misaligned(array):
    return aligned(array, offset=1)


def strided(array):
    """Every other element of rows that are longer."""
    rows = np.zeros((125, 203), array.dtype)
    rows[:, :200:2] = array[:12500].reshape(125, 100)
    return rows[:, :200:2]


def calls():
    """A call for each kernel whose machine code is read: function, arrays, options."""
    weight = np.linspace(0, 3, SIZE).astype(np.float32)
    mask = np.arange(SIZE) % 7 != 3
    x, y = pair()
    hard = pair(target="uint8", kind="hard")
    rows, columns = pair((500, 10), kind="hard"), pair((600, 10), kind="hard")
    return {
        "each: loss, float32": (LOSS, x, y, NONE),
        "each: loss, float64": (LOSS, *pair(dtype="float64"), NONE),
        "each: loss, float16": (LOSS, *pair(dtype="float16"), NONE),
        "each: loss, bfloat16": (LOSS, *pair(dtype="bfloat16"), NONE),
        "each: loss, float32, labels of uint8": (LOSS, *hard, NONE),
        "each: loss, float32, weight": (LOSS, x, y, NONE | {"weight": weight}),
        "each: loss, float32, misaligned": (LOSS, misaligned(x), y, NONE),
        "each: loss, float32, strided": (LOSS, *map(strided, hard), NONE),
        "each: gradient, float32": (GRADIENT, x, y, NONE),
        "each: gradient of a mean, float32": (GRADIENT, x, y, {}),
        "each: gradient, float64": (GRADIENT, *pair(dtype="float64"), NONE),
        "each: loss and gradient, float32": (BOTH, x, y, NONE),
        "each: loss of logits, float32": (OF_LOGITS, *pair(of=OF_LOGITS), NONE),
        "each: gradient of logits, float32": (GRADIENT_OF_LOGITS, *pair(of=OF_LOGITS), NONE),
        "each: gradient and hessian of logits, float32": (WITH_HESSIAN, *pair(of=OF_LOGITS), NONE),
        "sum: float32": (LOSS, x, y, {}),
        "sum: float64": (LOSS, *pair(dtype="float64"), {}),
        "sum: float16": (LOSS, *pair(dtype="float16", kind="hard"), {}),
        "sum: bfloat16": (LOSS, *pair(dtype="bfloat16", kind="hard"), {}),
        "sum: float32, labels of uint8": (LOSS, *hard, {}),
        "sum: float32, weight": (LOSS, x, y, {"weight": weight}),
        "sum: float32, mask": (LOSS, x, y, SUM | {"where": mask}),
        "sum: float32, strided": (LOSS, *map(strided, hard), {}),
        "sum: float32, shares": (LOSS, x, y, {"label_smoothing": 0.125}),
        "sum: logits, float32": (OF_LOGITS, *pair(of=OF_LOGITS), {}),
        "sum: logits, float64": (OF_LOGITS, *pair(dtype="float64", of=OF_LOGITS), {}),
        "sum: focal, float32": (FOCAL, *pair(of=FOCAL), SUM),
        "sum and gradient: float32": (BOTH, x, y, {}),
        "sum and gradient: logits, float32": (BOTH_OF_LOGITS, *pair(of=OF_LOGITS), {}),
        "rows: float32": (LOSS, *rows, {"axis": 1}),
        "rows: logits, float32": (OF_LOGITS, *pair((500, 10), of=OF_LOGITS, kind="hard"), {"axis": 1}),
        "rows: float64": (LOSS, *pair((500, 10), dtype="float64"), {"axis": 1}),
        "rows: count": (LOSS, *rows, {"axis": 1, "where": np.arange(5000).reshape(500, 10) % 7 != 3}),
        "columns: float32": (LOSS, *columns, {"axis": 0}),
        "columns: logits, float32": (OF_LOGITS, *pair((600, 10), of=OF_LOGITS, kind="hard"), {"axis": 0}),
        "columns: float64": (LOSS, *pair((600, 10), dtype="float64"), {"axis": 0}),
        "segments: float32": (LOSS, *pair((5000, 10), kind="hard"), {"axis": 0}),
        "count": (LOSS, x, y, {"where": mask}),
    }


@pytest.mark.parametrize("name", test_cuda_code.NAMES)
def test_kernel_has_the_bits_of_the_cpu(name, device):
    if name == "check: float32":
        x, y = pair()
        assert_same_bits(LOSS(place(x), place(y), validate=True).copy_to_host(), LOSS(x, y))
        x[[9000, 12000]] = 1.5
        with pytest.raises(ValueError, match=r"got input\[9000\] = 1\.5"):
            LOSS(place(x), place(y), validate=True)
    else:
        function, *arrays, options = calls()[name]
        agree(function, *arrays, **options)
    assert device_code.specs()[name] in device.launched


MASK = np.arange(SIZE) % 7 != 3
WEIGHT = np.linspace(-1, 3, SIZE, dtype=np.float32)
OPTIONS = {
    "mask": {"where": MASK},
    "mask and weight": {"where": MASK, "weight": WEIGHT},
    "mask and factor": {"where": MASK, "grad_output": -0.7},
    "weight": {"weight": WEIGHT},
    "pos_weight": {"pos_weight": WEIGHT + 1},
    "pos_weight, weight and mask": {"pos_weight": 3.0, "weight": WEIGHT, "where": MASK},
    "smoothing": {"label_smoothing": 0.125},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("function", "reduction"), [(BOTH, "mean"), (BOTH_OF_LOGITS, "mean"), (WITH_HESSIAN, "none")])
def test_derivatives_with_options_have_the_bits_of_the_cpu(function, reduction, options, device):
    agree(function, *pair(of=function), reduction=reduction, **options)


@pytest.mark.parametrize("function", [GRADIENT, GRADIENT_OF_LOGITS])
def test_factors_that_a_mask_leaves_out_may_be_anything(function, device):
    factors = np.where(MASK, WEIGHT, np.nan)
    agree(function, *pair(of=function), reduction="none", where=MASK, grad_output=factors, weight=WEIGHT)


@pytest.mark.parametrize("options", [{}, {"where": MASK, "weight": WEIGHT}], ids=["plain", "mask and weight"])
@pytest.mark.parametrize("gamma", [1.5, 2.0])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_focal_losses_and_gradients_have_the_bits_of_the_cpu(dtype, gamma, options, device):
    for reduction in ("none", "sum"):
        agree(BOTH_OF_FOCAL, *pair(dtype=dtype, of=FOCAL), reduction=reduction, gamma=gamma, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_device_that_converts_one_by_one_has_the_bits_of_the_cpu(dtype):
    with ptx_device.installed((7, 5)) as device:
        agree(LOSS, *pair(dtype=dtype), **NONE)
        agree(LOSS, *pair(dtype=dtype, kind="hard"))
        assert [spec.pairs for spec in device.launched] == [False, False]
    ptx_device.forget_arrays()


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("function", [LOSS, OF_LOGITS])
def test_nan_of_either_sign_is_the_loss_of_its_row_or_column_alone(function, axis, device):
    for sign in (1.0, -1.0):
        for label in (0.0, 1.0):
            x, y = np.full((40, 30), 0.25, np.float32), np.full((40, 30), label, np.float32)
            x[7, 9] = np.copysign(np.nan, sign)
            losses = function(place(x), place(y), axis=axis).copy_to_host()
            assert np.flatnonzero(np.isnan(losses)).tolist() == [{None: 0, 0: 9, 1: 7}[axis]]


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("function", [GRADIENT, BOTH, WITH_HESSIAN])
def test_gradient_of_a_mean_whose_mask_keeps_nothing_is_0(function, axis, device):
    x, y = pair((5, 8))
    nothing = np.zeros((5, 8), bool)
    *_, gradient = as_tuple(function(place(x), place(y), where=place(nothing), axis=axis))
    assert not gradient.copy_to_host().any()


@pytest.mark.parametrize("length", [10, 40])
def test_rows_whose_sums_of_products_are_refused_have_the_bits_of_the_cpu(length, device):
    z = np.full((24, length), 50.0, np.float32)  # of the right sign: the sum is far below 2**-64
    agree(OF_LOGITS, z, np.ones_like(z), axis=1)


# -------------------------------------------------------------------------------------------------------- many values
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("function", [LOSS, OF_LOGITS])
def test_every_number_of_16_bits_has_the_bits_of_the_cpu(function, dtype, device):
    x = np.arange(2**16, dtype=np.uint16).view(FLOATS[dtype])
    for label in (0, 1, 0.3):
        agree(function, x, np.full(x.shape, label, x.dtype), **NONE)


def patterns(rng, dtype, size, logits):
    """Numbers of every exponent; predictions from 0 to 1."""
    bits = np.dtype(dtype).itemsize * 8
    found = rng.integers(0, 1 << bits, size, np.uint64).astype(f"u{bits // 8}").view(dtype)
    if logits:
        return found
    near_0 = np.abs(found[np.abs(found) < 0.5])
    return np.where(np.arange(near_0.size) % 2, near_0, np.asarray(rng.random(near_0.size), dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [BOTH, WITH_HESSIAN])
def test_numbers_of_every_exponent_have_the_bits_of_the_cpu(function, dtype, device, rng):
    x = patterns(rng, dtype, 200_000, function is WITH_HESSIAN)
    for y in (rng.random(x.size) < 0.5, rng.random(x.size)):
        agree(function, x, y.astype(dtype), **NONE)


@pytest.mark.parametrize("function", [BOTH, BOTH_OF_LOGITS])
def test_each_pair_of_edges_has_the_bits_of_the_cpu(function, device):
    for reduction in ("none", "sum"):
        agree(function, *pairs_of_edges("float32", function is BOTH_OF_LOGITS), reduction=reduction)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 127, 128, 129, 511, 1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1])
def test_sizes_around_warps_and_blocks_have_the_bits_of_the_cpu(size, device):
    for reduction in ("none", "mean"):
        for kind in ("hard", "soft"):
            agree(BOTH, *pair(size, kind=kind), reduction=reduction)


def test_600_blocks_are_added_as_the_cpu_adds_them(device, rng):
    size = 600 * BLOCK - 5
    agree(LOSS, predictions(rng, size, "float32"), labels(rng, size, "float32", "hard"), dtype="float64")


def test_any_byte_of_a_bool_array_but_0_is_true(device, rng):
    x, odd = predictions(rng, 600, np.float32), rng.choice(np.array([0, 1, 2, 255], np.uint8), 600).view(bool)
    for target, options in ((odd, {}), (x, {"weight": odd}), (x, {"pos_weight": odd}), (x, {"where": odd})):
        agree(BOTH, x, target, reduction="none", **options)
    agree(LOSS, x, x, weight=odd)


def test_sum_and_mean_are_one_kernel():
    with ptx_device.installed() as device:
        for reduction in ("sum", "mean"):
            agree(LOSS, *pair(100), reduction=reduction)
        assert len(set(device.launched)) == 1
    ptx_device.forget_arrays()


def test_predictions_that_are_broadcast_are_walked_in_the_order_of_the_result(device, rng, monkeypatch):
    run, layouts = device.run, []

    def noting(kernel, index, stream, grid, threads, arguments):
        if kernel.spec.task == "each":
            layouts.append(arguments[-kernel.spec.numbers_in_layout :][:2])
        run(kernel, index, stream, grid, threads, arguments)

    monkeypatch.setattr(device, "run", noting)
    x, y = predictions(rng, 9, "float32"), labels(rng, (6, 9), "float32")
    for row_first in (True, False):
        shape = (6, 9) if row_first else (9, 6)
        repeated = np.broadcast_to(x if row_first else x[:, None], shape)
        agree(LOSS, repeated, y.reshape(shape), **NONE)
    agree(GRADIENT, *pair((60, 8)), axis=0, where=rng.random((60, 8)) < 0.7)  # a factor for each column comes in
    assert layouts == [(6, 9), (9, 6), (60, 8)]


# Elements of a thread block: 128 threads, of two each; or four warps, of a block of the sum each.
@pytest.mark.parametrize(("reduction", "taken"), [("none", 256), ("mean", 4 * BLOCK)])
def test_last_of_more_than_2_to_the_31_elements_has_the_bits_of_the_cpu(reduction, taken, device, rng, monkeypatch):
    # Rows are all one row in memory, and of as many thread blocks as there is work for, the last alone is run.
    rows, columns = 2**31 // BLOCK + 8, BLOCK
    row_x, row_y = predictions(rng, columns, "float32"), labels(rng, columns, "float32", "hard")
    x, y = (ptx_device.Array(np.broadcast_to(place(a).values, (rows, columns))) for a in (row_x, row_y))
    seen = []

    def last_alone(kernel, index, stream, grid, threads, arguments):
        grid = rows * columns // taken
        ptx.run(kernel.kernel, ptx_device.memory, grid, threads, arguments, [grid - 1])
        seen.append((threads, arguments))

    monkeypatch.setattr(device, "run", last_alone)
    result = LOSS(x, y, reduction=reduction)
    ((threads, arguments),) = seen
    assert threads == 128
    if reduction == "none":
        assert_same_bits(result.values[-1, -taken:], LOSS(row_x, row_y, reduction="none")[-taken:])
        assert not result.values[-1, :-taken].any()
    else:
        start = arguments[_cuda.SUMS_AT] - ptx_device.memory.base
        sums = ptx_device.memory.bytes[start : start + 8 * rows].view(np.float64)
        assert sums[-4:].tolist() == [LOSS(row_x, row_y, reduction="sum", dtype="float64")] * 4
        assert not sums[:-4].any()


# ------------------------------------------------------------------------------------------------ what a launch costs
@pytest.fixture
def tally(device):
    """What launches cost from here on."""
    device.tally = ptx.Tally()
    yield device.tally
    device.tally = None


# Not those whose threads read elements apart, and those that count masks, one byte to a thread.
DENSE = [
    name
    for name in test_cuda_code.NAMES
    if not any(word in name for word in ("strided", "misaligned", "count", "mask"))
]


@pytest.mark.parametrize("name", [name for name in DENSE if "check" not in name and "segments" not in name])
def test_threads_of_a_warp_ask_for_whole_sectors(name, tally):
    function, *arrays, options = calls()[name]
    agree(function, *arrays, **options)
    assert tally.wanted >= sum(array.nbytes for array in arrays)
    # A thread takes four float64 of a sum, by two accesses side by side: the second finds its sectors in the cache.
    twice = name in ("sum: float64", "sum: logits, float64")
    assert tally.fetched <= (2.05 if twice else 1.1) * tally.wanted


@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 10, 12, 16, 24, 30, 32, 48, 60, 64])
def test_threads_that_read_rows_wait_for_no_bank(length, tally):
    for kind in ("hard", "soft"):
        agree(LOSS, *pair((3000 // length, length), kind=kind), axis=1)
    assert tally.least_turns > 0
    assert tally.turns <= 1.15 * tally.least_turns


def test_slots_are_of_the_index_and_of_whole_rows_and_rounds_of_banks():
    for length in range(1, _axes_cuda.PIECE + 1):
        period, index = np.lcm(length, _axes_cuda.BANKS), np.arange(_axes_cuda.PIECE)
        product = index * _axes_cuda.inverse_of(length)
        assert product.max() < 2**32
        slots = index + (product >> _axes_cuda.FRACTION)
        assert (slots == index + index // period).all()
        assert slots.max() < _axes_cuda.SLOTS


# ------------------------------------------------------------------------------------------- what the machine refuses
HEAD = """.version 8.0
.target sm_90
.address_size 64
.visible .shared .align 8 .b8 room[256];
.visible .entry kernel(.param .u64 a, .param .u64 b) .maxntid 128, 1, 1
{
    .reg .pred %p<9>; .reg .f32 %f<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    mov.u32 %r2, room;
    shl.b32 %r3, %r1, 2;
    add.s32 %r4, %r2, %r3;
    cvt.u64.u32 %rd5, %r4;
"""


def launched(body, threads=64, arguments=None, words=64, tally=None):
    """What 64 threads make of as many words of zeros."""
    memory = ptx.Memory(1 << 20)
    room = memory.allocate(4 * words).view(np.uint32)
    room[...] = 0
    kernel = ptx.parse(f"{HEAD}{body}\nret;\n}}")
    ptx.run(kernel, memory, 1, threads, [room.ctypes.data, 7] if arguments is None else arguments, tally=tally)
    return room


def test_threads_write_where_they_are_told():
    assert (launched("st.global.u32 [%rd4], %r1;") == np.arange(64)).all()


def test_threads_that_part_meet_again():
    body = """
        setp.gt.u32 %p1, %r1, 20;
        mov.u32 %r5, 1;
        @%p1 bra $L1;
        mov.u32 %r5, 2;
    $L1:
        vote.sync.any.pred %p2, %p1, -1;
        selp.u32 %r6, 10, 0, %p2;
        add.s32 %r7, %r5, %r6;
        st.global.u32 [%rd4], %r7;"""
    assert (launched(body) == np.where(np.arange(64) > 20, 11, 12)).all()


def test_registers_of_a_scope_hide_those_without():
    body = "mov.u32 %r5, 3; { .reg .b32 %r5; mov.u32 %r5, 4; } st.global.u32 [%rd4], %r5;"
    assert (launched(body) == 3).all()


def test_values_are_shuffled_within_a_warp():
    body = "shfl.sync.down.b32 %r5|%p1, %r1, 16, 31, -1; st.global.u32 [%rd4], %r5;"
    lane = np.arange(64) % 32
    assert (launched(body) == np.arange(64) + np.where(lane < 16, 16, 0)).all()


def test_halves_are_rounded_to_the_nearest():
    # 1 + 3 * 2**-11 lies between two floats of 10 bits, and the even one is the upper; of 7 bits 1 is nearest.
    body = """mov.f32 %f1, 0f3F803000; mov.f32 %f2, 0fC0000000;
        cvt.rn.f16x2.f32 %r5, %f1, %f2; cvt.rn.bf16x2.f32 %r6, %f2, %f1;
        add.s64 %rd6, %rd1, 4; st.global.u32 [%rd1], %r5; st.global.u32 [%rd6], %r6;"""
    assert launched(body, 32)[:2].tolist() == [0x3C02C000, 0xC0003F80]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("mul.f32 %f3, %f1, %f2;", "rounding is left to the next compiler: mul.f32"),
        ("fma.rn.ftz.f32 %f3, %f1, %f2, %f1;", "rounding is left to the next compiler: fma.rn.ftz"),
        ("sin.approx.f32 %f3, %f1;", "no such instruction is known: sin.approx"),
        ("ld.global.u32 %r5, [%rd4+256];", "outside of what is allocated"),
        ("st.global.u32 [%rd4+-4], %r5;", "outside of what is allocated"),
        ("st.global.u64 [%rd1+4], %rd5;", "access of 8 bytes not at a multiple"),
        ("st.shared.u32 [%rd5+4], %r1;", "outside of it"),
        ("st.shared.u32 [room], %r1;", "two threads write to the same place"),
        ("setp.gt.u32 %p1, %r1, 40; @%p1 bra $L1; bar.sync 0; $L1:", "wait for others that never come"),
        ("setp.gt.u32 %p1, %r1, 5; @%p1 bra $L1; bar.warp.sync -1; $L1:", "wait for others that never come"),
        ("bar.warp.sync 255;", "not for the whole warp"),
        ("bar.sync 1;", "a barrier of its own"),
        ("bar.sync 0, 32;", "a barrier of its own"),
        ("setp.gt.u32 %p1, %r1, 5; @%p1 bar.sync 0;", "a barrier for some"),
        ("mov.u32 %r5, 0; div.u32 %r6, %r1, %r5;", "divided by zero"),
        ("st.shared.u32 [%rd5], %r1; bar.sync 0; ld.shared.u64 %rd6, [room];", "are of one size"),
        ("ld.shared.u32 %r5, [%rd5];", "reads shared memory that nobody has written"),
    ],
)
def test_what_a_device_may_answer_otherwise_is_a_fault(body, says):
    with pytest.raises(ptx.Fault, match=says):
        launched(body)


def test_read_of_what_only_some_threads_have_written_is_a_fault():
    memory = ptx.Memory(1 << 20)
    room = memory.allocate(4 * 64, unwritten=True).view(np.uint32)
    body = "setp.lt.u32 %p1, %r1, COUNT; @%p1 st.global.u32 [%rd4], %r1; ld.global.u32 %r5, [%rd4];"
    some, all_of_them = (ptx.parse(f"{HEAD}{body.replace('COUNT', count)}\nret;\n}}") for count in ("63", "64"))
    with pytest.raises(ptx.Fault, match=r"^reads what nobody has written: ld\.global\.u32 "):
        ptx.run(some, memory, 1, 64, [room.ctypes.data, 7])
    ptx.run(all_of_them, memory, 1, 64, [room.ctypes.data, 7])
    assert (room == np.arange(64)).all()


def test_what_is_computed_of_a_nan_is_that_of_a_device_and_what_is_moved_stays():
    body = """mov.f32 %f1, 0fFFC00123; add.rn.f32 %f2, %f1, %f1; neg.f32 %f3, %f1; mov.f32 %f4, %f1;
        mov.b32 %r5, %f2; mov.b32 %r6, %f3; mov.b32 %r7, %f4;
        st.global.u32 [%rd1], %r5; st.global.u32 [%rd1+4], %r6; st.global.u32 [%rd1+8], %r7;"""
    assert launched(body, 32)[:3].tolist() == [0x7FFFFFFF, 0x7FFFFFFF, 0xFFC00123]


# Each thread writes a word of its own, and reads that of another: its neighbour in the warp, or of the other warp.
EXCHANGED = """
    st.shared.u32 [%rd5], %r1;
    {between}
    xor.b32 %r5, %r1, {other};
    shl.b32 %r6, %r5, 2;
    cvt.u64.u32 %rd6, %r6;
    ld.shared.u32 %r7, [%rd6];
    {behind}
    st.shared.u32 [%rd5], %r7;
    st.global.u32 [%rd4], %r7;"""
BLOCK_, WARP_ = "bar.sync 0;", "bar.warp.sync -1;"


@pytest.mark.parametrize(("other", "between", "behind"), [(1, WARP_, WARP_), (32, BLOCK_, BLOCK_), (1, BLOCK_, WARP_)])
def test_words_are_exchanged_across_barriers(other, between, behind):
    body = EXCHANGED.format(other=other, between=between, behind=behind)
    assert (launched(body) == np.arange(64) ^ other).all()


@pytest.mark.parametrize(
    ("other", "between", "behind", "says"),
    [
        (1, "", BLOCK_, "races with a write"),
        (32, WARP_, BLOCK_, "races with a write"),
        (1, WARP_, "", "write to shared memory races with a read"),
        (32, BLOCK_, WARP_, "write to shared memory races with a read"),
    ],
)
def test_words_exchanged_without_a_barrier_are_a_fault(other, between, behind, says):
    with pytest.raises(ptx.Fault, match=says):
        launched(EXCHANGED.format(other=other, between=between, behind=behind))


@pytest.mark.parametrize(
    ("body", "issued", "fetched", "turns", "least"),
    [
        # Two warps, of HEAD's nine instructions, these, and the last.  Neighbouring words of 32 threads: four sectors.
        ("st.shared.u32 [%rd5], %r1; st.global.u32 [%rd4], %r1;", 2 * (9 + 2 + 1), 2 * 4 * 32, 2, 2),
        # Words 128 bytes apart: a sector to each thread.
        ("shl.b64 %rd6, %rd3, 5; add.s64 %rd6, %rd6, %rd1; st.global.u32 [%rd6], %r1;", 2 * 13, 64 * 32, 0, 0),
        # One word for all is one turn; words 0 and 32 are of one bank, and two.
        ("and.b64 %rd6, %rd5, 0; ld.shared.u32 %r7, [%rd6];", 2 * 12, 0, 2, 2),
        ("and.b64 %rd6, %rd5, 4; shl.b64 %rd6, %rd6, 5; ld.shared.u32 %r7, [%rd6];", 2 * 13, 0, 4, 2),
        # Of words of eight bytes half a warp has its turn: 16 of them fill the banks.
        ("shl.b64 %rd6, %rd5, 1; and.b64 %rd6, %rd6, 248; ld.shared.u64 %rd7, [%rd6];", 2 * 13, 0, 4, 4),
    ],
)
def test_accesses_are_tallied(body, issued, fetched, turns, least, monkeypatch):
    monkeypatch.setattr(ptx.SharedMemory, "WRITTEN", True)
    tally = ptx.Tally()
    launched(body, words=64 * 32, tally=tally)
    assert (tally.issued, tally.fetched, tally.turns, tally.least_turns) == (issued, fetched, turns, least)
    assert tally.wanted == (64 * 4 if "global" in body else 0)


@pytest.mark.parametrize("arguments", [[0], [0, 1, 2], [0, 1.0]])
def test_arguments_that_the_kernel_does_not_take_are_a_fault(arguments):
    with pytest.raises(ptx.Fault, match="takes"):
        launched("", arguments=arguments)


# ----------------------------------------------------------------------------------------------- calls like one before
@pytest.fixture
def no_check(monkeypatch):
    """Lets checks of arrays fail once it is called."""

    def refuse(function, name, value):
        raise AssertionError(f"{name} was checked")

    def forbid():
        for module in (_arguments, _call):
            monkeypatch.setattr(module, "checked_array", refuse)

    return forbid


@pytest.mark.parametrize("options", [NONE, SUM, {}, {"validate": False}], ids=str)
@pytest.mark.parametrize("function", [LOSS, GRADIENT, BOTH, OF_LOGITS, WITH_HESSIAN])
def test_plain_call_like_one_before_is_not_checked_again_and_has_the_bits_of_the_cpu(
    device, function, options, no_check
):
    pairs = [pair((37, 50), of=function) for _ in range(2)]
    pairs[1] = tuple(aligned(array[::-1]) for array in pairs[1])
    expected = [as_tuple(function(x, y, **(options | {"validate": False}))) for x, y in pairs]
    placed = [tuple(map(place, arrays)) for arrays in pairs]
    function(*placed[0], **options)
    no_check()
    for arrays, wanted in zip(placed, expected, strict=True):
        for one, other in zip(as_tuple(function(*arrays, **options)), wanted, strict=True):
            assert_same_bits(one.copy_to_host(), np.asarray(other))


def test_call_with_options_like_one_before_is_not_checked_again_and_has_the_bits_of_the_cpu(device, no_check, rng):
    x, y = pair((37, 50))
    weight, where, grad_output = rng.random(50), rng.random((37, 1)) < 0.5, rng.random((37, 50))
    asked = [
        (LOSS, {"weight": weight, "reduction": "sum", "where": where}),
        (LOSS, {"weight": 2.0, "label_smoothing": 0.25}),
        (LOSS, {"axis": 1, "dtype": "float64", "keepdims": True}),
        (BOTH, {"pos_weight": weight, "grad_output": grad_output, **NONE}),
        (FOCAL, {"gamma": 3}),
    ]
    calls = []
    for function, options in asked:
        expected = as_tuple(function(x, y, **options))
        there = {name: place(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
        calls.append((function, (place(x), place(y)), there, expected))
        function(*calls[-1][1], **there)
    no_check()
    for function, arrays, options, expected in calls:
        for one, other in zip(as_tuple(function(*arrays, **options)), expected, strict=True):
            assert_same_bits(one.copy_to_host(), np.asarray(other))


def test_call_into_arrays_like_one_before_is_not_checked_again_unless_they_may_not_be_written(device, no_check):
    x, y = pair((37, 50))
    a, b = place(x), place(y)
    expected = BOTH(x, y, **NONE)
    outs = tuple(place(np.zeros_like(x)) for _ in range(2))
    of_either = (outs, (None, outs[1]), (outs[0], None))
    for own in of_either:
        BOTH(a, b, **NONE, out=own)
    no_check()
    for own in of_either:
        for array in outs:
            array.values[...] = 7.0
        found = BOTH(a, b, **NONE, out=own)
        for one, other, out in zip(found, expected, own, strict=True):
            assert out is None or one is out
            assert_same_bits(one.copy_to_host(), other)
    outs[0].requires_grad = True  # as a tensor of PyTorch may, which is an error
    with pytest.raises(AssertionError, match="was checked"):
        BOTH(a, b, **NONE, out=outs)
    outs[0].requires_grad = False
    for overlapping in ((a, outs[1]), (outs[0], b), (outs[0], outs[0])):
        with pytest.raises(AssertionError, match="was checked"):
            BOTH(a, b, **NONE, out=overlapping)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: ((x, y), {"reduction": "sum"}),
        lambda x, y: ((x, y, 1.0), {}),
        lambda x, y: ((x, y), {"validate": True}),
        lambda x, y: ((x, y), {"stream": 0}),
        lambda x, y: ((x, y), {"label_smoothing": 0.1}),
        lambda x, y: ((x[:-1], y[:-1]), {}),
        lambda x, y: ((x, place(np.zeros((8, 6), bool))), {}),
        lambda x, y: ((place(np.zeros((8, 6))), y), {}),
        lambda x, y: ((place(np.zeros((6, 8), "f4").T), y), {}),
        lambda x, y: ((place(misaligned(np.zeros((8, 6), "f4"))), y), {}),
        lambda x, y: ((x, np.zeros((8, 6), "f4")), {}),
        lambda x, y: ((x, y), {"reduction": ["mean"]}),
    ],
    ids="reduction weight validate stream smoothing shape target input order alignment host wrong".split(),
)
def test_call_that_differs_from_one_before_is_checked(device, change, no_check):
    x, y = map(place, pair((8, 6)))
    LOSS(x, y)
    arrays, options = change(x, y)
    no_check()
    with pytest.raises(AssertionError, match="was checked"):
        LOSS(*arrays, **options)
    with pytest.raises(AssertionError, match="was checked"):
        OF_LOGITS(x, y)


def test_call_like_one_before_whose_result_lies_otherwise_has_the_bits_of_the_cpu(device, monkeypatch):
    x, y = pair((37, 50))
    a, b = place(x), place(y)
    LOSS(a, b, **NONE)
    kernels = len(_cuda._kernels)
    made = []
    monkeypatch.setattr(
        ptx_device.Ours,
        "empty",
        lambda self, shape, *_: made.append(1) or place(misaligned(np.zeros(shape, "f4"))),
    )
    for count in (2, 3):  # by what is remembered in vain and anew; then by what has been remembered
        assert_same_bits(LOSS(a, b, **NONE).copy_to_host(), LOSS(x, y, **NONE))
        assert len(_cuda._kernels) == kernels + 1
        assert len(made) == count


def test_no_array_is_kept_by_what_is_remembered_of_calls(device):
    x, y = map(place, pair((37, 50)))
    kept = [weakref.ref(array) for array in (x, y, *BOTH(x, y, **NONE), *BOTH(x, y, **NONE))]
    del x, y
    gc.collect()
    assert [array() for array in kept] == [None] * 6


def test_losses_have_as_many_thread_blocks_as_it_takes_but_those_of_16_bits(device, monkeypatch):
    grids = []
    run = device.run
    monkeypatch.setattr(
        device, "run", lambda *arguments: grids.append(arguments[3]) or run(*arguments[:3], 1, *arguments[4:])
    )
    monkeypatch.setattr(_cuda, "STEPPING_GRID", 3)
    for name in ("_kernels", "_known"):
        monkeypatch.setattr(_cuda, name, {})
    for dtype, count in (("float32", 13), ("float64", 26), ("float16", 3), ("bfloat16", 3)):
        # A thread takes eight float32, four float64; 12988 elements are those of 1624 and of 3247 threads, 128 a block.
        agree(LOSS, *pair(dtype=dtype), **NONE)
        assert grids.pop() == count


def test_grids_that_are_remembered_have_a_limit():
    from nbbce import _compile_cuda

    for grid in range(1, 1200):
        assert _compile_cuda._config(grid, 128).grid == (grid, 1, 1)
    assert _compile_cuda._config.cache_info().currsize <= 1000
