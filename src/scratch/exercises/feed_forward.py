"""Checkers for the exercises of the chapter on feed-forward networks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scratch.exercises.verdict import (
    Mistake,
    attempt,
    call,
    checker,
    expect_close,
    recognize,
)

Bend = Callable[[Tensor], Tensor]


@checker
def check_feed_forward(
    my_feed_forward: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor], Tensor
    ],
) -> None:
    """Check my_feed_forward(x, W_1, b_1, W_2, b_2), with GPT-2's GELU.

    x is (..., d_model), W_1 (d_ff, d_model) and W_2 (d_model, d_ff).

    >>> check_feed_forward(lambda x, W_1, b_1, W_2, b_2: x @ W_1.T @ W_2.T)
    Not yet: my_feed_forward for one token of width 1 and 2 neurons must be \
[0.97489], got [0.75]. Two products without a bend are one product: apply \
GELU between them. The biases are missing too.
    """
    one = torch.tensor([[1.0], [-1.0]])
    small = (
        torch.tensor([1.0]),
        one,
        torch.tensor([0.5, -0.5]),
        torch.tensor([[0.5, -0.25]]),
        torch.tensor([0.25]),
    )
    _expect("one token of width 1 and 2 neurons", my_feed_forward, *small)
    for leading in ((), (4,), (2, 3), (1, 2, 3)):
        for d_model, d_ff in ((3, 5), (4, 4), (5, 2)):
            _expect(
                f"x of shape {(*leading, d_model)} and {d_ff} neurons",
                my_feed_forward,
                _numbers(0.4, *leading, d_model),
                _numbers(1.1, d_ff, d_model),
                _numbers(2.3, d_ff),
                _numbers(3.1, d_model, d_ff),
                _numbers(5.2, d_model),
            )
    far = (100 * small[0], *small[1:])
    _expect("a token of a hundred", my_feed_forward, *far)
    farther = (1e5 * small[0], *small[1:])
    _expect("a token of a hundred thousand", my_feed_forward, *farther)
    _expect_precise(my_feed_forward)
    _expect_gradients(my_feed_forward)


def _expect_precise(my_feed_forward: Any) -> None:
    """Look for constants that are off by less than float32 shows."""
    one = torch.ones(1, 1, dtype=torch.float64)
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    inputs = (x, one, 0 * one[0], one, 0 * one[0])
    shown = "my_feed_forward in float64"
    actual = call(shown, my_feed_forward, *inputs)
    expected = _network(inputs)
    expect_close(shown, actual, expected)
    if not isinstance(actual, Tensor):
        return  # the gradients will tell
    off = (actual.detach() - expected).abs().max().item()
    if off > 1e-7:
        raise Mistake(
            f"{shown} is off by {off:.0e}. Take sqrt(2 / pi) from math and "
            "0.044715 with all its digits, and keep the dtype of x"
        )


def _expect_gradients(my_feed_forward: Any) -> None:
    names = ("x", "W_1", "b_1", "W_2", "b_2")
    inputs = [
        _numbers(first, *shape).requires_grad_()
        for first, shape in zip(
            (0.4, 1.1, 2.3, 3.1, 5.2),
            ((4, 3), (5, 3), (5,), (3, 5), (3,)),
            strict=True,
        )
    ]
    shown = "my_feed_forward of tensors that require gradients"
    y = attempt(shown, my_feed_forward, *inputs)
    no_way_back = (
        "Compute with tensors all the way, without .item(), .tolist(), "
        ".detach(), .data or torch.no_grad()"
    )
    if not isinstance(y, Tensor) or not y.requires_grad:
        raise Mistake(
            "the values are right, but autograd finds no way back from them. "
            + no_way_back
        )
    if y.dtype != inputs[0].dtype:
        raise Mistake(f"{shown} must keep {inputs[0].dtype}, got {y.dtype}")
    found = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
    expected = torch.autograd.grad(
        _network(tuple(inputs)).square().sum(), inputs
    )
    for name, mine, right in zip(names, found, expected, strict=True):
        if mine is None:
            raise Mistake(
                "the values are right, but autograd finds no way back to "
                f"{name}. {no_way_back}"
            )
        expect_close(
            f"the gradient for {name}",
            mine,
            right,
            f"The values are right, so a part is cut off. {no_way_back}",
        )


def _numbers(first: float, *shape: int) -> Tensor:
    """Numbers without a pattern, the same in every call."""
    return 2 * (first + 3.7 * torch.arange(math.prod(shape))).sin().view(shape)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _network(
    inputs: tuple[Tensor, ...],
    bend: Bend = _gelu,
    end: Bend = lambda y: y,
    first: float = 1.0,
    last: float = 1.0,
) -> Tensor:
    x, weight_1, bias_1, weight_2, bias_2 = inputs
    h = bend(x @ weight_1.T + first * bias_1)
    return end(h @ weight_2.T + last * bias_2)


def _expect(given: str, my_feed_forward: Any, *inputs: Tensor) -> None:
    shown = f"my_feed_forward for {given}"
    actual = _call_with_hint(shown, my_feed_forward, *inputs)
    hint = recognize(actual, _slips(inputs))
    if isinstance(actual, Tensor) and not actual.isfinite().all():
        hint = (
            "e to a large power is inf, and inf / inf is nan: torch.tanh "
            "stays finite."
        )
    expect_close(shown, actual, _network(inputs), hint)
    if isinstance(actual, Tensor) and not actual.is_floating_point():
        raise Mistake(f"{shown} must hold floats, got {actual.dtype}")


def _call_with_hint(shown: str, my_feed_forward: Any, *inputs: Tensor) -> Any:
    """Call; for shapes that do not fit, say how the weights lie."""
    try:
        return call(shown, my_feed_forward, *inputs)
    except Mistake as mistake:
        if not any(word in str(mistake) for word in ("shape", "size")):
            raise
        raise Mistake(
            f"{mistake}. W_1 is (d_ff, d_model), a row for each neuron: "
            "x @ W_1.T has shape (..., d_ff)"
        ) from mistake


def _slips(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What plausible mistakes give, by hint."""
    x, weight_1, bias_1, weight_2, bias_2 = inputs
    none = _network(inputs, lambda z: z)
    slips = {
        "Two products without a bend are one product: apply GELU between "
        "them.": none,
        "This is ReLU; GPT-2 bends with GELU, in its tanh form.": _network(
            inputs, torch.relu
        ),
        "This is GELU by the normal distribution; GPT-2 has the tanh form, "
        "a little different.": _network(inputs, F.gelu),
        "This is z * sigmoid(z), a relative of GELU.": _network(
            inputs, F.silu
        ),
        "Behind the second layer there is no bend: the output must be able "
        "to take any sign and size.": _network(inputs, end=_gelu),
        "The bend belongs between the two layers, not behind the second.": (
            _network(inputs, lambda z: z, _gelu)
        ),
        "The first bias is missing.": _network(inputs, first=0),
        "The second bias is missing.": _network(inputs, last=0),
        "The first bias is added before the bend, as part of the sum that "
        "the neuron bends.": (
            (_gelu(x @ weight_1.T) + bias_1) @ weight_2.T + bias_2
        ),
        "x is added to the output; that is the block's work, in the next "
        "chapter.": x + _network(inputs),
    }
    slips |= {
        hint + " The biases are missing too.": _network(
            inputs, bend, end, 0, 0
        )
        for hint, bend, end in (
            (
                "Two products without a bend are one product: apply GELU "
                "between them.",
                lambda z: z,
                lambda y: y,
            ),
            ("The products and the bend are right.", _gelu, lambda y: y),
        )
    }
    if x.ndim > 1:
        slips["This sums over all tokens. Each token has an output."] = (
            _network(inputs).sum(dim=-2)
        )
    return slips


