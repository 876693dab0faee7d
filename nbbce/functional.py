"""The public functions: signature, docstring, one call each."""

from __future__ import annotations

from typing import Any

from nbbce._call import (
    FOCAL,
    GRADIENT,
    GRADIENT_AND_HESSIAN,
    LOGITS,
    PROBABILITIES,
    VALUE,
    VALUE_AND_GRADIENT,
    Call,
    Results,
    checked,
)
from nbbce._host_arrays import in_kind

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_grad",
    "binary_cross_entropy_value_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_grad",
    "binary_cross_entropy_with_logits_grad_and_hess",
    "binary_cross_entropy_with_logits_value_and_grad",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_value_and_grad",
]


# Numba takes 0.3 s to import, so it comes in with the first call, not with `nbbce`.


def _run_on_host(call: Call) -> tuple[Any, Any]:
    """Run a checked call on NumPy memory."""
    global _run_on_host
    from nbbce._cpu import run

    _run_on_host = run
    return run(call)


def _run_on_device(call: Call) -> tuple[Any, Any]:
    """Run a checked call on the device that its arrays are on."""
    global _run_on_device
    from nbbce._cuda import run

    _run_on_device = run
    return run(call)


def _run(call: Call | Results) -> tuple[Any, Any]:
    """Run a checked call where its arrays live, if it has not been run already."""
    if isinstance(call, tuple):
        return call
    if call.on_device:
        return _run_on_device(call)
    results = _run_on_host(call)
    return results if call.library is None else in_kind(call.library, call.given, call.own, results)


def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    *,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> Any:
    """Binary cross-entropy of predicted probabilities.

    The loss of one element with prediction ``x``, target ``y`` and weight ``w`` is
    ``-w * (pos_weight * y * log(x) + (1 - y) * log(1 - x))``, each logarithm held at -100 or above.

    Parameters
    ----------
    input : array of float16, bfloat16, float32 or float64
        Predicted probabilities, in [0, 1].  Any shape and strides; any object with ``__array__`` that is an array, or
        an array in the memory of a CUDA device (of CuPy, PyTorch, JAX, Numba, or of who exchanges arrays by DLPack),
        which is read where it lies.  All arrays of a call must be in one place.  If one is a Dask array, results are
        Dask arrays, of which nothing is computed yet, chunk by chunk.
    target : array of a real dtype, of the shape of `input`
        Wanted probabilities, in [0, 1]: labels 0 and 1 of any integer dtype or bool, or soft ones.  Converted
        element by element to the dtype of `input` (to float32, if that has 16 bits); never copied whole.
    weight : real number or array of a real dtype, optional
        Factor of each element's loss; broadcasts to the shape of `input`.
    reduction : {'mean', 'sum', 'none'}, default: 'mean'
        What to return: the mean of the losses, their sum, or the losses.  The mean divides by the number of
        elements, also when `weight` is given.
    pos_weight : real number or array of a real dtype, optional
        Factor of what the positive share of a label costs; broadcasts to the shape of `input` (one value a class).
        An infinite one makes a loss infinite where that share costs anything, and nothing else.
    label_smoothing : float, default: 0.0
        Share ``a`` in [0, 1] of a label that is given away: ``y`` becomes ``y * (1 - a) + a / 2``.
    axis : int or tuple of int, optional
        Axes to sum or take the mean along, as NumPy means them; by default all.  Not with ``reduction='none'``.
    keepdims : bool, default: False
        Whether the result keeps these axes, with one element.
    where : array of bool, optional
        Elements to count; broadcasts to the shape of `input`.  The others cost 0, are not divided by, and may hold
        anything.
    dtype : float dtype, optional
        Dtype of the result; by default that of `input`, in which losses are computed one by one whatever this is.
        Sums are accumulated in float64 in any case.
    out : array, optional
        Where the result goes: of the result's shape and dtype, not overlapping an input; an array of the library of
        `input`.
    validate : bool, default: True, on a device False
        Whether a value outside [0, 1], or NaN, is an error.  If not, it gives NaN.  The look costs no second pass,
        unless `out` is given; on a device it costs one, and the host waits for it.  Looked at is what is computed
        with: a label of ``1 + 1e-9`` is 1 to a float32 input.
    stream : stream or int, optional
        For arrays on a CUDA device: the stream, or its handle, that the work is put on; by default the one that is
        current in the arrays' library.

    Returns
    -------
    NumPy scalar or array
        With ``reduction='none'`` an array of the shape of `input`, otherwise one number, or an array of them if `axis`
        leaves some axes or `keepdims` is set.  `out`, if it is given.  A numpy.ndarray; for tensors, arrays of
        JAX and arrays on a device an array of the library of `input`, also for one number, without a gradient's
        history; for Dask arrays a lazy one.

    Raises
    ------
    TypeError
        If an argument is of a wrong kind or dtype, or arrays are in several places.
    ValueError
        If shapes do not fit, `reduction` is unknown, `out` cannot be written, or a value lies outside [0, 1].
    ImportError, RuntimeError
        On a device, if packages are missing, or if there is no driver.

    Warns
    -----
    RuntimeWarning
        If the mean is over no element; it is NaN.

    See Also
    --------
    binary_cross_entropy_grad : The derivative with respect to `input`.
    binary_cross_entropy_value_and_grad : Both, in one pass.
    binary_cross_entropy_with_logits : The same of logits, true in their tails.

    Notes
    -----
    The rule of -100 is that of PyTorch and Paddle: a loss is never above ``100 * w``.  Single losses are within 2 ULP
    of the exact value, float32 sums and means within 1; the bits depend neither on the number of threads nor on
    the memory layout.  What the dtype of the result cannot hold is infinite, without a warning.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import binary_cross_entropy
    >>> input = np.array([0.9, 0.2, 0.5])
    >>> target = np.array([1, 0, 1])
    >>> binary_cross_entropy(input, target, reduction="none").round(4)
    array([0.1054, 0.2231, 0.6931])
    >>> float(binary_cross_entropy(input, target).round(4))
    0.3406
    >>> binary_cross_entropy(input.reshape(3, 1), target.reshape(3, 1), axis=1).round(4)
    array([0.1054, 0.2231, 0.6931])
    """
    call = checked(
        "binary_cross_entropy",
        input,
        target,
        weight,
        reduction,
        pos_weight,
        label_smoothing,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        VALUE,
    )
    return _run(call)[0]


