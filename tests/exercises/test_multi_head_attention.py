"""The checkers accept right answers and name what is wrong in others."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.multi_head_attention import (
    check_merge_heads,
    check_multi_head,
    check_split_heads,
)
from scratch.llm.multi_head_attention import merge_heads, split_heads
from scratch.llm.self_attention import attend, causal_mask


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def split_by_view(x, n_heads):
    b, t, d_model = x.shape
    return x.view(b, t, n_heads, d_model // n_heads).transpose(1, 2)


def split_by_chunks(x, n_heads):
    return torch.stack(x.chunk(n_heads, dim=-1), dim=1)


def split_by_einsum(x, n_heads):
    cut = x.unflatten(-1, (n_heads, -1))
    return torch.einsum("bthd->bhtd", cut)


def split_by_loops(x, n_heads):
    d_head = x.shape[-1] // n_heads
    return torch.stack(
        [x[..., h * d_head : (h + 1) * d_head] for h in range(n_heads)], dim=-3
    )


@pytest.mark.parametrize(
    "answer",
    [
        split_heads,
        split_by_view,
        split_by_chunks,
        split_by_einsum,
        split_by_loops,
    ],
)
def test_split_heads_accepts(answer):
    verdict = check_split_heads(answer)
    assert verdict, verdict.message


def split_at_once(x, n_heads):
    return x.reshape(len(x), n_heads, x.shape[1], -1)


def cut_only(x, n_heads):
    return x.unflatten(-1, (n_heads, -1))


def split_by_turns(x, n_heads):
    return x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2)


def first_head(x, n_heads):
    return split_heads(x, n_heads)[:, :1]


def split_in_place(x, n_heads):
    x += 1
    return split_heads(x - 1, n_heads)


def split_of_lists(x, n_heads):
    return torch.tensor(split_heads(x, n_heads).tolist())


def split_in_integers(x, n_heads):
    return split_heads(x, n_heads).int()


def split_truncated(x, n_heads):
    return split_heads(x, n_heads).trunc()


def split_cut_off(x, n_heads):
    return split_heads(x.detach(), n_heads)


def always_two(x, n_heads):
    return split_heads(x, 2)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (split_at_once, "mixes tokens with heads"),
        (cut_only, "now exchange tokens and heads"),
        (split_by_turns, "take turns"),
        (lambda x, n: cut_only(x, n).mT, "two other dimensions"),
        (lambda x, n: split_heads(x, n).flip(1), "reverse order"),
        (lambda x, n: split_heads(x, n).transpose(0, 1), "batch"),
        (lambda x, n: split_heads(x[0], n), "shape"),
        (lambda x, n: split_heads(x, n).mT, "batch, heads, tokens, width"),
        (lambda x, n: split_heads(x, n).flip(2), "holds the numbers"),
        (first_head, "shape"),
        (always_two, "raised ValueError|shape"),
        (lambda x, n: list(x.chunk(n, dim=-1)), "got a list"),
        (lambda x, n: split_heads(x, n).tolist(), "got a list"),
        (lambda x, n: None, "return"),
        (lambda x: x, "raised TypeError"),
        (split_in_place, "in place"),
        (split_of_lists, "way back"),
        (split_cut_off, "way back"),
        (split_in_integers, "floats"),
        (lambda x, n: split_heads(x, n).bfloat16(), "as exact as"),
        (split_truncated, "as it is. Rounding"),
        (lambda x, n: split_heads(x.round(), n), "as it is. Rounding"),
        (split_heads(torch.ones(1, 2, 4), 2), "without calling it"),
    ],
)
def test_split_heads_names_the_mistake(answer, words):
    assert_says(words, check_split_heads(answer))


def merge_by_cat(x):
    return torch.cat(list(x.unbind(1)), dim=-1)


def merge_by_reshape(x):
    b, n_heads, t, d_head = x.shape
    return x.permute(0, 2, 1, 3).reshape(b, t, n_heads * d_head)


def merge_by_view(x):
    return x.transpose(1, 2).contiguous().view(len(x), x.shape[2], -1)


def merge_by_loops(x):
    b, n_heads, t, d_head = x.shape
    merged = x.new_empty(b, t, n_heads * d_head)
    for h in range(n_heads):
        merged[:, :, h * d_head : (h + 1) * d_head] = x[:, h]
    return merged


@pytest.mark.parametrize(
    "answer",
    [
        merge_heads,
        merge_by_cat,
        merge_by_reshape,
        merge_by_view,
        merge_by_loops,
    ],
)
def test_merge_heads_accepts(answer):
    verdict = check_merge_heads(answer)
    assert verdict, verdict.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x.reshape(len(x), x.shape[2], -1), "mixes tokens"),
        (lambda x: x.transpose(1, 2), "now join"),
        (lambda x: x.permute(0, 2, 3, 1).flatten(2), "take turns"),
        (lambda x: merge_heads(x.flip(1)), "reverse order"),
        (lambda x: x.sum(1), "side by side"),
        (lambda x: x.mean(1), "averaged"),
        (lambda x: x.flatten(1, 2), "one below the other"),
        (lambda x: merge_heads(x[0])[None], "shape"),
        (lambda x: merge_heads(x)[0], "batch, tokens, then"),
        (lambda x: merge_heads(x.flip(2)), "head 0 comes first"),
        (lambda x: merge_heads(x).tolist(), "got a list"),
        (lambda x: x.transpose(1, 2).view(len(x), x.shape[2], -1), "raised"),
        (lambda x: merge_heads(x).long(), "floats"),
        (lambda x: merge_heads(x).detach(), "way back"),
        (lambda x: merge_heads(x.trunc()), "as it is. Rounding"),
        (lambda x: None, "return"),
        (lambda x, n: x, "raised TypeError"),
    ],
)
def test_merge_heads_names_the_mistake(answer, words):
    assert_says(words, check_merge_heads(answer))


def parts_of(x, qkv, n_heads):
    return [split_heads(p, n_heads) for p in (x @ qkv.mT).chunk(3, dim=-1)]


def layer(
    x,
    qkv,
    mix,
    n_heads,
    *,
    parts=parts_of,
    mask=causal_mask,
    merge=merge_heads,
    last=lambda merged, mix: merged @ mix.mT,
    turn=lambda q, k, v: (q, k, v),
):
    q, k, v = turn(*parts(x, qkv, n_heads))
    return last(merge(attend(q, k, v, mask(x.shape[1]))[0]), mix)


def by_kernel(x, qkv, mix, n_heads):
    found = F.scaled_dot_product_attention(
        *parts_of(x, qkv, n_heads), is_causal=True
    )
    return F.linear(merge_heads(found), mix)


def by_loop(x, qkv, mix, n_heads):
    q, k, v = (part.chunk(n_heads, dim=-1) for part in (x @ qkv.T).chunk(3, 2))
    found = []
    for q_h, k_h, v_h in zip(q, k, v, strict=True):
        scores = q_h @ k_h.mT / math.sqrt(q_h.shape[-1])
        hidden = torch.ones_like(scores).triu(1) > 0
        found.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v_h)
    return torch.cat(found, dim=-1) @ mix.T


def by_sum(x, qkv, mix, n_heads):
    found, _ = attend(*parts_of(x, qkv, n_heads), causal_mask(x.shape[1]))
    blocks = mix.unflatten(1, (n_heads, -1))
    return torch.einsum("bhtd,mhd->btm", found, blocks)


def in_double(*inputs):
    return layer(*(i.double() if torch.is_tensor(i) else i for i in inputs))


@pytest.mark.parametrize(
    "answer", [layer, by_kernel, by_loop, by_sum, in_double]
)
def test_multi_head_accepts(answer):
    verdict = check_multi_head(answer)
    assert verdict, verdict.message


def variant(**options):
    return lambda *inputs: layer(*inputs, **options)


def parts_by_head(x, qkv, n_heads):
    parts = (x @ qkv.mT).unflatten(-1, (n_heads, 3, -1)).unbind(-2)
    return [part.transpose(1, 2) for part in parts]


def parts_by_view(x, qkv, n_heads):
    return [split_at_once(p, n_heads) for p in (x @ qkv.mT).chunk(3, dim=-1)]


def reshaped(found):
    b, n_heads, t, d_head = found.shape
    return found.reshape(b, t, n_heads * d_head)


def root_of_d_model(q, k, v):
    return q / math.sqrt(q.shape[1]), k, v


def without_root(q, k, v):
    return q * math.sqrt(q.shape[-1]), k, v


def masked_with(number):
    def answer(x, qkv, mix, n_heads):
        q, k, v = parts_of(x, qkv, n_heads)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        hidden = ~causal_mask(x.shape[1])
        weights = scores.masked_fill(hidden, number).softmax(-1)
        return merge_heads(weights @ v) @ mix.mT

    return answer


def with_bare_exp(x, qkv, mix, n_heads):
    q, k, v = parts_of(x, qkv, n_heads)
    exps = (q @ k.mT / math.sqrt(q.shape[-1])).exp().tril()
    return merge_heads(exps / exps.sum(-1, keepdim=True) @ v) @ mix.mT


def last_head_only(x, qkv, mix, n_heads):
    found, _ = attend(*parts_of(x, qkv, n_heads), causal_mask(x.shape[1]))
    return found[:, -1] @ mix.chunk(n_heads, dim=1)[-1].mT


def without_slopes(*inputs):
    with torch.no_grad():
        return layer(*inputs)


def with_weights(x, qkv, mix, n_heads):
    return attend(x, x, x, causal_mask(x.shape[1]))


def one_head(x, qkv, mix, n_heads):
    return layer(x, qkv, mix, 1)


def one_sequence(x, qkv, mix, n_heads):
    return layer(x[:1], qkv, mix, n_heads)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (variant(mask=lambda n: None), "mask is missing"),
        (variant(mask=lambda n: causal_mask(n).mT), "what comes after"),
        (variant(last=lambda merged, mix: merged), "output layer is missing"),
        (variant(last=lambda merged, mix: merged @ mix), "transposed"),
        (variant(turn=root_of_d_model), "not of d_model"),
        (variant(turn=without_root), "root of d_head"),
        (variant(parts=parts_by_head), "of head 1 came first"),
        (variant(turn=lambda q, k, v: (k, q, v)), "exchanged"),
        (variant(turn=lambda q, k, v: (q, k, k)), "averages keys"),
        (variant(turn=lambda q, k, v: (q, v, k)), "Keys and values are"),
        (masked_with(0.0), r"exp\(0\) is 1"),
        (masked_with(-30.0), "trace of the future"),
        (masked_with(-100.0), "Hide scores with -inf|several thousand"),
        (with_bare_exp, "subtracts the largest"),
        (last_head_only, "Only the last head"),
        (lambda x, *rest: layer(x, *rest) / rest[-1], "mean over the heads"),
        (lambda x, *rest: layer(x, *rest) + x, "x is added"),
        (without_slopes, "no slope reaches x"),
        (lambda x, q, mix, n: layer(x, q, mix.detach(), n), "reaches mix"),
        (with_weights, "output and weights"),
        (variant(merge=reshaped), "merge mixes"),
        (variant(parts=parts_by_view), "split mixes"),
        (variant(parts=parts_by_view, merge=reshaped), "part of the text"),
        (one_head, "one head of the full width"),
        (one_sequence, "shape"),
        (lambda *inputs: layer(*inputs).tolist(), "got a list"),
        (lambda *inputs: layer(*inputs).int(), "floats"),
        (lambda *inputs: None, "return"),
        (lambda x, qkv, mix: x, "raised TypeError"),
        (lambda x, qkv, mix, n_heads: x, "must be"),
    ],
)
def test_multi_head_names_the_mistake(answer, words):
    assert_says(words, check_multi_head(answer))


def test_multi_head_with_changed_arguments():
    def in_place(x, qkv, mix, n_heads):
        x *= 2
        return layer(x / 2, qkv, mix, n_heads)

    assert_says("in place", check_multi_head(in_place))
