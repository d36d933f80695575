"""The checkers accept right answers and name what is wrong in others."""

import re

import pytest
import torch

from scratch.exercises.gradient_descent import check_adamw_step, check_clip
from scratch.nn.gradient_descent import clip_gradients
from scratch.nn.optimizers import AdamW


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def right_step(
    p,
    g,
    mean,
    square,
    n_steps,
    *,
    learning_rate=0.001,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
):
    mean = mean + (1 - beta1) * (g - mean)
    square = square + (1 - beta2) * (g**2 - square)
    m = mean / (1 - beta1**n_steps)
    v = square / (1 - beta2**n_steps)
    change = m / (v**0.5 + eps) + weight_decay * p
    return p - learning_rate * change, mean, square


def by_scratch(p, g, mean, square, n_steps, **options):
    p = p.clone().requires_grad_()
    p.grad = g
    optimizer = AdamW([p], **options)
    optimizer.state[p] = {
        "n_steps": n_steps - 1,
        "mean": mean.clone(),
        "square": square.clone(),
    }
    optimizer.step()
    state = optimizer.state[p]
    return p.detach(), state["mean"], state["square"]


def by_torch(
    p, g, mean, square, n_steps, *, learning_rate, beta1, beta2, **options
):
    p = p.clone().requires_grad_()
    p.grad = g
    optimizer = torch.optim.AdamW(
        [p], lr=learning_rate, betas=(beta1, beta2), **options
    )
    optimizer.state[p] = {
        "step": torch.tensor(n_steps - 1.0),
        "exp_avg": mean.clone(),
        "exp_avg_sq": square.clone(),
    }
    optimizer.step()
    state = optimizer.state[p]
    return p.detach(), state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.parametrize("answer", [right_step, by_scratch, by_torch])
def test_adamw_step_accepts(answer):
    verdict = check_adamw_step(answer)
    assert verdict, verdict.message


def wrong_step(line):
    """Make an answer in which one line of the right one is replaced."""
    lines = {
        "mean": "beta1 * mean + (1 - beta1) * g",
        "square": "beta2 * square + (1 - beta2) * g * g",
        "m": "mean / (1 - beta1**t)",
        "v": "square / (1 - beta2**t)",
        "q": "(1 - rate * decay) * p - rate * m / (v.sqrt() + eps)",
    }
    name, formula = line.split(" = ", 1)
    lines[name] = formula

    def answer(
        p, g, mean, square, t, *, learning_rate, beta1, beta2, eps, **options
    ):
        known = {
            "p": p,
            "g": g,
            "mean": mean,
            "square": square,
            "t": t,
            "rate": learning_rate,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "decay": options["weight_decay"],
            "old": (mean, square),
        }
        for target, source in lines.items():
            known[target] = eval(source, {}, known)
        return known["q"], known["mean"], known["square"]

    return answer


def test_the_line_that_is_replaced_is_what_makes_an_answer_wrong():
    assert check_adamw_step(wrong_step("m = mean / (1 - beta1**t)"))


def l2_in_the_gradient(p, g, mean, square, n_steps, **options):
    decay = options.pop("weight_decay")
    g = g + decay * p
    return right_step(p, g, mean, square, n_steps, weight_decay=0.0, **options)


def uncorrected_twice(p, g, mean, square, n_steps, **options):
    p, mean, square = right_step(p, g, mean, square, n_steps, **options)
    m = mean / (1 - options["beta1"] ** n_steps)
    return p, m, square / (1 - options["beta2"] ** n_steps)


def no_correction(p, g, mean, square, n_steps, **options):
    return right_step(p, g, mean, square, 10**9, **options)


def from_zero(p, g, mean, square, n_steps, **options):
    return right_step(p, g, mean, square, n_steps - 1, **options)


def one_late(p, g, mean, square, n_steps, **options):
    return right_step(p, g, mean, square, n_steps + 1, **options)


