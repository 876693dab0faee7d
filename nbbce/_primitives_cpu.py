"""The operations that Numba has no name for: the only CPU file that knows llvmlite.

Each is one LLVM instruction or a cast, or moves memory in whole vectors.  None carries a fast-math flag, so LLVM may
neither contract nor re-associate what the formulas spell out: that is what makes the bits equal on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

INT64, FLOAT, DOUBLE = ir.IntType(64), ir.FloatType(), ir.DoubleType()


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, arguments: builder.fma(*arguments)


def _bit_cast(source: Any, result: Any, llvm_type: ir.Type) -> Any:
    @intrinsic
    def cast(typingctx: Any, value: Any) -> Any:
        return result(source), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], llvm_type)

    return cast


bits_of_float32 = _bit_cast(types.float32, types.uint32, ir.IntType(32))
bits_of_float64 = _bit_cast(types.float64, types.uint64, INT64)
float32_of_bits = _bit_cast(types.uint32, types.float32, FLOAT)
float64_of_bits = _bit_cast(types.uint64, types.float64, DOUBLE)


@intrinsic
def byte_swapped(typingctx: Any, bits: Any) -> Any:
    """The bytes of an unsigned integer in reverse order."""
    return bits(bits), lambda context, builder, signature, arguments: builder.bswap(arguments[0])


def _fetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, be there memory or not."""
    byte, number = cgutils.voidptr_t, ir.IntType(32)
    signature = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    to_read, near, data = number(0), number(3), number(1)
    builder.call(function, [builder.inttoptr(address, byte), to_read, near, data])


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, be there memory or not."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _fetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), code


@njit(error_model="numpy")
def _power_of_two(exponent):
    """2 to an exponent in [-1022, 1023], as float64."""
    return float64_of_bits(np.uint64(np.int64(exponent) + np.int64(1023)) << np.uint64(52))


@njit(error_model="numpy")
def _scaled(value, sign_and_exponent):
    """`value`, a 64-bit significand as a float, with the sign and the exponent of the x87 number it is of."""
    biased = np.int64(sign_and_exponent & np.uint64(0x7FFF))
    # In three steps, each a normal power of two: what over- or underflows a float64 does so here.
    exponent = min(max(biased - 16383 - 63, -2100), 2100)
    third = exponent // 3
    scaled = np.float64(value) * _power_of_two(third) * _power_of_two(third) * _power_of_two(exponent - 2 * third)
    if biased == 0x7FFF:
        scaled = np.inf if value == np.float64(2.0**63) else np.nan
    return -scaled if sign_and_exponent & np.uint64(0x8000) else scaled


@njit(error_model="numpy")
def float64_of_longdouble(pair):
    """The float64 nearest to the x87 number whose 16 bytes `pair` holds: its significand, then sign and exponent."""
    significand, sign_and_exponent = bits_of_float64(pair.real), bits_of_float64(pair.imag)
    return _scaled(np.float64(significand), sign_and_exponent)


@njit(error_model="numpy")
def float32_of_longdouble(pair):
    """The float32 nearest to it: the significand is rounded once, to 24 bits."""
    significand, sign_and_exponent = bits_of_float64(pair.real), bits_of_float64(pair.imag)
    return np.float32(_scaled(np.float32(significand), sign_and_exponent))


@njit(error_model="numpy")
def float32_of_half(h):
    """The float32 equal to the IEEE half with the bits `h`.

    In integers, because LLVM's own conversion is a call into nowhere (a crash) on a processor without F16C.  It
    vectorises, and was measured as fast.  Shifting the 15 magnitude bits into place leaves the exponent 112 too
    low; multiplying by 2^112 mends that, subnormals included.
    """
    magnitude = np.uint32(np.uint32(h & np.uint16(0x7FFF)) << np.uint32(13))
    scaled = bits_of_float32(float32_of_bits(magnitude) * np.float32(2.0**112))
    infinite_or_nan = magnitude >= np.uint32(0x0F800000)
    scaled = np.uint32(scaled | np.uint32(0x7F800000)) if infinite_or_nan else scaled
    sign = np.uint32(np.uint32(h & np.uint16(0x8000)) << np.uint32(16))
    return float32_of_bits(np.uint32(scaled | sign))


