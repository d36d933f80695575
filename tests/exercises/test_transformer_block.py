"""The checkers accept right answers and name what is wrong in others."""

import re

import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.transformer_block import check_block, check_layer_norm


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


# LayerNorm


def by_torch(x, weight, bias, eps):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def by_var(x, weight, bias, eps):
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, keepdim=True, unbiased=False)
    return weight * (x - mean) / (variance + eps).sqrt() + bias


def by_length(x, weight, bias, eps):
    centered = x - x.mean(dim=-1, keepdim=True)
    d = x.shape[-1]
    length = (centered.square().sum(-1, keepdim=True) + d * eps).sqrt()
    return centered / length * d**0.5 * weight + bias


def by_matrix(x, weight, bias, eps):
    d = x.shape[-1]
    centered = x @ (torch.eye(d) - torch.ones(d, d) / d)
    variance = (centered**2).sum(-1) / d
    return weight * centered * (variance + eps).rsqrt()[..., None] + bias


def in_double(x, weight, bias, eps):
    return by_torch(x.double(), weight.double(), bias.double(), eps)


@pytest.mark.parametrize(
    "answer", [by_torch, by_var, by_length, by_matrix, in_double]
)
def test_layer_norm_accepts(answer):
    verdict = check_layer_norm(answer)
    assert verdict, verdict.message


def variant(
    *,
    dim=-1,
    unbiased=False,
    divisor=lambda variance, eps: (variance + eps).sqrt(),
    end=lambda normed, weight, bias: weight * normed + bias,
):
    def answer(x, weight, bias, eps):
        if dim == 0 and x.ndim == 1:
            return by_torch(x, weight, bias, eps)
        mean = x.mean(dim=dim, keepdim=True)
        variance = x.var(dim=dim, keepdim=True, unbiased=unbiased)
        return end((x - mean) / divisor(variance, eps), weight, bias)

    return answer


def over_tokens(x, weight, bias, eps):
    if x.ndim == 1:
        return by_torch(x, weight, bias, eps)
    return variant(dim=-2)(x, weight, bias, eps)


def over_texts(x, weight, bias, eps):
    if x.ndim < 3:
        return by_torch(x, weight, bias, eps)
    return variant(dim=(-2, -1))(x, weight, bias, eps)


def over_everything(x, weight, bias, eps):
    return variant(dim=tuple(range(x.ndim)))(x, weight, bias, eps)


def without_mean(x, weight, bias, eps):
    size = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return weight * x / size + bias