def _for_one_too(function: Bend) -> Bend:
    """Let the function take a single token (d,) as well."""
    return lambda x: function(x) if x.ndim > 1 else function(x[None])[0]


def _places(x: Tensor) -> Tensor:
    """The numbers 0, 1, ... of the places, as a column."""
    return torch.arange(len(x), dtype=x.dtype)[:, None]


def _attend(x: Tensor) -> Tensor:
    return (x @ x.T).softmax(dim=-1) @ x


def _leak(source: int, target: int) -> Callable[[Tensor], Tensor]:
    # without its mean, so that the mean over d does not give it away
    def leak(x: Tensor) -> Tensor:
        if max(source, target) >= len(x):
            return x.clone()
        mixed = x.clone()
        mixed[target] = x[target] + 0.01 * (x[source] - x[source].mean())
        return mixed

    return leak


def _answer_of(shown: str, actual: Any) -> bool:
    """Return the bool that is meant: True, numpy's, or a tensor of one."""
    single = getattr(actual, "dtype", None) is not None and (
        getattr(actual, "size", None) == 1
        or (isinstance(actual, Tensor) and actual.numel() == 1)
    )
    if not isinstance(actual, bool | int) and not single:
        raise Mistake(
            f"{shown} must be True or False, "
            f"got a {type(actual).__name__}. Is an .all() missing?"
        )
    return bool(actual)


