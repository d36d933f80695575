"""Training steps as a loop written with torch does, and says when it fails."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.testing import assert_close

from scratch.data.digits import digits
from scratch.nn.forward_propagation import MLP
from scratch.nn.gradient_descent import (
    LearningCurve,
    clip_gradients,
    fit,
    minibatches,
    warmup_cosine,
)
from scratch.nn.losses import cross_entropy, mean_squared_error
from scratch.nn.optimizers import SGD, Adam, AdamW, RMSProp


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_gradients(*gradients):
    """Parameters of the shapes of the gradients; None gets none."""
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.ones(5))
        if gradient is not None:
            parameter = nn.Parameter(torch.ones_like(gradient))
            parameter.grad = gradient.clone()
        parameters.append(parameter)
    return parameters


def some_gradients(scale):
    return [
        scale * torch.randn(shape, dtype=torch.float64)
        for shape in [(), (7,), (3, 5), (2, 0)]
    ]


def examples(n, *, n_classes=3, seed=0):
    """Points around the origin, labeled by the direction they lie in."""
    x = torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    turns = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) + 0.5
    return x, (n_classes * turns).long().clamp(max=n_classes - 1)


def small_network(seed=0):
    return MLP([2, 7, 3], generator=seeded(seed)).double()


def weights_of(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_same_bits(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def scripted(train=(), validation=()):
    """A loss that is what the script says, whatever the model answers."""
    numbers = {True: iter(train), False: iter(validation)}

    def loss_function(predictions, labels):
        number = next(numbers[torch.is_grad_enabled()], 1.0)
        return 0 * predictions.sum() + number

    return loss_function


# Minibatches


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50))
@example(n=1, batch_size=1)
@example(n=12, batch_size=4)
@example(n=13, batch_size=4)
@example(n=3, batch_size=50)
def test_each_example_comes_once_and_only_the_last_batch_is_smaller(
    n, batch_size
):
    batches = list(minibatches(n, batch_size))
    assert torch.cat(batches).sort().values.tolist() == list(range(n))
    *full, last = map(len, batches)
    assert full == [batch_size] * len(full)
    assert 1 <= last <= batch_size


def test_the_generator_decides_the_order():
    def order(generator):
        return torch.cat([*minibatches(100, 7, generator=generator)]).tolist()

    generator = seeded(1)
    first, second = order(generator), order(generator)
    assert first != second != list(range(100)) != first
    assert order(seeded(1)) == first
    assert order(seeded(2)) != first
    torch.manual_seed(3)
    without = order(None)
    torch.manual_seed(3)
    order(seeded(1))  # leaves torch's own generator alone
    assert order(None) == without


def test_every_example_is_as_likely_to_come_first():
    generator = seeded()
    n_draws, n = 2000, 5
    firsts = [
        next(minibatches(n, 2, generator=generator))[0].item()
        for _ in range(n_draws)
    ]
    counts = torch.tensor(firsts).bincount(minlength=n)
    # 400 each, give or take 18; five times that is left to chance.
    assert (counts - n_draws / n).abs().max() < 90


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0), (-1, -1)])
def test_batches_of_nothing_are_refused_at_once(n, batch_size):
    message = f"at least 1, got n_examples={n} and batch_size={batch_size}"
    with pytest.raises(ValueError, match=message):
        minibatches(n, batch_size)


# Clipping


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("max_norm", [0.01, 1, 100.0])
def test_clipping_equals_torch(scale, max_norm):
    gradients = some_gradients(scale)
    mine = with_gradients(*gradients)
    theirs = with_gradients(*gradients)
    norm = clip_gradients(mine, max_norm)
    assert norm.shape == ()
    assert_close(norm, clip_grad_norm_(theirs, max_norm))
    for p, q in zip(mine, theirs, strict=True):
        # torch divides by norm + 1e-6, and where it clips, norm > max_norm.
        assert_close(p.grad, q.grad, rtol=1.1e-6 / max_norm, atol=0)


def test_long_gradients_keep_their_direction_and_get_the_length():
    gradients = some_gradients(10)
    parameters = with_gradients(*gradients)
    addresses = [p.grad.data_ptr() for p in parameters]
    long = torch.cat([g.flatten() for g in gradients])
    norm = clip_gradients((p for p in parameters), 0.5)
    assert_close(norm, long.norm())
    clipped = torch.cat([p.grad.flatten() for p in parameters])
    assert_close(clipped, 0.5 * long / long.norm())
    assert [p.grad.data_ptr() for p in parameters] == addresses
    assert all((p == 1).all() for p in parameters)


@given(st.floats(1e-3, 1), st.integers(0, 99))
@example(1.0, 0)
def test_gradients_that_are_short_keep_every_bit(share, seed):
    gradients = [
        torch.randn(shape, generator=seeded(seed)) for shape in [(), (3, 5)]
    ]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    parameters = with_gradients(*gradients)
    before = clip_gradients(parameters, norm.item() / share * 1.001)
    assert_close(before, norm)
    assert_same_bits([p.grad for p in parameters], gradients)


def test_gradients_of_zero_stay_zero():
    parameters = with_gradients(torch.zeros(3), torch.zeros(2, 2))
    assert clip_gradients(parameters, 1.0) == 0
    assert all((p.grad == 0).all() for p in parameters)


def test_the_three_four_five_triangle():
    a, b, unused = with_gradients(
        torch.tensor([3.0]), torch.tensor([4.0]), None
    )
    assert clip_gradients([unused, a, b], 2.5) == 5
    assert (a.grad.item(), b.grad.item()) == (1.5, 2)
    assert unused.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_not_hidden(bad):
    parameters = with_gradients(torch.tensor([1.0, bad]), torch.ones(3))
    assert not clip_gradients(parameters, 1.0).isfinite()
    assert all(p.grad.isnan().all() for p in parameters)


def test_a_norm_that_overflows_is_not_taken_for_a_gradient_of_zero():
    (parameter,) = with_gradients(torch.full((3,), 1e30))
    assert clip_gradients([parameter], 1.0) == math.inf
    assert parameter.grad.isnan().all()


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan])
def test_a_length_that_is_not_positive_is_refused(max_norm):
    parameters = with_gradients(torch.ones(3))
    message = f"max_norm must be positive, got {max_norm}"
    with pytest.raises(ValueError, match=message):
        clip_gradients(parameters, max_norm)
    assert parameters[0].grad.tolist() == [1, 1, 1]


def test_clipping_before_backward_is_refused():
    for parameters in ([], with_gradients(None)):
        with pytest.raises(ValueError, match=r"got none\. Call backward"):
            clip_gradients(parameters, 1.0)


# Warm-up and cosine


def torch_shares(n_steps, warmup_steps, final):
    """The same schedule, put together from torch's."""
    schedulers = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    peak = max(warmup_steps - 1, 0)
    scheduler = schedulers.CosineAnnealingLR(
        optimizer, T_max=max(n_steps - 1 - peak, 1), eta_min=final
    )
    if peak > 0:
        rise = schedulers.LinearLR(
            optimizer, start_factor=1 / warmup_steps, total_iters=peak
        )
        scheduler = schedulers.SequentialLR(
            optimizer, [rise, scheduler], milestones=[peak]
        )
    shares = []
    for _ in range(n_steps):
        shares.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return shares


