"""The operations that Numba has no name for on a device: the only CUDA file that knows llvmlite.

The names that formulas use are those of _primitives_cpu.py.  What is more here moves values between memory and
registers: a loader reads neighbours of any dtype by accesses of up to 16 bytes and makes them the float that is
computed with; a storer writes them.  Both take addresses, not arrays: that is the fastest launch, and memory of any
library and dtype is an address.

Under Numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1) each has a body in plain Python, for which an address is one of
the host, and a formula is the compiled one of the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.core import config

__all__ = [
    "SIMULATED",
    "any_lane",
    "bits_of_float32",
    "bits_of_float64",
    "count_up",
    "device",
    "float32_of_bits",
    "float64_of_bits",
    "fma",
    "formula",
    "least",
    "loader",
    "meet",
    "of_first_lane",
    "quick_log2",
    "shuffle_down",
    "storer",
]

SIMULATED = bool(config.ENABLE_CUDASIM)

# What an element is in memory: bytes, and how it is read ('float', 'half', 'bfloat', 'signed', 'unsigned', 'bool').
KINDS = {
    "float16": (2, "half"),
    "bfloat16": (2, "bfloat"),
    "float32": (4, "float"),
    "float64": (8, "float"),
    "int8": (1, "signed"),
    "int16": (2, "signed"),
    "int32": (4, "signed"),
    "int64": (8, "signed"),
    "uint8": (1, "unsigned"),
    "bool": (1, "bool"),
    "uint16": (2, "unsigned"),
    "uint32": (4, "unsigned"),
    "uint64": (8, "unsigned"),
}

ALL_LANES = 0xFFFFFFFF

if not SIMULATED:
    from numba.cuda import cgutils, types
    from numba.cuda.extending import intrinsic

    I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
    HALF, FLOAT, DOUBLE, VOID = ir.HalfType(), ir.FloatType(), ir.DoubleType(), ir.VoidType()
    COMPUTED = {"float32": (types.float32, FLOAT), "float64": (types.float64, DOUBLE)}

    formula = device = cuda.jit(device=True)

    @intrinsic
    def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        return a(a, a, a), lambda context, builder, signature, arguments: builder.fma(*arguments)

    def _bit_cast(source: Any, result: Any, llvm_type: ir.Type) -> Any:
        @intrinsic
        def cast(typingctx: Any, value: Any) -> Any:
            return result(source), lambda context, builder, signature, values: builder.bitcast(values[0], llvm_type)

        return cast

    bits_of_float32 = _bit_cast(types.float32, types.uint32, I32)
    bits_of_float64 = _bit_cast(types.float64, types.uint64, I64)
    float32_of_bits = _bit_cast(types.uint32, types.float32, FLOAT)
    float64_of_bits = _bit_cast(types.uint64, types.float64, DOUBLE)

    def _places(builder: Any, address: Any, index: Any, size: int) -> Any:
        """A function (bytes, type) -> the place so many bytes behind an element; being of global memory, by ld.global.

        As a pointer with an index, not a sum of integers, LLVM sees which places are a constant apart: of labels 0/1
        in rows of ten an element then takes 29 instructions, not 38.
        """
        element = builder.inttoptr(address, ir.IntType(8 * size).as_pointer(1))
        start = builder.bitcast(builder.gep(element, [index]), I8.as_pointer(1))

        def place(offset: int, llvm_type: ir.Type) -> Any:
            return builder.bitcast(builder.gep(start, [I64(offset)]), llvm_type.as_pointer(1))

        return place

    def _elements(builder: Any, words: list[Any], size: int, count: int) -> list[Any]:
        """The `count` elements of `size` bytes in words, as integers."""
        if size >= words[0].type.width // 8:
            return words
        element, found = ir.IntType(8 * size), []
        for word in words:
            for k in range(word.type.width // (8 * size)):
                shifted = builder.lshr(word, ir.Constant(word.type, 8 * size * k)) if k else word
                found.append(builder.trunc(shifted, element))
        return found[:count]

    def _to_computed(builder: Any, bits: Any, kind: str, result: ir.Type) -> Any:
        """An element, given as an integer, as the float that is computed with."""
        size, read_as = KINDS[kind]
        if read_as == "signed":
            return builder.sitofp(bits, result)
        if read_as == "unsigned":
            return builder.uitofp(bits, result)
        if read_as == "bool":  # a view of other bytes as bool has others than 0 and 1
            return builder.uitofp(builder.icmp_unsigned("!=", bits, bits.type(0)), result)
        if read_as == "bfloat":
            value = builder.bitcast(builder.shl(builder.zext(bits, I32), I32(16)), FLOAT)
        else:
            value = builder.bitcast(bits, {2: HALF, 4: FLOAT, 8: DOUBLE}[size])
        if value.type == result:
            return value
        return builder.fptrunc(value, result) if value.type == DOUBLE else builder.fpext(value, result)

    @cache
    def loader(kind: str, computed: str, width: int, aligned: bool = True) -> Any:
        """A function (address, index) -> `width` neighbours from element `index` on, as floats.

        `aligned`: the address is a multiple of the bytes of `width` elements (of 16, if these are more), and so is
        that of each access.
        """
        size, _ = KINDS[kind]
        numba_type, llvm_type = COMPUTED[computed]
        access = min(16, size * width) if aligned else size  # bytes at a time
        word = ir.IntType(8 * min(access, max(size, 4)))
        per_access = 8 * access // word.width

        @intrinsic
        def load(typingctx: Any, address: Any, index: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                address, first = arguments
                place = _places(builder, address, first, size)
                words = []
                for k in range(size * width // access):
                    if per_access == 1:
                        words.append(builder.load(place(k * access, word), align=access))
                        continue
                    vector = builder.load(place(k * access, ir.VectorType(word, per_access)), align=access)
                    words += [builder.extract_element(vector, I32(j)) for j in range(per_access)]
                values = [
                    _to_computed(builder, bits, kind, llvm_type) for bits in _elements(builder, words, size, width)
                ]
                return cgutils.pack_array(builder, values)

            return types.UniTuple(numba_type, width)(types.int64, types.int64), code

        return load

    def _half_pair(builder: Any, instruction: str, low: Any, high: Any) -> Any:
        """Two floats as two 16-bit ones in a word, each rounded to nearest: one instruction from sm_80 on."""
        pair = ir.InlineAsm(ir.FunctionType(I32, [FLOAT, FLOAT]), f"{instruction} $0, $2, $1;", "=r,f,f")
        return builder.call(pair, [low, high])

    def _bfloat_bits(builder: Any, value: Any) -> Any:
        """The bits of the bfloat16 nearest to a float, ties to even, in integers."""
        bits = builder.bitcast(value, I32)
        odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, I32(0x7FFF))), I32(16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, I32(0x7FC0), rounded), I16)

    def _from_computed(builder: Any, value: Any, kind: str) -> Any:
        """A float that was computed with, as an element, given as an integer."""
        size, read_as = KINDS[kind]
        if size < 8 and value.type == DOUBLE:
            value = builder.fptrunc(value, FLOAT)  # by way of float32, as on the CPU
        if read_as == "half":
            return builder.bitcast(builder.fptrunc(value, HALF), I16)
        if read_as == "bfloat":
            return _bfloat_bits(builder, value)
        if size == 8 and value.type == FLOAT:
            value = builder.fpext(value, DOUBLE)
        return builder.bitcast(value, ir.IntType(8 * size))

    @cache
    def storer(kind: str, computed: str, width: int, aligned: bool = True, pairs: bool = True) -> Any:
        """A function (address, index, values) that writes `width` neighbours from element `index` on.

        `pairs`: the device converts two floats to 16 bits at once (sm_80 and later).
        """
        size, read_as = KINDS[kind]
        numba_type, _ = COMPUTED[computed]
        access = min(16, size * width) if aligned else size
        word = ir.IntType(8 * min(access, max(size, 4)))
        per_access = 8 * access // word.width
        instruction = {"half": "cvt.rn.f16x2.f32", "bfloat": "cvt.rn.bf16x2.f32"}.get(read_as, "")

        def words_of(builder: Any, values: list[Any]) -> list[Any]:
            if word.width == 8 * size:
                return [_from_computed(builder, value, kind) for value in values]
            floats = [builder.fptrunc(v, FLOAT) if v.type == DOUBLE else v for v in values]
            words = []
            for low, high in zip(floats[::2], floats[1::2], strict=True):
                if pairs:
                    words.append(_half_pair(builder, instruction, low, high))
                    continue
                bits = [builder.zext(_from_computed(builder, v, kind), I32) for v in (low, high)]
                words.append(builder.or_(bits[0], builder.shl(bits[1], I32(16))))
            return words

        @intrinsic
        def store(typingctx: Any, address: Any, index: Any, values: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                address, first, values = arguments
                place = _places(builder, address, first, size)
                words = words_of(builder, [builder.extract_value(values, k) for k in range(width)])
                for k in range(0, len(words), per_access):
                    vector = words[k]
                    if per_access > 1:
                        vector = ir.Constant(ir.VectorType(word, per_access), ir.Undefined)
                        for j in range(per_access):
                            vector = builder.insert_element(vector, words[k + j], I32(j))
                    builder.store(vector, place(k // per_access * access, vector.type), align=access)
                return context.get_dummy_value()

            return types.void(types.int64, types.int64, types.UniTuple(numba_type, width)), code

        return store

    @intrinsic
    def quick_log2(typingctx: Any, value: Any) -> Any:
        """The device's own approximation of the logarithm to base 2, of float32."""
        approximation = ir.InlineAsm(ir.FunctionType(FLOAT, [FLOAT]), "lg2.approx.f32 $0, $1;", "=f,f")
        return types.float32(types.float32), lambda context, builder, signature, arguments: builder.call(
            approximation, arguments
        )

    @intrinsic
    def count_up(typingctx: Any, address: Any, limit: Any) -> Any:
        """Add 1 to the counter at an address and return what it was; at `limit` it becomes 0 again.

        Whoever sees the count also sees what was written before others counted.
        """

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            signature_ = ir.FunctionType(I32, [I64, I32])
            assembly = "atom.acq_rel.gpu.global.inc.u32 $0, [$1], $2;"
            counter = ir.InlineAsm(signature_, assembly, "=r,l,r,~{memory}", side_effect=True)
            return builder.call(counter, arguments)

        return types.uint32(types.int64, types.uint32), code

    @intrinsic
    def least(typingctx: Any, address: Any, value: Any) -> Any:
        """Let the integer at an address be `value`, if that is smaller."""

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            signature_ = ir.FunctionType(VOID, [I64, I64])
            assembly = ir.InlineAsm(signature_, "red.global.min.s64 [$0], $1;", "l,l,~{memory}", side_effect=True)
            builder.call(assembly, arguments)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    @formula
    def shuffle_down(value, distance):
        """The value that the lane `distance` further on in the warp has."""
        return cuda.shfl_down_sync(ALL_LANES, value, distance)

    @formula
    def of_first_lane(value):
        """The value that the first lane of the warp has."""
        return cuda.shfl_sync(ALL_LANES, value, 0)

    @formula
    def any_lane(condition):
        """Whether the condition holds in any lane of the warp."""
        return cuda.any_sync(ALL_LANES, condition)

    @formula
    def meet():
        """Wait for the lanes of the warp; each then sees what the others wrote."""
        cuda.syncwarp(ALL_LANES)

