"""Checkers for the exercises of the chapter on generating text."""

import itertools
import math
from collections.abc import Callable
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
from scratch.llm.generation import apply_temperature, keep_top_k, keep_top_p

Filter = Callable[[Tensor, float], Tensor]


@checker
def check_temperature(my_temperature: Filter) -> None:
    """Check my_temperature(logits, temperature), logits for the softmax.

    logits (..., vocab_size), temperature at least 0. At 0 the largest logit
    of each row takes all.

    >>> check_temperature(lambda logits, temperature: logits * temperature)
    Not yet: the softmax of my_temperature(log [1, 2, 4], 2) must be \
[0.22654, 0.32038, 0.45308], got [0.047619, 0.19048, 0.7619]. That \
multiplies: divide by the temperature.
    """
    logits = torch.tensor([1.0, 2.0, 4.0]).log()
    for temperature in (2, 0.5, 1):
        shown = f"my_temperature(log [1, 2, 4], {temperature})"
        _expect_shares(shown, my_temperature, logits, temperature)
    shown = "my_temperature([1, 3, 2], 0)"
    _expect_shares(shown, my_temperature, torch.tensor([1.0, 3, 2]), 0)
    for shape in ((2, 5), (1, 4), (2, 3, 4)):
        for temperature in (0.7, 0):
            shown = f"my_temperature for logits {shape} and {temperature}"
            logits = _numbers(*shape)
            _expect_shares(shown, my_temperature, logits, temperature)
    shown = "my_temperature([2, -inf, 1], 0.5)"
    logits = torch.tensor([2.0, -math.inf, 1.0])
    _expect_shares(shown, my_temperature, logits, 0.5)
    shown = "my_temperature([-1001, -1000, -1002], 0.5)"
    logits = torch.tensor([-1001.0, -1000.0, -1002.0])
    _expect_shares(shown, my_temperature, logits, 0.5)
    _expect_shares(shown.replace("-1", "1"), my_temperature, logits.abs(), 0.5)


def _expect_shares(
    shown: str, my_temperature: Filter, logits: Tensor, temperature: float
) -> None:
    actual = _as_logits(
        shown, call(shown, my_temperature, logits, temperature), logits
    )
    expected = apply_temperature(logits, temperature).softmax(-1)
    hint = recognize(actual, _slips_of_temperature(logits, temperature))
    row_is_hidden = actual.eq(-math.inf).all(-1).any()
    if not hint and temperature == 0 and row_is_hidden:
        hint = "Each row has its own largest logit, and here one has none."
    if not hint and actual.softmax(-1).isnan().any():
        hint = "inf - inf and 0 / 0 are nan." + (
            " At temperature 0 nothing can be divided: keep the largest "
            "logit, and make all others -inf."
            if temperature == 0
            else " Exponentials of such logits are inf or 0: the logits can "
            "be divided without any."
        )
    _expect_rows(
        f"the softmax of {shown}",
        actual.softmax(-1),
        expected,
        hint
        or recognize(
            actual.softmax(-1),
            {
                text: wrong.softmax(-1)
                for text, wrong in _slips_of_temperature(
                    logits, temperature
                ).items()
            },
        )
        or "Divide each logit by the temperature.",
    )


