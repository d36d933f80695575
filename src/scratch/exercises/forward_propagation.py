"""Checkers for the exercises of the chapter on forward propagation."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from scratch.exercises.verdict import (
    Mistake,
    attempt,
    call,
    checker,
    expect_close,
    recognize,
)

_TURN = "Is weight turned over? Its shape is (d_out, d_in)."


@checker
def check_linear_forward(
    linear: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Check linear(x, weight, bias) for x (..., d_in), and its slopes.

    >>> check_linear_forward(lambda x, weight, bias: x @ weight.T)
    Not yet: linear([[1, 2, 3], [0, -1, 4], [2, 0, 1]], [[1, 0, -1], \
[2, 5, 1]], [10, 20]) must be [8, 35, 6, 19, 11, 25], got [-2, 15, -4, -1, \
1, 5]. The bias is missing.
    """
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0], [2.0, 0.0, 1.0]])
    weight = torch.tensor([[1.0, 0.0, -1.0], [2.0, 5.0, 1.0]])
    bias = torch.tensor([10.0, 20.0])
    given = (
        "[[1, 2, 3], [0, -1, 4], [2, 0, 1]], [[1, 0, -1], [2, 5, 1]], [10, 20]"
    )
    _expect_layer(f"linear({given})", linear, x, weight, bias)

    generator = torch.Generator().manual_seed(0)
    cases = [
        # leading dimensions, d_in, d_out, hint
        ((5,), 3, 2, "A batch of 5: one row for each example."),
        ((4,), 4, 4, _TURN),
        ((), 3, 2, "A single example is a vector, and so is its result."),
        ((1,), 3, 2, "A batch may hold one example; it stays a batch."),
        ((5,), 3, 1, "One neuron: the last dimension stays, with size 1."),
        ((5,), 1, 3, "One input."),
        ((2, 5), 3, 7, "All dimensions before the last stay as they are."),
        ((7, 5), 5, 7, "All dimensions before the last stay as they are."),
        ((2, 3, 5), 3, 4, "All dimensions before the last stay as they are."),
        ((0,), 3, 2, "A batch may be empty; its shape still has two numbers."),
    ]
    for leading, d_in, d_out, hint in cases:
        x = torch.randn(*leading, d_in, generator=generator)
        weight = torch.randn(d_out, d_in, generator=generator)
        bias = torch.randn(d_out, generator=generator)
        shapes = (tuple(a.shape) for a in (x, weight, bias))
        shown = f"linear for x, weight, bias of shapes {_listed(shapes)}"
        _expect_layer(shown, linear, x, weight, bias, hint)
    _expect_float64(linear, generator)
    _expect_slopes(linear, generator)


def _expect_layer(
    shown: str,
    linear: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    hint: str = "",
) -> None:
    right = torch.einsum("...i,oi->...o", x, weight) + bias
    try:
        actual = call(shown, linear, x, weight, bias)
    except Mistake as mistake:
        if "raised" not in str(mistake):
            raise
        raise Mistake(
            f"{mistake}. {_hint_of_error(str(mistake), x)}"
        ) from mistake
    hint = recognize(actual, _slips_of_layer(x, weight, bias)) or hint
    expect_close(shown, actual, right, hint)


def _hint_of_error(message: str, x: Tensor) -> str:
    if x.ndim > 2:
        return (
            "Turn over weight and leave x as it is: .T on more than two "
            "dimensions turns over all of them"
        )
    if "cannot be multiplied" in message or "size mismatch" in message:
        return (
            "Did you forget .T? The last dimension of x has to meet the rows "
            "of weight"
        )
    if "at non-singleton dimension 0" in message:
        return (
            "Is bias a column? Each example got a bias of its own; each "
            "neuron must: keep the shape (d_out,)"
        )
    if "must match the size" in message:
        return (
            "Does the product have one row for each neuron, as weight @ x.T "
            "has? It needs one row for each example, so that bias fits: "
            "x @ weight.T"
        )
    return (
        "The last dimension of x is the one that meets the rows of weight; "
        "bias has one number for each row of weight"
    )


