"""Checkers for the exercises of the chapter on embeddings."""

from collections import Counter
from collections.abc import Callable, Iterable
from operator import index
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
from scratch.llm.embeddings import embedding_backward

Pair = tuple[int, int]


@checker
def check_sinusoidal_positions(
    my_positions: Callable[[int, int], Tensor],
) -> None:
    """Check my_positions(n_positions, d_model), waves of many lengths.

    Sines stand in the even places, cosines in the odd ones, and both count
    from position 0.

    >>> check_sinusoidal_positions(lambda n, d: torch.zeros(n, d))
    Not yet: row 0 of my_positions(3, 6) must be [0, 1, 0, 1, 0, 1], got \
[0, 0, 0, 0, 0, 0]. Row t holds sin(w_0 t), cos(w_0 t), sin(w_1 t), ...
    """
    for n_positions, d_model in ((3, 6), (1, 2), (5, 4), (4, 64)):
        shown = f"my_positions({n_positions}, {d_model})"
        actual = _stacked(attempt(shown, my_positions, n_positions, d_model))
        _expect_real_numbers(shown, actual)
        hint = recognize(actual, _slips_of_waves(n_positions, d_model)) or (
            "Row t holds sin(w_0 t), cos(w_0 t), sin(w_1 t), ..."
        )
        expected = _waves(n_positions, d_model)
        _expect_rows_close(shown, actual, expected, hint)
    # Far from the start, where other constants and rounded angles show.
    shown = "my_positions(20001, 8)"
    actual = _stacked(attempt(shown, my_positions, 20_001, 8))
    _expect_real_numbers(shown, actual)
    expected = _waves(20_001, 8)
    numbers = _as_numbers(actual)
    if numbers is None or numbers.shape != expected.shape:
        expect_close(shown, actual, expected)
        raise AssertionError("no such shape is close")
    # A float32 angle of 20 000 is off by up to a thousandth.
    far = numbers
    if not torch.allclose(far, expected, rtol=0, atol=3e-3):
        worst = int((far - expected).abs().amax(dim=1).argmax())
        raise Mistake(
            f"the first rows are right, but row {worst} of {shown} is not. "
            "Each row must depend on its position alone, for any number of "
            "rows"
        )


def _stacked(answer: Any) -> Any:
    """Make one tensor of a list of rows."""
    rows = answer if isinstance(answer, list | tuple) else []
    if rows and all(isinstance(row, Tensor) for row in rows):
        if len({row.shape for row in rows}) == 1:
            return torch.stack(list(rows))
    return answer


def _as_numbers(actual: Any) -> Tensor | None:
    try:
        return torch.as_tensor(actual).detach().double()
    except (TypeError, ValueError, RuntimeError):
        return None


def _expect_rows_close(
    shown: str, actual: Any, expected: Tensor, hint: str
) -> None:
    """Like expect_close, but show the first row that is wrong."""
    numbers = _as_numbers(actual)
    if numbers is not None and numbers.shape == expected.shape:
        for t, (row, right) in enumerate(zip(numbers, expected, strict=True)):
            expect_close(f"row {t} of {shown}", row, right, hint)
    else:
        expect_close(shown, actual, expected, hint)


def _expect_real_numbers(shown: str, actual: Any) -> None:
    if isinstance(actual, Tensor) and actual.is_complex():
        raise Mistake(
            f"{shown} must hold real numbers, got {actual.dtype}. The two "
            "coordinates of a hand stand side by side, sine first"
        )
    if isinstance(actual, Tensor) and not actual.is_floating_point():
        raise Mistake(
            f"{shown} must hold floats, got {actual.dtype}. A tensor made "
            "from integers cuts off what is behind the point"
        )


def _angles(
    n_positions: int, d_model: int, *, first: int = 0, base: float = 10_000
) -> Tensor:
    t = torch.arange(first, first + n_positions, dtype=torch.float64)
    even = torch.arange(0, d_model, 2, dtype=torch.float64)
    return t[:, None] * base ** (-even / d_model)


def _in_turns(one: Tensor, other: Tensor) -> Tensor:
    return torch.stack([one, other], dim=-1).flatten(start_dim=1)


def _waves(n_positions: int, d_model: int) -> Tensor:
    angles = _angles(n_positions, d_model)
    return _in_turns(angles.sin(), angles.cos())


