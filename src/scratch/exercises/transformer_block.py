"""Checkers for the exercises of the chapter on the transformer block."""

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
from scratch.llm.transformer_block import TransformerBlock

Layer = Callable[[Tensor], Tensor]


@checker
def check_layer_norm(
    my_layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor],
) -> None:
    """Check my_layer_norm(x, weight, bias, eps) for x (..., d_model).

    >>> check_layer_norm(lambda x, weight, bias, eps: x - x.mean())
    Not yet: my_layer_norm of (10, 4, 2, -4) must be [1.4, 0.2, -0.2, -1.4], \
got [7, 1, -1, -7]. The mean is gone; now divide by the standard deviation.
    """
    row = torch.tensor([7.0, 1.0, -1.0, -7.0])
    one, zero = torch.ones(4), torch.zeros(4)
    _expect_norm("(10, 4, 2, -4)", my_layer_norm, row + 3, one, zero, 1e-9)
    weight, bias = torch.tensor([[2.0, -1, 0.5, 3], [5, 6, 7, 8]])
    _expect_norm(
        "(10, 4, 2, -4) with a weight and a bias",
        my_layer_norm,
        row + 3,
        weight,
        bias,
        1e-9,
    )
    for shape in ((3, 5), (2, 5, 3), (4, 1, 6), (2, 3, 2, 4)):
        _expect_norm(
            f"x of shape {shape}",
            my_layer_norm,
            _numbers(0.4, *shape),
            _numbers(1.1, shape[-1]),
            _numbers(2.3, shape[-1]),
            1e-9,
        )
    hint = "eps is added to the variance, once, under the root."
    _expect_norm(
        "a vector of variance 0.25 with eps=0.56",
        my_layer_norm,
        row.sign() / 2,
        weight,
        bias,
        0.56,
        hint,
    )
    _expect_norm(
        "a vector of equal numbers",
        my_layer_norm,
        torch.full((4,), 7.0),
        weight,
        bias,
        1e-5,
        "There is nothing left but the bias. eps, under the root, prevents "
        "a division by zero.",
    )
    _expect_norm(
        "a vector with the mean 30000 and the variance 25",
        my_layer_norm,
        row + 30_000,
        weight,
        bias,
        1e-5,
        "The mean of the squares minus the square of the mean is a small "
        "difference of large numbers: subtract the mean first, then square.",
    )
    leaves = [_numbers(0.4, 3, 5), _numbers(1.1, 5), _numbers(2.3, 5)]
    _expect_slopes(
        "my_layer_norm",
        lambda *leaves: my_layer_norm(*leaves, 1e-5),
        lambda x, w, b: w * _normalized(x, (-1,), 1e-5) + b,
        dict(zip(("x", "weight", "bias"), leaves, strict=True)),
    )


def _expect_slopes(
    name: str,
    answer: Callable[..., Any],
    reference: Callable[..., Tensor],
    leaves: dict[str, Tensor],
) -> None:
    """Raise a Mistake unless gradients pass as through the reference."""
    made = [leaf.clone().requires_grad_() for leaf in leaves.values()]
    with torch.enable_grad():
        actual, expected = call(name, answer, *made), reference(*made)
    hint = (
        "The numbers are right, but a gradient must pass through every step: "
        "no detach, no no_grad, no new tensor made from numbers."
    )
    if not actual.requires_grad:
        raise Mistake(f"No gradient comes through {name}. {hint}")
    along = _numbers(3.1, *expected.shape).to(expected.dtype)
    slopes = []
    for y in (actual, expected):
        try:
            slopes.append(
                torch.autograd.grad(
                    y, made, along.to(y.dtype), allow_unused=True
                )
            )
        except RuntimeError as error:
            raise Mistake(
                f"no gradient comes through {name}: {error}. If += or "
                "another operation in place has overwritten numbers that "
                "the way back needs, write h = h + ... instead"
            ) from error
    for leaf, mine, right in zip(leaves, *slopes, strict=True):
        if mine is None:
            raise Mistake(f"No gradient of {name} reaches {leaf}. {hint}")
        expect_close(f"the gradient of {name} for {leaf}", mine, right, hint)


def _numbers(first: float, *shape: int) -> Tensor:
    """Numbers without a pattern, the same in every call."""
    places = torch.arange(math.prod(shape))
    return 2 * (first + 3.7 * places).sin().view(shape)


