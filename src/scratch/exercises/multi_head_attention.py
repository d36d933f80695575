"""Checkers for the exercises of the chapter on multi-head attention."""

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
from scratch.llm.multi_head_attention import merge_heads, split_heads
from scratch.llm.self_attention import attend, causal_mask

# (B, T, n_heads, d_head). In the second all of B, T, n_heads and d_head can
# change places unseen by shapes; in the others none can.
_SIZES = ((1, 3, 2, 4), (2, 2, 2, 2), (2, 5, 3, 4), (3, 1, 2, 5), (1, 4, 1, 3))


@checker
def check_split_heads(my_split: Callable[[Tensor, int], Tensor]) -> None:
    """Check my_split(x, n_heads): (B, T, d_model) -> heads apart.

    The result is (B, n_heads, T, d_head), with d_head = d_model / n_heads.

    >>> check_split_heads(lambda x, n: x.view(len(x), n, x.shape[1], -1))
    Not yet: my_split(x, 2) for x of shape (1, 3, 8) must be [0, 1, 2, 3, \
8, 9, ...], got [0, 1, 2, 3, 4, 5, ...]. A view to the final shape mixes \
tokens with heads: cut the last dimension first, then exchange two \
dimensions.
    """
    for sizes in _SIZES:
        n_batch, n_tokens, n_heads, d_head = sizes
        x = _counted(n_batch, n_tokens, n_heads * d_head)
        shown = f"my_split(x, {n_heads}) for x of shape {tuple(x.shape)}"
        actual = call(shown, my_split, x, n_heads)
        _require_tensor(shown, actual)
        expected = split_heads(x, n_heads)
        expect_close(
            shown,
            actual,
            expected,
            _hint_for_split(actual, x, n_heads, expected),
        )
    _require_slopes("my_split(x, 2)", lambda x: my_split(x, 2), (2, 3, 4))


@checker
def check_merge_heads(my_merge: Callable[[Tensor], Tensor]) -> None:
    """Check my_merge(x): (B, n_heads, T, d_head) -> (B, T, d_model).

    It undoes split_heads: d_model = n_heads * d_head.

    >>> check_merge_heads(lambda x: x.reshape(len(x), x.shape[2], -1))
    Not yet: my_merge(x) for x of shape (1, 2, 3, 4) must be [0, 1, 2, 3, \
12, 13, ...], got [0, 1, 2, 3, 4, 5, ...]. A reshape alone mixes tokens \
with heads: exchange the two dimensions back first, then join.
    """
    for n_batch, n_tokens, n_heads, d_head in _SIZES:
        x = _counted(n_batch, n_heads, n_tokens, d_head)
        shown = f"my_merge(x) for x of shape {tuple(x.shape)}"
        actual = call(shown, my_merge, x)
        _require_tensor(shown, actual)
        expected = merge_heads(x)
        expect_close(
            shown, actual, expected, _hint_for_merge(actual, x, expected)
        )
    _require_slopes("my_merge(x)", my_merge, (2, 3, 4, 2))