def mean_in_the_numerator(x, weight, bias, eps):
    std = (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    return weight * x / std + bias


def mean_in_the_squares(x, weight, bias, eps):
    size = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return weight * (x - x.mean(-1, keepdim=True)) / size + bias


def by_difference_of_squares(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = (x * x).mean(-1, keepdim=True) - mean * mean
    return weight * (x - mean) / (variance + eps).sqrt() + bias


def unit_length(x, weight, bias, eps):
    centered = x - x.mean(-1, keepdim=True)
    return weight * F.normalize(centered, dim=-1) + bias


def scaled_first(x, weight, bias, eps):
    return F.layer_norm(weight * x + bias, x.shape[-1:], eps=eps)


def fixed_eps(x, weight, bias, eps):
    return by_torch(x, weight, bias, 1e-5)


def without_batch(x, weight, bias, eps):
    centered = x - x.mean()
    return weight * centered / (centered.square().mean() + eps).sqrt() + bias


def in_place(x, weight, bias, eps):
    x -= x.mean(dim=-1, keepdim=True)
    return by_torch(x, weight, bias, eps)


def without_keepdim(x, weight, bias, eps):
    variance = x.var(-1, unbiased=False)
    return weight * (x - x.mean(-1)) / (variance + eps).sqrt() + bias


def over_two_dimensions(x, weight, bias, eps):
    return variant(dim=(-2, -1))(x, weight, bias, eps)


def up_to_three_dimensions(x, weight, bias, eps):
    normed = by_torch(x, weight, bias, eps)
    return normed[0] if x.ndim > 3 else normed


def from_numbers(x, weight, bias, eps):
    return torch.tensor(by_torch(x, weight, bias, eps).tolist())


def with_a_fixed_size(x, weight, bias, eps):
    std = (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt().detach()
    return weight * (x - x.mean(-1, keepdim=True)) / std + bias


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (variant(unbiased=True), "d - 1"),
        (variant(divisor=lambda v, eps: v.sqrt() + eps), "under the root"),
        (variant(divisor=lambda v, eps: v.sqrt()), "eps is not used"),
        (variant(divisor=lambda v, eps: (v + eps**2).sqrt()), "squared"),
        (variant(divisor=lambda v, eps: v + eps), "instead of its root"),
        (variant(divisor=lambda v, eps: 1), "now divide"),
        (variant(divisor=lambda v, eps: (v + 2 * eps).sqrt()), "added twice"),
        (variant(divisor=lambda v, eps: (v + 3 * eps).sqrt()), "once, under"),
        (variant(end=lambda n, w, b: n), "Weight and bias are missing"),
        (variant(end=lambda n, w, b: n + b), "The weight is missing"),
        (variant(end=lambda n, w, b: n * w), "The bias is missing"),
        (variant(end=lambda n, w, b: w * (n + b)), "multiply the bias"),
        (variant(end=lambda n, w, b: (1 + w) * n + b), "added to 1"),
        (variant(end=lambda n, w, b: b * n + w), "swapped"),
        (variant(dim=0), "first dimension|tokens"),
        (over_tokens, "run over the tokens"),
        (over_texts, "whole of x|all tokens of a text"),
        (over_everything, "whole of x"),
        (without_batch, "whole of x"),
        (without_mean, "RMSNorm"),
        (mean_in_the_numerator, "still in the numerator"),
        (mean_in_the_squares, "also before you square"),
        (by_difference_of_squares, "small difference of large numbers"),
        (unit_length, "length 1"),
        (scaled_first, "come after the division"),
        (fixed_eps, "under the root"),
        (in_place, "in place"),
        (without_keepdim, "keepdim=True"),
        (over_two_dimensions, "belong to one vector: dim=-1"),
        (up_to_three_dimensions, "shape"),
        (lambda *given: by_torch(*given).detach(), "No gradient comes"),
        (from_numbers, "No gradient comes"),
        (lambda x, w, b, eps: by_torch(x, w, b.detach(), eps), "reaches bias"),
        (with_a_fixed_size, "gradient of my_layer_norm for x .* no detach"),
        (lambda x, weight, bias, eps: None, "return"),
        (lambda x, weight, bias, eps: x.mean(-1), "shape"),
        (lambda x, weight, bias, eps: x / 0, "inf or nan"),
        (lambda x, weight, bias, eps: [list(x)], "shape|number or a tensor"),
        (lambda x, weight, bias: x, "raised TypeError"),
        (torch.ones(4), "without calling it"),
    ],
)
def test_layer_norm_names_the_mistake(answer, words):
    assert_says(words, check_layer_norm(answer))


# The block


def two_steps(x, norm_1, attention, norm_2, feed_forward):
    h = x + attention(norm_1(x))
    return h + feed_forward(norm_2(h))


def in_a_loop(x, *parts):
    for norm, layer in (parts[:2], parts[2:]):
        x = layer(norm(x)) + x
    return x


def in_one_sum(x, norm_1, attention, norm_2, feed_forward):
    found = attention(norm_1(x))
    return x + found + feed_forward(norm_2(found + x))


def overwriting_a_copy(x, norm_1, attention, norm_2, feed_forward):
    stream = x.clone()
    stream += attention(norm_1(stream))
    stream += feed_forward(norm_2(stream))
    return stream


@pytest.mark.parametrize("answer", [two_steps, in_a_loop, in_one_sum])
def test_block_accepts(answer):
    verdict = check_block(answer)
    assert verdict, verdict.message


def post_norm(x, norm_1, attention, norm_2, feed_forward):
    h = norm_1(x + attention(x))
    return norm_2(h + feed_forward(h))


def nothing_added(x, norm_1, attention, norm_2, feed_forward):
    return feed_forward(norm_2(attention(norm_1(x))))


def attention_not_added(x, norm_1, attention, norm_2, feed_forward):
    h = attention(norm_1(x))
    return h + feed_forward(norm_2(h))


def feed_forward_not_added(x, norm_1, attention, norm_2, feed_forward):
    return feed_forward(norm_2(x + attention(norm_1(x))))


def back_to_x(x, norm_1, attention, norm_2, feed_forward):
    h = x + attention(norm_1(x))
    return x + feed_forward(norm_2(h))


def side_by_side(x, norm_1, attention, norm_2, feed_forward):
    return x + attention(norm_1(x)) + feed_forward(norm_2(x))


def to_the_normed_copy(x, norm_1, attention, norm_2, feed_forward):
    x = norm_1(x)
    x = x + attention(x)
    x = norm_2(x)
    return x + feed_forward(x)


def first_to_the_normed_copy(x, norm_1, attention, norm_2, feed_forward):
    normed = norm_1(x)
    h = normed + attention(normed)
    return h + feed_forward(norm_2(h))


def second_to_the_normed_copy(x, norm_1, attention, norm_2, feed_forward):
    h = x + attention(norm_1(x))
    normed = norm_2(h)
    return normed + feed_forward(normed)


def norms_behind(x, norm_1, attention, norm_2, feed_forward):
    h = x + norm_1(attention(x))
    return h + norm_2(feed_forward(h))


def sandwich(x, norm_1, attention, norm_2, feed_forward):
    h = x + norm_1(attention(norm_1(x)))
    return h + norm_2(feed_forward(norm_2(h)))


def pre_then_post(x, norm_1, attention, norm_2, feed_forward):
    h = x + attention(norm_1(x))
    return norm_2(h + feed_forward(h))


def post_then_pre(x, norm_1, attention, norm_2, feed_forward):
    h = norm_1(x + attention(x))
    return h + feed_forward(norm_2(h))


def branches_cut_off(x, norm_1, attention, norm_2, feed_forward):
    h = x + attention(norm_1(x)).detach()
    return h + feed_forward(norm_2(h)).detach()


def stream_cut_off(x, norm_1, attention, norm_2, feed_forward):
    h = x.detach() + attention(norm_1(x))
    return h + feed_forward(norm_2(h))


def feed_forward_first(x, norm_1, attention, norm_2, feed_forward):
    return two_steps(x, norm_2, feed_forward, norm_1, attention)


def stream_doubled(x, norm_1, attention, norm_2, feed_forward):
    return x + two_steps(x, norm_1, attention, norm_2, feed_forward)


def changes_x(x, norm_1, attention, norm_2, feed_forward):
    x += attention(norm_1(x))
    return x + feed_forward(norm_2(x))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (post_norm, "post-norm"),
        (nothing_added, "replaces the stream"),
        (attention_not_added, "attention found must be added"),
        (feed_forward_not_added, "made must be added to h"),
        (back_to_x, "is lost"),
        (side_by_side, "reads x: it must read h"),
        (to_the_normed_copy, "adds to the normed copy"),
        (first_to_the_normed_copy, "first addition .* normed copy"),
        (second_to_the_normed_copy, "second addition .* normed copy"),
        (norms_behind, "They belong in front"),
        (sandwich, "one behind it"),
        (pre_then_post, "first step is pre-norm and the second post-norm"),
        (post_then_pre, "first step is post-norm and the second pre-norm"),
        (branches_cut_off, "gradient of my_block for x .* no detach"),
        (stream_cut_off, "gradient of my_block for x .* no detach"),
        (lambda *given: two_steps(*given).detach(), "No gradient comes"),
        (feed_forward_first, "came first"),
        (lambda x, n, a, m, f: x + a(n(x)), "step is missing"),
        (lambda x, n, a, m, f: a(n(x)), "what attention found"),
        (lambda x, n, a, m, f: two_steps(x, n, a, lambda h: h, f), "second "),
        (lambda x, n, a, m, f: two_steps(x, lambda h: h, a, m, f), "first "),
        (
            lambda x, n, a, m, f: two_steps(x, torch.clone, a, torch.clone, f),
            "norms are missing",
        ),
        (lambda x, n, a, m, f: two_steps(x, n, a, n, f), "each has its own"),
        (lambda x, n, a, m, f: two_steps(x, m, a, n, f), "swapped"),
        (
            lambda x, n, a, m, f: m(two_steps(x, n, a, m, f)),
            "a norm too many",
        ),
        (stream_doubled, "Two steps"),
        (changes_x, "in place"),
        (overwriting_a_copy, "write h = h"),
        (lambda x, n, a, m, f: (two_steps(x, n, a, m, f), x), "one tensor"),
        (lambda x, n, a, m, f: x[0], "shape"),
        (lambda x, n, a, m, f: None, "return"),
        (lambda x: x, "raised TypeError"),
        (torch.ones(2), "without calling it"),
    ],
)
def test_block_names_the_mistake(answer, words):
    assert_says(words, check_block(answer))
