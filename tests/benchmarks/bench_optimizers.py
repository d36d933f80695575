"""Milliseconds per step: with foreach, ours are as fast as torch.optim's."""

import os
import random
import statistics
import time

import pytest
import torch
from torch import nn

from scratch.nn.optimizers import SGD, Adam, AdamW, RMSProp

BASE = "torch, foreach"


def gpt_shapes(*, vocab_size, context_length, d_model, n_layers):
    d = d_model
    norms = [(d,)] * 4
    attention = [(3 * d, d), (3 * d,), (d, d), (d,)]
    feed_forward = [(4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    embeddings = [(vocab_size, d), (context_length, d)]
    blocks = n_layers * [*norms, *attention, *feed_forward]
    return [*embeddings, *blocks, (d,), (d,)]


MODELS = {  # shapes of the parameters, and how often each step is timed
    "GPT": (
        gpt_shapes(
            vocab_size=8192, context_length=256, d_model=256, n_layers=10
        ),
        20,
    ),
    "small GPT": (
        gpt_shapes(vocab_size=65, context_length=64, d_model=64, n_layers=4),
        200,
    ),
    "digits": ([(64, 64), (64,), (10, 64), (10,)], 500),
}
# Ours, torch's, options, and how much of torch's time ours may take: where
# the rule is short, the calls themselves weigh more.
RULES = {
    "AdamW": (AdamW, torch.optim.AdamW, {}, 1.1),
    "Adam": (Adam, torch.optim.Adam, {}, 1.1),
    "SGD, momentum": (SGD, torch.optim.SGD, {"momentum": 0.9}, 1.25),
    "RMSProp": (RMSProp, torch.optim.RMSprop, {}, 1.25),
}


def parameters_with_gradients(shapes):
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter.detach())
    return parameters


def optimizers_for(rule, parameters):
    """All of them move the same parameters, each with averages of its own."""
    ours, theirs, options, _ = RULES[rule]
    mine = options | {"learning_rate": 1e-6}
    other = options | {"lr": 1e-6}
    candidates = {
        "ours, plain": ours(parameters, **mine),
        "ours, foreach": ours(parameters, **mine, foreach=True),
        "torch, plain": theirs(parameters, **other, foreach=False),
        BASE: theirs(parameters, **other, foreach=True),
    }
    if ours is not RMSProp:  # torch has no fused one
        candidates["torch, fused"] = theirs(parameters, **other, fused=True)
    return candidates


def seconds_per_step(candidates, n_rounds):
    """Time one step of each in turn, in random order, n_rounds times."""
    seconds = {name: [] for name in candidates}
    order = random.Random(0)
    for optimizer in candidates.values():
        optimizer.step()  # makes the averages
    for _ in range(n_rounds):
        for name in order.sample(list(candidates), len(candidates)):
            start = time.perf_counter()
            candidates[name].step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


@pytest.fixture(params=sorted({1, os.cpu_count()}))
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_foreach_is_as_fast_as_torchs(n_threads):
    print(
        f"\n\nMilliseconds per step, threads: {n_threads}\n"
        f"{'':32}    best  median ratio (of the best to {BASE})"
    )
    slow = []
    for model, (shapes, n_rounds) in MODELS.items():
        parameters = parameters_with_gradients(shapes)
        n_numbers = sum(p.numel() for p in parameters)
        print(f"{model}: {n_numbers:,} numbers in {len(shapes)} tensors")
        for rule, (*_, room) in RULES.items():
            candidates = optimizers_for(rule, parameters)
            seconds = seconds_per_step(candidates, n_rounds)
            for name, times in seconds.items():
                best = min(times)
                ratio = best / min(seconds[BASE])
                print(
                    f"  {rule:15}{name:15}{1e3 * best:8.3f}"
                    f"{1e3 * statistics.median(times):8.3f}{ratio:6.2f}"
                )
                if name == "ours, foreach" and (
                    ratio > room or best > min(seconds["ours, plain"])
                ):
                    slow.append((model, rule, ratio))
    assert not slow
