"""Handwritten digits, 8 by 8 pixels, as scikit-learn ships them."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

N_LEVELS = 16  # a pixel counts the dark dots in a 4 by 4 field


class Split(NamedTuple):
    """Examples to learn from, and held-out ones to be judged on."""

    x_train: Tensor  # (n_train, 64), each pixel in [0, 1]
    labels_train: Tensor  # (n_train,), int64
    x_test: Tensor  # (n_test, 64)
    labels_test: Tensor  # (n_test,), int64


def digits(
    classes: tuple[int, ...] = tuple(range(10)),
    *,
    test_share: float = 0.25,
    seed: int = 0,
) -> Split:
    """Return the digits of the classes wanted, shuffled and split.

    Labels are positions in classes: digits((3, 8)) labels a three 0 and
    an eight 1. Each class is split in the same proportion.

    Args:
        test_share: part that is held out, between 0 and 1.
        seed: decides which examples are held out, and the order.

    Raises: ValueError if a class is not a digit or comes twice.
    Source: Alpaydin and Kaynak (1998), as scikit-learn's load_digits.
    """
    if len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise ValueError(
            f"classes must be different digits from 0 to 9, got {classes}"
        )
    if not 0 < test_share < 1:
        raise ValueError(
            f"test_share must be between 0 and 1, got {test_share}"
        )
    pixels, values = load_digits(return_X_y=True)
    position = {digit: i for i, digit in enumerate(classes)}
    wanted = [i for i, value in enumerate(values) if value in position]
    labels = [position[values[i]] for i in wanted]
    x_train, x_test, labels_train, labels_test = train_test_split(
        pixels[wanted] / N_LEVELS,
        labels,
        test_size=test_share,
        random_state=seed,
        stratify=labels,
    )
    return Split(
        torch.tensor(x_train, dtype=torch.float32),
        torch.tensor(labels_train),
        torch.tensor(x_test, dtype=torch.float32),
        torch.tensor(labels_test),
    )
