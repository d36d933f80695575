"""Training: next-token prediction, step by step, for as long as it takes."""

import contextlib
import dataclasses
import hashlib
import math
import os
import shutil
import statistics
import time
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from scratch import checkpoints
from scratch.llm.gpt import GPT
from scratch.llm.tokenization import END_OF_TEXT, BPETokenizer
from scratch.nn.gradient_descent import clip_gradients, warmup_cosine
from scratch.nn.losses import cross_entropy
from scratch.nn.optimizers import AdamW

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def join_texts(texts: Iterable[str], tokenizer: BPETokenizer) -> Tensor:
    """Return the tokens of all texts in one row, (n_tokens,), int32.

    END_OF_TEXT stands before each text and behind the last, so that a model
    learns where a text begins and when to stop.

    Raises: ValueError if the tokenizer has no END_OF_TEXT.
    """
    if END_OF_TEXT not in tokenizer.special_ids:
        raise ValueError(
            f"tokenizer must have the special token {END_OF_TEXT}, "
            f"got {', '.join(tokenizer.special_ids) or 'none'}"
        )
    end = tokenizer.special_ids[END_OF_TEXT]
    engine = tokenizer.to_tiktoken()
    row = array("i")
    for text in texts:
        row.append(end)
        row.extend(engine.encode_ordinary(text))
    row.append(end)
    return torch.frombuffer(row, dtype=torch.int32)


