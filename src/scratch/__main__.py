"""python -m scratch: train a GPT on your own text, and let it write."""

import argparse
import codecs
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from scratch.checkpoints import (
    DamagedError,
    checkpoints,
    load_model,
    load_pretrained,
    new_folder,
    read_json,
    require_whole,
)
from scratch.data.documentation import documentation, source_code
from scratch.data.text import load_text
from scratch.llm.generation import generate
from scratch.llm.gpt import GPT, count_parameters
from scratch.llm.tokenization import (
    END_OF_TEXT,
    N_BYTES,
    BPETokenizer,
    train_bpe,
)
from scratch.llm.training import (
    History,
    TrainConfig,
    evaluate,
    join_texts,
    train,
)
from scratch.nn.losses import bits_per_byte
from scratch.presets import N_LOOKS, PRESETS, Preset

_HELD_OUT = 10  # one text in so many is not trained on
_FEW = 20  # texts; of fewer, the end of each is held out instead
_LOOK = 200_000  # tokens held out that a look takes at most,
_SHORT_LOOK = 10_000  # or in a short run
_ENOUGH = 3  # tokens of training per parameter, for a model to be worth it
_N_TRIED = 5  # steps by which the speed is measured
_PATIENCE = 20.0  # seconds after which fewer steps must do for that
_FEWEST = 20  # steps that are made, however short the time
_DEFAULT_MINUTES = 10.0
_SAMPLE = 100  # tokens that a new model writes as a first sign of life


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 where it could not do what it should."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    folder, told, code = None, "", 0
    try:
        options = _parser().parse_args(arguments)
        options.command = shlex.join(["python", "-m", "scratch", *arguments])
        folder = getattr(options, "out", None)
        options.run(options)
    except KeyboardInterrupt:
        told, code = _how_to_go_on(folder), 130
    except (
        OSError,
        ValueError,
        FloatingPointError,
        SafetensorError,
        MemoryError,
        RuntimeError,
    ) as error:
        told, code = _explained(error), 1
    # Out here, so that a progress bar is closed by now.
    if told:
        print(told, file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Its errors are a sentence, which main prints as it does all others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def error(self, message: str) -> None:
        raise ValueError(f"{message}\n{self.prog} -h explains the options.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m scratch",
        description="Train a GPT on your own text, and let it write.",
        epilog=(
            "for example:\n"
            "  python -m scratch pretrain --text notes --out my-model\n"
            "  python -m scratch generate --model my-model\n\n"
            "Each command has its own help: python -m scratch pretrain -h"
        ),
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_pretrain(commands)
    _add_generate(commands)
    return parser


def _add_pretrain(commands: Any) -> None:
    command = commands.add_parser(
        "pretrain",
        help="train a model on text, from nothing",
        description=(
            "Train a tokenizer and a GPT on your own text, from nothing.\n\n"
            "A tenth of the text is held out. The loss on it tells how well\n"
            "the model does on text that it has not seen. Stop it when you\n"
            "like: the same command goes on from the last checkpoint."
        ),
        epilog=_pretrain_epilog(),
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--text",
        type=Path,
        metavar="PATH",
        help="a text file, or a folder: all files in it are read, except "
        "hidden, empty and binary ones",
    )
    source.add_argument(
        "--corpus",
        choices=("documentation", "source"),
        help="instead: the docstrings, or the source code, of the libraries "
        "that this book uses, as they are installed here",
    )
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new folder for the tokenizer, the checkpoints, and in "
        "DIR/model the best model with a description",
    )
    command.add_argument(
        "--suffix",
        nargs="+",
        metavar="END",
        help="of a folder, read only files whose names end so, such as .md",
    )
    command.add_argument(
        "--encoding",
        type=_encoding,
        default="utf-8",
        metavar="NAME",
        help="of the files, such as cp1252 (default: %(default)s)",
    )
    command.add_argument(
        "--preset",
        choices=("auto", *PRESETS),
        default="auto",
        metavar="NAME",
        help="size of the model: auto or a name from the table below "
        "(default: %(default)s)",
    )
    length = command.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=_number(float, 0.01, 1e6),
        metavar="M",
        help="train for about so long; the speed is measured first "
        f"(default: {_DEFAULT_MINUTES:g})",
    )
    length.add_argument(
        "--steps",
        type=_number(int, 1),
        metavar="N",
        help="train for so many steps instead",
    )
    command.add_argument(
        "--vocab-size",
        type=_number(int, N_BYTES + 1),
        metavar="N",
        help="tokens of the tokenizer (default: by the preset; with auto, "
        "by the length of the text, from 512 to 4096)",
    )
    command.add_argument(
        "--learning-rate",
        type=_number(float, 1e-9, 1e9),
        metavar="R",
        help="the highest (default: by the preset); lower it if the loss "
        "jumps",
    )
    command.add_argument(
        "--batch-size",
        type=_number(int, 1),
        metavar="N",
        help="pieces of text in a step (default: by the preset); lower it "
        "if memory runs out",
    )
    command.add_argument(
        "--dropout",
        type=_number(float, 0, 0.99),
        metavar="P",
        help="share of activations set to zero in training (default: by "
        "the preset); 0.1 or 0.2 if the text is short and the held-out "
        "loss rises again",
    )
    command.add_argument(
        "--seed",
        type=_number(int, 0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of the first weights and the order (default: %(default)s)",
    )
    command.add_argument(
        "--device",
        default=_best_device(),
        metavar="NAME",
        help="where to compute, such as cpu or cuda (default here: "
        "%(default)s)",
    )
    command.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of products; bfloat16 is faster on recent GPUs (default: "
        "%(default)s)",
    )
    command.add_argument(
        "--compile",
        action="store_true",
        help="let torch.compile make faster kernels first; takes a minute, "
        "and is worth it on a GPU",
    )
    command.set_defaults(run=pretrain)


def _pretrain_epilog() -> str:
    rows = [f"  {'preset':8}{'parameters':>12}{'context':>9}  suits"]
    for name, preset in PRESETS.items():
        n = count_parameters(preset.model())["total"] / 1e6
        rows.append(
            f"  {name:8}{f'{n:.1f} million':>12}"
            f"{preset.context_length:>9}  {preset.suits}"
        )
    return (
        "\n".join(rows)
        + "\n\nauto takes the largest that your text is long enough for and "
        "that sees\nthree tokens per parameter in the time. A step is one "
        "batch.\n\n"
        "for example:\n"
        "  python -m scratch pretrain --text notes --suffix .md --out m1\n"
        "  python -m scratch pretrain --text access.log --out m2 --minutes 3\n"
        "  python -m scratch pretrain --corpus documentation --out m3 "
        "--preset small\n"
    )


def _add_generate(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="let a model write",
        description=(
            "Let a model go on from a prompt, token by token, until it ends\n"
            "the text itself or has written --tokens."
        ),
        epilog=(
            "for example:\n"
            "  python -m scratch generate --model m1 --prompt '# To do'\n"
            "  python -m scratch generate --model m1 --temperature 0.5 "
            "--count 3 --seed 1\n"
        ),
    )
    command.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="the --out of pretrain, its model, or one of its checkpoints "
        "(default: the model that comes with the book)",
    )
    command.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="what to go on from (default: nothing, the start of a text)",
    )
    command.add_argument(
        "--tokens",
        type=_number(int, 1),
        default=200,
        metavar="N",
        help="write so many at most (default: %(default)s)",
    )
    command.add_argument(
        "--count",
        type=_number(int, 1),
        default=1,
        metavar="N",
        help="write so many texts (default: %(default)s)",
    )
    command.add_argument(
        "--temperature",
        type=_number(float, 0, 1e6),
        default=0.8,
        metavar="X",
        help="0 always takes the likeliest token, 1 draws as the model "
        "says, more is wilder (default: %(default)s)",
    )
    command.add_argument(
        "--top-k",
        type=_number(int, 1),
        metavar="K",
        help="draw from the K likeliest tokens only (default: from all)",
    )
    command.add_argument(
        "--top-p",
        type=_number(float, 1e-6, 1),
        default=0.95,
        metavar="P",
        help="draw from the likeliest tokens that hold P of the "
        "probability; 1 is all (default: %(default)s)",
    )
    command.add_argument(
        "--seed",
        type=_number(int, 0, 2**63 - 1),
        metavar="N",
        help="equal seeds give equal texts (default: other texts each time)",
    )
    command.set_defaults(run=write)


