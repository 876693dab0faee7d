"""PyTorch's losses by its arguments, which its autograd derives: functions and modules, on the host and on devices.

Forward a loss is computed, and backward its gradient from the same tensors, scaled in the pass that makes it.  Nothing
but these tensors is kept in between.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from nbbce import functional
from nbbce._arguments import described
from nbbce._call import FOCAL, GRADIENT, LOGITS, PROBABILITIES, VALUE, Results, Wants, checked

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "sigmoid_focal_loss",
]

Tensor = Any  # torch.Tensor; PyTorch is not there for who checks types without it


class _Kind(NamedTuple):
    """A loss, and what it calls its input and its target."""

    function: str
    family: str
    input_name: str = "input"
    target_name: str = "target"


def _results(kind: _Kind, wants: Wants, tensors: dict[str, Tensor], options: dict[str, Any]) -> Results:
    """What is wanted of a loss of tensors: 'input', 'target', and 'weight', 'pos_weight', 'where' if they are given."""
    given: dict[str, Any] = {"weight": None} | tensors | options
    call = checked(
        f"{__name__}.{kind.function}",
        **given,
        wants=wants,
        family=kind.family,
        input_name=kind.input_name,
        target_name=kind.target_name,
    )
    return functional._run(call)


class _Loss(torch.autograd.Function):  # type: ignore[misc]
    """A loss to autograd."""

    @staticmethod
    def forward(
        ctx: Any, kind: _Kind, options: dict[str, Any], validate: bool | None, names: tuple[str, ...], *tensors: Tensor
    ) -> Tensor:
        """The loss of tensors of these names, of which the first is the input."""
        ctx.save_for_backward(*tensors)
        ctx.kind, ctx.options, ctx.names = kind, options, names
        given = dict(zip(names, tensors, strict=True))
        input = given["input"]
        # As PyTorch's own, which autocast gives float32; the scale of a loss is often more than float16 holds.
        wide = input.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(input.device.type)
        return _results(kind, VALUE, given, {**options, "validate": validate, "dtype": "float32" if wide else None})[0]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, for the tensor that has one; what is looked at forward is not looked at again."""
        if torch.is_grad_enabled():  # or a second derivative would silently be 0
            raise NotImplementedError("losses of nbbce.torch must be derived once; got create_graph=True")
        given = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        options = {**ctx.options, "validate": False, "grad_output": grad_output}
        gradient = _results(ctx.kind, GRADIENT, given, options)[1]
        return (*(None,) * 4, gradient, *(None,) * (len(given) - 1))