def binary_cross_entropy_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    *,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    grad_output: Any = None,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> Any:
    """Derivative of `binary_cross_entropy` with respect to its input.

    For one element ``w * ((1 - y) / max(1 - x, 1e-12) - pos_weight * y / max(x, 1e-12))``, which is
    ``w * (x - y) / (x * (1 - x))`` without `pos_weight` where no floor is active; divided by the number of elements
    for a mean.

    Parameters
    ----------
    input, target, weight, reduction, pos_weight, label_smoothing, axis, keepdims, where, validate, stream
        As of `binary_cross_entropy`.
    grad_output : real number or array, optional
        Derivative of what follows with respect to the loss: a number, or an array that broadcasts to the shape of
        the loss.  By default 1.
    dtype : float dtype, optional
        Dtype of the gradient; by default that of `input`.
    out : array, optional
        Where the gradient goes: of the shape of `input`, not overlapping an input.

    Returns
    -------
    array
        The gradient, of the shape of `input`.  Finite everywhere in [0, 1]: at most 1e12 for one element, and in
        float16 held at the largest finite number.  0 where `where` is False.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy`.

    See Also
    --------
    binary_cross_entropy_value_and_grad : Value and gradient in one pass.

    Notes
    -----
    At the ends this is the true derivative, where ``(x - y) / max(x * (1 - x), 1e-12)``, which others use, is not:
    for ``x = y = 0`` it is 1, not 0.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import binary_cross_entropy_grad
    >>> binary_cross_entropy_grad(np.array([0.5, 0.25, 0.0]), np.array([1, 0, 0]), reduction="sum").round(4)
    array([-2.    ,  1.3333,  1.    ])
    """
    function = "binary_cross_entropy_grad"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        pos_weight,
        label_smoothing,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        GRADIENT,
        PROBABILITIES,
        grad_output,
    )
    return _run(call)[1]


