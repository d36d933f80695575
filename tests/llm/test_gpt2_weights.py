"""Weights of GPT-2 are read right, or the error names the file."""

import io
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from scratch.llm.gpt2_weights import load_gpt2
from scratch.nn.losses import cross_entropy

SHAPES = {  # vocabulary, context, width, heads, layers
    "plain": (53, 11, 24, 4, 2),
    "one head": (37, 7, 10, 1, 2),
    "one layer": (41, 13, 12, 3, 1),
    "odd width per head": (29, 9, 35, 5, 2),
    "width one per head": (31, 6, 7, 7, 3),
    "deep": (17, 5, 8, 2, 5),
    "tiny": (2, 3, 1, 1, 1),
    "wide for its words": (5, 19, 66, 6, 1),
}
OURS = {  # what is called otherwise, in this order
    "transformer.": "",
    "h.": "blocks.",
    "wte.": "embedding.tokens.",
    "wpe.": "embedding.positions.",
    "ln_f.": "norm.",
    ".ln_1.": ".attention_norm.",
    ".ln_2.": ".feed_forward_norm.",
    ".attn.c_attn.": ".attention.query_key_value.",
    ".attn.c_proj.": ".attention.mix.",
    ".mlp.c_fc.": ".feed_forward.widen.",
    ".mlp.c_proj.": ".feed_forward.narrow.",
}
# The config.json of the small GPT-2 as published, all but its sizes.
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {
        "text-generation": {"do_sample": True, "max_length": 50}
    },
}
TOLERANCE = {
    torch.float32: {"rtol": 0, "atol": 1e-5},
    torch.float64: {"rtol": 0, "atol": 1e-10},
}

each_shape = pytest.mark.parametrize("shape", SHAPES)
each_path = pytest.mark.parametrize(
    "fused", [True, False], ids=["fused", "explicit"]
)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def their_model(shape="plain", kind=GPT2LMHeadModel):
    """Return a GPT-2 of transformers in which no two numbers are equal."""
    vocab_size, context_length, d_model, n_heads, n_layers = SHAPES[shape]
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=context_length,
        n_embd=d_model,
        n_head=n_heads,
        n_layer=n_layers,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    model = kind(config).eval()
    with torch.no_grad():  # biases and norms, too
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_ids(shape="plain", batch_size=2):
    vocab_size, context_length, *_ = SHAPES[shape]
    return torch.randint(vocab_size, (batch_size, context_length))


def our_name(name):
    for theirs, ours in OURS.items():
        name = name.replace(theirs, ours)
    return name