def _apply(kind: _Kind, options: dict[str, Any], validate: bool | None, **tensors: Tensor | None) -> Tensor:
    """Check that the arguments are tensors that may be derived by the input alone, and apply the loss."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    called = {"input": kind.input_name, "target": kind.target_name}
    for name, tensor in tensors.items():
        shown = f"nbbce.torch.{kind.function}: {called.get(name, name)!r}"
        if not isinstance(tensor, torch.Tensor) and (tensor is not None or name in called):
            raise TypeError(f"{shown} must be a tensor; got {described(tensor)}")
        if name != "input" and tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                f"{shown} must not require a gradient, which is there for the input alone; "
                "got one that does (see torch.Tensor.detach)"
            )
    return _Loss.apply(kind, options, validate, tuple(given), *given.values())


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    where: Tensor | None = None,
    validate: bool | None = None,
) -> Tensor:
    """Binary cross-entropy as PyTorch's ``nn.functional.binary_cross_entropy`` takes its arguments.

    Parameters
    ----------
    input : torch.Tensor of float16, bfloat16, float32 or float64
        Predicted probabilities, in [0, 1].
    target : torch.Tensor of any real dtype
        Wanted probabilities, in [0, 1], of the shape of `input`.  PyTorch takes those of the dtype of `input` alone.
    weight : torch.Tensor, optional
        Factor of each element's loss; broadcasts to the shape of `input`.
    reduction : {'mean', 'sum', 'none'}, default: 'mean'
        What to return: the mean of the losses, also when `weight` is given; their sum; the losses.
    label_smoothing : float, default: 0.0
        Share ``a`` in [0, 1] of a label that is given away: ``y`` becomes ``y * (1 - a) + a / 2``.
    where : torch.Tensor of bool, optional
        Elements to count; broadcasts to the shape of `input`.
    validate : bool, default: True on the host, False on a device
        Whether a value outside [0, 1] is a ValueError; if not, it gives NaN.

    Returns
    -------
    torch.Tensor
        The loss, of the dtype of `input` (under autocast of at least float32), which can be derived with respect to
        it, once; not by ``torch.func``.

    Raises
    ------
    NotImplementedError
        If it is derived with ``create_graph=True``, as for a second derivative.
    TypeError
        If an argument is no tensor, or one but `input` requires a gradient, or a dtype is wrong.
    ValueError
        If shapes do not fit, `reduction` is unknown, or a value lies outside [0, 1].

    See Also
    --------
    nbbce.binary_cross_entropy : The loss, its bounds and bits.
    nbbce.binary_cross_entropy_grad : The gradient, which is the true derivative at 0 and 1 too.

    Examples
    --------
    >>> import torch
    >>> from nbbce.torch import binary_cross_entropy
    >>> input = torch.tensor([0.5, 0.25, 0.0], requires_grad=True)
    >>> binary_cross_entropy(input, torch.tensor([1, 0, 0]), reduction="sum").backward()
    >>> input.grad
    tensor([-2.0000,  1.3333,  1.0000])
    """
    return _apply(
        _Kind("binary_cross_entropy", PROBABILITIES),
        {"reduction": reduction, "label_smoothing": label_smoothing},
        validate,
        input=input,
        target=target,
        weight=weight,
        where=where,
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    where: Tensor | None = None,
    validate: bool | None = None,
) -> Tensor:
    """Binary cross-entropy of logits as PyTorch's ``nn.functional.binary_cross_entropy_with_logits`` takes them.

    Parameters
    ----------
    input : torch.Tensor of float16, bfloat16, float32 or float64
        Predicted logits, infinite ones too.
    pos_weight : torch.Tensor, optional
        Factor of what the positive share of a label costs; broadcasts to the shape of `input`.
    target, weight, reduction, label_smoothing, where, validate
        As of `binary_cross_entropy`.

    Returns
    -------
    torch.Tensor
        The loss, which can be derived with respect to `input`, as that of `binary_cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy`.

    See Also
    --------
    nbbce.binary_cross_entropy_with_logits : The loss, true in both tails, where PyTorch's is in one.

    Examples
    --------
    >>> import torch
    >>> from nbbce.torch import binary_cross_entropy_with_logits
    >>> input = torch.tensor([-17.0, 17.0], requires_grad=True)
    >>> binary_cross_entropy_with_logits(input, torch.tensor([0, 1]), reduction="none")
    tensor([4.1399e-08, 4.1399e-08], grad_fn=<_LossBackward>)
    """
    return _apply(
        _Kind("binary_cross_entropy_with_logits", LOGITS),
        {"reduction": reduction, "label_smoothing": label_smoothing},
        validate,
        input=input,
        target=target,
        weight=weight,
        pos_weight=pos_weight,
        where=where,
    )


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """Focal loss of logits as torchvision's ``ops.sigmoid_focal_loss`` takes its arguments.

    Parameters
    ----------
    inputs : torch.Tensor of float16, bfloat16, float32 or float64
        Predicted logits.
    targets : torch.Tensor of any real dtype
        Wanted probabilities, in [0, 1], of the shape of `inputs`.
    alpha : float or None, default: 0.25
        Weight of the positive labels; None, or a negative number, weighs both with 1.
    gamma : float, default: 2.0
        How much less an element counts the better it is predicted.
    reduction : {'none', 'mean', 'sum'}, default: 'none'
        What to return: the losses, their mean, or their sum.

    Returns
    -------
    torch.Tensor
        The loss, which can be derived with respect to `inputs`, as that of `binary_cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`, and if `alpha` or `gamma` is no such number.

    See Also
    --------
    nbbce.sigmoid_focal_loss : The loss, true in its tails.

    Examples
    --------
    >>> import torch
    >>> from nbbce.torch import sigmoid_focal_loss
    >>> sigmoid_focal_loss(torch.tensor([0.0, 20.0]), torch.tensor([1, 1]))
    tensor([4.3322e-02, 2.1891e-27])
    """
    return _apply(
        _Kind("sigmoid_focal_loss", FOCAL, "inputs", "targets"),
        {"reduction": reduction, "alpha": alpha, "gamma": gamma},
        None,
        input=inputs,
        target=targets,
    )


class BCELoss(torch.nn.Module):  # type: ignore[misc]
    """`binary_cross_entropy` as a module, in place of ``torch.nn.BCELoss``.

    Parameters
    ----------
    weight, reduction, label_smoothing, validate
        As of `binary_cross_entropy`.  `weight` becomes a buffer, which goes where the module goes.

    Examples
    --------
    >>> import torch
    >>> from nbbce.torch import BCELoss
    >>> BCELoss(reduction="sum")(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 0.0]))
    tensor(0.9808)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        validate: bool | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.reduction, self.label_smoothing, self.validate = reduction, label_smoothing, validate

    def forward(self, input: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
        """The loss of predicted probabilities."""
        return binary_cross_entropy(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            where=where,
            validate=self.validate,
        )


class BCEWithLogitsLoss(torch.nn.Module):  # type: ignore[misc]
    """`binary_cross_entropy_with_logits` as a module, in place of ``torch.nn.BCEWithLogitsLoss``.

    Parameters
    ----------
    weight, reduction, pos_weight, label_smoothing, validate
        As of `binary_cross_entropy_with_logits`.  `weight` and `pos_weight` become buffers, which go where the module
        goes.

    Examples
    --------
    >>> import torch
    >>> from nbbce.torch import BCEWithLogitsLoss
    >>> BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(1.3863)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        validate: bool | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)
        self.reduction, self.label_smoothing, self.validate = reduction, label_smoothing, validate

    def forward(self, input: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
        """The loss of predicted logits."""
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing,
            where=where,
            validate=self.validate,
        )