def _slips_of_temperature(
    logits: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Return what likely mistakes give, and the hint for each."""
    probs = logits.softmax(-1)
    if temperature == 0:
        rows = logits.view(-1, logits.shape[-1])
        best = rows.argmax(-1)
        hidden = torch.full_like(rows, -math.inf)
        first = hidden.clone()
        first[:, best[0]] = 0
        return {
            "At temperature 0 nothing is left but the largest logit.": logits,
            "At temperature 0 all are equal there: it must be the other "
            "end, where the largest takes all.": torch.zeros_like(logits),
            "Those are shares: logits are wanted. A 0 still gets a share "
            "from the softmax, since exp(0) is 1.": (
                keep_top_k(logits, 1).softmax(-1)
            ),
            "Hidden logits must be -inf: a 0 still gets a share, since "
            "exp(0) is 1.": logits.where(keep_top_k(logits, 1) == logits, 0.0),
            "Each row has its own largest logit (dim=-1).": first.view_as(
                logits
            ),
            "Each row has its own largest logit, and this is the largest of "
            "all.": logits.where(logits == logits.max(), -math.inf),
            "That keeps the smallest.": logits.where(
                keep_top_k(-logits, 1) > -math.inf, -math.inf
            ),
        }
    slips = {
        "Those are shares, after the softmax: return the logits.": (
            logits / temperature
        ).softmax(-1),
        "Divide the logits, before the softmax, instead of the shares.": (
            probs / temperature
        ),
        "Those are powers of shares: take their logarithm to have "
        "logits.": probs ** (1 / temperature),
        "Those are exponentials: return the logits.": (
            logits / temperature
        ).exp(),
    }
    if temperature != 1:
        slips |= {
            "That multiplies: divide by the temperature.": (
                logits * temperature
            ),
            "The temperature has no effect. Adding a number to all logits "
            "changes no share.": logits,
            "Divide by the temperature itself, not by its root.": (
                logits / math.sqrt(temperature)
            ),
            "Divide by the temperature itself, not by its square.": (
                logits / temperature**2
            ),
        }
    return slips


@checker
def check_keep_top_k(my_top_k: Filter) -> None:
    """Check my_top_k(logits, top_k): the largest stay, others become -inf.

    logits (..., vocab_size), no two of a row equal but -inf. A top_k above
    vocab_size keeps all.

    >>> check_keep_top_k(
    ...     lambda logits, top_k: logits * (logits >= logits.sort()[0][-top_k])
    ... )
    Not yet: my_top_k([1, 4, 2, -6, 3, 0, -1], 3) must be [-inf, 4, 2, -inf, \
3, -inf, ...], got [0, 4, 2, -0, 3, 0, ...]. A hidden logit of 0, or near \
it, still gets a share, since exp(0) is 1. Hide with -inf.
    """
    numbers = [1, 4, 2, -6, 3, 0, -1]
    logits = torch.tensor(numbers).float()
    for top_k in (3, 1, 2, 6, 7, 9):
        shown = f"my_top_k({numbers}, {top_k})"
        _expect_top_k(shown, my_top_k, logits, top_k)
    shown = "my_top_k([-4, -1, -3, -2], 2)"
    logits = torch.tensor([-4.0, -1.0, -3.0, -2.0])
    _expect_top_k(shown, my_top_k, logits, 2)
    for shape in ((3, 5), (1, 5), (3, 3), (2, 3, 4)):
        shown = f"my_top_k for logits {shape} and 2"
        _expect_top_k(shown, my_top_k, _numbers(*shape), 2)
    logits = torch.tensor([-math.inf, 5.0, -math.inf, 6.0])
    for top_k in (1, 3):
        shown = f"my_top_k([-inf, 5, -inf, 6], {top_k})"
        _expect_top_k(shown, my_top_k, logits, top_k)


def _expect_top_k(
    shown: str, my_top_k: Filter, logits: Tensor, top_k: int
) -> None:
    n_most = logits.shape[-1]
    try:
        answer = call(shown, my_top_k, logits, top_k)
    except Mistake as mistake:
        if top_k > n_most and "raised" in str(mistake):
            raise Mistake(
                f"{mistake}. There are only {n_most} logits: take "
                "min(top_k, vocab_size)"
            ) from mistake
        raise
    n_kept = min(top_k, n_most)
    if isinstance(answer, tuple) and len(answer) == 2:
        raise Mistake(
            f"{shown} returned two things, values and places, as topk does. "
            "Return all logits, the others as -inf"
        )
    expected = keep_top_k(logits, top_k)
    slips = {
        **_slips_of_batches(logits, lambda x: keep_top_k(x, top_k)),
        "That keeps one too few: the smallest of the top_k stays.": (
            keep_top_k(logits, top_k - 1)
            if top_k > 1
            else torch.full_like(logits, -math.inf)
        ),
        "That keeps one too many.": keep_top_k(logits, top_k + 1),
        "Those are the smallest.": logits.where(
            keep_top_k(-logits, top_k) > -math.inf, -math.inf
        ),
        "That is the largest alone: top_k of them stay.": keep_top_k(
            logits, 1
        ),
        "Nothing is hidden.": logits,
        "It is the other way round: the largest stay.": logits.where(
            expected == -math.inf, -math.inf
        ),
        "Those are the largest by size without sign: a logit of -3 is below "
        "one of 1.": logits.where(
            keep_top_k(logits.abs(), top_k) > -math.inf, -math.inf
        ),
        "Those are the largest, and no longer in their places: the place of "
        "a logit is the id of its token. Hide the others where they are.": (
            logits.sort(descending=True)[0][..., :n_kept]
        ),
        "Those are the places of the largest. Return all logits, the others "
        "as -inf.": logits.argsort(descending=True)[..., :n_kept],
        "The order is lost: the place of a logit is the id of its token. "
        "Hide the others where they are.": (expected.sort(descending=True)[0]),
        **_slips_of_hiding(logits, expected),
    }
    _expect_kept(shown, answer, logits, expected, slips)


@checker
def check_keep_top_p(my_top_p: Filter) -> None:
    """Check my_top_p(logits, top_p): the nucleus stays, others become -inf.

    logits (..., vocab_size), no two of a row equal but -inf. The nucleus is
    the fewest tokens, the likeliest first, that hold at least top_p: the
    token that crosses the line is in. It is never empty.

    >>> check_keep_top_p(lambda logits, top_p: logits)
    Not yet: my_top_p(log [0.05, 0.4, 0.1, 0.15, 0.3], 0.58) must be \
[-inf, -0.91629, -inf, -inf, -1.204], got [-2.9957, -0.91629, -2.3026, \
-1.8971, -1.204]. Nothing is hidden. If you add up logits: add up shares, \
softmax first.
    """
    shares = [0.05, 0.4, 0.1, 0.15, 0.3]
    logits = torch.tensor(shares).log()
    for top_p in (0.58, 0.3, 0.8, 0.02, 0.9, 1.0):
        shown = f"my_top_p(log {shares}, {top_p})"
        _expect_top_p(shown, my_top_p, logits, top_p)
    shown = "my_top_p([5, 7, 6, 4], 0.8)"
    _expect_top_p(shown, my_top_p, torch.tensor([5.0, 7, 6, 4]), 0.8)
    for shape in ((3, 5), (1, 5), (3, 3), (2, 3, 4)):
        shown = f"my_top_p for logits {shape} and 0.7"
        _expect_top_p(shown, my_top_p, _numbers(*shape), 0.7)
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, -1.0])
    shown = "my_top_p([-inf, 0, -inf, 1, -1], 0.8)"
    _expect_top_p(shown, my_top_p, logits, 0.8)
    shown = "my_top_p([1000, 1001, 999], 0.8)"
    logits = torch.tensor([1000.0, 1001.0, 999.0])
    hint = (
        "Exponentials of such logits are inf, and inf / inf is nan: use a "
        "softmax that subtracts the largest logit first."
    )
    _expect_top_p(shown, my_top_p, logits, 0.8, hint)


def _expect_top_p(
    shown: str,
    my_top_p: Filter,
    logits: Tensor,
    top_p: float,
    hint: str = "",
) -> None:
    expected = keep_top_p(logits, top_p)
    order = logits.argsort(descending=True)
    probs = logits.softmax(-1)
    falling = probs.gather(-1, order)
    sums = falling.cumsum(-1)

    def hidden(late: Tensor) -> Tensor:
        """Hide what is late in falling order."""
        return logits.masked_fill(late.scatter(-1, order, late), -math.inf)

    def here(hide: Tensor) -> Tensor:
        return logits.masked_fill(hide, -math.inf)

    late = sums - falling >= top_p
    beyond = late.clone()
    beyond[..., 1:] = late[..., :-1]
    beyond[..., 0] = False
    inner = sums > top_p
    not_empty = inner.clone()
    not_empty[..., 0] = False
    rising = logits.argsort()
    low = probs.gather(-1, rising).cumsum(-1)
    least = low - probs.gather(-1, rising) >= top_p
    slips = {
        **_slips_of_batches(logits, lambda x: keep_top_p(x, top_p)),
        "The token that crosses the line belongs to the nucleus: keep a "
        "token if those before it hold less than top_p.": hidden(inner),
        "The token that crosses the line belongs to the nucleus, not only "
        "where it is the first.": hidden(not_empty),
        "That keeps one too many: the nucleus ends with the token that "
        "crosses the line.": hidden(beyond),
        "Add up the shares from the likeliest down, not in the order of the "
        "ids.": here(probs.cumsum(-1) - probs >= top_p),
        "Add up the shares from the likeliest down, not in the order of the "
        "ids; and the token that crosses the line stays.": here(
            probs.cumsum(-1) > top_p
        ),
        "What is hidden was found in falling order and hidden in the order "
        "of the ids: bring it back with scatter.": here(late),
        "What is hidden was found in falling order and hidden in the order "
        "of the ids: bring it back with scatter; and the token that crosses "
        "the line stays.": here(inner),
        "Those are the least likely: sort in falling order.": here(
            least.scatter(-1, rising, least)
        ),
        "Those are the tokens with a share of top_p each: add the shares "
        "up.": here(probs < top_p),
        "Those are the tokens with top_p of the best one's share: add the "
        "shares up.": here(probs < top_p * probs.amax(-1, keepdim=True)),
        "Nothing is hidden. If you add up logits: add up shares, softmax "
        "first.": logits,
        "Add up shares, not logits: softmax first.": hidden(
            logits.gather(-1, order).cumsum(-1) - logits.gather(-1, order)
            >= top_p
        ),
        "Add up shares, not logits: softmax first; and the token that "
        "crosses the line stays.": hidden(
            logits.gather(-1, order).cumsum(-1) > top_p
        ),
        "It is the other way round: the nucleus stays.": logits.where(
            expected == -math.inf, -math.inf
        ),
        "The order is lost: the place of a logit is the id of its token. "
        "Bring what is hidden back with scatter.": (
            expected.gather(-1, order)
        ),
        **_slips_of_hiding(logits, expected),
    }
    answer = call(shown, my_top_p, logits, top_p)
    _expect_kept(shown, answer, logits, expected, slips, hint)


def _slips_of_batches(
    logits: Tensor, keep: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return what comes out where rows are mixed."""
    if logits.ndim == 1:
        return {}
    rows = logits.reshape(-1, logits.shape[-1])
    one_row = rows.clone()
    one_row[0] = keep(rows[0])
    as_first = rows.where(keep(rows[0]) > -math.inf, -math.inf)
    level = keep(rows[0])
    level = level[level > -math.inf].min()
    return {
        "Only the first row is filtered: each row has its own (dim=-1).": (
            one_row.view_as(logits)
        ),
        "The tokens of the first row are kept in all: each row has its own "
        "(dim=-1).": as_first.view_as(logits),
        "The limit of the first row is used for all: each row has its own "
        "(dim=-1).": logits.where(logits >= level, -math.inf),
        "All rows are taken together: each row has its own (dim=-1).": (
            keep(logits.flatten()).view_as(logits)
        ),
        "That goes down the columns: each row has its own (dim=-1).": (
            keep(logits.transpose(-2, -1)).transpose(-2, -1)
        ),
    }


def _slips_of_hiding(logits: Tensor, expected: Tensor) -> dict[str, Tensor]:
    """Return what comes out where the right logits are hidden wrongly."""
    stays = expected > -math.inf
    probs = logits.softmax(-1)
    return {
        "A hidden logit of 0, or near it, still gets a share, since exp(0) "
        "is 1. Hide with -inf.": logits.where(stays, 0.0),
        "Those are shares that no longer add up to 1: return logits, -inf "
        "where they are hidden, and the softmax comes after.": (probs * stays),
        "Those are shares: return logits, -inf where they are hidden.": (
            expected.softmax(-1)
        ),
        "That tells which ones stay: return the logits, -inf where they are "
        "hidden.": stays,
        "That tells which ones are hidden: return the logits, -inf there.": (
            ~stays
        ),
        "A hidden logit must be -inf, not inf.": logits.where(stays, math.inf),
    }


def _expect_kept(
    shown: str,
    answer: Any,
    logits: Tensor,
    expected: Tensor,
    slips: dict[str, Tensor],
    hint: str = "",
) -> None:
    """The right ones are finite, and differ from the logits by a constant."""
    if not hint and answer is not None:
        hint = recognize(answer, slips)
    actual = _as_logits(shown, answer, logits, hint)
    right = expected.log_softmax(-1)
    if torch.allclose(actual.log_softmax(-1), right, rtol=1e-4, atol=1e-4):
        return
    kept, wanted = actual > -math.inf, expected > -math.inf
    if not hint and actual.isnan().any():
        hint = "nan comes from inf - inf, from inf / inf or from 0 * inf."
    if not hint and not kept.any(-1).all():
        hint = "A row must never be hidden as a whole."
    if not hint and torch.equal(
        actual.where(wanted, 0.0), expected.where(wanted, 0.0)
    ):
        wrong = actual[kept & ~wanted]
        if len(wrong) > 0 and (wrong == wrong[0]).all():
            hint = (
                f"A hidden logit of {wrong[0]:.3g} is a logit like any "
                "other: another one may lie below it. Hide with -inf."
            )
    if not hint and not torch.equal(kept, wanted):
        n_kept, n_wanted = kept.sum(-1).tolist(), wanted.sum(-1).tolist()
        hint = f"{n_wanted} must stay in a row, and {n_kept} do."
        if n_kept == n_wanted:
            hint = "The right number stays, and the wrong ones."
    if not hint:
        hint = "The right ones stay, and with other logits than before."
    _expect_rows(shown, actual, expected, hint)


def _expect_rows(
    shown: str, actual: Tensor, expected: Tensor, hint: str
) -> None:
    """Expect close numbers; show the first row that has others."""
    if actual.ndim == 1:
        expect_close(shown, actual, expected, hint)
        return
    for i in itertools.product(*map(range, expected.shape[:-1])):
        place = ", ".join(map(str, i))
        row = f"row {place} of {shown}"
        expect_close(row, actual[i], expected[i], hint)


def _as_logits(
    shown: str, answer: Any, logits: Tensor, hint: str = ""
) -> Tensor:
    """Return the answer as a tensor of float32 of the shape of logits."""
    if answer is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    try:
        actual = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(
            f"{shown} must be a tensor, got a {type(answer).__name__}"
        ) from None
    if actual.shape != logits.shape:
        raise Mistake(
            f"{shown} must have shape {tuple(logits.shape)}, got "
            f"{tuple(actual.shape)}. {hint}".rstrip()
        )
    return actual.float()


def _numbers(*shape: int) -> Tensor:
    """Return numbers without a pattern, no two equal, the same each time."""
    return 3 * (1.9 + 2.3 * torch.arange(math.prod(shape))).sin().view(shape)
