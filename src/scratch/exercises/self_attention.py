"""Checkers for the exercises of the chapter on self-attention."""

import math
from collections.abc import Callable
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
from scratch.llm.self_attention import attend, causal_mask


@checker
def check_causal_mask(my_mask: Callable[[int, int], Tensor]) -> None:
    """Check my_mask(n_tokens, n_before), True where a query may see.

    The result is (n_tokens, n_before + n_tokens): n_before keys stand
    before the first query.

    >>> check_causal_mask(lambda n, before: torch.ones(n, before + n) > 0)
    Not yet: my_mask(3, 0) must be [[1, 0, 0], [1, 1, 0], [1, 1, 1]], got \
[[1, 1, 1], [1, 1, 1], [1, 1, 1]]. Nothing is hidden: a query must not see \
the keys after it.
    """
    for n_tokens, n_before in ((3, 0), (2, 3), (4, 1), (1, 0), (1, 4), (5, 2)):
        shown = f"my_mask({n_tokens}, {n_before})"
        actual = _as_mask(shown, attempt(shown, my_mask, n_tokens, n_before))
        expected = causal_mask(n_tokens, n_before=n_before)
        if actual.shape != expected.shape:
            raise Mistake(
                f"{shown} must have shape {tuple(expected.shape)}, got "
                f"{tuple(actual.shape)}. One row for each query, one column "
                "for each key, those before the first query included"
            )
        if not torch.equal(actual, expected):
            hint = recognize(actual, _slips_of_mask(n_tokens, n_before)) or (
                "Query t sees the n_before keys, and of its own sequence "
                "the keys up to t."
            )
            raise Mistake(
                f"{shown} must be {expected.int().tolist()}, "
                f"got {actual.int().tolist()}. {hint}"
            )


def _as_mask(shown: str, actual: Any) -> Tensor:
    if actual is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    try:
        actual = torch.as_tensor(actual)
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(
            f"{shown} must be a tensor of bool, got a {type(actual).__name__}"
        ) from None
    if actual.is_floating_point() and actual.isinf().any():
        raise Mistake(
            f"{shown} holds infinities: that is what one adds to the scores. "
            "Return bools, True where a query may see"
        )
    if actual.dtype != torch.bool:
        raise Mistake(
            f"{shown} must hold bools, got {actual.dtype}. A comparison "
            "makes bools, and so does .bool()"
        )
    return actual


def _slips_of_mask(n_tokens: int, n_before: int) -> dict[str, Tensor]:
    right = causal_mask(n_tokens, n_before=n_before)
    every = torch.ones_like(right)
    stand_before = torch.arange(n_before + n_tokens) < n_before
    return {
        "Nothing is hidden: a query must not see the keys after it.": every,
        "That is the opposite: True must mean that a query may see.": ~right,
        "A query must see itself as well: keep the diagonal.": every.tril(
            n_before - 1
        ),
        "That sees one key too many: the next token is the one to be "
        "predicted.": every.tril(n_before + 1),
        "That sees the future and hides the past: rows are queries, columns "
        "are keys.": every.triu(n_before),
        "Every query sees the n_before keys: the diagonal starts after "
        "them.": every.tril(),
        "That is right but for the n_before keys, which are hidden: every "
        "query sees them.": right & ~stand_before,
        "The n_before keys are seen, but the queries do not see themselves "
        "and each other.": every & stand_before,
    }