@checker
def check_multi_head(
    my_multi_head: Callable[[Tensor, Tensor, Tensor, int], Tensor],
) -> None:
    """Check my_multi_head(x, qkv, mix, n_heads): causal, without biases.

    x (B, T, d_model); qkv (3 * d_model, d_model) with the rows of all
    queries, then of all keys, then of all values, head by head in each;
    mix (d_model, d_model); result (B, T, d_model).
    """
    generator = torch.Generator().manual_seed(0)
    for sizes in (
        *((1, 4, 1, 4), (1, 4, 2, 3), (2, 4, 4, 2)),
        *((2, 5, 3, 4), (3, 2, 2, 2), (1, 1, 1, 4)),
    ):
        n_batch, n_tokens, n_heads, d_head = sizes
        x, qkv, mix = _random_layer(*sizes, generator)
        shown = (
            f"my_multi_head for {_count(n_batch, 'text')} of "
            f"{_count(n_tokens, 'token')} and {_count(n_heads, 'head')} of "
            f"width {d_head}"
        )
        actual = call(shown, my_multi_head, x, qkv, mix, n_heads)
        _require_tensor(shown, actual)
        expected = _layer(x, qkv, mix, n_heads)
        hint = recognize(actual, _slips_of_layer(x, qkv, mix, n_heads))
        if actual.shape == expected.shape:
            for i, t in itertools.product(range(n_batch), range(n_tokens)):
                place = f"{shown}, text {i}, token {t},"
                expect_close(place, actual[i, t], expected[i, t], hint)
        expect_close(shown, actual, expected, hint)
    x, qkv, mix = _random_layer(1, 5, 2, 3, generator)
    _require_causal(my_multi_head, x, qkv, mix)
    _require_stable(my_multi_head, x, qkv, mix)
    _require_way_back(my_multi_head, x, qkv, mix)


