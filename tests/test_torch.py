"""PyTorch's losses by its arguments: values and derivatives, as functions and as modules."""

import re

import numpy as np
import pytest

import nbbce

torch = pytest.importorskip("torch")

import nbbce.torch as ours  # noqa: E402

DTYPES = ("float16", "bfloat16", "float32", "float64")
REDUCTIONS = ("mean", "sum", "none")
FUNCTIONS = {
    "binary_cross_entropy": nbbce.binary_cross_entropy_value_and_grad,
    "binary_cross_entropy_with_logits": nbbce.binary_cross_entropy_with_logits_value_and_grad,
    "sigmoid_focal_loss": nbbce.sigmoid_focal_loss_value_and_grad,
}
of_each = pytest.mark.parametrize("name", FUNCTIONS)
with_weights = pytest.mark.parametrize("name", list(FUNCTIONS)[:2])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def pair(name, generator, shape=(7, 5), dtype=torch.float64):
    """Input and soft labels."""
    input = torch.rand(shape, generator=generator, dtype=torch.float64)
    if name != "binary_cross_entropy":
        input = torch.logit(input)
    return input.to(dtype), torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_equal(one, other):
    """The same dtype and bits."""
    assert one.dtype == other.dtype
    assert torch.equal(one.detach(), other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@of_each
def test_value_and_gradient_have_the_bits_of_the_functions_of_arrays(name, reduction, dtype, generator):
    x, y = pair(name, generator, dtype=getattr(torch, dtype))
    scale = torch.rand(x.shape if reduction == "none" else (), generator=generator).to(x.dtype)
    x.requires_grad = True
    loss = getattr(ours, name)(x, y, reduction=reduction)
    loss.backward(scale)
    value, gradient = FUNCTIONS[name](x.detach(), y, reduction=reduction, grad_output=scale)
    assert_equal(loss, value)
    assert_equal(x.grad, gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@with_weights
def test_weights_smoothing_and_masks_are_those_of_the_functions_of_arrays(name, reduction, generator):
    x, y = pair(name, generator)
    options = {
        "weight": torch.rand(5, generator=generator),
        "where": torch.rand((7, 1), generator=generator) < 0.5,
        "label_smoothing": 0.25,
        "reduction": reduction,
    }
    if name != "binary_cross_entropy":
        options["pos_weight"] = torch.rand(5, generator=generator, dtype=torch.float64)
    x.requires_grad = True
    loss = getattr(ours, name)(x, y, **options)
    loss.sum().backward()
    value, gradient = FUNCTIONS[name](x.detach(), y, **options)
    assert_equal(loss, value)
    assert_equal(x.grad, gradient)


@of_each
def test_gradients_are_those_that_finite_differences_have(name, generator):
    x, y = pair(name, generator)
    # Away from the ends, where a step of 1e-6 leaves the domain.
    x = x.clamp(0.05, 0.95) if name == "binary_cross_entropy" else x
    x.requires_grad = True
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(lambda x, r=reduction: getattr(ours, name)(x, y, reduction=r), (x,))


@with_weights
def test_pytorch_says_the_same_where_it_is_right(name, generator):
    theirs = getattr(torch.nn.functional, name)
    x, y = pair(name, generator)
    weight = torch.rand(5, generator=generator, dtype=torch.float64)
    x.requires_grad = True
    for reduction in REDUCTIONS:
        found, expected = (loss(x, y, weight, reduction=reduction) for loss in (getattr(ours, name), theirs))
        assert torch.allclose(found, expected, rtol=1e-13)
        gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss in (found, expected)]
        assert torch.allclose(*gradients, rtol=1e-12)


def test_gradient_of_a_probability_of_0_that_is_right_is_1():
    # PyTorch's is 0, and in float16 NaN (it divides by x (1-x), held at 1e-12 or above).
    for dtype in DTYPES:
        x = torch.zeros(1, dtype=getattr(torch, dtype), requires_grad=True)
        ours.binary_cross_entropy(x, torch.zeros(1)).backward()
        assert x.grad.item() == 1.0


@of_each
def test_losses_are_derived_through_what_made_their_input(name, generator):
    x, y = pair(name, generator)
    leaf = x.clone().requires_grad_()
    getattr(ours, name)((leaf * 0.5).T, y.T, reduction="sum").backward()
    _, gradient = FUNCTIONS[name]((x * 0.5).T, y.T, reduction="sum")
    assert torch.equal(leaf.grad, gradient.T * 0.5)


def test_loss_may_be_derived_again_while_its_graph_is_kept_but_not_twice(generator):
    x, y = pair("binary_cross_entropy", generator)
    x.requires_grad = True
    loss = ours.binary_cross_entropy(x, y)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, once + once)
    with pytest.raises(
        NotImplementedError, match=r"^losses of nbbce\.torch must be derived once; got create_graph=True$"
    ):
        torch.autograd.grad(loss, x, create_graph=True)