def _expect_norm(
    given: str,
    my_layer_norm: Callable[..., Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    hint: str = "",
) -> None:
    shown = f"my_layer_norm of {given}"
    try:
        actual = call(shown, my_layer_norm, x, weight, bias, eps)
    except Mistake as mistake:
        hint = ""
        if "must match the size" in str(mistake):
            hint = ". Has the mean lost its dimension? keepdim=True keeps it."
        elif "Dimension out of range" in str(mistake):
            hint = (
                ". x may have any number of dimensions. Mean and variance "
                "belong to one vector: dim=-1."
            )
        raise Mistake(f"{mistake}{hint}") from mistake
    exact = x.double()
    centered = exact - exact.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    normed = centered / (variance + eps).sqrt()
    slips = _slips_of_norm(exact, centered, normed, weight, bias, eps)
    expect_close(
        shown,
        actual,
        weight * normed + bias,
        recognize(actual, slips) or hint or _fact(actual, x),
    )


def _fact(actual: Any, x: Tensor) -> str:
    if not isinstance(actual, Tensor) or actual.shape != x.shape:
        return "The result has the shape of x."
    if not actual.isfinite().all():
        return "Which division, or which root, makes inf or nan?"
    return ""


def _slips_of_norm(
    x: Tensor,
    centered: Tensor,
    normed: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> dict[str, Tensor]:
    d = x.shape[-1]
    squares = centered.square()
    variance = squares.mean(dim=-1, keepdim=True)
    std = variance.sqrt()

    def scaled(normed: Tensor) -> Tensor:
        return weight * normed + bias

    slips = {
        "The variance divides by d - 1, torch's default for var and std. "
        "Divide by d: unbiased=False, or the mean of the squares.": scaled(
            centered / (squares.sum(-1, keepdim=True) / (d - 1) + eps).sqrt()
        ),
        "The mean is gone; now divide by the standard deviation.": scaled(
            centered
        ),
        "Divided by the variance instead of its root?": scaled(
            centered / (variance + eps)
        ),
        "That gives each vector the length 1. Divide by the root of the "
        "mean of the squares, not of their sum.": scaled(
            centered / (squares.sum(-1, keepdim=True) + eps).sqrt()
        ),
        "The mean is still in the numerator: subtract it from x.": scaled(
            x / (variance + eps).sqrt()
        ),
        "That is RMSNorm. Subtract the mean first, also before you square.": (
            scaled(x / (x.square().mean(-1, keepdim=True) + eps).sqrt())
        ),
        "Subtract the mean also before you square: the variance is the mean "
        "square of the centered numbers.": scaled(
            centered / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        ),
        "eps belongs under the root: add it to the variance.": scaled(
            centered / (std + eps)
        ),
        "eps is not used. Add it to the variance, under the root.": scaled(
            centered / std
        ),
        "Is eps squared? Add it to the variance as it is.": (
            scaled(centered / (variance + eps**2).sqrt())
        ),
        "eps is added twice. Add it once, to the variance.": (
            scaled(centered / (variance + 2 * eps).sqrt())
        ),
        "The weight is missing.": normed + bias,
        "The bias is missing.": weight * normed,
        "Weight and bias are missing.": normed,
        "The weight must not multiply the bias: weight * normed + bias.": (
            weight * (normed + bias)
        ),
        "weight is the factor itself, not what is added to 1.": (
            scaled(normed) + normed
        ),
        "Weight and bias are swapped.": bias * normed + weight,
        "Weight and bias come after the division, not before.": (
            _normalized(weight * x + bias, (-1,), eps)
        ),
        "Mean and variance run over the whole of x. Each vector has its own: "
        "dim=-1, keepdim=True.": scaled(
            _normalized(x, tuple(range(x.ndim)), eps)
        ),
    }
    if x.ndim > 1:
        slips[
            "Mean and variance run over the tokens. They belong to one "
            "vector: dim=-1."
        ] = scaled(_normalized(x, (-2,), eps))
        slips[
            "Mean and variance run over the first dimension, as in batch "
            "normalization. They belong to one vector: dim=-1."
        ] = scaled(_normalized(x, (0,), eps))
    if x.ndim > 2:
        slips[
            "Mean and variance run over all tokens of a text. They belong to "
            "one vector: dim=-1."
        ] = scaled(_normalized(x, (-2, -1), eps))
    return slips


def _normalized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centered = x - x.mean(dim=dims, keepdim=True)
    variance = centered.square().mean(dim=dims, keepdim=True)
    return centered / (variance + eps).sqrt()


@checker
def check_block(
    my_block: Callable[[Tensor, Layer, Layer, Layer, Layer], Tensor],
) -> None:
    """Check my_block(x, norm_1, attention, norm_2, feed_forward).

    The last four are functions from (B, T, d_model) to (B, T, d_model).
    """
    generator = torch.Generator().manual_seed(0)
    block = TransformerBlock(d_model=6, n_heads=2, generator=generator)
    with torch.no_grad():
        for i, norm in enumerate(
            (block.attention_norm, block.feed_forward_norm)
        ):
            norm.weight.copy_(1 + _numbers(0.3 + i, 6) / 3)
            norm.bias.copy_(_numbers(1.9 + i, 6))
    parts = (
        block.attention_norm,
        block.attention,
        block.feed_forward_norm,
        block.feed_forward,
    )
    if not callable(my_block):
        attempt("my_block", my_block)
    for shape in ((2, 5, 6), (1, 1, 6)):
        x = 3 * _numbers(0.4, *shape)
        shown = f"my_block for x of shape {shape}"
        with torch.no_grad():
            actual = call(shown, lambda x: my_block(x, *parts), x)
            expected, slips = block(x), _slips_of_block(x, *parts)
        if isinstance(actual, tuple | list):
            raise Mistake(
                f"{shown} must return one tensor, the stream, got "
                f"{len(actual)} things"
            )
        expect_close(
            shown, actual, expected, recognize(actual, slips) or _STEPS
        )
    with torch.no_grad():
        silent = call(
            "my_block with layers that return zeros",
            lambda x: my_block(
                x, parts[0], torch.zeros_like, parts[2], torch.zeros_like
            ),
            x,
        )
    expect_close(
        "my_block with layers that return zeros",
        silent,
        x,
        "Then nothing is added, and x must come out as it went in.",
    )
    _expect_slopes(
        "my_block",
        lambda x: my_block(x, *parts),
        block,
        {"x": 3 * _numbers(0.4, 2, 5, 6)},
    )


_STEPS = (
    "Two steps, each of the form: stream + layer(norm(stream)). The second "
    "works on what the first has made."
)


def _slips_of_block(
    x: Tensor, norm_1: Layer, attention: Layer, norm_2: Layer, ff: Layer
) -> dict[str, Tensor]:
    found = attention(norm_1(x))
    h = x + found
    made = ff(norm_2(h))
    h_post = norm_1(x + attention(x))
    h_raw = x + attention(x)
    h_normed = norm_1(x) + found
    h_after = x + norm_1(attention(x))
    h_both = x + norm_1(found)
    first = x + ff(norm_2(x))
    return {
        "That is post-norm: the norms stand on the stream. In pre-norm each "
        "norm stands in front of a layer, on the branch.": norm_2(
            h_post + ff(h_post)
        ),
        "Nothing is added: each layer replaces the stream.": ff(norm_2(found)),
        "What attention found must be added to x.": found + ff(norm_2(found)),
        "What the feed-forward network made must be added to h.": made,
        "That is h: the feed-forward step is missing.": h,
        "Without the feed-forward step and the addition, that is what "
        "attention found.": found,
        "The second step adds to x again, so what attention found is lost: "
        "add to h.": x + made,
        "The feed-forward network reads x: it must read h, to which "
        "attention has added.": h + ff(norm_2(x)),
        "The second norm is missing.": h + ff(h),
        "The first norm is missing.": h_raw + ff(norm_2(h_raw)),
        "The norms are missing.": h_raw + ff(h_raw),
        "That adds to the normed copy instead of the stream. Keep x; only "
        "the layer reads norm(x).": norm_2(h_normed) + ff(norm_2(h_normed)),
        "The first addition goes to the normed copy instead of x.": (
            h_normed + ff(norm_2(h_normed))
        ),
        "The second addition goes to the normed copy instead of h.": (
            norm_2(h) + made
        ),
        "The norms stand behind the layers, on what is added. They belong "
        "in front.": h_after + norm_2(ff(h_after)),
        "Each branch has a norm in front of its layer and one behind it. The "
        "block of this chapter has the one in front only.": h_both
        + norm_2(ff(norm_2(h_both))),
        "The first step is pre-norm and the second post-norm. Both are "
        "stream + layer(norm(stream)).": norm_2(h + ff(h)),
        "The first step is post-norm and the second pre-norm. Both are "
        "stream + layer(norm(stream)).": h_post + ff(norm_2(h_post)),
        "The second step uses the norm of the first: each has its own.": (
            h + ff(norm_1(h))
        ),
        "The two norms are swapped.": _two_steps(
            x, norm_2, attention, norm_1, ff
        ),
        "The feed-forward network came first.": (
            first + attention(norm_1(first))
        ),
        "There is a norm too many, behind the last addition.": norm_2(
            h + made
        ),
    }


def _two_steps(
    x: Tensor, norm_1: Layer, attention: Layer, norm_2: Layer, ff: Layer
) -> Tensor:
    h = x + attention(norm_1(x))
    return h + ff(norm_2(h))
