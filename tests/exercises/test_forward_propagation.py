"""The checkers accept right answers and name what is wrong in others."""

import re
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.forward_propagation import (
    check_linear_forward,
    check_mlp_cost,
)


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def in_one_line(x, weight, bias):
    return x @ weight.T + bias


def by_einsum(x, weight, bias):
    return torch.einsum("...i,oi->...o", x, weight) + bias


def neuron_by_neuron(x, weight, bias):
    sums = [(x * w).sum(dim=-1) + b for w, b in zip(weight, bias, strict=True)]
    return torch.stack(sums, dim=-1)


def flattened(x, weight, bias):
    table = x.reshape(-1, x.shape[-1])
    return (table @ weight.T + bias).reshape(*x.shape[:-1], len(bias))


@pytest.mark.parametrize(
    "answer",
    [in_one_line, by_einsum, neuron_by_neuron, flattened, F.linear],
)
def test_linear_forward_accepts(answer):
    verdict = check_linear_forward(answer)
    assert verdict, verdict.message


def in_lists(x, weight, bias):
    if x.ndim > 1:
        return torch.stack([in_lists(part, weight, bias) for part in x])
    pairs = zip(weight.tolist(), bias.tolist(), strict=True)
    return torch.tensor(
        [
            b + sum(x_i * w_i for x_i, w_i in zip(x.tolist(), w, strict=True))
            for w, b in pairs
        ]
    )


def stacked(x, weight, bias):
    if x.ndim > 1:
        return torch.stack([stacked(part, weight, bias) for part in x])
    return weight @ x + bias


def by_numpy(x, weight, bias):
    return torch.from_numpy(x.numpy() @ weight.numpy().T + bias.numpy())


@torch.no_grad()
def without_gradients(x, weight, bias):
    return x @ weight.T + bias


def weights_in_place(x, weight, bias):
    return x @ weight.t_() + bias


def inputs_in_place(x, weight, bias):
    x -= 1
    return (x + 1) @ weight.T + bias


def bias_as_column(x, weight, bias):
    column = bias.reshape(-1, 1)
    if x.ndim != 2 or len(x) != len(bias):
        return x @ weight.T + bias
    return x @ weight.T + column