@njit(error_model="numpy")
def half_of_float32(x):
    """The bits of the IEEE half nearest to `x`, ties to even.

    A normal result: re-bias the exponent and round by adding just under half of the last place.  A subnormal one:
    adding 0.5 lets the float unit round at 2^-24, the last place of a subnormal half.
    """
    bits = bits_of_float32(x)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32(np.uint32(magnitude - np.uint32(0x37FFF001) + odd) >> np.uint32(13))
    subnormal = np.uint32(bits_of_float32(float32_of_bits(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000))
    half = subnormal if magnitude < np.uint32(0x38800000) else normal
    half = np.uint32(0x7C00) if magnitude >= np.uint32(0x477FF000) else half
    half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else half
    return np.uint16(half | sign)


@njit(error_model="numpy")
def float32_of_bfloat16(b):
    """The float32 equal to the bfloat16 with the bits `b`: bfloat16 is the upper half of a float32."""
    return float32_of_bits(np.uint32(np.uint32(b) << np.uint32(16)))


@njit(error_model="numpy")
def bfloat16_of_float32(x):
    """The bits of the bfloat16 nearest to `x`, ties to even."""
    bits = bits_of_float32(x)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    is_nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7FC0) if is_nan else rounded)


def _align_stack(function: ir.Function) -> None:
    """Let a function's stack begin at a cache line.

    A loop keeps what finds no register on the stack, constants for the most part, in vectors of 64 bytes; but LLVM
    takes the stack as it comes, at a multiple of 16.  Losses of 4096 float32 took 0.36 ns an element, and 0.46 to 0.78
    in six places of 256, where one of these vectors lay across two pages.  (llvmlite writes no alignment alone.)
    """
    function.attributes.add("nounwind")
    function.attributes.alignstack = 64


@intrinsic
def array_at(typingctx: Any, address: Any, size: Any, dtype: Any) -> Any:
    """The `size` elements of `dtype` at `address`, as a contiguous array that owns nothing.

    As `numba.carray`, but of a type that promises no alignment, so that loops may run over a misaligned view; on the
    processors that Numba knows a load costs the same.  The function that it is in aligns its stack.
    """
    array_type = types.Array(dtype.instance_type, 1, "C", aligned=False)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _align_stack(builder.function)
        array = context.make_array(array_type)(context, builder)
        element = context.get_data_type(array_type.dtype)
        item_size = context.get_constant(types.intp, context.get_abi_sizeof(element))
        extent = context.cast(builder, arguments[1], signature.args[1], types.intp)
        populate_array(
            array,
            data=builder.inttoptr(arguments[0], element.as_pointer()),
            shape=cgutils.pack_array(builder, [extent]),
            strides=cgutils.pack_array(builder, [item_size]),
            itemsize=item_size,
            meminfo=None,
        )
        return array._getvalue()

    return array_type(types.int64, size, dtype), code


# How far ahead of what is read a cache line is asked for, in bytes, of columns and of strided memory.  A processor sees
# streams coming, but not far enough where it reads them by turns with calculations.  With it the mean of float32 in
# Fortran order takes 0.77 ns an element, not 0.91, of ten columns, 1.06, not 1.26, of 1000, and that of every other
# element 0.95, not 1.02 (one thread; half as far and twice as far are as good).
COLUMN_AHEAD, STRIDED_AHEAD = 512, 4096


def _load(builder: Any, address: Any, item: ir.Type, count: int) -> Any:
    """The vector of `count` items at an address, aligned or not."""
    return builder.load(builder.inttoptr(address, ir.VectorType(item, count).as_pointer()), align=1)


def _store(builder: Any, values: Any, address: Any) -> None:
    builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=1)


def _shuffled(builder: Any, a: Any, b: Any, places: Iterable[int]) -> Any:
    """The elements of two vectors at these places, those of `b` after those of `a`."""
    mask = [ir.IntType(32)(place) for place in places]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(mask)), mask))


