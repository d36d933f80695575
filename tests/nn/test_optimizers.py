"""Optimizers step as torch's do, plain or many tensors at once, and resume."""

import copy
import io
import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from scratch.nn import optimizers
from scratch.nn.optimizers import SGD, Adam, AdamW, Optimizer, RMSProp

THEIRS = {
    SGD: torch.optim.SGD,
    RMSProp: torch.optim.RMSprop,
    Adam: torch.optim.Adam,
    AdamW: torch.optim.AdamW,
}
RULES = {  # each with a rate that moves, and all it can keep
    "SGD": lambda p, **more: SGD(p, learning_rate=0.1, **more),
    "momentum": lambda p, **more: SGD(
        p, learning_rate=0.1, momentum=0.9, **more
    ),
    "Nesterov": lambda p, **more: SGD(
        p, learning_rate=0.1, momentum=0.9, nesterov=True, **more
    ),
    "RMSProp": RMSProp,
    "Adam": lambda p, **more: Adam(p, learning_rate=0.1, **more),
    "AdamW": lambda p, **more: AdamW(p, learning_rate=0.1, **more),
}
WAYS = {"plain": None, "foreach": 2**18, "in pieces of 4": 4}

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_foreach = pytest.mark.parametrize(
    "foreach", [False, True], ids=["plain", "foreach"]
)


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def foreach(request, monkeypatch):
    """Whether to update many at once; with the size of a piece set."""
    if request.param:
        monkeypatch.setattr(optimizers, "_PIECE", request.param)
    return request.param is not None


