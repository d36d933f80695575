"""Checkers for the exercises of the chapter on gradient descent."""

from collections.abc import Callable
from functools import partial
from typing import Any

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


@checker
def check_adamw_step(
    adamw_step: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> None:
    """Check adamw_step(parameter, grad, mean, square, n_steps, ...).

    It gets learning_rate, beta1, beta2, eps and weight_decay by name, and
    n_steps counts the step to be made, from 1. It returns the new
    parameter, mean and square, and changes nothing in place.
    """
    weight = torch.tensor([2.0, -1.0])
    grad = torch.tensor([0.5, -3.0])
    none = torch.zeros(2)
    mean, square = torch.tensor([0.2, -0.1]), torch.tensor([0.4, 4.0])
    usual = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    wide = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-8}
    table = torch.arange(6.0).reshape(2, 3)
    cases = [
        # what is special, parameter, grad, mean, square, n_steps, options
        (
            "a third step without weight decay",
            (weight, grad, mean, square, 3),
            {"learning_rate": 0.1, "weight_decay": 0.0} | wide,
        ),
        (
            "a first step without weight decay",
            (weight, grad, none, none, 1),
            {"learning_rate": 0.1, "weight_decay": 0.0} | usual,
        ),
        (
            "a third step with weight decay",
            (weight, grad, mean, square, 3),
            {"learning_rate": 0.1, "weight_decay": 0.5} | wide,
        ),
        (
            "a step with a large eps",
            (weight, grad, mean, square, 2),
            {"learning_rate": 0.1, "weight_decay": 0.5} | wide | {"eps": 0.3},
        ),
        (
            "a first step with a gradient of 0",
            (weight, none, none, none, 1),
            {"learning_rate": 0.1, "weight_decay": 0.0} | usual,
        ),
        (
            "a weight of shape (2, 3)",
            (table, table.cos(), table.sin(), table + 1, 5),
            {"learning_rate": 0.01, "weight_decay": 0.1} | usual,
        ),
    ]
    for special, given, options in cases:
        _check_step(adamw_step, special, given, options)


def _check_step(
    adamw_step: Any, special: str, given: tuple, options: dict[str, float]
) -> None:
    shown = f"adamw_step(...) for {special}"
    if callable(adamw_step):
        adamw_step = partial(adamw_step, **options)
    result = call(shown, adamw_step, *given)
    if not isinstance(result, tuple | list) or len(result) != 3:
        raise Mistake(
            f"{shown} must return three things, parameter, mean and square; "
            f"got {result!r}"
        )
    right = _adamw(*given, **options)
    slips = _slips_of_adamw(given, options)
    for place, name in ((1, "mean"), (2, "square"), (0, "parameter")):
        hints = {
            hint: wrong[place]
            for hint, wrong in slips.items()
            if not torch.allclose(wrong[place], right[place], atol=1e-4)
            or not wrong[place].isfinite().all()
        }
        hint = recognize(result[place], hints)
        what = f"the new {name} from {shown}"
        expect_close(what, result[place], right[place], hint)


