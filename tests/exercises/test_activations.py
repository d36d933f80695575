"""The checkers accept right answers and name what is wrong in others."""

import math
import re

import numpy as np
import pytest
import torch

from scratch.exercises.activations import (
    check_dead_units,
    check_softmax_temperature,
    check_stable_sigmoid,
    check_swish_derivative,
)


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def one_exponential(x):
    e = torch.exp(torch.where(x >= 0, -x, x))
    return torch.where(x >= 0, torch.ones_like(x), e) / (1 + e)


def two_halves(x):
    y = torch.zeros_like(x)
    right = x >= 0
    y[right] = 1 / (1 + torch.exp(-x[right]))
    e = torch.exp(x[~right])
    y[~right] = e / (1 + e)
    return y


def by_tanh(x):
    return (1 + torch.tanh(x / 2)) / 2


def cut_off(x):
    return 1 / (1 + torch.exp(-x.clamp(-80, 80)))


def both_branches(x):
    e = torch.exp(x)
    return torch.where(x >= 0, 1 / (1 + torch.exp(-x)), e / (1 + e))


def by_abs(x):
    e = torch.exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + e), e / (1 + e))


def in_place(x):
    x[x < -80] = -80
    return 1 / (1 + torch.exp(-x))


def number_by_number(x):
    y = [
        1 / (1 + math.exp(-min(max(z, -80), 80))) for z in x.flatten().tolist()
    ]
    return torch.tensor(y).reshape(x.shape)


def in_numpy(x):
    return torch.tensor(1 / (1 + np.exp(-x.numpy().clip(-80, 80))))


@pytest.mark.parametrize(
    "answer", [one_exponential, two_halves, by_tanh, cut_off, torch.sigmoid]
)
def test_stable_sigmoid_accepts(answer):
    verdict = check_stable_sigmoid(answer)
    assert verdict, verdict.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda x: 1 / (1 + torch.exp(-x)),
            "slope .* at -10000 must be 0, got nan.*became inf",
        ),
        (
            lambda x: x.exp() / (1 + x.exp()),
            r"sigmoid\(\[100\]\) must be \[1\], got \[nan\].*or below 0",
        ),
        (both_branches, "at -10000 must be 0, got nan.*choose the exponent"),
        (lambda x: 1 / (1 + torch.exp(-x.clamp(-15, 15))), "clamp this tight"),
        (by_abs, r"at 0 must be 0\.25, got 0\. If you use abs"),
        (lambda x: 1 / (1 + x.exp()), r"must be \[0\.1192, 0\.5, 0\.73106\]"),
        (torch.tanh, r"got \[-0\.96403, 0, 0\.76159\]"),
        (lambda x: (x / 4 + 0.5).clamp(0, 1), r"Start from 1 / \(1 \+ e"),
        (lambda x: cut_off(x).sum(), r"must have shape \(3,\), got \(\)"),
        (lambda x: cut_off(x.flatten()), r"must have shape \(2, 3\), got"),
        (lambda x: cut_off(x).detach(), "autograd cannot follow"),
        (number_by_number, "autograd cannot follow"),
        (in_numpy, "raised RuntimeError.*grad"),
        (in_place, "in place"),
        (lambda x: 1 / (1 + math.exp(-x)), "raised"),
        (lambda x: None, "returned None"),
        (lambda x: "warm", "must be a number or a tensor, got a str"),
        (0.5, "without calling it"),
    ],
)
def test_stable_sigmoid_says_what_is_wrong(answer, words):
    assert_says(words, check_stable_sigmoid(answer))


def test_a_wrong_slope_is_not_blamed_on_overflow():
    class WrongSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.sigmoid(x)

        @staticmethod
        def backward(ctx, grad):
            return grad

    verdict = check_stable_sigmoid(WrongSlope.apply)
    assert_says(r"at -2 must be 0\.10499, got 1", verdict)
    assert "inf" not in verdict.message


def product_rule(x):
    s = torch.sigmoid(x)
    return s + x * s * (1 - s)


def from_swish(x):
    s = torch.sigmoid(x)
    swish = x * s
    return swish + s * (1 - swish)


def by_autograd(x):
    x = x.clone().requires_grad_()
    (x * torch.sigmoid(x)).sum().backward()
    return x.grad


@pytest.mark.parametrize("answer", [product_rule, from_swish, by_autograd])
def test_swish_derivative_accepts(answer):
    verdict = check_swish_derivative(answer)
    assert verdict, verdict.message


def naive_slope(x):
    e = torch.exp(-x)
    return 1 / (1 + e) + x * e / (1 + e) ** 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x * torch.sigmoid(x), "swish itself"),
        (lambda x: torch.sigmoid(x), "only one .* slope of x, times the"),
        (lambda x: product_rule(x) - torch.sigmoid(x), "only one .* x, times"),
        (lambda x: torch.sigmoid(x) * torch.sigmoid(-x), "sigmoid alone"),
        (lambda x: torch.sigmoid(x) * (2 - torch.sigmoid(x)), "x is missing"),
        (
            lambda x: torch.sigmoid(x) * (1 - x * torch.sigmoid(-x)),
            "added, not subtracted",
        ),
        (
            lambda x: torch.sigmoid(x) * (1 + x * (1 + torch.sigmoid(x))),
            "has a minus",
        ),
        (lambda x: product_rule(x) + 1e-3, "use the product rule"),
        (naive_slope, r"derivative\(\[-10000\]\) must be \[0\], got \[nan\]"),
        (lambda x: product_rule(x).mean(), r"shape \(5,\), got \(\)"),
        (lambda x: product_rule(x.flatten()), r"shape \(5, 1\), got \(5,\)"),
        (lambda x: product_rule(x.mul_(1.0).sub_(1)), "in place"),
        (lambda x: None, "returned None"),
        (lambda x: x[9], "raised IndexError"),
        (lambda: 1, "raised TypeError"),
    ],
)
def test_swish_derivative_says_what_is_wrong(answer, words):
    assert_says(words, check_swish_derivative(answer))


