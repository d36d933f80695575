"""Checkers for the exercises of the chapter on the complete GPT."""

from collections.abc import Callable, Mapping
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
from scratch.llm.gpt import GPT2_SMALL, GPTConfig, count_parameters


@checker
def check_parameter_count(my_count: Callable[[GPTConfig], int]) -> None:
    """Check my_count(config), the number of parameters of a GPT.

    The token table counts once, since it serves as output weights too. A
    dict by component will do, if it has a "total".

    >>> check_parameter_count(lambda config: 0)
    Not yet: with 41 tokens, 13 positions, d_model=18, n_heads=3, n_layers=5, \
my_count must give 21,618, got 0. Both tables, and for each block two norms, \
attention and feed-forward, with all biases; then the last norm.
    """
    for config in (
        # where no two likely mistakes count the same
        GPTConfig(
            vocab_size=41, context_length=13, d_model=18, n_heads=3, n_layers=5
        ),
        GPTConfig(
            vocab_size=5, context_length=3, d_model=4, n_heads=2, n_layers=1
        ),
        GPTConfig(
            vocab_size=41, context_length=13, d_model=18, n_heads=9, n_layers=5
        ),
        GPT2_SMALL,
    ):
        shown = (
            f"with {config.vocab_size} tokens, {config.context_length} "
            f"positions, d_model={config.d_model}, n_heads={config.n_heads}, "
            f"n_layers={config.n_layers}, my_count"
        )
        actual = _as_number(shown, attempt(shown, my_count, config))
        expected = count_parameters(config)["total"]
        if actual != expected:
            hint = _slips_of_count(config).get(actual) or (
                "Both tables, and for each block two norms, attention and "
                "feed-forward, with all biases; then the last norm."
            )
            raise Mistake(
                f"{shown} must give {expected:,}, got {actual:,}. {hint}"
            )


def _as_number(shown: str, answer: Any) -> int:
    if isinstance(answer, Mapping):
        if "total" not in answer:
            raise Mistake(
                f'{shown} returned a dict without a "total". Return the sum '
                "of its parts"
            )
        answer = answer["total"]
    if answer is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    try:
        if isinstance(answer, str):
            raise TypeError
        number = int(answer)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        kind = type(answer).__name__
        raise Mistake(f"{shown} must give an integer, got a {kind}") from None
    if number != answer:
        raise Mistake(f"{shown} must give a whole number, got {answer}")
    return number


def _slips_of_count(config: GPTConfig) -> dict[int, str]:
    """Return what likely mistakes count, and the hint for each."""
    right = count_parameters(config)["total"]
    d, n, heads = config.d_model, config.n_layers, config.n_heads
    table = config.vocab_size * d
    slips = {
        "The output weights are the token table: count it once.": table,
        "The positions have a table of their own.": (
            -config.context_length * d
        ),
        "The token table is missing.": -table,
        "There is one more norm, after the last block.": -2 * d,
        "A norm has weights and biases: 2 d_model each.": -(2 * n + 1) * d,
        "The norms are missing: two for each block, and one at the end.": (
            -(2 * n + 1) * 2 * d
        ),
        "2 d_model for each block are missing: the second norm, or two of "
        "the three biases of query, key and value.": -n * 2 * d,
        "The biases are missing: every Linear has one for each output.": (
            -n * 9 * d
        ),
        "All biases are missing: every Linear has them, and every norm.": (
            -n * 9 * d - (2 * n + 1) * d
        ),
        "The layer for query, key and value has biases, too.": -n * 3 * d,
        "That is one block only: multiply by n_layers.": (
            -(n - 1) * (12 * d * d + 13 * d)
        ),
        "The output projection of attention (mix) is missing.": -n
        * (d * d + d),
        "Attention is missing.": -n * (4 * d * d + 4 * d),
        "Feed-forward is missing.": -n * (8 * d * d + 5 * d),
        "Feed-forward has two layers: it widens and narrows.": (
            -n * (4 * d * d + d)
        ),
        "The hidden width of feed-forward is d_ff = 4 d_model.": (
            -n * (6 * d * d + 3 * d)
        ),
        "Heads share the matrices: each works in a slice, so their number "
        "changes no count.": n * (heads - 1) * (3 * d * d + 3 * d),
        "Query, key and value need a matrix each.": -n * (2 * d * d + 2 * d),
        "The logits have no biases.": config.vocab_size,
    }
    hints: dict[int, str] = {}
    for hint, difference in slips.items():
        if difference != 0:
            hints.setdefault(right + difference, hint)
    return hints


