"""The checkers accept right answers and name what is wrong in others."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.embeddings import (
    check_embedding_backward,
    check_sinusoidal_positions,
    check_skip_gram_pairs,
)
from scratch.llm.embeddings import (
    embedding_backward,
    sinusoidal_positions,
    skip_gram_pairs,
)


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def waves_by_loops(n_positions, d_model):
    return torch.tensor(
        [
            [
                f(t / 10_000 ** (2 * i / d_model))
                for i in range(d_model // 2)
                for f in (math.sin, math.cos)
            ]
            for t in range(n_positions)
        ]
    )


def waves_in_float32(n_positions, d_model):
    t = torch.arange(n_positions).float()[:, None]
    angles = t * torch.exp(
        torch.arange(0, d_model, 2) * (-math.log(10_000) / d_model)
    )
    result = torch.zeros(n_positions, d_model)
    result[:, 0::2] = angles.sin()
    result[:, 1::2] = angles.cos()
    return result


def waves_in_numpy(n_positions, d_model):
    i = np.arange(d_model) // 2
    angles = np.arange(n_positions)[:, None] / 10_000 ** (2 * i / d_model)
    return np.where(
        np.arange(d_model) % 2 == 0, np.sin(angles), np.cos(angles)
    )


@pytest.mark.parametrize(
    "answer",
    [
        waves_by_loops,
        waves_in_float32,
        waves_in_numpy,
        sinusoidal_positions,
        lambda n, d: list(sinusoidal_positions(n, d)),
    ],
)
def test_sinusoidal_positions_accepts(answer):
    verdict = check_sinusoidal_positions(answer)
    assert verdict, verdict.message


def waves(*, first=0, exponent=lambda j, d: j // 2 * 2 / d, base=10_000):
    """Sinusoids with a slip: j is the place in the vector."""

    def positions(n_positions, d_model):
        j = torch.arange(d_model).double()
        t = torch.arange(first, first + n_positions).double()[:, None]
        angles = t / base ** exponent(j, d_model).double()
        return torch.where(j % 2 == 0, angles.sin(), angles.cos())

    return positions


def of_right(change):
    return lambda n, d: change(sinusoidal_positions(n, d))


def ten_thousand_rows(n_positions, d_model):
    return sinusoidal_positions(10_000, d_model)[:n_positions]


def scaled_to_the_longest(n_positions, d_model):
    right = waves()(n_positions, d_model)
    return right if n_positions < 10 else right.roll(1, dims=0)


def degrees(n_positions, d_model):
    j = torch.arange(d_model)
    t = torch.arange(n_positions).double()[:, None]
    angles = (t / 10_000 ** (j // 2 * 2 / d_model)).deg2rad()
    return torch.where(j % 2 == 0, angles.sin(), angles.cos())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            of_right(lambda p: torch.cat([p[:, 0::2], p[:, 1::2]], dim=1)),
            "must take turns",
        ),
        (of_right(lambda p: p.unflatten(1, (-1, 2)).flip(2).flatten(1)), "co"),
        (waves(first=1), "Count positions from 0"),
        (waves(exponent=lambda j, d: j / d), "speed of the sine in front"),
        (waves(exponent=lambda j, d: (j // 2) / d), "fall too slowly"),
        (waves(exponent=lambda j, d: -(j // 2 * 2) / d), "not grow"),
        (waves(base=1000), "10000, not 1000"),
        (waves(base=20_000), r"must be \["),
        (of_right(lambda p: p[:, 0::2].repeat_interleave(2, 1)), "hold sines"),
        (degrees, "radians"),
        (of_right(lambda p: p.T), r"shape \(3, 6\), got \(6, 3\).*transpose"),
        (of_right(lambda p: p.int()), "must hold floats"),
        (ten_thousand_rows, r"shape \(20001, 8\), got \(10000, 8\)"),
        (scaled_to_the_longest, "its position alone"),
        (of_right(lambda p: p[None]), r"shape \(3, 6\), got \(1, 3, 6\)"),
        (waves(base=20_000), r"row 1 of .* must be \["),
        (of_right(lambda p: p.to(torch.complex64)), "must hold real numbers"),
        (
            lambda n, d: sinusoidal_positions(n, d).clamp(max=1 - (d == 64)),
            r"my_positions\(4, 64\)",
        ),
        (
            lambda n, d: sinusoidal_positions(n, d) if n < 100 else None,
            r"20001, 8\) returned None",
        ),
        (
            lambda n, d: (
                [[0.0], [0.0, 1.0]] if n > 100 else sinusoidal_positions(n, d)
            ),
            r"20001, 8\) must be a number or a tensor, got a list",
        ),
        (lambda n, d: None, "returned None"),
        (lambda n: torch.zeros(n, 6), "raised TypeError"),
        (sinusoidal_positions(3, 6), "without calling it"),
    ],
)
def test_sinusoidal_positions_says_what_is_wrong(answer, words):
    assert_says(words, check_sinusoidal_positions(answer))


def by_product(grad_output, ids, vocab_size):
    one_hot = F.one_hot(ids.reshape(-1), vocab_size).float()
    return one_hot.T @ grad_output.reshape(-1, grad_output.shape[-1])


def by_loops(grad_output, ids, vocab_size):
    grad = torch.zeros(vocab_size, grad_output.shape[-1])
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    for token_id, row in zip(ids.reshape(-1).tolist(), rows, strict=True):
        grad[token_id] += row
    return grad


def of_autograd(grad_output, ids, vocab_size):
    table = torch.zeros(vocab_size, grad_output.shape[-1], requires_grad=True)
    return torch.autograd.grad(table[ids], table, grad_output)[0]


def sparse(grad_output, ids, vocab_size):
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    return torch.sparse_coo_tensor(
        ids.reshape(1, -1),
        rows,
        (vocab_size, rows.shape[-1]),
        check_invariants=True,
    )


def with_numpy(grad_output, ids, vocab_size):
    grad = np.zeros((vocab_size, grad_output.shape[-1]))
    np.add.at(grad, ids.numpy(), grad_output.numpy())
    return grad


@pytest.mark.parametrize(
    "answer",
    [
        by_product,
        by_loops,
        of_autograd,
        with_numpy,
        sparse,
        embedding_backward,
    ],
)
def test_embedding_backward_accepts(answer):
    verdict = check_embedding_backward(answer)
    assert verdict, verdict.message


def last_wins(grad_output, ids, vocab_size):
    grad = torch.zeros(vocab_size, grad_output.shape[-1])
    grad[ids] += grad_output
    return grad


def first_wins(grad_output, ids, vocab_size):
    grad = torch.zeros(vocab_size, grad_output.shape[-1])
    grad[ids.flip(0)] = grad_output.flip(0)
    return grad


def averaged(grad_output, ids, vocab_size):
    counts = ids.flatten().bincount(minlength=vocab_size)
    return (
        by_product(grad_output, ids, vocab_size) / counts.clamp(min=1)[:, None]
    )


def one_dimension_only(grad_output, ids, vocab_size):
    return F.one_hot(ids, vocab_size).float().mT @ grad_output


def at_most_two(grad_output, ids, vocab_size):
    """Right as long as no token occurs more than twice."""
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    grad = torch.zeros(vocab_size, rows.shape[-1])
    flat = ids.reshape(-1)
    for i in range(vocab_size):
        grad[i] = rows[flat == i][:2].sum(dim=0)
    return grad


def spoils_its_argument(grad_output, ids, vocab_size):
    result = by_product(grad_output, ids, vocab_size)
    grad_output *= 2
    return result


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (last_wins, "only its last slope arrived"),
        (first_wins, "only its first slope arrived"),
        (averaged, "added, not averaged"),
        (lambda g, i, v: by_product(g, i, v) / len(i), "contain this factor"),
        (lambda g, i, v: -by_product(g, i, v), "sign is turned"),
        (
            lambda g, i, v: by_product(g, i, v)[i.unique()],
            r"shape \(4, 3\), got \(2, 3\).*with zeros for",
        ),
        (lambda g, i, v: g, r"shape \(4, 3\), got \(3, 3\).*itself"),
        (lambda g, i, v: g[i], "scatter them instead"),
        (lambda g, i, v: by_product(g, i, v).T, "transpose it"),
        (
            lambda g, i, v: i.bincount(minlength=v)[:, None].expand(-1, 3),
            "counts the tokens",
        ),
        (
            one_dimension_only,
            r"shape \(2, 5\).*shape \(7, 2\), got \(2, 7, 2\). Flatten",
        ),
        (at_most_two, "Every one of the repeated|Flatten"),
        (
            lambda g, i, v: by_product(g, i, v) * (i.ndim < 3),
            r"ids of shape \(2, 3, 2\)",
        ),
        (lambda g, i, v: by_product(g, i, v) + 1e-3, "Row i is the sum"),
        (spoils_its_argument, "in place"),
        (lambda g, i, v: by_product(g, i, 4), r"shape \(7, 2\)|raised"),
        (lambda g, i, v: None, "returned None"),
        (lambda g, i: g, "raised TypeError"),
        (torch.zeros(4, 3), "without calling it"),
    ],
)
def test_embedding_backward_says_what_is_wrong(answer, words):
    assert_says(words, check_embedding_backward(answer))


def by_places(ids, window):
    places = range(len(ids))
    return [
        (ids[i], ids[j])
        for i in places
        for j in places
        if 0 < abs(i - j) <= window
    ]


def by_shifts(ids, window):
    for distance in range(1, window + 1):
        for one, other in zip(ids, ids[distance:], strict=False):
            yield one, other
            yield other, one


def by_slices(ids, window):
    pairs = []
    for i, center in enumerate(ids):
        around = ids[max(i - window, 0) : i] + ids[i + 1 : i + window + 1]
        pairs += [[center, context] for context in around]
    return pairs


def with_scratch(ids, window):
    ids = torch.tensor(ids, dtype=torch.int64)
    return torch.stack(skip_gram_pairs(ids, window), dim=1)


@pytest.mark.parametrize(
    "answer", [by_places, by_shifts, by_slices, with_scratch]
)
def test_skip_gram_pairs_accepts(answer):
    verdict = check_skip_gram_pairs(answer)
    assert verdict, verdict.message


def around_the_end(ids, window):
    n = len(ids)
    return [
        (ids[i], ids[(i + step) % n])
        for i in range(n)
        for step in range(-window, window + 1)
        if step
    ]


def empties_its_list(ids, window):
    pairs = by_places(ids, window)
    ids.clear()
    return pairs


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda i, w: by_places(i, w) + [(a, a) for a in i], "with itself"),
        (around_the_end, "goes around the end"),
        (
            lambda i, w: [
                (i[a], i[b])
                for a in range(len(i))
                for b in range(a + 1, min(a + w + 1, len(i)))
            ],
            "looks to the right only",
        ),
        (lambda i, w: 2 * by_places(i, w), "has every pair twice"),
        (lambda i, w: by_places(i, w + 1), "one place too far"),
        (lambda i, w: by_places(i, w + 2), r"must not hold \(6, 8\)"),
        (lambda i, w: by_places(i, max(w - 1, 1)), "stops one place short:"),
        (lambda i, w: by_places(i, 1), "stops one place short:"),
        (
            lambda i, w: [
                (i[a], i[b])
                for a in range(len(i))
                for b in range(max(a - w, 0), min(a + w, len(i)))
                if a != b
            ],
            "one place short on the right",
        ),
        (
            lambda i, w: [
                (center, context)
                for a, center in enumerate(i)
                for context in i[a - w : a] + i[a + 1 : a + w + 1]
            ],
            r"\[1, 2, 3, 4, 5\], 2\) loses pairs at the start",
        ),
        (
            lambda i, w: [
                (a, b)
                for a in i
                for b in i[max(i.index(a) - w, 0) : i.index(a)]
                + i[i.index(a) + 1 : i.index(a) + w + 1]
            ],
            r"\[4, 4, 4\], 1\) has \(4, 4\) too few times.*ids.index",
        ),
        (
            lambda i, w: [f"{a}{b}" for a, b in by_places(i, w)],
            "list of tuples",
        ),
        (
            lambda i, w: [(a + 0.9, b) for a, b in by_places(i, w)],
            "list of tuples",
        ),
        (
            lambda i, w: sorted(set(by_places(i, w))),
            r"\[4, 4, 4\].*too few times",
        ),
        (
            lambda i, w: [(a, b) for a, b in by_places(i, w) if a != b],
            r"\[4, 4, 4\], 1\) lacks \(4, 4\)",
        ),
        (
            lambda i, w: tuple(zip(*by_places(i, w), strict=True)),
            "returned two sequences",
        ),
        (
            lambda i, w: [(i[0], *i[1:])] if len(i) > 2 else [],
            "a pair of its own",
        ),
        (lambda i, w: i, r"list of tuples \(center, context\)"),
        (lambda i, w: [(a, "x") for a in i], "list of tuples"),
        (lambda i, w: by_places(i, w) if i else None, "returned None"),
        (lambda i, w: by_places(i, w) if len(i) > 1 else [(5, 5)], "itself"),
        (empties_its_list, "changed its list"),
        (lambda i, w: i[99], "raised IndexError"),
        (by_places([1, 2], 1), "without calling it"),
    ],
)
def test_skip_gram_pairs_says_what_is_wrong(answer, words):
    assert_says(words, check_skip_gram_pairs(answer))


# A checker that graded its own reference would accept these, too.
@pytest.mark.parametrize(
    ("check", "right", "spoil"),
    [
        (check_sinusoidal_positions, waves_by_loops, lambda x: x + 0.01),
        (check_embedding_backward, by_loops, lambda x: x + 0.01),
        (check_skip_gram_pairs, by_places, lambda x: x[:-1]),
    ],
)
def test_a_right_answer_is_rejected_once_it_is_spoiled(check, right, spoil):
    assert check(right)
    assert not check(lambda *given: spoil(right(*given)))
