"""The checkers accept right answers and name what is wrong in others."""

import re

import pytest
import torch

from scratch.exercises.neuron import (
    check_gates,
    check_learning_step,
    check_signed_distance,
)


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


GATES = {
    "AND": ([1, 1], -1.5),
    "OR": ([1, 1], -0.5),
    "NAND": ([-1, -1], 1.5),
    "NOT": ([-1], 0.5),
}


def test_gates_accepts_any_weights_that_work():
    assert check_gates(GATES)
    assert check_gates(GATES | {"AND": ([2.0, 3.0], -5.0)})
    assert check_gates(GATES | {"OR": ([0.7, 0.7], -0.7)})  # on the cut
    assert check_gates(GATES | {"NOT": (torch.tensor([-3.0]), 0)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"OR": ([1, 1], -1.5)}, r"OR must fire for inputs \(0, 1\)"),
        ({"OR": ([1, 1], 0)}, r"OR must stay silent for inputs \(0, 0\)"),
        ({"AND": ([1, 1], -0.5)}, r"AND must stay silent .* sum is 0\.5"),
        ({"NAND": ([1, 1], -1.5)}, r"NAND must fire for inputs \(0, 0\)"),
        ({"NOT": ([1], -0.5)}, r"NOT must fire for inputs \(0,\)"),
        ({"NOT": ([-1, 0], 0.5)}, r"as many weights as inputs, 1; got 2"),
        ({"NOT": (-1, 0.5)}, r"must be a pair \(weights, bias\)"),
        ({"OR": None}, r"must be a pair .* got None"),
    ],
)
def test_gates_names_the_first_wrong_gate(change, words):
    assert_says(words, check_gates(GATES | change))


def test_gates_names_what_is_missing():
    verdict = check_gates({k: v for k, v in GATES.items() if k != "OR"})
    assert_says("OR is missing", verdict)


def right_step(weight, bias, x, label):
    output = 1 if weight @ x + bias >= 0 else 0
    error = label - output
    return weight + error * x, bias + error


def branching_step(weight, bias, x, label):
    fires = float(weight @ x) + bias >= 0
    if fires and label == 0:
        return weight - x, bias - 1
    if not fires and label == 1:
        return weight + x, bias + 1
    return weight, bias


def wrong_sign(weight, bias, x, label):
    error = (1 if weight @ x + bias >= 0 else 0) - label
    return weight + error * x, bias + error


def no_bias(weight, bias, x, label):
    return right_step(weight, bias, x, label)[0], bias


def strict_threshold(weight, bias, x, label):
    error = label - (1 if weight @ x + bias > 0 else 0)
    return weight + error * x, bias + error


def no_step(weight, bias, x, label):
    error = label - (weight @ x + bias)
    return weight + error * x, bias + error


def in_place(weight, bias, x, label):
    error = label - (1 if weight @ x + bias >= 0 else 0)
    weight += error * x
    return weight, bias + error


def only_adds(weight, bias, x, label):
    if label == 1 and weight @ x + bias < 0:
        return weight + x, bias + 1
    return weight, bias


def weight_alone(weight, bias, x, label):
    return right_step(weight, bias, x, label)[0]


def swapped(weight, bias, x, label):
    weight, bias = right_step(weight, bias, x, label)
    return bias, weight


def absolute_input(weight, bias, x, label):
    error = label - (1 if weight @ x + bias >= 0 else 0)
    return weight + error * x.abs(), bias + error


def threshold_below_zero(weight, bias, x, label):
    error = label - (1 if weight @ x + bias >= -0.5 else 0)
    return weight + error * x, bias + error


def sum_without_bias(weight, bias, x, label):
    error = label - (1 if weight @ x >= 0 else 0)
    return weight + error * x, bias + error


def crashes(weight, bias, x, label):
    return weight + x[7], bias


@pytest.mark.parametrize("answer", [right_step, branching_step])
def test_learning_step_accepts(answer):
    assert check_learning_step(answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (wrong_sign, "silent but should fire"),
        (no_bias, "the bias from"),
        (strict_threshold, r"step\(0\) is 1"),
        (no_step, "nothing may move"),
        (in_place, "in place"),
        (only_adds, "fired but should be silent"),
        (weight_alone, "two things"),
        (swapped, "returned the bias first"),
        (absolute_input, "must be"),
        (threshold_below_zero, "just below 0"),
        (lambda w, b, x, y: (None, b), "returned None"),
        (sum_without_bias, "bias belongs to the weighted sum"),
        (crashes, "raised IndexError"),
        (right_step(torch.ones(1), 0.0, torch.ones(1), 1), "without calling"),
    ],
)
def test_learning_step_says_what_is_wrong(answer, words):
    assert_says(words, check_learning_step(answer))


def right_distance(x, weight, bias):
    return (x @ weight + bias) / weight.norm()


def unit_normal(x, weight, bias):
    length = weight.square().sum().sqrt()
    return x @ (weight / length) + bias / length


@pytest.mark.parametrize("answer", [right_distance, unit_normal])
def test_signed_distance_accepts(answer):
    assert check_signed_distance(answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, w, b: x @ w + b, r"\(3 \* 6 \+ 4 \* 8 - 10\) / 5"),
        (lambda x, w, b: (x @ w + b) / w.square().sum(), "must be 8"),
        (lambda x, w, b: ((x @ w + b) / w.norm()).abs(), "silent side"),
        (lambda x, w, b: x @ w / w.norm(), "must be 8, got 10"),
        (lambda x, w, b: x @ w / w.norm() + b, "must be 8, got 0"),
        (lambda x, w, b: (x @ w + b) / (w.norm() + 1), "must be 8"),
        (
            lambda x, w, b: ((x * w).sum() + b) / w.norm(),
            r"must have shape \(3,\), got \(\)",
        ),
        (lambda x, w, b: None, "returned None"),
        (lambda x, w, b: (x @ w + b) / 5, r"-6 \* 1"),
        (lambda x, w, b: (x @ w - 10) / w.norm(), r"-6 \* 1"),
        (lambda x, w, b: (x @ w + b) / (w.max() + 1), r"-6 \* 1"),
        (lambda x, w: x @ w, "raised TypeError"),
    ],
)
def test_signed_distance_says_what_is_wrong(answer, words):
    assert_says(words, check_signed_distance(answer))
