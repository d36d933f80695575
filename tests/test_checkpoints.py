"""A folder holds what was written, whole or not at all, or it is named."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from scratch import checkpoints
from scratch.checkpoints import (
    DamagedError,
    checkpoint_path,
    load_model,
    load_pretrained,
    new_folder,
    read_json,
    read_tensors,
    require_whole,
    save_model,
    write_json,
    write_model,
)
from scratch.llm.gpt import GPT, GPTConfig
from scratch.llm.tokenization import END_OF_TEXT, BPETokenizer

CONFIG = GPTConfig(
    vocab_size=259, context_length=7, d_model=10, n_heads=5, n_layers=2
)
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def small_model(**changes):
    return GPT(GPTConfig(**{**vars(CONFIG), **changes}))


def small_tokenizer():
    merges = {(104, 105): 256, (256, 32): 257}
    return BPETokenizer(merges, special_tokens=(END_OF_TEXT,))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(model, other):
    states = model.state_dict(), other.state_dict()
    assert_close(*states, rtol=0, atol=0)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a model and a tokenizer."""
    save_model(tmp_path / "model", small_model(), small_tokenizer())
    return tmp_path / "model"


# What is written is read.


@pytest.mark.parametrize("fused", [True, False])
def test_a_model_comes_back_bit_for_bit(tmp_path, fused):
    model = small_model(dropout=0.3, fused=not fused)
    save_model(tmp_path / "new" / "model", model)
    found, tokenizer = load_model(
        tmp_path / "new" / "model", dropout=0.2, fused=fused
    )
    assert tokenizer is None
    assert found.config == GPTConfig(
        **{**vars(CONFIG), "dropout": 0.2, "fused": fused}
    )
    assert found.training
    assert_same_weights(found, model)
    ids = torch.randint(259, (3, 7))
    assert_close(found.eval()(ids), model.eval()(ids))


def test_a_loaded_model_can_be_trained(folder):
    model, _ = load_model(folder)
    model(torch.tensor([[5, 6]])).sum().backward()
    assert model.config.dropout == 0
    for parameter in model.parameters():
        assert parameter.is_leaf and parameter.requires_grad
        assert parameter.grad is not None


def test_the_file_may_change_behind_a_loaded_model(folder):
    model, _ = load_model(folder)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with (folder / "model.safetensors").open("rb+") as file:
        file.seek(-400, 2)
        file.write(b"\xff" * 400)
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_others_can_read_the_weights(folder):
    found, _ = load_model(folder)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        theirs = {name: file.get_tensor(name) for name in file.keys()}
    state = found.state_dict()
    assert theirs.keys() == state.keys()
    for name, array in theirs.items():
        assert_close(torch.from_numpy(array), state[name], rtol=0, atol=0)


def test_float16_halves_the_file_and_is_read_as_float32(tmp_path):
    model = small_model(d_model=40)
    save_model(tmp_path / "half", model, dtype=torch.float16)
    save_model(tmp_path / "whole", model)
    file = "model.safetensors"
    stored = load_file(tmp_path / "half" / file)
    assert {x.dtype for x in stored.values()} == {torch.float16}
    sizes = [(tmp_path / k / file).stat().st_size for k in ("half", "whole")]
    assert 0.49 < sizes[0] / sizes[1] < 0.56
    found, _ = load_model(tmp_path / "half")
    for name, x in found.state_dict().items():
        expected = model.state_dict()[name].half().float()
        assert_close(x, expected, rtol=0, atol=0)
    assert {x.dtype for x in model.parameters()} == {torch.float32}


def test_float64_is_kept_in_the_file_and_read_as_float32(tmp_path):
    model = small_model().double()
    save_model(tmp_path / "m", model)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert_close(stored, dict(model.state_dict()), rtol=0, atol=0)
    found, _ = load_model(tmp_path / "m")
    assert_same_weights(found, model.float())


def test_the_tokenizer_comes_back(folder):
    _, found = load_model(folder)
    mine = small_tokenizer()
    assert found.encode("hi hi oh") == mine.encode("hi hi oh")
    assert found.special_ids == mine.special_ids == {END_OF_TEXT: 258}


def test_the_card_is_kept_as_it_is(tmp_path):
    save_model(tmp_path / "m", small_model(), card="# Grüße\n")
    assert (tmp_path / "m/README.md").read_text("utf8") == "# Grüße\n"
    assert names(tmp_path / "m") == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    ]
    require_whole(tmp_path / "m")