def test_input_that_was_changed_in_between_is_an_error_of_pytorch(generator):
    x, y = pair("binary_cross_entropy", generator)
    changed = x.requires_grad_() * 1
    loss = ours.binary_cross_entropy(changed, y)
    with torch.no_grad():
        changed.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@of_each
def test_without_a_gradient_there_is_no_history(name, generator):
    x, y = pair(name, generator)
    assert not getattr(ours, name)(x, y).requires_grad
    with torch.no_grad():
        assert not getattr(ours, name)(x.requires_grad_(), y.requires_grad_()).requires_grad


def test_value_out_of_its_domain_is_told_or_nan(generator):
    x, y = torch.tensor([0.5, 1.5], requires_grad=True), torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"^nbbce\.torch\.binary_cross_entropy: .*; got input\[1\] = 1\.5$"):
        ours.binary_cross_entropy(x, y)
    loss = ours.binary_cross_entropy(x, y, reduction="none", validate=False)
    loss.sum().backward()
    assert loss.isnan().tolist() == x.grad.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("'target' must be a tensor; got ndarray", {"target": np.ones(3)}),
        ("'input' must be a tensor; got list", {"input": [0.5] * 3}),
        ("'weight' must be a tensor; got 2.0", {"weight": 2.0}),
        (
            "'target' must not require a gradient, which is there for the input alone; "
            "got one that does (see torch.Tensor.detach)",
            {"target": torch.ones(3, requires_grad=True)},
        ),
    ],
    ids=["array", "list", "number", "gradient"],
)
def test_argument_that_is_no_tensor_or_wants_a_gradient_of_its_own_is_named(message, options):
    options = {"input": torch.full((3,), 0.5), "target": torch.ones(3)} | options
    with pytest.raises(TypeError, match=f"^{re.escape(f'nbbce.torch.binary_cross_entropy: {message}')}$"):
        ours.binary_cross_entropy(**options)


def test_arguments_of_the_focal_loss_are_named_as_it_names_them():
    x = torch.zeros(3)
    with pytest.raises(TypeError, match=r"^nbbce\.torch\.sigmoid_focal_loss: 'targets' must be a tensor; got list$"):
        ours.sigmoid_focal_loss(x, [1.0] * 3)
    with pytest.raises(TypeError, match=r"^nbbce\.torch\.sigmoid_focal_loss: 'inputs' must be a tensor; got NoneType$"):
        ours.sigmoid_focal_loss(None, x)
    message = r"^nbbce\.torch\.sigmoid_focal_loss: 'targets' must have the shape of 'inputs', \(3,\); got \(2,\)$"
    with pytest.raises(ValueError, match=message):
        ours.sigmoid_focal_loss(x, x[:2])


@of_each
def test_under_autocast_losses_are_float32_as_those_of_pytorch_so_that_their_scale_fits(name, generator):
    x, y = pair(name, generator, dtype=torch.float16)
    x.requires_grad = True
    with torch.autocast("cpu", torch.float16):
        loss = getattr(ours, name)(x, y, reduction="mean")
    (loss * 2.0**17).backward()
    value, _ = FUNCTIONS[name](x.detach(), y, reduction="mean", dtype="float32")
    _, gradient = FUNCTIONS[name](x.detach(), y, reduction="mean", grad_output=2.0**17)
    assert_equal(loss, value)
    assert_equal(x.grad, gradient)
    assert x.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ modules
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_modules_are_their_functions(reduction, generator):
    weight, pos_weight = (torch.rand(5, generator=generator) for _ in range(2))
    made = {"reduction": reduction, "label_smoothing": 0.1}
    x, y = pair("binary_cross_entropy", generator)
    where = y < 0.75
    assert_equal(
        ours.BCELoss(weight, **made)(x, y, where), ours.binary_cross_entropy(x, y, weight, where=where, **made)
    )
    module = ours.BCEWithLogitsLoss(weight, pos_weight=pos_weight, **made)
    expected = ours.binary_cross_entropy_with_logits(x, y, weight, pos_weight=pos_weight, where=where, **made)
    assert_equal(module(x, y, where), expected)


def test_weights_of_modules_go_where_they_go_and_are_kept_with_them(generator):
    weight = torch.rand(5, generator=generator)
    module = ours.BCEWithLogitsLoss(weight, pos_weight=weight).to(torch.float64)
    assert {name: tensor.dtype for name, tensor in module.state_dict().items()} == {
        "weight": torch.float64,
        "pos_weight": torch.float64,
    }
    other = ours.BCEWithLogitsLoss(torch.zeros(5), pos_weight=torch.zeros(5))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight, weight)
    assert list(ours.BCELoss().parameters()) == []


@pytest.mark.parametrize("module", [ours.BCELoss, ours.BCEWithLogitsLoss])
def test_module_takes_what_its_model_gives_and_trains_it(module, generator):
    x = torch.randn((200, 3), generator=generator)
    y = x[:, 0] > 0
    layers = [torch.nn.Linear(3, 1), torch.nn.Sigmoid(), torch.nn.Flatten(0)]
    model = torch.nn.Sequential(*(layers if module is ours.BCELoss else layers[::2]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module()(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
