"""Tokens per second: our generate with a cache against transformers'."""

import statistics
import time

import pytest
import torch

from scratch.llm.generation import generate
from scratch.llm.gpt import GPT, GPTConfig

pytestmark = pytest.mark.usefixtures("two_threads")

N_NEW = 256
N_ROUNDS = 5
WANTED = 2.0  # times the tokens per second of transformers
SIZES = {
    "4 layers of 128": GPTConfig(vocab_size=4096, context_length=512),
    "6 layers of 384": GPTConfig(
        vocab_size=4096,
        context_length=512,
        d_model=384,
        n_heads=6,
        n_layers=6,
    ),
}


def ours(config):
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    return lambda ids: generate(model, ids, N_NEW, temperature=0)


def theirs(model):
    model.eval()
    return lambda ids: model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=N_NEW,
        min_new_tokens=N_NEW,
        do_sample=False,
        use_cache=True,
    )


@pytest.mark.parametrize("size", SIZES)
def test_generation_is_faster_than_that_of_transformers(
    size, gpt2_of_transformers
):
    config = SIZES[size]
    ids = torch.randint(config.vocab_size, (1, 16))
    runs = {
        "ours": ours(config),
        "transformers": theirs(gpt2_of_transformers(config, pad_token_id=0)),
    }
    seconds = {name: [] for name in runs}
    for run in runs.values():
        assert run(ids).shape == (1, 16 + N_NEW)  # the first takes longer
    for _ in range(N_ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(ids)
            seconds[name].append(time.perf_counter() - start)
    print(f"\n\n{size}, {N_NEW} tokens after 16")
    for name, times in seconds.items():
        speed = N_NEW / statistics.median(times)
        print(f"  {name:14}{speed:8,.0f} tokens per second")
    ratio = statistics.median(
        b / a for a, b in zip(*seconds.values(), strict=True)
    )
    print(f"  ratio {ratio:.2f}")
    assert ratio > WANTED