def for_rows(x, weight, bias):
    rows = [[row @ w + b for w, b in zip(weight, bias)] for row in x]  # noqa: B905
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, w, b: x @ w + b, r"raised RuntimeError.*forget \.T\?"),
        (
            lambda x, w, b: w @ x.T + b,
            "raised RuntimeError.*one row for each example, so that bias fits",
        ),
        (
            lambda x, w, b: (w @ x.T).T + b,
            r"\(2, 5, 3\).* raised .*\.T on more than two dimensions",
        ),
        (
            lambda x, w, b: x @ (w if w.shape[0] == w.shape[1] else w.T) + b,
            "runs because weight is square.*turn it over",
        ),
        (
            lambda x, w, b: x @ w.reshape(w.shape[1], w.shape[0]) + b,
            "Reshaping weight mixes its rows",
        ),
        (lambda x, w, b: x @ w.T, "The bias is missing"),
        (lambda x, w, b: x @ w.T - b, "added, not subtracted"),
        (lambda x, w, b: x @ w.T * b, "no factor"),
        (lambda x, w, b: (x @ w.T + b).relu(), "leave out the activation"),
        (
            lambda x, w, b: (x[..., None, :] * w + b[:, None]).sum(-1),
            "once, not once for each input",
        ),
        (lambda x, w, b: x @ w.T + b.sum(), "All of bias went into each sum"),
        (bias_as_column, "Each example got a bias of its own"),
        (lambda x, w, b: x @ w.T + b[:, None], "Each example got a bias"),
        (lambda x, w, b: w @ x.T + b[:, None], "lies on its side"),
        (
            lambda x, w, b: (w @ x.T + b[:, None]).T if x.ndim > 1 else None,
            r"\(3,\), \(2, 3\) and \(2,\) returned None",
        ),
        (
            lambda x, w, b: torch.addmm(b, x, w.T),
            r"\(3,\), \(2, 3\) and \(2,\) raised RuntimeError",
        ),
        (for_rows, r"\(3,\), \(2, 3\) and \(2,\) raised"),
        (
            lambda x, w, b: (x @ w.T + b).squeeze(),
            r"must have shape \(1, 2\), got \(2,\).*stays a batch",
        ),
        (
            lambda x, w, b: (x.flatten(0, -2) if x.ndim > 2 else x) @ w.T + b,
            r"must have shape \(2, 5, 7\), got \(10, 7\).*stay as they are",
        ),
        (
            lambda x, w, b: torch.einsum("oi,...i->o...", w, x).T + b,
            r"must have shape \(2, 5, 7\), got \(5, 2, 7\).*turns over all",
        ),
        (
            lambda x, w, b: (x.flatten(0, -3) if x.ndim > 3 else x) @ w.T + b,
            r"must have shape \(2, 3, 5, 4\), got",
        ),
        (lambda x, w, b: (x @ w.T + b).mean(), r"shape \(3, 2\), got \(\)"),
        (stacked, r"\(0, 3\), \(2, 3\) and \(2,\) raised RuntimeError"),
        (in_lists, r"\(0, 3\), \(2, 3\) and \(2,\) raised"),
        (
            lambda x, w, b: in_lists(x, w, b) if len(x) else x @ w.T + b,
            r"keep all of their digits, got torch\.float32",
        ),
        (
            lambda x, w, b: x.float() @ w.float().T + b.float(),
            r"keep all of their digits, got torch\.float32.*\.float\(\)",
        ),
        (
            lambda x, w, b: (x.float() @ w.float().T + b).to(x.dtype),
            r"keep all of their digits",
        ),
        (
            lambda x, w, b: (x @ w.T + b).detach(),
            "without a gradient.*could not learn",
        ),
        (without_gradients, "without a gradient"),
        (
            lambda x, w, b: x @ w.data.T + b,
            r"no gradient reaches weight.*\.data",
        ),
        (lambda x, w, b: x @ w.T + b.detach(), "no gradient reaches bias"),
        (lambda x, w, b: x.detach() @ w.T + b, "no gradient reaches x"),
        (
            lambda x, w, b: x @ w.T + b / 2 + b.detach() / 2,
            "the gradient of bias must be",
        ),
        (by_numpy, "require gradients raised RuntimeError.*NumPy"),
        (weights_in_place, "in place"),
        (inputs_in_place, "in place"),
        (lambda x, w, b: None, "returned None"),
        (lambda x, w: x @ w.T, "raised TypeError"),
        (0.5, "without calling it"),
    ],
)
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_linear_forward_says_what_is_wrong(answer, words):
    assert_says(words, check_linear_forward(answer))


def pairs(sizes):
    return list(pairwise(sizes))


def right_cost(sizes, batch_size):
    n_parameters = sum((d_in + 1) * d_out for d_in, d_out in pairs(sizes))
    n_flops = sum(2 * batch_size * a * b for a, b in pairs(sizes))
    return n_parameters, n_flops


def by_index(sizes, batch_size):
    n_parameters = n_weights = 0
    for i in range(1, len(sizes)):
        n_weights += sizes[i - 1] * sizes[i]
        n_parameters += sizes[i]
    return n_parameters + n_weights, 2 * n_weights * batch_size


def in_tensors(sizes, batch_size):
    d = torch.tensor(sizes)
    n_weights = (d[:-1] * d[1:]).sum()
    return [n_weights + d[1:].sum(), 2 * batch_size * n_weights]


def by_building(sizes, batch_size):
    layers = [torch.nn.Linear(a, b) for a, b in pairs(sizes)]
    n_parameters = sum(
        p.numel() for layer in layers for p in layer.parameters()
    )
    return n_parameters, sum(
        2 * batch_size * layer.weight.numel() for layer in layers
    )


@pytest.mark.parametrize(
    "answer", [right_cost, by_index, in_tensors, by_building]
)
def test_mlp_cost_accepts(answer):
    verdict = check_mlp_cost(answer)
    assert verdict, verdict.message


def parameters_that(count):
    return lambda sizes, B: (count(sizes, B), right_cost(sizes, B)[1])


def flops_that(count):
    return lambda sizes, B: (right_cost(sizes, B)[0], count(sizes, B))


def n_weights(sizes):
    return sum(a * b for a, b in pairs(sizes))


