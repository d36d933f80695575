"""The checkers accept right answers and name what is wrong in others."""

import re

import numpy as np
import pytest
import torch

from scratch.exercises.backpropagation import (
    check_linear_backward,
    check_softmax_backward,
)


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def products(g, x, weight):
    return g @ weight, g.T @ x, g.sum(dim=0)


def loops(g, x, weight):
    grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
    grad_bias = torch.zeros(len(weight))
    for g_r, x_r, grad_row in zip(g, x, grad_x, strict=True):
        for k, g_k in enumerate(g_r):
            grad_row += g_k * weight[k]
            grad_weight[k] += g_k * x_r
            grad_bias[k] += g_k
    return grad_x, grad_weight, grad_bias


def by_autograd(g, x, weight):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    bias = torch.zeros(len(weight), requires_grad=True)
    output = x @ weight.T + bias
    return list(torch.autograd.grad((g * output).sum(), (x, weight, bias)))


def in_numpy(g, x, weight):
    g, x, weight = g.numpy(), x.numpy(), weight.numpy()
    return torch.tensor(g @ weight), g.T @ x, np.sum(g, axis=0)


@pytest.mark.parametrize("answer", [products, loops, by_autograd, in_numpy])
def test_linear_backward_accepts(answer):
    verdict = check_linear_backward(answer)
    assert verdict, verdict.message


def changed(**changes):
    """The right answer with some of its three gradients made otherwise."""

    def answer(g, x, weight):
        right = dict(
            zip(("x", "weight", "bias"), products(g, x, weight), strict=True)
        )
        return tuple(
            changes[name](g, x, weight) if name in changes else grad
            for name, grad in right.items()
        )

    return answer


def fitting_transpose(g, x, weight):
    return g @ weight.T if weight.shape[0] == weight.shape[1] else g @ weight


def untransposed_output(g, x, weight):
    return g @ x if g.shape[1] == len(x) == x.shape[1] else g.T @ x


def spoils_its_argument(g, x, weight):
    result = products(g, x, weight)
    x += 1
    return result


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (changed(bias=lambda g, x, w: g), "grad_bias .* one gradient for"),
        (changed(bias=lambda g, x, w: g.mean(dim=0)), "grad_bias.*divided by"),
        (changed(bias=lambda g, x, w: g.sum(dim=1)), r"\(dim=0\), not over"),
        (changed(bias=lambda g, x, w: g.sum()), "each output has its own"),
        (
            changed(bias=lambda g, x, w: g.sum(dim=0, keepdim=True)),
            r"shape \(2,\), got \(1, 2\).*kept the dimension",
        ),
        (changed(bias=lambda g, x, w: torch.zeros(len(w))), "all that the"),
        (
            changed(weight=lambda g, x, w: x.T @ g),
            r"grad_weight .* shape \(2, 3\), got \(3, 2\).*its transpose",
        ),
        (changed(weight=lambda g, x, w: g.T @ x / len(x)), "already"),
        (
            changed(weight=lambda g, x, w: torch.einsum("nk,ni->nki", g, x)),
            r"shape \(2, 3\), got \(4, 2, 3\).*one gradient for each example",
        ),
        (changed(weight=lambda g, x, w: g[-1:].T @ x[-1:]), "last example"),
        (changed(weight=lambda g, x, w: g[:1].T @ x[:1]), "first example"),
        (changed(weight=untransposed_output), "must run over the examples"),
        (changed(x=fitting_transpose), "d_in=3, d_out=3.* not be transposed"),
        (changed(x=lambda g, x, w: -(g @ w)), "sign is turned"),
        (changed(x=lambda g, x, w: g), "grad_output itself"),
        (changed(x=lambda g, x, w: x @ w.T), "That is forward again"),
        (lambda g, x, w: (g @ w.T, g.T @ x, g.sum(0)), "raised RuntimeError"),
        (
            lambda g, x, w: products(g, x, w)[::-1],
            "another order: return grad_x, grad_weight, grad_bias",
        ),
        (
            lambda g, x, w: (g.T @ x, g @ w, g.sum(0)),
            "another order: return grad_x, grad_weight, grad_bias",
        ),
        (lambda g, x, w: products(g, x, w)[:2], "three .* got a tuple of 2"),
        (lambda g, x, w: g @ w, "three tensors, .* got a Tensor"),
        (lambda g, x, w: None, "returned None"),
        (lambda g, x, w: (g @ w, None, g.sum(0)), "returned None"),
        (lambda g, x, w: (g @ w, g.T @ x, "b"), "must be a number or a"),
        (spoils_its_argument, "in place"),
        (lambda g, x: g, "raised TypeError"),
        (products(*[torch.ones(1, 1)] * 3), "without calling it"),
    ],
)
def test_linear_backward_says_what_is_wrong(answer, words):
    assert_says(words, check_linear_backward(answer))


