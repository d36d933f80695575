"""Each token goes alone through two layers, as in torch's Sequential."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from scratch.llm.feed_forward import FeedForward

B, T, D, D_FF = 2, 7, 5, 13

each_fused = pytest.mark.parametrize("fused", [True, False])
each_leading = pytest.mark.parametrize(
    "leading", [(), (1,), (7,), (2, 3), (1, 1), (0,), (2, 0)], ids=str
)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make(d_model=D, d_ff=D_FF, **options):
    """Return a network in float64 whose biases are not all 0."""
    network = FeedForward(d_model=d_model, d_ff=d_ff, **options)
    with torch.no_grad():
        for linear in (network.widen, network.narrow):
            linear.bias.normal_()
    return network.double()


def both():
    """Return a fused and an explicit network with the same parameters."""
    fused, explicit = make(), make(fused=False)
    explicit.load_state_dict(fused.state_dict())
    return fused, explicit


def sequential(ours):
    """Return torch's network with the parameters of ours."""
    d_ff, d_model = ours.widen.weight.shape
    reference = nn.Sequential(
        nn.Linear(d_model, d_ff),
        nn.GELU(approximate="tanh"),
        nn.Linear(d_ff, d_model),
    ).double()
    values = [parameter.detach() for parameter in ours.parameters()]
    names = reference.state_dict().keys()
    reference.load_state_dict(dict(zip(names, values, strict=True)))
    return reference


# Reference


@each_fused
@each_leading
def test_output_and_slopes_equal_torch(leading, fused):
    ours = make(fused=fused)
    reference = sequential(ours)
    x = random(*leading, D).requires_grad_()
    grad_output = random(*leading, D)
    output, expected = ours(x), reference(x)
    assert output.shape == x.shape
    assert_close(output, expected)
    slopes, expected_slopes = (
        torch.autograd.grad(y, (x, *network.parameters()), grad_output)
        for y, network in ((output, ours), (expected, reference))
    )
    assert_close(slopes, expected_slopes)


def test_fused_and_explicit_are_equal_in_float32():
    fused, explicit = (network.float() for network in both())
    x = 3 * torch.randn(B, T, D)
    assert fused(x).dtype == torch.float32
    assert_close(fused(x), explicit(x))


@each_fused
def test_the_gradient_is_that_of_finite_differences(fused):
    network = make(fused=fused)
    names, values = zip(*network.named_parameters(), strict=True)

    def run(x, *values):
        parameters = dict(zip(names, values, strict=True))
        return functional_call(network, parameters, x)

    assert len(names) == 4
    assert gradcheck(run, (random(2, 3, D).requires_grad_(), *values))


# Worked example


@each_fused
def test_one_number_by_hand(fused):
    # Two neurons see x and -x; with gelu(x) - gelu(-x) = x, the output is
    # 3 x + 1, a straight line made of two bends.
    network = make(d_model=1, d_ff=2, fused=fused)
    values = ([[1], [-1]], [0, 0], [[3, -3]], [1])
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    x = torch.tensor([[-2], [0], [1]], dtype=torch.float64)
    assert_close(network(x), 3 * x + 1)
    # gelu(1) and gelu(-1), by a pocket calculator
    said = torch.tensor([0.8412, -0.1588], dtype=torch.float64)
    assert_close(network.hidden(x)[2], said, rtol=0, atol=5e-5)


# Properties


@each_fused
def test_hidden_is_what_the_second_layer_reads(fused):
    network, x = make(fused=fused), random(B, T, D)
    hidden = network.hidden(x)
    assert hidden.shape == (B, T, D_FF)
    z = x @ network.widen.weight.T + network.widen.bias
    assert_close(hidden, F.gelu(z, approximate="tanh"))
    assert_close(network.narrow(hidden), network(x))


@given(st.permutations(range(T)))
def test_permuted_tokens_give_permuted_outputs(order):
    for network in both():
        x = random(B, T, D)
        assert_close(network(x[:, order]), network(x)[:, order])


@each_fused
def test_each_token_is_worked_on_alone(fused):
    network, x = make(fused=fused), random(B, T, D)
    alone = [network(x[i, t]) for i in range(B) for t in range(T)]
    assert_close(network(x), torch.stack(alone).reshape(B, T, D))
    before = network(x)
    x[1, 3] += 1
    moved = (network(x) != before).any(dim=-1)
    assert moved.nonzero().tolist() == [[1, 3]]


@each_fused
def test_without_weights_behind_the_bend_only_the_bias_is_left(fused):
    network = make(fused=fused)
    with torch.no_grad():
        network.narrow.weight.zero_()
    output = network(random(B, T, D))
    assert torch.equal(output, network.narrow.bias.expand(B, T, D))


@each_fused
def test_the_output_is_a_sum_over_neurons(fused):
    network, x = make(fused=fused), random(B, T, D)
    hidden = network.hidden(x)
    total = network.narrow.bias.expand(B, T, D)
    for i in range(D_FF):
        direction = network.narrow.weight[:, i]
        total = total + hidden[..., i : i + 1] * direction
    assert_close(network(x), total)


@pytest.mark.parametrize("d_model", [1, 3, 7])
def test_the_hidden_width_is_four_times_the_model_width(d_model):
    network = FeedForward(d_model=d_model)
    shapes = {k: tuple(v.shape) for k, v in network.named_parameters()}
    assert shapes == {
        "widen.weight": (4 * d_model, d_model),
        "widen.bias": (4 * d_model,),
        "narrow.weight": (d_model, 4 * d_model),
        "narrow.bias": (d_model,),
    }


def test_torch_bends_unless_told_otherwise(monkeypatch):
    calls = []
    kernel = F.gelu

    def counted(x, **options):
        calls.append(options)
        return kernel(x, **options)

    monkeypatch.setattr(F, "gelu", counted)
    fused, explicit = both()
    x = random(B, T, D)
    expected = explicit(x)
    assert calls == []
    assert_close(fused(x), expected)
    assert calls == [{"approximate": "tanh"}]


@each_fused
def test_huge_numbers_stay_numbers(fused):
    network, x = make(fused=fused).float(), 1e4 * torch.randn(B, T, D)
    x.requires_grad_()
    output = network(x)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_generator_repeats_the_weights_and_leaves_torch_alone():
    state = torch.get_rng_state()
    first, again, other = (
        FeedForward(d_model=D, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.widen.weight, other.widen.weight)
    assert not torch.equal(first.narrow.weight, other.narrow.weight)


@each_fused
def test_it_works_without_numbers(fused):
    with torch.device("meta"):
        network = FeedForward(d_model=D, fused=fused)
    output = network(torch.empty(B, T, D, device="meta"))
    assert output.device.type == "meta"
    assert output.shape == (B, T, D)


# Misuse


@pytest.mark.parametrize(
    ("d_model", "d_ff", "shown"), [(0, None, 0), (5, 0, 0), (-2, 3, 3)]
)
def test_sizes_below_one_are_named(d_model, d_ff, shown):
    message = (
        "d_model and d_ff must be at least 1, "
        f"got d_model={d_model} and d_ff={shown}"
    )
    with pytest.raises(ValueError, match=message):
        FeedForward(d_model=d_model, d_ff=d_ff)


@pytest.mark.parametrize("shape", [(), (4,), (2, 7, 13), (5, 1)], ids=str)
def test_tokens_of_the_wrong_width_are_named(shape):
    message = rf"x must have shape \(\.\.\., 5\), got \({str(shape)[1:-1]}\)"
    network = make()
    for use in (network, network.hidden):
        with pytest.raises(ValueError, match=message):
            use(random(*shape))
