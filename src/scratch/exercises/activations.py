"""Checkers for the exercises of the chapter on activation functions."""

from collections.abc import Callable

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
from scratch.nn.activations import sigmoid as right_sigmoid
from scratch.nn.activations import sigmoid_derivative, softmax

FAR = 10_000.0


@checker
def check_stable_sigmoid(sigmoid: Callable[[Tensor], Tensor]) -> None:
    """Check sigmoid(x): values, and slopes by autograd, out to +-10 000.

    The numbers are float32, and x may have any shape.
    """
    near = torch.tensor([-2.0, 0.0, 1.0])
    actual = call("sigmoid([-2, 0, 1])", sigmoid, near)
    hint = "Start from 1 / (1 + e^-x)."
    expect_close("sigmoid([-2, 0, 1])", actual, right_sigmoid(near), hint)
    table = torch.arange(-3.0, 3.0).reshape(2, 3)
    shown = "sigmoid(x) for an x of shape (2, 3)"
    expect_close(shown, call(shown, sigmoid, table), right_sigmoid(table))

    hint = (
        "In float32, e to any power above 88.7 is inf, and inf / inf is "
        "nan: keep what you exponentiate at or below 0."
    )
    for number in (-20.0, -5.0, 5.0, 20.0, -FAR, -100.0, 100.0, FAR):
        x = torch.tensor([number])
        shown = f"sigmoid([{number:g}])"
        actual = call(shown, sigmoid, x)
        expect_close(shown, actual, right_sigmoid(x), hint)
    tail = torch.tensor([-30.0], dtype=torch.float64)
    shown = "the logarithm of sigmoid([-30]), in float64,"
    actual = torch.as_tensor(call("sigmoid([-30])", sigmoid, tail))
    hint = "A clamp this tight makes the far side flat, where it still falls."
    expect_close(shown, actual.log(), torch.tensor([-30.0]), hint)
    for number in (-2.0, 0.0, 1.0, -FAR, -100.0, 100.0, FAR):
        _expect_slope(sigmoid, torch.tensor(number))


def _expect_slope(sigmoid: Callable[[Tensor], Tensor], x: Tensor) -> None:
    x.requires_grad_()
    y = attempt("sigmoid(x) for an x that requires a gradient", sigmoid, x)
    if not isinstance(y, Tensor) or not y.requires_grad:
        raise Mistake(
            "the values are right, but autograd cannot follow them back to "
            "x, so no network could learn through this sigmoid. Compute it "
            "from x with torch's functions only, without detach or item"
        )
    (slope,) = torch.autograd.grad(y.sum(), x)
    hint = "The slope is sigmoid(x) (1 - sigmoid(x))."
    if not slope.isfinite():
        hint = (
            "The value there is right, but on the way to it a number became "
            "inf, and inf times 0 is nan. If you use torch.where: it "
            "computes both branches for each x, so choose the exponent "
            "before exp."
        )
    elif x == 0:
        hint = (
            "If you use abs or sign: torch takes the slope of both to be 0 "
            "at 0. Choose between x and -x by comparing x with 0."
        )
    shown = f"the slope that autograd finds for sigmoid at {x.item():g}"
    expect_close(shown, slope, sigmoid_derivative(x), hint)


@checker
def check_swish_derivative(derivative: Callable[[Tensor], Tensor]) -> None:
    """Check derivative(x), the slope of swish(x) = x sigmoid(x).

    The numbers are float32, out to +-10 000, and x may have any shape.
    """
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])
    s, slope = right_sigmoid(x), sigmoid_derivative(x)
    right = s + x * slope
    slips = {
        "This is swish itself, not its slope.": x * s,
        "This is the slope of the sigmoid alone.": slope,
        "This is only one of the two terms of the product rule: the slope "
        "of x, times the sigmoid.": s,
        "This is only one of the two terms of the product rule: x, times "
        "the slope of the sigmoid.": x * slope,
        "In the second term x is missing.": s + slope,
        "The second term is added, not subtracted.": s - x * slope,
        "The slope of the sigmoid has a minus: s (1 - s).": s
        + x * s * (1 + s),
    }
    shown = "derivative([-3, -1, 0, 0.5, 2])"
    actual = call(shown, derivative, x)
    hint = recognize(actual, slips) or (
        "Swish is a product, x times sigmoid(x): use the product rule."
    )
    expect_close(shown, actual, right, hint)
    shown = "derivative(x) for an x of shape (5, 1)"
    actual = call(shown, derivative, x.reshape(5, 1))
    expect_close(shown, actual, right.reshape(5, 1))
    hint = "Far out e^x or e^-x is inf: build on a sigmoid that is stable."
    for number in (-10.0, -5.0, 5.0, 10.0):
        shown = f"derivative([{number:g}])"
        x = torch.tensor([number])
        actual = call(shown, derivative, x)
        expected = right_sigmoid(x) + x * sigmoid_derivative(x)
        expect_close(shown, actual, expected)
    for number, expected in ((-FAR, 0.0), (FAR, 1.0)):
        shown = f"derivative([{number:g}])"
        actual = call(shown, derivative, torch.tensor([number]))
        expect_close(shown, actual, torch.tensor([expected]), hint)


