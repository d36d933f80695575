"""The checkers accept right answers and name what is wrong in others."""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.feed_forward import (
    check_feed_forward,
    check_position_wise,
)
from scratch.nn.activations import gelu_tanh


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def gelu(x):
    return F.gelu(x, approximate="tanh")


# The network


def by_products(x, W_1, b_1, W_2, b_2):
    return gelu_tanh(x @ W_1.T + b_1) @ W_2.T + b_2


def by_torch(x, W_1, b_1, W_2, b_2):
    return F.linear(gelu(F.linear(x, W_1, b_1)), W_2, b_2)


def by_einsum(x, W_1, b_1, W_2, b_2):
    h = gelu(torch.einsum("...d,fd->...f", x, W_1) + b_1)
    return torch.einsum("...f,df->...d", h, W_2) + b_2


def by_neurons(x, W_1, b_1, W_2, b_2):
    y = b_2.expand(x.shape)
    for i in range(len(W_1)):
        y = y + gelu(x @ W_1[i] + b_1[i])[..., None] * W_2[:, i]
    return y


def by_sigmoid(x, W_1, b_1, W_2, b_2):
    z = x @ W_1.T + b_1
    twice = 2 * (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)
    return (z * twice.sigmoid()) @ W_2.T + b_2


@pytest.mark.parametrize(
    "answer", [by_products, by_torch, by_einsum, by_neurons, by_sigmoid]
)
def test_feed_forward_accepts(answer):
    verdict = check_feed_forward(answer)
    assert verdict, verdict.message


def bent_by(bend, end=lambda y: y):
    def answer(x, W_1, b_1, W_2, b_2):
        return end(bend(x @ W_1.T + b_1) @ W_2.T + b_2)

    return answer


def no_first_bias(x, W_1, b_1, W_2, b_2):
    return gelu(x @ W_1.T) @ W_2.T + b_2


def no_last_bias(x, W_1, b_1, W_2, b_2):
    return gelu(x @ W_1.T + b_1) @ W_2.T


def no_bias(x, W_1, b_1, W_2, b_2):
    return gelu(x @ W_1.T) @ W_2.T


def late_bias(x, W_1, b_1, W_2, b_2):
    return (gelu(x @ W_1.T) + b_1) @ W_2.T + b_2


def added(*inputs):
    return inputs[0] + by_torch(*inputs)


def not_turned(x, W_1, b_1, W_2, b_2):
    return gelu(x @ W_1 + b_1) @ W_2 + b_2


def summed(*inputs):
    y = by_torch(*inputs)
    return y.sum(dim=-2) if y.ndim > 1 else y


def by_exponentials(x, W_1, b_1, W_2, b_2):
    z = x @ W_1.T + b_1
    power = (2 * (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)).exp()
    return (z * power / (power + 1)) @ W_2.T + b_2


def in_place(x, W_1, b_1, W_2, b_2):
    x += 1
    return by_torch(x - 1, W_1, b_1, W_2, b_2)


def in_double(*inputs):
    return by_torch(*(part.double() for part in inputs))


@torch.no_grad()
def cut_off(*inputs):
    return by_torch(*inputs)


def of_lists(*inputs):
    return by_torch(*inputs).tolist()


def detached(k):
    """The right answer, with one of its inputs cut off."""
    return lambda *inputs: by_torch(
        *(part.detach() if i == k else part for i, part in enumerate(inputs))
    )


def tanh_form(z, root=(2 / torch.pi) ** 0.5, cubic=0.044715):
    return 0.5 * z * (1 + (root * (z + cubic * z**3)).tanh())


def tanh_cut_off(z):
    inner = (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)
    return 0.5 * z * (1 + inner.tanh().detach())


