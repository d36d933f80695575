"""What a checker answers: right, or the first mistake in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Verdict:
    """The answer of a checker. True in an `if` or `assert` when correct.

    >>> Verdict(True, "Correct.")
    Correct.
    """

    correct: bool
    message: str

    def __bool__(self) -> bool:
        return self.correct

    def __repr__(self) -> str:
        return self.message


class Mistake(Exception):
    """The first thing that is wrong with an answer, in words."""


def checker(check: Callable[..., None]) -> Callable[..., Verdict]:
    """Turn a function that raises Mistake into one that returns a Verdict."""

    @wraps(check)
    def checked(*answers: Any) -> Verdict:
        try:
            check(*answers)
        except Mistake as mistake:
            return Verdict(False, f"Not yet: {mistake}")
        return Verdict(True, "Correct.")

    return checked


def attempt(shown: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the learner's function; what it raises becomes a Mistake.

    Args:
        shown: the call as the learner would write it, for the message.
    """
    if not callable(function):
        raise Mistake(
            "hand over the function itself, without calling it; "
            f"got {function!r}"
        )
    try:
        return function(*arguments)
    except Exception as error:
        kind = type(error).__name__
        raise Mistake(f"{shown} raised {kind}: {error}") from error


def expect_close(
    shown: str, actual: Any, expected: Tensor | float, hint: str = ""
) -> None:
    """Raise a Mistake unless actual has expected's shape and numbers.

    Compares in float64, to a relative 1e-4 and an absolute 1e-5.
    """
    expected = torch.as_tensor(expected).double()
    if actual is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    try:
        actual = torch.as_tensor(actual).detach().double()
    except (TypeError, ValueError, RuntimeError):
        kind = type(actual).__name__
        raise Mistake(
            f"{shown} must be a number or a tensor, got a {kind}"
        ) from None
    if actual.shape != expected.shape:
        raise Mistake(
            f"{shown} must have shape {tuple(expected.shape)}, "
            f"got {tuple(actual.shape)}. {hint}".rstrip()
        )
    if not torch.allclose(actual, expected, rtol=1e-4, atol=1e-5):
        raise Mistake(
            f"{shown} must be {_written(expected)}, "
            f"got {_written(actual)}. {hint}".rstrip()
        )


def call(shown: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Attempt a call; changing a tensor in place is a Mistake."""
    before = [torch.as_tensor(argument).clone() for argument in arguments]
    result = attempt(shown, function, *arguments)
    for old, argument in zip(before, arguments, strict=True):
        if not torch.equal(old, torch.as_tensor(argument)):
            raise Mistake(
                f"{shown} changed its argument in place (assigning to x[...], "
                "operators such as /=, and functions such as exp_ do that). "
                "Work on a new tensor: start from x.clone(), or write "
                "x = x / 2 instead of x /= 2"
            )
    return result


def recognize(actual: Any, slips: Mapping[str, Tensor]) -> str:
    """Return the hint whose wrong numbers are exactly these, or nothing."""
    try:
        actual = torch.as_tensor(actual).detach().double()
    except (TypeError, ValueError, RuntimeError):
        return ""
    for hint, wrong in slips.items():
        same_shape = actual.shape == wrong.shape
        if same_shape and torch.allclose(actual, wrong.double(), atol=1e-5):
            return hint
    return ""


def _written(x: Tensor) -> str:
    numbers = x.flatten()[:6].tolist()
    text = ", ".join(f"{number:.5g}" for number in numbers)
    if x.numel() > 6:
        text += ", ..."
    return text if x.ndim == 0 else f"[{text}]"
