"""Checkers for the exercises of the chapter on backpropagation."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from scratch.exercises.verdict import (
    Mistake,
    call,
    checker,
    expect_close,
    recognize,
)

GRADIENTS = ("grad_x", "grad_weight", "grad_bias")


@checker
def check_linear_backward(
    linear_backward: Callable[
        [Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]
    ],
) -> None:
    """Check linear_backward(grad_output, x, weight) for output = x W^T + b.

    It returns the gradients along x, weight and bias. grad_output is
    (n, d_out), x (n, d_in), weight (d_out, d_in).
    """
    cases = [
        # n, d_in, d_out
        (4, 3, 2),
        (3, 3, 3),  # each transpose fits here
        (1, 2, 5),
        (6, 1, 1),
    ]
    generator = torch.Generator().manual_seed(0)
    for n, d_in, d_out in cases:
        g = torch.randn(n, d_out, generator=generator)
        x = torch.randn(n, d_in, generator=generator)
        weight = torch.randn(d_out, d_in, generator=generator)
        shown = f"linear_backward for {n} examples, d_in={d_in}, d_out={d_out}"
        results = call(shown, linear_backward, g, x, weight)
        expected = {
            "grad_x": torch.einsum("nk,ki->ni", g, weight),
            "grad_weight": torch.einsum("nk,ni->ki", g, x),
            "grad_bias": g.sum(dim=0),
        }
        _expect_three(shown, results, list(expected.values()))
        for name, actual in zip(GRADIENTS, results, strict=True):
            hint = recognize(actual, _linear_slips(name, g, x, weight))
            expect_close(
                f"{name} of {shown}",
                actual,
                expected[name],
                hint or "Sum over all that the number touches.",
            )


def _expect_three(shown: str, results: Any, expected: list[Tensor]) -> None:
    if results is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    if not isinstance(results, tuple | list) or len(results) != 3:
        got = type(results).__name__
        if isinstance(results, tuple | list):
            got += f" of {len(results)}"
        raise Mistake(
            f"{shown} must return three tensors, {', '.join(GRADIENTS)}; "
            f"got a {got}"
        )
    if not all(isinstance(result, Tensor) for result in results):
        return  # expect_close says which one is no tensor
    fits = [
        order
        for order in permutations(range(3))
        if all(
            results[i].shape == want.shape
            and torch.allclose(
                results[i].double(), want.double(), rtol=1e-4, atol=1e-5
            )
            for i, want in zip(order, expected, strict=True)
        )
    ]
    if fits and (0, 1, 2) not in fits:
        raise Mistake(
            f"{shown} has the right numbers in another order: return "
            f"{', '.join(GRADIENTS)}"
        )


def _linear_slips(
    name: str, g: Tensor, x: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    n, d_out, d_in = len(x), *weight.shape
    if name == "grad_x":
        right = g @ weight
        slips = {
            "That is grad_output itself: multiply it by the weight.": g,
            "That is forward again: multiply grad_output, not x.": (
                x @ weight.T
            ),
        }
        if d_in == d_out:
            hint = (
                "weight must not be transposed here: x_i touches output k "
                "with the slope W_ki, so sum over k."
            )
            slips[hint] = g @ weight.T
    elif name == "grad_weight":
        right = g.T @ x
        slips = {
            "That is its transpose: the weight has one row for each "
            "output.": right.T,
            "That is one gradient for each example: a weight is used by "
            "all of them, so add them up.": g.unsqueeze(2) * x.unsqueeze(1),
            "That is the last example's gradient alone: add up all of "
            "them.": g[-1:].T @ x[-1:],
            "That is the first example's gradient alone: add up all of "
            "them.": g[:1].T @ x[:1],
        }
        if n == d_in == d_out:
            hint = (
                "The sum must run over the examples, which are the rows: "
                "grad_output transposed, times x."
            )
            slips[hint] = g @ x
    else:
        right = g.sum(dim=0)
        slips = {
            "That is one gradient for each example: the bias is used by "
            "all of them, so add them up.": g,
            "The sum must run over the examples (dim=0), not over the "
            "outputs.": g.sum(dim=1),
            "That is one number for all biases: each output has its "
            "own.": g.sum(),
            "The sum has kept the dimension of the examples.": (
                right.unsqueeze(0)
            ),
        }
    return slips | {
        "It is divided by the number of examples: the chain rule adds, and "
        "the 1/n of a mean loss is in grad_output already.": right / n,
        "The sign is turned around.": -right,
    }


@checker
def check_softmax_backward(
    softmax_backward: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Check softmax_backward(grad_output, probs), along the last dimension.

    probs are what softmax has returned; the result is the gradient along
    what it was given.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(*shape, generator=generator)
        return torch.randn(*shape, generator=generator), z.softmax(dim=-1)

    sure = torch.tensor([0.0, 1.0, 0.0])
    cases = [
        ("3 probabilities", *drawn(3), "Each logit moves all the shares."),
        (
            "2 rows of 4 probabilities",
            *drawn(2, 4),
            "Each row is a softmax of its own.",
        ),
        (
            "4 rows of 4 probabilities",
            *drawn(4, 4),
            "Each row is a softmax of its own.",
        ),
        (
            "shape (2, 3, 5)",
            *drawn(2, 3, 5),
            "Along the last dimension, whatever the number of dimensions.",
        ),
        (
            "the probabilities [0, 1, 0]",
            torch.tensor([1.0, -2.0, 3.0]),
            sure,
            "A share of exactly 0 or 1 has no slope left. Do not divide by "
            "a probability.",
        ),
        (
            "a single probability, [1]",
            torch.tensor([2.0]),
            torch.tensor([1.0]),
            "A single share is always 1: nothing can move it.",
        ),
    ]
    for given, g, probs, hint in cases:
        shown = f"softmax_backward for {given}"
        actual = call(shown, softmax_backward, g, probs)
        jacobian = torch.diag_embed(probs) - torch.einsum(
            "...i,...j->...ij", probs, probs
        )
        expected = torch.einsum("...i,...ij->...j", g, jacobian)
        if not torch.equal(probs, sure) and probs.numel() > 1:
            hint = recognize(actual, _softmax_slips(g, probs)) or hint
        expect_close(shown, actual, expected, hint)


def _softmax_slips(g: Tensor, probs: Tensor) -> dict[str, Tensor]:
    share = g * probs
    total = share.sum(dim=-1, keepdim=True)
    over_all = share.sum()
    return {
        "That is only the diagonal of the Jacobian, p (1 - p): each logit "
        "also lowers the shares of the others.": share * (1 - probs),
        "The weighted mean of grad_output is missing: take it away before "
        "you multiply by probs.": share,
        "The mean must be weighted by probs.": probs
        * (g - g.mean(dim=-1, keepdim=True)),
        "grad_output minus its weighted mean must still be multiplied by "
        "probs.": g - total,
        "The weighted mean must be multiplied by probs, too.": share - total,
        "That is the way back through log-softmax.": g
        - probs * g.sum(dim=-1, keepdim=True),
        "The mean is added; subtract it.": probs * (g + total),
        "The sign is turned around.": probs * (total - g),
        "The mean was taken over all rows together.": probs * (g - over_all),
        "The mean was taken along the first dimension.": probs
        * (g - share.sum(dim=0, keepdim=True)),
        "A softmax was applied to probs, which are shares already.": (
            _through(g, probs.softmax(dim=-1))
        ),
    }


def _through(g: Tensor, probs: Tensor) -> Tensor:
    return probs * (g - (g * probs).sum(dim=-1, keepdim=True))
