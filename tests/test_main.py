"""python -m scratch trains on a reader's text, and says what is wrong."""

import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import scratch.__main__ as command
from scratch.checkpoints import load_model, save_model
from scratch.llm.gpt import count_parameters
from scratch.llm.training import evaluate, join_texts
from scratch.nn.losses import bits_per_byte
from scratch.presets import N_LOOKS, PRESETS

N_STEPS = 12
FAST = ("--preset", "tiny", "--vocab-size", "300", "--batch-size", "2")


def log(n_lines, seed=0):
    """Return lines as a web server writes them."""
    rng = random.Random(seed)
    paths = ("/", "/login", "/style.css", "/api/users/7", "/img/logo.png")
    return "".join(
        f'10.0.0.{rng.randrange(99)} "GET {rng.choice(paths)} HTTP/1.1" '
        f"200 {rng.randrange(9000)}\n"
        for _ in range(n_lines)
    )


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def pretrain(text, out, *more, steps=N_STEPS):
    return run(
        *("pretrain", "--text", text, "--out", out, "--steps", steps),
        *FAST,
        *more,
    )


def in_a_process(*arguments, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "scratch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        **settings,
    )


def weights(folder):
    return load_model(folder)[0].state_dict()


def assert_same_weights(folder, other):
    torch.testing.assert_close(weights(folder), weights(other), rtol=0, atol=0)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(3):
        (folder / f"{i}.log").write_text(log(150, seed=i))
    return folder


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A run that is done, with what it printed. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    process = in_a_process(
        *("pretrain", "--text", text, "--out", out, "--steps", N_STEPS),
        *FAST,
    )
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return SimpleNamespace(out=out, printed=printed)


@pytest.fixture
def copied(trained, tmp_path):
    """A run that is done, to be changed."""
    out = tmp_path / "copied"
    for file in trained.out.rglob("*"):
        if file.is_file():
            place = out / file.relative_to(trained.out)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return out


@pytest.fixture
def refused(capsys):
    """Run a command that must fail; return what it says."""

    def refuse(*arguments, code=1):
        capsys.readouterr()
        assert run(*arguments) == code
        lines = capsys.readouterr().err.strip().split("\n")
        said = "\n".join(line for line in lines if " steps" not in line)
        assert said and "Traceback" not in said
        assert len(said.splitlines()) <= 2, said
        return said

    return refuse


# A run