def as_ours(named_tensors):
    """Return their tensors under our names, matrices transposed."""
    return {
        our_name(name): tensor.T
        if tensor.ndim == 2 and ".c_" in name
        else tensor
        for name, tensor in named_tensors
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with a checkpoint, never to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    their_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Return a copy of that folder, to be broken."""
    return shutil.copytree(saved, tmp_path / "copy")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    """Write the tensors anew after change has had its way with them."""
    path = folder / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, path)


def assert_same_weights(ours, other):
    expected = other.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# Reference


@each_dtype
@each_path
@each_shape
def test_logits_loss_and_gradients_equal_those_of_transformers(
    tmp_path, shape, fused, dtype
):
    theirs = their_model(shape)
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path, fused=fused)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    ids = random_ids(shape)
    reference = theirs(ids, labels=ids)
    logits = ours(ids)
    loss = cross_entropy(logits[:, :-1], ids[:, 1:])
    assert logits.dtype == dtype
    assert_close(logits, reference.logits, **TOLERANCE[dtype])
    # Theirs is in float32 always.
    assert_close(loss.float(), reference.loss, **TOLERANCE[torch.float32])
    reference_loss = F.cross_entropy(
        reference.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    assert_close(loss, reference_loss, **TOLERANCE[dtype])
    reference_loss.backward()
    loss.backward()
    expected = as_ours((n, p.grad) for n, p in theirs.named_parameters())
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(
            gradient,
            expected[name],
            **TOLERANCE[dtype],
            msg=lambda text, name=name: f"{name}: {text}",
        )


@each_path
@each_shape
def test_each_layer_equals_that_of_transformers(tmp_path, shape, fused):
    theirs = their_model(shape)
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path, fused=fused).double()
    body = theirs.double().transformer
    seen = {"ours": [], "theirs": []}

    def keep(whose):
        return lambda module, inputs, output: seen[whose].append(
            output[0] if isinstance(output, tuple) else output
        )

    for layer in (ours.embedding, *ours.blocks, ours.norm):
        layer.register_forward_hook(keep("ours"))
    for layer in (body.drop, *body.h, body.ln_f):
        layer.register_forward_hook(keep("theirs"))
    ids = random_ids(shape)
    hidden = ours.hidden(ids)
    states = theirs(ids, output_hidden_states=True).hidden_states
    assert len(seen["ours"]) == len(seen["theirs"]) == len(body.h) + 2
    for mine, other in zip(seen["ours"], seen["theirs"], strict=True):
        assert_close(mine, other, rtol=0, atol=1e-10)
    assert_close(seen["ours"][0], states[0], rtol=0, atol=1e-10)
    assert_close(hidden, states[-1], rtol=0, atol=1e-10)


@each_shape
def test_the_weights_are_theirs_bit_for_bit(tmp_path, shape):
    theirs = their_model(shape)
    theirs.save_pretrained(tmp_path)
    expected = as_ours(theirs.named_parameters())
    found = dict(load_gpt2(tmp_path).named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name]), name
        assert parameter.is_contiguous() and parameter.is_leaf


# What published files have and lack


def test_a_checkpoint_without_the_prefix_is_read(tmp_path):
    theirs = their_model(kind=GPT2Model).double()
    theirs.float().save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "wte.weight" in names
    ids = random_ids()
    hidden = load_gpt2(tmp_path).double().hidden(ids)
    reference = theirs.double()(ids).last_hidden_state
    assert_close(hidden, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_masks_in_the_file_are_passed_over(tmp_path, saved, folder, prefix):
    def change(tensors):
        for name in list(tensors):
            short = name.removeprefix("transformer.")
            tensors[prefix + short] = tensors.pop(name)
        for block in range(2):
            attention = f"{prefix}h.{block}.attn"
            tensors[f"{attention}.bias"] = torch.ones(1, 1, 11, 11).tril()
            tensors[f"{attention}.masked_bias"] = torch.tensor(-1e4)

    change_tensors(folder, change)
    assert_same_weights(load_gpt2(folder), load_gpt2(saved))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precise_checkpoint_becomes_float32(saved, folder, dtype):
    change_tensors(
        folder, lambda tensors: tensors.update(halved(tensors, dtype))
    )
    expected = load_gpt2(saved)
    expected.load_state_dict(
        {n: t.to(dtype) for n, t in expected.state_dict().items()}
    )
    ours = load_gpt2(folder)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same_weights(ours, expected)


def halved(tensors, dtype):
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_an_equal_output_table_is_accepted(saved, folder, prefix, dtype):
    def change(tensors):
        if not prefix:
            for name in list(tensors):
                short = name.removeprefix("transformer.")
                tensors[short] = tensors.pop(name)
        tensors.update(halved(tensors, dtype))
        tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()

    change_tensors(folder, change)
    logits = load_gpt2(folder)(random_ids())
    assert logits.isfinite().all()


@pytest.mark.parametrize("what", ["one number", "shape"])
def test_another_output_table_is_an_error(folder, what):
    def change(tensors):
        table = tensors["transformer.wte.weight"].clone()
        table[-1, -1] += 1e-3
        tensors["lm_head.weight"] = table if what == "one number" else table.T

    change_tensors(folder, change)
    with pytest.raises(
        ValueError,
        match=r"model\.safetensors must .*lm_head\.weight must equal "
        r"transformer\.wte\.weight",
    ):
        load_gpt2(folder)


def test_the_published_config_is_accepted(saved, folder):
    sizes = json.loads((saved / "config.json").read_text())
    names = ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer")
    config = PUBLISHED | {name: sizes[name] for name in names}
    config["n_ctx"] = sizes["n_positions"]
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_weights(load_gpt2(folder), load_gpt2(saved))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_inner": None},
        {"n_inner": 96},
        {"activation_function": "gelu_pytorch_tanh"},
        {"attn_pdrop": 0.5, "initializer_range": 1.0},
    ],
    ids=str,
)
def test_settings_that_change_nothing_are_accepted(saved, folder, changes):
    change_config(folder, **changes)
    assert_same_weights(load_gpt2(folder), load_gpt2(saved))


# What the model is like


def test_a_folder_may_be_a_path_or_a_string(saved):
    assert_same_weights(load_gpt2(str(saved)), load_gpt2(saved))


def test_options_reach_the_model(saved):
    model = load_gpt2(saved, dropout=0.3, fused=False)
    assert (model.config.dropout, model.config.fused) == (0.3, False)
    assert not model.blocks[0].attention.fused
    assert model.embedding.dropout.p == 0.3
    model = load_gpt2(saved)
    assert (model.config.dropout, model.config.fused) == (0.0, True)
    found = (model.config.vocab_size, model.config.context_length)
    found += (model.config.d_model, model.config.n_heads)
    assert (*found, model.config.n_layers) == SHAPES["plain"]


def test_loading_draws_no_random_numbers(saved):
    before = torch.get_rng_state()
    load_gpt2(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_outlives_its_file(saved, folder):
    model = load_gpt2(folder)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same_weights(model, load_gpt2(saved))


def test_training_the_model_leaves_the_file_alone(folder):
    before = (folder / "model.safetensors").read_bytes()
    model = load_gpt2(folder)
    ids = random_ids()
    cross_entropy(model(ids), ids).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    assert (folder / "model.safetensors").read_bytes() == before


SCRIPT = """
import sys
from pathlib import Path

opened, unpickled = [], []

def watch(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))
    if event == "pickle.find_class":
        unpickled.append(arguments)