def swapped_betas(p, g, mean, square, n_steps, *, beta1, beta2, **options):
    return right_step(
        p, g, mean, square, n_steps, beta1=beta2, beta2=beta1, **options
    )


def in_place(p, g, mean, square, n_steps, *, beta1, **options):
    mean.mul_(beta1).add_((1 - beta1) * g)
    return p, mean, square


def no_states(*arguments, **options):
    return right_step(*arguments, **options)[0]


def frozen_options(p, g, mean, square, n_steps, **options):
    return right_step(p, g, mean, square, n_steps, learning_rate=0.1)


STEPS = "rate * m / (v.sqrt() + eps)"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (no_correction, "a third step.*no bias correction"),
        (wrong_step("m = mean"), "Only square has its bias"),
        (wrong_step("v = square"), "Only mean has its bias"),
        (from_zero, "from 1: no - 1"),
        (wrong_step("m = mean / (1 - beta1**max(t - 1, 1))"), "must be"),
        (one_late, r"counts this step already: no \+ 1"),
        (l2_in_the_gradient, "decay went into the gradient"),
        (wrong_step(f"q = (1 - decay) * p - {STEPS}"), "lacks the learning"),
        (wrong_step(f"q = p - {STEPS}"), "with weight decay.*no weight decay"),
        (wrong_step(f"q = (1 - rate * decay) * (p - {STEPS})"), "after the"),
        (wrong_step(f"q = (1 + rate * decay) * p - {STEPS}"), "wrong sign"),
        (
            wrong_step(
                "q = (1 - rate * decay) * p - rate * m / (v + eps).sqrt()"
            ),
            "large eps.*outside the root",
        ),
        (
            wrong_step("q = (1 - rate * decay) * p - rate * m / (v + eps)"),
            "root of square is missing",
        ),
        (
            wrong_step("q = (1 - rate * decay) * p - rate * m / v.sqrt()"),
            "large eps.*must be",
        ),
        (wrong_step(f"q = (1 - rate * decay) * p + {STEPS}"), "uphill"),
        (wrong_step("m = g"), "third step.*not along its average"),
        (wrong_step("mean = beta1 * mean + g"), "the factor 1 - beta"),
        (
            wrong_step("square = beta2 * square + (1 - beta2) * g"),
            "averages the squares",
        ),
        (
            wrong_step("mean = (1 - beta1) * mean + beta1 * g"),
            "has the weight 1 - beta",
        ),
        (swapped_betas, "exchanged"),
        (uncorrected_twice, "as they are, uncorrected"),
        (in_place, "in place"),
        (no_states, "three things"),
        (frozen_options, "must be"),
        (lambda *given, **options: None, "three things"),
        (lambda p, g: (p, g, g), "raised TypeError"),
        (lambda *given, **options: (given[0], None, None), "returned None"),
        (0.5, "without calling it"),
    ],
)
def test_adamw_step_says_what_is_wrong(answer, words):
    assert_says(words, check_adamw_step(answer))


def test_a_step_that_ignores_eps_meets_a_gradient_of_zero():
    def unsafe(p, g, mean, square, n_steps, **options):
        options["eps"] = options["eps"] if options["eps"] > 0.1 else 0.0
        return right_step(p, g, mean, square, n_steps, **options)

    assert_says("gradient of 0 must be .* got .*nan", check_adamw_step(unsafe))


def one_factor(grads, max_norm):
    norm = torch.cat([g.flatten() for g in grads]).norm()
    factor = min(1.0, max_norm / max(norm.item(), 1e-12))
    return [g * factor for g in grads]


def by_the_module(grads, max_norm):
    parameters = [torch.zeros_like(g, requires_grad=True) for g in grads]
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g.clone()
    clip_gradients(parameters, max_norm)
    return [p.grad for p in parameters]


def only_if_long(grads, max_norm):
    norm = sum(g.square().sum() for g in grads).sqrt()
    return grads if norm <= max_norm else [g * max_norm / norm for g in grads]