@checker
def check_position_wise(my_test: Callable[[Callable, Tensor], bool]) -> None:
    """Check my_test(f, x): whether f works on each token of x (T, d) alone.

    Tried on functions that do and functions that do not.

    >>> check_position_wise(lambda f, x: f(x).shape == x.shape)
    Not yet: my_test must be False for an average over all tokens, got \
True. Permuting the tokens does not give this one away: change one token, \
or feed one alone.
    """
    x = _numbers(0.4, 6, 4)
    mix = _numbers(1.7, 4, 4)
    permuted_too = (
        "Permuting the tokens does not give this one away: change one "
        "token, or feed one alone."
    )
    everywhere = (
        "Look at every token. One place, or a few, may look as they should."
    )
    places = (
        "Changing one token does not give this one away: permute the "
        "tokens, or feed one alone."
    )
    cases: list[tuple[str, Callable[[Tensor], Tensor], bool, str]] = [
        ("a product with one matrix", lambda x: x @ mix.to(x.dtype), True, ""),
        ("a bend", _gelu, True, ""),
        ("a layer norm", lambda x: F.layer_norm(x, x.shape[-1:]), True, ""),
        (
            "an average over all tokens",
            lambda x: x.mean(dim=-2, keepdim=True) + 0 * x,
            False,
            permuted_too,
        ),
        (
            "a softmax over all tokens",
            lambda x: x.softmax(dim=-2),
            False,
            permuted_too,
        ),
        (
            "an average over earlier tokens",
            lambda x: x.cumsum(dim=-2),
            False,
            "A later token must not move when an earlier one does. "
            + everywhere,
        ),
        (
            "a sum with the token that follows",
            lambda x: x + F.pad(x[1:], (0, 0, 0, 1)),
            False,
            "An earlier token must not move when a later one does. "
            + everywhere,
        ),
        ("attention without a mask", _attend, False, permuted_too),
        (
            "a batch norm in training mode",
            lambda x: (
                (x - x.mean(dim=0)) / (x.var(dim=0) + 1e-5).sqrt()
                if len(x) > 1
                else 0 * x
            ),
            False,
            permuted_too,
        ),
        (
            "a factor that depends on the place",
            lambda x: x * (1 + _places(x)),
            False,
            places,
        ),
        (
            "position vectors, added",
            lambda x: x + _places(x),
            False,
            places,
        ),
    ]
    cases += [
        (
            f"a hundredth of token {source} added to token {target}",
            _leak(source, target),
            False,
            everywhere + " And compare closely: a small leak is a leak.",
        )
        for source in range(len(x))
        for target in range(len(x))
        if source != target
    ]
    for name, function, expected, hint in cases:
        shown = f"my_test(f, x) with f {name}"
        before = x.clone()
        actual = attempt(shown, my_test, _for_one_too(function), x)
        if not torch.equal(before, x):
            raise Mistake(
                f"{shown} changed x in place. Work on a new tensor: x.clone()"
            )
        if actual is None:
            raise Mistake(f"{shown} returned None. Is there a return?")
        answer = _answer_of(shown, actual)
        if answer != expected:
            if expected:
                hint = (
                    "It does work on each token alone. Compare with a "
                    "tolerance, and the same tokens with one another."
                )
            raise Mistake(
                f"my_test must be {expected} for {name}, got {answer}. {hint}"
            )
