"""The primitives that formulas and loops stand on: conversions, the fused multiply-add, bit casts and addresses."""

from __future__ import annotations

import ctypes
import mmap
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from numba import cfunc, njit

from nbbce import _generated_cpu as generated
from nbbce import _primitives_cpu as primitives

EVERY_16_BITS = np.arange(2**16, dtype=np.uint16)
HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
halves = pytest.mark.parametrize("half", HALVES)


# What tests call: an intrinsic lives in compiled code alone.
@njit
def fused(a, b, c):
    return primitives.fma(a, b, c)


@njit
def separate(a, b, c):
    return a * b + c


@njit(error_model="numpy")
def float32_of_each(bits, is_bfloat16):
    result = np.empty(bits.size, np.float32)
    for i in range(bits.size):
        result[i] = primitives.float32_of_bfloat16(bits[i]) if is_bfloat16 else primitives.float32_of_half(bits[i])
    return result


@njit(error_model="numpy")
def half_of_each(x, is_bfloat16):
    result = np.empty(x.size, np.uint16)
    for i in range(x.size):
        result[i] = primitives.bfloat16_of_float32(x[i]) if is_bfloat16 else primitives.half_of_float32(x[i])
    return result


COPIER = ctypes.CFUNCTYPE(ctypes.c_int64, *(ctypes.c_int64,) * 8)


def copied(name: str, source: np.ndarray, result: np.ndarray, step: int) -> np.ndarray:
    """`source` through the compiled copier `name`, in which the conversion is vectorised if `step` is 1."""
    spread = np.zeros((source.size, step), source.dtype)
    spread[:, 0] = source
    size = result.itemsize
    native = COPIER(getattr(generated, name).address)
    native(spread.ctypes.data, 0, step * source.itemsize, result.ctypes.data, 0, size, 1, source.size)
    return result


