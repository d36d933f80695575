"""A neuron is torch's Linear with one output; its mistakes are bounded."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.linear_model import Perceptron as SklearnPerceptron
from torch import nn

from scratch.data.toy import separable_points
from scratch.nn.neuron import Neuron, Perceptron, step, weighted_sum

sizes = st.integers(1, 7)


def log_likelihood(x, label, weight, bias):
    z = x @ weight + bias
    return -nn.functional.binary_cross_entropy_with_logits(z, label)


@given(n=sizes, d_in=sizes)
def test_weighted_sum_matches_torch(n, d_in):
    linear = nn.Linear(d_in, 1).double()
    x = torch.randn(3, n, d_in, dtype=torch.double)
    ours = weighted_sum(x, linear.weight[0], linear.bias[0])
    torch.testing.assert_close(ours, linear(x)[..., 0])


def test_weighted_sum_of_one_example_matches_dot():
    x, weight = torch.randn(2, 11, dtype=torch.double)
    torch.testing.assert_close(
        weighted_sum(x, weight, 0.25), torch.dot(x, weight) + 0.25
    )


def test_step_matches_heaviside():
    x = torch.tensor([-1e4, -1e-30, -0.0, 0.0, 1e-30, 1e4])
    expected = torch.heaviside(x, torch.tensor(1.0))
    torch.testing.assert_close(step(x), expected)
    assert step(x.double()).dtype == torch.double


def test_learning_with_a_sigmoid_climbs_the_gradient_of_autograd():
    x = torch.randn(5, dtype=torch.double)
    weight = torch.randn(5, dtype=torch.double, requires_grad=True)
    bias = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    label = torch.tensor(1.0, dtype=torch.double)
    log_likelihood(x, label, weight, bias).backward()
    neuron = Neuron(weight.detach(), bias.detach(), torch.sigmoid)
    neuron.learn(x, 1, learning_rate=0.5)
    torch.testing.assert_close(
        neuron.weight, weight.detach() + 0.5 * weight.grad
    )
    torch.testing.assert_close(neuron.bias, bias.detach() + 0.5 * bias.grad)


@pytest.mark.parametrize("seed", range(5))
def test_perceptron_walks_where_sklearn_walks(seed):
    generator = torch.Generator().manual_seed(seed)
    x, labels, _, _ = separable_points(40, margin=0.05, generator=generator)
    # At a weighted sum of exactly 0 scikit-learn counts a mistake for both
    # labels. Only the start is there; with a 0 in front the rules agree.
    order = labels.argsort(stable=True)[:1]
    x, labels = torch.cat([x[order], x]), torch.cat([labels[order], labels])
    ours = Perceptron(2)
    mistakes = ours.fit(x, labels)
    theirs = SklearnPerceptron(
        shuffle=False, tol=None, max_iter=len(mistakes)
    ).fit(x.double().numpy(), labels.numpy())
    assert sum(mistakes) > 1
    torch.testing.assert_close(
        ours.weight, torch.tensor(theirs.coef_[0]).float()
    )
    assert ours.bias == theirs.intercept_[0]


def test_worked_example():
    neuron = Neuron(torch.tensor([0.5, 2.0, -1.5]), -2.0, step)
    logins = torch.tensor([[4.0, 1, 1], [3, 1, 1], [2, 1, 1]])
    sums = weighted_sum(logins, neuron.weight, neuron.bias)
    assert sums.tolist() == [0.5, 0.0, -0.5]
    assert neuron(logins).tolist() == [1.0, 1.0, 0.0]


def test_one_mistake_moves_by_the_input():
    perceptron = Perceptron(2)
    x = torch.tensor([3.0, -2.0])
    assert perceptron.learn(x, 0) == -1  # step(0) fires, so this is wrong
    assert perceptron.weight.tolist() == [-3.0, 2.0]
    assert perceptron.bias == -1
    assert perceptron.learn(x, 0) == 0
    assert perceptron.weight.tolist() == [-3.0, 2.0]


@given(d_in=sizes, bias=st.floats(-5, 5))
def test_zero_weights_return_the_bias(d_in, bias):
    z = weighted_sum(
        torch.randn(d_in).double(), torch.zeros(d_in).double(), bias
    )
    assert z.item() == bias


@given(d_in=st.integers(2, 7), seed=st.integers(0, 99))
def test_order_of_inputs_does_not_matter_if_weights_move_too(d_in, seed):
    order = torch.randperm(d_in, generator=torch.Generator().manual_seed(seed))
    x, weight = torch.randn(2, d_in, dtype=torch.double)
    torch.testing.assert_close(
        weighted_sum(x[order], weight[order], 1.0),
        weighted_sum(x, weight, 1.0),
    )


def test_a_batch_equals_its_rows():
    x, weight = torch.randn(4, 3), torch.randn(3)
    rows = torch.stack([weighted_sum(row, weight, 0.5) for row in x])
    torch.testing.assert_close(weighted_sum(x, weight, 0.5), rows)
    assert weighted_sum(x[:1], weight, 0.5).shape == (1,)


@given(
    n_points=st.integers(1, 40),
    margin=st.floats(0.02, 0.3),
    seed=st.integers(0, 10_000),
)
@example(n_points=1, margin=0.02, seed=0)
def test_mistakes_stay_within_the_bound(n_points, margin, seed):
    generator = torch.Generator().manual_seed(seed)
    x, labels, weight, bias = separable_points(
        n_points, margin=margin, generator=generator
    )
    mistakes = Perceptron(2).fit(x, labels, max_passes=10_000)
    radius = (x.square().sum(dim=1) + 1).max().sqrt()
    smallest = weighted_sum(x, weight, bias).abs().min()
    assert mistakes[-1] == 0
    assert sum(mistakes) <= (radius / smallest) ** 2


def test_learning_leaves_the_callers_tensors_alone():
    weight = torch.ones(2)
    neuron = Neuron(weight, 0.0, step)
    neuron.learn(torch.tensor([1.0, 1.0]), 0)
    assert weight.tolist() == [1.0, 1.0]
    assert neuron.weight.tolist() == [0.0, 0.0]


def test_fit_gives_up_after_max_passes():
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    exclusive_or = torch.tensor([0, 1, 1, 0])
    mistakes = Perceptron(2).fit(corners, exclusive_or, max_passes=7)
    assert len(mistakes) == 7
    assert min(mistakes) > 0


def test_fitting_twice_makes_no_new_mistake():
    generator = torch.Generator().manual_seed(3)
    x, labels, _, _ = separable_points(30, margin=0.1, generator=generator)
    perceptron = Perceptron(2)
    perceptron.fit(x, labels)
    assert perceptron.fit(x, labels) == [0]


def test_wrong_shapes_and_labels_are_named():
    with pytest.raises(ValueError, match=r"x must .* \(\.\.\., 3\), got \(2"):
        weighted_sum(torch.ones(2, 4), torch.ones(3), 0)
    with pytest.raises(ValueError, match=r"x must have shape .* got \(\)"):
        weighted_sum(torch.tensor(1.0), torch.ones(3), 0)
    with pytest.raises(ValueError, match=r"\(d_in,\), got \(1, 3\)"):
        weighted_sum(torch.ones(3), torch.ones(1, 3), 0)
    with pytest.raises(TypeError, match=r"torch\.float32, got torch\.int64"):
        weighted_sum(torch.ones(3).long(), torch.ones(3), 0)
    with pytest.raises(ValueError, match="label must be 0 or 1, got -1"):
        Perceptron(2).learn(torch.ones(2), -1)
    with pytest.raises(ValueError, match="d_in must be at least 1, got 0"):
        Perceptron(0)
    with pytest.raises(ValueError, match="same length, got 3 and 2"):
        Perceptron(2).fit(torch.ones(3, 2), torch.ones(2))
