"""Each backward returns the gradients of torch and of finite differences."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from scratch.nn import activations, backpropagation
from scratch.nn.activations import relu, sigmoid, softmax, tanh
from scratch.nn.backpropagation import (
    DERIVATIVES,
    activation_backward,
    attention_backward,
    layer_norm_backward,
    linear_backward,
    mlp_backward,
    numerical_gradient,
    softmax_backward,
)
from scratch.nn.forward_propagation import MLP, Linear
from scratch.nn.losses import cross_entropy

TORCHS = {
    activations.sigmoid: torch.sigmoid,
    activations.tanh: torch.tanh,
    activations.relu: torch.relu,
    activations.leaky_relu: F.leaky_relu,
    activations.gelu: F.gelu,
    activations.gelu_tanh: functools.partial(F.gelu, approximate="tanh"),
}
LEADING = [(), (1,), (7,), (2, 7), (2, 3, 7)]
EPS = torch.finfo(torch.float64).eps

each_activation = pytest.mark.parametrize(
    "activation", DERIVATIVES, ids=lambda f: f.__name__
)
each_leading = pytest.mark.parametrize("leading", LEADING, ids=str)
sizes = st.integers(1, 5)


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def grads_by_torch(f, grad_output, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(f(*inputs), inputs, grad_output)


def grads_by_trying(f, grad_output, *inputs):
    """Numerical gradients of the sum of grad_output times the output."""

    def grad_along(i):
        def weighted(moved):
            output = f(*inputs[:i], moved, *inputs[i + 1 :])
            return (grad_output * output).sum()

        return numerical_gradient(weighted, inputs[i])

    return [grad_along(i) for i in range(len(inputs))]


def assert_grads(grads, f, grad_output, *inputs):
    """Hold gradients against torch's and against finite differences."""
    by_torch = grads_by_torch(f, grad_output, *inputs)
    by_trying = grads_by_trying(f, grad_output, *inputs)
    for grad, x, one, other in zip(
        grads, inputs, by_torch, by_trying, strict=True
    ):
        assert grad.shape == x.shape
        assert_close(grad, one)
        assert_close(grad, other)


# numerical_gradient


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3), (0,)])
def test_numerical_gradient_equals_torch(shape):
    x, weight = randn(*shape), randn(*shape)

    def f(x):
        return (weight * x.sin() * x.exp()).sum()

    ours = numerical_gradient(f, x)
    assert ours.shape == x.shape
    assert_close(ours, torch.autograd.functional.jacobian(f, x))


def test_numerical_gradient_sees_numbers_that_act_together():
    x = randn(3, 5)

    def f(x):
        return x.prod() + x.logsumexp(0).sum() + x[0] @ x[1]

    expected = torch.autograd.functional.jacobian(f, x)
    assert_close(numerical_gradient(f, x), expected)


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.mT,
        lambda x: x[::2, 1:],
        lambda x: x[:, :1].expand(3, 4),
        lambda x: x.requires_grad_(),
    ],
)
def test_numerical_gradient_takes_any_layout_and_leaves_x_alone(turn):
    x = turn(randn(3, 5))
    before = x.detach().clone()
    weight = randn(*x.shape)
    ours = numerical_gradient(lambda x: (weight * x**3).sum(), x)
    assert_close(ours, 3 * weight * before**2)
    assert torch.equal(x, before)
    assert not ours.requires_grad


def test_numerical_gradient_leaves_x_alone_where_the_function_does_not():
    x = double([1.0, 2.0])
    ours = numerical_gradient(lambda x: x.mul_(x).sum(), x)
    assert_close(ours, double([2.0, 4.0]))
    assert x.tolist() == [1, 2]