def _number(
    kind: Callable[[str], float], low: float, high: float = math.inf
) -> Callable[[str], float]:
    """Return a reader of an option that must be a number from low to high."""
    what = "a whole number" if kind is int else "a number"
    limits = f"at least {low:g}" if high >= 1e6 else f"{low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"must be {what}, {limits}, got {text!r}"
            )
        return value

    return read


def _encoding(text: str) -> str:
    try:
        return codecs.lookup(text).name
    except (LookupError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            "must be an encoding that Python knows, such as utf-8 or "
            f"cp1252, got {text!r}"
        ) from error


def _explained(error: Exception) -> str:
    """Return what to tell the reader, or raise what is a bug."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'A file'}: {error.strerror}."
    if isinstance(error, SafetensorError):
        return f"The weights could not be written. {error}"
    if isinstance(error, FloatingPointError):
        return f"{error}. Begin again in a new --out."
    if isinstance(error, DamagedError):
        return f"{error}. Take another --out."
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "alloc" in str(error)
    ):
        return (
            "There is not enough memory. Take a smaller --batch-size or "
            "--preset, and a new --out."
        )
    if isinstance(error, RuntimeError):
        raise error
    return str(error)


def _how_to_go_on(folder: Path | None) -> str:
    if folder is None:
        return "Stopped."
    n_made = _steps_kept(folder)
    if n_made == 0:
        return "Stopped before the first checkpoint: begin it again."
    return f"Stopped. The same command goes on after step {n_made:,}."


def _steps_kept(folder: Path) -> int:
    """Return the steps made up to the newest checkpoint, 0 without one."""
    kept = checkpoints(folder)
    return int(kept[0].name.partition("-")[2]) if kept else 0


def pretrain(options: argparse.Namespace) -> None:
    """Train a tokenizer and a model, or go on with them."""
    _require_device(options.device)
    _require_place(options)
    text = _read(options)
    plan, tokenizer, ids, validation_ids = _planned(options, text)
    preset = _preset(options, plan["preset"])
    model = _model(options, preset, tokenizer)
    config = _training(options, preset, plan["steps"])
    print(
        f"{len(ids):,} tokens to train on, {len(validation_ids):,} held out\n"
        f"model {plan['preset']}: "
        f"{count_parameters(model.config)['total']:,} "
        f"parameters, {config.n_steps:,} steps of "
        f"{config.batch_size * model.config.context_length:,} tokens"
    )
    if n_made := _steps_kept(options.out):
        print(f"going on after step {n_made:,}")
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        history = train(
            model,
            ids,
            validation_ids[: _n_looked(preset, config.n_steps)],
            config=config,
            folder=options.out,
            tokenizer=tokenizer,
        )
    _finish(options, text, plan, history, len(ids), validation_ids)


def _finish(
    options: argparse.Namespace,
    text: "_Text",
    plan: dict[str, Any],
    history: History,
    n_tokens: int,
    validation_ids: Tensor,
) -> None:
    """Judge the best model on all that was held out, and describe it."""
    model, tokenizer = _load(options.out)
    loss = evaluate(
        model.to(options.device),
        validation_ids,
        context_length=model.config.context_length,
    )
    bits = bits_per_byte(
        loss,
        n_tokens=len(validation_ids) - 1,
        n_bytes=_n_bytes(text.held_out),
    )
    model.to("cpu")
    home = options.out / "model"
    if home.is_dir() and not (home / "README.md").is_file():
        card = _card(
            options,
            text,
            plan,
            history,
            model,
            f"{n_tokens:,} to train on, {len(validation_ids):,} held out",
            {
                "loss on all held-out text": f"{loss:.4f} nats per token",
                "**bits per byte on all held-out text**": f"{bits:.4f}",
            },
        )
        files = {file.name: file.read_bytes() for file in home.iterdir()}
        del files["SHA256SUMS"]  # new_folder makes it anew
        with new_folder(home) as draft:
            for name, content in files.items():
                (draft / name).write_bytes(content)
            (draft / "README.md").write_text(card, encoding="utf8")
    print(
        f"the best model is that after step {history.best_step:,}; on all "
        "held-out text:\n"
        f"{loss:.3f} nats per token, {bits:.3f} bits per byte\n"
        "It writes:\n"
    )
    generator = torch.Generator().manual_seed(options.seed)
    sample = _written(
        model,
        tokenizer,
        "",
        n_new=_SAMPLE,
        temperature=0.8,
        top_p=0.95,
        generator=generator,
    )[0]
    print("\n".join(f"    {line}" for line in sample.strip().split("\n")))
    out = shlex.quote(str(options.out))
    print(f"\nMore of it: python -m scratch generate --model {out}")


def write(options: argparse.Namespace) -> None:
    """Print what a model writes behind the prompt."""
    if options.model is None:
        try:
            model, tokenizer = load_pretrained()
        except FileNotFoundError as error:
            raise ValueError(
                "The model that comes with the book is not installed here. "
                "--model DIR names one that pretrain has made."
            ) from error
    else:
        model, tokenizer = _load(options.model)
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    texts = _written(
        model,
        tokenizer,
        options.prompt,
        count=options.count,
        n_new=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        generator=generator,
    )
    print(("\n" + "-" * 20 + "\n").join(texts))


def _load(folder: Path) -> tuple[GPT, BPETokenizer]:
    """Load a model that pretrain made, or say what to do instead."""
    try:
        model, tokenizer = load_model(folder)
    except FileNotFoundError as error:
        what = "holds no model" if folder.is_dir() else "is no folder"
        raise ValueError(
            f"--model must be a folder that pretrain has filled, but "
            f"{folder} {what}."
        ) from error
    except DamagedError as error:
        whole = _whole_checkpoint(folder)
        raise ValueError(
            f"{error}. "
            + (
                f"{whole} is whole: use --model {whole}"
                if whole
                else "Train it again, in a new --out."
            )
        ) from error
    if tokenizer is None or END_OF_TEXT not in tokenizer.special_ids:
        raise ValueError(
            f"--model must have a tokenizer with {END_OF_TEXT}, but that of "
            f"{folder} has none."
        )
    return model, tokenizer


def _whole_checkpoint(folder: Path) -> Path | None:
    for path in (*checkpoints(folder), *checkpoints(folder.parent)):
        try:
            require_whole(path)
        except DamagedError:
            continue
        return path
    return None


def _written(
    model: GPT,
    tokenizer: BPETokenizer,
    prompt: str,
    *,
    count: int = 1,
    **settings: Any,
) -> list[str]:
    """Return texts that begin with the prompt."""
    end = tokenizer.special_ids[END_OF_TEXT]
    ids = torch.tensor([[end, *tokenizer.encode(prompt)]] * count)
    rows = generate(model, ids, stop_id=end, **settings)
    return [
        _printable(tokenizer.decode(t for t in row if t != end))
        for row in rows[:, 1:].tolist()
    ]


def _printable(text: str) -> str:
    """Put a mark for each control character: a terminal would obey it."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"\n{message}.", file=sys.stderr)