@checker
def check_dead_units(count: Callable[[Tensor], int]) -> None:
    """Check count(hidden), the number of units that never fire.

    hidden (n_examples, n_units) is what a layer gives after its ReLU.

    >>> check_dead_units(lambda hidden: (hidden == 0).sum())
    Not yet: count([[0, 1, 0, 2, 5], [0, 0, 0, 1, 3], [0, 0, 0, 0, 0], \
[0, 2, 0, 0, 1]]) must be 2, got 13. That counts zeros, not units.
    """
    rows = [[0, 1, 0, 2, 5], [0, 0, 0, 1, 3], [0, 0, 0, 0, 0], [0, 2, 0, 0, 1]]
    slips = {
        "That counts the examples for which no unit fires: look along the "
        "other dimension.": 1,
        "That counts the units that do fire.": 3,
        "That counts the units that are 0 for some example; a dead one is "
        "0 for every example.": 5,
        "That counts zeros, not units.": 13,
        "That is the share of dead units: count them.": 0.4,
    }
    shown, hidden = f"count({rows})", torch.tensor(rows).float()
    actual = call(shown, count, hidden)
    slips = {hint: torch.tensor(wrong) for hint, wrong in slips.items()}
    hint = recognize(actual, slips) or (
        "The first and the third unit are 0 in every row: one number, 2."
    )
    expect_close(shown, actual, 2, hint)

    faint = torch.zeros(1000, 2)
    faint[-1, 1] = 1e-6
    cases = [
        ("torch.ones(4, 3)", torch.ones(4, 3), 0, "All three fire."),
        ("torch.zeros(4, 3)", torch.zeros(4, 3), 3, "None of three fires."),
        (
            "[[0, 1, 0]]",
            torch.tensor([[0.0, 1.0, 0.0]]),
            2,
            "A batch may hold a single example.",
        ),
        (
            "1000 examples, of which only the last gets 1e-6 from a unit",
            faint,
            1,
            "A unit that fires for one example, however weakly, still learns.",
        ),
    ]
    for given, hidden, expected, hint in cases:
        shown = f"count({given})"
        expect_close(shown, call(shown, count, hidden), expected, hint)


@checker
def check_softmax_temperature(
    softmax_with_temperature: Callable[[Tensor, float], Tensor],
) -> None:
    """Check softmax_with_temperature(logits, temperature).

    It works along the last dimension, for any temperature above 0, with
    float32 logits out to +-10 000.
    """
    z = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.0, -1.0]])
    far = torch.tensor([FAR, 0.0, -FAR])
    apart = torch.tensor([0.0, -200.0])
    rows = torch.tensor([[200.0, 0.0], [0.0, 1.0]])
    own_largest = "Subtract the largest logit of each row, not of all rows."
    overflow = (
        "In float32, e to any power above 88.7 is inf: subtract the largest "
        "logit before you exponentiate."
    )
    too_late = (
        "A share that softmax has rounded to 0 stays 0: apply the "
        "temperature to the logits, before the softmax."
    )
    general = "Divide the logits by the temperature, then take the softmax."
    cases = [
        ("[1, 2, 4], 1.0", z[0], 1.0, "At temperature 1 it is softmax."),
        ("[1, 2, 4], 2.0", z[0], 2.0, general),
        ("[1, 2, 4], 0.5", z[0], 0.5, general),
        ("[[1, 2, 4], [0.5, 0, -1]], 2.0", z, 2.0, "Each row sums to 1."),
        ("[10000, 0, -10000], 1.0", far, 1.0, overflow),
        ("[10000, 0, -10000], 0.1", far, 0.1, overflow),
        ("[-10000, -10000], 1.0", far[[2, 2]], 1.0, overflow),
        ("[0, -200], 100.0", apart, 100.0, too_late),
        ("[[200, 0], [0, 1]], 1.0", rows, 1.0, own_largest),
        ("[1, 2, 4], 0.01", z[0], 0.01, general),
        (
            "[[10000, 10000], [-10000, -10000]], 1.0",
            torch.tensor([[FAR, FAR], [-FAR, -FAR]]),
            1.0,
            own_largest,
        ),
        (
            "logits of shape (2, 3, 4), 2.0",
            torch.arange(24.0).sin().reshape(2, 3, 4),
            2.0,
            "Along the last dimension, whatever the number of dimensions.",
        ),
        ("[10000, 0, -10000], 10000.0", far, FAR, general),
    ]
    for given, logits, temperature, hint in cases:
        shown = f"softmax_with_temperature({given})"
        actual = call(shown, softmax_with_temperature, logits, temperature)
        # Far out different slips give the same 0s and 1s: guess at none.
        if logits.abs().max() < 10:
            slips = _slips_of_temperature(logits, temperature)
            hint = recognize(actual, slips) or hint
        expected = softmax(logits / temperature, dim=-1)
        expect_close(shown, actual, expected, hint)


def _slips_of_temperature(z: Tensor, temperature: float) -> dict[str, Tensor]:
    probs = softmax(z, dim=-1)
    return {
        "The logits were multiplied by the temperature: divide.": softmax(
            z * temperature, dim=-1
        ),
        "The temperature has no effect.": probs,
        "The temperature was applied after the softmax, so the shares no "
        "longer sum to 1: divide the logits.": probs / temperature,
        "The powers of the shares must be made to sum to 1 again; dividing "
        "the logits first is easier.": probs ** (1 / temperature),
        "A second softmax was applied to the shares: divide the logits, "
        "then take one softmax.": softmax(probs / temperature, dim=-1),
        "These are logarithms of the shares.": (
            softmax(z / temperature, dim=-1).log()
        ),
        "That is a softmax along the first dimension: each column sums to "
        "1, not each row.": softmax(z / temperature, dim=0),
        "All rows together sum to 1; each row must.": softmax(
            z.flatten() / temperature, dim=0
        ).reshape(z.shape),
    }