def test_the_sums_are_those_of_hashlib_and_of_sha256sum(folder):
    expected = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
        for name in FILES
    ]
    assert (folder / "SHA256SUMS").read_text().splitlines() == expected
    if tool := shutil.which("sha256sum"):
        command = [tool, "--check", "--strict", "SHA256SUMS"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_the_pretrained_model_lies_in_the_package(folder, monkeypatch):
    (folder.parent / "pretrained").symlink_to(folder)
    asked = []

    def files(package):
        asked.append(package)
        return folder.parent

    monkeypatch.setattr(checkpoints.resources, "files", files)
    model, tokenizer = load_pretrained(dropout=0.1, fused=False)
    assert asked == ["scratch"]
    assert_same_weights(model, load_model(folder)[0])
    assert (model.config.dropout, model.config.fused) == (0.1, False)
    assert tokenizer.encode("hi") == [256]


# Whole or not at all.


def test_nothing_stands_at_path_before_all_is_done(tmp_path):
    path = tmp_path / "model"
    with new_folder(path) as draft:
        (draft / "a.json").write_text("{}")
        assert not path.exists()
        assert draft.parent == tmp_path  # one file system, so that it moves
        assert draft.name.startswith(".")
    assert names(path) == ["SHA256SUMS", "a.json"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(folder, error):
    model, _ = load_model(folder)
    before = names(folder)
    with pytest.raises(error), new_folder(folder) as draft:
        (draft / "config.json").write_text("{}")
        raise error
    assert names(folder.parent) == ["model"]
    assert names(folder) == before
    assert_same_weights(load_model(folder)[0], model)


def test_a_failure_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ValueError), new_folder(tmp_path / "model"):
        raise ValueError
    assert names(tmp_path) == []


@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_a_failure_between_two_renames_puts_the_old_back(
    folder, monkeypatch, n_before
):
    model, _ = load_model(folder)
    rename, made = Path.rename, []

    def failing(self, target):
        if len(made) == n_before:
            made.append("failed")
            raise PermissionError("no more")
        made.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    if n_before < 2:
        with pytest.raises(PermissionError):
            save_model(folder, small_model())
        assert_same_weights(load_model(folder)[0], model)
    else:  # no third rename
        save_model(folder, small_model())
    assert names(folder.parent) == ["model"]


def test_a_model_is_replaced(folder):
    model = small_model(n_layers=1)
    save_model(folder, model)
    assert_same_weights(load_model(folder)[0], model)
    assert names(folder) == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert names(folder.parent) == ["model"]


def test_what_a_killed_program_left_is_cleared_away(folder):
    for leftover in (".model.part", ".model.old"):
        (folder.parent / leftover).mkdir()
        (folder.parent / leftover / "stale.json").write_text("{}")
    save_model(folder, small_model())
    assert "stale.json" not in names(folder)
    assert names(folder.parent) == ["model"]


def test_a_kill_between_two_renames_loses_nothing(folder):
    model, _ = load_model(folder)
    folder.rename(folder.parent / ".model.old")  # and then it was killed
    assert_same_weights(load_model(folder)[0], model)
    assert_same_weights(load_model(folder.parent)[0], model)  # of a run
    with pytest.raises(KeyError), new_folder(folder):
        require_whole(folder)  # it is back before another can take its place
        raise KeyError
    assert names(folder.parent) == ["model"]
    assert_same_weights(load_model(folder)[0], model)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_else_is_replaced(tmp_path, kind):
    path = tmp_path / "thesis"
    if kind == "file":
        path.write_text("years of work")
    else:
        path.mkdir()
        (path / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"new, empty.*got .*thesis"):
        save_model(path, small_model())
    file = path if kind == "file" else path / "chapter.txt"
    assert file.read_text() == "years of work"
    assert names(tmp_path) == ["thesis"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", small_model())
    require_whole(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_everything_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    done = []
    flush, rename = checkpoints._flush, Path.rename

    def noting_flush(path):
        done.append(path.name)
        flush(path)

    def noting_rename(self, target):
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(checkpoints, "_flush", noting_flush)
    monkeypatch.setattr(Path, "rename", noting_rename)
    with new_folder(tmp_path / "m") as draft:
        (draft / "a").touch()
    assert done == ["a", "SHA256SUMS", ".m.part", "rename", tmp_path.name]


def test_systems_that_open_no_folders_are_served_too(tmp_path, monkeypatch):
    real = checkpoints.os.open

    def files_only(path, *args, **options):
        if Path(path).is_dir():
            raise PermissionError(path)
        return real(path, *args, **options)

    monkeypatch.setattr(checkpoints.os, "open", files_only)
    model = small_model()
    save_model(tmp_path / "m", model)
    assert_same_weights(load_model(tmp_path / "m")[0], model)


# Damage is named.


def flip_a_bit(file, place=None):
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 4
    file.write_bytes(data)


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(
        file.read_bytes()[: file.stat().st_size // 2]
    ),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "a flipped bit": flip_a_bit,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folder, name, damage):
    require_whole(folder)
    DAMAGES[damage](folder / name)
    with pytest.raises(DamagedError, match=rf"model.*is damaged|{name}"):
        require_whole(folder)
    with pytest.raises((DamagedError, FileNotFoundError), match=name):
        load_model(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sums_are_damage_too(folder, damage):
    DAMAGES[damage](folder / "SHA256SUMS")
    if damage == "a flipped bit":  # at a file's sum, or at its name
        with pytest.raises(DamagedError, match=r"SHA-256|missing"):
            load_model(folder)
    else:
        with pytest.raises(DamagedError, match=r"SHA256SUMS|missing|changed"):
            load_model(folder)


def test_every_character_of_the_sums_counts(folder):
    sums = folder / "SHA256SUMS"
    text = sums.read_bytes()
    unnoticed = set()
    for place in range(len(text)):
        flip_a_bit(sums, place)
        try:
            require_whole(folder)
        except DamagedError:
            pass
        else:
            unnoticed.add(text[place])
        sums.write_bytes(text)
    assert unnoticed == set()


@pytest.mark.parametrize("n_lines", [0, 1, 2])
def test_sums_that_end_early_do_not_pass(folder, n_lines):
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(lines[:n_lines]))
    with pytest.raises(DamagedError, match=r"does not list '\w+\.\w+'"):
        require_whole(folder)


def test_hidden_files_do_not_count(folder):
    (folder / ".DS_Store").write_bytes(b"not ours")
    assert load_model(folder)[1] is not None


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    def broken(file, name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints.hashlib, "file_digest", broken)
    with pytest.raises(DamagedError, match=r"config\.json.*Input/output"):
        require_whole(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 10**5, "\xff"])
def test_json_that_is_none_is_named(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DamagedError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"a": [1, 0.1, None, True], "ü": {"b": 1e-300}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DamagedError, match=r"gone\.x is damaged"):
        read(tmp_path / "gone.x")


@pytest.mark.parametrize("data", [b"", b"\x08", b"x" * 100])
def test_tensors_that_are_none_are_named(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match=r"x\.safetensors is damaged"):
        read_tensors(tmp_path / "x.safetensors")


# Other things than a model.


def rewrite(folder, **changes):
    """Write config.json anew, with sums that are right."""
    found = json.loads((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    with new_folder(folder) as draft:
        write_model(draft, CONFIG, weights)
        write_json(draft / "config.json", {**found, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"config\.json must describe a GPT in format 1, got "),
        ({"format": 2}, "got 'GPT' in format 2"),
        ({"model": "BERT"}, "got 'BERT' in format 1"),
        ({"d_model": 11}, r"config\.json must hold the sizes .*divide"),
        ({"n_layers": "2"}, r"config\.json must hold the sizes .*integer"),
        ({"n_experts": 2}, r"config\.json must hold the sizes .*n_experts"),
        ({"n_layers": 3}, r"model\.safetensors must hold .*Missing"),
        ({"n_layers": 1}, r"model\.safetensors must hold .*Unexpected"),
        ({"vocab_size": 8}, r"model\.safetensors must hold .*mismatch"),
    ],
)
def test_another_kind_of_model_is_refused(folder, changes, message):
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=f"(?s){message}") as caught:
        load_model(folder)
    assert not isinstance(caught.value, DamagedError)


def test_a_tokenizer_of_another_kind_is_named(folder):
    with new_folder(folder) as draft:
        write_model(draft, CONFIG, small_model().state_dict())
        write_json(draft / "tokenizer.json", {"format": "another"})
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["nothing", "file", "empty"])
def test_no_model_is_no_model(tmp_path, kind):
    path = tmp_path / "runs"
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    message = r"must hold config\.json .*runs"
    if kind != "empty":
        message += ", which is no folder"
    with pytest.raises(FileNotFoundError, match=message + "$"):
        load_model(path)


# The folder of a run.


def test_checkpoints_are_listed_from_the_newest(tmp_path):
    for n_steps in (5, 10_000, 900):
        checkpoint_path(tmp_path, n_steps).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000099.part").mkdir()
    assert checkpoints.checkpoints(tmp_path) == [
        checkpoint_path(tmp_path, n) for n in (10_000, 900, 5)
    ]
    assert checkpoints.checkpoints(tmp_path / "nothing") == []


def test_of_a_run_the_best_model_is_taken_else_the_newest(tmp_path):
    models = [small_model() for _ in range(3)]
    for n_steps, model in zip((1, 2), models[:2], strict=True):
        save_model(checkpoint_path(tmp_path, n_steps), model)
    assert_same_weights(load_model(tmp_path)[0], models[1])
    save_model(tmp_path / "model", models[2], small_tokenizer())
    found, tokenizer = load_model(str(tmp_path))
    assert_same_weights(found, models[2])
    assert tokenizer is not None


def test_a_damaged_checkpoint_of_a_run_is_passed_over(tmp_path):
    models = [small_model() for _ in range(2)]
    for n_steps, model in enumerate(models):
        save_model(checkpoint_path(tmp_path, n_steps), model)
    flip_a_bit(checkpoint_path(tmp_path, 1) / "model.safetensors")
    assert_same_weights(load_model(tmp_path)[0], models[0])
    (checkpoint_path(tmp_path, 0) / "config.json").unlink()
    with pytest.raises(DamagedError, match=r"step-00000001.*safetensors"):
        load_model(tmp_path)


def test_a_damaged_best_model_is_named(tmp_path):
    save_model(checkpoint_path(tmp_path, 1), small_model())
    save_model(tmp_path / "model", small_model())
    flip_a_bit(tmp_path / "model" / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        load_model(tmp_path)