def _random_layer(
    n_batch: int,
    n_tokens: int,
    n_heads: int,
    d_head: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return x, qkv and mix."""
    d_model = n_heads * d_head
    return [
        torch.randn(shape, generator=generator)
        for shape in (
            (n_batch, n_tokens, d_model),
            (3 * d_model, d_model),
            (d_model, d_model),
        )
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _require_causal(
    my_multi_head: Callable[..., Tensor], x: Tensor, qkv: Tensor, mix: Tensor
) -> None:
    """A weight that is only small lets a large value through."""
    shown = "my_multi_head"
    # Keys of 0, so that each hidden token would get a share of the weight.
    qkv = qkv.clone()
    qkv[x.shape[-1] : 2 * x.shape[-1]] = 0
    changed = x.clone()
    changed[:, -1] = 1e12
    before = call(shown, my_multi_head, x, qkv, mix, 2)[:, :-1]
    after = call(shown, my_multi_head, changed, qkv, mix, 2)[:, :-1]
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise Mistake(
            f"{shown} lets a trace of the future through: a large last "
            "token changes earlier outputs. Hide scores with -inf before the "
            "softmax; a finite number leaves a small weight"
        )


def _require_stable(
    my_multi_head: Callable[..., Tensor], x: Tensor, qkv: Tensor, mix: Tensor
) -> None:
    shown = "my_multi_head for x with scores of several thousand"
    x = 30 * x
    actual = call(shown, my_multi_head, x, qkv, mix, 2)
    if not actual.isfinite().all():
        raise Mistake(
            f"{shown} gives inf or nan. Use a softmax that subtracts the "
            "largest score first, such as attend does"
        )
    expect_close(shown, actual, _layer(x, qkv, mix, 2))


def _require_way_back(
    my_multi_head: Callable[..., Tensor], x: Tensor, qkv: Tensor, mix: Tensor
) -> None:
    inputs = {"x": x, "qkv": qkv, "mix": mix}
    expected = _slopes(_layer, inputs)
    actual = _slopes(my_multi_head, inputs)
    for name, slope in actual.items():
        if slope is None:
            raise Mistake(
                f"my_multi_head cuts the way back: no slope reaches {name}. "
                "Do not use .data, .detach(), no_grad or numpy on the way"
            )
        expect_close(f"the slope of {name}", slope, expected[name])


def _slopes(
    function: Callable[..., Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor | None]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs.values()]
    with torch.enable_grad():
        result = call("my_multi_head", function, *leaves, 2)
    slopes = [None] * len(leaves)
    if result.requires_grad:
        slopes = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
    return dict(zip(inputs, slopes, strict=True))


def _counted(*shape: int) -> Tensor:
    """Return a tensor of this shape that holds 0, 1, 2, ..."""
    return torch.arange(math.prod(shape), dtype=torch.float).view(shape)


def _require_tensor(shown: str, actual: Any) -> None:
    if actual is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    if isinstance(actual, tuple):
        raise Mistake(
            f"{shown} must be a tensor, got a tuple. attend returns two "
            "things, output and weights; one of them is asked for"
        )
    if not isinstance(actual, Tensor):
        raise Mistake(
            f"{shown} must be a tensor, got a {type(actual).__name__}. "
            "torch.stack and torch.cat make one tensor of several"
        )
    if actual.dtype not in (torch.float32, torch.float64):
        raise Mistake(
            f"{shown} must hold floats as exact as those of x, "
            f"got {actual.dtype}"
        )


def _require_slopes(
    shown: str, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    """A layer that is trained needs a way back through each number."""
    x = (0.25 + _counted(*shape)).requires_grad_()
    with torch.enable_grad():
        result = call(shown, function, x)
    if not isinstance(result, Tensor) or not result.requires_grad:
        raise Mistake(
            f"{shown} cuts the way back: no slope reaches x. Do not use "
            ".data, .detach(), .tolist() or torch.tensor(...) on it"
        )
    (slope,) = torch.autograd.grad(result.sum(), x)
    if not torch.equal(slope, torch.ones_like(x)):
        raise Mistake(
            f"{shown} must hand on each number of x once, as it is. Rounding, "
            "for example, changes numbers and leaves no slope"
        )
    if not torch.equal(
        result.detach().flatten().sort().values, x.detach().flatten()
    ):
        raise Mistake(f"{shown} must not change the numbers, only move them")


def _hint_for_split(
    actual: Tensor, x: Tensor, n_heads: int, expected: Tensor
) -> str:
    n_batch, n_tokens, _ = x.shape
    cut = x.unflatten(-1, (n_heads, -1))
    by_turns = x.unflatten(-1, (-1, n_heads))
    hint = recognize(
        actual,
        {
            "A view to the final shape mixes tokens with heads: cut the last "
            "dimension first, then exchange two dimensions.": (
                x.reshape(n_batch, n_heads, n_tokens, -1)
            ),
            "The rows are cut; now exchange tokens and heads.": cut,
            "The heads take turns in the numbers of a token. Each head gets "
            "neighboring ones: cut into n_heads pieces of d_head.": (
                by_turns.permute(0, 3, 1, 2)
            ),
            "Exchange tokens and heads; here two other dimensions changed "
            "places.": cut.transpose(-1, -2),
            "The heads come in reverse order.": expected.flip(1),
            "That is for one sequence: heads and batch changed places.": (
                cut.permute(2, 0, 1, 3)
            ),
        },
    )
    if hint or actual.shape != expected.shape:
        return hint or "The order is batch, heads, tokens, width of a head."
    return "Head h holds the numbers h * d_head to (h + 1) * d_head - 1."


def _hint_for_merge(actual: Tensor, x: Tensor, expected: Tensor) -> str:
    n_batch, _, n_tokens, _ = x.shape
    exchanged = x.transpose(1, 2)
    hint = recognize(
        actual,
        {
            "A reshape alone mixes tokens with heads: exchange the two "
            "dimensions back first, then join.": (
                x.reshape(n_batch, n_tokens, -1)
            ),
            "Tokens and heads are exchanged; now join the last two "
            "dimensions.": exchanged,
            "The heads take turns in the result. The numbers of a head must "
            "stay together.": exchanged.transpose(2, 3).flatten(2),
            "The heads come in reverse order.": x.flip(1)
            .transpose(1, 2)
            .flatten(2),
            "The heads are added up or averaged. Lay them side by side: each "
            "keeps its own numbers.": x.sum(1),
            "The heads are averaged. Lay them side by side: each keeps its "
            "own numbers.": x.mean(1),
            "The heads stand one below the other. They belong side by "
            "side.": x.flatten(1, 2),
        },
    )
    if hint or actual.shape != expected.shape:
        return hint or "The order is batch, tokens, then all heads' numbers."
    return "In each token, head 0 comes first, then head 1, and so on."


def _parts(x: Tensor, qkv: Tensor, n_heads: int) -> list[Tensor]:
    return [
        split_heads(part, n_heads) for part in (x @ qkv.mT).chunk(3, dim=-1)
    ]


def _layer(x: Tensor, qkv: Tensor, mix: Tensor, n_heads: int) -> Tensor:
    q, k, v = _parts(x, qkv, n_heads)
    found, _ = attend(q, k, v, causal_mask(x.shape[1]))
    return merge_heads(found) @ mix.mT


def _slips_of_layer(
    x: Tensor, qkv: Tensor, mix: Tensor, n_heads: int
) -> dict[str, Tensor]:
    n_batch, n_tokens, d_model = x.shape
    d_head = d_model // n_heads
    mask = causal_mask(n_tokens)
    q, k, v = _parts(x, qkv, n_heads)

    def mixed(q: Tensor, k: Tensor, v: Tensor, mask: Any = mask) -> Tensor:
        return merge_heads(attend(q, k, v, mask)[0]) @ mix.mT

    found, _ = attend(q, k, v, mask)
    by_head = (x @ qkv.mT).unflatten(-1, (n_heads, 3, -1)).unbind(-2)
    by_view = [
        part.reshape(n_batch, n_heads, n_tokens, d_head)
        for part in (x @ qkv.mT).chunk(3, dim=-1)
    ]
    viewed, _ = attend(*by_view, mask)
    blocks = mix.unflatten(1, (n_heads, d_head)).movedim(1, 0)
    written = found @ blocks.mT  # (B, n_heads, T, d_model)
    scores = q @ k.mT / math.sqrt(d_head)
    by_zero = scores.masked_fill(~mask, 0).softmax(-1) @ v
    right = merge_heads(found) @ mix.mT
    return {
        "The mask is missing: a token sees itself and what stands before "
        "it.": mixed(q, k, v, None),
        "The mask is turned around: a token must not see what comes after "
        "it.": mixed(q, k, v, mask.mT),
        "The output layer is missing: multiply the merged heads with mix.": (
            merge_heads(found)
        ),
        "mix is used transposed. A layer computes W x: with one token in "
        "each row, that is x @ W.T.": merge_heads(found) @ mix,
        "Scores must be divided by the root of d_head, not of d_model.": (
            mixed(q / math.sqrt(n_heads), k, v)
        ),
        "Scores must be divided by the root of d_head.": mixed(
            q * math.sqrt(d_head), k, v
        ),
        "qkv holds all queries, then all keys, then all values. It was read "
        "as if query, key and value of head 1 came first.": mixed(
            *(part.transpose(1, 2) for part in by_head)
        ),
        "Queries and keys are exchanged.": mixed(k, q, v),
        "Keys and values are exchanged: qkv holds queries, keys, values.": (
            mixed(q, v, k)
        ),
        "The mask sets hidden scores to 0, and exp(0) is 1. Hide them with "
        "-inf.": merge_heads(by_zero) @ mix.mT,
        "Only the last head is left. Add what each head writes: y = y + ... "
        "in the loop.": written[:, -1],
        "That is the mean over the heads. Their parts are added up.": (
            right / n_heads
        ),
        "x is added. A GPT does that outside the layer.": right + x,
        "That averages keys: the weights belong to the values.": mixed(
            q, k, k
        ),
        "The merge mixes tokens with heads: exchange the two dimensions back "
        "before you join.": found.reshape(x.shape) @ mix.mT,
        "The split mixes tokens with heads: cut the last dimension, then "
        "exchange two dimensions.": merge_heads(viewed) @ mix.mT,
        "Split and merge mix tokens with heads. It fits together, and each "
        "head has got a part of the text instead of a part of the width.": (
            viewed.reshape(x.shape) @ mix.mT
        ),
        "That is one head of the full width.": (
            attend(*(x @ qkv.mT).chunk(3, dim=-1), mask)[0] @ mix.mT
        ),
    }
