"""The checkers accept right answers and name what is wrong in others."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.gpt import check_parameter_count, check_tied_gradient
from scratch.llm.gpt import GPT, count_parameters


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


# check_parameter_count


def by_formula(config):
    d = config.d_model
    tables = (config.vocab_size + config.context_length) * d
    return tables + config.n_layers * (12 * d * d + 13 * d) + 2 * d


def by_building(config):
    with torch.device("meta"):
        model = GPT(config)
    return sum(parameter.numel() for parameter in model.parameters())


def by_parts(config, **changes):
    """Count layer by layer; changes are the mistakes of the tests below."""
    options = {
        "tables": config.vocab_size,
        "positions": config.context_length,
        "last_norm": 1,
        "norms": 2,
        "norm_size": 2,
        "blocks": config.n_layers,
        "bias": 1,
        "query_key_value_bias": 1,
        "projections": 3,
        "mix": 1,
        "attention": 1,
        "d_ff": 4 * config.d_model,
        "feed_forward": 1,
    } | changes
    d, bias = config.d_model, options["bias"]

    def linear(d_in, d_out, bias=bias):
        return d_in * d_out + bias * d_out

    block = options["norms"] * options["norm_size"] * d
    block += options["attention"] * (
        options["projections"]
        * linear(d, d, bias * options["query_key_value_bias"])
        + options["mix"] * linear(d, d)
    )
    block += options["feed_forward"] * (
        linear(d, options["d_ff"]) + linear(options["d_ff"], d)
    )
    return (
        (options["tables"] + options["positions"]) * d
        + options["blocks"] * block
        + options["last_norm"] * options["norm_size"] * d
    )


@pytest.mark.parametrize(
    "answer",
    [
        by_formula,
        by_building,
        by_parts,
        count_parameters,
        lambda config: float(by_formula(config)),
        lambda config: torch.tensor(by_formula(config)),
        lambda config: np.int64(by_formula(config)),
    ],
)
def test_parameter_count_accepts(answer):
    verdict = check_parameter_count(answer)
    assert verdict, verdict.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda c: by_parts(c, tables=2 * c.vocab_size), "count it once"),
        (lambda c: by_parts(c, positions=0), "positions have a table"),
        (lambda c: by_parts(c, tables=0), "token table is missing"),
        (lambda c: by_parts(c, last_norm=0), "after the last block"),
        (lambda c: by_parts(c, norm_size=1), "weights and biases"),
        (lambda c: by_parts(c, norms=0, last_norm=0), "norms are missing"),
        (lambda c: by_parts(c, norms=1), "second norm, or two of"),
        (lambda c: by_parts(c, bias=0), "The biases are missing"),
        (lambda c: by_parts(c, bias=0, norm_size=1), "All biases"),
        (lambda c: by_parts(c, query_key_value_bias=0), "has biases, too"),
        (lambda c: by_parts(c, mix=0), "output projection"),
        (lambda c: by_parts(c, attention=0), "Attention is missing"),
        (lambda c: by_parts(c, feed_forward=0), "Feed-forward is missing"),
        (lambda c: by_parts(c, d_ff=c.d_model), "d_ff = 4 d_model"),
        (lambda c: by_parts(c, projections=1), "a matrix each"),
        (
            lambda c: by_parts(c, projections=3 * c.n_heads),
            "changes no count",
        ),
        (lambda c: by_formula(c) + c.vocab_size, "logits have no biases"),
        # right for one block
        (lambda c: by_parts(c, blocks=1), "multiply by n_layers"),
        # right for one size
        (lambda c: 21_618, r"must give 284, got 21,618\. Both"),
        # right for heads of width 2
        (lambda c: by_formula(replace(c, d_model=2 * c.n_heads)), "got"),
        (lambda c: by_formula(c) + 1, "Both tables, and"),
        (lambda c: None, "return"),
        (lambda c: "many", "an integer, got a str"),
        (lambda c: str(by_formula(c)), "an integer, got a str"),
        (lambda c: math.inf, "an integer, got a float"),
        (lambda c: math.nan, "an integer, got a float"),
        (lambda c: by_formula(c) + 0.5, "whole number"),
        (lambda c: {"blocks": 3}, 'without a "total"'),
        (lambda c: c.d_embedding, "AttributeError"),
        (284, "hand over the function itself"),
    ],
)
def test_parameter_count_says_what_is_wrong(answer, words):
    assert_says(words, check_parameter_count(answer))


# check_tied_gradient


def by_autograd(grad_logits, hidden, ids, grad_x):
    table = torch.zeros(grad_logits.shape[-1], hidden.shape[-1])
    table.requires_grad_()
    logits, rows = hidden @ table.T, F.embedding(ids, table)
    total = (logits * grad_logits).sum() + (rows * grad_x).sum()
    return torch.autograd.grad(total, table)[0]


def by_one_hot(grad_logits, hidden, ids, grad_x):
    one_hot = F.one_hot(ids, grad_logits.shape[-1]).float()
    return (grad_logits.mT @ hidden + one_hot.mT @ grad_x).sum(dim=0)


def by_loops(grad_logits, hidden, ids, grad_x):
    grad = torch.zeros(grad_logits.shape[-1], hidden.shape[-1])
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            grad += torch.outer(grad_logits[b, t], hidden[b, t])
            grad[ids[b, t]] += grad_x[b, t]
    return grad


def sparse(*given):
    return by_loops(*given).to_sparse()


@pytest.mark.parametrize("answer", [by_autograd, by_one_hot, by_loops, sparse])
def test_tied_gradient_accepts(answer):
    verdict = check_tied_gradient(answer)
    assert verdict, verdict.message


def output_part(grad_logits, hidden, ids, grad_x):
    return grad_logits.flatten(0, 1).T @ hidden.flatten(0, 1)


def input_part(*given):
    return by_one_hot(*given) - output_part(*given)


def written_once(*given):
    grad = output_part(*given)
    grad[given[2].flatten()] += given[3].flatten(0, 1)
    return grad


def replaced(*given):
    grad = output_part(*given)
    grad[given[2].flatten()] = given[3].flatten(0, 1)
    return grad


def not_summed(grad_logits, hidden, ids, grad_x):
    first = input_part(grad_logits, hidden, ids, grad_x)
    return grad_logits.mT @ hidden + first


def in_place(grad_logits, hidden, ids, grad_x):
    hidden *= 2
    return by_one_hot(grad_logits, hidden / 2, ids, grad_x)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (output_part, "the table was looked up"),
        (input_part, "the table made the logits"),
        (written_once, "index_add"),
        (replaced, "replaced the others"),
        (lambda *given: by_one_hot(*given) / 2, "not averaged"),
        (lambda *given: -by_one_hot(*given), "sign is turned"),
        (
            lambda *given: by_one_hot(*given) / given[2].numel(),
            "number of places",
        ),
        (
            lambda *given: output_part(*given) - input_part(*given),
            "subtracted",
        ),
        (lambda *given: by_one_hot(*given).T, "transpose"),
        (not_summed, "batch must be added up|shape"),
        (
            lambda g, h, i, x: (
                output_part(g, x, i, x) + input_part(g, h, i, x)
            ),
            "in both places",
        ),
        # right for the first text
        (lambda *given: by_one_hot(*(x[:1] for x in given)), "Add two parts"),
        # right for the first place
        (
            lambda *given: by_one_hot(*(x[:, :1] for x in given)),
            "Add two parts",
        ),
        # no lookups of the last row, or of the first
        (
            lambda g, h, i, x: by_one_hot(
                g, h, i, x * (i != g.shape[-1] - 1).unsqueeze(-1)
            ),
            "row 3 of my_tied_gradient",
        ),
        (
            lambda g, h, i, x: by_one_hot(g, h, i, x * (i != 0).unsqueeze(-1)),
            "row 0 of my_tied_gradient",
        ),
        (lambda g, h, i, x: by_one_hot(g, x, i, h), "changed places"),
        (in_place, "in place"),
        (lambda *given: None, "return"),
        (lambda g, h: g, "TypeError"),
    ],
)
def test_tied_gradient_says_what_is_wrong(answer, words):
    assert_says(words, check_tied_gradient(answer))
