"""The checkers accept right answers and name what is wrong in others."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.self_attention import check_attend, check_causal_mask
from scratch.llm.self_attention import attend, causal_mask


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def by_comparison(n_tokens, n_before):
    queries = torch.arange(n_before, n_before + n_tokens)
    return torch.arange(n_before + n_tokens) <= queries[:, None]


def by_lists(n_tokens, n_before):
    places = range(n_before + n_tokens)
    return [[j <= n_before + t for j in places] for t in range(n_tokens)]


def by_two_blocks(n_tokens, n_before):
    square = torch.ones(n_tokens, n_tokens).tril().bool()
    return torch.cat([torch.ones(n_tokens, n_before).bool(), square], dim=1)


def by_hiding(n_tokens, n_before):
    return ~torch.ones(n_tokens, n_before + n_tokens).triu(n_before + 1).bool()


def last_rows(n_tokens, n_before):
    n = n_before + n_tokens
    return torch.ones(n, n, dtype=torch.bool).tril()[n_before:]


@pytest.mark.parametrize(
    "answer", [by_comparison, by_lists, by_two_blocks, by_hiding, last_rows]
)
def test_causal_mask_accepts(answer):
    verdict = check_causal_mask(answer)
    assert verdict, verdict.message


def every(n_tokens, n_before):
    return torch.ones(n_tokens, n_before + n_tokens, dtype=torch.bool)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (every, "Nothing is hidden"),
        (lambda n, b: ~causal_mask(n, n_before=b), "opposite"),
        (lambda n, b: every(n, b).tril(b - 1), "keep the diagonal"),
        (lambda n, b: every(n, b).tril(b + 1), "one key too many"),
        (lambda n, b: every(n, b).triu(b), "sees the future"),
        (lambda n, b: every(n, b).tril(), "starts after them"),
        (lambda n, b: F.pad(causal_mask(n), (b, 0)), "which are hidden"),
        (
            lambda n, b: every(n, b) & (torch.arange(b + n) < b),
            "do not see themselves|keep the diagonal",
        ),
        (lambda n, b: every(n, 0).tril(), "shape .*those before the first"),
        (lambda n, b: causal_mask(n, n_before=b).T, "hides the past"),
        (lambda n, b: causal_mask(n, n_before=b).float(), "must hold bools"),
        (lambda n, b: causal_mask(n, n_before=b).int(), "must hold bools"),
        (
            lambda n, b: torch.zeros(n, b + n).masked_fill(
                ~causal_mask(n, n_before=b), -math.inf
            ),
            "adds to the scores",
        ),
        (lambda n, b: None, "return"),
        (lambda n, b: "mask", "got a str"),
        (lambda n: causal_mask(n), "raised TypeError"),
        (causal_mask(3), "without calling it"),
        (
            lambda n, b: every(n, b) & (torch.arange(b + n) < b + 1),
            "Query t sees the n_before keys",
        ),
    ],
)
def test_causal_mask_names_the_mistake(answer, words):
    assert_says(words, check_causal_mask(answer))


def by_torch(q, k, v, mask):
    one_hot = torch.eye(k.shape[-2]).expand(*k.shape[:-1], -1)
    return (
        F.scaled_dot_product_attention(q, k, v, mask),
        F.scaled_dot_product_attention(q, k, one_hot, mask),
    )


def with_scaled_queries(q, k, v, mask):
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    bias = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores + bias, dim=-1)
    return [torch.einsum("...tj,...jd->...td", weights, v), weights]


def by_parts(q, k, v, mask):
    scores = torch.einsum("...td,...jd->...tj", q, k) / q.shape[-1] ** 0.5
    scores = torch.where(mask, scores, -math.inf)
    exps = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights = exps / exps.sum(dim=-1, keepdim=True)
    return weights @ v, weights


def by_logarithms(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~mask, -math.inf)
    weights = (scores - scores.logsumexp(dim=-1, keepdim=True)).exp()
    return weights @ v, weights


def with_a_huge_number(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask, -1e30).softmax(dim=-1)
    return weights @ v, weights


@pytest.mark.parametrize(
    "answer",
    [
        attend,
        by_torch,
        with_scaled_queries,
        by_parts,
        by_logarithms,
        with_a_huge_number,
    ],
)
def test_attend_accepts(answer):
    verdict = check_attend(answer)
    assert verdict, verdict.message


def variant(
    *, scale=lambda q, k, v: q.shape[-1] ** -0.5, dim=-1, fill=-math.inf
):
    def answer(q, k, v, mask):
        scores = q @ k.mT * scale(q, k, v)
        weights = scores.masked_fill(~mask, fill).softmax(dim)
        return weights @ v, weights

    return answer


def scores_of(q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


def mask_ignored(q, k, v, mask):
    weights = scores_of(q, k).softmax(-1)
    return weights @ v, weights


def mask_turned(q, k, v, mask):
    weights = scores_of(q, k).masked_fill(mask, -math.inf).softmax(-1)
    return weights @ v, weights


def mask_late(q, k, v, mask):
    weights = scores_of(q, k).softmax(-1) * mask
    return weights @ v, weights


def mask_late_with_new_sums(q, k, v, mask):
    weights = scores_of(q, k).softmax(-1) * mask
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights @ v, weights


def always_causal(q, k, v, mask):
    return attend(q, k, v, torch.ones_like(mask).tril())


def causal_at_the_end(q, k, v, mask):
    t_q, t_k = q.shape[-2], k.shape[-2]
    return attend(q, k, v, causal_mask(t_q, n_before=max(t_k - t_q, 0)))


def bare_exponentials(q, k, v, mask):
    exps = scores_of(q, k).exp() * mask
    weights = exps / exps.sum(dim=-1, keepdim=True)
    return weights @ v, weights


def scores_for_weights(q, k, v, mask):
    scores = scores_of(q, k)
    return scores @ v, scores


def keys_for_values(q, k, v, mask):
    _, weights = attend(q, k, v, mask)
    return weights @ k, weights


def best_alone(q, k, v, mask):
    _, weights = attend(q, k, v, mask)
    best = weights.argmax(-1, keepdim=True)
    return v.take_along_dim(best, dim=-2), weights


def transposed(q, k, v, mask):
    output, weights = attend(q, k, v, mask)
    if q.shape[-2] == k.shape[-2]:
        output = weights.mT @ v
    return output, weights


def for_one_sequence(q, k, v, mask):
    scores = q @ k.transpose(0, 1) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return weights @ v, weights


def first_of_the_batch(q, k, v, mask):
    if mask.ndim > 2:
        mask = mask[0]
    return attend(q, k, v, mask)


def own_causal_wherever_something_is_hidden(q, k, v, mask):
    if mask.all():
        return attend(q, k, v, mask)
    return causal_at_the_end(q, k, v, mask)


def minus_1e9_added(q, k, v, mask):
    weights = (scores_of(q, k) + ~mask * -1e9).softmax(-1)
    return weights @ v, weights


def without_gradient(q, k, v, mask):
    with torch.no_grad():
        return attend(q, k, v, mask)


def by_numpy(q, k, v, mask):
    return tuple(x.detach().numpy() for x in attend(q, k, v, mask))


def weights_detached(q, k, v, mask):
    _, weights = attend(q, k, v, mask)
    return weights.detach() @ v, weights


def keys_without_gradient(q, k, v, mask):
    return attend(q, k.data, v, mask)


def in_place(q, k, v, mask):
    q /= math.sqrt(q.shape[-1])
    weights = (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1)
    return weights @ v, weights


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (variant(scale=lambda q, k, v: 1), "root of d_head, the width"),
        (
            variant(scale=lambda q, k, v: 1 / q.shape[-1]),
            "not by d_head itself",
        ),
        (
            variant(scale=lambda q, k, v: q.shape[-1] ** 0.5),
            "Multiplied instead",
        ),
        (
            variant(scale=lambda q, k, v: v.shape[-1] ** -0.5),
            "not of the width of a value",
        ),
        (
            variant(scale=lambda q, k, v: k.shape[-2] ** -0.5),
            "not of the number of keys",
        ),
        (variant(scale=lambda q, k, v: 0.5), "two queries"),
        (variant(dim=-2), "runs over the queries"),
        (variant(fill=0), "exp.0. is 1"),
        (variant(fill=-1), "score of -1"),
        (variant(fill=-100), "hide keys with -inf"),
        (variant(fill=-1000), "hide keys with -inf"),
        (variant(fill=-1e9), "score may lie below any other number"),
        (variant(fill=-1e5), "hide keys with -inf|below any other"),
        (minus_1e9_added, "score may lie below any other number"),
        (without_gradient, "without gradient"),
        (by_numpy, "without gradient"),
        (weights_detached, "gradient at q .* lost on the way"),
        (keys_without_gradient, "gradient at k .* lost on the way"),
        (own_causal_wherever_something_is_hidden, "mask that is given"),
        (mask_ignored, "no effect"),
        (mask_turned, "True means that a query may see"),
        (mask_late, "after the softmax"),
        (mask_late_with_new_sums, "before the softmax"),
        (always_causal, "one query and four keys"),
        (causal_at_the_end, "two queries that see all"),
        (bare_exponentials, "Subtract the largest"),
        (scores_for_weights, "before the softmax"),
        (keys_for_values, "averages the keys"),
        (best_alone, "best key alone"),
        (transposed, "rows are queries"),
        (for_one_sequence, "batch.* Only the last two dimensions"),
        (first_of_the_batch, "a mask for each sequence"),
        (in_place, "in place"),
        (lambda *inputs: attend(*inputs)[0], "must return two tensors"),
        (lambda *inputs: attend(*inputs)[::-1], "weights first"),
        (lambda *inputs: (*attend(*inputs), None), "two tensors.* got 3"),
        (lambda *inputs: None, "return"),
        (lambda q, k, v: attend(q, k, v), "raised TypeError"),
        (
            lambda q, k, v, mask: (v.mean(-2), attend(q, k, v, mask)[1]),
            "shape",
        ),
    ],
)
def test_attend_names_the_mistake(answer, words):
    assert_says(words, check_attend(answer))