@dataclass(frozen=True)
class _Text:
    """What is trained on and what is held out, with facts for the card."""

    train: list[str]
    held_out: list[str]
    name: str
    how_held_out: str
    note: str = ""

    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for text in (*self.train, "\0", *self.held_out):
            digest.update(hashlib.sha256(text.encode()).digest())
        return {
            "bytes": _n_bytes(self.train) + _n_bytes(self.held_out),
            "sha256": digest.hexdigest(),
        }


def _n_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _read(options: argparse.Namespace) -> _Text:
    """Return texts to train on, and texts held out."""
    if options.corpus:
        read = {"documentation": documentation, "source": source_code}
        corpus = read[options.corpus]()
        n_texts = len(corpus.entries)
        return _Text(
            [entry.text for entry in corpus.train],
            [entry.text for entry in corpus.validation],
            f"the corpus `{options.corpus}`, {n_texts:,} texts",
            f"{len(corpus.validation):,} texts, by the hash of each",
            corpus.statistics(),
        )
    texts = _own_texts(options)
    name = f"`{options.text}`, {len(texts):,} files"
    n_characters = sum(map(len, texts))
    if len(texts) >= _FEW:
        # By the text itself: equal texts go to one side.
        sides = [
            hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT == 0
            for text in texts
        ]
        held = [t for t, side in zip(texts, sides, strict=True) if side]
        rest = [t for t, side in zip(texts, sides, strict=True) if not side]
        # A large file may be most of the text.
        if 0.04 <= sum(map(len, held)) / n_characters <= 0.25:
            how = f"{len(held):,} files, by the hash of each"
            return _Text(rest, held, name, how)
    cuts = [len(text) - len(text) // _HELD_OUT for text in texts]
    pairs = [(t[:c], t[c:]) for t, c in zip(texts, cuts, strict=True)]
    return _Text(
        [a for a, _ in pairs if a],
        [b for _, b in pairs if b],
        name,
        "the last tenth of each file",
    )


def _own_texts(options: argparse.Namespace) -> list[str]:
    """Read the files; tell of those that are left out."""
    root = options.text
    if not root.exists():
        raise ValueError(
            f"--text must be a file or a folder, but there is no {root}."
        )
    files = [root]
    if root.is_dir():
        ends = tuple(f".{e.lstrip('.')}" for e in options.suffix or ())
        files = [
            file
            for file in sorted(root.rglob("*"))
            if file.is_file()
            and not any(
                part.startswith(".") for part in file.relative_to(root).parts
            )
            and (not ends or file.name.endswith(ends))
        ]
        if not files:
            wanted = f" whose name ends in {' or '.join(ends)}" if ends else ""
            raise ValueError(
                f"--text must hold a file to read, but the folder {root} "
                f"has none{wanted}. Hidden files and folders are not read."
            )
    texts, left_out = [], []
    for file in files:
        try:
            texts += load_text(file, encoding=options.encoding)
        except ValueError as error:
            if isinstance(error.__cause__, UnicodeDecodeError):
                raise ValueError(
                    f"--encoding must be that of the files, but {file} is "
                    f"not in {options.encoding}. Files from Windows are "
                    "often cp1252; --suffix .md reads only such files."
                ) from error
            left_out.append(str(file))
    if not texts:
        raise ValueError(
            f"--text must hold text, but {root} is empty or binary."
            if len(files) == 1
            else f"--text must hold text, but all {len(files)} files in "
            f"{root} are empty or binary."
        )
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        print(
            "left out, empty or binary: " + ", ".join(left_out[:3]) + more,
            flush=True,
        )
    return texts


def _require_place(options: argparse.Namespace) -> None:
    """Check that out is a folder of ours, or can become one."""
    out = options.out.resolve()
    nearest = next(p for p in (out, *out.parents) if p.exists())
    if not nearest.is_dir():
        raise ValueError(f"--out must be a folder, but {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"--out must be a folder that you may write to, but {nearest} "
            "is not."
        )
    text = options.text and options.text.resolve()
    if text and text.is_dir() and text in (out, *out.parents):
        raise ValueError(
            f"--out must lie outside of --text, or the model reads its own "
            f"files, got {options.out} inside of {options.text}."
        )
    is_ours = (out / "plan.json").is_file()
    if out.is_dir() and not is_ours:
        found = [p.name for p in out.iterdir() if not p.name.startswith(".")]
        if found:
            raise ValueError(
                f"--out must be a new or empty folder, or one of this very "
                f"command, but {options.out} holds {min(found)}."
            )


def _require_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            "--device must be one that torch can use here, such as cpu, "
            f"got {device!r}."
        ) from error


