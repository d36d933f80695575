"""The digits are scikit-learn's, split without a leak."""

import pytest
import torch
from sklearn.datasets import load_digits

from scratch.data.digits import digits


def test_every_digit_lies_in_one_part():
    split = digits()
    pixels = torch.cat([split.x_train, split.x_test]) * 16
    expected = torch.tensor(load_digits().data).float()
    assert sorted(map(tuple, pixels.tolist())) == sorted(
        map(tuple, expected.tolist())
    )
    assert len(split.x_test) == round(0.25 * len(expected) + 0.5)


def test_labels_are_positions_in_classes():
    split = digits((8, 1), seed=3)
    bunch = load_digits()
    for x, label in zip(split.x_test, split.labels_test, strict=True):
        match = (torch.tensor(bunch.data) == 16 * x).all(dim=1)
        assert bunch.target[match.nonzero()[0].item()] == (8, 1)[label]


def test_both_parts_hold_the_same_mixture():
    split = digits((1, 8))
    shares = [
        labels.float().mean()
        for labels in (split.labels_train, split.labels_test)
    ]
    torch.testing.assert_close(*shares, atol=0.01, rtol=0)


def test_the_seed_decides_the_split():
    assert torch.equal(digits(seed=1).x_test, digits(seed=1).x_test)
    assert not torch.equal(digits(seed=1).x_test, digits(seed=2).x_test)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"different digits .* \(3, 3\)"):
        digits((3, 3))
    with pytest.raises(ValueError, match=r"from 0 to 9, got \(1, 10\)"):
        digits((1, 10))
    with pytest.raises(ValueError, match=r"test_share must .* got 1"):
        digits(test_share=1)
