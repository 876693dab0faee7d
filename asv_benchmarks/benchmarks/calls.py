"""How long a call takes."""

from typing import Any

from .common import (
    DTYPES,
    FUNCTIONS,
    HALF_DTYPES,
    LABELS,
    REDUCTIONS,
    SIZES,
    TARGETS,
    THREADS,
    call_of,
    device_arrays,
    first_device,
    function_of,
)


class Calls:
    """Every function, as users call it."""

    params = (TARGETS, FUNCTIONS, REDUCTIONS, DTYPES, LABELS, list(SIZES), THREADS)
    param_names = ("target", "function", "reduction", "dtype", "labels", "size", "threads")
    rounds = 1
    warmup_time = 0.02
    repeat = (3, 20, 0.3)

    def setup(
        self, target: str, function: str, reduction: str, dtype: str, labels: str, size: str, threads: str
    ) -> None:
        if size == "small" and threads == "all":
            raise NotImplementedError("so small a call runs on one thread in any case")
        self.call = call_of(function, reduction, dtype, labels, size, threads)

    def time_call(self, *_: Any) -> None:
        self.call()


class HalfCalls(Calls):
    """Predictions of 16 bits, where they are many."""

    params = (TARGETS, FUNCTIONS, ["mean", "none"], HALF_DTYPES, ["0/1", "soft"], ["memory"], ["all"])


class CudaCalls(Calls):
    """Arrays on the first device; a time is until it is done."""

    params = (
        ["cuda"],
        FUNCTIONS,
        ["mean", "none"],
        DTYPES + HALF_DTYPES,
        ["0/1", "soft"],
        ["small", "memory"],
        ["all"],
    )

    def setup(
        self, target: str, function: str, reduction: str, dtype: str, labels: str, size: str, threads: str
    ) -> None:
        public, device = function_of(function), first_device()
        x, y, *_ = device_arrays(function, dtype, labels, SIZES[size])

        def call() -> None:
            public(x, y, reduction=reduction)
            device.wait()

        call()
        self.call = call