@checker
def check_attend(
    my_attend: Callable[
        [Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]
    ],
) -> None:
    """Check my_attend(q, k, v, mask), which returns output and weights.

    q (..., T_q, d_head), k (..., T_k, d_head), v (..., T_k, d_value), and
    mask (..., T_q, T_k), True where a query may see.
    """
    # One query that sees all: the numbers are those of the chapter's third
    # token, with a fourth key.
    q = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    k = math.log(2) * torch.tensor(
        [[2.0, 0, 0, 0], [0, 1, 2, 1], [2, 1, 2, 1], [0, 0, 0, 0]]
    )
    v = torch.tensor([[21.0, 0.0], [0.0, 21.0], [21.0, 21.0], [6.0, 3.0]])
    _expect("one query and four keys", my_attend, q, k, v, None)

    _expect("two queries that see all", my_attend, *_inputs((), 2, 5), None)
    _expect("a causal mask", my_attend, *_inputs((), 4, 4), causal_mask(4))
    holes = torch.ones(3, 5).bool()
    holes[0, 1:4] = holes[1, 0] = holes[2, 3:] = False
    _expect("a mask with holes", my_attend, *_inputs((), 3, 5), holes)
    for leading in ((2,), (2, 3)):
        _expect(
            f"a batch of shape {leading}",
            my_attend,
            *_inputs(leading, 3, 4),
            causal_mask(3, n_before=1),
        )
    own = torch.arange(24).reshape(2, 3, 4) * 5 % 7 > 2
    _expect("a mask for each sequence", my_attend, *_inputs((2,), 3, 4), own)
    _expect("one query of width 1", my_attend, *_inputs((), 1, 2, 1), None)

    q, k, v = _inputs((), 3, 3)
    # Scores of about -60, and of 60 for the key that two queries must not
    # see: their exponentials are numbers, but not one beside the other.
    level = torch.tensor([[-20.0], [-20.0], [20.0]])
    _expect(
        "a hidden key with a large score",
        my_attend,
        torch.ones(3, 9),
        level + 0.1 * k,
        v,
        causal_mask(3),
        "Hide the score before the softmax: beside it the others have been "
        "rounded to 0.",
    )
    hint = (
        "Subtract the largest score of the row before you exponentiate, or "
        "use a softmax that does; and hide keys with -inf, since another "
        "number may be above a score."
    )
    for given, keys in (
        ("scores of thousands", k),
        ("scores of minus thousands", -k.abs()),
    ):
        large = 40_000 * q.abs()
        _expect(given, my_attend, large, keys, v, causal_mask(3), hint)
    _expect(
        "scores below -1e9",
        my_attend,
        1e11 * q.abs(),
        -k.abs(),
        v,
        causal_mask(3),
        "Hide keys with -inf: a score may lie below any other number.",
    )
    _expect_gradient(my_attend)


def _expect_gradient(
    my_attend: Callable[[Tensor, Tensor, Tensor, Tensor], Any],
) -> None:
    given = [x.requires_grad_() for x in _inputs((2,), 4, 4)]
    mask = causal_mask(4)
    shown = "my_attend for q, k and v that require gradients"
    output, _ = attend(*given, mask)
    mine = call(shown, my_attend, *given, mask)[0]
    if not isinstance(mine, Tensor) or not mine.requires_grad:
        raise Mistake(
            f"{shown} returned an output without gradient, so nothing can "
            "be trained. Was it computed under no_grad, from a detach(), or "
            "outside torch?"
        )
    slopes = torch.autograd.grad(output.sin().sum(), given)
    found = torch.autograd.grad(
        mine.sin().sum(), given, allow_unused=True, materialize_grads=True
    )
    for name, actual, expected in zip("qkv", found, slopes, strict=True):
        expect_close(
            f"the gradient at {name} of {shown}",
            actual,
            expected,
            "The numbers are right, and the gradient is lost on the way: "
            "look for detach(), .data, item() and no_grad.",
        )


