"""Runs a checked call on a device: which kernel, which grid, on which stream, and the results in the caller's library.

Nothing here waits for the device, unless `validate=True` asks for an answer.
"""

from __future__ import annotations

import math
import threading
from importlib import import_module
from typing import Any, NamedTuple, cast

import numpy as np
from numba.core import config

from nbbce import _call
from nbbce._arrays import computed_in, kind_of, layout, order_of_memory
from nbbce._axes import SHORT, TILE, by_products, depth_of_columns, lanes_of, order_of, segments_of, step_of_rows
from nbbce._axes_cuda import inverse_of
from nbbce._call import Asked, Call, gradient_scale, has_shares, out_of_domain, remember
from nbbce._device_arrays import DeviceArray, library_of_type, view_of_result
from nbbce._elements_cuda import NUMBERS, OPERANDS, THREADS, WARP, Memory, Spec
from nbbce._generated_cuda import BLOCK, LEAST_SCALE, MOST_SCALE, PIECE

compiler: Any = import_module("nbbce._simulate_cuda" if config.ENABLE_CUDASIM else "nbbce._compile_cuda")

# Thread blocks of a multiprocessor for elements: as many as it takes, so that they come to memory in order.  On an H100
# losses of float32 then have 1.02 times the speed of a copy; 0.99 with 128, which go on by steps, and 0.97 with 32.
# Where a thread has little to write, of 16 bits or one element at a time, what it does before it begins counts: of
# bfloat16 they have 0.79 of it, and 0.92 with 128.  Of a sum there are as many as run at once: of four times as many,
# soft labels took 1 % less and labels 0/1 as long.
WHOLE_GRID, STEPPING_GRID = 2**23, 128  # all in all fewer than 2^31, which is the most, with up to 255 multiprocessors
# Room for the lanes of columns, in shared memory: 10 KiB for those of up to 256, else 40.
ROOMS_OF_LANES = (256, 1024)
NOWHERE = 2**63 - 1  # the index that a check starts from

# Room for the sums of blocks, one for each stream, kept and made larger when it must be: the array, its address, and
# for how many blocks.  It begins with the counter of thread blocks that are done, which each kernel leaves at 0.
_rooms: dict[tuple[str, int, int, int], tuple[Any, int, int]] = {}
PER_THREAD = 2  # the driver's handle of a thread's own default stream
_lock = threading.Lock()
_outgrown: list[Any] = []  # each is half as large as the next, or less
_recorded: list[Any] = []

# Kernels by what decides them: with the neighbours of a thread, the thread blocks of a multiprocessor, and the layout.
# To find that out anew takes 5 to 20 us.
MOST_REMEMBERED = 1000
_kernels: dict[tuple[Any, ...], tuple[Any, int, int, tuple[int, ...]]] = {}


class _Known(NamedTuple):
    """What a call launched, for calls like it: addresses are all that differs."""

    kernel: Any
    grid: int
    threads: int
    arguments: tuple[Any, ...]
    blocks: int
    """Blocks whose sums need room; 0 if they need none."""
    like: DeviceArray
    """How its input lay in memory."""
    dtype: np.dtype[Any]
    """That of its results."""
    wants_hessian: bool
    spans: tuple[tuple[int, int], ...]
    """Of each operand and each of the caller's own results, from where to where it reaches around its address."""
    own: tuple[tuple[int, int], ...]
    """Of each of the caller's own, its place in (value, gradient, hessian) and that of its address among arguments."""
    made: tuple[tuple[int, int, tuple[int, ...]], ...]
    """The same of each other result, and its shape."""


# Calls by what they ask for, and by all that their arrays are but for where they begin: to check one and to find its
# kernel takes three quarters of its time.
_known: dict[tuple[Any, ...], _Known] = {}
SUMS_AT = len(OPERANDS) + 1  # the address of sums among the arguments; that of the counter is next
FIRST_RESULT = 6  # of `OPERANDS`