def _planned(
    options: argparse.Namespace, text: _Text
) -> tuple[dict[str, Any], BPETokenizer, Tensor, Tensor]:
    """Return preset and steps, the tokenizer, and both texts as tokens.

    The number of steps follows from the clock, so it is written down: a run
    that is gone on with has the steps that it began with.
    """
    path = options.out / "plan.json"
    begun = path.is_file()
    asked = {
        "preset": options.preset,
        "minutes": options.minutes,
        "steps": options.steps,
        "vocab_size": options.vocab_size,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
        "dropout": options.dropout,
        "seed": options.seed,
        "precision": options.precision,
        "compile": options.compile,
    }
    facts = text.facts()
    plan = read_json(path) if begun else {}
    if begun:
        _require_same(options.out, plan, asked, facts)
    tokenizer_path = options.out / "tokenizer.json"
    tokenizer = None
    if begun and tokenizer_path.is_file():
        # One that is damaged is learned anew, and comes out the same.
        with contextlib.suppress(ValueError):
            tokenizer = BPETokenizer.load(tokenizer_path)
    is_new = tokenizer is None
    if tokenizer is None:
        tokenizer = _new_tokenizer(options, text.train)
    ids = join_texts(text.train, tokenizer)
    validation_ids = join_texts(text.held_out, tokenizer)
    name = plan.get("preset", options.preset)
    _require_length(ids, "tiny" if name == "auto" else name)
    if not begun:
        decided = _decided(options, tokenizer, ids, len(validation_ids))
        plan = {"asked": asked, "text": facts, **decided}
        options.out.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(".plan.json.part")
        draft.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf8")
        draft.replace(path)
    if is_new:
        tokenizer.save(tokenizer_path)
    return plan, tokenizer, ids, validation_ids