def _inputs(
    leading: tuple[int, ...], t_q: int, t_k: int, d_head: int = 9
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers without a pattern, the same in every call; d_value is 2."""

    def numbers(first: float, *shape: int) -> Tensor:
        return (first + 3.7 * torch.arange(math.prod(shape))).sin().view(shape)

    return (
        numbers(0.4, *leading, t_q, d_head) * 2,
        numbers(1.1, *leading, t_k, d_head) * 2,
        numbers(2.3, *leading, t_k, 2),
    )


def _expect(
    given: str,
    my_attend: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    hint: str = "",
) -> None:
    if mask is None:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    shown = f"my_attend for {given}"
    try:
        answer = call(shown, my_attend, q, k, v, mask)
    except Mistake as mistake:
        if q.ndim == 2 or "raised" not in str(mistake):
            raise
        raise Mistake(
            f"{mistake}. Only the last two dimensions are transposed: "
            "k.transpose(-2, -1)"
        ) from mistake
    output, weights = attend(q, k, v, mask)
    mine, my_weights = _two_tensors(shown, answer, output, weights)
    slips = _slips_of_weights(q, k, v, mask)
    expect_close(
        f"the weights of {shown}",
        my_weights,
        weights,
        hint or recognize(my_weights, slips) or _rows(my_weights, weights),
    )
    slips = _slips_of_output(q, k, v, weights)
    expect_close(
        f"the output of {shown}",
        mine,
        output,
        recognize(mine, slips)
        or "The weights are right: multiply them with the values.",
    )


def _two_tensors(
    shown: str, answer: Any, output: Tensor, weights: Tensor
) -> tuple[Any, Any]:
    if answer is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    if isinstance(answer, Tensor) or not isinstance(answer, tuple | list):
        raise Mistake(
            f"{shown} must return two tensors, output and weights, got a "
            f"{type(answer).__name__}"
        )
    if len(answer) != 2:
        raise Mistake(
            f"{shown} must return two tensors, output and weights, got "
            f"{len(answer)}"
        )
    if recognize(answer[0], {"swapped": weights}) and recognize(
        answer[1], {"swapped": output}
    ):
        raise Mistake(
            f"{shown} returned the weights first: return output, weights"
        )
    return answer


def _rows(actual: Any, expected: Tensor) -> str:
    """Say it where the rows are no shares."""
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return "There is one row for each query and one column for each key."
    if actual.isnan().any():
        return (
            "nan comes from inf - inf, from inf / inf or from 0 / 0. Is a "
            "whole row hidden (True means that a query may see), or an "
            "exponential too large?"
        )
    sums = actual.sum(dim=-1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        return "Each row of weights must add up to 1."
    return ""


def _softmax(scores: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(scores, dim).nan_to_num(0)


def _slips_of_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    t_k, d_head = k.shape[-2:]
    products = q @ k.mT
    scores = products / math.sqrt(d_head)

    def hidden(scores: Tensor, fill: float = -math.inf) -> Tensor:
        return scores.masked_fill(~mask, fill)

    slips = {
        "Divide the scores by the root of d_head, the width of a query.": (
            _softmax(hidden(products))
        ),
        "Divide by the root of d_head, not by d_head itself.": (
            _softmax(hidden(products / d_head))
        ),
        "Multiplied instead of divided by the root of d_head?": (
            _softmax(hidden(products * math.sqrt(d_head)))
        ),
        "Divide by the root of d_head, not of the width of a value.": (
            _softmax(hidden(products / math.sqrt(v.shape[-1])))
        ),
        "Divide by the root of d_head, not of the number of keys.": (
            _softmax(hidden(products / math.sqrt(t_k)))
        ),
        "The softmax runs over the queries: each row, over the keys, must "
        "add up to 1.": _softmax(hidden(scores), -2),
        "The mask is turned around: True means that a query may see.": (
            _softmax(scores.masked_fill(mask, -math.inf))
        ),
        "Those are the scores, before the softmax.": scores,
    }
    if not mask.all():
        own = causal_mask(q.shape[-2], n_before=max(t_k - q.shape[-2], 0))
        slips |= {
            "The mask has no effect.": _softmax(scores),
            "Use the mask that is given instead of a causal one of your "
            "own.": _softmax(scores.masked_fill(~own, -math.inf)),
            "The mask came after the softmax: the rows no longer add up to "
            "1. Hide the scores instead, with -inf.": (
                _softmax(scores) * mask
            ),
            "A hidden score of 0 still gets a weight, since exp(0) is 1. "
            "Hide with -inf.": _softmax(hidden(scores, 0)),
            "A hidden score of -1 still gets a weight. Hide with -inf.": (
                _softmax(hidden(scores, -1))
            ),
            "The softmax runs over the queries, and so the mask hides in "
            "the wrong direction.": _softmax(hidden(scores), -2) * mask,
        }
    return slips


def _slips_of_output(
    q: Tensor, k: Tensor, v: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    slips = {
        "That averages the keys: the weights belong to the values.": (
            weights @ k
        ),
        "That sums the values with weights that do not add up to 1.": (
            (weights * weights.shape[-1]) @ v
        ),
        "That takes the value of the best key alone: it is a weighted "
        "sum.": v.take_along_dim(weights.argmax(-1)[..., None], dim=-2),
    }
    if weights.shape[-1] == weights.shape[-2]:
        slips["The weights are transposed: rows are queries."] = weights.mT @ v
    return slips
