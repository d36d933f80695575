"""Which vocabulary is best for a small language model at equal compute?

    python book/llm/recorded/vocabulary_size.py

trains a model with a fixed window (Bengio et al. 2003) at each size of the
vocabulary, each with the same number of floating-point operations, and
writes vocabulary_size.json beside this file. It takes about half an hour on
one core. The chapter on tokenization shows the result.
"""

import argparse
import hashlib
import json
import platform
import time
from datetime import date
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from scratch.data.documentation import documentation
from scratch.llm.embeddings import TokenEmbedding
from scratch.llm.tokenization import END_OF_TEXT, BPETokenizer, train_bpe
from scratch.nn.activations import gelu
from scratch.nn.forward_propagation import Linear
from scratch.nn.gradient_descent import clip_gradients, warmup_cosine
from scratch.nn.losses import bits_per_byte, cross_entropy
from scratch.nn.optimizers import AdamW

SETTINGS = {
    "vocab_sizes": [257, 512, 1024, 2048, 4096, 8192],
    "operations": [2e11, 2e12],  # floating-point, forward and backward
    "learning_rates": [0.002, 0.004, 0.008, 0.016],
    "seeds": [0, 1, 2],
    "window": 16,  # tokens that the model sees
    "d_model": 32,
    "d_hidden": 256,
    "batch_size": 512,  # tokens predicted per step
    "warmup_share": 0.05,  # of the steps
    "max_norm": 1.0,
    "n_texts_tuning": 150,
    "n_texts_test": 300,
}
TARGET = Path(__file__).with_suffix(".json")


class WindowModel(nn.Module):
    """Predict a token from the window of tokens before it.

    Args:
        shares: of each token in the training text; positive, (vocab_size,).

    Shapes: ids (B, window) -> logits (B, vocab_size)
    """

    def __init__(self, shares: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        vocab_size = len(shares)
        window, d_model, d_hidden = (
            SETTINGS[name] for name in ("window", "d_model", "d_hidden")
        )
        self.table = TokenEmbedding(
            vocab_size=vocab_size, d_model=d_model, generator=generator
        )
        with torch.no_grad():
            self.table.weight.mul_(50)  # to size 1, as Linear expects
        self.hidden = Linear(
            d_in=window * d_model, d_out=d_hidden, generator=generator
        )
        self.out = Linear(d_in=d_hidden, d_out=vocab_size, generator=generator)
        with torch.no_grad():
            # At the start, nearly the shares that the tokens have.
            self.out.weight.mul_(0.1)
            self.out.bias.copy_(shares.log())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).flatten(start_dim=1)
        return self.out(gelu(self.hidden(x)))


def operations_per_token(vocab_size: int) -> int:
    """Count multiplications and additions of one token's two passes.

    Each weight is used once forward and twice backward, each time in one
    multiplication and one addition.
    """
    window, d_model, d_hidden = (
        SETTINGS[name] for name in ("window", "d_model", "d_hidden")
    )
    return 6 * (window * d_model * d_hidden + d_hidden * vocab_size)


def windows(
    texts: list[str], tokenizer: BPETokenizer
) -> tuple[Tensor, Tensor]:
    """Return all windows of the joined texts, and which of them to predict.

    Before a text, and after its end, stands the special token. A window
    holds the tokens that the model sees, then the one that it predicts;
    the special tokens before a text are not predicted.
    """
    end = tokenizer.special_ids[END_OF_TEXT]
    engine = tokenizer.to_tiktoken()
    window = SETTINGS["window"]
    stream: list[int] = []
    places: list[int] = []
    for text in texts:
        ids = [*engine.encode_ordinary(text), end]
        places += range(len(stream), len(stream) + len(ids))
        stream += [end] * window + ids
    rows = torch.tensor(stream).unfold(0, window + 1, 1)  # a view, no copy
    return rows, torch.tensor(places)


def token_shares(rows: Tensor, places: Tensor, vocab_size: int) -> Tensor:
    """Return how often each token is the one to predict, plus one."""
    counts = rows[places, -1].bincount(minlength=vocab_size) + 1.0
    return counts / counts.sum()


def digest(texts: list[str]) -> str:
    """Return a name for the texts, which tells whether they are the same."""
    joined = "\0".join(texts).encode()
    return hashlib.sha256(joined).hexdigest()[:16]