def binary_cross_entropy_value_and_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    *,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    grad_output: Any = None,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """`binary_cross_entropy` and its derivative, in one pass over the inputs.

    Parameters
    ----------
    input, target, weight, reduction, pos_weight, label_smoothing, axis, keepdims, where, dtype, validate, stream
        As of `binary_cross_entropy`.
    grad_output : real number or array, optional
        As of `binary_cross_entropy_grad`; the value is not multiplied by it.
    out : tuple of two arrays or None, optional
        Where value and gradient go; None stands for a new array.

    Returns
    -------
    value : NumPy scalar or array
        The bits of `binary_cross_entropy`.
    gradient : array
        The bits of `binary_cross_entropy_grad`.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import binary_cross_entropy_value_and_grad
    >>> value, gradient = binary_cross_entropy_value_and_grad(np.array([0.5, 0.25]), np.array([1.0, 0.0]))
    >>> float(value.round(4)), gradient.round(4)
    (0.4904, array([-1.    ,  0.6667]))
    """
    function = "binary_cross_entropy_value_and_grad"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        pos_weight,
        label_smoothing,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        VALUE_AND_GRADIENT,
        PROBABILITIES,
        grad_output,
    )
    return _run(call)


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> Any:
    """Binary cross-entropy of predictions that are given as logits.

    The loss of one element with logit ``z``, target ``y`` and weight ``w`` is
    ``w * ((1 - y) * softplus(z) + pos_weight * y * softplus(-z))``, where ``softplus(z) = log(1 + exp(z))``.  That is
    `binary_cross_entropy` of ``1 / (1 + exp(-z))``, but true for every logit.

    Parameters
    ----------
    input : array of float16, bfloat16, float32 or float64
        Logits: any numbers, infinite ones too.  Any shape and strides; on the host or on a CUDA device, as for
        `binary_cross_entropy`.
    target : array of a real dtype, of the shape of `input`
        Wanted probabilities, in [0, 1]: labels 0 and 1 of any integer dtype or bool, or soft ones.
    weight : real number or array of a real dtype, optional
        Factor of each element's loss; broadcasts to the shape of `input`.
    reduction : {'mean', 'sum', 'none'}, default: 'mean'
        What to return: the mean of the losses, their sum, or the losses.
    pos_weight : real number or array of a real dtype, optional
        Factor of what the positive share of a label costs; broadcasts to the shape of `input` (one value a class).
        An infinite one makes a loss infinite where that share costs anything, and nothing else.
    label_smoothing : float, default: 0.0
        Share ``a`` in [0, 1] of a label that is given away: ``y`` becomes ``y * (1 - a) + a / 2``.
    axis : int or tuple of int, optional
        Axes to sum or take the mean along, as NumPy means them; by default all.  Not with ``reduction='none'``.
    keepdims : bool, default: False
        Whether the result keeps these axes, with one element.
    where : array of bool, optional
        Elements to count; broadcasts to the shape of `input`.  The others cost 0, are not divided by, and may hold
        anything.
    dtype : float dtype, optional
        Dtype of the result; by default that of `input`, in which losses are computed one by one whatever this is.
        Sums are accumulated in float64 in any case.
    out : array, optional
        Where the result goes: of the result's shape and dtype, not overlapping an input; an array of the library of
        `input`.
    validate : bool, default: True, on a device False
        Whether a target outside [0, 1], or NaN, is an error.  If not, it gives NaN.  A NaN among the logits is no
        error and gives NaN.  On a device the look costs a pass, and the host waits for it.
    stream : stream or int, optional
        For arrays on a CUDA device: the stream, or its handle, that the work is put on; by default the one that is
        current in the arrays' library.

    Returns
    -------
    NumPy scalar or array
        With ``reduction='none'`` an array of the shape of `input`, otherwise one number, or an array of them if `axis`
        leaves some axes or `keepdims` is set.  `out`, if it is given.  A numpy.ndarray; for tensors, arrays of
        JAX and arrays on a device an array of the library of `input`, also for one number, without a gradient's
        history; for Dask arrays a lazy one.

    Raises
    ------
    TypeError
        If an argument is of a wrong kind or dtype, or arrays are in several places.
    ValueError
        If shapes do not fit, `reduction` is unknown, `out` cannot be written, or a target lies outside [0, 1].
    ImportError, RuntimeError
        On a device, if packages are missing, or if there is no driver.

    Warns
    -----
    RuntimeWarning
        If the mean is over no element; it is NaN.

    See Also
    --------
    binary_cross_entropy : The same of probabilities.
    binary_cross_entropy_with_logits_value_and_grad : Value and gradient, in one pass.
    binary_cross_entropy_with_logits_grad_and_hess : Gradient and hessian, in one pass.

    Notes
    -----
    With ``e = exp(-|z|)`` the loss is ``wrong * |z| + log(1 + e)``, where ``wrong`` is the label's share on the other
    side of 0.  Nothing in it cancels: single losses are within 2 ULP of the exact value, also where they are as
    small as ``exp(-100)``.  An infinite logit costs exactly 0 on the right side and infinity on the wrong one.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import binary_cross_entropy_with_logits
    >>> input = np.array([2.0, -20.0, np.inf])
    >>> target = np.array([1, 0, 1])
    >>> binary_cross_entropy_with_logits(input, target, reduction="none")
    array([1.26928011e-01, 2.06115362e-09, 0.00000000e+00])
    >>> float(binary_cross_entropy_with_logits(input, target, pos_weight=3.0).round(4))
    0.1269
    """
    function = "binary_cross_entropy_with_logits"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        pos_weight,
        label_smoothing,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        VALUE,
        LOGITS,
    )
    return _run(call)[0]