def shares(n_steps, warmup_steps, final):
    return [
        warmup_cosine(
            step, n_steps=n_steps, warmup_steps=warmup_steps, final=final
        )
        for step in range(n_steps)
    ]


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("n_steps", "warmup_steps"),
    [(1, 0), (2, 0), (2, 1), (7, 0), (7, 1), (7, 2), (7, 6), (50, 13)],
)
# SequentialLR passes on the step number in a way that torch itself calls
# deprecated.
@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")
def test_the_schedule_equals_torchs(n_steps, warmup_steps, final):
    ours = shares(n_steps, warmup_steps, final)
    theirs = torch_shares(n_steps, warmup_steps, final)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_the_default_ends_at_a_tenth():
    assert warmup_cosine(9, n_steps=10, warmup_steps=2) == 0.1


@given(
    n_steps=st.integers(1, 60),
    warmup=st.floats(0, 1, exclude_max=True),
    final=st.floats(0, 1),
)
@example(n_steps=1, warmup=0.0, final=0.0)
@example(n_steps=2, warmup=0.5, final=0.0)
@example(n_steps=3, warmup=0.7, final=1.0)
def test_the_rate_rises_to_the_top_and_falls_to_the_end(
    n_steps, warmup, final
):
    warmup_steps = int(warmup * n_steps)
    path = shares(n_steps, warmup_steps, final)
    peak = max(warmup_steps - 1, 0)
    assert path[peak] == 1
    if n_steps > 1:
        assert path[-1] == final
    steps = list(itertools.pairwise(path[: peak + 1]))
    assert all(low < high for low, high in steps)
    rises = [high - low for low, high in steps]
    assert rises == pytest.approx([1 / max(warmup_steps, 1)] * len(rises))
    assert all(high >= low for high, low in itertools.pairwise(path[peak:]))
    # Half a cosine is its own mirror image.
    fall = path[peak:]
    mirrored = [1 + final - share for share in reversed(fall)]
    assert len(fall) < 2 or fall == pytest.approx(mirrored)
    lowest = min(final, 1 / max(warmup_steps, 1))
    assert all(lowest <= share <= 1 for share in path)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (0, {"n_steps": 3, "warmup_steps": 3}, "below n_steps, got warmup_st"),
        (0, {"n_steps": 0, "warmup_steps": 0}, "=0 and n_steps=0"),
        (0, {"n_steps": 3, "warmup_steps": -1}, "must be at least 0"),
        (-1, {"n_steps": 3, "warmup_steps": 1}, "step must be from 0 to 2"),
        (3, {"n_steps": 3, "warmup_steps": 1}, "from 0 to 2, got 3"),
        (
            0,
            {"n_steps": 3, "warmup_steps": 1, "final": 1.1},
            r"final must be in \[0, 1\], got 1.1",
        ),
        (
            0,
            {"n_steps": 3, "warmup_steps": 1, "final": -0.1},
            r"final must be in \[0, 1\], got -0.1",
        ),
    ],
)
def test_a_schedule_out_of_range_is_refused(step, options, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(step, **options)


# The loop: reference

LOOPS = {
    "SGD": (
        lambda p: SGD(p, learning_rate=0.3, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
    ),
    "RMSProp": (
        lambda p: RMSProp(p, learning_rate=0.01, foreach=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ),
    "Adam": (
        lambda p: Adam(p, learning_rate=0.02),
        lambda p: torch.optim.Adam(p, lr=0.02),
    ),
    "AdamW": (
        lambda p: AdamW(p, learning_rate=0.02, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.02),
    ),
}


@pytest.mark.parametrize("max_norm", [None, 0.3])
@pytest.mark.parametrize("warmup_steps", [None, 5])
@pytest.mark.parametrize(("ours", "theirs"), LOOPS.values(), ids=LOOPS)
def test_fit_equals_a_loop_written_with_torch(
    ours, theirs, warmup_steps, max_norm
):
    train, validation = examples(50), examples(23, seed=1)
    mine = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    other = copy.deepcopy(mine)
    n_epochs, batch_size, schedule = 4, 16, None
    if warmup_steps is not None:

        def schedule(step):
            return warmup_cosine(step, n_steps=16, warmup_steps=warmup_steps)

    curve = fit(
        mine,
        ours(mine.parameters()),
        train,
        validation,
        n_epochs=n_epochs,
        batch_size=batch_size,
        schedule=schedule,
        max_norm=max_norm,
        generator=seeded(7),
    )

    optimizer = theirs(other.parameters())
    top, step, generator = optimizer.param_groups[0]["lr"], 0, seeded(7)
    train_losses, validation_losses, n_clipped = [], [], 0
    for _ in range(n_epochs):
        total = 0.0
        for batch in minibatches(50, batch_size, generator=generator):
            if schedule is not None:
                optimizer.param_groups[0]["lr"] = top * schedule(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                other(train[0][batch]), train[1][batch]
            )
            loss.backward()
            if max_norm is not None:
                norm = clip_grad_norm_(other.parameters(), max_norm)
                n_clipped += (norm > max_norm).item()
            optimizer.step()
            total += loss.item() * len(batch)
            step += 1
        train_losses.append(total / 50)
        with torch.no_grad():
            loss = nn.functional.cross_entropy(
                other(validation[0]), validation[1]
            )
        validation_losses.append(loss.item())
    # torch clips with norm + 1e-6, of which a part stays in the averages.
    close = {} if max_norm is None else {"rtol": 1e-5, "atol": 1e-5}
    assert_close([*mine.parameters()], [*other.parameters()], **close)
    rel = 1e-9 if max_norm is None else 1e-5
    assert curve.train == pytest.approx(train_losses, rel=rel)
    assert curve.validation == pytest.approx(validation_losses, rel=rel)
    assert max_norm is None or n_clipped > 0


def test_least_squares_are_found():
    x = torch.randn(40, 3).double()
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]).double()
    y += 0.1 * torch.randn(40, 1).double()
    model = nn.Linear(3, 1, bias=False).double()
    curve = fit(
        model,
        SGD(model.parameters(), learning_rate=0.1),
        (x, y),
        n_epochs=100,
        batch_size=40,
        loss_function=mean_squared_error,
    )
    best = torch.linalg.lstsq(x, y).solution
    assert_close(model.weight.detach(), best.T)
    assert curve.train[-1] == pytest.approx(
        (x @ best - y).square().mean().item()
    )


def test_digits_are_learned():
    split = digits()
    model = MLP([64, 64, 10], generator=seeded())
    n_epochs, n_batches = 15, math.ceil(len(split.x_train) / 64)
    curve = fit(
        model,
        AdamW(model.parameters(), learning_rate=0.01, foreach=True),
        (split.x_train, split.labels_train),
        (split.x_test, split.labels_test),
        n_epochs=n_epochs,
        schedule=lambda step: warmup_cosine(
            step, n_steps=n_epochs * n_batches, warmup_steps=n_batches
        ),
        max_norm=1.0,
        generator=seeded(),
    )
    right = model(split.x_test).argmax(dim=1) == split.labels_test
    assert right.float().mean() >= 0.96
    assert curve.train[-1] < 0.1 < 1 < curve.train[0]
    assert curve.validation[curve.best_epoch] == min(curve.validation)


# The loop: worked examples and properties


def test_at_a_rate_of_zero_the_mean_of_the_batches_is_the_loss():
    # Batches of 4, 4 and 2: a mean of their means would weigh the last
    # one's examples twice.
    train, validation = examples(10), examples(7, seed=1)
    model = small_network()
    before = weights_of(model)
    curve = fit(
        model,
        Adam(model.parameters(), learning_rate=0),
        train,
        validation,
        n_epochs=3,
        batch_size=4,
    )
    for losses, (x, labels) in (
        (curve.train, train),
        (curve.validation, validation),
    ):
        expected = nn.functional.cross_entropy(model(x), labels).item()
        assert losses == pytest.approx([expected] * 3, rel=1e-12)
    assert_same_bits(weights_of(model), before)


def test_the_curve_holds_one_number_for_each_epoch():
    model = small_network()
    curve = fit(
        model,
        SGD(model.parameters(), learning_rate=0.1),
        examples(10),
        examples(3),
        n_epochs=2,
        batch_size=4,
        loss_function=scripted([1, 2, 6, 4, 5, 9], validation=[3.0, 2.0]),
    )
    assert curve == LearningCurve(
        train=[(4 * 1 + 4 * 2 + 2 * 6) / 10, (4 * 4 + 4 * 5 + 2 * 9) / 10],
        validation=[3.0, 2.0],
        best_epoch=1,
        n_steps=6,
    )


def test_without_validation_the_curve_says_so():
    model = small_network()
    optimizer = SGD(model.parameters(), learning_rate=0.1)
    curve = fit(model, optimizer, examples(9), n_epochs=2)
    assert len(curve.train) == 2
    assert curve.validation == []
    assert curve.best_epoch == -1


def test_the_default_batch_holds_64():
    sizes = []

    def loss_function(predictions, labels):
        sizes.append(len(labels))
        return cross_entropy(predictions, labels)

    model = small_network()
    optimizer = SGD(model.parameters(), learning_rate=0.1)
    fit(
        model,
        optimizer,
        examples(100),
        n_epochs=1,
        loss_function=loss_function,
    )
    assert sizes == [64, 36]


def fitted(validation_losses, *, n_epochs=10, patience=None):
    """Fit with scripted losses; also return the weights of each epoch."""
    model, weights = small_network(), []
    losses = iter(validation_losses)

    def loss_function(predictions, labels):
        loss = cross_entropy(predictions, labels)
        if torch.is_grad_enabled():
            return loss
        weights.append(weights_of(model))
        return 0 * loss + next(losses)

    curve = fit(
        model,
        SGD(model.parameters(), learning_rate=0.1),
        examples(20),
        examples(5),
        n_epochs=n_epochs,
        batch_size=10,
        loss_function=loss_function,
        patience=patience,
    )
    return curve, weights_of(model), weights


@pytest.mark.parametrize(
    ("losses", "patience", "n_epochs", "best"),
    [
        ([3, 2, 1, 2, 3, 4], 2, 5, 2),  # two in a row without a new best
        ([3, 2, 1, 2, 3, 4], 1, 4, 2),
        ([3, 4, 2, 3, 1, 2, 1.5, 1.2, 0], 3, 8, 4),  # one bad does not count
        ([1, 2, 3, 4], 9, 4, 0),  # ends before patience does
        ([4, 3, 2, 1], 1, 4, 3),
        ([1, 1, 1, 1, 1], 2, 3, 0),  # the same is not lower
        ([5], 1, 1, 0),
    ],
)
def test_patience_ends_and_the_best_parameters_come_back(
    losses, patience, n_epochs, best
):
    curve, end, weights = fitted(
        losses, n_epochs=len(losses), patience=patience
    )
    assert curve.validation == losses[:n_epochs]
    assert len(curve.train) == n_epochs
    assert curve.best_epoch == best
    assert_same_bits(end, weights[best])
    for i, others in enumerate(weights):
        assert i == best or not torch.equal(others[0], end[0])


def test_without_patience_the_last_parameters_stay():
    curve, end, weights = fitted([3, 1, 2, 5], n_epochs=4)
    assert curve.best_epoch == 1
    assert_same_bits(end, weights[-1])


def test_buffers_come_back_too():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model.double()
    means = []

    def loss_function(predictions, labels):
        if torch.is_grad_enabled():
            return cross_entropy(predictions, labels)
        means.append(model[1].running_mean.clone())
        return torch.tensor(float(len(means)))

    fit(
        model,
        SGD(model.parameters(), learning_rate=0.1),
        examples(20),
        examples(5),
        n_epochs=3,
        loss_function=loss_function,
        patience=2,
    )
    assert torch.equal(model[1].running_mean, means[0])
    assert not torch.equal(means[0], means[2])


class Watched(nn.Module):
    """Notes in which mode, and whether for a gradient, it is called."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).double()
        self.calls = []

    def forward(self, x):
        self.calls.append(
            (len(x), self.inner[1].training, torch.is_grad_enabled())
        )
        return self.inner(x)


@pytest.mark.parametrize("was_training", [True, False])
def test_the_model_trains_is_judged_and_gets_its_mode_back(was_training):
    model = Watched()
    model.train(was_training)
    fit(
        model,
        SGD(model.parameters(), learning_rate=0.1),
        examples(8),
        examples(3),
        n_epochs=2,
        batch_size=4,
    )
    epoch = [(4, True, True), (4, True, True), (3, False, False)]
    assert model.calls == 2 * epoch
    assert model.training == model.inner[1].training == was_training


def test_the_validation_examples_teach_nothing():
    def end(validation):
        model = small_network()
        optimizer = Adam(model.parameters(), learning_rate=0.1)
        generator = seeded(5)
        fit(
            model,
            optimizer,
            examples(20),
            validation,
            n_epochs=3,
            batch_size=6,
            generator=generator,
        )
        return weights_of(model)

    assert_same_bits(end(None), end(examples(9, seed=4)))


def test_a_resumed_run_goes_on_with_its_schedule():
    def schedule(step):
        return warmup_cosine(step, n_steps=12, warmup_steps=3)

    def run(model, optimizer, generator, n_epochs, first_step):
        return fit(
            model,
            optimizer,
            examples(10),
            n_epochs=n_epochs,
            batch_size=4,
            schedule=schedule,
            first_step=first_step,
            generator=generator,
        )

    def fresh():
        model = small_network()
        return model, AdamW(model.parameters(), learning_rate=0.1), seeded(5)

    whole, resumed = fresh(), fresh()
    assert run(*whole, 4, 0).n_steps == 12
    n_steps = run(*resumed, 2, 0).n_steps
    assert n_steps == 6
    assert run(*resumed, 2, n_steps).n_steps == 12
    assert_same_bits(weights_of(whole[0]), weights_of(resumed[0]))


def test_the_schedule_sets_the_rate_of_each_step():
    model, rates = small_network(), []
    (first, *others) = model.parameters()
    optimizer = SGD(
        [
            {"parameters": [first], "learning_rate": 0.5},
            {"parameters": others},
        ],
        learning_rate=0.1,
    )

    def loss_function(predictions, labels):
        rates.append([group["learning_rate"] for group in optimizer.groups])
        return cross_entropy(predictions, labels)

    fit(
        model,
        optimizer,
        examples(10),
        n_epochs=2,
        batch_size=4,
        schedule=lambda step: 1 / (1 + step),
        loss_function=loss_function,
    )
    for i, both in enumerate(rates):
        assert both == pytest.approx([0.5 / (1 + i), 0.1 / (1 + i)])
    assert len(rates) == 6
    rates.clear()
    fit(
        model,
        optimizer,
        examples(10),
        n_epochs=1,
        batch_size=4,
        loss_function=loss_function,
    )
    # Without a schedule all stays as it was.
    assert rates == [[g["learning_rate"] for g in optimizer.groups]] * 3
    assert rates[0] == pytest.approx([0.5 / 6, 0.1 / 6])


def step_length(max_norm, *, n_groups=1):
    model = small_network()
    parameters = list(model.parameters())
    groups = [{"parameters": parameters[i::n_groups]} for i in range(n_groups)]
    before = torch.cat([w.flatten() for w in weights_of(model)])
    fit(
        model,
        SGD(groups, learning_rate=1.0),
        examples(20),
        n_epochs=1,
        max_norm=max_norm,
    )
    after = torch.cat([w.flatten() for w in weights_of(model)])
    return (after - before).norm().item()


def test_a_clipped_step_has_the_length_allowed():
    free = step_length(None)
    for n_groups in (1, 2):
        clipped = step_length(free / 3, n_groups=n_groups)
        assert clipped == pytest.approx(free / 3, rel=1e-9)
    assert step_length(free * 3) == free


def test_layers_that_stay_do_not_count_for_clipping():
    ends = []
    for freeze in (False, True):
        model = small_network()
        first, last = model.layers
        first.requires_grad_(not freeze)
        fit(
            model,
            SGD(last.parameters(), learning_rate=0.1),
            examples(30),
            n_epochs=3,
            batch_size=8,
            max_norm=0.1,
            generator=seeded(),
        )
        ends.append(weights_of(model))
    assert_same_bits(*ends)


def test_the_same_seed_gives_the_same_run_bit_for_bit():
    def run(seed):
        model = small_network()
        curve = fit(
            model,
            AdamW(model.parameters(), learning_rate=0.1, foreach=True),
            examples(40),
            examples(10, seed=1),
            n_epochs=3,
            batch_size=7,
            generator=seeded(seed),
        )
        return curve, weights_of(model)

    (curve, end), (again, end_again) = run(1), run(1)
    assert curve == again
    assert_same_bits(end, end_again)
    other, _ = run(2)
    assert other != curve


def test_each_epoch_deals_anew():
    model, seen = small_network(), []
    x, labels = torch.arange(20.0).double().repeat(2, 1).T, examples(20)[1]

    def hook(module, inputs):
        seen.append(inputs[0][:, 0].tolist())

    model.register_forward_pre_hook(hook)
    fit(
        model,
        SGD(model.parameters(), learning_rate=0),
        (x, labels),
        n_epochs=2,
        batch_size=20,
    )
    first, second = seen
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


# The loop: misuse


def quick(model=None, train=None, validation=None, **options):
    model = model or small_network()
    optimizer = SGD(model.parameters(), learning_rate=0.1)
    train = examples(10) if train is None else train
    return fit(model, optimizer, train, validation, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_step(bad):
    model = small_network()
    before = weights_of(model)
    message = (
        rf"^loss must be finite, got {bad} at step 5 with learning_rate 0\.05"
        r"\. Try a smaller one"
    )
    with pytest.raises(FloatingPointError, match=message):
        quick(
            model,
            n_epochs=3,
            batch_size=4,
            loss_function=scripted([1, 1, 1, 1, 1, bad]),
            schedule=lambda step: 1 / (1 + step // 5),
        )
    assert_same_bits(weights_of(model), before)  # and takes no step


def test_a_rate_that_is_too_large_is_found_out():
    model = nn.Linear(2, 1)
    with pytest.raises(FloatingPointError, match="with learning_rate 1000"):
        fit(
            model,
            SGD(model.parameters(), learning_rate=1e3),
            (torch.ones(4, 2), torch.ones(4, 1)),
            n_epochs=100,
            loss_function=mean_squared_error,
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("patience", [None, 1])
def test_a_validation_loss_that_is_not_finite_names_the_step(bad, patience):
    message = f"^validation loss must be finite, got {bad} at step 5 with"
    with pytest.raises(FloatingPointError, match=message):
        quick(
            validation=examples(3),
            n_epochs=3,
            batch_size=4,
            loss_function=scripted(validation=[1.0, bad]),
            patience=patience,
        )


def test_wrong_arguments_are_named():
    for n_epochs in (0, -1):
        message = f"n_epochs must be at least 1, got {n_epochs}"
        with pytest.raises(ValueError, match=message):
            quick(n_epochs=n_epochs)
    with pytest.raises(ValueError, match="got patience=3, validation=None"):
        quick(n_epochs=1, patience=3)
    with pytest.raises(ValueError, match="got patience=0, validation=given"):
        quick(validation=examples(3), n_epochs=1, patience=0)
    with pytest.raises(ValueError, match="got n_examples=10 and batch_size=0"):
        quick(n_epochs=1, batch_size=0)
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        quick(n_epochs=1, max_norm=0)
    with pytest.raises(ValueError, match=r"factor must be .*, got -1"):
        quick(n_epochs=1, schedule=lambda step: -1)
    x, labels = examples(10)
    with pytest.raises(ValueError, match=r"as many x as labels, got 10 and 9"):
        quick(train=(x, labels[:9]), n_epochs=1)
    with pytest.raises(ValueError, match=r"as many x as labels, got 9 and 10"):
        quick(train=(x[:9], labels), n_epochs=1)
    with pytest.raises(ValueError, match="n_examples=0"):
        quick(train=(x[:0], labels[:0]), n_epochs=1)


def test_two_curves_share_no_list():
    LearningCurve().train.append(1.0)
    assert LearningCurve() == LearningCurve([], [], -1)