def loops(hidden):
    n_dead = 0
    for unit in range(hidden.shape[1]):
        if all(row[unit] == 0 for row in hidden):
            n_dead += 1
    return n_dead


@pytest.mark.parametrize(
    "answer",
    [
        lambda hidden: (hidden == 0).all(dim=0).sum(),
        lambda hidden: int((hidden.amax(dim=0) <= 0).sum()),
        lambda hidden: hidden.shape[1] - int((hidden > 0).any(0).sum()),
        loops,
    ],
)
def test_dead_units_accepts(answer):
    verdict = check_dead_units(answer)
    assert verdict, verdict.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda h: (h == 0).all(dim=1).sum(), "look along the other"),
        (lambda h: (h == 0).any(dim=0).sum(), "0 for every example"),
        (lambda h: (h > 0).any(dim=0).sum(), "units that do fire"),
        (lambda h: (h == 0).sum(), "zeros, not units"),
        (lambda h: (h == 0).all(dim=0).float().mean(), "the share"),
        (lambda h: (h == 0).all(dim=0), r"shape \(\), got \(5,\).*one number"),
        (lambda h: (h.mean(dim=0) < 1e-3).sum(), "however weakly"),
        (lambda h: (h[:100] == 0).all(dim=0).sum(), "however weakly"),
        (lambda h: (h.squeeze() == 0).all(dim=0).sum(), "single example"),
        (lambda h: 2, r"torch\.ones\(4, 3\)\) must be 0, got 2"),
        (lambda h: h.zero_().shape[1], "in place"),
        (lambda h: None, "returned None"),
        (lambda h: h.dead(), "raised AttributeError"),
        (2, "without calling it"),
    ],
)
def test_dead_units_says_what_is_wrong(answer, words):
    assert_says(words, check_dead_units(answer))


def shifted(logits, temperature):
    z = logits / temperature
    e = torch.exp(z - z.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


def shifted_first(logits, temperature):
    z = logits - logits.amax(-1, keepdim=True)
    e = torch.exp(z * (1 / temperature))
    return e / e.sum(-1, keepdim=True)


def through_logarithms(logits, temperature):
    return torch.log_softmax(logits / temperature, dim=-1).exp()


@pytest.mark.parametrize(
    "answer", [shifted, shifted_first, through_logarithms]
)
def test_softmax_temperature_accepts(answer):
    verdict = check_softmax_temperature(answer)
    assert verdict, verdict.message


def unstable(logits, temperature):
    e = torch.exp(logits / temperature)
    return e / e.sum(dim=-1, keepdim=True)


def shifted_by_the_mean(logits, temperature):
    z = logits / temperature
    return unstable(z - z.mean(dim=-1, keepdim=True), 1.0)


def power_of_shares(logits, temperature):
    p = shifted(logits, 1.0) ** (1 / temperature)
    return p / p.sum(dim=-1, keepdim=True)


def shared_maximum_in_place(logits, temperature):
    logits /= temperature
    return shifted(logits, 1.0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda z, t: shifted(z, 1 / t), "were multiplied"),
        (lambda z, t: shifted(z, 1.0), "has no effect"),
        (lambda z, t: shifted(z, 1.0) / t, "after the softmax"),
        (lambda z, t: shifted(z, 1.0) ** (1 / t), "sum to 1 again"),
        (power_of_shares, r"\[0, -200\], 100\.0.*rounded to 0 stays 0"),
        (lambda z, t: shifted(shifted(z, 1.0), t), "second softmax"),
        (lambda z, t: (z / t).softmax(dim=0), "each column sums to 1"),
        (
            lambda z, t: (z / t).flatten().softmax(0).reshape(z.shape),
            "All rows together",
        ),
        (unstable, r"\[10000, 0, -10000\].*got \[nan.*subtract the largest"),
        (shifted_by_the_mean, "subtract the largest"),
        (
            lambda z, t: unstable((z - z.max()) / t, 1.0),
            "of each row, not of all rows",
        ),
        (lambda z, t: shifted(z, max(t, 0.2)), "must be"),
        (
            lambda z, t: (z / t).softmax(dim=1 if z.ndim > 1 else 0),
            "whatever the number of dimensions",
        ),
        (lambda z, t: shifted(z, min(t, 150)), "must be"),
        (lambda z, t: shifted(z, t).log(), "logarithms"),
        (lambda z, t: (z / t).sigmoid(), "it is softmax"),
        (lambda z, t: shifted(z, t).argmax(-1), r"shape \(3,\), got \(\)"),
        (shared_maximum_in_place, "in place"),
        (lambda z, t: None, "returned None"),
        (lambda z: shifted(z, 1.0), "raised TypeError"),
        (lambda z, t: shifted(z, int(t)), "must be|raised"),
    ],
)
def test_softmax_temperature_says_what_is_wrong(answer, words):
    assert_says(words, check_softmax_temperature(answer))


# A checker that graded its own reference would accept these, too.
@pytest.mark.parametrize(
    ("check", "right", "arguments"),
    [
        (check_stable_sigmoid, one_exponential, 1),
        (check_swish_derivative, product_rule, 1),
        (check_dead_units, loops, 1),
        (check_softmax_temperature, shifted, 2),
    ],
)
def test_a_right_answer_is_rejected_once_it_is_spoiled(
    check, right, arguments
):
    asked = []

    def spoiled(*given):
        asked.append(given)
        return right(*given) + 0.01

    assert check(right)
    assert not check(spoiled)
    assert len(asked[0]) == arguments