def same_floats(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two float arrays agree in every bit, but for what a NaN carries."""
    unsigned = f"u{got.itemsize}"
    with np.errstate(invalid="ignore"):  # some are signalling
        both_nan = np.isnan(got) & np.isnan(expected)
    return got.dtype == expected.dtype and bool(np.all((got.view(unsigned) == expected.view(unsigned)) | both_nan))


def rounding_cases(half: str) -> np.ndarray:
    """float32 values where rounding to `half` is easy to get wrong, and two hundred thousand at random."""
    with np.errstate(invalid="ignore"):  # half of the bit patterns above infinity are signalling NaNs
        exact = EVERY_16_BITS.view(HALVES[half]).astype(np.float32)
    finite = np.sort(np.unique(exact[np.isfinite(exact)]))
    # Ties between neighbours (exact in float32), and both neighbours of each tie.
    ties = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    largest = finite[-1]
    # What rounds to infinity starts half a unit of the last place above the largest finite number.
    overflow = np.float32(largest + (largest.astype(np.float64) - finite[-2]) / 2)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, overflow, largest], np.float32)
    bits = np.random.default_rng(5).integers(0, 2**32, 200_000, dtype=np.uint32)
    near_one = np.random.default_rng(6).uniform(-4, 4, 50_000).astype(np.float32)
    smallest = np.arange(-3000, 3000, dtype=np.float32) * np.float32(2.0**-30)  # around the subnormal halves
    subnormal = np.arange(1, 2**23, 997, dtype=np.uint32).view(np.float32)
    every = [exact, ties, special, bits.view(np.float32), near_one, smallest, subnormal]
    steps = np.concatenate([ties, special])
    with np.errstate(over="ignore"):
        every += [np.nextafter(steps, np.float32(np.inf)), np.nextafter(steps, np.float32(-np.inf))]
    return np.concatenate(every)


# ----------------------------------------------------------------------------------------------------- conversions
@halves
def test_every_16_bit_float_becomes_the_equal_float32(half):
    with np.errstate(invalid="ignore"):
        expected = EVERY_16_BITS.view(HALVES[half]).astype(np.float32)
    got = float32_of_each(EVERY_16_BITS, half == "bfloat16")
    assert np.isnan(expected).sum() > 200
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert same_floats(got, expected)


@halves
@pytest.mark.parametrize("step", [1, 3], ids=["dense", "strided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_every_16_bit_float_is_loaded_exactly(half, dtype, step):
    with np.errstate(invalid="ignore"):
        expected = EVERY_16_BITS.view(HALVES[half]).astype(np.float32).astype(dtype)
    result = np.full(EVERY_16_BITS.size, 0.5, dtype)
    assert same_floats(copied(f"copy_{half}_to_{dtype.__name__}", EVERY_16_BITS, result, step), expected)


@halves
def test_float32_becomes_the_nearest_16_bit_float_with_ties_to_even(half):
    x = rounding_cases(half)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(HALVES[half])
    got = half_of_each(x, half == "bfloat16").view(HALVES[half])
    wrong = ~((got.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(got) & np.isnan(expected)))
    assert x[wrong].tolist() == []


@halves
@pytest.mark.parametrize("step", [1, 3], ids=["dense", "strided"])
def test_float32_is_stored_as_the_nearest_16_bit_float(half, step):
    x = rounding_cases(half)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(HALVES[half])
    got = copied(f"copy_float32_to_{half}", x, np.full(x.size, 1, np.uint16), step).view(HALVES[half])
    assert same_floats(got, expected)


@pytest.mark.parametrize(
    ("x", "bits"),
    [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3C00),
        (1 + 2.0**-11, 0x3C00),  # a tie between 1 and 1 + 2^-10: to even
        (1 + 3 * 2.0**-11, 0x3C02),  # a tie between odd and even: up
        (65504.0, 0x7BFF),  # the largest
        (65519.996, 0x7BFF),
        (65520.0, 0x7C00),  # a tie with 65536, which is infinity
        (2.0**-14, 0x0400),  # the smallest normal
        (2.0**-24, 0x0001),  # the smallest subnormal
        (2.0**-25, 0x0000),  # a tie with zero
        (2.0**-25 * 1.0001, 0x0001),
        (3 * 2.0**-25, 0x0002),
        (-(2.0**-149), 0x8000),
        (np.inf, 0x7C00),
        (-1e30, 0xFC00),
    ],
    ids=str,
)
def test_half_of_a_float32_is_as_worked_out(x, bits):
    assert primitives.half_of_float32(np.float32(x)) == bits


@pytest.mark.parametrize(
    ("x", "bits"),
    [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3F80),
        (1 + 2.0**-8, 0x3F80),  # a tie between 1 and 1 + 2^-7: to even
        (1 + 3 * 2.0**-8, 0x3F82),  # a tie between odd and even: up
        (3.3895314e38, 0x7F7F),  # the largest
        (3.3961775e38, 0x7F80),  # half a unit more: a tie with 2^128, which is infinity
        (3.3961773e38, 0x7F7F),  # one float32 less
        (2.0**-133, 0x0001),  # the smallest subnormal
        (2.0**-134, 0x0000),  # a tie with zero
        (3 * 2.0**-134, 0x0002),
        (-np.inf, 0xFF80),
    ],
    ids=str,
)
def test_bfloat16_of_a_float32_is_as_worked_out(x, bits):
    assert primitives.bfloat16_of_float32(np.float32(x)) == bits


@halves
def test_every_nan_stays_a_nan(half):
    # All exponents set, and a bit that only the lowest of the 23 others hold: cutting them off would make infinity.
    nans = (np.uint32(0x7F800000) + (np.uint32(1) << np.arange(23, dtype=np.uint32))).view(np.float32)
    both_signs = np.concatenate([nans, (nans.view(np.uint32) | np.uint32(0x80000000)).view(np.float32)])
    got = half_of_each(both_signs, half == "bfloat16").view(HALVES[half])
    assert np.isnan(got).all()


@halves
def test_16_bit_float_survives_the_way_to_float32_and_back(half):
    values = EVERY_16_BITS.view(HALVES[half])
    there_and_back = half_of_each(float32_of_each(EVERY_16_BITS, half == "bfloat16"), half == "bfloat16")
    assert same_floats(there_and_back.view(HALVES[half]), values)


# ------------------------------------------------------------------------------------------------------------- fma
@pytest.mark.parametrize(("dtype", "half_digits"), [(np.float32, 13), (np.float64, 27)], ids=["float32", "float64"])
def test_fma_rounds_once_and_separate_steps_round_twice(dtype, half_digits):
    # (1 + d) (1 - d) - 1 = -d^2, while the product rounds to 1 (d^2 is at most half a unit of the last place).
    d = 2.0**-half_digits
    a, b, c = dtype(1 + d), dtype(1 - d), dtype(-1)
    assert fused(a, b, c) == -(d * d)
    # Were this contracted to one instruction, formulas would not give the same bits on every machine.
    assert separate(a, b, c) == 0


def test_fma_of_random_float64_is_the_exact_value_rounded():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=2000), rng.normal(size=2000)
    c = -a * b * (1 + rng.integers(-4, 5, 2000) * 2.0**-52)  # so that most digits cancel
    differs = 0
    for x, y, z in zip(a, b, c, strict=True):
        exact = float(Fraction(x) * Fraction(y) + Fraction(z))  # rounded once, by Python's integers
        assert fused(x, y, z) == exact
        differs += separate(x, y, z) != exact
    assert differs > 1000


def test_fma_of_random_float32_is_the_exact_value_rounded():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=2000).astype(np.float32), rng.normal(size=2000).astype(np.float32)
    c = np.float32(-1) * a * b
    differs = 0
    for x, y, z in zip(a, b, c, strict=True):
        # -z is the rounded product, so what is left has at most 24 digits: exact in float64, and in float32.
        exact = float(x) * float(y) + float(z)
        assert fused(x, y, z) == exact
        differs += separate(x, y, z) != exact
    assert differs > 1000


# ------------------------------------------------------------------------------------------------------- bit casts
@njit
def bits_there_and_back(x32, x64):
    b32, b64 = primitives.bits_of_float32(x32), primitives.bits_of_float64(x64)
    return b32, b64, primitives.float32_of_bits(b32), primitives.float64_of_bits(b64)


@pytest.mark.parametrize(
    ("x", "bits32", "bits64"),
    [
        (0.0, 0, 0),
        (-0.0, 0x80000000, 0x8000000000000000),
        (1.0, 0x3F800000, 0x3FF0000000000000),
        (-2.5, 0xC0200000, 0xC004000000000000),
        (np.inf, 0x7F800000, 0x7FF0000000000000),
        (2.0**-149, 1, 0x36A0000000000000),
    ],
    ids=str,
)
def test_bit_casts_change_no_bit(x, bits32, bits64):
    got32, got64, back32, back64 = bits_there_and_back(np.float32(x), np.float64(x))
    assert (got32, got64) == (bits32, bits64)
    assert (np.float32(back32).tobytes(), np.float64(back64).tobytes()) == (
        np.float32(x).tobytes(),
        np.float64(x).tobytes(),
    )


# ------------------------------------------------------------------------------------------------------- addresses
@njit
def negate_at(address, size):
    array = primitives.array_at(address, size, np.float32)
    for i in range(array.size):
        array[i] = -array[i]
    return array.size, array.ndim, array.itemsize, array.flags.c_contiguous


def test_array_at_is_the_memory_itself():
    memory = np.arange(10, dtype=np.float32)
    assert negate_at(memory.ctypes.data + 2 * 4, 5) == (5, 1, 4, True)
    assert memory.tolist() == [0, 1, -2, -3, -4, -5, -6, 7, 8, 9]


def test_stack_of_a_function_with_arrays_begins_at_a_cache_line():
    negate_at(0, 0)
    (code,) = negate_at.inspect_llvm().values()
    assert "alignstack(64)" in code


def test_array_at_may_be_empty():
    assert negate_at(0, 0) == (0, 1, 4, True)


def test_array_at_reads_the_dtype_that_it_is_told():
    @njit
    def first_byte(address):
        return primitives.array_at(address, 4, np.uint8)[3]

    # The highest byte of 1.0, which is 0x3F800000.
    assert first_byte(np.array([1.0], "<f4").ctypes.data) == 0x3F


@njit
def address_of(array_id):
    return primitives.data_of(array_id)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3),
        np.zeros((4, 5), np.float32)[1:, 2:],
        np.zeros(10, np.uint8)[::-1],
        np.array(1.0),
        np.zeros(0),
        np.broadcast_to(np.zeros(1), (3, 3)),
    ],
    ids=["plain", "inner", "backwards", "0-d", "empty", "broadcast"],
)
def test_data_of_is_the_address_that_numpy_says(array):
    assert address_of(id(array)) == array.__array_interface__["data"][0]


@pytest.mark.parametrize("size", [1, 2, 10])
def test_items_of_a_tuple_are_known_by_their_ids(size):
    items = tuple(object() for _ in range(size))

    @njit
    def ids_of(tuple_id):
        return primitives.array_at(tuple_id + primitives.ITEMS_OF_TUPLE, size, np.int64).copy()

    assert ids_of(id(items)).tolist() == [id(item) for item in items]


def test_functions_are_called_through_their_address_with_arguments_in_order():
    # Each argument in a digit of its own.
    @cfunc(primitives.MAKER)
    def maker(x, y, w, scale, out, count, scratch):
        return x + 10 * y + 100 * w + 1000 * scale + 1e4 * out + 1e5 * count + 1e6 * scratch

    @cfunc(primitives.COPIER)
    def copier(a, b, c, d, e, f, g, h):
        total = 0
        for digit in (a, b, c, d, e, f, g, h):
            total = 10 * total + digit
        return total

    @njit
    def call_both(maker_at, copier_at):
        made = primitives.call_maker(maker_at, (1, 2, 3, 4.5, 5, 6, 7))
        return made, primitives.call_copier(copier_at, (1, 2, 3, 4, 5, 6, 7, 8))

    assert call_both(maker.address, copier.address) == (1 + 20 + 300 + 4500 + 5e4 + 6e5 + 7e6, 12345678)


def test_prefetch_of_any_address_is_no_fault_and_changes_nothing():
    @njit
    def ask(address):
        primitives.prefetch(address)
        return address

    memory = np.arange(8.0)
    for address in (0, -1, 2**47, memory.ctypes.data, memory.ctypes.data + 3, memory.ctypes.data + 2**20):
        assert ask(np.int64(address)) == address
    assert memory.tolist() == list(range(8))


# -------------------------------------------------------------------------------------------------- whole vectors
def copy_native(name: str, source: np.ndarray, result: np.ndarray) -> None:
    """Copy a two-dimensional array into another by a compiled copier."""
    native = COPIER(getattr(generated, name).address)
    native(source.ctypes.data, *source.strides, result.ctypes.data, *result.strides, *source.shape)


def between_forbidden_pages(array: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy of an array in the order of its memory, right after or before a page that may not be read."""
    page = mmap.PAGESIZE
    room = -(-array.nbytes // page) * page
    mapping = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for forbidden in (start, start + page + room):
        assert protect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) == 0  # PROT_NONE
    offset = page + (room - array.nbytes if at_end else 0)
    memory = np.frombuffer(mapping, array.dtype, array.size, offset)
    copy = memory.reshape(array.shape, order="F" if array.flags.f_contiguous else "C")
    copy[...] = array
    return copy


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "part of longer rows"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_transposition_writes_the_rows_and_nothing_else(dtype, dense):
    rng = np.random.default_rng(7)
    for rows in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50):
        for columns in (*range(1, 20), 31, 32, 33, 47, 70):
            x = rng.integers(0, 255, (rows, columns)).astype(dtype)
            for source in (
                np.asfortranarray(x),
                np.asfortranarray(x[:, ::-1])[:, ::-1],
                np.asfortranarray(x[::-1])[::-1],
            ):
                row = columns if dense else columns + 5
                memory = np.full(rows * row + 40, 255, dtype)
                result = memory[20:-20].reshape(rows, row)[:, :columns]
                copy_native(f"transpose_{dtype}", source, result)
                assert np.array_equal(result, x)
                result[...] = 255
                assert (memory == 255).all()


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, -1, -2, -3, -4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_strided_memory_is_copied_and_nothing_else_written(dtype, step):
    rng = np.random.default_rng(8)
    for size in (*range(1, 36), 63, 64, 65, 200):
        x = rng.integers(0, 255, (size - 1) * abs(step) + 1).astype(dtype)[None, ::step]
        memory = np.full(size + 40, 255, dtype)
        copy_native(f"copy_{dtype}_to_{dtype}", x, memory[None, 20:-20])
        assert np.array_equal(memory[20:-20], x[0])
        memory[20:-20] = 255
        assert (memory == 255).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect is called as on Linux")
@pytest.mark.parametrize("at_end", [True, False], ids=["at the end", "at the start"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_nothing_outside_an_array_is_read(dtype, at_end):
    # What is read beyond it would end the process.
    for size in (1, 2, 16, 17, 33, 100):
        for step in (1, 2, 3, 4, -1, -2):
            x = between_forbidden_pages(np.arange((size - 1) * abs(step) + 1).astype(dtype), at_end)[None, ::step]
            result = np.zeros((1, size), dtype)
            copy_native(f"copy_{dtype}_to_{dtype}", x, result)
            assert np.array_equal(result, x)
    for rows in (8, 16, 17, 33):
        for columns in (1, 2, 3, 5, 9, 16, 17, 40):
            x = np.asfortranarray(np.arange(rows * columns).reshape(rows, columns).astype(dtype))
            x = between_forbidden_pages(x, at_end)
            result = np.zeros((rows, columns), dtype)
            copy_native(f"transpose_{dtype}", x, result)
            assert np.array_equal(result, x)