def held_out_of(text):
    texts = [f.read_text() for f in sorted(text.glob("*.log"))]
    return [t[len(t) - len(t) // 10 :] for t in texts]


def test_the_last_tenth_of_each_of_few_files_is_held_out(text, trained):
    model, tokenizer = load_model(trained.out)
    held_out = held_out_of(text)
    ids = join_texts(held_out, tokenizer)
    context_length = PRESETS["tiny"].context_length
    loss = evaluate(model, ids, context_length=context_length)
    n_bytes = sum(len(t.encode()) for t in held_out)
    bits = bits_per_byte(loss, n_tokens=len(ids) - 1, n_bytes=n_bytes)
    said = f"{loss:.3f} nats per token, {bits:.3f} bits per byte"
    assert said in trained.printed


def test_a_run_says_what_it_has(trained):
    model, tokenizer = load_model(trained.out)
    assert tokenizer.vocab_size == model.config.vocab_size == 300
    total = count_parameters(model.config)["total"]
    assert f"{total:,} parameters, {N_STEPS} steps" in trained.printed
    assert "It writes:" in trained.printed
    assert f"generate --model {trained.out}" in trained.printed


def test_the_model_has_a_card_of_facts(text, trained):
    model, tokenizer = load_model(trained.out)
    card = (trained.out / "model" / "README.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, flags=re.M))
    n_bytes = sum(len(f.read_bytes()) for f in text.iterdir())
    assert rows["text"] == f"`{text}`, 3 files"
    assert rows["bytes of text"] == f"{n_bytes:,}"
    assert rows["parameters"] == (
        f"{count_parameters(model.config)['total']:,}"
    )
    assert rows["vocabulary"].startswith(f"{tokenizer.vocab_size} tokens")
    assert rows["steps"].startswith(f"{N_STEPS};")
    assert torch.__version__ in rows["hardware"]
    per_step = 2 * model.config.context_length
    best_step = int(re.search(r"of step (\d+)", rows["steps"])[1])
    assert rows["tokens seen"].startswith(f"{best_step * per_step:,} until")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", rows["date"])
    ids = join_texts(held_out_of(text), tokenizer)
    loss = evaluate(model, ids, context_length=model.config.context_length)
    assert rows["loss on all held-out text"] == f"{loss:.4f} nats per token"
    shown = re.search(r"^    (python .*)$", card, flags=re.M)[1]
    assert shlex.split(shown)[3:7] == [
        *("pretrain", "--text", str(text), "--out")
    ]


def test_the_card_is_among_the_sums(trained):
    home = trained.out / "model"
    sums = (home / "SHA256SUMS").read_text().splitlines()
    named = dict(reversed(line.split("  ")) for line in sums)
    assert set(named) == {f.name for f in home.iterdir()} - {"SHA256SUMS"}
    for name, digest in named.items():
        content = (home / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_the_model_learns(text, trained):
    (history,) = [
        json.loads(file.read_text())["history"]
        for file in trained.out.glob(f"checkpoints/*{N_STEPS}/training.json")
    ]
    assert history["validation"][-1] < history["validation"][0] - 0.2


@pytest.mark.parametrize("n_steps", (1, 9, 10, 11, 19, 99, 1000))
def test_a_run_looks_ten_times_at_most(n_steps):
    config = PRESETS["tiny"].training(n_steps)
    n_looks = -(-n_steps // config.eval_every)
    assert min(n_steps, N_LOOKS) / 2 < n_looks <= N_LOOKS


def test_looks_are_short_and_the_last_one_is_not(
    text, tmp_path, monkeypatch, capsys
):
    looked_at = []

    def train(model, ids, validation_ids, **settings):
        looked_at.append(len(validation_ids))
        return real(model, ids, validation_ids, **settings)

    real = command.train
    monkeypatch.setattr(command, "train", train)
    monkeypatch.setattr(command, "_LOOK", 70)
    judged = []

    def judge(model, ids, **settings):
        judged.append(len(ids))
        return evaluate(model, ids, **settings)

    monkeypatch.setattr(command, "evaluate", judge)
    assert pretrain(text, tmp_path / "run", steps=2) == 0
    assert looked_at == [70]
    _, tokenizer = load_model(tmp_path / "run")
    assert judged == [len(join_texts(held_out_of(text), tokenizer))]


# The text


def read(root, **options):
    given = {"corpus": None, "suffix": None, "encoding": "utf-8", **options}
    return command._read(SimpleNamespace(text=root, **given))


def test_of_many_files_some_are_held_out_whole(tmp_path):
    texts = [f"note {i}\n" * 20 for i in range(60)]
    for i, content in enumerate(texts):
        (tmp_path / f"{i:02}.md").write_text(content)
    found = read(tmp_path)
    assert sorted(found.train + found.held_out) == sorted(texts)
    assert 1 <= len(found.held_out) <= 15
    assert f"{len(found.held_out)} files" in found.how_held_out
    # Another file moves none of the others to the other side.
    (tmp_path / "new.md").write_text("new\n")
    assert set(found.held_out) <= set(read(tmp_path).held_out)


def test_a_file_that_is_most_of_the_text_is_not_held_out_whole(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.md").write_text(f"note {i}\n")
    for i in range(40):  # one of them is held out, by its hash
        (tmp_path / "large.md").write_text(f"{i}\n" + "large\n" * 2000)
        found = read(tmp_path)
        held_out = sum(map(len, found.held_out))
        assert held_out < sum(map(len, found.train)) / 2


def test_one_large_file_is_cut(tmp_path):
    (tmp_path / "one.log").write_text("0123456789" * 50)
    found = read(tmp_path / "one.log")
    assert list(map(len, found.train + found.held_out)) == [450, 50]


def test_files_without_text_are_left_out_and_named(tmp_path, capsys):
    (tmp_path / "a.md").write_text("text\n" * 9)
    (tmp_path / "b.md").write_text(" \n")
    (tmp_path / "c.gz").write_bytes(b"\x1f\x8b\0\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.md").write_text("hidden")
    found = read(tmp_path)
    assert "".join(found.train + found.held_out) == "text\n" * 9
    printed = capsys.readouterr().out
    assert "b.md" in printed and "c.gz" in printed
    assert ".git" not in printed


@pytest.mark.parametrize("suffix", (".md", "md"))
def test_suffix_chooses_files(tmp_path, suffix):
    (tmp_path / "a.md").write_text("first\n" * 9)
    (tmp_path / "b.txt").write_text("second\n" * 9)
    found = read(tmp_path, suffix=[suffix])
    assert "".join(found.train + found.held_out) == "first\n" * 9


def test_a_corpus_can_be_the_text(monkeypatch):
    entry = SimpleNamespace
    corpus = SimpleNamespace(
        entries=[entry(text="a"), entry(text="b")],
        train=[entry(text="a")],
        validation=[entry(text="b")],
        statistics=lambda: "a table",
    )
    monkeypatch.setattr(command, "source_code", lambda: corpus)
    found = read(None, corpus="source")
    assert (found.train, found.held_out) == (["a"], ["b"])
    assert found.note == "a table"


def bad_text(folder, what):
    (folder / "x").mkdir()
    file = folder / "x" / "notes.md"
    if what == "empty":
        file.write_bytes(b"")
    elif what == "binary":
        file.write_bytes(b"\x7fELF\0")
    elif what == "latin-1":
        file.write_bytes("Schlüssel\n".encode("latin-1") * 500)
    elif what == "hidden":
        file.with_name(".notes.md").write_text("text")
    elif what == "short":
        file.write_text("hello world\n")
    return folder / "x"


@pytest.mark.parametrize(
    "what, said",
    (
        ("empty", r"--text must hold text, but .*/x is empty or binary"),
        ("binary", r"--text must hold text, but .*/x is empty or binary"),
        (
            "latin-1",
            r"--encoding must be .*notes\.md is not in utf-8\. .*1252",
        ),
        ("hidden", r"--text must hold a file .* Hidden files"),
        ("short", r"--text must be longer: its \d+ tokens .* 64 tokens"),
    ),
)
def test_text_that_cannot_be_used(what, said, tmp_path, refused):
    text, out = bad_text(tmp_path, what), tmp_path / "out"
    found = refused("pretrain", "--text", text, "--out", out, "--steps", 3)
    assert re.search(said, found)
    assert not out.exists()  # and a right command can take it


def test_a_missing_text_and_a_suffix_of_no_file(text, tmp_path, refused):
    out = ("--out", tmp_path / "out")
    found = refused("pretrain", "--text", tmp_path / "nope", *out)
    assert "there is no" in found and "nope" in found
    found = refused("pretrain", *out, "--text", text, "--suffix", "md", "rst")
    assert "none whose name ends in .md or .rst" in found


def test_another_encoding_can_be_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("Schlüssel\n".encode("cp1252") * 9)
    found = read(tmp_path, encoding="cp1252")
    assert "".join(found.train + found.held_out) == "Schlüssel\n" * 9


def test_a_text_of_few_words_gets_fewer_tokens(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("ha " * 900)
    options = command._parser().parse_args(
        shlex.split("pretrain --text a --out b --preset small")
    )
    tokenizer = command._new_tokenizer(options, ["ha " * 900])
    # "ha" and " ha", behind the bytes and before the end of the text.
    assert tokenizer.vocab_size == 256 + 2 + 1
    assert tokenizer.decode([257]) == " ha"
    assert "no more to learn" in capsys.readouterr().out


def test_a_vocabulary_that_was_asked_for_must_fit(tmp_path, refused):
    (tmp_path / "a.txt").write_text("ha " * 900)
    found = refused(
        *("pretrain", "--text", tmp_path / "a.txt", "--out", tmp_path / "b"),
        *("--vocab-size", 400),
    )
    assert "--vocab-size 400 is more than this text can fill" in found


# Options


@pytest.mark.parametrize(
    "arguments, said",
    (
        ("", "COMMAND"),
        ("dance", "invalid choice: 'dance'"),
        ("pretrain --out b", "--text --corpus is required"),
        ("pretrain --text a", "--out"),
        ("pretrain --text a --out b --preset huge", "'huge'.*'tiny'"),
        ("pretrain --text a --out b --steps 0", "--steps: .* at least 1"),
        ("pretrain --text a --out b --steps 1.5", "--steps: .* whole"),
        ("pretrain --text a --out b --minutes nan", "--minutes: .*'nan'"),
        ("pretrain --text a --out b --minutes inf", "--minutes: .*'inf'"),
        ("pretrain --text a --out b --minutes=-1", "--minutes: .*'-1'"),
        ("pretrain --text a --out b --steps 1 --minutes 1", "not allowed"),
        ("pretrain --text a --out b --dropout 1", "--dropout: .*0 to 0.99"),
        ("pretrain --text a --out b --vocab-size 9", "at least 257"),
        ("pretrain --text a --out b --learning-rate 0", "--learning-rate"),
        ("pretrain --text a --out b --batch-size 0", "--batch-size"),
        ("pretrain --text a --out b --encoding x", "--encoding: .*cp1252"),
        ("pretrain --text a --out b --device x", "--device must be .*cpu"),
        ("generate --count 0", "--count"),
        ("generate --tokens 0", "--tokens"),
        ("generate --temperature hot", "--temperature: .*'hot'"),
        ("generate --temperature=-1", "--temperature: .* at least 0"),
        ("generate --top-p 2", "--top-p: .* to 1, got '2'"),
        ("generate --top-k 0", "--top-k"),
        ("generate --seed x", "--seed"),
    ),
)
def test_options_that_make_no_sense(arguments, said, refused):
    assert re.search(said, refused(*shlex.split(arguments)))


@pytest.mark.parametrize("name", ("pretrain", "generate"))
def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as done:
        run(name, "--help")
    assert done.value.code == 0
    shown = capsys.readouterr().out
    _, options, examples = re.split(r"options:|for example:", shown)
    entries = re.split(r"\n(?=  -)", options)[1:]
    assert len(entries) >= 8
    for entry in entries:
        assert len(re.split(r"\s{2,}", entry.strip(), maxsplit=1)) == 2, entry
    assert examples.count("python -m scratch") >= 2
    if name == "pretrain":
        assert all(f"\n  {preset} " in shown for preset in PRESETS)
    assert "None" not in shown


def test_the_examples_of_the_help_are_commands(capsys):
    for name in ("pretrain", "generate"):
        with pytest.raises(SystemExit):
            run(name, "--help")
        shown = capsys.readouterr().out
        for line in re.findall(r"^  python -m scratch (.*)$", shown, re.M):
            options = command._parser().parse_args(shlex.split(line))
            assert callable(options.run)


# Where it goes


def test_the_folder_must_be_one_of_ours_or_empty(text, tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    for place, said in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "deeper", "is a file"),
        (tmp_path / "mine", "holds model"),
        (text, "outside of --text"),
        (text / "new" / "deeper", "outside of --text"),
    ):
        assert said in refused("pretrain", "--text", text, "--out", place)
    assert (tmp_path / "mine" / "model").is_dir()
    assert not (text / "new").exists()


def test_a_folder_that_may_not_be_written_to(
    text, tmp_path, refused, monkeypatch
):
    # Not by chmod, which does not bind a root user.
    monkeypatch.setattr(command.os, "access", lambda path, mode: False)
    found = refused("pretrain", "--text", text, "--out", tmp_path / "out")
    assert f"that you may write to, but {tmp_path} is not" in found


def test_another_command_into_the_same_folder(text, trained, refused):
    base = ("pretrain", "--text", text, "--out", trained.out, *FAST)
    found = refused(*base, "--steps", 13)
    assert f"begun with --steps {N_STEPS}. " in found
    found = refused(*base, "--steps", N_STEPS, "--dropout", 0.1, "--compile")
    assert "begun without --dropout, without --compile. " in found
    found = refused(*base, "--minutes", 1)
    assert "without --minutes" in found
    changed = (*base[:-3], 301, *base[-2:], "--steps", N_STEPS)
    assert "--vocab-size 300" in refused(*changed)


def test_a_text_that_has_grown_since(trained, copied, tmp_path, refused):
    (tmp_path / "grown.log").write_text(log(200))
    found = refused(
        *("pretrain", "--text", tmp_path / "grown.log", "--out", copied),
        *("--steps", N_STEPS, *FAST),
    )
    assert "The text has changed" in found and "bytes then" in found


def test_a_plan_that_is_damaged(text, copied, refused):
    (copied / "plan.json").write_text("{")
    found = refused(
        *("pretrain", "--text", text, "--out", copied),
        *("--steps", N_STEPS, *FAST),
    )
    assert "plan.json is damaged" in found and "another --out" in found


def test_a_run_without_end_says_what_to_change(text, tmp_path, refused):
    found = refused(
        *("pretrain", "--text", text, "--out", tmp_path / "out"),
        *("--steps", N_STEPS, *FAST, "--learning-rate", 1e9),
    )
    assert "must be finite" in found and "new --out" in found


@pytest.mark.parametrize(
    "error, said",
    (
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "--batch-size"),
        (RuntimeError("can't allocate memory"), "--batch-size"),
        (OSError(28, "No space left on device", "f"), "f: No space left"),
        (command.SafetensorError("No space left"), "could not be written"),
    ),
)
def test_what_the_machine_lacks(
    error, said, text, tmp_path, refused, monkeypatch
):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(command, "train", fail)
    found = refused(
        *("pretrain", "--text", text, "--out", tmp_path / "out"),
        *("--steps", 3, *FAST),
    )
    assert said in found


def test_a_bug_is_not_hidden(text, tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(command, "train", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        pretrain(text, tmp_path / "out")


# Going on


def test_the_same_command_again_changes_nothing(text, copied, capsys):
    before = (copied / "model" / "README.md").read_bytes()
    assert pretrain(text, copied) == 0
    assert f"going on after step {N_STEPS}" in capsys.readouterr().out
    assert (copied / "model" / "README.md").read_bytes() == before


@pytest.mark.parametrize("lost", ("tokenizer.json", ""))
def test_a_run_that_was_stopped_goes_on(
    lost, text, trained, tmp_path, monkeypatch, capsys
):
    real = command.train

    def train(*arguments, **settings):
        def look(n_made, model):
            if n_made >= 7:
                raise KeyboardInterrupt

        return real(*arguments, **settings, on_look=look)

    monkeypatch.setattr(command, "train", train)
    assert pretrain(text, tmp_path / "run") == 130
    said = capsys.readouterr().err
    n_made = int(re.search(r"goes on after step (\d+)", said)[1])
    assert 5 <= n_made < N_STEPS
    monkeypatch.setattr(command, "train", real)
    if lost:
        (tmp_path / "run" / lost).write_text("damaged")
    assert pretrain(text, tmp_path / "run") == 0
    assert f"going on after step {n_made}" in capsys.readouterr().out
    assert_same_weights(tmp_path / "run", trained.out)


def test_stopped_before_the_first_checkpoint(
    text, trained, tmp_path, monkeypatch, capsys
):
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command, "train_bpe", stop)
        assert pretrain(text, tmp_path / "run") == 130
        patched.undo()
        patched.setattr(command, "train", stop)
        assert pretrain(text, tmp_path / "run") == 130
    said = capsys.readouterr().err
    assert said.count("before the first checkpoint") == 2
    assert pretrain(text, tmp_path / "run") == 0
    assert_same_weights(tmp_path / "run", trained.out)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(text, trained, tmp_path):
    out = tmp_path / "run"
    arguments = (
        *("pretrain", "--text", text, "--out", out, "--steps", N_STEPS),
        *FAST,
    )
    process = in_a_process(*arguments)
    give_up = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < give_up:
        if list(out.glob("checkpoints/step-*")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate(timeout=60)
    assert pretrain(text, out) == 0
    assert_same_weights(out, trained.out)


# How much, and how large


def asked(arguments):
    options = command._parser().parse_args(
        ["pretrain", "--text", "a", "--out", "b", *shlex.split(arguments)]
    )
    return options


@pytest.fixture
def speed(monkeypatch):
    """Set the operations per second of a machine, in units of six."""

    def set_to(rate):
        def seconds(options, preset, tokenizer, ids):
            config = preset.model(tokenizer.vocab_size)
            per_step = preset.batch_size * preset.context_length
            return count_parameters(config)["total"] * per_step / rate

        monkeypatch.setattr(command, "_seconds_per_step", seconds)

    return set_to


def decided(arguments, n_tokens, n_held_out=0):
    return command._decided(
        asked(arguments),
        SimpleNamespace(vocab_size=1000),
        torch.zeros(n_tokens, dtype=torch.int32),
        n_held_out,
    )


def test_auto_weighs_text_and_time(speed):
    speed(3e9)  # a laptop
    assert decided("", 50_000)["preset"] == "tiny"
    assert decided("", 500_000)["preset"] == "small"
    assert decided("", 10**7)["preset"] == "small"
    assert decided("--minutes 0.1", 10**7)["preset"] == "tiny"
    assert decided("--minutes 3000", 10**7)["preset"] == "medium"
    speed(1e13)  # a GPU
    assert decided("--minutes 20", 10**7)["preset"] == "large"


def test_a_model_that_is_far_too_large_is_not_even_tried(speed, monkeypatch):
    speed(3e9)
    tried = []
    real = command._seconds_per_step

    def seconds(options, preset, *rest):
        tried.append(preset)
        return real(options, preset, *rest)

    monkeypatch.setattr(command, "_seconds_per_step", seconds)
    assert decided("--minutes 1 --device cpu", 10**8)["preset"] == "tiny"
    assert PRESETS["large"] not in tried and PRESETS["gpt2"] not in tried


def test_minutes_become_steps(speed):
    speed(1e9)
    half = decided("--minutes 5 --preset tiny", 10**5)["steps"]
    whole = decided("--minutes 10 --preset tiny", 10**5)["steps"]
    assert whole == pytest.approx(2 * half, abs=2)
    per_step = 16 * 64
    n = count_parameters(PRESETS["tiny"].model(1000))["total"]
    assert whole == pytest.approx(600 * 1e9 / (n * per_step), abs=2)
    looked = decided("--minutes 10 --preset tiny", 10**5, 9_000)["steps"]
    looks = N_LOOKS * 9_000 / 3 / per_step
    assert looked == pytest.approx(whole - looks, abs=2)
    assert decided("--minutes 0.01 --preset gpt2", 2000)["steps"] == 20
    assert decided("--steps 7", 10**8)["steps"] == 7


@pytest.mark.parametrize("minutes", (0.5, 1, 10, 600))
def test_looks_take_a_tenth_of_the_time(speed, minutes):
    speed(3e9)
    given = f"--preset tiny --minutes {minutes}"
    n_steps = decided(given, 10**6, 10**6)["steps"]
    without = decided(given, 10**6)["steps"]
    assert 0.85 * without < n_steps <= without
    n_looked = command._n_looked(PRESETS["tiny"], n_steps)
    assert 10_000 <= n_looked <= 200_000
    per_step = 16 * 64
    spent = n_steps * per_step + N_LOOKS * n_looked / 3
    assert spent <= 1.15 * without * per_step


def test_the_speed_is_measured(text, monkeypatch):
    options = asked("--preset tiny")
    texts = command._read(SimpleNamespace(**{**vars(options), "text": text}))
    options.vocab_size = 300
    tokenizer = command._new_tokenizer(options, texts.train)
    ids = join_texts(texts.train, tokenizer)
    preset = PRESETS["tiny"]
    measured = command._seconds_per_step(options, preset, tokenizer, ids)
    assert 0 < measured < 10
    monkeypatch.setattr(command, "_PATIENCE", 0.0)  # after one step
    once = command._seconds_per_step(options, preset, tokenizer, ids)
    assert 0 < once < 10


def test_a_run_by_the_clock(text, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("--text", text, "--out", out, *FAST)
    assert run("pretrain", *given, "--minutes", 0.01) == 0
    assert "measuring the speed of tiny" in capsys.readouterr().out
    n_steps = json.loads((out / "plan.json").read_text())["steps"]
    assert n_steps >= 20
    # The clock is asked once: the same command has the same steps.
    assert run("pretrain", *given, "--minutes", 0.01) == 0
    assert f"{n_steps:,} steps" in capsys.readouterr().out


# Letting it write


def written(capsys, *arguments):
    assert run("generate", *arguments) == 0
    return capsys.readouterr().out


def test_equal_seeds_write_equal_texts(trained, capsys):
    given = ("--model", trained.out, "--tokens", 30, "--seed")
    first = written(capsys, *given, 1)
    assert first == written(capsys, *given, 1)
    assert first != written(capsys, *given, 2)
    given = given[:-1]
    assert written(capsys, *given) != written(capsys, *given)


def test_a_text_begins_with_its_prompt(trained, capsys):
    prompt = '10.0.0.7 "GET'
    given = ("--model", trained.out, "--prompt", prompt)
    found = written(capsys, *given, "--tokens", 9, "--count", 3)
    texts = found.split("\n" + "-" * 20 + "\n")
    assert len(texts) == 3
    assert all(text.startswith(prompt) for text in texts)
    assert len(set(texts)) > 1
    greedy = written(capsys, *given, "--temperature", 0, "--tokens", 9)
    assert greedy == written(capsys, *given, "--top-k", 1, "--tokens", 9)


def test_an_empty_prompt_and_one_longer_than_the_context(trained, capsys):
    given = ("--model", trained.out, "--tokens", 3)
    assert written(capsys, *given, "--prompt", "")
    prompt = log(20)
    found = written(capsys, *given, "--prompt", prompt)
    assert found.startswith(prompt)


def test_a_checkpoint_can_write_too(trained, capsys):
    checkpoint = next(trained.out.glob("checkpoints/*"))
    given = ("--tokens", 5, "--seed", 1, "--model")
    assert written(capsys, *given, checkpoint)
    assert written(capsys, *given, trained.out / "model")


def test_without_a_name_the_books_own_model_writes(
    trained, capsys, monkeypatch
):
    monkeypatch.setattr(
        command, "load_pretrained", lambda: load_model(trained.out)
    )
    named = ("--seed", 1, "--tokens", 9)
    expected = written(capsys, *named, "--model", trained.out)
    assert written(capsys, *named) == expected


def test_what_would_move_the_cursor_is_not_printed():
    text = "a\tb\n\x1b[2Jc\r\x07é"
    marked = "a\tb\n\N{REPLACEMENT CHARACTER}[2Jc" + 2 * "\ufffd" + "é"
    assert command._printable(text) == marked


def test_a_model_that_is_missing(tmp_path, refused, monkeypatch):
    found = refused("generate", "--model", tmp_path / "nope")
    assert "nope is no folder" in found
    assert "holds no model" in refused("generate", "--model", tmp_path)

    def fail():
        raise FileNotFoundError("folder must hold config.json")

    monkeypatch.setattr(command, "load_pretrained", fail)
    assert "--model DIR names one" in refused("generate")


def test_a_model_that_is_damaged(text, copied, refused, capsys):
    file = copied / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    found = refused("generate", "--model", copied)
    assert "model.safetensors is damaged" in found
    whole = re.search(r"use --model (\S+)", found)[1]
    assert written(capsys, "--model", whole, "--tokens", 3)
    # The best model is gone; the last one stands in for it.
    for left in copied.glob("model/*"):
        left.unlink()
    (copied / "model").rmdir()
    assert pretrain(text, copied) == 0
    for file in copied.rglob("model.safetensors"):
        file.write_bytes(b"")
    found = refused("generate", "--model", copied)
    assert "Train it again" in found


def test_a_model_without_a_tokenizer(trained, tmp_path, refused):
    model, _ = load_model(trained.out)
    bare = tmp_path / "bare"
    save_model(bare, model)
    assert "tokenizer" in refused("generate", "--model", bare)


def test_it_runs_as_a_program(trained):
    process = in_a_process("generate", "--model", trained.out, "--tokens", 4)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and printed.strip()
    process = in_a_process("generate", "--model", trained.out / "nope")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed.startswith("--model must") and "Traceback" not in printed
