"""GPT-2's published weights, read into our own GPT."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scratch.llm.gpt import GPT, GPTConfig

# What the checkpoint calls a tensor of ours outside the blocks, within a
# block. The matrices of a block are transposed there.
_OUTSIDE = {
    "embedding.tokens.weight": "wte.weight",
    "embedding.positions.weight": "wpe.weight",
    "norm.weight": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}
_WITHIN = {
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.mix": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.widen": "mlp.c_fc",
    "feed_forward.narrow": "mlp.c_proj",
}
# Settings of a config.json that our GPT does not offer otherwise.
_FIXED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
_MASKS = (".attn.bias", ".attn.masked_bias")  # held by older checkpoints
_HEAD = "lm_head.weight"  # the tied table, once more
_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def load_gpt2(
    folder_or_name: Path | str,
    *,
    download: bool = False,
    dropout: float = 0.0,
    fused: bool = True,
) -> GPT:
    """Return a GPT with the weights of a published GPT-2 checkpoint.

    They are in float32, whatever floating-point type the file has, and
    free of the file. The model is in training mode, as if built anew.

    Args:
        folder_or_name: a folder with config.json and model.safetensors; or
            "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", or another name
            on the Hugging Face hub, which needs download.
        download: whether to fetch a name with huggingface_hub, which keeps
            the files for the next time.
        dropout: for training on; the published config.json has 0.1.
        fused: as in GPTConfig.

    Raises: FileNotFoundError naming the file that is missing; ValueError
        naming the file that is damaged or holds another model; OSError if
        the download fails.
    """
    folder = Path(folder_or_name)
    if not folder.is_dir():
        folder = _fetched(str(folder_or_name), download)
    config = _read_config(folder / "config.json", dropout, fused)
    path = folder / "model.safetensors"
    if not path.is_file():
        several = (folder / f"{path.name}.index.json").is_file()
        raise FileNotFoundError(
            f"folder must hold {path.name}, got {folder}"
            + several * ", where the weights are spread over several files"
        )
    with torch.device("meta"):  # shapes only: draws and stores no numbers
        model = GPT(config)
    model.load_state_dict(_read_weights(path, model), assign=True)
    return model


def _fetched(name: str, download: bool) -> Path:
    if not download:
        raise FileNotFoundError(
            f"folder_or_name must be a folder with config.json and "
            f"model.safetensors, got {name!r}, which is none; a name such "
            f"as {', '.join(_NAMES)} needs download=True"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            "download=True needs huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["config.json", "model.safetensors"]
            )
        )
    except Exception as error:
        raise OSError(
            f"folder_or_name must be a folder, or a name that can be "
            f"fetched, got {name!r} ({type(error).__name__}: {error})"
        ) from error


def _read_config(path: Path, dropout: float, fused: bool) -> GPTConfig:
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must hold {path.name}, got {path.parent}"
        )
    try:
        found = json.loads(path.read_bytes())
        for name, allowed in _FIXED.items():
            if found.get(name, allowed[0]) not in allowed:
                raise ValueError(
                    f"{name} must be one of {allowed}, got {found[name]!r}"
                )
        config = GPTConfig(
            vocab_size=found["vocab_size"],
            context_length=found["n_positions"],
            d_model=found["n_embd"],
            n_heads=found["n_head"],
            n_layers=found["n_layer"],
            dropout=dropout,
            fused=fused,
        )
        if (found.get("n_inner") or config.d_ff) != config.d_ff:
            raise ValueError(
                f"n_inner must be {config.d_ff}, got {found['n_inner']}"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"config.json must describe a GPT-2, got {path} "
            f"({type(error).__name__}: {error})"
        ) from error
    return config


def _read_weights(path: Path, model: GPT) -> dict[str, Tensor]:
    """Return the state of model, read from the checkpoint's file."""
    expected = {name: p.shape for name, p in model.state_dict().items()}
    state = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            prefix = "" if "wte.weight" in names else "transformer."
            theirs = {name: prefix + _their_name(name) for name in expected}
            _require_names(names, set(theirs.values()))
            for ours, shape in expected.items():
                tensor = file.get_tensor(theirs[ours])
                if not tensor.is_floating_point():
                    raise ValueError(
                        f"{theirs[ours]} must hold floating-point numbers, "
                        f"got {tensor.dtype}"
                    )
                # Their matrices are (d_in, d_out), ours (d_out, d_in).
                if _is_matrix_of_a_block(ours):
                    tensor = tensor.transpose(0, -1)
                if tensor.shape != shape:
                    raise ValueError(
                        f"{theirs[ours]} must become {tuple(shape)}, as "
                        f"config.json says, got {tuple(tensor.shape)}"
                    )
                # Copied, because what the file gives changes with the file.
                state[ours] = tensor.to(torch.float32, copy=True).contiguous()
                if not state[ours].isfinite().all():
                    raise ValueError(f"{theirs[ours]} must be finite")
            if _HEAD in names:
                table = file.get_tensor(_HEAD).float()
                if not table.equal(state["embedding.tokens.weight"]):
                    raise ValueError(
                        f"{_HEAD} must equal {prefix}wte.weight, "
                        "got a table of its own"
                    )
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"model.safetensors must hold the weights of a GPT-2, got {path} "
            f"({type(error).__name__}: {error})"
        ) from error
    return state


def _require_names(found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        raise ValueError(f"there is no tensor {missing[0]}")
    for name in sorted(found - expected - {_HEAD}):
        if not name.endswith(_MASKS):
            raise ValueError(f"there is no place for tensor {name}")


def _their_name(ours: str) -> str:
    if ours in _OUTSIDE:
        return _OUTSIDE[ours]
    _, block, rest = ours.split(".", 2)
    layer, _, kind = rest.rpartition(".")
    return f"h.{block}.{_WITHIN[layer]}.{kind}"


def _is_matrix_of_a_block(ours: str) -> bool:
    return ours.startswith("blocks.") and ours.endswith(
        (
            "query_key_value.weight",
            "mix.weight",
            "widen.weight",
            "narrow.weight",
        )
    )