@pytest.mark.parametrize("answer", [one_factor, by_the_module, only_if_long])
def test_clip_accepts(answer):
    verdict = check_clip(answer)
    assert verdict, verdict.message


def scaled_by(length):
    """Make an answer that measures the gradients in its own way."""

    def answer(grads, max_norm):
        factor = min(1.0, max_norm / max(float(length(grads)), 1e-12))
        return [g * factor for g in grads]

    return answer


def always(grads, max_norm):
    norm = sum(g.square().sum() for g in grads).sqrt()
    return [g * max_norm / norm for g in grads]


def to_length_one(grads, max_norm):
    norm = sum(g.square().sum() for g in grads).sqrt()
    return [g / norm.clamp(min=1) for g in grads]


def clip_in_place(grads, max_norm):
    for g, new in zip(grads, one_factor(grads, max_norm), strict=True):
        g.copy_(new)
    return grads


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda grads, max_norm: [
                one_factor([g], max_norm)[0] for g in grads
            ],
            "clipped by itself, which turns",
        ),
        (
            lambda grads, max_norm: [
                g.clamp(-max_norm, max_norm) for g in grads
            ],
            "Each number was cut off",
        ),
        (scaled_by(lambda grads: sum(g.norm() for g in grads)), "do not add"),
        (
            scaled_by(lambda grads: sum(g.square().sum() for g in grads)),
            "is the root of",
        ),
        (
            scaled_by(
                lambda grads: (
                    torch.cat([g.flatten() for g in grads])
                    .square()
                    .mean()
                    .sqrt()
                )
            ),
            "not their mean",
        ),
        (always, "must not be made longer"),
        (to_length_one, "not 1 / length"),
        (scaled_by(lambda grads: grads[0].norm()), r"must be \[0\.6, 0\.8\]"),
        (lambda grads, max_norm: [0.2 * g for g in grads], "leave them alone"),
        (clip_in_place, "in place"),
        (lambda grads, max_norm: one_factor(grads, max_norm)[0], "as many"),
        (lambda grads, max_norm: [None for _ in grads], "returned None"),
        (lambda grads, max_norm: None, "as many gradients, 2; got None"),
        (lambda grads: grads, "raised TypeError"),
        (0.5, "without calling it"),
    ],
)
def test_clip_says_what_is_wrong(answer, words):
    assert_says(words, check_clip(answer))


def test_clip_asks_about_gradients_that_are_all_zero():
    def unsafe(grads, max_norm):
        norm = sum(g.square().sum() for g in grads).sqrt()
        if norm > 0 and norm <= max_norm:
            return grads
        return [g * max_norm / norm for g in grads]

    assert_says("0 / 0 is nan", check_clip(unsafe))


# A checker that graded its own reference would accept these, too.
def test_a_right_step_is_rejected_once_it_is_spoiled():
    def spoiled(*given, **options):
        p, mean, square = right_step(*given, **options)
        return p + 0.01, mean, square

    assert not check_adamw_step(spoiled)


def test_a_right_clip_is_rejected_once_it_is_spoiled():
    assert not check_clip(
        lambda grads, max_norm: [g + 0.01 for g in one_factor(grads, max_norm)]
    )


def shortened(grads, length, limit, max_norm):
    return [g * (max_norm / length if length > limit else 1.0) for g in grads]


def joint(grads):
    return torch.cat([g.flatten() for g in grads]).norm()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda g, c: shortened(g, joint(g), 2 * c, c), r"10\.0\) must"),
        (lambda g, c: shortened(g, joint(g), max(1, c), c), r"0\.5\) must"),
        (lambda g, c: shortened(g, joint(g[:2]), c, c), r"10\.0\) must"),
    ],
)
def test_clip_is_asked_about_near_and_many_gradients(answer, words):
    assert_says(words, check_clip(answer))
