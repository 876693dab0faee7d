"""A machine on the host that runs kernels for CUDA devices, given as PTX: what a compiler made, not its source.

It follows NVIDIA's "Parallel Thread Execution ISA".  All threads of a grid go through the text side by side, one
instruction at a time for those that are at it; NumPy carries them.  It knows the instructions that our kernels have,
and any other is an error; so is an operation whose rounding the next compiler could change, an access outside of what
was allocated or not at a multiple of its size, a read of what nobody has written, a barrier that some threads never
come to, and an access to shared memory that no barrier orders behind that of another thread.  The order of what
different threads do to global memory, and fences with it, are not looked at: here all see what is written at once.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numba
import numpy as np

from nbbce import _primitives_cpu as primitives

MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on
WARP = 32
EVERYONE = -1  # the mask of all lanes of a warp

# The fma of the host's processor, which test_primitives.py compares with exact arithmetic.
fma = numba.vectorize(["float32(float32,float32,float32)", "float64(float64,float64,float64)"])(
    lambda a, b, c: primitives.fma(a, b, c)
)


class Fault(Exception):
    """What a device would stop at, or might answer otherwise the next time."""


# ------------------------------------------------------------------------------------------------------------ memory
class Memory:
    """The global memory of a device.  What is allocated holds garbage."""

    GAP = 256
    GARBAGE, FILLED = 0x7F, 1 << 26  # large numbers, in every dtype: no sum hides them

    def __init__(self, size: int = 1 << 36) -> None:
        # Pages that nobody writes to cost nothing, so there is room for arrays of more than 2**31 elements.
        self.pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self.bytes = np.frombuffer(self.pages, np.uint8)
        self.base = self.bytes.ctypes.data
        shadow = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self.unwritten = np.frombuffer(shadow, np.bool_)
        """Of each byte, whether a kernel is to write it before one reads it."""
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.free()

    def free(self) -> None:
        """Forget what was allocated."""
        for start, end in zip(self.starts, self.ends, strict=True):
            self.unwritten[start : min(end, start + self.FILLED)] = False
        self.end = 0
        self.starts, self.ends = [], []

    def allocate(self, size: int, offset: int = 0, unwritten: bool = False) -> np.ndarray[Any, Any]:
        """New bytes, `offset` of them behind a multiple of 256, with a gap before and after that nobody may touch.

        If the host writes none of them, they are `unwritten`.
        """
        start = self.end + self.GAP + offset
        found = self.bytes[start : start + size]
        assert found.size == size
        self.starts.append(start)
        self.ends.append(start + size)
        self.end = -(-(start + size) // self.GAP) * self.GAP
        found[: self.FILLED] = self.GARBAGE
        self.unwritten[start : start + min(size, self.FILLED)] = unwritten
        return found

    def places(self, addresses: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
        """Where accesses of `size` bytes are in the memory, in units of that; a Fault if one may not be."""
        offsets = addresses.astype(np.int64) - self.base
        block = np.searchsorted(self.starts, offsets, "right") - 1
        if not self.starts or (block < 0).any() or (offsets + size > np.array(self.ends)[block]).any():
            raise Fault(f"access of {size} bytes outside of what is allocated")
        if (offsets % size).any():
            raise Fault(f"access of {size} bytes not at a multiple of that")
        return offsets // size

    def words(self, size: int) -> np.ndarray[Any, Any]:
        """The memory as words of `size` bytes."""
        return self.bytes.view(f"u{size}")


class SharedMemory:
    """The shared memory of each thread block, and who touched it last."""

    WRITTEN = False  # before the kernel begins

    def __init__(self, blocks: int, size: int) -> None:
        self.size, self.width = size, 0
        self.bytes = np.full((blocks, size + -size % 16), Memory.GARBAGE, np.uint8)
        shape = self.bytes.shape
        self.is_written = np.full(shape, self.WRITTEN)
        # Of the last write and the last reads: thread and warp (-1: none, -2: several), and barriers passed by then.
        self.written, self.read = (
            {name: np.full(shape, -1, np.int64) for name in ("thread", "warp", "of_block", "of_warp")} for _ in range(2)
        )

    @staticmethod
    def _hold_in_order(before: Any, where: Any, now: dict[str, Any], says: str) -> None:
        """A Fault if no barrier lies between accesses before and those of others now."""
        others = before["thread"][where] != now["thread"]
        behind_of_block = now["of_block"] > before["of_block"][where]
        behind_of_warp = (before["warp"][where] == now["warp"]) & (now["of_warp"] > before["of_warp"][where])
        seen = before["of_block"][where] >= 0
        disordered = np.flatnonzero(seen & others & ~behind_of_block & ~behind_of_warp)
        if disordered.size:
            k = disordered[0]
            other, offset = before["thread"][where][k], where[1][k]
            told = "several threads" if other < 0 else f"thread {other}"
            raise Fault(f"{says} of {told}: thread {now['thread'][k]} at byte {offset}")

    def _note_reads(self, where: Any, now: dict[str, Any]) -> None:
        """Note who reads; if several threads or warps have since the last barrier, that they are several."""
        read = {name: values[where] for name, values in self.read.items()}
        since = read["of_block"] == now["of_block"]
        of_warps = since & (read["warp"] != now["warp"])
        of_threads = of_warps | (since & (read["of_warp"] == now["of_warp"]) & (read["thread"] != now["thread"]))
        noted = now | {"warp": np.where(of_warps, -2, now["warp"]), "thread": np.where(of_threads, -2, now["thread"])}
        for name, values in noted.items():
            self.read[name][where] = values
        for name in ("warp", "thread"):  # of those that read a place by one instruction, the last has been noted
            differs = self.read[name][where] != noted[name]
            self.read[name][where[0][differs], where[1][differs]] = -2

    def touch(self, block: Any, offset: Any, size: int, now: dict[str, Any], writes: bool) -> None:
        """Note accesses; a Fault if they race with others."""
        if ((offset < 0) | (offset + size > self.size) | (offset % size != 0)).any():
            raise Fault("access to shared memory outside of it, or not at a multiple of its size")
        if size != (self.width or size):
            raise Fault("accesses to shared memory are of one size here: the first byte of each stands for all")
        self.width = size
        where = (block, offset)
        self._hold_in_order(self.written, where, now, "access to shared memory races with a write")
        if not writes:
            if not self.is_written[where].all():
                raise Fault("reads shared memory that nobody has written")
            self._note_reads(where, now)
            return
        self._hold_in_order(self.read, where, now, "write to shared memory races with a read")
        if np.unique(block * self.bytes.shape[1] + offset).size != len(offset):
            raise Fault("two threads write to the same place of shared memory at once")
        self.is_written[where] = True
        for name, values in now.items():
            self.written[name][where] = values


class Tally:
    """What a launch costs a device, whatever its speed: instructions of warps, and where accesses go."""

    SECTOR, BANKS = 32, 32

    def __init__(self) -> None:
        self.issued = 0
        """Instructions, counted once for the threads of a warp that are at one together."""
        self.wanted = self.fetched = 0
        """Bytes of global memory that threads ask for, and those of the sectors that a warp's access touches."""
        self.turns = self.least_turns = 0
        """Accesses to shared memory one after another, since a bank gives one word at a time; and without conflicts."""

    def count_instruction(self, warps: Any) -> None:
        """Count an instruction of threads of these warps."""
        self.issued += np.unique(warps).size

    def count_global(self, warps: Any, addresses: Any, size: int) -> None:
        """Count an access to global memory."""
        self.wanted += addresses.size * size
        sectors = warps.astype(np.int64) << 40 | (addresses.astype(np.int64) & (1 << 45) - 1) // self.SECTOR
        self.fetched += np.unique(sectors).size * self.SECTOR

    def count_shared(self, threads: Any, offsets: Any, size: int) -> None:
        """Count an access to shared memory, which a warp makes by halves if words are of eight bytes."""
        assert size in (4, 8)
        groups = threads // (WARP * 4 // size)
        words = np.unique(groups << 32 | offsets // size)  # the same word serves all that ask for it
        banks = (words >> 32) * self.BANKS + words % (self.BANKS * 4 // size)
        _, groups_of = np.unique(groups, return_inverse=True)
        self.least_turns += int(groups_of.max()) + 1
        bank, asked = np.unique(banks, return_counts=True)
        most = np.zeros(int(bank.max()) // self.BANKS + 1, np.int64)
        np.maximum.at(most, bank // self.BANKS, asked)
        self.turns += int(most.sum())


# ------------------------------------------------------------------------------------------------------ what is read
class Instruction(NamedTuple):
    """A line of PTX: its predicate and whether that must be false, opcode, suffixes, and operands."""

    guard: str
    negated: bool
    opcode: str
    suffixes: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


class Kernel(NamedTuple):
    """A kernel as it was written."""

    instructions: list[Instruction]
    labels: dict[str, int]
    parameters: dict[str, str]
    """Types by name."""
    registers: dict[str, str]
    """Types by the letters that names begin with."""
    shared: dict[str, int]
    """Offsets of shared variables."""
    shared_size: int


def parse(ptx: str) -> Kernel:
    """The one kernel in a text of PTX."""
    text = re.sub(r"//.*", "", ptx)
    shared, size = {}, 0
    for align, name, extent in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", text):
        size += -size % int(align)
        shared[name] = size
        size += int(extent)
    head, body = re.search(r"\.visible \.entry \w+\((.*?)\)[^{]*\{(.*)\}", text, re.DOTALL).groups()  # type: ignore[union-attr]
    parameters = {name: kind for kind, name in re.findall(r"\.param \.(\w+) (\w+)", head)}
    registers = {letters: kind for kind, letters in re.findall(r"\.reg \.(\w+)\s+%(\w+)<", body)}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    scopes: list[dict[str, str]] = []
    for part in re.findall(r"\$\w+:|[^;:]+;", body):
        line = " ".join(part.split())
        while line[0] in "{}":  # registers of a scope hide those without
            if line[0] == "{":
                scopes.append({})
            else:
                scopes.pop()
            line = line[1:].lstrip()
        if own := re.fullmatch(r"\.reg \.(\w+) (%([a-z]+)\d+);", line):
            assert registers[own[3]] == own[1], line
            scopes[-1][own[2]] = f"{own[2]}@{len(instructions)}"
            continue
        for scope in scopes:
            line = re.sub(r"%\w+", lambda name: scope.get(name[0], name[0]), line)  # noqa: B023
        if line.endswith(":"):
            labels[line[:-1]] = len(instructions)
            continue
        if line.startswith("."):
            assert re.match(r"\.reg \.\w+ %\w+<|\.pragma ", line), line
            continue
        found = re.fullmatch(r"(?:@(!?%\S+) )?([\w.]+)\s*(.*);", line)
        assert found is not None, line
        guard, opcode, operands = found.groups()
        name, *suffixes = opcode.split(".")
        each = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", operands)
        instructions.append(
            Instruction(
                (guard or "").lstrip("!"), (guard or "").startswith("!"), name, tuple(suffixes), tuple(each), line
            )
        )
    return Kernel(instructions, labels, parameters, registers, shared, size)


# ---------------------------------------------------------------------------------------------------- what is computed
BITS = {"pred": 1} | {f"{letter}{bits}": bits for letter in "bsuf" for bits in (8, 16, 32, 64)}
DTYPES = {"pred": np.dtype(bool)} | {
    f"{letter}{bits}": np.dtype(f"{code}{bits // 8}")
    for letter, code in zip("bsuf", "uiuf", strict=True)
    for bits in (8, 16, 32, 64)
    if letter + str(bits) != "f8"
}


def is_float(kind: str) -> bool:
    """Whether a type is one of floats."""
    return kind[0] == "f"


def quotient(a: Any, b: Any) -> Any:
    """Of integers, rounded towards zero."""
    if (b == 0).any():
        raise Fault("an integer is divided by zero")
    if a.dtype.kind == "u":
        return a // b
    whole = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -whole, whole).astype(a.dtype)


def shifted(opcode: str, a: Any, b: Any) -> Any:
    """A shift, by which all bits may go."""
    width = 8 * a.dtype.itemsize
    by = np.minimum(b, width - 1).astype(a.dtype)
    gone = b >= width
    if opcode == "shl":
        return np.where(gone, a.dtype.type(0), a << by)
    return np.where(gone & (a >= 0), a.dtype.type(0), a >> by)  # what is negative keeps its sign


def extreme(opcode: str, a: Any, b: Any) -> Any:
    """The larger or smaller; a number rather than a NaN, and of two zeros that of the sign."""
    if a.dtype.kind in "iu":
        return np.maximum(a, b) if opcode == "max" else np.minimum(a, b)
    chosen = np.fmax(a, b) if opcode == "max" else np.fmin(a, b)
    join = np.bitwise_and if opcode == "max" else np.bitwise_or
    bits = f"u{a.dtype.itemsize}"
    return np.where(a == b, join(a.view(bits), b.view(bits)).view(a.dtype), chosen)


COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),  # of floats; of integers the same
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}


# What computes gives this NaN, whatever those it was given; what moves and chooses leaves them as they are.
NAN = {"f16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8000000000000}
COMPUTING = ("add", "sub", "mul", "fma", "div", "rcp", "neg", "abs", "min", "max", "cvt", "lg2")


def with_nan_of_device(kind: str, values: Any) -> Any:
    """Values with each NaN as a device has it."""
    values = np.asarray(values, DTYPES[kind])
    is_nan = np.isnan(values)
    if not is_nan.any():
        return values
    return np.where(is_nan, np.array(NAN[kind], f"u{values.itemsize}").view(values.dtype), values)


def pair_of_halves(kind: str, high: Any, low: Any) -> Any:
    """Two floats rounded to 16 bits each, in a word."""
    dtype: Any = {"f16x2": np.float16, "bf16x2": ml_dtypes.bfloat16}[kind]
    bits = [a.astype(dtype).view(np.uint16).astype(np.uint32) for a in (high, low)]
    return bits[0] << np.uint32(16) | bits[1]


def simple(instruction: Instruction) -> tuple[str, tuple[str, ...], Callable[..., Any]]:
    """What an instruction that a thread does by itself gives: type of the result, of the operands, and the function."""
    opcode, suffixes = instruction.opcode, instruction.suffixes
    kind, last = suffixes[-1], suffixes[:-1]
    rounded = opcode in ("add", "sub", "mul", "fma", "div", "rcp") and is_float(kind)
    if rounded and last != ("rn",):
        raise Fault(f"rounding is left to the next compiler: {instruction.text}")
    match opcode, last:
        case ("add", ()) | ("add", ("rn",)):
            return kind, (kind, kind), np.add
        case ("sub", ()) | ("sub", ("rn",)):
            return kind, (kind, kind), np.subtract
        case ("mul", ("lo",)) | ("mul", ("rn",)):
            return kind, (kind, kind), np.multiply
        case "mul", ("wide",):
            wide = f"{kind[0]}{2 * BITS[kind]}"
            return wide, (kind, kind), lambda a, b: a.astype(DTYPES[wide]) * b.astype(DTYPES[wide])
        case "fma", ("rn",):
            return kind, (kind,) * 3, fma
        case ("div", ("rn",)):
            return kind, (kind, kind), np.divide
        case "rcp", ("rn",):
            return kind, (kind,), lambda a: a.dtype.type(1) / a
        case "div", ():
            return kind, (kind, kind), quotient
        case "rem", ():
            return kind, (kind, kind), lambda a, b: a - b * quotient(a, b)
        case "neg", ():
            return kind, (kind,), np.negative
        case "abs", ():
            return kind, (kind,), np.abs
        case (("max" | "min"), ()):
            return kind, (kind, kind), lambda a, b: extreme(opcode, a, b)
        case "and", ():
            return kind, (kind, kind), np.bitwise_and
        case "or", ():
            return kind, (kind, kind), np.bitwise_or
        case "xor", ():
            return kind, (kind, kind), np.bitwise_xor
        case "not", ():
            return kind, (kind,), np.bitwise_not
        case (("shl" | "shr"), ()):
            return kind, (kind, "u32"), lambda a, b: shifted(opcode, a, b)
        case "bfi", ():
            return kind, (kind, kind, "u32", "u32"), inserted
        case "mov", ():
            return kind, (kind,), lambda a: a
        case "selp", ():
            return kind, (kind, kind, "pred"), lambda a, b, chosen: np.where(chosen, a, b)
        case "setp", (how,):
            return "pred", (kind, kind), COMPARED[how]
        case "cvt", ("rn", ("f16x2" | "bf16x2") as halves):
            return "b32", (kind, kind), lambda high, low: pair_of_halves(halves, high, low)
        case "cvt", (*mode, result):
            rounds = is_float(result) and not (is_float(kind) and BITS[result] >= BITS[kind])
            assert is_float(result) or not is_float(kind), instruction.text
            assert tuple(mode) == (("rn",) if rounds else ()), instruction.text
            return result, (kind,), lambda a: a.astype(DTYPES[result])
        case "lg2", ("approx",):
            return kind, (kind,), np.log2  # a device gives what is near
    raise Fault(f"no such instruction is known: {instruction.text}")


def inserted(a: Any, b: Any, start: Any, length: Any) -> Any:
    """The bits of b with `length` of them from `start` on replaced by the low ones of a."""
    one = a.dtype.type(1)
    mask = ((one << length.astype(a.dtype)) - one) << start.astype(a.dtype)
    return (b & ~mask) | ((a << start.astype(a.dtype)) & mask)


# ------------------------------------------------------------------------------------------------------- the machine
COLLECTIVE = ("bar", "shfl", "vote")


class _Run:
    """A launch under way: the registers of every thread, and where it is in the text."""

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        grid: int,
        threads: int,
        arguments: Sequence[Any],
        blocks: Sequence[int],
        tally: Tally | None,
    ) -> None:
        assert threads % WARP == 0
        self.kernel, self.memory, self.threads, self.tally = kernel, memory, threads, tally
        count = len(blocks) * threads
        self.thread = np.arange(count)
        self.block, self.warp = self.thread // threads, self.thread // WARP
        self.special = {
            "%tid.x": self.thread % threads,
            "%ctaid.x": np.asarray(blocks)[self.block],
            "%ntid.x": np.full(count, threads),
            "%nctaid.x": np.full(count, grid),
        }
        self.shared = SharedMemory(len(blocks), kernel.shared_size)
        self.passed = {"of_block": np.zeros(count, np.int64), "of_warp": np.zeros(count, np.int64)}
        self.at = np.zeros(count, np.int64)
        self.registers: dict[str, Any] = {}
        if len(arguments) != len(kernel.parameters):
            raise Fault(f"the kernel takes {len(kernel.parameters)} arguments, not {len(arguments)}")
        self.arguments = {}
        for (name, kind), value in zip(kernel.parameters.items(), arguments, strict=True):
            if isinstance(value, float) != is_float(kind):
                raise Fault(f"argument {name} is {value!r}, where the kernel takes {kind}")
            self.arguments[name] = np.array(value).astype(DTYPES[kind])

    def register(self, name: str) -> Any:
        """A register of all threads, as bits."""
        found = self.registers.get(name)
        if found is None:
            kind = self.kernel.registers[re.match(r"%(\D+)", name)[1]]  # type: ignore[index]
            dtype = bool if kind == "pred" else f"u{BITS[kind] // 8}"
            found = self.registers[name] = np.empty(self.thread.size, dtype)
            found.view(np.uint8)[...] = kind == "pred" or Memory.GARBAGE
        return found

    def value(self, operand: str, kind: str, lanes: Any) -> Any:
        """An operand of some threads."""
        dtype = DTYPES[kind]
        if operand in self.special:
            return self.special[operand][lanes].astype(dtype)
        if operand.startswith("{"):  # of two, the first is the lower
            low, high = (self.value(name, f"b{BITS[kind] // 2}", lanes).astype(dtype) for name in names_in(operand))
            return high << dtype.type(BITS[kind] // 2) | low
        if operand.startswith("%"):
            found = self.register(operand)[lanes]
            if kind == "pred":
                return found
            if found.itemsize > dtype.itemsize:
                found = found.astype(f"u{dtype.itemsize}")  # the low bits
            return found.view(dtype)
        if operand in self.kernel.shared:
            return dtype.type(self.kernel.shared[operand])
        if re.match(r"0[fd]", operand):
            bits = np.array(int(operand[2:], 16), f"u{dtype.itemsize}")
            return bits.view(dtype)[()]
        if kind == "pred":
            return np.bool_(int(operand))
        return np.array(int(operand, 0) & (1 << BITS[kind]) - 1, f"u{dtype.itemsize}").view(dtype)[()]

    def set(self, name: str, value: Any, kind: str, lanes: Any) -> None:
        """Let a register of some threads be a value."""
        if name == "_":
            return
        register = self.register(name)
        bits = np.asarray(value, DTYPES[kind])
        if register.dtype == bool:
            register[lanes] = bits
            return
        bits = bits.view(f"u{bits.itemsize}")
        # A load of a byte or of 16 bits goes to a register that may be wider.
        register[lanes] = np.asarray(value).astype(register.dtype) if bits.itemsize != register.itemsize else bits

    # -------------------------------------------------------------------------------------------------- instructions
    def address(self, operand: str, lanes: Any) -> Any:
        """The address in brackets, of some threads."""
        name, _, offset = operand.strip("[]").partition("+")
        start = self.value(name, "u64", lanes)
        return np.broadcast_to(np.uint64(int(offset or 0) % 2**64) + start, self.thread[lanes].shape)

    def access(self, instruction: Instruction, lanes: Any) -> None:
        """A load or a store."""
        opcode, (space, *vector, kind) = instruction.opcode, instruction.suffixes
        registers, place = instruction.operands if opcode == "ld" else instruction.operands[::-1]
        if space == "param":
            self.set(registers, self.arguments[place.strip("[]")], kind, lanes)
            return
        names, size = names_in(registers), BITS[kind] // 8
        assert len(names) == (int(vector[0][1:]) if vector else 1)
        address = self.address(place, lanes)
        values = [self.value(name, kind, lanes) for name in names] if opcode == "st" else []
        if space == "shared":
            assert len(names) == 1
            block, offset = self.block[lanes], address.astype(np.int64)
            now = {name: passed[lanes] for name, passed in self.passed.items()}
            now |= {"thread": self.thread[lanes], "warp": self.warp[lanes]}
            self.shared.touch(block, offset, size, now, opcode == "st")
            if self.tally:
                self.tally.count_shared(self.thread[lanes], offset, size)
            words, index = self.shared.bytes.view(f"u{size}"), (block, offset // size)
            if opcode == "ld":
                self.set(registers, words[index].view(DTYPES[kind]), kind, lanes)
            else:
                words[index] = np.broadcast_to(values[0], block.shape).view(words.dtype)
            return
        assert space == "global", instruction.text
        if self.tally:
            self.tally.count_global(self.warp[lanes], address, size * len(names))
        start = self.memory.places(address, size * len(names)) * len(names)
        words = self.memory.words(size)
        unwritten = self.memory.unwritten.view(f"u{size}")
        for k, name in enumerate(names):
            if opcode == "ld":
                if unwritten[start + k].any():
                    raise Fault(f"reads what nobody has written: {instruction.text}")
                self.set(name, words[start + k].view(DTYPES[kind]), kind, lanes)
            else:
                words[start + k] = np.broadcast_to(values[k], start.shape).view(words.dtype)
                unwritten[start + k] = 0

    def atomic(self, instruction: Instruction, lanes: Any) -> None:
        """What threads do to the same place one after another."""
        text, operands = ".".join((instruction.opcode, *instruction.suffixes)), instruction.operands
        kind = instruction.suffixes[-1]
        place = operands[0] if instruction.opcode == "red" else operands[1]
        index = self.memory.places(self.address(place, lanes), BITS[kind] // 8)
        words = self.memory.words(BITS[kind] // 8).view(DTYPES[kind])
        if self.memory.unwritten.view(f"u{BITS[kind] // 8}")[index].any():
            raise Fault(f"reads what nobody has written: {instruction.text}")
        given = np.broadcast_to(self.value(operands[-1], kind, lanes), index.shape)
        before = np.empty(index.shape, words.dtype)
        for k, (i, value) in enumerate(zip(index, given, strict=True)):
            before[k] = words[i]
            if text == "atom.acq_rel.gpu.global.inc.u32":
                words[i] = 0 if before[k] >= value else before[k] + 1
            elif text == "red.global.min.s64":
                words[i] = min(words[i], value)
            else:
                raise Fault(f"no such instruction is known: {instruction.text}")
        if instruction.opcode == "atom":
            self.set(operands[0], before, kind, lanes)

    def meet(self, instruction: Instruction, lanes: Any) -> None:
        """What whole warps or thread blocks do together; `lanes` are whole ones, in order."""
        text, operands = ".".join((instruction.opcode, *instruction.suffixes)), instruction.operands
        of_block, reduces = waits_for_block(instruction), "red" in instruction.suffixes
        if not of_block and (self.value(operands[-1], "s32", lanes) != EVERYONE).any():
            raise Fault(f"not for the whole warp: {instruction.text}")
        if of_block and operands[1 if reduces else 0 : 2 if reduces else None] != ("0",):
            raise Fault(f"a barrier of its own: {instruction.text}")
        group = (-1, self.threads if of_block else WARP)
        match text:
            case "bar.sync" | "bar.red.or.pred":
                self.passed["of_block"][lanes] += 1
            case "bar.warp.sync":
                self.passed["of_warp"][lanes] += 1
        if text in ("bar.red.or.pred", "vote.sync.any.pred"):
            asked = self.value(operands[2 if reduces else 1], "pred", lanes)
            asked = np.broadcast_to(asked, lanes.shape).reshape(group)
            self.set(operands[0], np.repeat(asked.any(1), group[1]), "pred", lanes)
        elif text in ("shfl.sync.down.b32", "shfl.sync.idx.b32"):
            names, source, by, limits, _ = operands
            if (self.value(limits, "u32", lanes) != WARP - 1).any():
                raise Fault(f"not over the whole warp: {instruction.text}")
            lane = self.thread[lanes] % WARP
            by = np.broadcast_to(self.value(by, "u32", lanes), lanes.shape).astype(np.int64)
            from_ = lane + by if "down" in text else by % WARP
            inside = from_ < WARP
            values = np.broadcast_to(self.value(source, "b32", lanes), lanes.shape)
            into, *told = names.split("|")
            self.set(into, values[np.arange(lanes.size) - lane + np.where(inside, from_, lane)], "b32", lanes)
            for name in told:
                self.set(name, inside, "pred", lanes)
        elif text not in ("bar.sync", "bar.warp.sync"):
            raise Fault(f"no such instruction is known: {instruction.text}")

    # ----------------------------------------------------------------------------------------------------- the order
    def go(self) -> None:
        """Run to the end: always the threads that are furthest behind, so that those that part meet again."""
        instructions = self.kernel.instructions
        steps = [step_of(instruction) for instruction in instructions]
        end = len(instructions)
        waits = np.array([instruction.opcode in COLLECTIVE for instruction in instructions] + [True])
        while (self.at < end).any():
            ready = ~waits[self.at]
            if ready.any():
                position = int(self.at[ready].min())
                lanes = np.flatnonzero(ready & (self.at == position))
                self._straight(position, lanes, steps)
            else:
                self._together()

    def _straight(self, position: int, lanes: Any, steps: list[Any]) -> None:
        """Run threads on until they part, wait, or come to where others are."""
        instructions = self.kernel.instructions
        whole = lanes.size == self.thread.size
        others = self.at[self.at > position]
        stop = int(others.min()) if others.size else len(instructions)
        while position < stop:
            instruction = instructions[position]
            opcode = instruction.opcode
            if opcode in COLLECTIVE:
                break
            if self.tally:
                self.tally.count_instruction(self.warp[lanes])
            going = lanes
            if instruction.guard:
                holds = self.value(instruction.guard, "pred", lanes)
                going = lanes[holds ^ instruction.negated]
            if opcode in ("bra", "ret"):
                self.at[lanes] = position + 1
                target = len(instructions) if opcode == "ret" else self.kernel.labels[instruction.operands[0]]
                self.at[going] = target
                if going.size not in (0, lanes.size) or (going.size and target <= position):
                    return
                if going.size:
                    if target > stop:
                        return
                    position = target
                else:
                    position += 1
                continue
            if going.size:
                steps[position](self, slice(None) if whole and going.size == lanes.size else going)
            position += 1
        self.at[lanes] = position

    def _together(self) -> None:
        """Let one barrier, shuffle or vote happen, for the warps or thread blocks that are all there."""
        instructions = self.kernel.instructions
        for position in np.unique(self.at[self.at < len(instructions)]):
            instruction = instructions[position]
            size = self.threads if waits_for_block(instruction) else WARP
            there = (self.at == position).reshape(-1, size)
            # Threads that have ended are not waited for by a thread block; our kernels have none that end early.
            lanes = np.flatnonzero(np.repeat(there.all(1), size))
            if lanes.size:
                if instruction.guard:
                    raise Fault(f"a barrier for some: {instruction.text}")
                if self.tally:
                    self.tally.count_instruction(self.warp[lanes])
                self.meet(instruction, lanes)
                self.at[lanes] += 1
                return
        raise Fault("threads wait for others that never come")


def waits_for_block(instruction: Instruction) -> bool:
    """Whether an instruction waits for the whole thread block, not for a warp."""
    return instruction.opcode == "bar" and instruction.suffixes[0] != "warp"


def names_in(operand: str) -> list[str]:
    """The names in braces, or the one without."""
    return operand.strip("{}").replace(",", " ").split()


def step_of(instruction: Instruction) -> Any:
    """What an instruction does, as a function of a run and its threads."""
    match instruction.opcode:
        case "ld" | "st":
            return lambda run, lanes: run.access(instruction, lanes)
        case "atom" | "red":
            return lambda run, lanes: run.atomic(instruction, lanes)
        case "membar":
            return lambda run, lanes: None  # all see the same memory here
        case "bra" | "ret" | "bar" | "shfl" | "vote":
            return None
    kind, kinds, function = simple(instruction)
    name, *operands = instruction.operands
    given = list(zip(operands, kinds, strict=True))
    may_be_nan = instruction.opcode in COMPUTING and kind in NAN

    def step(run: _Run, lanes: Any) -> None:
        result = function(*(run.value(operand, of, lanes) for operand, of in given))
        run.set(name, with_nan_of_device(kind, result) if may_be_nan else result, kind, lanes)

    return step


def run(
    kernel: Kernel,
    memory: Memory,
    grid: int,
    threads: int,
    arguments: Sequence[Any],
    blocks: Sequence[int] | None = None,
    tally: Tally | None = None,
) -> None:
    """Run a kernel on `grid` thread blocks of `threads` threads each; if `blocks` is given, on these of them alone."""
    with np.errstate(all="ignore"):
        _Run(kernel, memory, grid, threads, arguments, range(grid) if blocks is None else blocks, tally).go()