def _expect_float64(linear: Callable, generator: torch.Generator) -> None:
    x, weight, bias = _parts(generator, dtype=torch.float64)
    shown = "linear for tensors of float64"
    actual = call(shown, linear, x, weight, bias)
    dtype = getattr(actual, "dtype", type(actual).__name__)
    right = x @ weight.T + bias
    if dtype != torch.float64 or not torch.allclose(
        actual, right, rtol=1e-10, atol=1e-10
    ):
        raise Mistake(
            f"{shown} must keep all of their digits, got {dtype}. Leave out "
            ".float(), and do not build a new tensor from a list"
        )


def _expect_slopes(linear: Callable, generator: torch.Generator) -> None:
    parts = [part.requires_grad_() for part in _parts(generator)]
    shown = "linear for tensors that require gradients"
    advice = (
        "The layer could not learn. Leave out .detach(), .data, .item(), "
        ".tolist(), NumPy and torch.no_grad()"
    )
    try:
        actual = call(shown, linear, *parts)
    except Mistake as mistake:
        raise Mistake(f"{mistake}. {advice}") from mistake
    if not isinstance(actual, Tensor) or not actual.requires_grad:
        raise Mistake(f"{shown} gave a result without a gradient. {advice}")
    x, weight, _ = parts
    factors = torch.randn(actual.shape, generator=generator)
    right = (factors @ weight, factors.T @ x, factors.sum(dim=0))
    slopes = torch.autograd.grad(
        (factors * actual).sum(), parts, allow_unused=True
    )
    for name, slope, expected in zip(
        ("x", "weight", "bias"), slopes, right, strict=True
    ):
        if slope is None:
            raise Mistake(f"{shown}: no gradient reaches {name}. {advice}")
        expect_close(f"{shown}: the gradient of {name}", slope, expected)