def combinations(ours, **choices):
    """All ways to choose one of the values of each option."""
    return [
        (ours, dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]


DECAYS = {"learning_rate": [0.02], "weight_decay": [0, 0.1]}
SIZES = {"eps": [1e-8, 0.01], **DECAYS}
CASES = [
    *combinations(SGD, **DECAYS),
    *combinations(SGD, momentum=[0.5, 0.9], nesterov=[False, True], **DECAYS),
    *combinations(RMSProp, decay=[0.99, 0.5], **SIZES),
    *combinations(Adam, beta1=[0.9], beta2=[0.999, 0.5], **SIZES),
    *combinations(Adam, beta1=[0.0], beta2=[0.9], **SIZES),
    *combinations(AdamW, beta1=[0.9], beta2=[0.999, 0.5], **SIZES),
    *combinations(AdamW, beta1=[0.0], beta2=[0.9], **SIZES),
]


def torch_names(options):
    """Return the same options as torch calls them."""
    names = {"learning_rate": "lr", "decay": "alpha", "parameters": "params"}
    named = {names.get(k, k): v for k, v in options.items()}
    betas = named.pop("beta1", 0.9), named.pop("beta2", 0.999)
    return named | {"betas": betas} if "beta1" in options else named


def tensors(dtype=torch.float64):
    """Parameters of all shapes: 0-d, empty, transposed, with gaps.

    Their values are the same each time.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    values = [
        draw(),
        draw(1),
        draw(7),
        draw(3, 5),
        draw(5, 2).T,
        draw(3, 4)[:, ::2],
        draw(2, 3, 2),
        draw(2, 0),
    ]
    return [nn.Parameter(value) for value in values]


def copies(parameters):
    return [nn.Parameter(p.detach().clone()) for p in parameters]


def detached(parameters):
    return [p.detach().clone() for p in parameters]


def draw_gradients(parameters, *, missing=0.0):
    """One random gradient for each parameter, or None."""
    gradients = []
    for p in parameters:
        size = 10 ** (4 * torch.rand(()) - 2)
        gradient = size * torch.randn_like(p.detach())
        if p.ndim == 3:  # need not lie in memory as its parameter does
            gradient = gradient.mT.contiguous().mT
        gradients.append(gradient if torch.rand(()) >= missing else None)
    return gradients


def walk(optimizer, parameters, gradients):
    """Take a step with each row of gradients."""
    for row in gradients:
        for p, gradient in zip(parameters, row, strict=True):
            p.grad = None if gradient is None else gradient.clone()
        optimizer.step()


def some_gradients(parameters, n_steps):
    return [draw_gradients(parameters) for _ in range(n_steps)]


def assert_same_bits(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


# Reference


@pytest.mark.parametrize(
    ("ours", "options"), CASES, ids=lambda x: getattr(x, "__name__", None)
)
def test_200_steps_equal_torch(ours, options, monkeypatch):
    theirs = tensors()
    reference = THEIRS[ours](theirs, **torch_names(options), foreach=False)
    mine = {way: tensors() for way in WAYS}
    optimizers_ = {
        way: ours(mine[way], **options, foreach=way != "plain") for way in WAYS
    }
    for step in range(200):
        # Without a gradient a parameter stays, and its steps do not count.
        row = draw_gradients(theirs, missing=0.2)
        walk(reference, theirs, [row])
        for way, piece in WAYS.items():
            monkeypatch.setattr(optimizers, "_PIECE", piece)
            walk(optimizers_[way], mine[way], [row])
        if step == 100:
            reference.param_groups[0]["lr"] = 0.3 * options["learning_rate"]
            for optimizer in optimizers_.values():
                optimizer.scale_learning_rate(0.3)
    for way in WAYS:
        assert_close(mine[way], theirs, msg=lambda text, way=way: way + text)


@pytest.mark.parametrize("ours", THEIRS)
def test_defaults_are_torchs(ours, foreach):
    mine = tensors()
    theirs = copies(mine)
    rate = {"learning_rate": 0.001} if ours is SGD else {}
    optimizer = ours(mine, **rate, foreach=foreach)
    reference = THEIRS[ours](theirs, **torch_names(rate))
    gradients = some_gradients(mine, 20)
    walk(optimizer, mine, gradients)
    walk(reference, theirs, gradients)
    assert_close(mine, theirs)
    expected = torch_names(optimizer.groups[0])
    for name, value in expected.items():
        if name not in ("params", "first_rate"):
            assert reference.param_groups[0][name] == value, name


@pytest.mark.parametrize(
    ("ours", "options", "names"),
    [
        (SGD, {"momentum": 0.9}, {"velocity": "momentum_buffer"}),
        (RMSProp, {}, {"square": "square_avg"}),
        (Adam, {}, {"mean": "exp_avg", "square": "exp_avg_sq"}),
        (AdamW, {}, {"mean": "exp_avg", "square": "exp_avg_sq"}),
    ],
)
def test_the_averages_kept_are_torchs(ours, options, names, foreach):
    mine, theirs = tensors(), tensors()
    optimizer = ours(mine, learning_rate=0.1, **options, foreach=foreach)
    reference = THEIRS[ours](theirs, lr=0.1, **options)
    gradients = some_gradients(mine, 3)
    walk(optimizer, mine, gradients)
    walk(reference, theirs, gradients)
    for p, q in zip(mine, theirs, strict=True):
        assert optimizer.state[p].keys() == {"n_steps", *names}
        for name, theirs_name in names.items():
            assert_close(
                optimizer.state[p][name], reference.state[q][theirs_name]
            )


GROUPS = {
    SGD: {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
    RMSProp: {"decay": 0.8, "eps": 0.1, "weight_decay": 0.1},
    Adam: {"beta1": 0.5, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1},
    AdamW: {"beta1": 0.5, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.5},
}


@pytest.mark.parametrize("ours", GROUPS)
def test_groups_with_own_options_equal_torch(ours, foreach):
    mine = tensors()
    theirs = copies(mine)
    own = {"learning_rate": 0.03, **GROUPS[ours]}

    def groups(p):
        return [
            {"parameters": p[:3], **own},
            {"parameters": p[3:4], "weight_decay": 0.2},
            {"parameters": p[4:]},
        ]

    optimizer = ours(groups(mine), learning_rate=0.02, foreach=foreach)
    reference = THEIRS[ours](map(torch_names, groups(theirs)), lr=0.02)
    for factor in (1.0, 0.5):
        optimizer.scale_learning_rate(factor)
        for group in reference.param_groups:
            group["lr"] *= factor
        gradients = some_gradients(mine, 20)
        walk(optimizer, mine, gradients)
        walk(reference, theirs, gradients)
        assert_close(mine, theirs)
    rates = [group["learning_rate"] for group in optimizer.groups]
    assert rates == [0.015, 0.01, 0.01]
    assert optimizer.learning_rate == 0.015


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (SGD, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
        (RMSProp, {"learning_rate": 0.003, "weight_decay": 0.01}),
        (Adam, {"learning_rate": 0.01, "weight_decay": 0.01}),
        (AdamW, {"learning_rate": 0.01, "weight_decay": 0.1}),
    ],
)
def test_a_network_learns_as_with_torch(ours, options, foreach):
    x, y = torch.randn(11, 5).double(), torch.randn(11, 3).double()
    mine = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    theirs = copy.deepcopy(mine)
    optimizer = ours(mine.parameters(), **options, foreach=foreach)
    reference = THEIRS[ours](theirs.parameters(), **torch_names(options))
    losses = []
    for _ in range(200):
        for model, rule in ((mine, optimizer), (theirs, reference)):
            rule.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            rule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert_close([*mine.parameters()], [*theirs.parameters()])


@pytest.mark.parametrize("ours", THEIRS)
def test_float32_stays_float32_and_equals_torch(ours, foreach):
    mine = tensors(torch.float32)
    theirs = copies(mine)
    optimizer = ours(
        mine, learning_rate=0.01, weight_decay=0.1, foreach=foreach
    )
    reference = THEIRS[ours](theirs, lr=0.01, weight_decay=0.1)
    gradients = some_gradients(mine, 50)
    walk(optimizer, mine, gradients)
    walk(reference, theirs, gradients)
    assert_close(mine, theirs)
    for state in optimizer.state.values():
        for value in state.values():
            assert isinstance(value, int) or value.dtype == torch.float32


@pytest.mark.parametrize("ours", THEIRS)
def test_parameters_larger_than_a_piece_equal_torch(ours):
    n = optimizers._PIECE
    mine = [
        nn.Parameter(torch.randn(shape))
        for shape in [(3,), (n + 5,), (2, 3), (2, n), (n,), (5,)]
    ]
    theirs = copies(mine)
    optimizer = ours(mine, learning_rate=0.01, foreach=True)
    reference = THEIRS[ours](theirs, lr=0.01)
    gradients = [
        [torch.randn_like(p.detach()) for p in mine] for _ in range(2)
    ]
    walk(optimizer, mine, gradients)
    walk(reference, theirs, gradients)
    assert_close(mine, theirs)


class OnAnotherDevice(nn.Parameter):
    """A tensor of the CPU that claims to be elsewhere."""

    is_cpu = False


@pytest.mark.parametrize("ours", THEIRS)
def test_off_the_cpu_one_call_moves_all(ours, monkeypatch):
    monkeypatch.setattr(optimizers, "_PIECE", 4)
    mine = [OnAnotherDevice(p.detach()) for p in tensors()]
    theirs = copies(mine)
    optimizer = ours(mine, learning_rate=0.01, foreach=True)
    reference = THEIRS[ours](theirs, lr=0.01)
    for p, q in zip(mine[:3], theirs[:3], strict=True):
        p.grad, q.grad = torch.ones(2, *p.shape).double()
    optimizer.step()  # so that steps differ within the one call
    reference.step()
    calls = []
    update_all = ours._update_all
    monkeypatch.setattr(
        ours,
        "_update_all",
        lambda *run: (calls.append(run), update_all(*run)),
    )
    gradients = some_gradients(theirs, 3)
    walk(optimizer, mine, gradients)
    walk(reference, theirs, gradients)
    assert len(calls) == 3
    assert [p.data_ptr() for p in calls[0][1]] == [p.data_ptr() for p in mine]
    assert_close(detached(mine), detached(theirs))


def test_momentum_that_sets_in_later_equals_torch(foreach):
    mine = tensors()
    theirs = copies(mine)
    optimizer = SGD(mine, learning_rate=0.1, foreach=foreach)
    reference = torch.optim.SGD(theirs, lr=0.1)
    for momentum in (0.0, 0.9):
        optimizer.groups[0]["momentum"] = momentum
        reference.param_groups[0]["momentum"] = momentum
        gradients = some_gradients(mine, 3)
        walk(optimizer, mine, gradients)
        walk(reference, theirs, gradients)
    assert_close(mine, theirs)


# Worked examples


def path(optimizer_class, gradients, *, start=0.0, foreach=False, **options):
    """Where one parameter is after each gradient."""
    p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = optimizer_class([p], foreach=foreach, **options)
    places = []
    for gradient in gradients:
        walk(optimizer, [p], [[torch.tensor(gradient, dtype=torch.float64)]])
        places.append(p.item())
    return places


@each_foreach
@pytest.mark.parametrize(
    ("rule", "options", "gradients", "expected"),
    [
        # velocities: 1, 1.5, 1.75
        (SGD, {"momentum": 0.5}, [1, 1, 1], [-0.1, -0.25, -0.425]),
        # 1 + half of each velocity: 1.5, 1.75
        (
            SGD,
            {"momentum": 0.5, "nesterov": True},
            [1, 1],
            [-0.15, -0.325],
        ),
        # mean squares: 1, then 0.75 + 1
        (
            RMSProp,
            {"decay": 0.75, "eps": 0},
            [2, 2],
            [-0.2, -0.2 - 0.2 / math.sqrt(1.75)],
        ),
        # mean squares 1 and 0.75, to which eps is added under no root
        (
            RMSProp,
            {"decay": 0.75, "eps": 1},
            [2, 0],
            [-0.1, -0.1],
        ),
        # an even slope is divided by itself
        (Adam, {"eps": 0}, [-7, -7, -7], [0.1, 0.2, 0.3]),
        # m = 8 / 3, v = (4 * 0.75 + 16) / 7 * 4 / 4
        (
            Adam,
            {"beta1": 0.5, "beta2": 0.75, "eps": 1},
            [2, 4],
            [
                -0.1 * 2 / 3,
                -0.1 * 2 / 3 - 0.1 * (2.5 / 0.75) / (1 + math.sqrt(76 / 7)),
            ],
        ),
    ],
)
def test_steps_on_paper(rule, options, gradients, expected, foreach):
    places = path(
        rule, gradients, foreach=foreach, learning_rate=0.1, **options
    )
    assert places == pytest.approx(expected, rel=1e-12)


@each_foreach
def test_adamw_shrinks_first_and_then_steps(foreach):
    places = path(
        AdamW,
        [5, 5],
        start=1.0,
        foreach=foreach,
        learning_rate=0.1,
        weight_decay=0.5,
        eps=0,
    )
    assert places == pytest.approx([0.95 - 0.1, 0.95 * 0.85 - 0.1], rel=1e-12)


# Properties

shapes = st.lists(st.integers(0, 4), max_size=3)


@given(
    shape=st.lists(shapes, min_size=1, max_size=5),
    piece=st.integers(1, 30),
    name=st.sampled_from(sorted(RULES)),
)
@example(shape=[[]], piece=1, name="Adam")
@example(shape=[[0]], piece=1, name="Adam")
@example(shape=[[4], [2], [3, 3]], piece=4, name="momentum")
def test_many_at_once_equals_one_by_one(shape, piece, name):
    plain = [nn.Parameter(torch.randn(sizes).double()) for sizes in shape]
    many = copies(plain)
    gradients = [draw_gradients(plain, missing=0.3) for _ in range(3)]
    walk(RULES[name](plain, weight_decay=0.1), plain, gradients)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "_PIECE", piece)
        rule = RULES[name](many, weight_decay=0.1, foreach=True)
        walk(rule, many, gradients)
    assert_close(many, plain)


def test_small_tensors_share_a_call_and_large_ones_are_cut(monkeypatch):
    monkeypatch.setattr(optimizers, "_PIECE", 10)
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3, 4, 5, 2, 25, 1)]
    calls = []
    monkeypatch.setattr(
        SGD,
        "_update_all",
        lambda self, p, *_: calls.append([x.numel() for x in p]),
    )
    optimizer = SGD(parameters, learning_rate=0.1, foreach=True)
    walk(optimizer, parameters, some_gradients(parameters, 1))
    assert calls == [[3, 4, 5], [2, 10], [10], [5, 1]]


@each_rule
def test_a_bowl_is_descended_to_its_bottom(rule, foreach):
    curvature = torch.tensor([1.0, 3.0, 10.0]).double()
    bottom = torch.tensor([0.5, -1.0, 0.2]).double()
    p = nn.Parameter(torch.zeros(3).double())
    optimizer = rule([p], weight_decay=0, foreach=foreach)
    for step in range(500):
        optimizer.scale_learning_rate(1 - step / 500)
        optimizer.zero_grad()
        (curvature * (p - bottom).square() / 2).sum().backward()
        optimizer.step()
    assert_close(p.detach(), bottom, rtol=0, atol=1e-3)


@each_rule
def test_a_rate_of_zero_changes_nothing(rule, foreach):
    parameters = tensors()
    before = detached(parameters)
    optimizer = rule(parameters, weight_decay=0.1, foreach=foreach)
    optimizer.scale_learning_rate(0)
    walk(optimizer, parameters, some_gradients(parameters, 3))
    assert_same_bits(parameters, before)
    optimizer.scale_learning_rate(1)
    walk(optimizer, parameters, some_gradients(parameters, 1))
    assert not torch.equal(parameters[2], before[2])


@given(size=st.floats(-6, 6), sign=st.sampled_from([-1, 1]))
@example(size=-6.0, sign=1)
def test_the_first_step_of_adam_is_the_rate_whatever_the_slope(size, sign):
    for foreach in (False, True):
        (place,) = path(
            Adam,
            [sign * 10**size],
            foreach=foreach,
            learning_rate=0.02,
            eps=0,
        )
        assert place == pytest.approx(-sign * 0.02, rel=1e-12)


def decay_after(rule, size, *, foreach, n_steps=100):
    """How far weight decay has pulled, with slopes of +-size."""
    slopes = [(-1) ** i * size for i in range(n_steps)]
    with_decay, without = (
        path(
            rule,
            slopes,
            start=1.0,
            foreach=foreach,
            learning_rate=0.01,
            weight_decay=weight_decay,
        )
        for weight_decay in (0.1, 0.0)
    )
    return without[-1] - with_decay[-1]


@each_foreach
def test_large_slopes_drown_the_decay_of_adam_but_not_of_adamw(foreach):
    adam = [decay_after(Adam, 10.0**i, foreach=foreach) for i in range(4)]
    adamw = [decay_after(AdamW, 10.0**i, foreach=foreach) for i in range(4)]
    for less, more in itertools.pairwise(reversed(adam)):
        assert 0 < 5 * less < more
    # Nearly all of (1 - 0.001)^100, at each size.
    assert adamw == pytest.approx([adamw[0]] * 4, rel=1e-6)
    assert 0.09 < adamw[0] < 0.1


@each_rule
def test_what_has_no_gradient_stays_and_keeps_no_state(rule, foreach):
    used, unused = parameters = copies([torch.ones(6), torch.ones(5)])
    optimizer = rule(parameters, foreach=foreach)
    walk(optimizer, parameters, [[torch.ones(6), None]] * 3)
    assert unused.tolist() == [1] * 5
    assert (used < 1).all()
    assert list(optimizer.state) == [used]
    assert optimizer.state[used]["n_steps"] == 3
    assert optimizer.state_dict()["state"][1] == {}


def test_only_momentum_keeps_a_velocity():
    p = nn.Parameter(torch.ones(2))
    for momentum, names in (
        (0.0, {"n_steps"}),
        (0.5, {"n_steps", "velocity"}),
    ):
        optimizer = SGD([p], learning_rate=0.1, momentum=momentum)
        walk(optimizer, [p], [[torch.ones(2)]])
        assert optimizer.state[p].keys() == names


def test_nesterov_without_momentum_is_plain_descent(foreach):
    mine, theirs = tensors(), None
    theirs = copies(mine)
    gradients = some_gradients(mine, 3)
    rule = SGD(mine, learning_rate=0.1, nesterov=True, foreach=foreach)
    walk(rule, mine, gradients)
    walk(torch.optim.SGD(theirs, lr=0.1), theirs, gradients)
    assert_close(mine, theirs)


@each_rule
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_moves_leaves_in_place_and_leaves_gradients_alone(
    rule, weight_decay, foreach
):
    frozen = nn.Parameter(torch.ones(5), requires_grad=False)
    moved = nn.Parameter(torch.ones(9))
    address = moved.data_ptr()
    optimizer = rule(
        [frozen, moved], weight_decay=weight_decay, foreach=foreach
    )
    (moved * torch.arange(9.0)).sum().backward()
    with torch.no_grad():
        optimizer.step()
    optimizer.step()
    assert moved.grad.tolist() == list(range(9))
    assert moved.requires_grad and moved.is_leaf and moved.grad_fn is None
    assert moved.data_ptr() == address
    assert not frozen.requires_grad
    assert frozen.tolist() == [1] * 5
    for value in optimizer.state[moved].values():
        assert isinstance(value, int) or not value.requires_grad
    (moved * moved).sum().backward()  # autograd still takes it


def test_zero_grad_forgets():
    used, unused = copies([torch.ones(3), torch.ones(2)])
    optimizer = SGD(
        [{"parameters": [unused]}, {"parameters": [used]}], learning_rate=0.1
    )
    used.sum().backward()
    optimizer.zero_grad()
    assert used.grad is None and unused.grad is None
    optimizer.step()
    assert used.tolist() == [1] * 3


@each_rule
def test_generators_are_taken(rule):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    every = list(model.parameters())
    optimizer = rule(p for p in every)
    assert optimizer.groups[0]["parameters"] == every
    groups = (
        {"parameters": layer.parameters(), "weight_decay": 0.1 * i}
        for i, layer in enumerate(model)
    )
    optimizer = rule(groups)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert list(optimizer.state) == every
    assert [len(group["parameters"]) for group in optimizer.groups] == [2, 2]
    assert [g["weight_decay"] for g in optimizer.groups] == [0.0, 0.1]


def test_the_callers_groups_are_not_changed():
    p = nn.Parameter(torch.ones(2))
    group = {"parameters": [p], "weight_decay": 0.5}
    optimizer = SGD([group], learning_rate=0.1)
    optimizer.scale_learning_rate(0.5)
    optimizer.groups[0]["parameters"].clear()
    assert group == {"parameters": [p], "weight_decay": 0.5}


def test_the_rate_is_scaled_from_where_it_began():
    p, q = copies([torch.ones(2), torch.ones(2)])
    groups = [
        {"parameters": [p]},
        {"parameters": [q], "learning_rate": 0.3},
    ]
    optimizer = Adam(groups, learning_rate=0.1)
    assert optimizer.learning_rate == 0.1
    for factor in (0.5, 2.0, 1.0):
        optimizer.scale_learning_rate(factor)
        rates = [group["learning_rate"] for group in optimizer.groups]
        assert rates == [factor * 0.1, factor * 0.3]
        assert optimizer.learning_rate == rates[0]


@each_foreach
def test_a_rule_of_ones_own_needs_three_methods(foreach):
    class SignDescent(Optimizer):
        def _averages(self, group):
            return ()

        def _update(self, parameter, grad, state, group):
            parameter -= group["learning_rate"] * grad.sign()

        def _update_all(self, parameters, grads, averages, n_steps, group):
            torch._foreach_sub_(
                parameters, torch._foreach_sign(grads), alpha=0.5
            )

    p = nn.Parameter(torch.zeros(3))
    optimizer = SignDescent([p], learning_rate=0.5, foreach=foreach)
    walk(optimizer, [p], [[torch.tensor([-3.0, 0.0, 0.1])]])
    assert p.tolist() == [0.5, 0, -0.5]


# Saving and loading


def saved_and_read(optimizer):
    """What comes back from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_rule
def test_a_loaded_optimizer_goes_on_bit_for_bit(rule, foreach):
    parameters = tensors()
    optimizer = rule(parameters, weight_decay=0.1, foreach=foreach)
    first, second = (
        [draw_gradients(parameters, missing=0.3) for _ in range(10)]
        for _ in range(2)
    )
    walk(optimizer, parameters, first)
    optimizer.scale_learning_rate(0.7)
    saved, resumed = saved_and_read(optimizer), copies(parameters)
    fresh = rule(resumed, weight_decay=0.5, foreach=foreach)
    fresh.groups[0]["learning_rate"] = fresh.groups[0]["first_rate"] = 99.0
    fresh.load_state_dict(saved)
    for old, new in zip(parameters, resumed, strict=True):
        assert optimizer.state[old]["n_steps"] == fresh.state[new]["n_steps"]
    assert fresh.learning_rate == optimizer.learning_rate
    for optimizer_, p in ((optimizer, parameters), (fresh, resumed)):
        walk(optimizer_, p, second[:5])
        optimizer_.scale_learning_rate(0.4)  # of the rate it was made with
        walk(optimizer_, p, second[5:])
    assert fresh.learning_rate == optimizer.learning_rate
    assert_same_bits(resumed, parameters)
    ours, theirs = optimizer.state_dict(), fresh.state_dict()
    assert ours["groups"] == theirs["groups"]
    for mine, other in zip(ours["state"], theirs["state"], strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(other[name])
            )


@each_rule
def test_what_was_saved_does_not_change_when_loaded_and_used(rule, foreach):
    parameters = tensors()
    optimizer = rule(parameters, foreach=foreach)
    walk(optimizer, parameters, some_gradients(parameters, 3))
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    ends, gradients = [], some_gradients(parameters, 3)
    for _ in range(2):
        mine = copies(parameters)
        fresh = rule(mine, foreach=foreach)
        fresh.load_state_dict(saved)
        walk(fresh, mine, gradients)
        fresh.scale_learning_rate(0.1)
        ends.append(mine)
        assert saved["groups"] == kept["groups"]
        for now, before in zip(saved["state"], kept["state"], strict=True):
            assert now["n_steps"] == before["n_steps"] == 3
            for name in now.keys() - {"n_steps"}:
                assert torch.equal(now[name], before[name])
    assert_same_bits(*ends)


@each_foreach
def test_each_group_gets_its_own_options_back(foreach):
    def grouped():
        p, q = copies([torch.ones(3), torch.ones(2)])
        groups = [{"parameters": [p]}, {"parameters": [q]}]
        return Adam(groups, learning_rate=0.1, foreach=foreach)

    optimizer, fresh = grouped(), grouped()
    for i, group in enumerate(optimizer.groups):
        group["learning_rate"] = 0.5 + i
        group["beta1"] = 0.1 + i / 10
    fresh.load_state_dict(optimizer.state_dict())
    assert [g["learning_rate"] for g in fresh.groups] == [0.5, 1.5]
    assert [g["beta1"] for g in fresh.groups] == [0.1, 0.2]


def test_averages_may_lie_in_memory_in_another_order(foreach):
    ends = []
    gradients = [[torch.randn(3, 5).double()] for _ in range(2)]
    for transpose in (False, True):
        p = nn.Parameter(torch.ones(3, 5).double())
        optimizer = Adam([p], learning_rate=0.1, foreach=foreach)
        walk(optimizer, [p], gradients[:1])
        saved = optimizer.state_dict()
        if transpose:
            for name in ("mean", "square"):
                value = saved["state"][0][name]
                saved["state"][0][name] = value.T.contiguous().T
        optimizer.load_state_dict(saved)
        walk(optimizer, [p], gradients[1:])
        ends.append(p)
    assert_close(*ends)


def test_a_state_dict_is_plain_and_holds_the_tensors_themselves():
    p = nn.Parameter(torch.ones(2))
    optimizer = Adam([p], learning_rate=0.1, beta1=0.5)
    walk(optimizer, [p], [[torch.ones(2)]])
    saved = optimizer.state_dict()
    assert saved["groups"] == [
        {
            "learning_rate": 0.1,
            "first_rate": 0.1,
            "beta1": 0.5,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
        }
    ]
    (state,) = saved["state"]
    assert state.keys() == {"n_steps", "mean", "square"}
    assert state["mean"] is optimizer.state[p]["mean"]
    walk(optimizer, [p], [[torch.ones(2)]])
    optimizer.scale_learning_rate(0.5)
    assert state["n_steps"] == 1
    assert saved["groups"][0]["learning_rate"] == 0.1


def test_a_loaded_state_takes_the_type_of_its_parameter():
    double, single = copies([torch.ones(3).double(), torch.ones(3)])
    optimizer, fresh = Adam([double]), Adam([single])
    walk(optimizer, [double], [[torch.ones(3).double()]])
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.state[single]["mean"].dtype == torch.float32
    assert_close(fresh.state[single]["mean"], torch.full((3,), 0.1))


def test_loading_forgets_what_came_before():
    p = nn.Parameter(torch.ones(3))
    optimizer = Adam([p])
    unused = optimizer.state_dict()
    walk(optimizer, [p], [[torch.ones(3)]])
    optimizer.load_state_dict(unused)
    assert optimizer.state == {}


# Misuse


@each_rule
def test_parameters_must_be_there_and_differ(rule):
    p, q = copies([torch.ones(2), torch.ones(2)])
    message = "one or more different tensors, got 0, of which 0 differ"
    for nothing in ([], iter([]), [{"parameters": []}]):
        with pytest.raises(ValueError, match=message):
            rule(nothing)
    with pytest.raises(ValueError, match="got 3, of which 2 differ"):
        rule([p, q, p])
    with pytest.raises(ValueError, match="got 2, of which 1 differ"):
        rule([{"parameters": [p]}, {"parameters": [p]}])
    rule([{"parameters": []}, {"parameters": [p]}])


def test_parameters_must_be_tensors_that_are_trained():
    model = nn.Linear(2, 3)
    with pytest.raises(TypeError, match="must be tensors, got tuple"):
        SGD(model.named_parameters(), learning_rate=0.1)
    with pytest.raises(TypeError, match="must be tensors, got list"):
        SGD([list(model.parameters())], learning_rate=0.1)
    message = "must not be results of a computation, got one of "
    with pytest.raises(ValueError, match=message + "MulBackward0"):
        SGD([2 * model.weight], learning_rate=0.1)
    with pytest.raises(ValueError, match=r"single tensor x goes in as \[x\]"):
        SGD(model.weight, learning_rate=0.1)
    with pytest.raises(ValueError, match=message):
        SGD([{"parameters": model.weight}], learning_rate=0.1)


@pytest.mark.parametrize("ours", THEIRS)
def test_an_unknown_option_is_named(ours):
    p = nn.Parameter(torch.ones(2))
    group = {"parameters": [p], "lr": 1, "gamma": 2}
    with pytest.raises(
        ValueError, match=r"among learning_rate.*weight_decay.*got gamma, lr"
    ):
        ours([group], learning_rate=0.1)
    with pytest.raises(ValueError, match=r"got params$"):
        ours([{"params": [p]}], learning_rate=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        ours([p], learning_rate=0.1, lr=0.1)


def test_gradient_descent_has_no_default_rate():
    with pytest.raises(TypeError, match="argument: 'learning_rate'"):
        SGD([nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (ours, name)
        for ours in THEIRS
        for name in ("learning_rate", "weight_decay", "eps")
        if (ours, name) != (SGD, "eps")
    ],
)
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_a_negative_or_endless_option_is_refused(ours, name, value):
    p = nn.Parameter(torch.ones(2))
    message = f"{name} must be finite and at least 0, got {value}"
    with pytest.raises(ValueError, match=message):
        ours([p], **{"learning_rate": 0.1, name: value})
    with pytest.raises(ValueError, match=message):
        ours([{"parameters": [p], name: value}], learning_rate=0.1)
    ours([p], **{"learning_rate": 0.1, name: 0})


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (SGD, "momentum"),
        (RMSProp, "decay"),
        (Adam, "beta1"),
        (Adam, "beta2"),
        (AdamW, "beta1"),
        (AdamW, "beta2"),
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan])
def test_a_share_outside_its_range_is_refused(ours, name, value):
    p = nn.Parameter(torch.ones(2))
    message = rf"{name} must be in \[0, 1\), got {value}"
    with pytest.raises(ValueError, match=message):
        ours([p], **{"learning_rate": 0.1, name: value})
    with pytest.raises(ValueError, match=message):
        ours([{"parameters": [p], name: value}], learning_rate=0.1)
    ours([p], **{"learning_rate": 0.1, name: 0})