def test_numerical_gradient_is_not_recorded_by_autograd():
    weight = randn(3).requires_grad_()
    ours = numerical_gradient(lambda x: x @ weight, randn(3))
    assert not ours.requires_grad
    assert_close(ours, weight.detach())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_number_may_have_any_shape(shape):
    x = double([3.0, 4.0])
    ours = numerical_gradient(lambda x: (x @ x).reshape(shape), x)
    assert_close(ours, 2 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_default_step_serves_both_types(dtype):
    x = torch.linspace(0.5, 1.5, 7, dtype=dtype)
    ours = numerical_gradient(lambda x: x.exp().sum(), x)
    assert ours.dtype == dtype
    # Either error is about eps^(2/3), a little more for seven numbers.
    bound = 50 * torch.finfo(dtype).eps ** (2 / 3)
    assert (ours - x.exp()).abs().max() < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_default_step_is_the_cube_root_of_the_rounding_error(dtype):
    tried = []

    def f(x):
        tried.append(x.item())
        return x

    numerical_gradient(f, torch.zeros((), dtype=dtype))
    delta = torch.finfo(dtype).eps ** (1 / 3)
    assert_close(tried, [delta, -delta], rtol=1e-6, atol=0)


def test_two_evaluations_per_number():
    n_calls = 0

    def f(x):
        nonlocal n_calls
        n_calls += 1
        return x.sum()

    numerical_gradient(f, randn(3, 5))
    assert n_calls == 2 * 15


def test_the_error_shrinks_with_the_square_of_the_step():
    x = double(1.0)
    errors = [
        abs(numerical_gradient(torch.exp, x, delta=delta) - math.e)
        for delta in (0.1, 0.01, 0.001)
    ]
    # e (sinh(delta) / delta - 1) = e delta^2 / 6 + ...
    assert_close(errors[0], double(math.e * 0.01 / 6), rtol=1e-3, atol=0)
    assert_close(errors[0] / errors[1], double(100.0), rtol=1e-3, atol=0)
    assert_close(errors[1] / errors[2], double(100.0), rtol=1e-3, atol=0)


def test_the_default_step_beats_one_a_thousand_times_smaller_or_larger():
    x = torch.linspace(0.5, 1.5, 101, dtype=torch.float64)
    default = EPS ** (1 / 3)

    def error(delta):
        ours = numerical_gradient(lambda x: x.exp().sum(), x, delta=delta)
        return (ours - x.exp()).square().mean().sqrt()

    assert error(default / 1000) > 10 * error(default)
    assert error(default * 1000) > 10 * error(default)


@given(a=st.floats(-5, 5), b=st.floats(-5, 5), c=st.floats(-5, 5))
def test_a_parabola_has_no_error_of_the_step(a, b, c):
    x = double(c)
    ours = numerical_gradient(lambda x: a * x * x + b * x, x, delta=0.5)
    assert_close(ours, 2 * a * x + b)


# linear_backward


@each_leading
def test_linear_backward_equals_torch_and_finite_differences(leading):
    x, weight, bias = randn(*leading, 5), randn(3, 5), randn(3)
    grad_output = randn(*leading, 3)
    grads = linear_backward(grad_output, x, weight)
    assert_grads(grads, F.linear, grad_output, x, weight, bias)


def test_linear_backward_of_one_example_is_an_outer_product():
    x, weight = double([1.0, 2.0]), double([[3.0, 4.0], [5.0, 6.0]])
    grad_x, grad_weight, grad_bias = linear_backward(
        double([10.0, -1.0]), x, weight
    )
    assert grad_x.tolist() == [25, 34]
    assert grad_weight.tolist() == [[10, 20], [-1, -2]]
    assert grad_bias.tolist() == [10, -1]


def test_linear_backward_adds_up_over_a_batch():
    x, weight, grad_output = randn(7, 5), randn(3, 5), randn(7, 3)
    grad_x, grad_weight, grad_bias = linear_backward(grad_output, x, weight)
    rows = [
        linear_backward(g, row, weight)
        for g, row in zip(grad_output, x, strict=True)
    ]
    assert_close(grad_x, torch.stack([row[0] for row in rows]))
    assert_close(grad_weight, sum(row[1] for row in rows))
    assert_close(grad_bias, sum(row[2] for row in rows))


def test_linear_backward_of_no_example_is_zero():
    grad_x, grad_weight, grad_bias = linear_backward(
        randn(0, 3), randn(0, 5), randn(3, 5)
    )
    assert grad_x.shape == (0, 5)
    assert torch.equal(grad_weight, torch.zeros(3, 5).double())
    assert torch.equal(grad_bias, torch.zeros(3).double())


# activation_backward


@each_leading
@each_activation
def test_activation_backward_equals_torch(activation, leading):
    x, grad_output = 2 * randn(*leading, 5), randn(*leading, 5)
    grad = activation_backward(grad_output, x, DERIVATIVES[activation])
    (expected,) = grads_by_torch(TORCHS[activation], grad_output, x)
    assert_close(grad, expected)


@each_activation
def test_finite_differences_confirm_each_derivative(activation):
    x = torch.linspace(-4, 4, 12, dtype=torch.float64)  # 0 is not among them
    grad_output = randn(12)
    grad = activation_backward(grad_output, x, DERIVATIVES[activation])
    assert_grads([grad], activation, grad_output, x)


def test_every_derivative_of_the_activations_is_listed():
    listed = {f.__name__: slope.__name__ for f, slope in DERIVATIVES.items()}
    known = {
        name.removesuffix("_derivative"): name
        for name in vars(activations)
        if name.endswith("_derivative") and name != "step_derivative"
    }
    assert listed == known
    assert set(DERIVATIVES) == set(TORCHS)


# softmax_backward


@each_leading
def test_softmax_backward_equals_torch_and_finite_differences(leading):
    x, grad_output = 2 * randn(*leading, 5), randn(*leading, 5)
    probs = softmax(x, dim=-1)
    f = functools.partial(torch.softmax, dim=-1)
    assert_grads([softmax_backward(grad_output, probs)], f, grad_output, x)


def test_softmax_backward_is_the_jacobian_times_the_gradient():
    x, grad_output = randn(2, 3, 5), randn(2, 3, 5)
    jacobian = activations.softmax_jacobian(x)
    expected = (jacobian.mT @ grad_output.unsqueeze(-1)).squeeze(-1)
    grad = softmax_backward(grad_output, softmax(x, dim=-1))
    assert_close(grad, expected)


@given(n=st.integers(1, 7), scale=st.floats(0, 100), shift=st.floats(-9, 9))
@example(n=1, scale=0.0, shift=0.0)
@example(n=7, scale=1e4, shift=0.0)
def test_gradients_of_softmax_sum_to_zero_and_ignore_a_shift(n, scale, shift):
    probs, grad_output = softmax(scale * randn(3, n), dim=-1), randn(3, n)
    grad = softmax_backward(grad_output, probs)
    assert_close(grad.sum(dim=-1), torch.zeros(3).double())
    assert_close(softmax_backward(grad_output + shift, probs), grad)


def test_softmax_backward_gives_nothing_to_what_has_no_share():
    probs = double([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    grad = softmax_backward(randn(2, 3), probs)
    assert grad[0, 1] == 0
    assert_close(grad[0, 0], -grad[0, 2])
    assert grad[0, 0] != 0
    assert grad[1].tolist() == [0, 0, 0]


# mlp_backward


def mlp_by_torch(mlp, x, labels):
    """Loss and gradients with nothing but torch."""
    parameters = {
        name: p.detach().clone().requires_grad_()
        for name, p in mlp.named_parameters()
    }
    n_layers = len(mlp.layers)
    h = x
    for i in range(n_layers):
        weight = parameters[f"layers.{i}.weight"]
        h = F.linear(h, weight, parameters.get(f"layers.{i}.bias"))
        h = TORCHS[mlp.activation](h) if i < n_layers - 1 else h
    loss = F.cross_entropy(h, labels)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in parameters.items()}


def random_mlp(sizes, activation, *, bias=True):
    mlp = MLP(sizes, activation=activation).double()
    for i, layer in enumerate(mlp.layers):
        d_out, d_in = layer.weight.shape
        mlp.layers[i] = Linear(d_in=d_in, d_out=d_out, bias=bias).double()
        if bias:  # zeros would hide a bias that is left out
            mlp.layers[i].bias.data = randn(d_out)
    return mlp


def assert_mlp_grads(mlp, x, labels):
    loss, grads = mlp_backward(mlp, x, labels)
    expected_loss, expected = mlp_by_torch(mlp, x, labels)
    assert loss.shape == ()
    assert_close(loss, expected_loss)
    assert_close(grads, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
@each_activation
def test_mlp_backward_equals_torch(activation, n_layers, bias):
    sizes = [5, 11, 7, 2, 3]
    sizes = [*sizes[:n_layers], sizes[-1]]
    mlp = random_mlp(sizes, activation, bias=bias)
    x, labels = randn(13, 5), torch.arange(13) % 3
    _, grads = mlp_backward(mlp, x, labels)
    assert set(grads) == {name for name, _ in mlp.named_parameters()}
    assert len(grads) == n_layers * (2 if bias else 1)
    assert_mlp_grads(mlp, x, labels)


@each_activation
def test_finite_differences_confirm_mlp_backward(activation):
    mlp = random_mlp([2, 5, 3], activation)
    x, labels = randn(7, 2), torch.arange(7) % 3
    _, grads = mlp_backward(mlp, x, labels)
    for name, parameter in mlp.named_parameters():
        start = parameter.data

        def loss(moved, parameter=parameter):
            parameter.data = moved
            return cross_entropy(mlp(x), labels)

        assert_close(grads[name], numerical_gradient(loss, start))
        parameter.data = start


def test_mlp_backward_allows_biases_in_some_layers_only():
    mlp = random_mlp([5, 7, 3], tanh)
    mlp.layers[1] = Linear(d_in=7, d_out=3, bias=False).double()
    x, labels = randn(11, 5), torch.arange(11) % 3
    assert_mlp_grads(mlp, x, labels)
    _, grads = mlp_backward(mlp, x, labels)
    assert set(grads) == {
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
    }


def test_mlp_backward_of_a_batch_of_one_and_of_the_mean_of_many():
    mlp = random_mlp([5, 7, 3], relu)
    x, labels = randn(11, 5), torch.arange(11) % 3
    assert_mlp_grads(mlp, x[:1], labels[:1])
    loss, grads = mlp_backward(mlp, x, labels)
    parts = [mlp_backward(mlp, x[[i]], labels[[i]]) for i in range(11)]
    assert_close(loss, sum(part for part, _ in parts) / 11)
    for name, grad in grads.items():
        assert_close(grad, sum(part[name] for _, part in parts) / 11)


def test_mlp_backward_leaves_no_trace():
    mlp = random_mlp([5, 7, 3], sigmoid)
    x, labels = randn(11, 5).requires_grad_(), torch.arange(11) % 3
    before = {name: p.clone() for name, p in mlp.named_parameters()}
    loss, grads = mlp_backward(mlp, x, labels)
    assert not loss.requires_grad
    assert not any(grad.requires_grad for grad in grads.values())
    assert x.grad is None
    for name, p in mlp.named_parameters():
        assert p.grad is None
        assert torch.equal(p, before[name])


def test_steps_against_the_gradient_lower_the_loss():
    mlp = random_mlp([2, 11, 2], tanh)
    x = randn(23, 2)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    losses = []
    for _ in range(200):
        loss, grads = mlp_backward(mlp, x, labels)
        losses.append(loss.item())
        for name, p in mlp.named_parameters():
            p.data -= 0.1 * grads[name]
    assert losses[-1] < 0.7 * losses[0]


# layer_norm_backward


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@each_leading
def test_layer_norm_backward_equals_torch(leading, eps):
    x, weight, bias = 3 * randn(*leading, 5) + 1, randn(5), randn(5)
    grad_output = randn(*leading, 5)

    def f(x, weight, bias):
        return F.layer_norm(x, (5,), weight, bias, eps)

    grads = layer_norm_backward(grad_output, x, weight, eps=eps)
    assert_grads(grads, f, grad_output, x, weight, bias)


def test_layer_norm_backward_has_the_eps_of_torch():
    x, weight, grad_output = 0.01 * randn(3, 5), randn(5), randn(3, 5)
    grads = layer_norm_backward(grad_output, x, weight)
    expected = grads_by_torch(
        lambda x, weight: nn.functional.layer_norm(x, (5,), weight),
        grad_output,
        x,
        weight,
    )
    assert_close(grads[:2], expected)


@given(n=sizes, d=st.integers(1, 7), eps=st.floats(1e-6, 10))
@example(n=1, d=1, eps=1e-5)
@example(n=1, d=2, eps=1e-6)
def test_the_gradient_of_layer_norm_undoes_a_shift_and_a_scale(n, d, eps):
    x, weight, grad_output = randn(n, d), randn(d), randn(n, d)
    grad_x, _, _ = layer_norm_backward(grad_output, x, weight, eps=eps)
    zeros = torch.zeros(n, dtype=torch.float64)
    assert_close(grad_x.sum(dim=-1), zeros, atol=1e-6, rtol=0)
    # Along the normed numbers only what eps lets through is left.
    variance = x.var(dim=-1, correction=0)
    std = (variance + eps).sqrt()
    normed = (x - x.mean(dim=-1, keepdim=True)) / std.unsqueeze(-1)
    g_along = (grad_output * weight * normed).sum(dim=-1)
    left = g_along * eps / (variance + eps) / std
    assert_close((grad_x * normed).sum(dim=-1), left, atol=1e-6, rtol=1e-6)


def test_layer_norm_of_equal_numbers_has_finite_gradients():
    x, weight = torch.full((2, 3), 7.0), torch.ones(3)
    grad_output = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    grad_x, grad_weight, grad_bias = layer_norm_backward(
        grad_output, x, weight
    )
    expected = grad_output - grad_output.mean(dim=-1, keepdim=True)
    assert_close(grad_x, expected / math.sqrt(1e-5))
    assert grad_weight.tolist() == [0, 0, 0]
    assert grad_bias.tolist() == [1, 2, 8]


def test_layer_norm_backward_hands_out_no_tensor_of_the_caller():
    grad_output, x = torch.ones(3), torch.randn(3)
    *_, grad_bias = layer_norm_backward(grad_output, x, torch.ones(3))
    grad_bias += 1
    assert grad_output.tolist() == [1, 1, 1]


# attention_backward


def causal(T_q, T_k):
    return torch.ones(T_q, T_k, dtype=torch.bool).tril(T_k - T_q)


def attend(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("leading", [(), (1,), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("T_q, T_k", [(5, 5), (3, 5), (1, 5), (1, 1)])
@pytest.mark.parametrize("d_head, d_value", [(7, 7), (7, 2), (1, 11)])
def test_attention_backward_equals_torch_and_finite_differences(
    leading, T_q, T_k, d_head, d_value, masked
):
    q, k = randn(*leading, T_q, d_head), randn(*leading, T_k, d_head)
    v = randn(*leading, T_k, d_value)
    grad_output = randn(*leading, T_q, d_value)
    mask = causal(T_q, T_k) if masked else None
    f = functools.partial(attend, mask=mask)
    grads = attention_backward(grad_output, q, k, v, mask)
    assert_grads(grads, f, grad_output, q, k, v)


def test_each_sequence_may_have_a_mask_of_its_own():
    q, k, v = randn(2, 3, 5, 7), randn(2, 3, 5, 7), randn(2, 3, 5, 7)
    grad_output = randn(2, 3, 5, 7)
    mask = torch.rand(2, 1, 5, 5) < 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    f = functools.partial(attend, mask=mask)
    grads = attention_backward(grad_output, q, k, v, mask)
    assert_grads(grads, f, grad_output, q, k, v)


def test_a_mask_of_ones_changes_nothing():
    q, k, v, grad_output = randn(4, 2, 5, 7)
    everything = torch.ones(5, 5, dtype=torch.bool)
    assert_close(
        attention_backward(grad_output, q, k, v, everything),
        attention_backward(grad_output, q, k, v),
    )


def test_what_is_not_seen_gets_no_gradient():
    q, k, v, grad_output = randn(4, 2, 5, 7)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:, 3] = False
    _, grad_k, grad_v = attention_backward(grad_output, q, k, v, mask)
    assert (grad_k[:, 3] == 0).all()
    assert (grad_v[:, 3] == 0).all()
    assert (grad_k[:, :3] != 0).all()


@given(T_q=sizes, T_k=sizes, d_head=sizes)
@example(T_q=1, T_k=1, d_head=1)
def test_a_shift_of_all_keys_moves_no_weight(T_q, T_k, d_head):
    """Gradients along the keys sum to 0, those along v to grad_output's."""
    q, k = randn(2, T_q, d_head), randn(2, T_k, d_head)
    v, grad_output = randn(2, T_k, 3), randn(2, T_q, 3)
    _, grad_k, grad_v = attention_backward(grad_output, q, k, v)
    zeros = torch.zeros(2, d_head, dtype=torch.float64)
    assert_close(grad_k.sum(dim=-2), zeros)
    assert_close(grad_v.sum(dim=-2), grad_output.sum(dim=-2))


# All of them


class ByHand(torch.autograd.Function):
    """Softmax attention, a layer norm and a linear layer, backward by us."""

    @staticmethod
    def forward(ctx, q, k, v, weight, matrix):
        hidden = attend(q, k, v)
        normed = F.layer_norm(hidden, hidden.shape[-1:], weight)
        ctx.save_for_backward(q, k, v, weight, matrix, hidden, normed)
        return sigmoid(normed @ matrix.T)

    @staticmethod
    def backward(ctx, grad_output):
        q, k, v, weight, matrix, hidden, normed = ctx.saved_tensors
        sums = normed @ matrix.T
        slope = DERIVATIVES[sigmoid]
        grad = activation_backward(grad_output, sums, slope)
        grad, grad_matrix, _ = linear_backward(grad, normed, matrix)
        grad, grad_weight, _ = layer_norm_backward(grad, hidden, weight)
        grads = attention_backward(grad, q, k, v)
        return *grads, grad_weight, grad_matrix


def test_gradcheck_confirms_all_in_a_row():
    shapes = [(2, 3, 5), (2, 7, 5), (2, 7, 11), (11,), (2, 11)]
    inputs = [randn(*shape).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(ByHand.apply, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_types_are_kept_and_arguments_not_changed(dtype):
    x, grad = torch.randn(2, 3, 5, dtype=dtype), torch.randn(2, 3, 5).to(dtype)
    weight, square = torch.randn(5, dtype=dtype), torch.eye(5, dtype=dtype)
    before = [x.clone(), grad.clone(), weight.clone()]
    results = [
        *linear_backward(grad, x, square),
        activation_backward(grad, x, DERIVATIVES[relu]),
        softmax_backward(grad, x),
        *layer_norm_backward(grad, x, weight),
        *attention_backward(grad, x, x, x, causal(3, 3)),
    ]
    assert {result.dtype for result in results} == {dtype}
    for after, old in zip((x, grad, weight), before, strict=True):
        assert torch.equal(after, old)


# Misuse


def test_numerical_gradient_wants_floats():
    message = r"x must be a tensor of floats, got torch\.int64"
    with pytest.raises(TypeError, match=message):
        numerical_gradient(torch.sum, torch.tensor([1, 2]))


@pytest.mark.parametrize("delta", [0, -1e-3, math.nan])
def test_numerical_gradient_wants_a_step_forward(delta):
    with pytest.raises(
        ValueError, match=f"delta must be positive, got {delta}"
    ):
        numerical_gradient(torch.sum, randn(2), delta=delta)


def test_numerical_gradient_wants_a_single_number():
    message = r"function must return a single number, got shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        numerical_gradient(torch.exp, randn(2, 3))


def test_linear_backward_names_the_shape_that_does_not_fit():
    message = r"x must have shape \(7, 5\), got \(7, 3\)"
    with pytest.raises(ValueError, match=message):
        linear_backward(randn(7, 3), randn(7, 3), randn(3, 5))
    message = r"grad_output must have shape \(7, 3\), got \({}\)"
    for wrong, shape in [((7, 5), "7, 5"), ((1, 3), "1, 3"), ((3,), "3,")]:
        with pytest.raises(ValueError, match=message.format(shape)):
            linear_backward(randn(*wrong), randn(7, 5), randn(3, 5))


@pytest.mark.parametrize("wrong", [(3,), (1, 3), (2, 1), (3, 2)])
def test_a_gradient_of_another_shape_is_refused(wrong):
    message = r"grad_output must have shape \(2, 3\), got \({}\)"
    message = message.format(str(wrong)[1:-1])
    x, grad = randn(2, 3), randn(*wrong)
    with pytest.raises(ValueError, match=message):
        activation_backward(grad, x, DERIVATIVES[relu])
    with pytest.raises(ValueError, match=message):
        softmax_backward(grad, x)
    with pytest.raises(ValueError, match=message):
        layer_norm_backward(grad, x, randn(3))
    with pytest.raises(ValueError, match=message):
        attention_backward(grad, x, x, x)


def test_layer_norm_backward_wants_one_weight_per_number():
    for wrong, shape in [((2,), r"\(2,\)"), ((2, 3), r"\(2, 3\)")]:
        message = rf"weight must have shape \(3,\), got {shape}"
        with pytest.raises(ValueError, match=message):
            layer_norm_backward(randn(2, 3), randn(2, 3), randn(*wrong))


def test_attention_backward_names_the_shape_that_does_not_fit():
    q, k, v = randn(2, 3, 5), randn(2, 7, 5), randn(2, 7, 11)
    message = r"grad_output must have shape \(2, 3, 11\), got \(2, 3, 5\)"
    with pytest.raises(ValueError, match=message):
        attention_backward(randn(2, 3, 5), q, k, v)
    message = r"k must have shape \(2, 7, 5\), got \({}\)"
    for wrong, shape in [((2, 7, 11), "2, 7, 11"), ((7, 5), "7, 5")]:
        with pytest.raises(ValueError, match=message.format(shape)):
            attention_backward(randn(2, 3, 11), q, randn(*wrong), v)
    message = r"v must have shape \(2, 7, 11\), got \(2, 3, 11\)"
    with pytest.raises(ValueError, match=message):
        attention_backward(randn(2, 3, 11), q, k, randn(2, 3, 11))


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (torch.relu, "relu"),
        (functools.partial(activations.leaky_relu), r"functools\.partial"),
        (nn.ReLU(), r"ReLU\(\)"),
    ],
)
def test_mlp_backward_names_the_activations_that_it_knows(activation, name):
    message = (
        "activation must be one of sigmoid, tanh, relu, leaky_relu, gelu, "
        rf"gelu_tanh of scratch\.nn\.activations, got {name}"
    )
    mlp = MLP([2, 3], activation=activation)
    with pytest.raises(ValueError, match=message):
        mlp_backward(mlp, torch.randn(5, 2), torch.ones(5).long())


def test_each_public_function_is_tested_here():
    public = {
        name
        for name, value in vars(backpropagation).items()
        if getattr(value, "__module__", "") == backpropagation.__name__
        and not name.startswith("_")
    }
    assert len(public) == 7
    assert public <= set(globals())