def _memories(arrays: dict[str, DeviceArray]) -> tuple[dict[str, Memory], tuple[int, ...], int]:
    """How each operand lies in memory, the layout of those that are strided, and its number of dimensions."""
    given = list(arrays.items())
    dense = [array.is_c_contiguous for _, array in given]
    if all(dense):
        return {name: _dense(array) for name, array in given}, (0,), 0
    shape = given[0][1].shape
    extents, steps = layout(shape, [array.strides for _, array in given])
    while len(extents) > 1 and extents[0] == 1:
        extents, steps = extents[1:], [step[1:] for step in steps]
    memories, strides = {}, {name: (0,) * len(extents) for name in OPERANDS}
    for (name, array), is_dense, step in zip(given, dense, steps, strict=True):
        in_order = is_dense or (len(extents) == 1 and step[0] == array.itemsize)
        memories[name] = _dense(array) if in_order else Memory(_kind(array.dtype), "strided")
        strides[name] = tuple(step)
    if all(memory.access != "strided" for memory in memories.values()):
        return memories, (0,), 0
    return memories, (*extents, *(n for name in OPERANDS for n in strides[name])), len(extents)


def _kind(dtype: np.dtype[Any]) -> str:
    kind = kind_of(dtype)
    assert kind is not None
    return kind


def _places(result: DeviceArray) -> tuple[int, ...]:
    """Shape and strides of results along axes, if they are not dense."""
    return () if result.is_c_contiguous else (*result.shape, *result.strides)


def _dense(array: DeviceArray) -> Memory:
    return Memory(_kind(array.dtype), "dense" if array.address % 16 else "vector")


def _in_order_of_memory(arrays: dict[str, DeviceArray]) -> dict[str, DeviceArray]:
    """The arrays with their axes in the order of a result's memory: neighbouring threads write to neighbours."""
    # An input may be broadcast: it has no order.
    result = next(arrays[name] for name in OPERANDS[FIRST_RESULT:] if name in arrays)
    axes = order_of_memory(result.strides)
    if axes == list(range(result.ndim)):
        return arrays
    return {name: array.transpose(axes) for name, array in arrays.items()}


def _keep_if_recorded(array: Any, stream: int) -> bool:
    """Keep what a graph that is being recorded uses, for good: nobody tells us when it is played last."""
    recording: bool = compiler.is_capturing(stream)
    if recording:
        _recorded.append(array)
    return recording


def _room(blocks: int, x: DeviceArray, stream: int) -> int:
    """Address of the stream's room for the sums of blocks, or of a graph's own, which may be played elsewhere."""
    blocks = 1 << (blocks - 1).bit_length()
    # What the default stream of each thread is called is the same for all.
    thread = threading.get_ident() if stream == PER_THREAD else 0
    key = (x.library.name, x.device, stream, thread)
    with _lock:
        known = _rooms.get(key)
        if known is not None and known[2] >= blocks and not compiler.is_capturing(stream):
            return known[1]
        array = x.library.full((1 + blocks,), 0.0, np.dtype(np.float64), x, stream)
        address = view_of_result(array, x).address
        if not _keep_if_recorded(array, stream):
            if known is not None:
                _outgrown.append(known[0])  # another thread may be about to use it
            _rooms[key] = (array, address, blocks)
        return address


