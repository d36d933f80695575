"""Checkers for the exercises of the chapter on the artificial neuron."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from scratch.exercises.verdict import (
    Mistake,
    attempt,
    checker,
    expect_close,
)
from scratch.nn.neuron import weighted_sum

TRUTH = {
    "AND": {(0, 0): 0, (0, 1): 0, (1, 0): 0, (1, 1): 1},
    "OR": {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 1},
    "NAND": {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 0},
    "NOT": {(0,): 1, (1,): 0},
}


@checker
def check_gates(gates: Mapping[str, tuple[list[float], float]]) -> None:
    """Check that each gate's weights and bias give its truth table.

    Args:
        gates: {name: (weights, bias)} for AND, OR, NAND and NOT.

    >>> check_gates({"AND": ([1, 1], -1.5)})
    Not yet: gates must hold AND, OR, NAND, NOT; OR, NAND, NOT are missing
    """
    missing = [name for name in TRUTH if name not in gates]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise Mistake(
            f"gates must hold {', '.join(TRUTH)}; "
            f"{', '.join(missing)} {verb} missing"
        )
    for name, table in TRUTH.items():
        n_inputs = len(next(iter(table)))
        try:
            weight, bias = gates[name]
            numbers = [float(w) for w in weight]
            bias = float(bias)
            weight = torch.tensor(numbers, dtype=torch.float64)
        except (TypeError, ValueError):
            raise Mistake(
                f"{name} must be a pair (weights, bias) of numbers, such as "
                f"([1, 1], -1.5); got {gates[name]!r}"
            ) from None
        if len(weight) != n_inputs:
            raise Mistake(
                f"{name} must have as many weights as inputs, {n_inputs}; "
                f"got {len(weight)}"
            )
        for x, output in table.items():
            z = weighted_sum(torch.tensor(x).double(), weight, bias).item()
            if (z >= 0) != output:
                wanted = "fire" if output else "stay silent"
                raise Mistake(
                    f"{name} must {wanted} for inputs {x}, but there the "
                    f"weighted sum is {z:g}"
                )


@checker
def check_learning_step(
    learning_step: Callable[
        [Tensor, float, Tensor, int], tuple[Tensor, float]
    ],
) -> None:
    """Check learning_step(weight, bias, x, label) -> (weight, bias)."""
    cases = [
        # weight, bias, x, label, why this case is here
        ([1, 2], 0, [3, 1], 1, "The output is right, so nothing may move."),
        ([1, -2], 0, [1, 3], 1, "The neuron was silent but should fire."),
        ([1, 2], 1, [2, 5], 0, "The neuron fired but should be silent."),
        ([0, 0], 0, [2, 1], 0, "A weighted sum of 0 fires: step(0) is 1."),
        ([-2, 1], -1, [1, 1], 0, "The output is right: nothing may move."),
        ([1, 1], -3, [1, 1], 1, "The bias belongs to the weighted sum."),
        ([1, 2, 1], -1.25, [2, -1, 1], 1, "The sum is just below 0: silent."),
    ]
    for weight, bias, x, label, hint in cases:
        weight, x = torch.tensor(weight).float(), torch.tensor(x).float()
        given = f"{weight.tolist()}, {bias}, {x.tolist()}, {label}"
        shown = f"learning_step({given})"
        output = int(weight @ x + bias >= 0)
        before = weight.clone(), x.clone()
        result = attempt(shown, learning_step, weight, float(bias), x, label)
        if not (torch.equal(weight, before[0]) and torch.equal(x, before[1])):
            raise Mistake(
                f"{shown} changed its arguments in place (+= on a tensor "
                "does that). Build new ones: weight = weight + ..."
            )
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Mistake(
                f"{shown} must return two things, weight and bias; "
                f"got {result!r}"
            )
        if isinstance(result[1], Tensor) and result[1].shape == x.shape:
            raise Mistake(
                f"{shown} returned the bias first; return weight, bias"
            )
        error = label - output
        new_weight, new_bias = before[0] + error * before[1], bias + error
        expect_close(f"the weight from {shown}", result[0], new_weight, hint)
        expect_close(f"the bias from {shown}", result[1], new_bias, hint)


@checker
def check_signed_distance(
    signed_distance: Callable[[Tensor, Tensor, float], Tensor],
) -> None:
    """Check signed_distance(x, weight, bias) for points x (..., d_in)."""
    cases = [
        # weight, bias, points, hint
        ([3, 4], -10, [6, 8], "It is (3 * 6 + 4 * 8 - 10) / 5."),
        ([3, 4], -10, [0, 0], "The origin is on the silent side: minus 2."),
        ([3, 4], -10, [2, 1], "This point lies on the cut."),
        ([-6, 2, 3], 3, [1, 5, 0], "It is (-6 * 1 + 2 * 5 + 3) / 7."),
        (
            [3, 4],
            -10,
            [[6, 8], [0, 0], [2, 1]],
            "A batch of 3 points has 3 distances.",
        ),
    ]
    for weight, bias, points, hint in cases:
        x, w = torch.tensor(points).float(), torch.tensor(weight).float()
        shown = f"signed_distance({points}, {weight}, {bias})"
        expected = (x @ w + bias) / w.square().sum().sqrt()
        actual = attempt(
            shown, signed_distance, x.clone(), w.clone(), float(bias)
        )
        expect_close(shown, actual, expected, hint)
