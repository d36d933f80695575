"""Presets: sizes of models, and how to train each, all in one place."""

import math
from dataclasses import dataclass
from typing import Any

from scratch.llm.gpt import GPTConfig
from scratch.llm.training import TrainConfig

N_LOOKS = 10  # at the held-out text, in a run
_N_SAVES = 20  # checkpoints that are written in a run


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A size of model, with the settings that suit it.

    Attributes:
        tokens_wanted: tokens of text below which the model is larger than
            the text deserves.
        suits: what it is for, in a few words.
    """

    vocab_size: int
    context_length: int
    d_model: int
    n_heads: int
    n_layers: int
    batch_size: int
    learning_rate: float
    tokens_wanted: int
    suits: str
    dropout: float = 0.0

    def model(self, vocab_size: int | None = None) -> GPTConfig:
        """Return the model's sizes, with the tokenizer's own vocab_size."""
        return GPTConfig(
            vocab_size=vocab_size or self.vocab_size,
            context_length=self.context_length,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            dropout=self.dropout,
        )

    def training(self, n_steps: int, **changes: Any) -> TrainConfig:
        """Return how to train it for n_steps."""
        settings = {
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "warmup_steps": min(100, n_steps // 10),
            "eval_every": math.ceil(n_steps / N_LOOKS),
            "save_every": math.ceil(n_steps / _N_SAVES),
        }
        return TrainConfig(n_steps=n_steps, **{**settings, **changes})


PRESETS = {
    "tiny": Preset(
        vocab_size=1024,
        context_length=64,
        d_model=64,
        n_heads=2,
        n_layers=2,
        batch_size=16,
        learning_rate=4e-3,
        tokens_wanted=0,
        suits="short texts, a minute or two",
    ),
    "small": Preset(
        vocab_size=2048,
        context_length=128,
        d_model=128,
        n_heads=4,
        n_layers=2,
        batch_size=8,
        learning_rate=3e-3,
        tokens_wanted=200_000,
        suits="1 MB of text and more, ten minutes",
    ),
    "medium": Preset(
        vocab_size=4096,
        context_length=256,
        d_model=256,
        n_heads=4,
        n_layers=5,
        batch_size=16,
        learning_rate=1.5e-3,
        tokens_wanted=2_000_000,
        suits="8 MB, hours on a laptop, minutes on a GPU",
    ),
    "large": Preset(
        vocab_size=8192,
        context_length=512,
        d_model=512,
        n_heads=8,
        n_layers=8,
        batch_size=64,
        learning_rate=1e-3,
        tokens_wanted=10_000_000,
        suits="40 MB, a GPU",
    ),
    "gpt2": Preset(
        vocab_size=50257,
        context_length=1024,
        d_model=768,
        n_heads=12,
        n_layers=12,
        batch_size=64,
        learning_rate=6e-4,
        tokens_wanted=100_000_000,
        suits="400 MB, a large GPU; GPT-2 small's sizes",
    ),
}