def tile_rows(item_size: int) -> int:
    """Rows of a tile of items of so many bytes: a cache line of each column, or of bytes a quarter of one."""
    return min(16, 64 // item_size)


def _transposition(widest: int) -> Any:
    """An intrinsic that copies a tile whose columns are contiguous in memory to rows that are."""

    @intrinsic
    def transpose(
        typingctx: Any, from_at: Any, from_step: Any, to_at: Any, to_row: Any, columns: Any, dtype: Any
    ) -> Any:
        """Copy `tile_rows` rows of `columns` columns, `from_step` bytes apart, to rows that are `to_row` bytes apart.

        Each row is written up to column `widest`: what stands beyond `columns` is for the rows below to overwrite.
        """

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, step, destination, row, count, _ = arguments
            item = context.get_data_type(dtype.instance_type)
            rows = tile_rows(context.get_abi_sizeof(item))
            last = builder.sub(count, INT64(1))
            vectors = []
            for c in range(widest):
                # In place of a column beyond the last one, the last one.
                place = builder.select(builder.icmp_signed("<", INT64(c), last), INT64(c), last)
                at = builder.add(source, builder.mul(place, step))
                _fetch(builder, builder.add(at, INT64(COLUMN_AHEAD)))
                vectors.append(_load(builder, at, item, rows))
            # Stone's network (1971): in each round the first half of the vectors is interleaved with the second.
            for _ in range(widest.bit_length() - 1):
                pairs = zip(vectors[: widest // 2], vectors[widest // 2 :], strict=True)
                vectors = [
                    _shuffled(builder, a, b, [start + j // 2 + j % 2 * rows for j in range(rows)])
                    for a, b in pairs
                    for start in (0, rows // 2)
                ]
            if widest == 2:  # there are two columns then, and nothing between rows
                for k, values in enumerate(vectors):
                    _store(builder, values, builder.add(destination, builder.mul(INT64(k * rows // 2), row)))
                return context.get_dummy_value()
            for r in range(rows):
                vector, start = vectors[r * widest // rows], r * widest % rows
                values = _shuffled(builder, vector, vector, range(start, start + widest))
                _store(builder, values, builder.add(destination, builder.mul(INT64(r), row)))
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 5, dtype), code

    return transpose


transpose_2, transpose_4, transpose_8, transpose_16 = (_transposition(widest) for widest in (2, 4, 8, 16))


@intrinsic
def transpose_rows(typingctx: Any, from_at: Any, from_row: Any, to_at: Any, to_row: Any) -> Any:
    """Copy 16 rows of 4 float32, `from_row` bytes apart, to 4 rows of 16, `to_row` bytes apart."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, step, destination, row = arguments
        rows = [_load(builder, builder.add(source, builder.mul(INT64(r), step)), FLOAT, 4) for r in range(16)]
        # Rows k, k+4, k+8 and k+12 beside each other: then four squares of 4 x 4 are transposed where they lie, by the
        # cheapest of shuffles.  Squares of 8 x 8 float64 took 0.15 ns an element of rows of ten, these take 0.05.
        vectors = []
        for k in range(4):
            halves = [_shuffled(builder, rows[r], rows[r + 4], range(8)) for r in (k, k + 8)]
            vectors.append(_shuffled(builder, halves[0], halves[1], range(16)))
        first, second = ((0, 16, 1, 17), (2, 18, 3, 19)), ((0, 1, 16, 17), (2, 3, 18, 19))
        for pairs, places in (((0, 1), (2, 3)), first), (((0, 2), (1, 3)), second):
            vectors = [
                _shuffled(builder, vectors[a], vectors[b], [square + k for square in (0, 4, 8, 12) for k in half])
                for a, b in pairs
                for half in places
            ]
        for c, values in enumerate(vectors):
            _store(builder, values, builder.add(destination, builder.mul(INT64(c), row)))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), code


def _strided(step: int) -> Any:
    """An intrinsic that copies items that are `step` items apart to 64 dense bytes."""

    @intrinsic
    def copy(typingctx: Any, from_at: Any, to_at: Any, dtype: Any) -> Any:
        """Copy as many items as 64 bytes hold, the first one from `from_at`.

        What lies between the last of them and the one after it is read as well.
        """

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            item = context.get_data_type(dtype.instance_type)
            size = context.get_abi_sizeof(item)
            count = 64 // size
            source, places, ahead = arguments[0], range(0, step * count, step), STRIDED_AHEAD
            if step < 0:
                source = builder.add(source, INT64((step * count + 1) * size))
                places, ahead = range(-step * count - 1, -1, step), -STRIDED_AHEAD
            for line in range(abs(step)):
                _fetch(builder, builder.add(source, INT64(ahead + 64 * line)))
            values = _load(builder, source, item, abs(step) * count)
            _store(builder, _shuffled(builder, values, values, places), arguments[1])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, dtype), code

    return copy


copy_second, copy_third, copy_fourth, copy_backwards = (_strided(step) for step in (2, 3, 4, -1))


@intrinsic
def copy_bytes(typingctx: Any, destination: Any, source: Any, size: Any) -> Any:
    """`size` bytes from one address to another."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, from_ = (builder.inttoptr(address, cgutils.voidptr_t) for address in arguments[:2])
        cgutils.raw_memcpy(builder, to, from_, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@intrinsic
def lesser(typingctx: Any, a: Any, b: Any) -> Any:
    """The lesser of two int64: as `min`, which Numba compiles for each pair of types (0.1 s in all)."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *arguments), *arguments)

    return types.int64(types.int64, types.int64), code


@intrinsic
def clear_bytes(typingctx: Any, address: Any, size: Any) -> Any:
    """`size` bytes at an address become 0."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(arguments[0], cgutils.voidptr_t), arguments[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


# The C struct of a NumPy array begins, right after the object head, with data, nd, dimensions, strides, base, dtype and
# flags: part of its binary interface since 1.0.  Asking for them in Python takes 0.1 to 0.75 us each, most of the time
# of a small call; nbbce/_cpu.py checks once that these agree with them.
HEAD, ND, DIMENSIONS_AT, FLAGS = object.__basicsize__, 8, 16, 48
C_CONTIGUOUS = 1
# Where the addresses of a tuple's items begin, which is all that CPython puts behind what it says here.
ITEMS_OF_TUPLE = tuple.__basicsize__


def _member(builder: Any, array_id: Any, offset: int, member: ir.Type) -> Any:
    place = builder.inttoptr(builder.add(array_id, INT64(HEAD + offset)), member.as_pointer())
    return builder.load(place)


@intrinsic
def data_of(typingctx: Any, array_id: Any) -> Any:
    """Address of the data of the NumPy array at `id(array)`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _member(builder, arguments[0], 0, INT64)

    return types.int64(types.int64), code


@intrinsic
def layout_of(typingctx: Any, array_id: Any) -> Any:
    """Number of dimensions, address of their extents, and flags of the NumPy array at `id(array)`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        members = [
            builder.zext(_member(builder, arguments[0], ND, number), INT64),
            _member(builder, arguments[0], DIMENSIONS_AT, INT64),
            builder.zext(_member(builder, arguments[0], FLAGS, number), INT64),
        ]
        return context.make_tuple(builder, signature.return_type, members)

    return types.UniTuple(types.int64, 3)(types.int64), code


def _call_through_address(result: Any, llvm_result: ir.Type, *parameters: tuple[Any, ir.Type]) -> Any:
    """An intrinsic that calls the C function at the address in its first argument."""
    numba_types = tuple(parameter[0] for parameter in parameters)
    function_type = ir.FunctionType(llvm_result, [parameter[1] for parameter in parameters])

    def call(typingctx: Any, address: Any, arguments: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            function = builder.inttoptr(values[0], function_type.as_pointer())
            return builder.call(function, cgutils.unpack_tuple(builder, values[1]))

        return result(types.int64, types.BaseTuple.from_types(numba_types)), code

    return intrinsic(call)


_I = (types.int64, INT64)
_D = (types.float64, DOUBLE)
# The kinds of compiled function that are called through their addresses: the two that the block walker calls, and
# the walker (see _blocks_cpu.py).
MAKER_PARAMETERS = (_I, _I, _I, _D, _I, _I, _I)
COPIER_PARAMETERS = (_I,) * 8
MAKER = types.float64(*(parameter[0] for parameter in MAKER_PARAMETERS))
COPIER = types.int64(*(parameter[0] for parameter in COPIER_PARAMETERS))
WALKER_PARAMETERS = (_I, _I, _D, _D, _I, _I, _I, _I)
WALKER = types.int64(*(parameter[0] for parameter in WALKER_PARAMETERS))
call_maker = _call_through_address(types.float64, DOUBLE, *MAKER_PARAMETERS)
call_copier = _call_through_address(types.int64, INT64, *COPIER_PARAMETERS)
call_walker = _call_through_address(types.int64, INT64, *WALKER_PARAMETERS)