def _parts(
    generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return [
        torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in [(5, 3), (2, 3), (2,)]
    ]


def _slips_of_layer(x: Tensor, weight: Tensor, bias: Tensor) -> dict:
    sums = torch.einsum("...i,oi->...o", x, weight)
    slips = {
        "The bias is missing.": sums,
        "The bias is added, not subtracted.": sums - bias,
        "The bias counts once, not once for each input.": (
            sums + x.shape[-1] * bias
        ),
        "The bias is added after the products are summed up; it is no factor "
        "of them.": sums * bias,
        "A layer's sums may be negative: leave out the activation.": (
            (sums + bias).clamp(min=0)
        ),
        "The result lies on its side: each example has one row.": (
            (sums + bias).mT if x.ndim == 2 else sums.new_empty(0)
        ),
        "All of bias went into each sum; neuron j gets bias[j].": (
            sums + bias.sum()
        ),
    }
    turned = weight.reshape(weight.shape[::-1])
    if weight.shape[0] != weight.shape[1] and min(weight.shape) > 1:
        slips[
            "Reshaping weight mixes its rows; turning it over is weight.T."
        ] = x @ turned + bias
    if weight.shape[0] == weight.shape[1]:
        slips[
            "That is x @ weight: it runs because weight is square. Each row "
            "of weight is a neuron, so turn it over: weight.T."
        ] = x @ weight + bias
    if x.ndim > 2:
        turned_over = sums.movedim(-1, 0).permute(*range(x.ndim)[::-1])
        slips[
            "On more than two dimensions .T turns over all of them. Turn over "
            "weight and leave x as it is: x @ weight.T."
        ] = turned_over + bias
    if x.ndim == 2 and len(x) == len(bias):
        slips[
            "Each example got a bias of its own; each neuron must. Add a "
            "bias of shape (d_out,), not a column."
        ] = sums + bias[:, None]
    return slips


@checker
def check_mlp_cost(
    mlp_cost: Callable[[Sequence[int], int], tuple[int, int]],
) -> None:
    """Check mlp_cost(sizes, batch_size) -> (n_parameters, n_flops).

    The FLOPs are those of a forward pass: two for each weight and example.

    >>> check_mlp_cost(lambda sizes, batch_size: (8, 6))
    Not yet: the number of FLOPs from mlp_cost([3, 2], 1) must be 12, got 6. \
A weight costs a multiplication and an addition: two FLOPs.
    """
    cases = [
        ([3, 2], 1, "One layer: 2 neurons with 3 weights and a bias each."),
        ([64, 32, 16, 10], 5, ""),
        ([2, 3, 5, 7, 11], 13, ""),
        ([4, 4, 4], 2, ""),
        ([1, 1], 1, "One weight and one bias."),
        ([784, 4096, 4096, 10], 64, "32 bits are too few: count with int."),
    ]
    for sizes, batch_size, hint in cases:
        shown = f"mlp_cost({sizes}, {batch_size})"
        given = list(sizes)
        result = attempt(shown, mlp_cost, given, batch_size)
        if given != sizes:
            raise Mistake(f"{shown} changed the list of sizes")
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Mistake(
                f"{shown} must return two numbers, the parameters and the "
                f"FLOPs; got {result!r}"
            )
        layers = list(pairwise(sizes))
        n_weights = sum(d_in * d_out for d_in, d_out in layers)
        n_parameters = n_weights + sum(sizes[1:])
        n_flops = 2 * batch_size * n_weights
        if n_parameters != n_flops and _same(result, (n_flops, n_parameters)):
            raise Mistake(f"{shown}: the parameters come first")
        slips = _slips_of_parameters(sizes, batch_size)
        _expect_count(
            f"the number of parameters from {shown}",
            result[0],
            n_parameters,
            slips,
            hint,
        )
        slips = _slips_of_flops(sizes, batch_size)
        _expect_count(
            f"the number of FLOPs from {shown}",
            result[1],
            n_flops,
            slips,
            hint,
        )


def _slips_of_parameters(
    sizes: Sequence[int], batch_size: int
) -> dict[str, int]:
    products = [d_in * d_out for d_in, d_out in pairwise(sizes)]
    n_parameters = sum(products) + sum(sizes[1:])
    several = len(products) > 1
    return {
        "The biases are missing: one for each neuron.": sum(products),
        "Inputs are no neurons and have no bias.": sum(products) + sum(sizes),
        "Each neuron has one bias, and the inputs of a layer have none: "
        "(d_in + 1) d_out, not d_in (d_out + 1).": (
            sum(products) + sum(sizes[:-1])
        ),
        "There is one bias for each neuron, not one for each layer.": (
            sum(products) + len(products)
        ),
        "All examples share the parameters: their number does not depend on "
        "the batch.": batch_size * n_parameters,
        "The last layer is missing.": (
            n_parameters - products[-1] - sizes[-1]
        ),
        "The first layer is missing: it reads the inputs.": (
            n_parameters - products[0] - sizes[1]
        ),
        "Layers are added up, not multiplied.": prod(sizes) if several else 0,
    }


def _slips_of_flops(sizes: Sequence[int], batch_size: int) -> dict[str, int]:
    products = [d_in * d_out for d_in, d_out in pairwise(sizes)]
    right = 2 * batch_size * sum(products)
    units = batch_size * sum(sizes[1:])
    hidden = batch_size * sum(sizes[1:-1])
    parameters = sum(products) + sum(sizes[1:])
    return {
        "A weight costs a multiplication and an addition: two FLOPs.": (
            right // 2
        ),
        "Every example of the batch has to be computed.": right // batch_size,
        "d_in products have d_in - 1 additions between them, and the bias "
        "is one more: 2 d_in in all.": right + units,
        "d_in products have only d_in - 1 additions between them, but the "
        "bias is one more: 2 d_in in all.": right - units,
        "A bias costs one addition, which takes the place of one between "
        "the products: two FLOPs for each weight are all.": (
            2 * batch_size * parameters
        ),
        "Activations are not counted here.": right + hidden,
        "The last layer is missing.": right - 2 * batch_size * products[-1],
        "The first layer is missing.": right - 2 * batch_size * products[0],
    }


def _expect_count(
    shown: str,
    actual: object,
    expected: int,
    slips: dict[str, int],
    hint: str,
) -> None:
    # Where two slips give one number, or the right one, it tells nothing.
    numbers = [*slips.values(), expected]
    clear = {
        words: torch.tensor(number)
        for words, number in slips.items()
        if numbers.count(number) == 1
    }
    hint = recognize(actual, clear) or hint
    expect_close(shown, actual, expected, hint)
    if actual != expected:  # a count has no tolerance
        raise Mistake(f"{shown} must be {expected}, got {actual}. {hint}")


def _same(result: Sequence, numbers: tuple[int, int]) -> bool:
    try:
        return tuple(int(n) for n in result) == numbers
    except (TypeError, ValueError):
        return False


def _listed(shapes) -> str:
    *first, last = (str(shape) for shape in shapes)
    return f"{', '.join(first)} and {last}"
