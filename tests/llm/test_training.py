"""A GPT is trained as torch would, however often the program is killed.

Run as a program, this file is a server that forks a process for each run: a
new interpreter would have to load torch first.
"""

import importlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from scratch.checkpoints import (
    DamagedError,
    checkpoint_path,
    checkpoints,
    load_model,
    new_folder,
    require_whole,
)
from scratch.llm import training
from scratch.llm.gpt import GPT, GPTConfig
from scratch.llm.gpt2_weights import load_gpt2
from scratch.llm.tokenization import END_OF_TEXT, BPETokenizer
from scratch.llm.training import (
    History,
    TokenWindows,
    TrainConfig,
    decay_groups,
    evaluate,
    join_texts,
    train,
    windows_at,
)
from scratch.nn import optimizers

CONTEXT = 7
IDS = torch.tensor([(i * i + i // 3) % 29 for i in range(301)])
HELD_OUT = torch.tensor([(i * i + i // 2) % 29 for i in range(60)])
TRAIN = {
    "n_steps": 4,
    "batch_size": 4,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "max_norm": 0.5,
    "eval_every": 2,
    "save_every": 1,
    "n_kept": 3,
}
each_way = pytest.mark.parametrize("parallel", ["replicate", "shard"])


def small_model(seed=0, dtype=torch.float32, **changes):
    sizes = {
        "vocab_size": 29,
        "context_length": CONTEXT,
        "d_model": 12,
        "n_heads": 3,
        "n_layers": 2,
        **changes,
    }
    generator = torch.Generator().manual_seed(seed)
    return GPT(GPTConfig(**sizes), generator=generator).to(dtype)


def settings(**changes):
    return TrainConfig(**{**TRAIN, **changes})


def quietly(model, folder=None, *, ids=IDS, held_out=HELD_OUT, **changes):
    """Train without a bar; changes are those of the settings."""
    options = {
        key: changes.pop(key)
        for key in ("on_look", "tokenizer", "parallel")
        if key in changes
    }
    return train(
        model,
        ids,
        held_out,
        config=settings(**changes),
        folder=folder,
        progress=False,
        **options,
    )


def snapshot(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def assert_same_bits(state, other):
    assert_close(state, other, rtol=0, atol=0)


def without_seconds(history):
    return {k: v for k, v in asdict(history).items() if k != "seconds"}


def contents(folder):
    """Return all that a run's folder holds, but for the seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "SHA256SUMS":
            require_whole(path.parent)
        elif path.name == "training.json":
            found[name] = json.loads(path.read_bytes())
            del found[name]["history"]["seconds"]
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


# Runs in processes of their own.


def work(folder, *, seed=0, dtype="float32", dropout=0.0, **options):
    """What such a process does.

    Args:
        die_at: which opening, renaming or removing of a file kills it.
        stop_at: after how many steps it fails.
        piece: numbers that the optimizer moves at once.
    """
    signal.alarm(200)  # instead of waiting for ever
    torch.set_num_threads(1)
    die_at, stop_at = options.pop("die_at", 0), options.pop("stop_at", 0)
    optimizers._PIECE = options.pop("piece", optimizers._PIECE)
    if die_at:
        _die_at(die_at, folder)

    def stop(n_made, model):
        assert model.training
        if n_made == stop_at:
            raise SystemExit

    model = small_model(seed, getattr(torch, dtype), dropout=dropout)
    quietly(model, folder, on_look=stop, **options)
    assert not dist.is_initialized()


def _die_at(n, folder):
    moments = itertools.count(1)
    changing = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def hook(event, arguments):
        ours = event == "open" and str(arguments[0]).startswith(folder)
        if (ours or event in changing) and next(moments) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def serve():
    """Begin a process for each job on stdin, or wait for its end."""
    # Load what each process would have to load.
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.distributed.fsdp")
    quietly(small_model(), Path(sys.argv[1]) / "warm")
    for line in sys.stdin:
        job = json.loads(line)
        if isinstance(job, int):
            _, status = os.waitpid(job, 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _obey(**job)
        print(answer, flush=True)


def _obey(environment, options):
    code = 1
    try:
        os.environ.update(environment)
        work(**options)
        code = 0
    except SystemExit:
        code = 3
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Server:
    """Begins processes that train, in next to no time."""

    def __init__(self, folder):
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def _ask(self, job):
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self.errors.read_text()
        return int(answer)

    def begin(self, folder, environment=None, **options):
        """Return the id of a process that trains with these options."""
        return self._ask(
            {
                "environment": environment or {},
                "options": {"folder": str(folder), **options},
            }
        )

    def end(self, pid):
        """Wait for a process; return its exit code."""
        return self._ask(pid)

    def run(self, folder, n_processes=1, seeds=(0, 0), **options):
        """Train as torchrun would; return the exit codes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = []
        for rank in range(n_processes):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(n_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            if n_processes == 1:
                environment = {}
            pids.append(
                self.begin(folder, environment, seed=seeds[rank], **options)
            )
        return [self.end(pid) for pid in pids]

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


def succeed(server, folder, *arguments, **options):
    codes = server.run(folder, *arguments, **options)
    assert set(codes) == {0}, server.errors.read_text()


# Windows.


@st.composite
def rows(draw):
    """Draw lengths of text and context, batch size, seed, and an epoch."""
    context_length = draw(st.integers(1, 9))
    return (
        context_length + draw(st.integers(1, 60)),
        context_length,
        draw(st.integers(1, 7)),
        draw(st.integers(0, 2**63)),
        draw(st.integers(0, 4)),
    )


def starts_of(windows, n):
    """Return where the first n windows begin, in a text that counts."""
    starts = []
    for step in itertools.count():
        if len(starts) >= n:
            return starts[:n]
        inputs, _ = windows.batch(step)
        starts += inputs[:, 0].tolist()


@example((2, 1, 1, 0, 0))
@example((8, 7, 3, 0, 1))  # one window
@example((15, 7, 3, 0, 1))  # room for two, but then for one cut only
@given(rows())
def test_an_epoch_deals_out_each_window_once(row):
    n_tokens, context_length, batch_size, seed, epoch = row
    windows = TokenWindows(
        torch.arange(n_tokens),
        context_length=context_length,
        batch_size=batch_size,
        seed=seed,
    )
    n = windows.n_windows
    starts = starts_of(windows, (epoch + 1) * n)[epoch * n :]
    assert min(starts) >= 0
    assert max(starts) + context_length < n_tokens
    offset = min(starts)
    assert sorted(starts) == [offset + context_length * i for i in range(n)]
    assert n_tokens - 1 - n * context_length < 2 * context_length


@example((2, 1, 1, 0, 0))
@given(rows())
def test_targets_are_the_tokens_behind_the_inputs(row):
    n_tokens, context_length, batch_size, seed, step = row
    ids = (torch.arange(n_tokens) * 37 + 5) % 101
    windows = TokenWindows(
        ids, context_length=context_length, batch_size=batch_size, seed=seed
    )
    inputs, targets = windows.batch(step)
    assert inputs.shape == targets.shape == (batch_size, context_length)
    assert inputs.dtype == targets.dtype == torch.int64
    pieces = ids.unfold(0, context_length + 1, 1).tolist()
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert x[1:] == y[:-1]
        assert [*x, y[-1]] in pieces


@given(st.lists(st.integers(0, 40), min_size=2, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(steps):
    def made(seed=3):
        return TokenWindows(
            torch.arange(50), context_length=3, batch_size=2, seed=seed
        )

    together = made()
    for step in steps:
        for mine, fresh in zip(
            together.batch(step), made().batch(step), strict=True
        ):
            assert_same_bits(mine, fresh)


def test_windows_leave_the_random_state_alone():
    before = torch.get_rng_state()
    TokenWindows(IDS, context_length=3, batch_size=2, seed=1).batch(0)
    assert_same_bits(torch.get_rng_state(), before)


def test_seeds_and_epochs_differ_in_order_and_cuts():
    def orders(seed):
        windows = TokenWindows(  # 40 fit with no token to spare
            torch.arange(201), context_length=5, batch_size=4, seed=seed
        )
        starts = starts_of(windows, 3 * windows.n_windows)
        return [
            tuple(starts[i * windows.n_windows :][: windows.n_windows])
            for i in range(3)
        ]

    dealt = [order for seed in range(5) for order in orders(seed)]
    assert len(set(dealt)) == 15
    assert all(list(order) != sorted(order) for order in dealt)
    assert len({min(order) for order in dealt}) > 3


def test_every_token_is_seen_sooner_or_later():
    windows = TokenWindows(
        torch.arange(16), context_length=5, batch_size=1, seed=0
    )
    batches = [windows.batch(step) for step in range(200)]
    assert {int(i) for x, _ in batches for i in x.flatten()} == set(range(15))
    assert {int(i) for _, y in batches for i in y.flatten()} == set(
        range(1, 16)
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.uint16])
def test_ids_may_be_stored_small(dtype):
    expected = windows_at(IDS, torch.tensor([3, 0, 9]), 4)
    found = windows_at(IDS.to(dtype), torch.tensor([3, 0, 9]), 4)
    assert found[0].tolist() == [IDS[i : i + 4].tolist() for i in (3, 0, 9)]
    assert_same_bits(found, expected)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.arange(1), ValueError, r"more tokens than .* got .*\(1,\)"),
        (torch.zeros(2, 9).long(), ValueError, r"one row .* got .*\(2, 9\)"),
        (torch.zeros(9), TypeError, "integers, got torch.float32"),
        (torch.zeros(9).bool(), TypeError, "integers, got torch.bool"),
        (torch.zeros(9) * 1j, TypeError, "integers, got torch.complex64"),
        (list(range(9)), TypeError, "integers, got list"),
        (9, TypeError, "integers, got int"),
    ],
)
def test_ids_must_be_a_long_enough_row(ids, error, message):
    with pytest.raises(error, match=message):
        TokenWindows(ids, context_length=3, batch_size=1, seed=0)
    with pytest.raises(error, match=message):
        evaluate(small_model(), ids, context_length=3)


def test_a_window_needs_a_target_for_its_last_token():
    with pytest.raises(ValueError, match=r"context_length=3, got .*\(3,\)"):
        TokenWindows(torch.arange(3), context_length=3, batch_size=1, seed=0)


def test_sizes_must_be_positive():
    for sizes in ({"context_length": 0}, {"batch_size": 0}):
        sizes = {"context_length": 3, "batch_size": 2, **sizes}
        with pytest.raises(ValueError, match=r"must be at least 1, got .*=0"):
            TokenWindows(IDS, seed=0, **sizes)
        with pytest.raises(ValueError, match=r"must be at least 1, got .*=0"):
            evaluate(small_model(), IDS, **sizes)


def test_steps_count_from_zero():
    windows = TokenWindows(IDS, context_length=3, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        windows.batch(-1)


# Texts.

MERGES = {(104, 105): 256, (256, 32): 257, (32, 104): 258}


@example([])
@example(["", ""])
@example([f"hi{END_OF_TEXT}hi"])  # somebody wrote about it
@given(st.lists(st.text(st.sampled_from("hi \n.ü€<|"), max_size=20)))
def test_texts_are_joined_as_a_plain_loop_would(texts):
    tokenizer = BPETokenizer(MERGES, special_tokens=(END_OF_TEXT,))
    end = tokenizer.vocab_size - 1
    expected = [end]
    for text in texts:
        expected += [*tokenizer.encode(text), end]
    row = join_texts(iter(texts), tokenizer)
    assert row.dtype == torch.int32
    assert row.tolist() == expected


def test_joining_needs_a_sign_for_the_end():
    with pytest.raises(ValueError, match=r"endoftext.*got none"):
        join_texts(["hi"], BPETokenizer(MERGES))
    with pytest.raises(ValueError, match=r"endoftext.*got <x>"):
        join_texts(["hi"], BPETokenizer(MERGES, special_tokens=("<x>",)))


# Evaluation.


class Recorder(nn.Module):
    """Guess all tokens alike, and keep what was asked."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked = []

    def forward(self, ids):
        assert not self.training
        self.asked += ids.tolist()
        return torch.zeros(*ids.shape, 500) + self.weight


@given(st.integers(2, 50), st.integers(1, 9), st.integers(1, 5))
def test_each_token_but_the_first_is_predicted_once(n, context, batch_size):
    model = Recorder()
    loss = evaluate(
        model,
        torch.arange(n),
        context_length=context,
        batch_size=batch_size,
    )
    assert sorted(i for row in model.asked for i in row) == [*range(n - 1)]
    assert max(map(len, model.asked)) <= context
    assert sum(len(row) < context for row in model.asked) <= 1
    assert loss == pytest.approx(torch.tensor(500.0).log().item(), rel=1e-6)


@pytest.mark.parametrize("n_tokens", [2, 5, CONTEXT, CONTEXT + 1, 52])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_loss_is_that_of_a_plain_loop(n_tokens, batch_size):
    model = small_model(dtype=torch.float64, dropout=0.5)
    ids = IDS[:n_tokens].int()
    found = evaluate(model, ids, context_length=CONTEXT, batch_size=batch_size)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    losses = []
    for i in range(1, n_tokens):
        start = (i - 1) // CONTEXT * CONTEXT
        logits = model(ids[None, start:i].long())[0, -1]
        losses.append(-logits.log_softmax(-1)[ids[i]].item())
    assert found == pytest.approx(sum(losses) / (n_tokens - 1), rel=1e-12)
    evaluate(model, ids, context_length=CONTEXT)
    assert not model.training


# Settings.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"n_parts": 0}, "n_parts must be at least 1, got 0"),
        ({"eval_every": 0}, "eval_every must be at least 1, got 0"),
        ({"save_every": -1}, "save_every must be at least 1, got -1"),
        ({"n_kept": 0}, "n_kept must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive .*got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must .*got nan"),
        ({"max_norm": float("inf")}, "max_norm must be .*finite, got inf"),
        ({"warmup_steps": 4}, "below n_steps, got warmup_steps=4 and n_st"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"n_parts": 3}, "n_parts must divide batch_size, got n_parts=3"),
        ({"precision": "float16"}, "float32, bfloat16, got 'float16'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_the_best_step_is_the_one_with_the_lowest_loss():
    steps = [2, 4, 6, 7]
    assert History(steps=steps).best_step == 7
    history = History(steps=steps, validation=[3.0, 1.0, 2.0, 1.0])
    assert history.best_step == 4


# Against torch and transformers.


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Return a GPT-2 of transformers, and ours with the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=29,
        n_positions=CONTEXT,
        n_embd=12,
        n_head=3,
        n_layer=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    theirs = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    return theirs.double(), load_gpt2(folder).double()


@pytest.mark.parametrize("n_parts", [1, 4])
def test_training_is_that_of_torch_on_transformers(gpt2, n_parts):
    theirs, ours = gpt2
    theirs_before, ours_before = snapshot(theirs), snapshot(ours)
    config = settings(
        n_steps=7,
        batch_size=8,
        n_parts=n_parts,
        warmup_steps=3,
        max_norm=0.7,
        final_share=0.2,
        weight_decay=0.3,
        beta1=0.8,
        beta2=0.95,
    )
    history = train(ours, IDS, HELD_OUT, config=config, progress=False)

    bent = [p for p in theirs.parameters() if p.ndim == 2]
    flat = [p for p in theirs.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": bent, "weight_decay": 0.3},
            {"params": flat, "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
    )
    # Up in three steps, and down to a fifth along a cosine.
    shares = [1 / 3, 2 / 3, 1]
    for i in range(1, 5):
        cosine = torch.tensor(torch.pi * i / 4).double().cos().item()
        shares.append(0.2 + 0.8 * (1 + cosine) / 2)
    windows = TokenWindows(IDS, context_length=CONTEXT, batch_size=8, seed=0)
    losses, norms = [], []
    for step, share in enumerate(shares):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * share
        inputs, targets = windows.batch(step)
        logits = theirs.train()(inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(theirs.parameters(), 0.7))
        optimizer.step()
        losses.append(loss.item())
    assert min(norms) < 0.7 < max(norms)  # both cases were met

    assert history.train == pytest.approx(losses, rel=1e-6)
    theirs_after = theirs.transformer.wte.weight.detach()
    assert_close(
        ours.embedding.tokens.weight.detach(),
        theirs_after,
        rtol=1e-5,
        atol=1e-7,
    )
    ids = HELD_OUT[None, :CONTEXT]
    with torch.no_grad():
        assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-6)
    theirs.load_state_dict(theirs_before)
    ours.load_state_dict(ours_before)


def test_parts_of_a_batch_add_up_to_the_batch():
    whole, parts = (small_model(dtype=torch.float64) for _ in range(2))
    mine = quietly(whole)
    theirs = quietly(parts, n_parts=4)
    assert mine.train == pytest.approx(theirs.train, rel=1e-12)
    assert_close(snapshot(whole), snapshot(parts), rtol=1e-9, atol=1e-11)


def test_only_matrices_decay():
    model = small_model()
    decaying, rest = decay_groups(model, 0.3)
    assert decaying["weight_decay"] == 0.3 and rest["weight_decay"] == 0
    matrices = {n for n, p in model.named_parameters() if p.ndim == 2}
    names = {p: n for n, p in model.named_parameters()}
    assert {names[p] for p in decaying["parameters"]} == matrices
    assert {names[p] for p in rest["parameters"]} == set(
        names.values()
    ) - matrices
    assert all(n.endswith(".weight") for n in matrices)
    (only,) = decay_groups(nn.Linear(2, 3, bias=False), 0.1)
    assert len(only["parameters"]) == 1


def test_products_may_be_bfloat16():
    plain, rounded = small_model(), small_model()
    mine = quietly(plain).train
    theirs = quietly(rounded, precision="bfloat16").train
    assert mine != theirs
    assert mine == pytest.approx(theirs, rel=0.02)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}


def test_compile_is_asked_of_torch(monkeypatch):
    made = []

    def compiled(model):
        made.append(model)
        return lambda ids: model(ids)

    monkeypatch.setattr(torch, "compile", compiled)
    plain, fast = small_model(), small_model()
    quietly(plain)
    assert made == []
    quietly(fast, compile=True)
    assert made == [fast]
    assert_same_bits(snapshot(fast), snapshot(plain))


# What a run leaves.


def test_training_learns():
    model = small_model()
    ids = torch.arange(200) * 5 % 29  # each token tells the next
    held_out = torch.arange(60) * 5 % 29
    before = evaluate(model, held_out, context_length=CONTEXT)
    history = quietly(
        model,
        ids=ids,
        held_out=held_out,
        n_steps=60,
        learning_rate=0.02,
        eval_every=25,
    )
    assert history.steps == [25, 50, 60]
    assert len(history.train) == 60
    assert history.tokens_per_step == 4 * CONTEXT
    after = evaluate(model, held_out, context_length=CONTEXT)
    assert history.validation[-1] == after
    assert history.train[-1] < history.train[0] - 1
    assert after < before - 1
    assert history.seconds == sorted(history.seconds)
    assert 0 < history.seconds[0]


@pytest.mark.parametrize("mode", [True, False])
def test_random_state_and_mode_are_left_as_they_were(mode):
    model = small_model(dropout=0.2).train(mode)
    state = torch.get_rng_state()
    quietly(model)
    assert model.training == mode
    assert_same_bits(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError):
        quietly(model, on_look=lambda n, model: 1 / 0)
    assert model.training == mode
    assert_same_bits(torch.get_rng_state(), state)


def test_dropout_is_new_in_each_step_and_follows_the_seed():
    def losses(**changes):
        model = small_model(dropout=0.5)
        # So small a rate that the weights stay as they are.
        ids = torch.arange(CONTEXT + 1)  # one window: all batches are equal
        options = {"learning_rate": 1e-30, "weight_decay": 0.0, **changes}
        return quietly(model, ids=ids, held_out=None, **options).train

    first = losses()
    assert len(set(first)) == 4
    assert losses() == first
    assert set(losses(seed=1)).isdisjoint(first)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quietly(small_model())
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_newest_checkpoints_and_its_tokenizer(tmp_path):
    tokenizer = BPETokenizer(MERGES, special_tokens=(END_OF_TEXT,))
    model = small_model()
    options = {"n_steps": 7, "save_every": 2, "n_kept": 3}
    quietly(model, tmp_path, tokenizer=tokenizer, **options)
    assert checkpoints(tmp_path) == [
        checkpoint_path(tmp_path, n) for n in (7, 6, 4)
    ]
    for folder in (checkpoint_path(tmp_path, 7), tmp_path):
        found, its_own = load_model(folder)
        assert its_own.encode("hi hi") == tokenizer.encode("hi hi")
    found, _ = load_model(checkpoint_path(tmp_path, 7))
    assert_same_bits(snapshot(found), snapshot(model))


@pytest.mark.parametrize("losses", [[3, 1, 2], [3, 2, 1], [1, 2, 1], None])
def test_the_model_with_the_lowest_loss_is_kept(tmp_path, monkeypatch, losses):
    seen, returned = [], iter(losses or [])
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: next(returned))

    def look(n_made, model):
        assert n_made == 2 * (len(seen) + 1)
        seen.append(snapshot(model))
        model.eval()

    history = quietly(
        small_model(dropout=0.1),
        tmp_path,
        held_out=None if losses is None else HELD_OUT,
        n_steps=6,
        on_look=look,
    )
    best = 2 if losses is None else losses.index(1)
    assert history.best_step == 2 * (best + 1)
    assert_same_bits(snapshot(load_model(tmp_path)[0]), seen[best])


def test_whoever_looks_may_change_the_mode():
    plain, looked_at = (small_model(dropout=0.4) for _ in range(2))
    quietly(plain)
    quietly(looked_at, on_look=lambda n, model: model.eval())
    assert_same_bits(snapshot(looked_at), snapshot(plain))


def test_the_bar_shows_loss_speed_and_time(capsys, monkeypatch):
    monkeypatch.setattr(training, "tqdm", no_wait(training.tqdm))
    train(small_model(), IDS, HELD_OUT, config=settings())
    shown = capsys.readouterr().err.split("\r")[-1]
    for word in ("4/4", "loss=3.", "tokens/s=", "validation=3.", "steps/s"):
        assert word in shown.replace("it/s", "steps/s")
    train(small_model(), IDS, config=settings())
    assert "validation" not in capsys.readouterr().err
    train(small_model(), IDS, config=settings(), progress=False)
    assert capsys.readouterr().err == ""


def no_wait(tqdm):
    return lambda **options: tqdm(
        **{**options, "mininterval": 0, "ncols": 150}
    )


# Numbers that are not finite.


def spoil(model, kind):
    """Let the loss, or only its gradient, become infinite at step 2."""
    calls = itertools.count()

    def hook(module, arguments, output):
        if not module.training or next(calls) != 2:
            return output
        if kind == "loss":
            return output * torch.nan
        output.register_hook(lambda grad: grad * torch.inf)
        return output

    model.register_forward_hook(hook)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, kind):
    model = small_model()
    spoil(model, kind)
    message = (
        rf"{kind} must be finite, got (nan|inf) at step 2, in the batch "
        r"TokenWindows\(.*batch_size=4, seed=5\)\.batch\(2\).*"
        r"learning_rate than 0\.01, .*warmup_steps than 2"
    )
    with pytest.raises(FloatingPointError, match=message):
        quietly(model, tmp_path, seed=5)
    assert all(x.isfinite().all() for x in model.state_dict().values())
    newest = checkpoints(tmp_path)[0]
    assert newest == checkpoint_path(tmp_path, 2)
    assert_same_bits(load_file(newest / "model.safetensors"), snapshot(model))


def test_a_validation_loss_that_is_not_finite_stops_it_too(monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: float("inf"))
    with pytest.raises(
        FloatingPointError, match=r"validation loss .* step 1,"
    ):
        quietly(small_model())


# Going on.


class Stop(Exception):
    pass


def stopping_at(n):
    def look(n_made, model):
        if n_made == n:
            raise Stop

    return look


@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.3}, {"dropout": 0.3, "n_parts": 2}, {"float": 64}],
    ids=str,
)
def test_a_run_goes_on_bit_for_bit(tmp_path, changes):
    dropout = changes.pop("dropout", 0.0)
    kind = getattr(torch, f"float{changes.pop('float', 32)}")

    def model(seed):
        return small_model(seed, dropout=dropout, dtype=kind)

    changes = {"n_steps": 9, "eval_every": 1, "save_every": 2, **changes}
    undisturbed = model(0)
    expected = quietly(undisturbed, tmp_path / "a", **changes)
    for n in (3, 5, 6, 9):
        with pytest.raises(Stop):
            quietly(
                # Where there is a checkpoint, the new weights do not count.
                model(0 if n == 3 else n),
                tmp_path / "b",
                on_look=stopping_at(n),
                **changes,
            )
    last = model(99)
    found = quietly(last, str(tmp_path / "b"), **changes)
    assert without_seconds(found) == without_seconds(expected)
    assert_same_bits(snapshot(last), snapshot(undisturbed))
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert found.seconds == sorted(found.seconds)


def test_a_run_that_is_done_is_done(tmp_path):
    first, second = small_model(), small_model(1)
    expected = quietly(first, tmp_path)
    before = contents(tmp_path)
    found = quietly(second, tmp_path, on_look=stopping_at(4))
    assert found == expected
    assert_same_bits(snapshot(second), snapshot(first))
    assert contents(tmp_path) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder with checkpoints after 2, 3 and 4 steps."""
    folder = tmp_path_factory.mktemp("finished")
    quietly(small_model(), folder)
    return folder


OTHERS = {
    "train.seed was 0 and not 1": {"seed": 1},
    "train.learning_rate was 0.01 and not 0.02": {"learning_rate": 0.02},
    "train.n_steps was 4 and not 5, train.n_kept was 3 and not 1": {
        "n_steps": 5,
        "n_kept": 1,
    },
    "n_tokens was 301 and not 300": {"ids": IDS[1:]},
    "where tokens was": {"ids": IDS.flip(0)},
    "where validation_tokens was": {"held_out": HELD_OUT + 1},
    "validation_tokens was [0-9a-f]* and not None": {"held_out": None},
    "model.n_layers was 2 and not 1": {"n_layers": 1},
    "model.dropout was 0.0 and not 0.1": {"dropout": 0.1},
}


@pytest.mark.parametrize("message", OTHERS)
def test_the_folder_of_another_run_is_refused(finished, message):
    changes = dict(OTHERS[message])
    sizes = {
        name: changes.pop(name)
        for name in ("n_layers", "dropout")
        if name in changes
    }
    before = contents(finished)
    model = small_model(**sizes)
    weights = snapshot(model)
    pattern = f"must be empty or hold this very run, got .*{message}"
    with pytest.raises(ValueError, match=pattern) as caught:
        quietly(model, finished, **changes)
    assert not isinstance(caught.value, DamagedError)
    assert_same_bits(snapshot(model), weights)
    assert contents(finished) == before


def test_the_same_tokens_stored_otherwise_are_the_same_run(finished):
    quietly(small_model(), finished, ids=IDS.to(torch.uint16))
    assert len(checkpoints(finished)) == 3


def cut(share):
    def damage(file):
        data = file.read_bytes()
        file.write_bytes(data[: int(share * len(data))])

    return damage


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 16
    file.write_bytes(data)


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": cut(0),
    "half": cut(0.5),
    "almost whole": cut(0.99),
    "a flipped bit": flip,
}
WRITTEN = (
    "SHA256SUMS",
    "config.json",
    "model.safetensors",
    "optimizer.safetensors",
    "training.json",
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path, finished, name, damage
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest = checkpoint_path(folder, 4)
    DAMAGES[damage](newest / name)
    model = small_model(7)
    message = r"step-00000004.*\. The older step-\d+ is used"
    with pytest.warns(UserWarning, match=message) as caught:
        quietly(model, folder)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line that called train
    if name != "SHA256SUMS":
        assert name in str(caught[0].message)
    assert contents(folder) == contents(finished)
    assert_same_bits(snapshot(model), load_file(newest / "model.safetensors"))


def test_an_error_closes_the_bar(monkeypatch):
    closed = []

    class Bar(training.tqdm):
        def close(self):
            closed.append(self)
            super().close()

    monkeypatch.setattr(training, "tqdm", Bar)
    # Caught, the error keeps the bar from being closed as garbage.
    with pytest.raises(ZeroDivisionError) as caught:
        quietly(small_model(), on_look=lambda n, model: 1 / 0)
    assert closed and caught.tb is not None


def test_an_error_in_evaluate_leaves_the_mode():
    model = torch.nn.Linear(1, 1).train()  # which takes no tokens
    with pytest.raises(RuntimeError):
        evaluate(model, IDS, context_length=CONTEXT)
    assert model.training


def test_two_damaged_checkpoints_are_two_warnings(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for n, name in ((4, "training.json"), (3, "config.json")):
        flip(checkpoint_path(folder, n) / name)
    with pytest.warns(UserWarning) as caught:
        quietly(small_model(), folder)
    messages = [str(warning.message) for warning in caught]
    assert [
        name in message
        for name, message in zip(
            ("00000004/training.json", "00000003/config.json"),
            messages,
            strict=True,
        )
    ] == [True, True]
    assert contents(folder) == contents(finished)


def test_what_is_whole_and_yet_no_checkpoint_is_passed_over(
    tmp_path, finished
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with new_folder(checkpoint_path(folder, 4)) as draft:
        (draft / "training.json").write_text("[]")
    with pytest.warns(UserWarning, match=r"training\.json .* no JSON object"):
        quietly(small_model(), folder)
    assert contents(folder) == contents(finished)


def test_if_all_are_damaged_nothing_starts_afresh(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in checkpoints(folder):
        flip(path / "optimizer.safetensors")
    before = sorted(folder.rglob("*"))
    message = "no checkpoint that is whole: .*4/opt.*3/opt.*2/opt.*remove"
    with pytest.raises(DamagedError, match=message):
        quietly(small_model(), folder)
    assert sorted(folder.rglob("*")) == before


# Killed.


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace(tmp_path, server):
    options = {
        "n_steps": 40,
        "save_every": 2,
        "eval_every": 3,
        "n_kept": 2,
        "dropout": 0.2,
    }
    succeed(server, tmp_path / "undisturbed", **options)
    expected = contents(tmp_path / "undisturbed")
    chance = random.Random(0)
    n_killed, n_runs = 0, 0
    progress = set()
    while n_killed < 20:
        folder = tmp_path / f"run {n_runs}"
        n_runs += 1
        code = None
        while code != 0:
            pid = server.begin(folder, **options)
            if n_killed < 20:
                time.sleep(chance.uniform(0, 0.25))
                os.kill(pid, signal.SIGKILL)
            code = server.end(pid)
            assert code in (0, -signal.SIGKILL), server.errors.read_text()
            n_killed += code != 0
            progress.update(path.name for path in checkpoints(folder))
        assert contents(folder) == expected
    assert n_killed == 20
    assert len(progress) > 3  # some came early, some late


@pytest.mark.slow
def test_a_kill_at_every_single_change_of_a_file_leaves_no_trace(
    tmp_path, server
):
    options = {"n_steps": 2, "eval_every": 1, "n_kept": 1, "warmup_steps": 0}
    succeed(server, tmp_path / "undisturbed", **options)
    folder = tmp_path / "run"
    for n in itertools.count(1):  # each a life, which ends at the n-th change
        (code,) = server.run(folder, die_at=n, **options)
        if code == 0:
            break
        assert code == -signal.SIGKILL, server.errors.read_text()
        if checkpoints(folder):
            load_model(folder)  # can be read at any time
    assert n > 30
    assert contents(folder) == contents(tmp_path / "undisturbed")


# More than one process.


def states(folder):
    """Return weights and averages of the newest checkpoint, and losses."""
    newest = checkpoints(folder)[0]
    history = json.loads((newest / "training.json").read_bytes())["history"]
    return [
        load_file(newest / "model.safetensors"),
        load_file(newest / "optimizer.safetensors"),
        {
            k: torch.tensor(history[k], dtype=torch.float64)
            for k in ("train", "validation")
        },
    ]


@pytest.mark.slow
@each_way
@pytest.mark.parametrize(
    ("n_parts", "dtype", "tolerance"),
    [(1, "float32", 1e-6), (2, "float64", 1e-13)],
)
def test_two_processes_are_one_with_twice_the_batch(
    tmp_path, server, parallel, n_parts, dtype, tolerance
):
    # The slope of a key's bias is zero but for rounding, which AdamW blows
    # up: such a number moves by up to the learning rate in each step.
    options = {
        "n_parts": n_parts,
        "dtype": dtype,
        "piece": 5,
        "learning_rate": 1e-3,
    }
    succeed(server, tmp_path / "one", **options)
    succeed(
        server,
        tmp_path / "two",
        2,
        seeds=(0, 8),  # all begin with the weights of the first
        parallel=parallel,
        **options,
    )
    one, two = states(tmp_path / "one"), states(tmp_path / "two")
    assert_close(two, one, rtol=0, atol=tolerance)
    assert sorted(contents(tmp_path / "two")) == sorted(
        contents(tmp_path / "one")
    )
    best = [snapshot(load_model(tmp_path / k)[0]) for k in ("one", "two")]
    assert_close(*best, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@each_way
def test_two_processes_go_on_bit_for_bit(tmp_path, server, parallel):
    options = {"parallel": parallel, "dropout": 0.2}
    succeed(server, tmp_path / "a", 2, **options)
    assert server.run(tmp_path / "b", 2, stop_at=2, **options) == [3, 3]
    assert checkpoints(tmp_path / "b") == [checkpoint_path(tmp_path / "b", 1)]
    succeed(server, tmp_path / "b", 2, seeds=(5, 6), **options)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_a_group_of_one_trains_like_no_group(monkeypatch):
    plain, grouped = small_model(), small_model()
    quietly(plain)
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        quietly(grouped)
        assert dist.is_initialized()  # train did not make it
    finally:
        dist.destroy_process_group()
    assert_same_bits(snapshot(grouped), snapshot(plain))
    monkeypatch.setenv("WORLD_SIZE", "1")  # some platforms set no more
    again = small_model()
    quietly(again)
    assert_same_bits(snapshot(again), snapshot(plain))


def test_gradients_are_exchanged_once_per_batch():
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        shared = nn.parallel.DistributedDataParallel(small_model())
        crew = training._Crew(0, 2, "replicate")
        for is_last in (False, True):
            with crew.gathering(shared, is_last):
                assert shared.require_backward_grad_sync == is_last
    finally:
        dist.destroy_process_group()
    with crew.gathering(small_model(), False) as nothing:
        assert nothing is None


def test_what_cannot_be_shared_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="replicate or shard, got 'magic'"):
        quietly(small_model(), parallel="magic")
    crew = training._Crew(0, 3, "replicate")
    monkeypatch.setattr(training._Crew, "find", lambda parallel: crew)
    message = "batch_size=4, n_parts=2 and 3 processes"
    with pytest.raises(ValueError, match=message):
        quietly(small_model(), n_parts=2)


def test_texts_must_be_long_enough():
    with pytest.raises(ValueError, match="more tokens than context_length=7"):
        quietly(small_model(), ids=IDS[:CONTEXT])
    with pytest.raises(ValueError, match="more tokens than context_length=1"):
        quietly(small_model(), held_out=IDS[:1])


if __name__ == "__main__":
    serve()