def mean_taken_away(g, probs):
    return probs * (g - (g * probs).sum(dim=-1, keepdim=True))


def multiplied_out(g, probs):
    share = g * probs
    return share - probs * share.sum(dim=-1, keepdim=True)


def with_jacobian(g, probs):
    outer = probs.unsqueeze(-1) * probs.unsqueeze(-2)
    jacobian = torch.diag_embed(probs) - outer
    return (g.unsqueeze(-2) @ jacobian).squeeze(-2)


def softmax_autograd(g, probs):
    z = probs.log().clamp(min=-1000).requires_grad_()
    return torch.autograd.grad((g * z.softmax(dim=-1)).sum(), z)[0]


@pytest.mark.parametrize(
    "answer",
    [mean_taken_away, multiplied_out, with_jacobian, softmax_autograd],
)
def test_softmax_backward_accepts(answer):
    verdict = check_softmax_backward(answer)
    assert verdict, verdict.message


def weighted(g, probs, **how):
    return (g * probs).sum(**how)


def by_log(g, probs):
    g_log = g * probs
    z = g_log / probs
    return probs * (z - (probs * z).sum(dim=-1, keepdim=True))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda g, p: g * p * (1 - p), "only the diagonal"),
        (lambda g, p: g * p, "weighted mean of grad_output is missing"),
        (lambda g, p: p * (g - g.mean(-1, keepdim=True)), "must be weighted"),
        (
            lambda g, p: g - weighted(g, p, dim=-1, keepdim=True),
            "still be multiplied",
        ),
        (
            lambda g, p: g * p - weighted(g, p, dim=-1, keepdim=True),
            "multiplied by probs, too",
        ),
        (lambda g, p: g - p * g.sum(-1, keepdim=True), "log-softmax"),
        (
            lambda g, p: p * (g + weighted(g, p, dim=-1, keepdim=True)),
            "added; subtract",
        ),
        (lambda g, p: -mean_taken_away(g, p), "sign is turned"),
        (lambda g, p: p * (g - weighted(g, p)), "rows of 4.*over all rows"),
        (
            lambda g, p: p * (g - weighted(g, p, dim=0, keepdim=True)),
            "along the first dimension",
        ),
        (
            lambda g, p: mean_taken_away(g, p.softmax(-1)),
            "shares already",
        ),
        (
            lambda g, p: g @ (torch.diag(p) - torch.outer(p, p)),
            "raised RuntimeError",
        ),
        (
            lambda g, p: p * (g - (g * p).sum(dim=-1)),
            "4 rows of 4|raised RuntimeError",
        ),
        (
            lambda g, p: (
                mean_taken_away(g.flatten(0, -2), p.flatten(0, -2))
                if g.ndim > 2
                else mean_taken_away(g, p)
            ),
            r"shape \(2, 3, 5\), got \(6, 5\).*whatever the number",
        ),
        (by_log, r"\[0, 1, 0\].*got \[nan.*Do not divide"),
        (lambda g, p: mean_taken_away(g, p).sum(), r"shape \(3,\), got \(\)"),
        (lambda g, p: mean_taken_away(g, p) + 1e-3, "moves all the shares"),
        (lambda g, p: mean_taken_away(g.mul_(2), p), "in place"),
        (lambda g, p: None, "returned None"),
        (lambda g: g, "raised TypeError"),
        (torch.ones(3), "without calling it"),
    ],
)
def test_softmax_backward_says_what_is_wrong(answer, words):
    assert_says(words, check_softmax_backward(answer))


# A checker that graded its own reference would accept these, too.
@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_a_right_linear_backward_is_rejected_once_spoiled(spoiled):
    def answer(g, x, weight):
        return [
            grad + 0.01 * (i == spoiled)
            for i, grad in enumerate(products(g, x, weight))
        ]

    assert check_linear_backward(products)
    assert not check_linear_backward(answer)


def test_a_right_softmax_backward_is_rejected_once_spoiled():
    assert check_softmax_backward(mean_taken_away)
    assert not check_softmax_backward(lambda g, p: mean_taken_away(g, p) * 1.1)
