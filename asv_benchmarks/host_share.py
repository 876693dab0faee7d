"""What a call on a device takes the host before it launches a kernel: measured without a device.

    python asv_benchmarks/host_share.py         a table; needs PyTorch and nbbce[cuda13], and no device

Tensors of the host stand for the device's, which are asked the same questions; Numba's simulator stands for the
driver, and launches nothing.  On a device the launch itself comes on top, and what PyTorch takes there for memory and
for its current stream.
"""

from __future__ import annotations

import argparse
import os
import timeit
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # before Numba is imported

import torch

import nbbce
from nbbce import _arrays, _device_arrays, _simulate_cuda


def pretend() -> None:
    """Let tensors of the host pass for tensors of a device."""
    stream = SimpleNamespace(cuda_stream=0)
    torch.cuda.current_stream = lambda device=None: stream  # type: ignore[assignment]
    _device_arrays.library_of(torch.empty(0))
    _arrays.device_types[torch.Tensor] = lambda tensor: tensor.is_cuda or True


def calls(size: int) -> dict[str, Callable[[], Any]]:
    """Calls that do not read what they are given."""
    x, y, weight, out = (torch.rand(size) for _ in range(4))
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
    pretend()
    warnings.simplefilter("ignore", RuntimeWarning)  # of integers that wrap, as they are to, where they are simulated
    print("| call | us |\n| --- | ---: |")
    launch = _simulate_cuda.run
    for name, call in calls(arguments.size).items():
        _simulate_cuda.run = launch
        call()  # the first of its kind is simulated, and remembered
        _simulate_cuda.run = lambda *arguments: None
        seconds = min(timeit.repeat(call, number=1000, repeat=arguments.repeats)) / 1000
        print(f"| {name} | {seconds * 1e6:.1f} |")


if __name__ == "__main__":
    main()
