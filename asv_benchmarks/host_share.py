"""What a call on a device takes the host: measured on the device that PyTorch sees, or without one.

    python asv_benchmarks/host_share.py         a table; needs PyTorch and nbbce[cuda13], or [test] and a C compiler

Without a device, tensors of the host stand for its own, which are asked the same questions.  Launches go by cuda.core
to a driver that does nothing; what a driver takes for one comes on top, and what PyTorch takes on a device for memory
and for its current stream.
"""

from __future__ import annotations

import argparse
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ON_DEVICE = torch.cuda.is_available()
if not ON_DEVICE:
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import ptx_driver

    ptx_driver.install(launching=False)  # before anything asks for a driver

import nbbce  # noqa: E402
from nbbce import _arrays, _compile_cuda, _device_arrays, _host_arrays  # noqa: E402


def pretend() -> None:
    """Let tensors of the host pass for tensors of a device."""
    stream = SimpleNamespace(cuda_stream=0)
    torch.cuda.current_stream = lambda device=None: stream  # type: ignore[assignment]
    torch.cuda.is_current_stream_capturing = lambda: False
    view = _device_arrays.Torch.view

    def of_first_device(self: Any, array: Any) -> Any:
        found = view(self, array)
        found.device = 0
        return found

    _device_arrays.Torch.view = of_first_device  # type: ignore[method-assign]
    _device_arrays.library_of(torch.empty(0))
    _arrays.device_types[torch.Tensor] = lambda tensor: tensor.is_cuda or True
    _host_arrays.Torch.holds = lambda self, array: not array.is_cpu  # type: ignore[method-assign]


def calls(size: int) -> dict[str, Callable[[], Any]]:
    """Calls that take the device less time than the host."""
    x, y, weight, out = (torch.rand(size, device="cuda" if ON_DEVICE else "cpu") for _ in range(4))
    bce, both = nbbce.binary_cross_entropy, nbbce.binary_cross_entropy_value_and_grad
    return {
        "mean": lambda: bce(x, y),
        "none": lambda: bce(x, y, reduction="none"),
        "none, into an array": lambda: bce(x, y, reduction="none", out=out),
        "mean, weights": lambda: bce(x, y, weight),
        "value and gradient of a mean": lambda: both(x, y),
        "value and gradient of logits": lambda: nbbce.binary_cross_entropy_with_logits_value_and_grad(x, y),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    if not ON_DEVICE:
        pretend()
    before = torch.cuda.synchronize if ON_DEVICE else "pass"
    number = 500  # fewer at once than a driver lets wait for the device
    print("| call | us |\n| --- | ---: |")
    with _compile_cuda.on_device(0):
        for name, call in calls(arguments.size).items():
            call()  # the first of its kind is remembered
            seconds = min(timeit.repeat(call, before, number=number, repeat=arguments.repeats)) / number
            print(f"| {name} | {seconds * 1e6:.1f} |")


if __name__ == "__main__":
    main()
