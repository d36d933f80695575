"""Milliseconds per pass: our GPT is as fast as the GPT-2 of transformers."""

import random
import statistics
import time

import pytest
import torch

from scratch.llm.gpt import GPT, GPTConfig, count_operations
from scratch.nn.losses import cross_entropy

ROOM = 1.05  # what the noise of the machine may add to a ratio
SIZES = {  # config, batch size, tokens, how often each pass is timed
    "4 layers of 128": (
        GPTConfig(
            vocab_size=8192,
            context_length=128,
            d_model=128,
            n_heads=4,
            n_layers=4,
        ),
        8,
        128,
        25,
    ),
    "6 layers of 384": (
        GPTConfig(
            vocab_size=8192,
            context_length=256,
            d_model=384,
            n_heads=6,
            n_layers=6,
        ),
        4,
        256,
        9,
    ),
    "GPT-2 small": (
        GPTConfig(
            vocab_size=50257,
            context_length=1024,
            d_model=768,
            n_heads=12,
            n_layers=12,
        ),
        1,
        512,
        7,
    ),
}


def our_pass(config, *, fused):
    """Return a function: logits and, where wanted, loss and gradients."""
    model = GPT(
        GPTConfig(**{**vars(config), "fused": fused}),
        generator=torch.Generator().manual_seed(0),
    )

    def run(ids, backward):
        if not backward:
            with torch.no_grad():
                return model(ids)
        model.zero_grad()
        targets = ids.roll(-1, dims=1)
        loss = cross_entropy(model(ids), targets, fused=fused)
        loss.backward()
        return loss.detach()

    return run


def their_pass(model):
    """Return the same for transformers, with the loss that it computes."""

    def run(ids, backward):
        if not backward:
            with torch.no_grad():
                return model(ids).logits
        model.zero_grad()
        # It shifts the labels itself.
        loss = model(ids, labels=ids).loss
        loss.backward()
        return loss.detach()

    return run


def passes_for(config, build):
    return {
        "ours, fused": our_pass(config, fused=True),
        "ours, explicit": our_pass(config, fused=False),
        "transformers, sdpa": their_pass(
            build(config, "sdpa", use_cache=False)
        ),
        "transformers, eager": their_pass(
            build(config, "eager", use_cache=False)
        ),
    }


def seconds_per_pass(passes, ids, backward, n_rounds):
    """Time each in turn, in random order, n_rounds times."""
    seconds = {name: [] for name in passes}
    order = random.Random(0)
    for run in passes.values():
        run(ids, backward)  # the first time takes longer
    for _ in range(n_rounds):
        for name in order.sample(list(passes), len(passes)):
            start = time.perf_counter()
            passes[name](ids, backward)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_of(seconds, other_seconds):
    """Return the median of the ratios, round by round.

    Both passes of a round meet the same machine, busy or not.
    """
    return statistics.median(
        mine / other
        for mine, other in zip(seconds, other_seconds, strict=True)
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("two_threads")
def test_training_is_as_fast_as_that_of_transformers(
    size, gpt2_of_transformers
):
    config, batch_size, n_tokens, n_rounds = SIZES[size]
    passes = passes_for(config, gpt2_of_transformers)
    ids = torch.randint(config.vocab_size, (batch_size, n_tokens))
    print(f"\n\n{size}, {batch_size} x {n_tokens}, two threads")
    print(f"{'':38}  median    best GFLOP/s  ratio to ours, fused")
    for backward in (False, True):
        seconds = seconds_per_pass(passes, ids, backward, n_rounds)
        counted = count_operations(config, n_tokens, backward=backward)
        what = "forward, backward" if backward else "forward"
        ratios = {}
        for name, times in seconds.items():
            median = statistics.median(times)
            speed = batch_size * counted["total"] / median / 1e9
            ratios[name] = ratio_of(times, seconds["ours, fused"])
            print(
                f"  {what:17} {name:19}{1e3 * median:7.0f}"
                f"{1e3 * min(times):8.0f}{speed:8.1f}{ratios[name]:10.2f}"
            )
    for name in ("transformers, sdpa", "transformers, eager"):
        assert ratios[name] * ROOM > 1, name