@checker
def check_tied_gradient(
    my_gradient: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Check my_tied_gradient(grad_logits, hidden, ids, grad_x).

    grad_logits (B, T, V) are the slopes along logits = hidden E^T, hidden
    is (B, T, d_model), ids (B, T) say which rows of E were looked up, and
    grad_x (B, T, d_model) are the slopes along these rows. The result is
    the slope along E, (V, d_model).
    """
    cases = [
        # B, T, V, d_model
        (1, 3, 4, 2),
        (2, 5, 7, 3),
        (3, 3, 3, 3),  # each transpose fits here
        (1, 1, 6, 4),
        (2, 40, 3, 5),
    ]
    for B, T, vocab_size, d_model in cases:
        generator = torch.Generator().manual_seed(B * T)
        grad_logits = torch.randn(B, T, vocab_size, generator=generator)
        hidden = torch.randn(B, T, d_model, generator=generator)
        grad_x = torch.randn(B, T, d_model, generator=generator)
        ids = torch.randint(vocab_size, (B, T), generator=generator)
        ids[-1, -1] = 0
        ids[0, : T // 2 + 1] = vocab_size - 1  # the last row, and twice
        shown = (
            f"my_tied_gradient for B={B}, T={T}, V={vocab_size}, "
            f"d_model={d_model}"
        )
        given = (grad_logits, hidden, ids, grad_x)
        actual = call(shown, my_gradient, *given)
        if isinstance(actual, Tensor) and actual.layout != torch.strided:
            actual = actual.to_dense()
        as_output = torch.einsum("btv,btd->vd", grad_logits, hidden)
        as_input = embedding_backward(grad_x, ids, vocab_size)
        hint = recognize(actual, _slips_of_tied(as_output, as_input, *given))
        hint = hint or (
            "Add two parts: grad_logits^T hidden over all places, and each "
            "slope of grad_x to the row that was looked up there."
        )
        expected = as_output + as_input
        if isinstance(actual, Tensor) and actual.shape == expected.shape:
            for i, (found, right) in enumerate(
                zip(actual, expected, strict=True)
            ):
                expect_close(f"row {i} of {shown}", found, right, hint)
        expect_close(shown, actual, expected, hint)


def _slips_of_tied(
    as_output: Tensor,
    as_input: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    ids: Tensor,
    grad_x: Tensor,
) -> dict[str, Tensor]:
    right = as_output + as_input
    written = as_output.clone()
    written[ids.flatten()] += grad_x.flatten(0, 1)
    replaced = as_output.clone()
    replaced[ids.flatten()] = grad_x.flatten(0, 1)
    per_text = torch.einsum("btv,btd->bvd", grad_logits, hidden)
    flipped = torch.einsum("btv,btd->vd", grad_logits, grad_x)
    exchanged = embedding_backward(hidden, ids, right.shape[0])
    return {
        "That is the part from the logits alone: the table was looked up, "
        "too.": as_output,
        "That is the part from the lookup alone: the table made the logits, "
        "too.": as_input,
        "A token that stands twice got one of its slopes only. grad[ids] += "
        "... writes each row once; use index_add.": written,
        "The slopes of the lookup replaced the others: add them.": replaced,
        "The two parts are added, not averaged.": right / 2,
        "That is divided by the number of places: the slopes of a mean loss "
        "contain this factor already.": right / ids.numel(),
        "The sign is turned: return the gradient, not the step against "
        "it.": -right,
        "The two parts are subtracted: add them.": as_output - as_input,
        "That is (d_model, V): transpose it.": right.T,
        "The sequences of the batch must be added up, too.": (
            per_text + as_input
        ),
        "The slopes along the logits meet hidden, those along the rows "
        "belong to ids: grad_x stands in both places.": flipped + as_input,
        "hidden and grad_x have changed places: the slopes along the logits "
        "meet hidden, and grad_x goes to the rows of ids.": flipped
        + exchanged,
    }