@pytest.mark.parametrize("factor", [-0.5, math.inf, math.nan])
def test_a_negative_or_endless_factor_is_refused(factor):
    optimizer = SGD([nn.Parameter(torch.ones(2))], learning_rate=0.1)
    message = f"factor must be finite and at least 0, got {factor}"
    with pytest.raises(ValueError, match=message):
        optimizer.scale_learning_rate(factor)
    assert optimizer.learning_rate == 0.1


def test_a_foreign_state_is_refused_and_nothing_is_taken_over():
    def trained(rule, *sizes, **options):
        parameters = [nn.Parameter(torch.ones(size)) for size in sizes]
        optimizer = rule(parameters, learning_rate=0.5, **options)
        walk(optimizer, parameters, [[torch.ones(size) for size in sizes]])
        return optimizer

    optimizer = trained(Adam, 2, 3)
    optimizer.groups[0]["learning_rate"] = 0.25
    before = copy.deepcopy(optimizer.state_dict())
    two_groups = Adam(
        [{"parameters": [p]} for p in optimizer.groups[0]["parameters"]]
    )
    for other, message in [
        (trained(Adam, 2), "1 groups and .* of 2 parameters, got 1 and 1"),
        (two_groups, "1 groups and the state of 2 parameters, got 2 and 2"),
        (trained(Adam, 2, 4), r"saved mean must have shape \(3,\), got \(4,"),
        (
            trained(RMSProp, 2, 3),
            "options beta1, beta2, eps, .*; got decay, eps, first_rate",
        ),
        (trained(SGD, 2, 3), "; got first_rate, learning_rate, momentum"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
        after = optimizer.state_dict()
        assert after["groups"] == before["groups"]
        for now, then in zip(after["state"], before["state"], strict=True):
            assert now["n_steps"] == then["n_steps"]
            assert torch.equal(now["mean"], then["mean"])
