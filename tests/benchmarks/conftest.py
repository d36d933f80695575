"""What several benchmarks need: two threads, and the GPT-2 of others."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

N_THREADS = 2


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpt2_of_transformers():
    """A function that returns transformers' model for a GPTConfig."""

    def build(config, attention="sdpa", **options):
        settings = {
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
            "loss_type": "ForCausalLM",
        }
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.context_length,
                n_embd=config.d_model,
                n_head=config.n_heads,
                n_layer=config.n_layers,
                attn_implementation=attention,
                **{**settings, **options},
            )
        )

    return build