def clamped(z):
    return gelu(z).clamp(max=1000)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        *(
            (detached(k), f"no way back to {name}")
            for k, name in enumerate(("x", "W_1", "b_1", "W_2", "b_2"))
        ),
        (bent_by(tanh_cut_off), "gradient for x.*cut off"),
        (bent_by(lambda z: tanh_form(z, cubic=0.0447)), "float64 is off"),
        (bent_by(lambda z: tanh_form(z, root=0.7979)), "float64"),
        (bent_by(clamped), "hundred thousand"),
        (in_double, "must keep torch.float32"),
        (bent_by(lambda z: z), "apply GELU between"),
        (bent_by(torch.relu), "This is ReLU"),
        (bent_by(F.gelu), "normal distribution"),
        (bent_by(F.silu), "relative of GELU"),
        (bent_by(gelu, gelu), "there is no bend"),
        (bent_by(lambda z: z, gelu), "not behind the second"),
        (no_first_bias, "first bias is missing"),
        (no_last_bias, "second bias is missing"),
        (no_bias, "bend are right. The biases are missing too"),
        (late_bias, "before the bend"),
        (added, "the block's work"),
        (not_turned, "raised RuntimeError.*x @ W_1.T has shape"),
        (summed, "sums over all tokens"),
        (by_exponentials, "torch.tanh stays finite"),
        (in_place, "in place"),
        (cut_off, "no way back"),
        (of_lists, "no way back"),
        (lambda *inputs: None, "return"),
        (torch.ones(2), "without calling it"),
    ],
)
def test_feed_forward_names_the_mistake(answer, words):
    assert_says(words, check_feed_forward(answer))


# The test for position-wise functions


def one_at_a_time(f, x):
    alone = torch.cat([f(x[t : t + 1]) for t in range(len(x))])
    return torch.allclose(f(x), alone, atol=1e-5)


def token_for_token(f, x):
    return torch.allclose(f(x), torch.stack([f(x_t) for x_t in x]), atol=1e-5)


def permute_and_change(f, x):
    order = torch.arange(len(x)).flip(0)
    if not torch.allclose(f(x[order]), f(x)[order], atol=1e-5):
        return False
    for t in range(len(x)):
        y = x.clone()
        y[t] += 1
        moved = (f(y) - f(x)).abs().amax(dim=-1) > 1e-5
        moved[t] = False
        if moved.any():
            return False
    return True


def as_a_tensor(f, x):
    return torch.tensor(one_at_a_time(f, x))


def as_numpy(f, x):
    return np.all([one_at_a_time(f, x)])


def on_a_longer_text(f, x):
    return one_at_a_time(f, torch.cat([x, x]))


def in_float64(f, x):
    return one_at_a_time(f, x.double())


@pytest.mark.parametrize(
    "answer",
    [
        one_at_a_time,
        token_for_token,
        permute_and_change,
        as_a_tensor,
        as_numpy,
        on_a_longer_text,
        in_float64,
    ],
)
def test_position_wise_accepts(answer):
    verdict = check_position_wise(answer)
    assert verdict, verdict.message


def permute_only(f, x):
    order = torch.arange(len(x)).flip(0)
    return torch.allclose(f(x[order]), f(x)[order], atol=1e-5)


def moves(f, x, changed, watched):
    y = x.clone()
    y[changed] += 1
    return not torch.allclose(f(y)[watched], f(x)[watched], atol=1e-5)


def forward_only(f, x):
    # the last token changed, the ones before watched
    return not moves(f, x, -1, slice(0, -1))


def backward_only(f, x):
    return not moves(f, x, 0, slice(1, None))


def change_only(f, x):
    return forward_only(f, x) and backward_only(f, x)


def one_token_only(f, x):
    return torch.allclose(f(x)[3], f(x[3:4])[0], atol=1e-5)


def loosely(f, x):
    alone = torch.cat([f(x[t : t + 1]) for t in range(len(x))])
    return torch.allclose(f(x), alone, atol=0.5)


def by_means(f, x):
    alone = torch.cat([f(x[t : t + 1]) for t in range(len(x))])
    return torch.allclose(f(x).mean(-1), alone.mean(-1), atol=1e-5)


def exactly(f, x):
    return f(x) is x


def in_place_test(f, x):
    x[0] += 1
    return True


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (permute_only, "average over all tokens, got True. Permuting"),
        (forward_only, "earlier tokens, got True. A later token"),
        (backward_only, "that follows, got True. An earlier token"),
        (change_only, "depends on the place, got True. Changing one"),
        (one_token_only, "added to token . for|every token"),
        (loosely, "got True"),
        (by_means, "hundredth.*a small leak"),
        (lambda f, x: (False, "a reason"), "got a tuple"),
        (lambda f, x: "False", "got a str"),
        (exactly, "True for a product.*tolerance"),
        (in_place_test, "in place"),
        (lambda f, x: None, "return"),
        (lambda f, x: f(x) == f(x), "all"),
        (lambda f, x: True, "average over all tokens, got True"),
        (lambda f, x: f(x.T), "raised RuntimeError"),
        (True, "without calling it"),
    ],
)
def test_position_wise_names_the_mistake(answer, words):
    assert_says(words, check_position_wise(answer))
