"""The kept tokens of GPT-2 are those that tiktoken gives."""

import importlib.util
import json
from pathlib import Path

import pytest
import tiktoken

from scratch.llm.tokenization import END_OF_TEXT, gpt2_tokenizer

FOLDER = Path(__file__).parents[2] / "book/llm/recorded"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "gpt2_tokens", FOLDER / "gpt2_tokens.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept():
    return json.loads((FOLDER / "gpt2_tokens.json").read_text(encoding="utf8"))


@pytest.fixture(scope="module")
def ours():
    try:
        return gpt2_tokenizer(download=False)
    except OSError:
        pytest.skip("GPT-2's vocabulary is not in tiktoken's cache")


def test_the_kept_lines_are_those_of_the_script(script, kept):
    assert [line["text"] for line in kept["lines"]] == script.LINES
    samples = {name: part["text"] for name, part in kept["samples"].items()}
    assert samples == script.SAMPLES


def test_the_kept_tokens_spell_the_kept_texts(kept):
    for part in [*kept["lines"], *kept["samples"].values()]:
        spelled = bytes.fromhex("".join(part["tokens"]))
        assert spelled.decode() == part["text"]
        assert len(part["ids"]) == len(part["tokens"])


def test_every_string_was_equal_and_there_were_many(script, kept):
    assert kept["equal"] == kept["compared"]
    assert set(kept["compared"]) > set(script.PARTS)
    assert sum(kept["compared"].values()) >= 20_000


def test_the_generated_strings_are_the_same_each_time(script):
    for kind in script.PARTS:
        assert script.generated(kind, 20) == script.generated(kind, 20)
    assert any(END_OF_TEXT in s for s in script.generated("special token"))


def test_the_kept_tokens_are_those_of_tiktoken(kept, ours):
    theirs = tiktoken.get_encoding("gpt2")
    assert kept["vocab_size"] == theirs.n_vocab == ours.vocab_size
    for part in [*kept["lines"], *kept["samples"].values()]:
        assert part["ids"] == theirs.encode_ordinary(part["text"])
        assert part["ids"] == ours.encode(part["text"])
        tokens = [theirs.decode_single_token_bytes(i) for i in part["ids"]]
        assert [token.hex() for token in tokens] == part["tokens"]


@pytest.mark.slow
def test_our_encoder_still_equals_tiktoken_on_the_generated(script, ours):
    theirs = tiktoken.get_encoding("gpt2")
    for kind in script.PARTS:
        for text in script.generated(kind, 300):
            assert script.is_equal(ours, theirs, text), (kind, text)