def binary_cross_entropy_with_logits_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    grad_output: Any = None,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> Any:
    """Derivative of `binary_cross_entropy_with_logits` with respect to its input.

    For one element ``w * ((1 - y) * sigma(z) - pos_weight * y * sigma(-z))``, where ``sigma(z) = 1 / (1 + exp(-z))``:
    ``w * (sigma(z) - y)`` without `pos_weight`; divided by the number of elements for a mean.

    Parameters
    ----------
    input, target, weight, reduction, pos_weight, label_smoothing, axis, keepdims, where, validate, stream
        As of `binary_cross_entropy_with_logits`.
    grad_output : real number or array, optional
        Derivative of what follows with respect to the loss: a number, or an array that broadcasts to the shape of
        the loss.  By default 1.
    dtype : float dtype, optional
        Dtype of the gradient; by default that of `input`.
    out : array, optional
        Where the gradient goes: of the shape of `input`, not overlapping an input.

    Returns
    -------
    array
        The gradient, of the shape of `input`: true in both tails.  0 where `where` is False.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import binary_cross_entropy_with_logits_grad
    >>> binary_cross_entropy_with_logits_grad(np.array([0.0, 40.0]), np.array([0, 1]), reduction="sum")
    array([ 5.00000000e-01, -4.24835426e-18])
    """
    function = "binary_cross_entropy_with_logits_grad"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        pos_weight,
        label_smoothing,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        GRADIENT,
        LOGITS,
        grad_output,
    )
    return _run(call)[1]


def binary_cross_entropy_with_logits_value_and_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    grad_output: Any = None,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """`binary_cross_entropy_with_logits` and its derivative, in one pass over the inputs.

    Parameters
    ----------
    input, target, weight, reduction, pos_weight, label_smoothing, axis, keepdims, where, dtype, validate, stream
        As of `binary_cross_entropy_with_logits`.
    grad_output : real number or array, optional
        As of `binary_cross_entropy_with_logits_grad`; the value is not multiplied by it.
    out : tuple of two arrays or None, optional
        Where value and gradient go; None stands for a new array.

    Returns
    -------
    value : NumPy scalar or array
        The bits of `binary_cross_entropy_with_logits`.
    gradient : array
        The bits of `binary_cross_entropy_with_logits_grad`.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import binary_cross_entropy_with_logits_value_and_grad
    >>> value, gradient = binary_cross_entropy_with_logits_value_and_grad(np.array([0.0, 2.0]), np.array([1.0, 0.0]))
    >>> float(value.round(4)), gradient.round(4)
    (1.41, array([-0.25  ,  0.4404]))
    """
    function = "binary_cross_entropy_with_logits_value_and_grad"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        pos_weight,
        label_smoothing,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        VALUE_AND_GRADIENT,
        LOGITS,
        grad_output,
    )
    return _run(call)


def binary_cross_entropy_with_logits_grad_and_hess(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    grad_output: Any = None,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """First and second derivative of `binary_cross_entropy_with_logits`, in one pass: what boosting asks for.

    The second derivative of one element is ``w * ((1 - y) + pos_weight * y) * sigma(z) * sigma(-z)``; both are divided
    by the number of elements for a mean.  Boosting libraries want those of the sum: ``reduction='sum'``.

    Parameters
    ----------
    input, target, weight, reduction, pos_weight, label_smoothing, axis, keepdims, where, dtype, validate, stream
        As of `binary_cross_entropy_with_logits`.
    grad_output : real number or array, optional
        As of `binary_cross_entropy_with_logits_grad`; both derivatives are multiplied by it.
    out : tuple of two arrays or None, optional
        Where gradient and hessian go; None stands for a new array.

    Returns
    -------
    gradient : array
        The bits of `binary_cross_entropy_with_logits_grad`.
    hessian : array
        The diagonal of the matrix of second derivatives, of the shape of `input`; its other elements are 0.  Never
        negative, unless a weight is.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import binary_cross_entropy_with_logits_grad_and_hess
    >>> input, target = np.array([0.0, 2.0]), np.array([1, 0])
    >>> gradient, hessian = binary_cross_entropy_with_logits_grad_and_hess(input, target, reduction="sum")
    >>> gradient.round(4), hessian.round(4)
    (array([-0.5   ,  0.8808]), array([0.25 , 0.105]))
    """
    function = "binary_cross_entropy_with_logits_grad_and_hess"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        pos_weight,
        label_smoothing,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        GRADIENT_AND_HESSIAN,
        LOGITS,
        grad_output,
    )
    return _run(call)