class TokenWindows:
    """Cut one long row of tokens into windows, and deal them out in batches.

    Each epoch deals out every window once, in random order; the cuts lie
    elsewhere in each epoch. What a batch holds depends on the seed and the
    step alone, so that a run can begin anywhere.

    Args:
        ids: the text as tokens, (n_tokens,).
        context_length: tokens in a window.
        batch_size: windows in a batch.
        seed: decides cuts and order.

    Attributes:
        n_windows: windows in an epoch.

    Raises: ValueError if ids are no row longer than context_length, or a
        size is below 1; TypeError if they are no tensor of integers.

    >>> inputs, targets = TokenWindows(
    ...     torch.arange(9), context_length=4, batch_size=1, seed=0
    ... ).batch(0)
    >>> (targets - inputs).tolist()
    [[1, 1, 1, 1]]
    """

    def __init__(
        self, ids: Tensor, *, context_length: int, batch_size: int, seed: int
    ) -> None:
        _require_sizes(context_length, batch_size)
        _require_row(ids, context_length)
        self.ids = ids
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        n_targets = len(ids) - 1
        # One window less than fit, so that the cuts can lie anywhere.
        self.n_windows = max(1, n_targets // context_length - 1)
        self._n_spare = n_targets - self.n_windows * context_length
        self._epoch = -1

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step: (batch_size, T) each.

        Raises: ValueError if step is negative.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        first = step * self.batch_size
        starts = [
            self._start(i) for i in range(first, first + self.batch_size)
        ]
        return windows_at(self.ids, torch.tensor(starts), self.context_length)

    def _start(self, i: int) -> int:
        """Return where the i-th window begins that is dealt out."""
        epoch, place = divmod(i, self.n_windows)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
            self._order = torch.randperm(self.n_windows, generator=generator)
            self._offset = int(
                torch.randint(self._n_spare + 1, (), generator=generator)
            )
            self._epoch = epoch
        return self._offset + self.context_length * int(self._order[place])


def windows_at(
    ids: Tensor, starts: Tensor, n_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return inputs, and as targets the token after each of them.

    Shapes: ids (n,), starts (B,) -> inputs (B, n_tokens), targets the same

    >>> windows_at(torch.tensor([5, 6, 7, 8]), torch.tensor([0, 1]), 2)
    (tensor([[5, 6],
            [6, 7]]), tensor([[6, 7],
            [7, 8]]))
    """
    places = starts.unsqueeze(1) + torch.arange(n_tokens + 1)
    window = ids[places].long()  # (B, n_tokens + 1)
    return window[:, :-1], window[:, 1:]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    ids: Tensor,
    *,
    context_length: int,
    batch_size: int = 16,
) -> float:
    """Return the mean loss over a whole text, in nats per token.

    The text is cut into windows; each token but the first is predicted
    once, from what stands before it in its window.

    Shapes: ids (n_tokens,)
    Raises: ValueError if ids are no row of at least two tokens, or a size
        is below 1.
    """
    _require_row(ids, 1)
    _require_sizes(context_length, batch_size)
    device = next(model.parameters()).device
    n_targets = len(ids) - 1
    n_whole = n_targets // context_length
    starts = context_length * torch.arange(n_whole)
    parts = [
        (part, context_length)
        for part in starts.split(batch_size)
        if len(part) > 0
    ]
    if n_rest := n_targets % context_length:
        parts.append((torch.tensor([n_targets - n_rest]), n_rest))
    total = 0.0
    with in_mode(model, training=False):
        for part, n_tokens in parts:
            inputs, targets = windows_at(ids, part, n_tokens)
            loss = cross_entropy(
                model(inputs.to(device)), targets.to(device), fused=True
            )
            total += loss.item() * targets.numel()
    return total / n_targets


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Bring a model into train or eval mode, and back in the end."""
    was_training = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a GPT is trained. Defaults suit models of a few million weights.

    Raises: ValueError if a number is out of range.
    """

    n_steps: int  # of the optimizer
    batch_size: int = 32  # windows per step, all processes together
    n_parts: int = 1  # of a batch, one after the other, to save memory
    learning_rate: float = 2e-3  # the highest, per step
    warmup_steps: int = 100  # steps to the highest rate
    final_share: float = 0.1  # of the learning rate, at the last step
    weight_decay: float = 0.1  # of matrices; nothing else decays
    beta1: float = 0.9
    beta2: float = 0.99
    max_norm: float = 1.0  # longest gradient; longer ones are clipped
    eval_every: int = 250  # steps between looks at the validation text
    save_every: int = 250  # steps between checkpoints, if a folder is given
    n_kept: int = 2  # checkpoints that are kept
    seed: int = 0  # of the order of the windows, and of dropout
    precision: str = "float32"  # of products; "bfloat16" is for GPUs
    compile: bool = False  # whether torch.compile makes kernels first

    def __post_init__(self) -> None:
        for name in (
            "n_steps",
            "batch_size",
            "n_parts",
            "eval_every",
            "save_every",
            "n_kept",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("learning_rate", "max_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be positive and finite, "
                    f"got {getattr(self, name)}"
                )
        if not 0 <= self.warmup_steps < self.n_steps:
            raise ValueError(
                "warmup_steps must be at least 0 and below n_steps, got "
                f"warmup_steps={self.warmup_steps} and n_steps={self.n_steps}"
            )
        if self.batch_size % self.n_parts != 0:
            raise ValueError(
                "n_parts must divide batch_size, got "
                f"n_parts={self.n_parts} and batch_size={self.batch_size}"
            )
        if self.precision not in _PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(_PRECISIONS)}, "
                f"got {self.precision!r}"
            )


@dataclass
class History:
    """What a run has seen. Losses are in nats per token."""

    train: list[float] = field(default_factory=list)  # one per step
    steps: list[int] = field(default_factory=list)  # made at each look
    validation: list[float] = field(default_factory=list)  # at each look
    seconds: list[float] = field(default_factory=list)  # spent until then
    tokens_per_step: int = 0

    @property
    def best_step(self) -> int:
        """Steps made when the validation loss was lowest."""
        if not self.validation:
            return self.steps[-1]
        return self.steps[self.validation.index(min(self.validation))]


@contextlib.contextmanager
def _leaving_no_trace() -> Iterator[None]:
    """Put back torch's random state; end the group of processes, if new."""
    random_state = torch.get_rng_state()
    had_group = _in_group()
    try:
        yield
    finally:
        torch.set_rng_state(random_state)
        if _in_group() and not had_group:
            dist.destroy_process_group()


@_leaving_no_trace()
def train(
    model: GPT,
    ids: Tensor,
    validation_ids: Tensor | None = None,
    *,
    config: TrainConfig,
    folder: Path | str | None = None,
    tokenizer: BPETokenizer | None = None,
    progress: bool = True,
    parallel: str = "replicate",
    on_look: Callable[[int, GPT], None] | None = None,
) -> History:
    """Train a GPT on a row of tokens, and go on where an earlier run ended.

    Each step: a batch of windows, the loss at every place, its gradient,
    clipped; AdamW with warm-up and a cosine. On a CPU, a run that was killed
    and started again ends with the same bits as one that was not.

    Started by torchrun, each process takes its share of every batch.

    Args:
        ids: the text to learn, (n_tokens,).
        validation_ids: a text to look at every eval_every steps.
        folder: where to keep checkpoints, and the model with the lowest
            validation loss. If there are checkpoints of this very run in
            it, the newest whole one is gone on from.
        tokenizer: kept with the model.
        progress: whether to show a bar.
        parallel: what several processes do: "replicate" keeps all weights
            in each (DistributedDataParallel), "shard" a share (FSDP), and
            leaves model in shares: load it from folder. They begin with the
            weights of the first.
        on_look: called with the steps made and the model at each look, in
            every process.

    Raises: ValueError if the texts are too short for the context, or folder
        holds another run; DamagedError, which is one too, if no checkpoint
        in it is whole. FloatingPointError if the loss or its gradient is
        not finite, with the step and what to try.
    """
    crew = _Crew.find(parallel)
    device = crew.place(model)
    context_length = model.config.context_length
    windows = TokenWindows(
        ids,
        context_length=context_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    if config.batch_size % (crew.size * config.n_parts) != 0:
        raise ValueError(
            "batch_size must be a multiple of n_parts times the number of "
            f"processes, got batch_size={config.batch_size}, "
            f"n_parts={config.n_parts} and {crew.size} processes"
        )
    if validation_ids is not None:
        _require_row(validation_ids, 1)
    run = _Run(config, model, ids, validation_ids, folder, tokenizer, crew)
    resumed = run.resume_model()
    shared = crew.wrap(model)  # averages the gradients of all processes
    optimizer = AdamW(
        decay_groups(model, config.weight_decay),
        learning_rate=config.learning_rate,
        beta1=config.beta1,
        beta2=config.beta2,
        foreach=True,
    )
    history, first = run.resume(resumed, optimizer)
    history.tokens_per_step = config.batch_size * context_length
    forward = torch.compile(shared) if config.compile else shared
    dtype = _PRECISIONS[config.precision]
    parameters = list(model.parameters())
    began = time.monotonic() - (history.seconds[-1] if history.seconds else 0)
    bar = tqdm(
        total=config.n_steps,
        initial=first,
        unit=" steps",
        disable=not (progress and crew.is_first),
        dynamic_ncols=True,
        mininterval=0.5,
    )
    with bar, in_mode(model, training=True):
        for step in range(first, config.n_steps):
            optimizer.scale_learning_rate(
                warmup_cosine(
                    step,
                    n_steps=config.n_steps,
                    warmup_steps=config.warmup_steps,
                    final=config.final_share,
                )
            )
            # Dropout too depends on the seed and the step alone.
            torch.manual_seed(_mixed(config.seed, step, crew.rank))
            inputs, targets = (
                crew.share(x).to(device) for x in windows.batch(step)
            )
            optimizer.zero_grad()
            loss = 0.0
            parts = zip(
                inputs.chunk(config.n_parts),
                targets.chunk(config.n_parts),
                strict=True,
            )
            for i, (part, answers) in enumerate(parts, start=1):
                with (
                    crew.gathering(shared, i == config.n_parts),
                    torch.autocast(
                        device.type, dtype=dtype, enabled=dtype is not None
                    ),
                ):
                    logits = forward(part)
                    part_loss = cross_entropy(logits, answers, fused=True)
                    part_loss = part_loss / config.n_parts
                part_loss.backward()
                loss = loss + part_loss.detach()
            norm = clip_gradients(parameters, config.max_norm)
            loss_now = crew.mean(loss).item()
            _require_finite("loss", loss_now, step, config)
            _require_finite("gradient", _whole(norm).item(), step, config)
            optimizer.step()
            history.train.append(loss_now)
            n_made = step + 1
            is_last = n_made == config.n_steps
            if n_made % config.eval_every == 0 or is_last:
                if validation_ids is not None:
                    found = evaluate(
                        shared, validation_ids, context_length=context_length
                    )
                    _require_finite("validation loss", found, step, config)
                    history.validation.append(crew.agree(found))
                history.steps.append(n_made)
                history.seconds.append(time.monotonic() - began)
                run.keep_best(history)
                if on_look is not None:
                    on_look(n_made, model)
                model.train()
            if n_made % config.save_every == 0 or is_last:
                run.save(n_made, optimizer, history)
            _show(bar, history)
    run.remove_old()  # a kill may have come before it could be done
    return history


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the matrices, which decay, and all else, which does not.

    Biases, and scale and shift of a norm, have one number per feature: to
    pull them toward zero would move the function and not make it simpler.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"parameters": matrices, "weight_decay": weight_decay}]
    if vectors:
        groups.append({"parameters": vectors, "weight_decay": 0.0})
    return groups


class _Crew:
    """The processes that train together: one, unless torchrun began them."""

    def __init__(self, rank: int, size: int, parallel: str) -> None:
        self.rank = rank
        self.size = size
        self.parallel = parallel
        self.is_first = rank == 0

    @classmethod
    def find(cls, parallel: str) -> "_Crew":
        if parallel not in ("replicate", "shard"):
            raise ValueError(
                f"parallel must be replicate or shard, got {parallel!r}"
            )
        if not _in_group():
            if int(os.environ.get("WORLD_SIZE", 1)) == 1:
                return cls(0, 1, parallel)
            cuda = torch.cuda.is_available()
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), parallel)

    def place(self, model: GPT) -> torch.device:
        """Bring the model to the device of this process, and return it."""
        device = next(model.parameters()).device
        if self.size > 1 and torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
            model.to(device)
        return device

    def wrap(self, model: GPT) -> nn.Module:
        if self.size == 1:
            return model
        if self.parallel == "shard":
            from torch.distributed.fsdp import fully_shard

            for x in model.state_dict().values():
                dist.broadcast(x, 0)
            for block in model.blocks:
                fully_shard(block)
            return fully_shard(model)
        return DistributedDataParallel(model)

    def share(self, x: Tensor) -> Tensor:
        """Return this process's part of a batch."""
        return x.chunk(self.size)[self.rank]

    def gathering(self, model: nn.Module, is_last: bool) -> Any:
        """Exchange gradients only behind the last part of a batch."""
        if isinstance(model, DistributedDataParallel) and not is_last:
            return model.no_sync()
        return contextlib.nullcontext()

    def mean(self, loss: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(loss)
            loss /= self.size
        return loss

    def agree(self, number: float) -> float:
        """Return the first one's number: others may have rounded it."""
        if self.size > 1:
            numbers = [number]
            dist.broadcast_object_list(numbers, 0)
            number = numbers[0]
        return number

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


class _Run:
    """Where a run keeps its checkpoints, and how it goes on from them."""

    def __init__(
        self,
        config: TrainConfig,
        model: GPT,
        ids: Tensor,
        validation_ids: Tensor | None,
        folder: Path | str | None,
        tokenizer: BPETokenizer | None,
        crew: _Crew,
    ) -> None:
        self.config = config
        self.model = model
        self.folder = None if folder is None else Path(folder)
        self.tokenizer = tokenizer
        self.crew = crew
        # What must be the same, or it would be another run.
        self.identity = {
            "train": dataclasses.asdict(config),
            "model": dataclasses.asdict(model.config),
            "n_tokens": len(ids),
            "tokens": _digest(ids),
            "validation_tokens": None
            if validation_ids is None
            else _digest(validation_ids),
        }

    def save(self, n_made: int, optimizer: AdamW, history: History) -> None:
        if self.folder is None:
            return
        # Gathered from all processes, and written by the first.
        model_state = self._model_state()
        tensors, numbers = _flattened(optimizer.state_dict())
        if self.crew.is_first:
            path = checkpoints.checkpoint_path(self.folder, n_made)
            with checkpoints.new_folder(path) as draft:
                checkpoints.write_model(
                    draft,
                    self.model.config,
                    model_state,
                    self.tokenizer,
                )
                save_file(tensors, draft / "optimizer.safetensors")
                checkpoints.write_json(
                    draft / "training.json",
                    {
                        **self.identity,
                        "n_made": n_made,
                        "optimizer": numbers,
                        "history": dataclasses.asdict(history),
                    },
                )
            self.remove_old()
        self.crew.wait()

    def remove_old(self) -> None:
        """Remove all checkpoints but the newest n_kept."""
        if self.folder is None or not self.crew.is_first:
            return
        for old in checkpoints.checkpoints(self.folder)[self.config.n_kept :]:
            shutil.rmtree(old)

    def _model_state(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: _whole(tensor) for name, tensor in state.items()}

    def keep_best(self, history: History) -> None:
        """Keep the model, if none before it had a lower validation loss."""
        is_best = history.best_step == history.steps[-1]
        if self.folder is None or not is_best:
            return
        state = self._model_state()
        if self.crew.is_first:
            with checkpoints.new_folder(self.folder / "model") as draft:
                checkpoints.write_model(
                    draft, self.model.config, state, self.tokenizer
                )
        self.crew.wait()

    def resume_model(self) -> Path | None:
        """Load the newest whole checkpoint of this run; return its path.

        Raises: ValueError if the checkpoint is one of another run;
            DamagedError if there are checkpoints, and none is whole.
        """
        if self.folder is None:
            return None
        damage = []
        for path in checkpoints.checkpoints(self.folder):
            try:
                checkpoints.require_whole(path)
                found = checkpoints.read_json(path / "training.json")
                weights = checkpoints.read_tensors(path / "model.safetensors")
            except checkpoints.DamagedError as error:
                damage.append(str(error))
                continue
            self._require_same(found)
            for error in damage:
                warnings.warn(
                    f"{error}. The older {path.name} is used",
                    stacklevel=4,  # whoever called train
                )
            self.model.load_state_dict(weights)
            return path
        if damage:
            raise checkpoints.DamagedError(
                f"{self.folder} holds no checkpoint that is whole: "
                f"{'; '.join(damage)}. To start afresh, remove them"
            )
        return None

    def _require_same(self, found: dict[str, Any]) -> None:
        """Check that what a checkpoint tells of its run holds for this."""
        was, now = _flat(found), _flat(self.identity)
        changed = [
            f"{name} was {was.get(name)} and not {value}"
            for name, value in now.items()
            if name not in was or was[name] != value
        ]
        if changed:
            raise ValueError(
                "folder must be empty or hold this very run, got "
                f"{self.folder}, where {', '.join(changed)}"
            )

    def resume(
        self, path: Path | None, optimizer: AdamW
    ) -> tuple[History, int]:
        """Load the rest of a checkpoint; return history and steps made."""
        if path is None:
            return History(), 0
        found = checkpoints.read_json(path / "training.json")
        tensors = checkpoints.read_tensors(path / "optimizer.safetensors")
        state = _unflattened(tensors, found["optimizer"])
        optimizer.load_state_dict(state)
        return History(**found["history"]), found["n_made"]


def _flat(nested: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat


def _flattened(state: dict) -> tuple[dict[str, Tensor], dict]:
    """Part the state of an optimizer into tensors and plain numbers."""
    tensors, numbers = {}, []
    for i, values in enumerate(state["state"]):
        rest = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{i}.{name}"] = _whole(value)
            else:
                rest[name] = value
        numbers.append(rest)
    return tensors, {"groups": state["groups"], "state": numbers}


def _unflattened(tensors: dict[str, Tensor], numbers: dict) -> dict:
    """Undo _flattened."""
    state = [dict(values) for values in numbers["state"]]
    for key, tensor in tensors.items():
        i, _, name = key.partition(".")
        state[int(i)][name] = tensor
    return {"groups": numbers["groups"], "state": state}


def _whole(x: Tensor) -> Tensor:
    """Return a tensor that may lie in shares on several processes."""
    x = x.detach()
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).cpu()


def _mixed(*numbers: int) -> int:
    """Return one seed for several numbers, unlike that of any others."""
    data = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:7], "big")


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.cpu().long().numpy().tobytes()).hexdigest()