def nats(model: WindowModel, rows: Tensor, places: Tensor) -> float:
    """Return the mean loss over all places, in nats per token."""
    with torch.no_grad():
        total = sum(
            cross_entropy(model(part[:, :-1]), part[:, -1], fused=True).item()
            * len(part)
            for part in (rows[chosen] for chosen in places.split(2048))
        )
    return total / len(places)


def train(
    rows: Tensor,
    places: Tensor,
    shares: Tensor,
    *,
    operations: float,
    learning_rate: float,
    seed: int,
) -> WindowModel:
    """Train on random windows until the operations are spent."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = len(shares)
    model = WindowModel(shares, generator)
    optimizer = AdamW(
        list(model.parameters()), learning_rate=learning_rate, foreach=True
    )
    per_step = SETTINGS["batch_size"] * operations_per_token(vocab_size)
    n_steps = round(operations / per_step)
    for step in range(n_steps):
        share = warmup_cosine(
            step,
            n_steps=n_steps,
            warmup_steps=round(SETTINGS["warmup_share"] * n_steps),
            final=0.1,
        )
        optimizer.scale_learning_rate(share)
        chosen = torch.randint(
            len(places), (SETTINGS["batch_size"],), generator=generator
        )
        ids = rows[places[chosen]]
        loss = cross_entropy(model(ids[:, :-1]), ids[:, -1], fused=True)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model.parameters(), max_norm=SETTINGS["max_norm"])
        optimizer.step()
    return model


def run() -> dict:
    corpus = documentation()
    train_texts = [entry.text for entry in corpus.train]
    held_out = sorted(corpus.validation, key=lambda entry: entry.text)[::7]
    held_out = [entry.text for entry in held_out]
    n_tuning, n_test = SETTINGS["n_texts_tuning"], SETTINGS["n_texts_test"]
    tuning = held_out[:n_tuning]
    test = held_out[n_tuning : n_tuning + n_test]
    merges = train_bpe(train_texts, max(SETTINGS["vocab_sizes"]) - 1)
    results = []
    for vocab_size in SETTINGS["vocab_sizes"]:
        tokenizer = BPETokenizer(
            dict(islice(merges.items(), vocab_size - 257)),
            special_tokens=(END_OF_TEXT,),
        )
        data = windows(train_texts, tokenizer)
        data = (*data, token_shares(*data, vocab_size))
        sets = {
            name: (windows(texts, tokenizer), len("".join(texts).encode()))
            for name, texts in (("tuning", tuning), ("test", test))
        }

        def score(model: WindowModel, name: str, sets=sets) -> float:
            part, n_bytes = sets[name]
            return bits_per_byte(
                nats(model, *part), n_tokens=len(part[1]), n_bytes=n_bytes
            )

        (rows, places), n_test_bytes = sets["test"]
        counts_alone = bits_per_byte(
            -data[2].log()[rows[places, -1]].mean().item(),
            n_tokens=len(places),
            n_bytes=n_test_bytes,
        )
        for operations in SETTINGS["operations"]:
            began = time.perf_counter()
            seeds = SETTINGS["seeds"]
            budget = {"operations": operations}
            tried = [
                train(*data, **budget, learning_rate=rate, seed=seeds[0])
                for rate in SETTINGS["learning_rates"]
            ]
            on_tuning = [score(model, "tuning") for model in tried]
            best = on_tuning.index(min(on_tuning))
            rate = SETTINGS["learning_rates"][best]
            models = [tried[best]] + [
                train(*data, **budget, learning_rate=rate, seed=seed)
                for seed in seeds[1:]
            ]
            n_bytes = sum(len(text.encode()) for text in train_texts)
            n_trained = operations / operations_per_token(vocab_size)
            result = budget | {
                "vocab_size": vocab_size,
                "counts_alone": counts_alone,
                "tokens_trained": round(n_trained),
                "tokens_in_corpus": len(data[1]),
                "bytes_per_token": n_bytes / len(data[1]),
                "learning_rate": rate,
                "bits_per_byte_tuning": on_tuning,
                "bits_per_byte_test": [score(m, "test") for m in models],
                "seconds": time.perf_counter() - began,
            }
            results.append(result)
            print(json.dumps(result), flush=True)
    return {
        "settings": SETTINGS,
        "corpus": corpus.versions,
        "texts": {
            "train": digest(train_texts),
            "tuning": digest(tuning),
            "test": digest(test),
        },
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "results": results,
    }


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    content = run()
    TARGET.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