def sigmoid_focal_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "none",
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> Any:
    """Focal loss of predictions that are given as logits: cross-entropy that turns to the hard examples.

    With ``p = 1 / (1 + exp(-z))`` and ``p_t = p * y + (1 - p) * (1 - y)`` the loss of one element is
    ``w * alpha_t * (1 - p_t) ** gamma * bce``, where ``bce`` is its `binary_cross_entropy_with_logits` and
    ``alpha_t = alpha * y + (1 - alpha) * (1 - y)`` (Lin et al., "Focal Loss for Dense Object Detection", 2017; the
    definition and defaults of torchvision).

    Parameters
    ----------
    input, target, weight, axis, keepdims, where, dtype, out, validate, stream
        As of `binary_cross_entropy_with_logits`.
    reduction : {'none', 'mean', 'sum'}, default: 'none'
        What to return: the losses, their mean, or their sum.
    alpha : float or None, default: 0.25
        Weight of the positive labels, at most 1; that of the negative ones is ``1 - alpha``.  None, or a negative
        number as in torchvision, weighs both with 1.
    gamma : float, default: 2.0
        How much less an element counts the better it is predicted; finite and at least 0, which makes no difference
        between them.

    Returns
    -------
    NumPy scalar or array
        With ``reduction='none'`` an array of the shape of `input`, otherwise one number, or an array of them if `axis`
        leaves some axes or `keepdims` is set.  `out`, if it is given.  A numpy.ndarray; for tensors, arrays of
        JAX and arrays on a device an array of the library of `input`, also for one number, without a gradient's
        history; for Dask arrays a lazy one.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`, and if `alpha` or `gamma` is no such number.

    See Also
    --------
    sigmoid_focal_loss_value_and_grad : Value and gradient, in one pass.

    Notes
    -----
    ``(1 - p_t) ** gamma`` is computed in log space, in which neither ``p_t`` near 1 nor its power near 0 loses digits,
    or as a square: single losses are within 1 ULP of the exact value in float32, and within 3 in float64, for a `gamma`
    of up to 10.  The distance then grows with `gamma`, to 3 ULP in float32 and 200 in float64 at 1000.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import sigmoid_focal_loss
    >>> sigmoid_focal_loss(np.array([0.0, 2.0, 20.0]), np.array([1, 1, 1]))
    array([4.33216988e-02, 4.50890709e-04, 2.18912768e-27])
    """
    function = "sigmoid_focal_loss"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        None,
        0.0,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        VALUE,
        FOCAL,
        alpha=alpha,
        gamma=gamma,
    )
    return _run(call)[0]


def sigmoid_focal_loss_value_and_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "none",
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    grad_output: Any = None,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """`sigmoid_focal_loss` and its derivative with respect to its input, in one pass.

    Parameters
    ----------
    input, target, weight, reduction, alpha, gamma, axis, keepdims, where, dtype, validate, stream
        As of `sigmoid_focal_loss`.
    grad_output : real number or array, optional
        Derivative of what follows with respect to the loss: a number, or an array that broadcasts to the shape of
        the loss.  By default 1.  The value is not multiplied by it.
    out : tuple of two arrays or None, optional
        Where value and gradient go; None stands for a new array.

    Returns
    -------
    value : NumPy scalar or array
        The bits of `sigmoid_focal_loss`.
    gradient : array
        The gradient, of the shape of `input`; 0 where `where` is False.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_focal_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce import sigmoid_focal_loss_value_and_grad
    >>> value, gradient = sigmoid_focal_loss_value_and_grad(np.array([0.0, 2.0]), np.array([1, 0]), reduction="sum")
    >>> float(value.round(4)), gradient.round(4)
    (1.2809, array([-0.0746,  0.8075]))
    """
    function = "sigmoid_focal_loss_value_and_grad"
    call = checked(
        function,
        input,
        target,
        weight,
        reduction,
        None,
        0.0,
        axis,
        keepdims,
        where,
        dtype,
        out,
        validate,
        stream,
        VALUE_AND_GRADIENT,
        FOCAL,
        grad_output,
        alpha=alpha,
        gamma=gamma,
    )
    return _run(call)