def _show(bar: tqdm, history: History) -> None:
    """Move the bar on by a step, with loss and tokens per second."""
    bar.update()
    if bar.disable:
        return
    rate = bar.format_dict["rate"] or 0
    shown = {
        "loss": f"{statistics.fmean(history.train[-20:]):.3f}",
        "tokens/s": f"{rate * history.tokens_per_step:,.0f}",
    }
    if history.validation:
        shown["validation"] = f"{history.validation[-1]:.3f}"
    bar.set_postfix(shown, refresh=False)


def _require_sizes(context_length: int, batch_size: int) -> None:
    if context_length < 1 or batch_size < 1:
        raise ValueError(
            "context_length and batch_size must be at least 1, got "
            f"context_length={context_length} and batch_size={batch_size}"
        )


def _require_row(ids: Tensor, context_length: int) -> None:
    is_tensor = isinstance(ids, Tensor)
    kind = str(ids.dtype) if is_tensor else type(ids).__name__
    if not is_tensor or "int" not in kind:
        raise TypeError(f"ids must be a tensor of integers, got {kind}")
    if ids.ndim != 1 or len(ids) <= context_length:
        raise ValueError(
            "ids must be one row of more tokens than context_length="
            f"{context_length}, got shape {tuple(ids.shape)}"
        )


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _require_finite(
    name: str, number: float, step: int, config: TrainConfig
) -> None:
    if not math.isfinite(number):
        raise FloatingPointError(
            f"{name} must be finite, got {number} at step {step}, in the "
            f"batch TokenWindows(..., batch_size={config.batch_size}, "
            f"seed={config.seed}).batch({step}). Try a lower learning_rate "
            f"than {config.learning_rate:g}, more warmup_steps than "
            f"{config.warmup_steps}, or float32"
        )