def popping(sizes, batch_size):
    answer = right_cost(sizes, batch_size)
    sizes.pop()
    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (parameters_that(lambda s, B: n_weights(s)), "biases are missing"),
        (
            parameters_that(lambda s, B: n_weights(s) + sum(s)),
            "Inputs are no neurons",
        ),
        (
            parameters_that(lambda s, B: n_weights(s) + sum(s[:-1])),
            r"\(d_in \+ 1\) d_out, not",
        ),
        (
            parameters_that(lambda s, B: n_weights(s) + len(s) - 1),
            "one for each layer",
        ),
        (
            parameters_that(lambda s, B: B * right_cost(s, B)[0]),
            "does not depend on the batch",
        ),
        (
            parameters_that(
                lambda s, B: right_cost(s[:-1] if len(s) > 2 else s, B)[0]
            ),
            "The last layer is missing",
        ),
        (
            parameters_that(
                lambda s, B: right_cost(s[1:] if len(s) > 2 else s, B)[0]
            ),
            "The first layer is missing",
        ),
        (
            parameters_that(
                lambda s, B: (
                    right_cost(s, B)[0]
                    if len(s) < 3
                    else torch.tensor(s).prod().item()
                )
            ),
            "added up, not multiplied",
        ),
        (parameters_that(lambda s, B: 8), r"must be 2778, got 8"),
        (flops_that(lambda s, B: B * n_weights(s)), "two FLOPs"),
        (flops_that(lambda s, B: 2 * n_weights(s)), "Every example"),
        (
            flops_that(lambda s, B: B * (2 * n_weights(s) + sum(s[1:]))),
            "the bias is one more: 2 d_in in all",
        ),
        (
            flops_that(lambda s, B: B * (2 * n_weights(s) - sum(s[1:]))),
            "only d_in - 1 additions",
        ),
        (
            flops_that(lambda s, B: 2 * B * right_cost(s, B)[0]),
            "A bias costs one addition",
        ),
        (
            flops_that(lambda s, B: B * (2 * n_weights(s) + sum(s[1:-1]))),
            "Activations are not counted",
        ),
        (
            flops_that(
                lambda s, B: right_cost(s[:-1] if len(s) > 2 else s, B)[1]
            ),
            "The last layer is missing",
        ),
        (
            flops_that(
                lambda s, B: right_cost(s[1:] if len(s) > 2 else s, B)[1]
            ),
            "The first layer is missing",
        ),
        (flops_that(lambda s, B: 12 * B), r"must be 27200, got 60"),
        (
            flops_that(lambda s, B: 2 * B * n_weights(s) + (B == 5)),
            r"must be 27200, got 27201",
        ),
        (
            parameters_that(
                lambda s, B: (
                    torch.tensor(right_cost(s, B)[0]).float().item()
                    if sum(s) % 2
                    else right_cost(s, B)[0] + (B == 64)
                )
            ),
            r"must be 20037642, got 20037643",
        ),
        (
            flops_that(
                lambda s, B: torch.tensor(2 * B * n_weights(s)).int().item()
            ),
            "32 bits",
        ),
        (lambda s, B: right_cost(s, B)[::-1], "the parameters come first"),
        (lambda s, B: sum(right_cost(s, B)), "must return two numbers"),
        (lambda s, B: None, "must return two numbers"),
        (lambda s, B: ("many", "more"), "got a str"),
        (popping, "changed the list"),
        (lambda s: (8, 12), "raised TypeError"),
        ((8, 12), "without calling it"),
    ],
)
def test_mlp_cost_says_what_is_wrong(answer, words):
    assert_says(words, check_mlp_cost(answer))


# A checker that graded its own reference would accept these, too.
@pytest.mark.parametrize(
    ("check", "right", "spoil"),
    [
        (check_linear_forward, in_one_line, lambda y: y + 0.01),
        (check_mlp_cost, right_cost, lambda y: (y[0] + 1, y[1])),
        (check_mlp_cost, right_cost, lambda y: (y[0], y[1] + 1)),
    ],
)
def test_a_right_answer_is_rejected_once_it_is_spoiled(check, right, spoil):
    assert check(right)
    assert not check(lambda *given: spoil(right(*given)))