from scratch.llm.gpt2_weights import load_gpt2

sys.addaudithook(watch)
load_gpt2(sys.argv[1])
wanted = ("config.json", "model.safetensors")
print([p for p in opened if sys.argv[1] in p and Path(p).name not in wanted])
print(unpickled)
others = ("transformers", "tensorflow", "huggingface_hub", "requests")
print([name for name in others if name in sys.modules])
"""


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_else_is_read_imported_or_unpickled(folder):
    buffer = io.BytesIO()
    pickle.dump(Bomb(), buffer)
    for name in ("pytorch_model.bin", "model.pt", "optimizer.pt"):
        (folder / name).write_bytes(buffer.getvalue())
    (folder / "generation_config.json").write_text("no json")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["[]", "[]", "[]", ""]


# Misuse: what is asked for


@pytest.mark.parametrize("name", ["gpt2", "no/such/folder", "gpt3"])
def test_a_name_needs_download(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        FileNotFoundError, match=f"got '{name}', .*gpt2-xl needs download=True"
    ):
        load_gpt2(name)


def test_a_file_is_no_folder(saved):
    with pytest.raises(FileNotFoundError, match="must be a folder with"):
        load_gpt2(saved / "model.safetensors")


class Hub:
    """Stands in for huggingface_hub."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def snapshot_download(self, name, **options):
        self.asked.append((name, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.mark.parametrize("name", ["gpt2", "somebody/my-gpt2"])
def test_download_asks_for_the_two_files(saved, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    hub = Hub(saved)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = load_gpt2(name, download=True, dropout=0.2, fused=False)
    files = ["config.json", "model.safetensors"]
    assert hub.asked == [(name, {"allow_patterns": files})]
    assert (model.config.dropout, model.config.fused) == (0.2, False)
    assert_same_weights(model, load_gpt2(saved))


def test_a_folder_is_not_downloaded(saved, monkeypatch):
    hub = Hub(RuntimeError("asked"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    load_gpt2(saved, download=True)
    assert hub.asked == []


@pytest.mark.parametrize(
    "failure",
    [ConnectionError("no route"), ValueError("no repo id"), KeyError("x")],
    ids=repr,
)
def test_a_failed_download_is_told(failure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(failure))
    with pytest.raises(
        OSError, match=f"fetched, got 'gpt2' .{type(failure).__name__}"
    ) as caught:
        load_gpt2("gpt2", download=True)
    assert caught.value.__cause__ is failure


def test_download_without_the_library_says_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load_gpt2("gpt2", download=True)


# Misuse: config.json


def refused(folder, reason):
    return pytest.raises(
        ValueError, match=rf"{folder}/config\.json \(\w+: .*{reason}"
    )


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("model_type", "gptj", r"model_type must be one of .* got 'gptj'"),
        ("activation_function", "gelu", r"'gelu_new', .* got 'gelu'"),
        ("activation_function", "relu", "got 'relu'"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon .* got 1e-06"),
        ("scale_attn_weights", False, "scale_attn_weights .* got False"),
        ("scale_attn_by_inverse_layer_idx", True, "idx .* got True"),
        ("add_cross_attention", True, "add_cross_attention .* got True"),
        ("tie_word_embeddings", False, "tie_word_embeddings .* got False"),
        ("n_inner", 95, "n_inner must be 96, got 95"),
        ("n_head", 5, "n_heads must divide d_model"),
        ("n_layer", 0, "n_layers must be at least 1, got 0"),
        ("vocab_size", -1, "vocab_size must be at least 1, got -1"),
        ("n_embd", "24", "d_model must be an integer, got '24'"),
        ("n_positions", 11.0, "context_length must be an integer, got 11.0"),
        ("n_layer", None, "n_layers must be an integer, got None"),
    ],
)
def test_a_config_of_another_model_is_refused(folder, setting, value, reason):
    change_config(folder, **{setting: value})
    with refused(folder, reason):
        load_gpt2(folder)


@pytest.mark.parametrize(
    "name", ["vocab_size", "n_positions", "n_embd", "n_head", "n_layer"]
)
def test_a_config_without_a_size_is_refused(folder, name):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[name]
    path.write_text(json.dumps(config))
    with refused(folder, name):
        load_gpt2(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"null", b'"gpt2"', b"\xff\xfe\x00", b"{}\n{}"],
)
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with refused(folder, ""):
        load_gpt2(folder)


# Misuse: files


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"must hold {name}, got {folder}$"
    ):
        load_gpt2(folder)


def test_weights_in_several_files_are_told(saved, folder):
    (folder / "model.safetensors").unlink()
    theirs = GPT2LMHeadModel.from_pretrained(saved)
    theirs.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").is_file()
    with pytest.raises(
        FileNotFoundError,
        match=r"must hold model\.safetensors, .* over several files",
    ):
        load_gpt2(folder)


def refused_weights(folder, reason=""):
    return pytest.raises(
        ValueError, match=rf"{folder}/model\.safetensors \(\w+: .*{reason}"
    )


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_a_truncated_file_is_named(folder, kept):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    n_bytes = int(kept * len(whole)) if kept == 0.5 else kept
    path.write_bytes(whole[:n_bytes])
    with refused_weights(folder):
        load_gpt2(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage " * 99,
        bytes(999),
        b"\xff" * 999,
        b"<!doctype html><p>Not found",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        (2).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_file_with_garbage_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with refused_weights(folder):
        load_gpt2(folder)


def test_a_folder_in_place_of_the_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match=r"hold model\.safetensors"):
        load_gpt2(folder)


def test_each_missing_tensor_is_named(saved, folder):
    for name in load_file(saved / "model.safetensors"):
        shutil.copy(saved / "model.safetensors", folder)
        change_tensors(folder, lambda tensors, name=name: tensors.pop(name))
        # Without its table of tokens a file shows no prefix.
        with refused_weights(folder, f"there is no tensor {name}"):
            load_gpt2(folder)


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("wte.weight", (24, 53), r"become \(53, 24\), .* got \(24, 53\)"),
        ("wpe.weight", (12, 24), r"become \(11, 24\), .* got \(12, 24\)"),
        ("ln_f.bias", (23,), r"become \(24,\), .* got \(23,\)"),
        ("ln_f.weight", (1, 24), r"become \(24,\), .* got \(1, 24\)"),
        ("h.1.attn.c_attn.weight", (72, 24), r"become \(72, 24\), .*24, 72"),
        ("h.0.attn.c_proj.weight", (24,), r"become \(24, 24\), .* \(24,\)"),
        ("h.0.mlp.c_fc.weight", (24, 96, 1), r"become \(96, 24\), .*96, 24"),
        ("h.1.mlp.c_proj.weight", (), r"become \(24, 96\), .* \(\)"),
        ("h.1.mlp.c_fc.bias", (1,), r"become \(96,\), .* got \(1,\)"),
    ],
)
def test_a_tensor_of_another_shape_is_named(folder, name, wrong, reason):
    full = f"transformer.{name}"
    change_tensors(folder, lambda t: t.update({full: torch.ones(wrong)}))
    with refused_weights(folder, f"{full} must {reason}"):
        load_gpt2(folder)


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "transformer.h.0.attn.c_attn.extra",
        "transformer.h.0.attn.q_attn.weight",
        "attn.bias.weight",
    ],
)
def test_a_tensor_without_a_place_is_named(folder, name):
    change_tensors(folder, lambda t: t.update({name: torch.ones(3)}))
    with refused_weights(folder, f"there is no place for tensor {name}"):
        load_gpt2(folder)


def test_weights_that_are_integers_are_an_error(folder):
    def change(tensors):
        for name, tensor in tensors.items():
            tensors[name] = (100 * tensor).to(torch.int8)

    change_tensors(folder, change)
    with refused_weights(folder, "floating-point numbers, got torch.int8"):
        load_gpt2(folder)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(folder, wrong):
    name = "transformer.h.1.mlp.c_fc.bias"
    change_tensors(folder, lambda tensors: tensors[name].fill_(wrong))
    with refused_weights(folder, f"{name} must be finite"):
        load_gpt2(folder)


def test_weights_are_float32_whatever_the_default(saved):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = load_gpt2(saved)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_more_blocks_than_the_config_says_are_an_error(folder):
    change_config(folder, n_layer=1)
    with refused_weights(folder, r"no place for tensor transformer\.h\.1\."):
        load_gpt2(folder)


def test_fewer_blocks_than_the_config_says_are_an_error(folder):
    change_config(folder, n_layer=3)
    with refused_weights(folder, r"there is no tensor transformer\.h\.2\."):
        load_gpt2(folder)
