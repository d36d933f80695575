"""Seconds to learn 4096 tokens, and megabytes encoded per second.

Others: tokenizers (Hugging Face), whose trainer and encoder are written in
Rust. It reads the number of its threads once, so each number has a process
of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from scratch.data.documentation import documentation
from scratch.llm.tokenization import N_BYTES, BPETokenizer, train_bpe

VOCAB_SIZE = 4096
MOST_SECONDS = 60  # for ours to learn, on one core
N_ROUNDS = 5  # of which the median counts
N_THREADS = sorted({1, os.cpu_count()})


def byte_characters():
    """Return the character that stands for each byte in byte-level BPE.

    Bytes that are visible stand for themselves, the others for characters
    from 256 on.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(N_BYTES) if byte not in visible]
    return [
        chr(byte if byte in visible else N_BYTES + hidden.index(byte))
        for byte in range(N_BYTES)
    ]


def spell(tokenizer):
    """Return our tokens as strings of byte-level BPE, by id."""
    characters = byte_characters()
    return [
        "".join(characters[byte] for byte in token)
        for token in tokenizer.vocabulary
    ]


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def train_theirs(texts):
    """Return seconds and the tokens of tokenizers' trainer."""
    theirs = Tokenizer(BPE())
    theirs.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    taken = seconds(lambda: theirs.train_from_iterator(texts, trainer))
    return taken, sorted(theirs.get_vocab())


def encode_theirs(texts, vocabulary, merges):
    """Return seconds of each way through tokenizers, and the ids.

    It has our tokens.
    """
    theirs = Tokenizer(
        BPE(vocabulary, [(left, right) for left, right in merges])
    )
    theirs.pre_tokenizer = ByteLevel(add_prefix_space=False)
    taken = {
        "one by one": [
            seconds(lambda: [theirs.encode(text) for text in texts])
            for _ in range(N_ROUNDS)
        ],
        "batch": [
            seconds(lambda: theirs.encode_batch_fast(texts))
            for _ in range(N_ROUNDS)
        ],
    }
    return taken, [encoding.ids for encoding in theirs.encode_batch(texts)]


def with_threads(n_threads, function, **arguments):
    """Call a function of this file in a process with so many threads."""
    environment = os.environ | {
        "RAYON_NUM_THREADS": str(n_threads),
        "TOKENIZERS_PARALLELISM": "true" if n_threads > 1 else "false",
    }
    done = subprocess.run(
        [sys.executable, __file__, function.__name__],
        input=json.dumps(arguments),
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def corpus():
    return documentation()


@pytest.fixture(scope="module")
def learned(corpus):
    """Return what ours learned, and the seconds of clock and processor."""
    texts = [entry.text for entry in corpus.train]
    start = time.perf_counter(), time.process_time()
    merges = train_bpe(texts, VOCAB_SIZE)
    end = time.perf_counter(), time.process_time()
    return BPETokenizer(merges), end[0] - start[0], end[1] - start[1]


def megabytes(texts):
    return sum(len(text.encode()) for text in texts) / 1e6


def test_learning_keeps_its_time(corpus, learned):
    texts = [entry.text for entry in corpus.train]
    tokenizer, ours, ours_of_processor = learned
    print(
        f"\n\n{VOCAB_SIZE} tokens from {len(texts):,} texts, "
        f"{megabytes(texts):.1f} MB\n{'':26}seconds   ours to it"
    )
    print(f"  {'train_bpe':22}{ours:9.2f}")
    for n_threads in N_THREADS:
        runs = [
            with_threads(n_threads, train_theirs, texts=texts)
            for _ in range(3)
        ]
        theirs = statistics.median(taken for taken, _ in runs)
        name = f"tokenizers, threads: {n_threads}"
        print(f"  {name:22}{theirs:9.2f}{ours / theirs:13.1f}")
        shared = set(spell(tokenizer)).intersection(runs[0][1])
        assert len(shared) > 0.95 * VOCAB_SIZE
    print(f"  tokens that both have: {len(shared)} of {VOCAB_SIZE}")
    assert tokenizer.vocab_size == VOCAB_SIZE
    # The processor's: what else it does at the time is not ours.
    assert ours_of_processor < MOST_SECONDS


def test_the_engine_is_as_fast_as_tokenizers(corpus, learned):
    texts = [entry.text for entry in corpus.validation]
    tokenizer, *_ = learned
    engine = tokenizer.to_tiktoken()
    tokens = spell(tokenizer)
    rows = {}

    def measure(name, action, n_rounds=N_ROUNDS):
        rows[name] = [seconds(action) for _ in range(n_rounds)]

    # Each with empty memory, then with what it remembers.
    fresh = [BPETokenizer(tokenizer.merges) for _ in range(3)]
    rows["ours, the first time"] = [
        seconds(lambda new=new: [new.encode(text) for text in texts])
        for new in fresh
    ]
    measure("ours, again", lambda: [fresh[0].encode(t) for t in texts])
    measure(
        "engine, one by one",
        lambda: [engine.encode_ordinary(text) for text in texts],
    )
    for n_threads in N_THREADS:
        measure(
            f"engine, batch, threads: {n_threads}",
            lambda n=n_threads: engine.encode_ordinary_batch(
                texts, num_threads=n
            ),
        )
    expected = [engine.encode_ordinary(text) for text in texts]
    assert [fresh[0].encode(text) for text in texts] == expected
    for n_threads in N_THREADS:
        taken, ids = with_threads(
            n_threads,
            encode_theirs,
            texts=texts,
            vocabulary={token: i for i, token in enumerate(tokens)},
            merges=[
                (tokens[left], tokens[right])
                for left, right in tokenizer.merges
            ],
        )
        assert ids == expected
        if n_threads == 1:
            rows["tokenizers, one by one"] = taken["one by one"]
        rows[f"tokenizers, batch, threads: {n_threads}"] = taken["batch"]

    size = megabytes(texts)
    speed = {name: size / statistics.median(rows[name]) for name in rows}
    base = "tokenizers, one by one"
    print(
        f"\n\nEncoding {len(texts):,} texts, {size:.1f} MB, with "
        f"{tokenizer.vocab_size} tokens\n{'':34}MB per s   to {base}"
    )
    for name, mb_per_second in speed.items():
        ratio = mb_per_second / speed[base]
        print(f"  {name:32}{mb_per_second:8.2f}{ratio:10.2f}")
    assert speed["engine, one by one"] > speed[base]


if __name__ == "__main__":  # one of theirs, as with_threads calls it
    print(json.dumps(globals()[sys.argv[1]](**json.load(sys.stdin))))
