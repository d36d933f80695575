"""Activations equal torch's, in value and in slope, and never overflow."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close

from scratch.nn import activations
from scratch.nn.activations import (
    gelu,
    gelu_derivative,
    gelu_tanh,
    gelu_tanh_derivative,
    leaky_relu,
    leaky_relu_derivative,
    log_softmax,
    log_softmax_jacobian,
    relu,
    relu_derivative,
    sigmoid,
    sigmoid_derivative,
    softmax,
    softmax_jacobian,
    step,
    step_derivative,
    tanh,
    tanh_derivative,
)

# name: (ours, our derivative, torch's)
ELEMENTWISE = {
    "sigmoid": (sigmoid, sigmoid_derivative, torch.sigmoid),
    "tanh": (tanh, tanh_derivative, torch.tanh),
    "relu": (relu, relu_derivative, F.relu),
    "leaky_relu": (leaky_relu, leaky_relu_derivative, F.leaky_relu),
    "gelu": (gelu, gelu_derivative, F.gelu),
    "gelu_tanh": (
        gelu_tanh,
        gelu_tanh_derivative,
        lambda x: F.gelu(x, approximate="tanh"),
    ),
}
ALL_ELEMENTWISE = [step, step_derivative] + [
    f for ours, slope, _ in ELEMENTWISE.values() for f in (ours, slope)
]
CHECKED = [f for f in ALL_ELEMENTWISE if f is not step] + [
    softmax_jacobian,
    log_softmax_jacobian,
    lambda x: softmax(x, dim=-1),
    lambda x: log_softmax(x, dim=-1),
]
SOFTMAXES = {
    "softmax": (softmax, softmax_jacobian, torch.softmax),
    "log_softmax": (log_softmax, log_softmax_jacobian, torch.log_softmax),
}
DTYPES = [torch.float32, torch.float64]

U_OVER_X_AT_4 = math.sqrt(2 / math.pi) * (1 + 0.044715 * 16)

each_elementwise = pytest.mark.parametrize("name", ELEMENTWISE)
each_softmax = pytest.mark.parametrize("name", SOFTMAXES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

numbers = st.floats(-1e4, 1e4)
vectors = st.lists(numbers, min_size=1, max_size=7)


def line(dtype):
    """Many numbers near 0, 0 itself, and some as far as +-10 000."""
    near = torch.linspace(-30, 30, 1201, dtype=dtype)
    far = torch.tensor([1e-7, 1e-3, 88.8, 100, 750, 1e4], dtype=dtype)
    return torch.cat([near, torch.zeros(1, dtype=dtype), far, -far])


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def slope_by_autograd(f, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    return slope


# Reference


@each_dtype
@each_elementwise
def test_values_equal_torch(name, dtype):
    ours, _, reference = ELEMENTWISE[name]
    x = line(dtype)
    assert_close(ours(x), reference(x))


@each_dtype
@each_elementwise
def test_autograd_goes_through_us_as_through_torch(name, dtype):
    ours, _, reference = ELEMENTWISE[name]
    x = line(dtype)
    slope = slope_by_autograd(ours, x)
    assert slope.isfinite().all()
    assert_close(slope, slope_by_autograd(reference, x))


@each_dtype
@each_elementwise
def test_derivatives_equal_autograd_through_torch(name, dtype):
    _, derivative, reference = ELEMENTWISE[name]
    x = line(dtype)
    assert derivative(x).isfinite().all()
    assert_close(derivative(x), slope_by_autograd(reference, x))


@each_elementwise
def test_finite_differences_confirm_the_gradient(name):
    ours, _, _ = ELEMENTWISE[name]
    x = torch.linspace(-4, 4, 12, dtype=torch.float64)  # 0 is not among them
    assert torch.autograd.gradcheck(ours, x.requires_grad_())


@pytest.mark.parametrize("negative_slope", [0.0, 0.2, 1.0, 3.0])
def test_leaky_relu_equals_torch_for_other_slopes(negative_slope):
    x = line(torch.float64)
    ours = leaky_relu(x, negative_slope=negative_slope)
    assert_close(ours, F.leaky_relu(x, negative_slope))
    slope = leaky_relu_derivative(x, negative_slope=negative_slope)
    expected = slope_by_autograd(lambda x: F.leaky_relu(x, negative_slope), x)
    assert_close(slope, expected)


# The default absolute tolerance would accept 0 for every number below; a
# few units in the last place, relative, are what the formulas promise.
@pytest.mark.parametrize(
    ("f", "x", "expected"),
    [
        (sigmoid, -80.0, math.exp(-80)),
        (sigmoid_derivative, 40.0, math.exp(-40)),
        (sigmoid_derivative, -40.0, math.exp(-40)),
        (tanh, 1e-12, 1e-12),
        (tanh, -1e-4, math.tanh(-1e-4)),
        (tanh_derivative, 20.0, 4 * math.exp(-40)),
        (gelu, -7.0, -7 * math.erfc(7 / math.sqrt(2)) / 2),
        (gelu_tanh, -4.0, -4 / (1 + math.exp(8 * U_OVER_X_AT_4))),
    ],
)
def test_small_results_keep_their_digits_in_float32(f, x, expected):
    actual = f(torch.tensor(x)).double()
    assert_close(actual, double(expected), rtol=1e-5, atol=0)


@each_dtype
@each_softmax
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_softmaxes_equal_torch_along_each_dim(name, dtype, dim):
    ours, _, reference = SOFTMAXES[name]
    x = 5 * torch.randn(2, 3, 5, dtype=dtype)
    assert_close(ours(x, dim=dim), reference(x, dim))


@each_dtype
@each_softmax
def test_softmaxes_and_their_gradients_equal_torch_far_out(name, dtype):
    ours, _, reference = SOFTMAXES[name]
    x = torch.tensor(
        [[1e4, -1e4, 0], [1e4, 1e4, 1e4], [-1e4, -1e4, -9999]], dtype=dtype
    )
    assert ours(x, dim=-1).isfinite().all()
    assert_close(ours(x, dim=-1), reference(x, -1))
    # Unequal weights, because the plain sum of softmax has slope 0.
    weights = torch.tensor([1.0, 2.0, 4.0], dtype=dtype)
    slope = slope_by_autograd(lambda x: ours(x, dim=-1) * weights, x)
    expected = slope_by_autograd(lambda x: reference(x, -1) * weights, x)
    assert slope.isfinite().all()
    assert_close(slope, expected)


@each_softmax
def test_softmax_finite_differences_confirm_the_gradient(name):
    ours, _, _ = SOFTMAXES[name]
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ours(x, dim=0), x)
    assert torch.autograd.gradcheck(lambda x: ours(x, dim=1), x)
    tied = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ours(x, dim=1), tied)


@each_dtype
@each_softmax
def test_jacobians_equal_autograd_through_torch(name, dtype):
    _, jacobian, reference = SOFTMAXES[name]
    x = torch.randn(2, 3, 5, dtype=dtype)
    x[1, 2] = torch.tensor([1e4, -1e4, 0, 1e4, 5])
    ours = jacobian(x)
    assert ours.shape == (2, 3, 5, 5)
    for i in range(2):
        for j in range(3):
            expected = torch.autograd.functional.jacobian(
                lambda row: reference(row, -1), x[i, j]
            )
            assert_close(ours[i, j], expected)


def test_a_masked_score_gets_no_share_and_no_gradient():
    x = torch.tensor([1.0, 2.0, -math.inf])
    probs = softmax(x, dim=-1)
    assert_close(probs, torch.softmax(x, -1))
    assert probs[2] == 0
    slope = slope_by_autograd(lambda x: softmax(x, dim=-1)[0], x)
    assert slope.isfinite().all()
    assert slope[2] == 0


@each_elementwise
def test_infinity_and_nan_come_out_as_from_torch(name):
    ours, _, reference = ELEMENTWISE[name]
    x = torch.tensor([math.inf, -math.inf, math.nan])
    if "gelu" in name:  # torch itself has gelu(inf) = nan on some machines
        x = x[2:]
    assert_close(ours(x), reference(x), equal_nan=True)


# Worked examples


def test_the_numbers_of_the_chapter():
    x = double([-5.0, 0.0, 5.0, 10.0])
    one_over = [1 / (1 + math.exp(-z)) for z in x.tolist()]
    assert_close(sigmoid(x), double(one_over))
    slopes = sigmoid_derivative(x)
    assert slopes[1] == 0.25
    assert_close(slopes[[0, 2]], double([0.006648056670790155] * 2))
    assert_close(slopes[3], double(4.5395807735951673e-05))
    assert_close(tanh(double(0.5)), double((math.e - 1) / (math.e + 1)))
    assert relu(double([-2.0, 0.0, 3.0])).tolist() == [0, 0, 3]
    assert leaky_relu(double([-2.0, 0.0, 3.0])).tolist() == [-0.02, 0, 3]
    # 84 % of a normal distribution lie below one standard deviation.
    assert_close(gelu(double(1.0)), double(0.8413447460685429))
    thirds = softmax(double([0.0, math.log(2)]), dim=-1)
    assert_close(thirds, double([1 / 3, 2 / 3]))


def test_at_zero_the_conventions_hold():
    zero = torch.zeros(1)
    assert step(zero) == 1
    assert step_derivative(zero) == 0
    assert relu_derivative(zero) == 0
    assert_close(leaky_relu_derivative(zero), torch.tensor([0.01]))
    for name in ["sigmoid", "tanh", "relu", "leaky_relu", "gelu"]:
        f, derivative, _ = ELEMENTWISE[name]
        assert_close(slope_by_autograd(f, zero), derivative(zero))


def test_a_step_is_0_or_1_and_flat():
    x = torch.tensor([-1e4, -1e-30, -0.0, 0.0, 1e-30, 1e4])
    assert step(x).tolist() == [0, 0, 1, 1, 1, 1]
    assert step_derivative(x).tolist() == [0] * 6


def test_the_two_gelus_differ_but_little():
    x = torch.linspace(-6, 6, 12001, dtype=torch.float64)
    difference = (gelu(x) - gelu_tanh(x)).abs().max().item()
    assert 4.7e-4 < difference < 4.8e-4


# Properties


@given(numbers)
@example(0.0)
@example(1e4)
@example(-1e4)
def test_sigmoid_of_minus_x_is_one_minus_sigmoid(x):
    x = double(x)
    assert_close(sigmoid(-x), 1 - sigmoid(x))


@given(numbers)
@example(0.0)
@example(1e4)
def test_tanh_is_a_stretched_sigmoid_and_odd(x):
    x = double(x)
    assert_close(tanh(x), 2 * sigmoid(2 * x) - 1)
    assert tanh(-x) == -tanh(x)


@pytest.mark.parametrize("f", [gelu, gelu_tanh])
@given(x=numbers)
@example(x=0.0)
@example(x=1e4)
def test_gelu_of_x_minus_gelu_of_minus_x_is_x(f, x):
    x = double(x)
    assert_close(f(x) - f(-x), x)


@given(numbers)
def test_relu_of_x_minus_relu_of_minus_x_is_x(x):
    x = double(x)
    assert relu(x) - relu(-x) == x


@given(numbers)
def test_values_stay_in_their_ranges(x):
    x = torch.tensor(x)
    assert 0 <= sigmoid(x) <= 1
    assert -1 <= tanh(x) <= 1
    assert relu(x) >= 0
    assert -0.18 < gelu(x) <= relu(x)
    assert -0.18 < gelu_tanh(x) <= relu(x)


@given(numbers)
def test_slopes_stay_in_their_ranges(x):
    x = torch.tensor(x)
    assert 0 <= sigmoid_derivative(x) <= 0.25
    assert 0 <= tanh_derivative(x) <= 1
    assert -0.13 < gelu_derivative(x) < 1.13
    assert -0.13 < gelu_tanh_derivative(x) < 1.13


@pytest.mark.parametrize("f", [step, sigmoid, tanh, relu, leaky_relu])
@given(pair=st.tuples(numbers, numbers))
def test_a_larger_input_never_gives_a_smaller_output(f, pair):
    low, high = double(sorted(pair))
    assert f(low) <= f(high)


@given(vectors)
@example([1e4, -1e4])
@example([0.0])
@example([-1e4] * 7)
def test_softmax_gives_shares_that_sum_to_one(z):
    probs = softmax(torch.tensor(z), dim=-1)
    assert (probs >= 0).all()
    assert_close(probs.sum(), torch.tensor(1.0))


@given(vectors, numbers)
@example([1.0, 2.0, 3.0], 1e4)
def test_softmax_ignores_a_shift(z, shift):
    z = double(z)
    # x + shift rounds at 1e-12, which the exponential passes on.
    for f in (softmax, log_softmax):
        assert_close(f(z + shift, dim=-1), f(z, dim=-1))


@given(vectors)
@example([1e4, -1e4])
def test_log_softmax_is_the_logarithm_of_softmax(z):
    z = torch.tensor(z)
    assert log_softmax(z, dim=-1).isfinite().all()
    assert_close(log_softmax(z, dim=-1).exp(), softmax(z, dim=-1))


@given(vectors)
def test_softmax_keeps_the_order(z):
    probs = softmax(double(z), dim=-1)
    assert (probs[double(z).argsort()].diff() >= 0).all()


@given(vectors)
def test_softmax_jacobian_rows_and_columns_sum_to_zero(z):
    jacobian = softmax_jacobian(double(z))
    zeros = torch.zeros(len(z), dtype=torch.float64)
    assert_close(jacobian.sum(dim=0), zeros)
    assert_close(jacobian.sum(dim=1), zeros)


@given(numbers)
@example(1e4)
@example(-1e4)
@example(-88.8)
def test_nothing_overflows_in_float32(x):
    x = torch.tensor(x)
    for f in ALL_ELEMENTWISE:
        assert f(x).isfinite(), f
    for f, _, _ in ELEMENTWISE.values():
        assert slope_by_autograd(f, x).isfinite(), f


# Shapes, types, batches


@each_dtype
@pytest.mark.parametrize("f", ALL_ELEMENTWISE)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 5), (1, 1), (3, 0), (0,)])
def test_shape_and_dtype_are_kept_and_x_is_not_changed(f, shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    before = x.clone()
    y = f(x)
    assert y.shape == shape
    assert y.dtype == dtype
    assert torch.equal(x, before)


@each_dtype
@each_softmax
def test_softmaxes_keep_shape_and_dtype_and_do_not_change_x(name, dtype):
    f, jacobian, _ = SOFTMAXES[name]
    x = torch.randn(2, 3, 5, dtype=dtype)
    before = x.clone()
    assert f(x, dim=1).shape == (2, 3, 5)
    assert f(x, dim=1).dtype == jacobian(x).dtype == dtype
    assert torch.equal(x, before)
    assert f(torch.randn(0, 3), dim=-1).shape == (0, 3)
    assert jacobian(torch.randn(0, 3)).shape == (0, 3, 3)


@pytest.mark.parametrize("f", CHECKED)
def test_a_batch_equals_its_rows(f):
    x = torch.randn(3, 5, dtype=torch.float64)
    assert_close(f(x), torch.stack([f(row) for row in x]))
    assert_close(f(x[:1]), f(x)[:1])


def test_softmax_of_one_number_is_one():
    assert softmax(torch.tensor([-1e4]), dim=-1).tolist() == [1.0]
    assert softmax(torch.tensor(3.0), dim=-1) == 1
    assert log_softmax(torch.tensor([1e4]), dim=-1).tolist() == [0.0]


def test_constants_follow_the_device_of_x():
    x = torch.empty(2, 3, device="meta")
    for f in [step, *CHECKED]:
        assert f(x).device.type == "meta"


# Misuse


@pytest.mark.parametrize("f", CHECKED)
def test_integers_are_refused_with_the_remedy(f):
    message = r"x must be a tensor of floats, got torch\.int64\. .*x\.float"
    with pytest.raises(TypeError, match=message):
        f(torch.tensor([1, 2]))


@pytest.mark.parametrize("f", CHECKED)
def test_lists_are_refused(f):
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        f([1.0, 2.0])


@pytest.mark.parametrize("f", [leaky_relu, leaky_relu_derivative])
@pytest.mark.parametrize("negative_slope", [-0.01, math.nan])
def test_a_negative_negative_slope_is_refused(f, negative_slope):
    message = f"negative_slope must be at least 0, got {negative_slope}"
    with pytest.raises(ValueError, match=message):
        f(torch.ones(2), negative_slope=negative_slope)


@each_softmax
def test_softmax_over_nothing_is_refused(name):
    f, jacobian, _ = SOFTMAXES[name]
    message = r"x must have a number along dim 1, got shape \(3, 0\)"
    with pytest.raises(ValueError, match=message):
        f(torch.empty(3, 0), dim=1)
    with pytest.raises(ValueError, match="along dim -1"):
        jacobian(torch.empty(3, 0))


@each_softmax
def test_softmax_wants_to_know_along_which_dim(name):
    f, _, _ = SOFTMAXES[name]
    with pytest.raises(TypeError, match="keyword-only argument: 'dim'"):
        f(torch.ones(2, 3))
    with pytest.raises(IndexError, match="out of range"):
        f(torch.ones(2, 3), dim=2)


def test_each_public_function_is_tested_here():
    public = {
        name
        for name, value in vars(activations).items()
        if callable(value) and not name.startswith("_") and name != "Tensor"
    }
    assert public <= set(globals())


@pytest.mark.parametrize(
    ("dtype", "far"), [(torch.float16, 1000.0), (torch.float32, 1e20)]
)
def test_a_gate_stays_finite_where_the_square_of_x_does_not(dtype, far):
    x = torch.tensor([-far, far], dtype=dtype, requires_grad=True)
    flat = torch.tensor([0.0, 1.0], dtype=dtype)
    y = activations.gelu_tanh(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * flat)
    torch.testing.assert_close(grad, flat)
    for name in ("gelu_derivative", "gelu_tanh_derivative"):
        torch.testing.assert_close(getattr(activations, name)(x), flat)