def _require_same(
    out: Path,
    plan: dict[str, Any],
    asked: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Check that a run is gone on with as it was begun."""
    before = plan.get("asked", {})
    was = []
    for name, now in asked.items():
        old = before.get(name)
        if old != now:
            option = f"--{name.replace('_', '-')}"
            if old is None or old is False:
                was.append(f"without {option}")
            else:
                was.append(option if old is True else f"{option} {old}")
    if was:
        raise ValueError(
            f"{out} was begun {_listed(was)}. Go on with it so, or take "
            "another --out."
        )
    if plan.get("text") != facts:
        old = plan.get("text", {}).get("bytes", 0)
        raise ValueError(
            f"The text has changed since {out} was begun: {old:,} bytes "
            f"then, {facts['bytes']:,} now. Take another --out, or go on "
            "with the text as it was."
        )


def _listed(parts: list[str]) -> str:
    parts = [p if p.startswith("without") else f"with {p}" for p in parts]
    return ", ".join(parts)


def _new_tokenizer(
    options: argparse.Namespace, texts: list[str]
) -> BPETokenizer:
    """Learn so many tokens, or fewer where the text has no more to learn."""
    # About 200 characters of text for each token, and no fewer than 512.
    by_text = max(512, min(4096, sum(map(len, texts)) // 200))
    preset = PRESETS.get(options.preset)
    wanted = options.vocab_size or (preset.vocab_size if preset else by_text)
    print(f"learning a tokenizer of {wanted:,} tokens", flush=True)
    try:
        merges = train_bpe(texts, vocab_size=wanted - 1)
    except ValueError as error:
        most = re.search(r"at most (\d+)", str(error))
        if options.vocab_size or most is None:
            raise ValueError(
                f"--vocab-size {wanted} is more than this text can fill. "
                "Without the option, as many are taken as fit."
            ) from error
        print(f"{int(most[1]) + 1:,}, since the text has no more to learn")
        merges = train_bpe(texts, vocab_size=int(most[1]))
    return BPETokenizer(merges, special_tokens=(END_OF_TEXT,))


def _require_length(ids: Tensor, name: str) -> None:
    context_length = PRESETS[name].context_length
    if len(ids) <= context_length:
        raise ValueError(
            f"--text must be longer: its {len(ids):,} tokens do not fill the "
            f"context of {context_length:,} tokens of the preset {name}. "
            "A hundred thousand characters are a start."
        )


def _decided(
    options: argparse.Namespace,
    tokenizer: BPETokenizer,
    ids: Tensor,
    n_held_out: int,
) -> dict[str, Any]:
    """Choose preset and steps, by the text and the speed of this machine.

    From the smallest model up, as long as the text is long enough and the
    time suffices for _ENOUGH tokens of training for each parameter.
    """
    names = [options.preset]
    if options.preset == "auto":
        names = [
            name
            for name, preset in PRESETS.items()
            if len(ids) >= max(preset.tokens_wanted, preset.context_length + 1)
        ]
        if options.steps is not None and options.device == "cpu":
            names = names[:2]  # nobody has said how long it may take
    chosen: dict[str, Any] = {}
    speed = math.inf  # of the last model: parameters times tokens per second
    for name in names:
        preset = _preset(options, name)
        model_config = preset.model(tokenizer.vocab_size)
        n_parameters = count_parameters(model_config)["total"]
        n_wanted = _ENOUGH * n_parameters
        per_step = preset.batch_size * preset.context_length
        minutes = options.minutes or _DEFAULT_MINUTES
        n_steps = options.steps
        if n_steps is None:
            # Not even tried if it would take a CPU far too long.
            hopeless = n_parameters * n_wanted > 4 * speed * 60 * minutes
            if chosen and options.device == "cpu" and hopeless:
                break
            print(f"measuring the speed of {name}", flush=True)
            seconds = _seconds_per_step(options, preset, tokenizer, ids)
            speed = n_parameters * per_step / seconds
            # A look computes no gradients, which are two thirds of a step.
            most = int(60 * minutes / seconds)
            n_looked = min(n_held_out, _n_looked(preset, most))
            looks = N_LOOKS * n_looked / per_step / 3
            n_steps = max(_FEWEST, int(most - looks))
        is_enough = n_steps * per_step >= n_wanted
        if not chosen or is_enough:
            chosen = {"preset": name, "steps": n_steps}
        if not is_enough:
            break
    return chosen


def _n_looked(preset: Preset, n_steps: int) -> int:
    """Return how many tokens a look takes: together a tenth of the time."""
    n_seen = n_steps * preset.batch_size * preset.context_length
    share = n_seen // (3 * N_LOOKS)
    return min(_LOOK, max(_SHORT_LOOK, share))


class _OutOfPatience(Exception):
    pass


def _seconds_per_step(
    options: argparse.Namespace,
    preset: Preset,
    tokenizer: BPETokenizer,
    ids: Tensor,
) -> float:
    """Try a few steps with a model that is thrown away."""
    stamps = [time.perf_counter()]

    def look(n_made: int, model: GPT) -> None:
        stamps.append(time.perf_counter())
        if stamps[-1] - stamps[0] > _PATIENCE:
            raise _OutOfPatience

    config = _training(options, preset, _N_TRIED + 2)
    with contextlib.suppress(_OutOfPatience):
        train(
            _model(options, preset, tokenizer),
            ids,
            config=replace(config, eval_every=1),
            progress=False,
            on_look=look,
        )
    # The first steps also load and make kernels.
    first = min(2, len(stamps) - 2)
    return (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first)


def _preset(options: argparse.Namespace, name: str) -> Preset:
    changes = {
        key: value
        for key in ("learning_rate", "batch_size", "dropout")
        if (value := getattr(options, key)) is not None
    }
    return replace(PRESETS[name], **changes)


def _model(
    options: argparse.Namespace, preset: Preset, tokenizer: BPETokenizer
) -> GPT:
    generator = torch.Generator().manual_seed(options.seed)
    model = GPT(preset.model(tokenizer.vocab_size), generator=generator)
    return model.to(options.device)


def _training(
    options: argparse.Namespace, preset: Preset, n_steps: int
) -> TrainConfig:
    return preset.training(
        n_steps,
        seed=options.seed,
        precision=options.precision,
        compile=options.compile,
    )


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _card(
    options: argparse.Namespace,
    text: _Text,
    plan: dict[str, Any],
    history: History,
    model: GPT,
    tokens: str,
    measured: dict[str, str],
) -> str:
    """Return a description of a model, made of facts."""
    config = model.config
    n_late = max(1, len(history.train) // 20)
    late = sum(history.train[-n_late:]) / n_late
    looks = ", ".join(f"{loss:.3f}" for loss in history.validation)
    preset = _preset(options, plan["preset"])
    n_looked = _n_looked(preset, plan["steps"])
    now = datetime.now(UTC)
    rows = {
        "text": text.name,
        "bytes of text": f"{text.facts()['bytes']:,}",
        "held out": text.how_held_out,
        "tokens": tokens,
        "parameters": f"{count_parameters(config)['total']:,}",
        "preset": plan["preset"],
        "layers, width, heads": f"{config.n_layers}, {config.d_model}, "
        f"{config.n_heads}",
        "context": f"{config.context_length:,} tokens",
        "vocabulary": f"{config.vocab_size:,} tokens, byte-level BPE learned "
        "on the text to train on",
        "steps": f"{len(history.train):,}; this model is of step "
        f"{history.best_step:,}",
        "tokens seen": f"{history.best_step * history.tokens_per_step:,} "
        "until that step, repetitions counted",
        "training": f"batches of {history.tokens_per_step:,} tokens, "
        f"{options.precision}, seed {options.seed}",
        "seconds": f"{history.seconds[-1]:.0f}, looks at held-out text "
        "included",
        "hardware": _hardware(options.device),
        "date": f"{now:%Y-%m-%d}",
        "training loss": f"{late:.4f} nats per token, mean of the last "
        f"{n_late:,} steps",
        "held-out loss at each look": f"{looks} nats per token, on the first "
        f"{n_looked:,} tokens at most",
        **measured,
    }
    lines = [
        "# A small GPT",
        "",
        f"Trained from nothing on {text.name}, by",
        "",
        f"    {options.command}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "The best model is the one with the lowest held-out loss of all "
        "looks, so that loss is a little lower than on text of the same kind "
        "that was not looked at. A model keeps what it has read: it may "
        "repeat passages of its text word for word, names and passwords "
        "included. What it states is not checked by anything.",
    ]
    if text.note:
        lines += ["", "```text", text.note, "```"]
    return "\n".join(lines) + "\n"


def _hardware(device: str) -> str:
    chip = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        chip = torch.cuda.get_device_name(device)
    return (
        f"{chip}, {torch.get_num_threads()} threads, "
        f"{platform.platform()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    # A terminal that lacks a character must not end the program.
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