else:
    from numba import njit
    from numba.cuda.simulator.kernel import _get_kernel_context

    from nbbce import _primitives_cpu as cpu

    formula = njit(error_model="numpy")
    # Compiled for the CPU: what is an instruction cannot be called from plain Python, and formulas call it too.
    fma = formula(lambda a, b, c: cpu.fma(a, b, c))
    bits_of_float32 = formula(lambda value: cpu.bits_of_float32(value))
    bits_of_float64 = formula(lambda value: cpu.bits_of_float64(value))
    float32_of_bits = formula(lambda bits: cpu.float32_of_bits(bits))
    float64_of_bits = formula(lambda bits: cpu.float64_of_bits(bits))

    def _memory(address: int, kind: str, count: int) -> Any:
        size, read_as = KINDS[kind]
        dtype = np.dtype("uint16" if read_as in ("half", "bfloat") else kind)
        memory: Any = (ctypes.c_char * (size * count)).from_address(int(address))
        return np.frombuffer(memory, dtype)

    @cache
    def loader(kind: str, computed: str, width: int, aligned: bool = True) -> Any:
        """A function (address, index) -> `width` neighbours from element `index` on, as floats."""
        size, read_as = KINDS[kind]
        make = np.dtype(computed).type
        convert = {
            "half": lambda v: make(cpu.float32_of_half(v)),
            "bfloat": lambda v: make(cpu.float32_of_bfloat16(v)),
        }.get(read_as, make)

        def load(address: int, index: int) -> tuple[Any, ...]:
            start = int(address) + int(index) * size
            assert not aligned or start % min(16, size * width) == 0
            return tuple(convert(v) for v in _memory(start, kind, width))

        return load

    @cache
    def storer(kind: str, computed: str, width: int, aligned: bool = True, pairs: bool = True) -> Any:
        """A function (address, index, values) that writes `width` neighbours from element `index` on."""
        size, read_as = KINDS[kind]
        to_16_bits: Any = {"half": cpu.half_of_float32, "bfloat": cpu.bfloat16_of_float32}.get(read_as)
        convert = np.dtype(kind).type if to_16_bits is None else lambda v: to_16_bits(np.float32(v))
        make = np.dtype(computed).type

        def store(address: int, index: int, values: tuple[Any, ...]) -> None:
            start = int(address) + int(index) * size
            assert not aligned or start % min(16, size * width) == 0
            assert len(values) == width
            # The simulator's formulas give Python's floats, float64, for float32 too.
            _memory(start, kind, width)[:] = [convert(make(v)) for v in values]

        return store

    @formula
    def quick_log2(value):
        """The logarithm to base 2 of float32."""
        return np.float32(np.log2(value))

    def count_up(address: int, limit: int) -> int:
        """Add 1 to the counter at an address and return what it was; at `limit` it becomes 0 again."""
        counter = _memory(address, "uint32", 1)
        before = int(counter[0])
        counter[0] = 0 if before >= limit else before + 1
        return before

    def least(address: int, value: int) -> None:
        """Let the integer at an address be `value`, if that is smaller."""
        place = _memory(address, "int64", 1)
        place[0] = min(int(place[0]), int(value))

    # The simulator has no warp: a block of 32 threads is one, and its barrier serves.

    def device(function: Callable[..., Any]) -> Any:
        """The function itself: the simulator runs plain Python."""
        return function

    def _exchanged(value: Any) -> Any:
        """What each lane of the warp has, as a list."""
        simulator = _get_kernel_context()
        lanes = simulator.shared.array(32, np.float64)
        lanes[simulator.threadIdx.x] = value
        simulator.syncthreads()
        everyone = lanes.tolist()
        simulator.syncthreads()
        return everyone

    def shuffle_down(value: Any, distance: int) -> Any:
        """The value that the lane `distance` further on in the warp has."""
        lane = _get_kernel_context().threadIdx.x + distance
        everyone = _exchanged(value)
        return np.asarray(value).dtype.type(everyone[lane] if lane < 32 else value)

    def of_first_lane(value: Any) -> Any:
        """The value that the first lane of the warp has."""
        return np.asarray(value).dtype.type(_exchanged(value)[0])

    def any_lane(condition: Any) -> bool:
        """Whether the condition holds in any lane of the warp."""
        return any(_exchanged(bool(condition)))

    def meet() -> None:
        """Wait for the lanes of the warp; each then sees what the others wrote."""
        _get_kernel_context().syncthreads()
