"""Toy points keep the room they promise and depend on the seed alone."""

import pytest
import torch
from sklearn.datasets import make_moons

from scratch.data.toy import separable_points, two_moons


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.3])
def test_points_keep_the_margin(margin):
    generator = torch.Generator().manual_seed(1)
    x, labels, weight, bias = separable_points(
        31, margin=margin, generator=generator
    )
    signs = 2 * labels - 1
    assert x.shape == (31, 2)
    assert x.abs().max() <= 1
    assert torch.allclose(weight.square().sum() + bias**2, torch.tensor(1.0))
    assert (signs * (x @ weight + bias)).min() >= margin


def test_the_seed_decides_the_points():
    draws = [
        separable_points(
            5, margin=0.1, generator=torch.Generator().manual_seed(seed)
        )[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_two_moons_are_those_of_sklearn():
    x, labels = two_moons(17, noise=0.2, seed=5)
    expected, classes = make_moons(17, noise=0.2, random_state=5)
    torch.testing.assert_close(
        x.double(), torch.tensor(expected), atol=1e-6, rtol=0
    )
    assert labels.tolist() == classes.tolist()


def test_too_wide_a_margin_is_named():
    with pytest.raises(ValueError, match=r"margin must .* got 0\.5"):
        separable_points(3, margin=0.5)