def _slips_of_waves(n_positions: int, d_model: int) -> dict[str, Tensor]:
    angles = _angles(n_positions, d_model)
    sin, cos = angles.sin(), angles.cos()
    later = _angles(n_positions, d_model, first=1)
    t = torch.arange(n_positions, dtype=torch.float64)[:, None]
    place = torch.arange(d_model, dtype=torch.float64)
    own = t * 10_000 ** (-place / d_model)  # a speed for every place
    half = t * 10_000 ** (-place[: d_model // 2] / d_model)
    growing = t * 10_000 ** (place[::2] / d_model)
    small = _angles(n_positions, d_model, base=1000)
    return {
        "All sines stand in front of all cosines: they must take turns.": (
            torch.cat([sin, cos], dim=1)
        ),
        "The cosines come first: sine in the even places.": (
            _in_turns(cos, sin)
        ),
        "Count positions from 0: row 0 holds sin 0 and cos 0.": (
            _in_turns(later.sin(), later.cos())
        ),
        "The cosine must have the speed of the sine in front of it: both "
        "use the exponent 2i, not the place in the vector.": (
            _in_turns(own[:, 0::2].sin(), own[:, 1::2].cos())
        ),
        "The speeds fall too slowly: the exponent is -2i / d_model, with "
        "i = 0, 1, 2, ...": _in_turns(half.sin(), half.cos()),
        "The speeds must fall from hand to hand, not grow: the exponent "
        "has a minus.": _in_turns(growing.sin(), growing.cos()),
        "The base is 10000, not 1000.": _in_turns(small.sin(), small.cos()),
        "All places hold sines: the odd ones hold cosines.": (
            _in_turns(sin, sin)
        ),
        "Those are degrees: torch's sine takes radians.": _in_turns(
            angles.deg2rad().sin(), angles.deg2rad().cos()
        ),
        "Rows are positions and columns are waves: transpose it.": (
            _in_turns(sin, cos).T
        ),
    }


@checker
def check_embedding_backward(
    my_backward: Callable[[Tensor, Tensor, int], Tensor],
) -> None:
    """Check my_backward(grad_output, ids, vocab_size).

    grad_output (..., d_model) are the slopes along the looked-up rows, ids
    (...) say which rows these were; the result is (vocab_size, d_model).
    """
    rows = [[1.0, 0.0, 2.0], [3.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    slopes, ids = torch.tensor(rows), torch.tensor([0, 2, 0])
    shown = "my_backward([[1, 0, 2], [3, 1, 0], [0, 1, 1]], [0, 2, 0], 4)"
    actual = _dense(call(shown, my_backward, slopes, ids, 4))
    hint = recognize(actual, _slips_of_backward(slopes, ids, 4)) or (
        "Row i is the sum of the slopes at the places where id i stands."
    )
    expect_close(shown, actual, embedding_backward(slopes, ids, 4), hint)

    for given, shape, n_rows, hint in (
        (
            "ids of shape (2, 5)",
            (2, 5),
            7,
            "Flatten ids, and grad_output to rows of d_model, first.",
        ),
        (
            "ids of shape (2, 3, 2)",
            (2, 3, 2),
            7,
            "Flatten ids, and grad_output to rows of d_model, first.",
        ),
        (
            "ids of shape (), one token",
            (),
            5,
            "A single id has no dimension at all.",
        ),
        (
            "ids of shape (30,) with 3 tokens",
            (30,),
            3,
            "Every one of the repeated slopes must be added.",
        ),
    ):
        n = torch.Size(shape).numel()
        ids = (torch.arange(n) * 5 % 3 + (n_rows > 3)).reshape(shape)
        slopes = torch.arange(2.0 * n).sin().reshape(*shape, 2)
        shown = f"the gradient for {given}, vocab_size={n_rows}"
        actual = _dense(call(shown, my_backward, slopes, ids, n_rows))
        expected = embedding_backward(slopes, ids, n_rows)
        expect_close(shown, actual, expected, hint)


def _dense(actual: Any) -> Any:
    """Fill in the zeros that a sparse tensor leaves out."""
    if isinstance(actual, Tensor) and actual.layout != torch.strided:
        return actual.to_dense()
    return actual


def _slips_of_backward(
    slopes: Tensor, ids: Tensor, vocab_size: int
) -> dict[str, Tensor]:
    right = embedding_backward(slopes, ids, vocab_size)
    counts = ids.bincount(minlength=vocab_size)[:, None]
    last, first = torch.zeros_like(right), torch.zeros_like(right)
    for i, row in zip(ids.tolist(), slopes, strict=True):
        last[i] = row
    for i, row in zip(ids.tolist()[::-1], slopes.flip(0), strict=True):
        first[i] = row
    used = ids.unique()
    return {
        "Id 0 stands twice, and only its last slope arrived. grad[ids] += "
        "... writes each row once; add them one by one, or with "
        "index_add_.": last,
        "Id 0 stands twice, and only its first slope arrived: add both.": (
            first
        ),
        "Id 0 stands twice: its slopes are added, not averaged.": (
            right / counts.clamp(min=1)
        ),
        "That is divided by the number of places: the slopes of a mean loss "
        "contain this factor already.": right / len(ids),
        "The sign is turned: return the gradient, not the step against "
        "it.": -right,
        "Return one row for each token of the vocabulary, with zeros for "
        "those that do not occur.": right[used],
        "That is grad_output itself: send each row to the row of its "
        "token.": slopes,
        "That looks rows of grad_output up; scatter them instead.": (
            slopes[ids]
        ),
        "That is one row for each number of the vector: transpose it.": (
            right.T
        ),
        "That counts the tokens: add up their slopes.": counts.expand(
            -1, slopes.shape[1]
        ),
    }


@checker
def check_skip_gram_pairs(
    my_pairs: Callable[[list[int], int], Iterable[Pair]],
) -> None:
    """Check my_pairs(ids, window), a list of (center, context).

    Pairs may come in any order, each as often as it occurs. Since each pair
    has its mirror image, (context, center) cannot be told apart.

    >>> check_skip_gram_pairs(lambda ids, window: [])
    Not yet: my_pairs([6, 7, 8, 9], 1) lacks (6, 7), (7, 6), (7, 8), ...
    """
    for ids, window in (
        ([6, 7, 8, 9], 1),
        ([1, 2, 3, 4, 5], 2),
        ([4, 4, 4], 1),
        ([1, 2, 1, 2, 1], 3),
        ([5, 6], 9),
        ([5], 2),
        ([], 2),
    ):
        given = list(ids)
        shown = f"my_pairs({ids}, {window})"
        answer = attempt(shown, my_pairs, given, window)
        if given != ids:
            raise Mistake(f"{shown} changed its list of ids")
        actual = _as_counts(shown, answer)
        expected = _right_pairs(ids, window)
        if actual != expected:
            said = _difference(ids, window, actual, expected)
            raise Mistake(f"{shown} {said}")


def _right_pairs(ids: list[int], window: int) -> Counter[Pair]:
    places = range(len(ids))
    return Counter(
        (ids[i], ids[j])
        for i in places
        for j in places
        if 0 < abs(i - j) <= window
    )


def _as_counts(shown: str, answer: Any) -> Counter[Pair]:
    if answer is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    if isinstance(answer, tuple) and len(answer) == 2:
        lists = [_numbers(part) for part in answer]
        if None not in lists and len(lists[0]) == len(lists[1]) != 2:
            raise Mistake(
                f"{shown} returned two sequences: return one list of tuples "
                "(center, context), as zip makes of them"
            )
    try:
        pairs = [tuple(index(word) for word in pair) for pair in answer]
    except (TypeError, ValueError):
        raise Mistake(
            f"{shown} must be a list of tuples (center, context) of ids"
        ) from None
    if any(len(pair) != 2 for pair in pairs):
        raise Mistake(
            f"{shown} must be a list of tuples (center, context), got "
            f"{next(pair for pair in pairs if len(pair) != 2)}. Each "
            "context makes a pair of its own"
        )
    return Counter(pairs)


def _numbers(part: Any) -> list[int] | None:
    try:
        return [int(number) for number in part]
    except (TypeError, ValueError):
        return None


def _difference(
    ids: list[int],
    window: int,
    actual: Counter[Pair],
    expected: Counter[Pair],
) -> str:
    """Say what is wrong, by its likely cause where there is one."""
    n = len(ids)
    own = Counter((word, word) for word in ids)
    if actual == expected + own and ids:
        return "pairs each word with itself: leave out the distance 0"
    around = Counter(
        (ids[i], ids[(i + step) % n]) for i in range(n) for step in (-1, 1)
    )
    if actual == around and n > 2:
        return (
            "goes around the end: the last word is no neighbor of the "
            "first. A negative index counts from the end"
        )
    places = range(n)
    right = Counter((ids[i], ids[j]) for i in places for j in places if i < j)
    apart = len(set(ids)) == n  # else one side can look like lost repeats
    if apart and actual and actual == expected & right != expected:
        return "looks to the right only: a context may stand on either side"
    if actual == Counter({pair: 2 * k for pair, k in expected.items()}):
        return "has every pair twice"
    if actual and actual == _right_pairs(ids, window - 1):
        return "stops one place short: range(a, b) ends at b - 1"
    short = Counter(
        (ids[i], ids[j])
        for i in places
        for j in places
        if i != j and -window <= j - i < window
    )
    if n > 2 and actual == short:
        return (
            "stops one place short on the right: range(a, b) and ids[a:b] "
            "end at b - 1, and contexts may stand on either side"
        )
    if n > 2 and actual == _right_pairs(ids, window + 1):
        return "goes one place too far"
    sliced = Counter(
        (center, context)
        for i, center in enumerate(ids)
        for context in ids[i - window : i] + ids[i + 1 : i + window + 1]
    )
    if actual == sliced:
        return (
            "loses pairs at the start of the text: in ids[i - window:i] a "
            "negative index counts from the end"
        )
    missing, extra = expected - actual, actual - expected
    if missing and set(missing) <= set(actual):
        return (
            f"has {_named(missing)} too few times: count each occurrence, "
            "words may repeat (ids.index finds the first alone)"
        )
    if missing:
        return f"lacks {_named(missing)}"
    return f"must not hold {_named(extra)}"


def _named(pairs: Counter[Pair]) -> str:
    shown = [f"({a}, {b})" for a, b in sorted(pairs)]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
