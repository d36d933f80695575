"""Checkpoints: models in folders, written whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scratch.llm.gpt import GPT, GPTConfig
from scratch.llm.tokenization import BPETokenizer

_FORMAT = 1
_SUMS = "SHA256SUMS"
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_STEP = "step-"  # what the name of a checkpoint begins with


class DamagedError(ValueError):
    """A checkpoint that is not what was written, or only a part of it."""


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty folder to write to; it becomes path when all is done.

    A program that is killed meanwhile leaves path as it was. A file
    SHA256SUMS is added, by which require_whole (or sha256sum -c) can tell
    later whether the files are the ones that were written. A model or a
    checkpoint that stood at path before is replaced.

    Raises: FileExistsError if anything else stands there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for all runs: what a killed one left is cleared away here.
    draft = path.parent / f".{path.name}.part"
    _put_back(path)
    _require_replaceable(path)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        files = sorted(draft.iterdir())
        lines = [f"{_sha256(file)}  {file.name}\n" for file in files]
        (draft / _SUMS).write_text("".join(lines), encoding="utf8")
        for file in (*files, draft / _SUMS, draft):
            _flush(file)
        old = _aside(path)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        draft.rename(path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        _put_back(path)
        shutil.rmtree(draft, ignore_errors=True)
        raise


def require_whole(folder: Path | str) -> None:
    """Check that a folder holds the very files that new_folder wrote.

    Raises: DamagedError naming the file that is missing or has changed.
    """
    folder = Path(folder)
    sums = folder / _SUMS
    if not sums.is_file():
        raise DamagedError(f"folder must hold {_SUMS}, got {folder}")
    text = sums.read_text(encoding="utf8", errors="replace")
    sum_of = {}
    for line in text.splitlines():
        expected, _, name = line.partition("  ")
        if not name:
            raise DamagedError(f"{sums} is damaged: it holds {line!r}")
        sum_of[name] = expected
    for name, expected in sum_of.items():
        file = folder / name
        if not file.is_file():
            raise DamagedError(f"{folder} is damaged: {name!r} is missing")
        if _sha256(file) != expected:
            raise DamagedError(f"{file} is damaged: its SHA-256 has changed")
    for file in folder.glob("[!.]*"):
        if file != sums and file.name not in sum_of:
            raise DamagedError(
                f"{folder} is damaged: {_SUMS} does not list {file.name!r}"
            )


def save_model(
    folder: Path | str,
    model: GPT,
    tokenizer: BPETokenizer | None = None,
    *,
    dtype: torch.dtype | None = None,
    card: str = "",
) -> None:
    """Write a model and its tokenizer to a folder, whole or not at all.

    Args:
        dtype: of the numbers in the file, by default that of the model;
            torch.float16 halves the file.
        card: text for README.md, on what the model is and can do.
    """
    with new_folder(folder) as draft:
        state = {
            name: tensor.to(dtype or tensor.dtype)
            for name, tensor in model.state_dict().items()
        }
        write_model(draft, model.config, state, tokenizer)
        if card:
            (draft / "README.md").write_text(card, encoding="utf8")


def write_model(
    folder: Path,
    config: GPTConfig,
    state: Mapping[str, Tensor],
    tokenizer: BPETokenizer | None = None,
) -> None:
    """Write the files of a model to a folder that exists."""
    weights = {
        name: x.detach().cpu().contiguous() for name, x in state.items()
    }
    save_file(weights, folder / _WEIGHTS)
    write_json(
        folder / _CONFIG, {"format": _FORMAT, "model": "GPT", **asdict(config)}
    )
    if tokenizer is not None:
        tokenizer.save(folder / _TOKENIZER)


def load_model(
    folder: Path | str, *, dropout: float = 0.0, fused: bool = True
) -> tuple[GPT, BPETokenizer | None]:
    """Return the model in a folder, in float32, and its tokenizer.

    Args:
        folder: what save_model wrote; or the folder of a training run, in
            which case the best model is taken that the run has kept, and
            the newest whole checkpoint if it has kept none yet.
        dropout: for training on.

    Returns: model and tokenizer; None where there is none.
    Raises: FileNotFoundError if there is no model; DamagedError, naming
        the file, if one is not what was written; ValueError if it holds
        another kind of model.
    """
    folder = _standing(Path(folder))
    if not (folder / _CONFIG).is_file():
        folder = _model_of_run(folder)
    require_whole(folder)
    found = read_json(folder / _CONFIG)
    if found.get("format") != _FORMAT or found.get("model") != "GPT":
        raise ValueError(
            f"{folder / _CONFIG} must describe a GPT in format {_FORMAT}, "
            f"got {found.get('model')!r} in format {found.get('format')!r}"
        )
    sizes = {k: v for k, v in found.items() if k not in ("format", "model")}
    try:
        config = GPTConfig(**{**sizes, "dropout": dropout, "fused": fused})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / _CONFIG} must hold the sizes of a GPT ({error})"
        ) from error
    with torch.device("meta"):  # shapes only: draws and stores no numbers
        model = GPT(config)
    weights = read_tensors(folder / _WEIGHTS)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{folder / _WEIGHTS} must hold the tensors that {_CONFIG} "
            f"describes ({error})"
        ) from error
    model.requires_grad_(True)
    tokenizer = folder / _TOKENIZER
    has_one = tokenizer.is_file()
    return model, BPETokenizer.load(tokenizer) if has_one else None


def load_pretrained(
    *, dropout: float = 0.0, fused: bool = True
) -> tuple[GPT, BPETokenizer]:
    """Return the small model that comes with the book, and its tokenizer.

    It has read the documentation corpus; its README.md says how.
    """
    with resources.as_file(resources.files("scratch") / "pretrained") as path:
        return load_model(path, dropout=dropout, fused=fused)


def checkpoint_path(folder: Path | str, n_steps: int) -> Path:
    """Return where a run keeps the checkpoint after n_steps steps."""
    return Path(folder) / "checkpoints" / f"{_STEP}{n_steps:08d}"


def checkpoints(folder: Path | str) -> list[Path]:
    """Return the checkpoints of a run, the newest first, whole or not."""
    return sorted(
        (Path(folder) / "checkpoints").glob(f"{_STEP}*"), reverse=True
    )


def read_json(path: Path) -> dict[str, Any]:
    """Raises: DamagedError, naming path, if it holds no JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{path} is damaged: it holds no JSON object")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises: DamagedError, naming path, if it is no safetensors file."""
    try:
        # Copied, because what the file gives changes with the file.
        return {name: x.clone() for name, x in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def _model_of_run(folder: Path) -> Path:
    best = _standing(folder / "model")
    if (best / _CONFIG).is_file():
        return best
    damage = None
    for checkpoint in checkpoints(folder):
        try:
            require_whole(checkpoint)
        except DamagedError as error:
            damage = damage or error
        else:
            return checkpoint
    raise damage or FileNotFoundError(
        f"folder must hold {_CONFIG} and {_WEIGHTS}, or the checkpoints of "
        f"a training run, got {folder}"
        + ("" if folder.is_dir() else ", which is no folder")
    )


def _aside(path: Path) -> Path:
    """Return where the folder at path waits until another is in place."""
    return path.parent / f".{path.name}.old"


def _standing(path: Path) -> Path:
    """Return path, or its old folder if a kill came between two renames."""
    return path if path.exists() or not _aside(path).exists() else _aside(path)


def _put_back(path: Path) -> None:
    if _standing(path) != path:
        _aside(path).rename(path)


def _require_replaceable(path: Path) -> None:
    """Keep a wrong path from costing somebody a folder full of work."""
    if not path.exists():
        return
    ours = path.is_dir() and (
        (path / _SUMS).is_file()
        or (path / _CONFIG).is_file()
        or next(path.iterdir(), None) is None
    )
    if not ours:
        raise FileExistsError(
            f"path must be new, empty, or hold a model, got {path}"
        )


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:  # such as a bad sector
        raise DamagedError(f"{file} is damaged: {error}") from error


def _flush(path: Path) -> None:
    """Make sure that a file or folder is on the disk before going on."""
    try:
        # Windows flushes only what is open for writing, and opens no folders.
        mode = os.O_RDONLY if path.is_dir() else os.O_RDWR
        descriptor = os.open(path, mode)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
