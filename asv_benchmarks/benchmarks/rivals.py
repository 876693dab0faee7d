"""The same work by nbbce and by what users have today; what is not installed is skipped."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np

from .common import SIZES, arrays, first_device, function_of, set_threads

Work = Callable[[], Any]
VALUE, BOTH, LOGITS_BOTH = "mean", "value and gradient", "logits, value and gradient"
FUNCTIONS = {
    VALUE: "binary_cross_entropy",
    BOTH: "binary_cross_entropy_value_and_grad",
    LOGITS_BOTH: "binary_cross_entropy_with_logits_value_and_grad",
}


def by_nbbce(work: str, x: Any, y: Any) -> Work:
    """By nbbce."""
    function = function_of(FUNCTIONS[work])
    return lambda: function(x, y)


def by_numpy(work: str, x: Any, y: Any) -> Work:
    """By what one writes in NumPy."""
    if work == VALUE:
        return lambda: -np.mean(y * np.log(x) + (1 - y) * np.log(1 - x))
    if work == BOTH:
        return lambda: (-np.mean(y * np.log(x) + (1 - y) * np.log(1 - x)), (x - y) / (x * (1 - x)) / x.size)
    return lambda: (np.mean(np.logaddexp(0, x) - x * y), (1 / (1 + np.exp(-x)) - y) / x.size)


def by_numexpr(work: str, x: Any, y: Any) -> Work:
    """By numexpr, which goes through memory once."""
    import numexpr

    if work != VALUE:
        raise NotImplementedError("numexpr has one result")
    numexpr.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    return lambda: -numexpr.evaluate("sum(y * log(x) + (1 - y) * log1p(-x))") / x.size


def by_cupy(work: str, x: Any, y: Any) -> Work:
    """By what one writes in CuPy: NumPy's functions, which hand CuPy's arrays over to it."""
    import cupy

    return by_numpy(work, cupy.asarray(x), cupy.asarray(y))


def by_torch(work: str, x: Any, y: Any, compiled: bool = False, place: str = "cpu") -> Work:
    """By PyTorch's own functions."""
    import torch

    torch.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    functional = torch.nn.functional
    function: Any = (
        functional.binary_cross_entropy_with_logits if work == LOGITS_BOTH else functional.binary_cross_entropy
    )
    if compiled:
        function = torch.compile(function)
    leaf, labels = (torch.from_numpy(array).to(place) for array in (x, y))
    leaf.requires_grad_(work != VALUE)

    def forward_and_backward() -> Any:
        leaf.grad = None
        value = function(leaf, labels)
        value.backward()
        return value, leaf.grad

    return (lambda: function(leaf, labels)) if work == VALUE else forward_and_backward


def by_torch_compile(work: str, x: Any, y: Any) -> Work:
    """By PyTorch's compiler."""
    return by_torch(work, x, y, compiled=True)


def by_jax(work: str, x: Any, y: Any) -> Work:
    """By XLA."""
    import jax
    import jax.numpy as jnp

    def mean(x: Any, y: Any) -> Any:
        if work == LOGITS_BOTH:
            return jnp.mean(jax.nn.softplus(x) - x * y)
        return -jnp.mean(y * jnp.log(x) + (1 - y) * jnp.log1p(-x))

    function = jax.jit(mean if work == VALUE else jax.value_and_grad(mean))
    a, b = jnp.asarray(x), jnp.asarray(y)
    return lambda: jax.block_until_ready(function(a, b))


def by_scikit_learn(work: str, x: Any, y: Any) -> Work:
    """By `log_loss`, and for logits by the loss inside `LogisticRegression`."""
    if work == LOGITS_BOTH:
        from sklearn._loss.loss import HalfBinomialLoss

        loss, outs = HalfBinomialLoss(), (np.empty_like(x), np.empty_like(x))
        return lambda: loss.loss_gradient(y, x, None, *outs, n_threads=numba.config.NUMBA_NUM_THREADS)
    from sklearn.metrics import log_loss

    if work == BOTH or not np.isin(y[:100], (0, 1)).all():
        raise NotImplementedError("log_loss has no gradient, and takes no soft labels")
    return lambda: log_loss(y, x)


LIBRARIES = {
    "nbbce": by_nbbce,
    "NumPy": by_numpy,
    "numexpr": by_numexpr,
    "torch": by_torch,
    "torch.compile": by_torch_compile,
    "JAX": by_jax,
    "scikit-learn": by_scikit_learn,
}


class Rivals:
    """float32, all threads."""

    params = (list(LIBRARIES), list(FUNCTIONS), ["0/1", "soft"], ["cache", "memory"])
    param_names = ("library", "work", "labels", "size")
    rounds = 1
    warmup_time = 0.05
    repeat = (3, 10, 1.0)

    def setup(self, library: str, work: str, labels: str, size: str) -> None:
        set_threads("all")
        x, y = arrays(FUNCTIONS[work], "float32", labels, SIZES[size])
        try:
            self.call = LIBRARIES[library](work, x, y)
        except ImportError as error:
            raise NotImplementedError(str(error)) from None
        self.call()

    def time_call(self, *_: str) -> None:
        self.call()


def by_nbbce_on_device(work: str, x: Any, y: Any) -> Work:
    """By nbbce, of arrays on the first device."""
    from nbbce import _bench_cuda

    upload = _bench_cuda.library().upload
    return by_nbbce(work, upload(x), upload(y))


DEVICE_LIBRARIES = {
    "nbbce": by_nbbce_on_device,
    "CuPy": by_cupy,
    "torch": partial(by_torch, place="cuda"),
    "torch.compile": partial(by_torch, compiled=True, place="cuda"),
}


class CudaRivals:
    """float32, arrays on the first device; a time is until it is done."""

    params = (list(DEVICE_LIBRARIES), list(FUNCTIONS), ["0/1", "soft"], ["small", "memory"])
    param_names = ("library", "work", "labels", "size")
    rounds = 1
    warmup_time = 0.05
    repeat = (3, 10, 1.0)

    def setup(self, library: str, work: str, labels: str, size: str) -> None:
        device = first_device()
        x, y = arrays(FUNCTIONS[work], "float32", labels, SIZES[size])
        try:
            answer = DEVICE_LIBRARIES[library](work, x, y)
        except ImportError as error:
            raise NotImplementedError(str(error)) from None

        def call() -> None:
            answer()
            device.wait()

        call()
        self.call = call

    def time_call(self, *_: str) -> None:
        self.call()