def _adamw(
    parameter: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    n_steps: int,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad * grad
    m = mean / (1 - beta1**n_steps)
    v = square / (1 - beta2**n_steps)
    decayed = (1 - learning_rate * weight_decay) * parameter
    step = learning_rate * m / (v.sqrt() + eps)
    return decayed - step, mean, square


def _slips_of_adamw(
    given: tuple, options: dict[str, float]
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    parameter, grad, mean, square, n_steps = given
    rate, decay = options["learning_rate"], options["weight_decay"]
    beta1, beta2, eps = options["beta1"], options["beta2"], options["eps"]
    after, new_mean, new_square = _adamw(*given, **options)
    states = new_mean, new_square
    shrink = 1 - rate * decay
    m = new_mean / (1 - beta1**n_steps)
    v = new_square / (1 - beta2**n_steps)
    step = rate * m / (v.sqrt() + eps)
    swapped = options | {"beta1": beta2, "beta2": beta1}
    late, early = (*given[:4], n_steps + 1), (*given[:4], n_steps - 1)

    def moved(change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (shrink * parameter - change, *states)

    slips = {
        "There is no bias correction: divide mean by 1 - beta1^n_steps and "
        "square by 1 - beta2^n_steps before you use them.": moved(
            rate * new_mean / (new_square.sqrt() + eps)
        ),
        "Only mean has its bias correction; square needs one too.": moved(
            rate * m / (new_square.sqrt() + eps)
        ),
        "Only square has its bias correction; mean needs one too.": moved(
            rate * new_mean / (v.sqrt() + eps)
        ),
        "The decay went into the gradient, so it is divided by the size of "
        "the slopes, as in Adam: shrink the parameter directly.": _adamw(
            parameter,
            grad + decay * parameter,
            *given[2:],
            **(options | {"weight_decay": 0.0}),
        ),
        "The decay lacks the learning rate: the factor is 1 - learning_rate "
        "* weight_decay.": ((1 - decay) * parameter - step, *states),
        "There is no weight decay.": (parameter - step, *states),
        "The decay was taken of the parameter after the step: take it of "
        "the one before.": (shrink * (parameter - step), *states),
        "The weight grows instead of shrinking: the decay has the wrong "
        "sign.": ((1 + rate * decay) * parameter - step, *states),
        "eps belongs outside the root: sqrt(v) + eps.": moved(
            rate * m / (v + eps).sqrt()
        ),
        "The root of square is missing.": moved(rate * m / (v + eps)),
        "The step goes uphill: subtract it.": moved(-step),
        "This moves along the gradient, not along its average.": moved(
            rate * grad / (v.sqrt() + eps)
        ),
        "This uses mean and square as they were before this gradient came "
        "in.": moved(
            rate
            * (mean / (1 - beta1**n_steps))
            / ((square / (1 - beta2**n_steps)).sqrt() + eps)
        ),
        "beta1 and beta2 are exchanged.": _adamw(*given, **swapped),
        "n_steps counts this step already: no + 1.": _adamw(*late, **options),
        "Return mean and square as they are, uncorrected: the next step "
        "corrects them again.": (after, m, v),
        "The new gradient has the weight 1 - beta, and the old average "
        "beta.": (
            after,
            (1 - beta1) * mean + beta1 * grad,
            (1 - beta2) * square + beta2 * grad * grad,
        ),
        "The new gradient enters the average with the factor 1 - beta.": (
            after,
            beta1 * mean + grad,
            beta2 * square + grad * grad,
        ),
        "square averages the squares of the gradients.": (
            after,
            new_mean,
            beta2 * square + (1 - beta2) * grad,
        ),
    }
    if n_steps > 1:
        hint = "n_steps counts this step already, from 1: no - 1."
        slips[hint] = _adamw(*early, **options)
    return slips


@checker
def check_clip(clip: Callable[[list[Tensor], float], list[Tensor]]) -> None:
    """Check clip(grads, max_norm) -> new gradients, none in place.

    All gradients together, as one long vector, get a length of at most
    max_norm.

    >>> check_clip(lambda grads, max_norm: [g.clamp(max=max_norm)
    ...                                     for g in grads])
    Not yet: gradient 0 of clip([[3, 4], [12]], 2.6) must be [0.6, 0.8], \
got [2.6, 2.6]. Each number was cut off by itself: that changes the \
direction. Multiply all by one factor.
    """
    both = "The length of both together is 13."
    short = "Their length is below max_norm already: leave them alone."
    one = [torch.tensor([[3.0, 0.0], [0.0, -4.0]])]
    cases = [
        # shown, gradients, max_norm, factor, hint
        (
            "[[3, 4], [12]], 2.6",
            [torch.tensor([3.0, 4.0]), torch.tensor([12.0])],
            2.6,
            0.2,
            both,
        ),
        (
            "[[3, 4], [12]], 20.0",
            [torch.tensor([3.0, 4.0]), torch.tensor([12.0])],
            20.0,
            1.0,
            short,
        ),
        ("[[[3, 0], [0, -4]]], 1.0", one, 1.0, 0.2, "The length is 5."),
        (
            "[[0, 0], [0]], 1.0",
            [torch.zeros(2), torch.zeros(1)],
            1.0,
            1.0,
            "A length of 0 is below max_norm, and 0 / 0 is nan.",
        ),
        (
            "[[0.1], [-0.1]], 1.0",
            [torch.tensor([0.1]), torch.tensor([-0.1])],
            1.0,
            1.0,
            short,
        ),
        (
            "[[3], [4], [12]], 10.0",
            [torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([12.0])],
            10.0,
            10 / 13,
            "The length of all three together is 13, which is above 10.",
        ),
        (
            "[[0.6], [0.8]], 0.5",
            [torch.tensor([0.6]), torch.tensor([0.8])],
            0.5,
            0.5,
            "The length is 1, which is above 0.5.",
        ),
    ]
    for given, grads, max_norm, factor, hint in cases:
        shown = f"clip({given})"
        before = [g.clone() for g in grads]
        result = attempt(shown, clip, grads, max_norm)
        pairs = zip(before, grads, strict=True)
        if not all(torch.equal(old, new) for old, new in pairs):
            raise Mistake(
                f"{shown} changed its gradients in place (g *= ... and "
                "g.mul_ do that). Return new ones: g * factor"
            )
        if not isinstance(result, list | tuple) or len(result) != len(grads):
            raise Mistake(
                f"{shown} must return a list of as many gradients, "
                f"{len(grads)}; got {result!r}"
            )
        slips = _slips_of_clip(before, max_norm)
        for i, (old, new) in enumerate(zip(before, result, strict=True)):
            right = factor * old
            found = recognize(
                new,
                {
                    words: wrong[i]
                    for words, wrong in slips.items()
                    if not torch.allclose(wrong[i], right, atol=1e-4)
                },
            )
            what = f"gradient {i} of {shown}"
            expect_close(what, new, right, found or hint)


def _slips_of_clip(
    grads: list[Tensor], max_norm: float
) -> dict[str, list[Tensor]]:
    squares = sum(g.square().sum() for g in grads)
    norm = squares.sqrt()
    sizes = [g.norm() for g in grads]
    n_numbers = sum(g.numel() for g in grads)

    def scaled(length: Tensor) -> list[Tensor]:
        return [g * (max_norm / length).clamp(max=1) for g in grads]

    return {
        "Each gradient was clipped by itself, which turns the long vector: "
        "use one factor for all.": [
            g * (max_norm / size).clamp(max=1)
            for g, size in zip(grads, sizes, strict=True)
        ],
        "Each number was cut off by itself: that changes the direction. "
        "Multiply all by one factor.": [
            g.clamp(-max_norm, max_norm) for g in grads
        ],
        "The lengths of the parts do not add up, their squares do.": scaled(
            sum(sizes)
        ),
        "The length is the root of the sum of the squares.": scaled(squares),
        "The length takes the sum of the squares, not their mean.": scaled(
            (squares / n_numbers).sqrt()
        ),
        "A short gradient must not be made longer: the factor is at most 1.": [
            g * max_norm / norm for g in grads
        ],
        "The factor is max_norm / length, not 1 / length.": [
            g / norm.clamp(min=1) for g in grads
        ],
    }