class _Launch:
    """A call's device, stream and numbers, and the launches on them."""

    def __init__(self, call: Call) -> None:
        x: Any = call.input
        self.call, self.x, self.library, self.device = call, x, x.library, x.device
        own = x.library.stream(x.device)
        self.stream = own if call.stream is None else call.stream
        operands = tuple(array for array in _operands(call) if array is not None)
        exchanged = any([array.library.exchanges for array in operands])
        if exchanged and self.stream not in (0, 1):
            compiler.let_wait(self.stream, 1, self.device)  # what is exchanged is ordered before the default stream
        # Whom nobody tells that another stream still reads, we keep until it does not.
        self.keeps = operands if exchanged or self.stream != own else ()
        self.computed = computed_in(x.dtype)
        smoothing = call.label_smoothing
        self.numbers = (1.0 - smoothing, smoothing / 2, call.pos_weight_number, *call.focal)
        self.kept_at = 0
        self.launched: list[tuple[Any, int, int, tuple[Any, ...]]] = []
        """Kernel, grid, threads of a thread block, and arguments of each launch."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> tuple[Any, DeviceArray]:
        """A new array of the caller's library, and its place in memory."""
        array = self.library.empty(shape, np.dtype(dtype), self.x, self.stream)
        return array, view_of_result(array, self.x)

    def full(self, shape: tuple[int, ...], value: float, dtype: Any) -> tuple[Any, DeviceArray]:
        """The same, filled with a value."""
        array = self.library.full(shape, value, np.dtype(dtype), self.x, self.stream)
        return array, view_of_result(array, self.x)

    def _kernel(
        self, task: str, arrays: dict[str, DeviceArray], result: np.dtype[Any] | None, options: dict[str, Any]
    ) -> tuple[Any, int, int, tuple[int, ...]]:
        """The kernel of a task, elements of a thread at once, thread blocks of a multiprocessor, and strides."""
        made = [task, self.device, self.call.family, result, *options.values()]
        dense = True
        for name, array in arrays.items():
            made += (name, array.dtype, array.address & 15)
            dense = dense and array.is_c_contiguous
        if not dense:
            made += (next(iter(arrays.values())).shape, *(array.strides for array in arrays.values()))
        key = tuple(made)
        known = _kernels.get(key)
        if known is None:
            if task == "each":
                arrays = _in_order_of_memory(arrays)
            memories, strides, dimensions = _memories(arrays)
            counting = task == "count" or options.get("counting")
            spec = Spec(
                task=task,
                family="" if counting else self.call.family,
                computed="float32" if counting else self.computed,
                **{"input": None, "target": None, **memories},  # type: ignore[arg-type]
                result="" if result is None else _kind(result),
                dimensions=dimensions,
                pairs=compiler.converts_pairs(self.device),
                **options,
            )
            kernel = compiler.loaded(spec, self.device)
            in_step = task in ("sum", "count", "rows", "columns")
            stepping = STEPPING_GRID if spec.width == 1 or "16" in spec.input.kind else WHOLE_GRID
            resident = compiler.resident(kernel, THREADS) if in_step else stepping
            known = remember(_kernels, key, (kernel, spec.at_once * spec.width, resident, strides), MOST_REMEMBERED)
        return known

    def _run(
        self,
        kernel: Any,
        grid: int,
        threads: int,
        arrays: dict[str, DeviceArray],
        result: DeviceArray | None,
        places: tuple[int, int, int],
        size: int,
        scales: tuple[float, float],
        layout: tuple[int, ...],
    ) -> None:
        """Launch a kernel; `places` are those of sums, of the counter, and of counts."""
        loss_scale, divisor = scales
        numbers = (loss_scale, gradient_scale(self.call), divisor, *self.numbers)
        assert len(numbers) == NUMBERS
        addresses = [arrays[name].address if name in arrays else 0 for name in OPERANDS]
        arguments = (*addresses, 0 if result is None else result.address, *places, size)
        launched = (kernel, grid, threads, (*arguments, *numbers, *layout))
        self.launched.append(launched)
        compiler.run(kernel, self.device, self.stream, *launched[1:])

    def launch(
        self,
        task: str,
        arrays: dict[str, DeviceArray],
        result: DeviceArray | None = None,
        loss_scale: float = 1.0,
        divisor: float = 1.0,
        **options: Any,
    ) -> None:
        """One launch over arrays of one shape; `options` are fields of the spec."""
        dtype = None if result is None or task == "check" else result.dtype
        kernel, width, resident, strides = self._kernel(task, arrays, dtype, options)
        size = next(iter(arrays.values())).size
        processors = compiler.multiprocessors(self.device)
        sums_at = counter_at = 0
        if task in ("sum", "count"):
            blocks = -(-size // BLOCK)
            # A warp takes a block: with few of them, few warps to a thread block spread them over the device.
            threads = WARP * max(1, min(THREADS // WARP, blocks // processors))
            grid = min(-(-blocks * WARP // threads), resident * processors)
            if blocks > 1:
                counter_at = _room(blocks, self.x, self.stream)
                sums_at = counter_at + 8
        else:
            threads = THREADS
            grid = min(-(-size // (width * threads)) or 1, resident * processors)
        places, scales = (sums_at, counter_at, self.kept_at), (loss_scale, divisor)
        self._run(kernel, grid, threads, arrays, result, places, size, scales, strides)

    def launch_along_axes(
        self,
        arrays: dict[str, DeviceArray],
        result: DeviceArray,
        loss_scale: float = 1.0,
        divisor: float = 1.0,
        counts_at: int = 0,
        **options: Any,
    ) -> None:
        """Sums along the axes of the call, or counts; one launch, or two where thread blocks share columns."""
        shape, axes = self.call.input.shape, self.call.axes
        assert axes is not None
        outer, columns, tile = order_of(shape, axes, self.computed)
        rows, width, groups = (math.prod(shape[d] for d in dims) for dims in (axes, columns, outer))
        arrays = {name: array.transpose((*outer, *axes, *columns)) for name, array in arrays.items()}
        in_rows = not columns and rows <= PIECE
        plain = "weight" not in arrays and not (options.get("shares") or options.get("counting"))
        products = by_products(self.call.family, self.computed, plain) and not (in_rows and rows < SHORT)
        options |= {"products": products, "result_dimensions": 0 if result.is_c_contiguous else result.ndim}
        scales = (loss_scale, divisor)
        if in_rows:
            step, processors = step_of_rows(rows), compiler.multiprocessors(self.device)
            kernel, _, resident, strides = self._kernel("rows", arrays, result.dtype, options)
            grid = min(-(-groups * rows // step) * WARP // THREADS + 1, resident * processors)
            layout = (*strides, rows, step, step // rows, inverse_of(rows), *_places(result))
            self._run(kernel, grid, THREADS, arrays, result, (0, 0, counts_at), groups * rows, scales, layout)
            return
        self._launch_columns(arrays, result, (groups, rows, width, tile), scales, counts_at, options)

    def fill_empty(self, result: DeviceArray, divisor: float) -> None:
        """Sums of nothing, 0, or with `divisor` 0 means of nothing, NaN: columns without rows."""
        x = self.x
        nothing = DeviceArray(result.address, (0,), (x.itemsize,), x.dtype, x.device, x.library, x.owner)
        options = {"products": False, "result_dimensions": 0 if result.is_c_contiguous else result.ndim}
        extents = (1, 0, result.size, min(result.size, TILE))
        self._launch_columns({"input": nothing, "target": nothing}, result, extents, (1.0, divisor), 0, options)

    def _launch_columns(
        self,
        arrays: dict[str, DeviceArray],
        result: DeviceArray,
        extents: tuple[int, int, int, int],
        scales: tuple[float, float],
        counts_at: int,
        options: dict[str, Any],
    ) -> None:
        """Sums of columns; `extents` are outer indices, rows, columns, and columns of a tile."""
        groups, rows, width, tile = extents
        processors = compiler.multiprocessors(self.device)
        tiles = -(-width // tile)
        last = width - (tiles - 1) * tile
        cuts = [(lanes_of(n) // n, depth_of_columns(lanes_of(n), options["products"])) for n in (last, tile)]
        segments = max(1, segments_of(rows, tile, tile * math.prod(cuts[1])))
        options["lanes"] = next(room for room in ROOMS_OF_LANES if room >= max(lanes_of(last), lanes_of(tile)))
        kernel, _, resident, strides = self._kernel("columns", arrays, result.dtype, options)
        parts, most = groups * tiles, resident * processors
        # Few tiles are shared, if they are so high that what waits for the second launch is little beside the inputs.
        shared_by = segments if parts < most and rows >= 16 * segments else 1
        sums_at = 0
        if shared_by > 1:
            waiting, memory = self.empty((2 * parts * shared_by * tile,), np.float64)
            _keep_if_recorded(waiting, self.stream)
            sums_at = memory.address
        numbers = (rows, width, tile, tiles, segments, shared_by, last, *cuts[0], *cuts[1])
        layout, places = (*strides, *numbers, *_places(result)), (sums_at, 0, counts_at)
        self._run(kernel, min(parts * shared_by, most), THREADS, arrays, result, places, parts, scales, layout)
        if shared_by > 1:
            kernel, _, resident, strides = self._kernel("segments", arrays, result.dtype, options)
            grid = min(-(-groups * width // THREADS), resident * processors)
            self._run(kernel, grid, THREADS, arrays, result, places, groups * width, scales, layout)


def _outs_of(out: Any) -> tuple[Any, ...]:
    """The caller's own results, as they are asked for."""
    return tuple(each for each in out if each is not None) if type(out) is tuple else (out,)


def _as_asked(asked: Asked) -> tuple[tuple[Any, ...], list[int]] | None:
    """What decides a call but where its arrays begin, and where; None if that takes views of them."""
    what, operands, out = asked
    kind = type(operands[0])
    library = library_of_type.get(kind)
    if library is None:
        return None
    if out is not None:
        given = tuple(each is not None for each in out) if type(out) is tuple else None
        what, operands = (what, given), (*operands, *_outs_of(out))
    made, addresses, place_of = [what], [], library.place
    for array in operands:
        if type(array) is kind or library_of_type.get(type(array)) is library:
            place = place_of(array)
            if place is None:
                return None
            addresses.append(place[0])
            made.append(place[1])
        elif type(array) in _call.NUMBERS and array != 0:  # whose sign is in the results' bits, and not in a key
            addresses.append(0)
            made.append(array)
        else:
            return None
    return tuple(made), addresses


def _again(asked: Asked) -> tuple[Any, Any] | None:
    """Results of a call like one before; None if there was none, or if there is an error to be named."""
    found = _as_asked(asked)
    if found is None:
        return None
    known = _known.get(found[0])
    if known is None:
        return None
    # To take a tuple apart takes less than to ask for its fields by name.
    kernel, grid, threads, arguments_then, blocks, like, dtype, wants_hessian, spans, own, made = known
    _, operands, out = asked
    addresses, arguments, results = found[1], [*arguments_then], [None, None, None]
    arguments[: len(operands)] = addresses[: len(operands)]
    outs = _outs_of(out) if own else ()
    if own:
        if _overlap(spans, addresses, len(operands)) or any([getattr(given, "requires_grad", False) for given in outs]):
            return None
        for (k, place), given, address in zip(own, outs, addresses[len(operands) :], strict=True):
            results[k], arguments[place] = given, address
    x = like.moved(addresses[0], operands[0])
    library, device = x.library, x.device
    with compiler.on_device(device):
        stream = library.stream(device)
        for k, place, shape in made:
            results[k] = array = library.empty(shape, dtype, x, stream)
            arguments[place] = address = library.address(array)
            if address % 16 != arguments_then[place] % 16:
                return None
        if blocks:
            counter_at = _room(blocks, x, stream)
            arguments[SUMS_AT : SUMS_AT + 2] = counter_at + 8, counter_at
        compiler.run(kernel, device, stream, grid, threads, arguments)
    for given in outs:
        library.note_written(given)
    return (results[1], results[2]) if wants_hessian else (results[0], results[1])


def _overlap(spans: tuple[tuple[int, int], ...], addresses: list[int], read: int) -> bool:
    """Whether an array behind the first `read`, which is written, has memory in common with one before it."""
    extents = [(at + low, at + high) for (low, high), at in zip(spans, addresses, strict=True)]
    return any(
        low < high_of_other and low_of_other < high
        for k, (low, high) in enumerate(extents[read:], read)
        for low_of_other, high_of_other in extents[:k]
    )


_call.again_on_device = _again


def run(call: Call) -> tuple[Any, Any]:
    """Value and gradient of a call, or gradient and hessian; None for what is not wanted."""
    launch = _Launch(call)
    with compiler.on_device(launch.device):
        if call.stream is None:
            results = _run(call, launch)
        else:
            with launch.library.on_stream(launch.stream, launch.device):
                results = _run(call, launch)
        if launch.keeps:
            compiler.keep_until_done(launch.device, launch.stream, launch.keeps)
        for array in _outs(call):
            if array is not None:
                launch.library.note_written(array.owner)
        if call.asked is not None and len(launch.launched) == 1 and cast(Any, call.input).size:
            _remember(call, launch, results)
        finished, stream = launch.library.finished, launch.stream
        value, gradient, hessian = (None if array is None else finished(array, stream) for array in results)
    return (gradient, hessian) if call.wants_hessian else (value, gradient)


def _remember(call: Call, launch: _Launch, results: tuple[Any, Any, Any]) -> None:
    """Keep what was launched for calls that are alike."""
    asked = cast(Asked, call.asked)
    found = _as_asked(asked)
    if found is None:
        return
    ((kernel, grid, threads, arguments),) = launch.launched
    loss, gradient, hessian = range(FIRST_RESULT, len(OPERANDS))
    at = (loss if call.reduction == "none" else len(OPERANDS), gradient, hessian)
    shapes = (call.input.shape if call.reduction == "none" else call.result_shape, call.input.shape, call.input.shape)
    outs = [(k, array) for k, array in enumerate(_outs(call)) if array is not None]
    arrays = (*_operands(call)[: len(asked[1])], *(array for _, array in outs))
    owned = [k for k, _ in outs]
    known = _Known(
        kernel,
        grid,
        threads,
        arguments,
        -(-call.input.size // BLOCK) if arguments[SUMS_AT] else 0,
        cast(Any, call.input).moved(0, None),  # without its array, so that no memory is kept
        call.dtype,
        call.wants_hessian,
        tuple((0, 0) if array is None else (array.footprint.low, array.footprint.high) for array in arrays),
        tuple((k, at[k]) for k in owned),
        tuple((k, at[k], shapes[k]) for k, array in enumerate(results) if array is not None and k not in owned),
    )
    remember(_known, found[0], known, MOST_REMEMBERED)


def _operands(call: Call) -> tuple[Any, ...]:
    """Arrays that are read, in the order of their addresses; those that a call does not have are None."""
    both = (call.input, call.target)
    return both if call.is_plain else (*both, call.weight, call.pos_weight, call.grad_output, call.where)


def _outs(call: Call) -> tuple[Any, ...]:
    """The caller's own arrays for the results."""
    return call.value_out, call.gradient_out, call.hessian_out


def _run(call: Call, launch: _Launch) -> tuple[Any, Any, Any]:
    x: Any = call.input
    summing = call.wants_value and call.reduction != "none"
    arrays = {name: array for name, array in zip(OPERANDS, _operands(call), strict=False) if array is not None}
    if call.validate and x.size:
        _check(call, launch, {name: arrays[name] for name in ("input", "target", "where") if name in arrays})
    results: dict[str, Any] = {}
    wanted = (call.wants_value and not summing, call.wants_gradient, call.wants_hessian)
    for name, wants, own in zip(OPERANDS[FIRST_RESULT:], wanted, _outs(call), strict=True):
        if wants and own is not None:
            results[name], arrays[name] = own.owner, own
        elif wants:
            results[name], arrays[name] = launch.empty(x.shape, call.dtype)
    value = results.get("loss")
    result: DeviceArray | None = None
    own_value: Any = call.value_out
    if summing:
        if own_value is not None:
            value, result = own_value.owner, own_value
        elif x.size:
            value, result = launch.empty(call.result_shape, call.dtype)
        else:
            value, result = launch.full(call.result_shape, np.nan if call.reduction == "mean" else 0.0, call.dtype)
    if x.size:
        _fill(call, launch, arrays, result)
    elif summing and own_value is not None:
        if own_value.size:
            launch.fill_empty(own_value, 0.0 if call.reduction == "mean" else 1.0)
    return value, results.get("gradient"), results.get("hessian")


def _fill(call: Call, launch: _Launch, arrays: dict[str, DeviceArray], result: DeviceArray | None) -> None:
    """Launch what fills the results of a call; `result` is that of a sum or mean."""
    mean, masked = call.reduction == "mean", call.where is not None
    factor, derived = call.weight_number, call.wants_gradient or call.wants_hessian
    options: dict[str, Any] = {
        "shares": has_shares(call),
        "loss_scaled": factor != 1.0,
        # Only where there is a derivative, so that one kernel serves a sum and a mean.
        "gradient_scaled": derived and (mean or factor * call.grad_output_number != 1.0),
        "scale_fits": derived and LEAST_SCALE <= abs(gradient_scale(call)) <= MOST_SCALE,
    }
    if call.axes is not None:
        _fill_along_axes(call, launch, arrays, result, options)
        return
    if mean and masked:
        kept, kept_memory = launch.empty((1,), np.float64)
        _keep_if_recorded(kept, launch.stream)
        launch.launch("count", {"input": arrays["where"]}, kept_memory)
        launch.kept_at = kept_memory.address
    if result is not None:
        launch.launch("sum", arrays, result, factor, 1.0 if masked or not mean else float(call.count), **options)
    else:
        launch.launch("each", arrays, None, factor, **options)


def _fill_along_axes(
    call: Call, launch: _Launch, arrays: dict[str, DeviceArray], result: DeviceArray | None, options: dict[str, Any]
) -> None:
    """The same of sums or means along axes, whose derivatives take a launch of their own."""
    x, mean, masked = call.input, call.reduction == "mean", call.where is not None
    derived = {"gradient", "hessian"} & arrays.keys()
    counts_at = 0
    if mean and masked:
        # Of another shape than `x` in any case: some libraries would give one of its shape its order in memory too.
        shape = (1, *(1 if d in (call.axes or ()) else n for d, n in enumerate(x.shape)))
        counts, counts_memory = launch.empty(shape, np.float64)
        _keep_if_recorded(counts, launch.stream)
        counts_at, shares_at, number = counts_memory.address, 0, 1.0
        counted = {"input": arrays["where"]}
        if derived:
            # Of each result, `grad_output` over its count: as on the CPU, all that its elements are multiplied by.
            shares, shares_memory = launch.empty(shape, np.float64)
            _keep_if_recorded(shares, launch.stream)
            shares_at, number, call.grad_output_number = shares_memory.address, call.grad_output_number, 1.0
            if "grad_output" in arrays:
                counted["grad_output"] = arrays["grad_output"]
        launch.launch_along_axes(counted, counts_memory, number, counts_at=shares_at, counting=True)
        if derived:
            arrays["grad_output"] = shares_memory.reshape(shape[1:]).broadcast_to(x.shape)
    if result is not None:
        inputs = {name: array for name, array in arrays.items() if name not in ("grad_output", *derived)}
        divisor = 1.0 if masked or not mean else float(call.count)
        launch.launch_along_axes(inputs, result, call.weight_number, divisor, counts_at, shares=options["shares"])
    if derived:
        launch.launch("each", arrays, None, call.weight_number, **options)


def _check(call: Call, launch: _Launch, arrays: dict[str, DeviceArray]) -> None:
    """A ValueError for the first element out of its domain; waits for the device."""
    _, memory = launch.full((1,), NOWHERE, np.int64)
    launch.launch("check", arrays, memory)
    first = int(compiler.fetch(memory.address, (), memory.dtype, launch.stream))
    if first != NOWHERE:
        raise out_of_domain(call, first)
