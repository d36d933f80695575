"""Our tokens are tiktoken's, our merges are those of the definition."""

import copy
import hashlib
import inspect
import json
import pickle
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import regex
import tiktoken
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from requests.exceptions import ConnectionError as NoNetwork
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from scratch.data.documentation import documentation
from scratch.llm import tokenization
from scratch.llm.tokenization import (
    END_OF_TEXT,
    GPT2_PATTERN,
    N_BYTES,
    BPETokenizer,
    CharTokenizer,
    apply_merges,
    gpt2_tokenizer,
    merge_pair,
    split_text,
    train_bpe,
)

NO_CUTS = r"(?s).+"
N_STRINGS = 10_000
SPACES = regex.findall(r"\s", "".join(map(chr, range(0x3001))))
NUMBERS = "0123456789٣४৫᠒Ⅷ½²㊿\U0001d7d8𐄇\u3007௲"
SIGNS = "!?.,:;'\"`-_=+*/\\|<>()[]{}#$%^&~@€§→∑✓\u200b\ufeff\u180e\0\x7f"
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣", "\u200d"]
WORDS = [
    *["the", "Tokens", "ISN", "naïve", "straße", "ﬁne", "Zürich", "été"],
    *["мир", "世界", "ことば", "한국어", "शब्द", "עולם", "สวัสดี", "ǅ", "ª"],
]
ENDINGS = ["s", "t", "d", "m", "ll", "ve", "re", "S", "T", "LL", "Ve", "x"]
# Letters and numbers of the last versions of Unicode, code points that are
# not assigned, and some that never will be.
ODD = "\u1c89\ua7cb\ua7ce\U00010d4a\U00010d40\U00016100\U00016d70\U000323b0"
ODD += "\x1c\x1f\u0378\U000e0fff\ufffe\U0010ffff\ue000\ufffd"
COMBINING = "\u0301\u0327\u05bc\u0654\u0e31\u20dd\U0001d165"

ids_of_bytes = st.integers(0, N_BYTES - 1)
small_ids = st.integers(0, 3)
unicode_texts = st.text()  # without surrogates: UTF-8 cannot write them
few_letters = st.text("ab é'1", max_size=40)
patterns = st.sampled_from([GPT2_PATTERN, NO_CUTS, r"\s+|\S+", r"(?s)."])


def any_character(draw):
    """Return a character of any code point, most often a low one."""
    highest = draw.choice([0x7F, 0x7FF, 0xFFFF, 0x1FFFF, 0x10FFFF])
    code_point = draw.randrange(highest + 1)
    return chr(code_point) if not 0xD800 <= code_point < 0xE000 else "�"


def fragment(draw, docstrings):
    """Return a piece of text of a sort that is easy to get wrong."""
    sort = draw.randrange(12)
    if sort == 0:
        return "".join(any_character(draw) for _ in range(draw.randrange(9)))
    if sort == 1:
        return "".join(draw.choices(SPACES, k=draw.randint(1, 4)))
    if sort == 2:
        return draw.choice([" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n"])
    if sort == 3:
        return "".join(draw.choices(NUMBERS, k=draw.randint(1, 6)))
    if sort == 4:
        return "".join(draw.choices(SIGNS, k=draw.randint(1, 4)))
    if sort == 5:
        return draw.choice(EMOJI)
    if sort == 6:
        return (
            draw.choice(WORDS)
            + draw.choice("''\u2019\u02bc")
            + draw.choice(ENDINGS)
        )
    if sort == 7:
        return draw.choice(WORDS) + draw.choice(COMBINING)
    if sort == 8:
        return draw.choice(ODD)
    if sort == 9:
        return draw.choice([END_OF_TEXT, "<|endoftext", "|>", "<|"])
    if sort == 10:
        run = draw.choice(["a", " ", "\n", "-", "0", "é", "ab", "世"])
        return run * draw.randint(1, draw.choice([5, 90]))
    text = draw.choice(docstrings)
    start = draw.randrange(len(text))
    return text[start : start + draw.randrange(80)]


@pytest.fixture(scope="module")
def docstrings(tmp_path_factory):
    """Return the docstrings of some packages of the standard library."""
    packages = ["asyncio", "email", "logging", "unittest", "xml"]
    corpus = documentation(packages, cache=tmp_path_factory.mktemp("cache"))
    return [entry.text for entry in corpus.entries]


@pytest.fixture(scope="module")
def strings(docstrings):
    draw = random.Random(0)
    return [
        "".join(
            fragment(draw, docstrings)
            for _ in range(draw.choice([1, 2, 3, 5, 8]))
        )
        for _ in range(N_STRINGS)
    ]


@pytest.fixture(scope="module")
def trained(docstrings):
    """Return a tokenizer that has met English and all the rest, a little."""
    odd = "".join([*WORDS, *EMOJI, NUMBERS, SIGNS, ODD, *SPACES]) * 3
    merges = train_bpe([*docstrings, odd], vocab_size=1200)
    return BPETokenizer(merges, special_tokens=(END_OF_TEXT, "<|user|>"))


@pytest.fixture(scope="module")
def gpt2():
    """Skips where GPT-2's vocabulary has never been fetched."""
    try:
        return gpt2_tokenizer(download=False)
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def abc():
    """A small one: "ab" is 256, "abc" is 257, the special tokens 258, 259."""
    return BPETokenizer(
        {(97, 98): 256, (256, 99): 257},
        special_tokens=(END_OF_TEXT, "<|user|>"),
    )


def naive_train(texts, vocab_size, pattern):
    """Count, choose, merge, remember: the definition, nothing kept."""
    pieces = [
        list(piece.encode())
        for text in texts
        for piece in split_text(text, pattern)
    ]
    merges = {}
    for new_id in range(N_BYTES, vocab_size):
        counts = Counter(pair for ids in pieces for pair in pairwise(ids))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        pieces = [merge_pair(ids, best, new_id) for ids in pieces]
        merges[best] = new_id
    return merges


def their_merges(pieces, vocab_size):
    """Train tokenizers' BPE on bytes: a byte is the character of its number.

    So their alphabet has the order of the bytes, and ties go as ours do.
    """
    theirs = Tokenizer(BPE())
    theirs.train_from_iterator(
        [piece.encode().decode("latin-1") for piece in pieces],
        BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=list(map(chr, range(N_BYTES))),
            show_progress=False,
        ),
    )
    model = json.loads(theirs.to_str())["model"]
    ids = model["vocab"]
    assert all(ids[chr(byte)] == byte for byte in range(N_BYTES))
    return {(ids[a], ids[b]): ids[a + b] for a, b in model["merges"]}


def assert_same_merges(texts, expected, **options):
    """Compare also the order, and that there is nothing left to learn."""
    size = N_BYTES + len(expected)
    ours = train_bpe(texts, size, **options)
    assert list(ours.items()) == list(expected.items())


# Reference


@pytest.mark.slow
def test_gpt2_gives_the_ids_of_tiktoken(gpt2, strings):
    reference = tiktoken.get_encoding("gpt2")
    engine = gpt2.to_tiktoken()
    assert gpt2.vocab_size == reference.n_vocab == engine.n_vocab == 50257
    for text in strings:
        expected = reference.encode_ordinary(text)
        assert gpt2.encode(text) == expected
        assert engine.encode_ordinary(text) == expected
        assert gpt2.decode(expected) == text
        allowed = reference.encode(text, allowed_special="all")
        assert gpt2.encode(text, allow_special=True) == allowed
        assert engine.encode(text, allowed_special="all") == allowed


@pytest.mark.slow
def test_gpt2_gives_the_ids_of_tiktoken_on_docstrings(gpt2, docstrings):
    reference = tiktoken.get_encoding("gpt2")
    assert len(docstrings) > 1000
    for text in docstrings:
        assert gpt2.encode(text) == reference.encode_ordinary(text)


def test_end_of_text_is_text_or_a_token_in_gpt2(gpt2):
    assert gpt2.encode(f"a{END_OF_TEXT}", allow_special=True) == [64, 50256]
    as_text = gpt2.encode(f"a{END_OF_TEXT}")
    assert 50256 not in as_text
    assert gpt2.decode(as_text) == f"a{END_OF_TEXT}"


def test_the_bytes_of_gpt2s_tokens_are_tiktokens(gpt2):
    reference = tiktoken.get_encoding("gpt2")
    for token_id in range(gpt2.vocab_size):
        expected = reference.decode_single_token_bytes(token_id)
        assert gpt2.token_bytes(token_id) == expected


@pytest.mark.slow
def test_tiktokens_engine_gives_our_ids(trained, strings):
    engine = trained.to_tiktoken()
    assert engine.n_vocab == trained.vocab_size
    for text in strings:
        ids = trained.encode(text)
        assert ids == engine.encode_ordinary(text)
        assert trained.decode(ids) == engine.decode(ids) == text
        assert trained.encode(text, allow_special=True) == engine.encode(
            text, allowed_special="all"
        )


@pytest.mark.slow
@given(few_letters, unicode_texts, st.integers(0, 30), patterns)
@example("aaaa", "a" * 99, 2, NO_CUTS)
def test_tiktokens_engine_gives_our_ids_for_any_merges(
    sample, text, n_merges, pattern
):
    merges = naive_train([sample], N_BYTES + n_merges, pattern)
    tokenizer = BPETokenizer(merges, pattern=pattern)
    engine = tokenizer.to_tiktoken()
    for encoded in (text, sample, sample[::-1] + text):
        assert tokenizer.encode(encoded) == engine.encode_ordinary(encoded)


@pytest.mark.slow
@pytest.mark.parametrize("neighbor", ["x", "1", "!", " "], ids=repr)
def test_all_code_points_are_cut_as_tiktoken_cuts_them(neighbor):
    """Letter, number and sign join their like: so each one shows its sort.

    In a text where neighbor and the code points take turns, neighbor and
    the first byte after it are one token where no cut is between them. All
    code points above 0x3FFFF are signs, as the sign "!" shows.
    """
    merges = {(ord(neighbor), b): N_BYTES + b for b in range(N_BYTES)}
    engine = BPETokenizer(merges).to_tiktoken()
    others = [
        chr(i)
        for i in range(0x110000 if neighbor == "!" else 0x40000)
        if not 0xD800 <= i < 0xE000 and chr(i) != neighbor
    ]
    text = neighbor + neighbor.join(others)
    starts = np.cumsum([0, *map(len, split_text(text))])[:-1]
    ours = np.zeros(len(text), bool)
    ours[starts] = True

    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    n_bytes = sum(
        (code_points >= n).astype(int) for n in (0, 128, 2048, 65536)
    )
    lengths = 1 + (np.array(engine.encode_ordinary(text)) >= N_BYTES)
    theirs = np.zeros(n_bytes.sum(), bool)
    theirs[np.cumsum(lengths) - lengths] = True
    theirs = theirs[np.cumsum(n_bytes) - n_bytes]
    np.testing.assert_array_equal(ours[1::2], theirs[1::2])


def test_characters_whose_sort_only_tiktoken_knows_count_as_theirs(
    monkeypatch,
):
    def find_with_older_tables(kind, text):
        return [c for c in regex.findall(kind, text) if c not in "éz7½"]

    class OlderRegex:
        findall = staticmethod(find_with_older_tables)

    newer = tokenization._seen_by_tiktoken()
    monkeypatch.setattr(tokenization, "regex", OlderRegex)
    table = tokenization._seen_by_tiktoken.__wrapped__()
    older = {ord("é"): "x", ord("z"): "x", ord("7"): "0", ord("½"): "0"}
    assert table == newer | older


@given(st.lists(unicode_texts, max_size=3), st.integers(0, 30))
@example(["hahaha"], 5)
@example(["a" * 20, "a" * 21], 5)
def test_training_learns_the_merges_of_tokenizers(texts, n_merges):
    pieces = [piece for text in texts for piece in split_text(text)]
    expected = their_merges(pieces, N_BYTES + n_merges)
    assert_same_merges(texts, expected)


@given(st.lists(few_letters, max_size=4), st.integers(0, 30), patterns)
def test_training_learns_the_merges_of_tokenizers_where_ties_are_common(
    texts, n_merges, pattern
):
    pieces = [piece for text in texts for piece in split_text(text, pattern)]
    expected = their_merges(pieces, N_BYTES + n_merges)
    assert_same_merges(texts, expected, pattern=pattern)


@pytest.mark.slow
def test_training_learns_the_merges_of_tokenizers_on_docstrings(docstrings):
    pieces = [piece for text in docstrings for piece in split_text(text)]
    expected = their_merges(pieces, 2000)
    assert len(expected) == 2000 - N_BYTES
    assert_same_merges(docstrings, expected)


# Visible ASCII: there the byte-level alphabet has the order of the bytes.
@given(st.text("ab.'1LsS", min_size=1, max_size=40), st.integers(0, 20))
def test_training_learns_the_merges_of_tokenizers_byte_level(text, n_merges):
    theirs = Tokenizer(BPE())
    theirs.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    theirs.train_from_iterator(
        [text],
        BpeTrainer(
            vocab_size=N_BYTES + n_merges,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    model = json.loads(theirs.to_str())["model"]
    ours = train_bpe(text, N_BYTES + len(model["merges"]))
    vocabulary = BPETokenizer(ours).vocabulary
    assert [
        [vocabulary[left].decode(), vocabulary[right].decode()]
        for left, right in ours
    ] == model["merges"]


@given(
    st.lists(st.text("abc ", max_size=30), max_size=4),
    st.integers(0, 40),
    patterns,
)
@example(["a" * 20], 6, NO_CUTS)
@example(["abab", "abab"], 3, NO_CUTS)
def test_training_follows_the_definition(texts, n_merges, pattern):
    expected = naive_train(texts, N_BYTES + n_merges, pattern)
    assert_same_merges(texts, expected, pattern=pattern)
    if len(expected) < n_merges:
        most = N_BYTES + len(expected)
        with pytest.raises(ValueError, match=f"at most {most} for"):
            train_bpe(texts, N_BYTES + n_merges, pattern=pattern)


@given(unicode_texts)
def test_without_merges_ids_are_bytes(text):
    tokenizer = BPETokenizer({})
    assert bytes(tokenizer.encode(text)) == text.encode()
    assert tokenizer.decode(text.encode()) == text


# Worked examples


def test_the_textbook_example():
    # Wikipedia, "Byte-pair encoding": aa, then ab, then the two together.
    # There the second tie is broken the other way.
    ids = list(b"aaabdaaabac")
    merges = train_bpe("aaabdaaabac", 259, pattern=NO_CUTS)
    assert merges == {(97, 97): 256, (97, 98): 257, (256, 257): 258}
    assert apply_merges(ids, merges) == [258, 100, 258, 97, 99]


def test_hahaha_by_hand():
    merges = train_bpe("hahaha", vocab_size=258)
    assert merges == {(104, 97): 256, (256, 256): 257}
    tokenizer = BPETokenizer(merges)
    assert tokenizer.encode("hahaha") == [257, 256]
    assert tokenizer.vocabulary[256:] == [b"ha", b"haha"]


@pytest.mark.parametrize(
    ("ids", "merged"),
    [
        ([], []),
        ([1], [1]),
        ([1, 1], [9]),
        ([1, 1, 1], [9, 1]),
        ([1, 1, 1, 1], [9, 9]),
        ([2, 1, 1, 1, 2], [2, 9, 1, 2]),
        ([1, 2, 1], [1, 2, 1]),
    ],
)
def test_overlapping_pairs_are_merged_from_the_left(ids, merged):
    assert merge_pair(ids, pair=(1, 1), new_id=9) == merged
    assert merge_pair(tuple(ids), pair=(1, 1), new_id=9) == merged


def test_merges_are_replayed_in_the_order_learned():
    # "bc" was learned first; "ab" may not take its b, though it comes first.
    merges = {(98, 99): 256, (97, 98): 257}
    assert apply_merges(list(b"abc"), merges) == [97, 256]
    assert BPETokenizer(merges).encode("abc") == [97, 256]


def test_ties_go_to_the_smallest_pair():
    assert train_bpe("zyba", 257, pattern=NO_CUTS) == {(98, 97): 256}
    assert train_bpe("ab ba", 257) == {(32, 98): 256}


def test_no_merge_reaches_over_a_cut():
    assert train_bpe("ab" + " ab" * 9, 258) == {
        (97, 98): 256,
        (32, 256): 257,
    }
    with pytest.raises(ValueError, match="at most 258"):
        train_bpe("ab" + " ab" * 9, 259)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("Hello world", ["Hello", " world"]),
        ("we'll", ["we", "'ll"]),
        ("WE'LL", ["WE", "'", "LL"]),
        ("we\u2019ll", ["we", "\u2019", "ll"]),
        ("x  y", ["x", " ", " y"]),
        ("x   ", ["x", "   "]),
        ("x\n\n y", ["x", "\n\n", " y"]),
        ("abc123", ["abc", "123"]),
        ("a\u00a0b", ["a", "\u00a0", "b"]),
        ("f(x)!?", ["f", "(", "x", ")!?"]),
    ],
)
def test_gpt2s_pattern_cuts(text, pieces):
    assert split_text(text) == pieces


def test_a_special_token_is_read_only_where_it_is_allowed(abc):
    text = f"ab{END_OF_TEXT}<|user|>{END_OF_TEXT}c"
    assert abc.encode(text, allow_special=True) == [256, 258, 259, 258, 99]
    assert abc.encode(text) == [256, *text[2:].encode()]
    assert abc.decode([256, 258, 259, 258, 99]) == text
    assert abc.token_bytes(259) == b"<|user|>"


def test_the_longest_special_token_wins_and_names_are_no_patterns():
    tokenizer = BPETokenizer({}, special_tokens=("<a", "<a.>", "."))
    encode = tokenizer.encode
    assert encode("<a.><a<ax>.", allow_special=True) == [
        *[257, 256, 256],
        *b"x>",
        258,
    ]


def test_half_a_character_is_shown_as_one_that_is_missing():
    tokenizer = BPETokenizer({})
    assert tokenizer.decode("é".encode()[:1]) == "\N{REPLACEMENT CHARACTER}"
    assert (
        tokenizer.decode_bytes([0xC3]) + tokenizer.decode_bytes([0xA9])
        == "é".encode()
    )


# Properties


@given(st.lists(small_ids, max_size=40), st.tuples(small_ids, small_ids))
@example([1, 1, 1], (1, 1))
def test_merging_is_reversible(ids, pair):
    before = list(ids)
    restored = []
    for token in merge_pair(ids, pair, new_id=99):
        restored.extend(pair if token == 99 else [token])
    assert restored == ids == before


@given(few_letters, st.integers(0, 30), patterns)
@example("aaaa", 2, NO_CUTS)
def test_ids_are_consecutive_and_no_token_is_spelled_as_another(
    text, n_merges, pattern
):
    n_merges = len(naive_train([text], N_BYTES + n_merges, pattern))
    merges = train_bpe(text, N_BYTES + n_merges, pattern=pattern)
    assert list(merges.values()) == list(range(N_BYTES, N_BYTES + n_merges))
    vocabulary = BPETokenizer(merges).vocabulary
    assert len(set(vocabulary)) == len(vocabulary)
    for (left, right), new_id in merges.items():
        assert vocabulary[left] + vocabulary[right] == vocabulary[new_id]


@given(st.lists(few_letters, min_size=2, max_size=5), st.randoms())
def test_the_order_of_the_texts_does_not_matter(texts, draw):
    merges = naive_train(texts, N_BYTES + 8, GPT2_PATTERN)
    draw.shuffle(texts)
    assert_same_merges(iter(texts), merges)


@given(st.lists(st.integers(97, 99), max_size=80), few_letters, patterns)
@example([97] * 80, "aaaaaaaa", NO_CUTS)
def test_the_heap_merges_as_the_scan_does(ids, sample, pattern):
    merges = naive_train(["abcabcc" + sample], N_BYTES + 12, pattern)
    by_heap = tokenization._apply_merges_with_heap(ids, merges)
    assert by_heap == apply_merges(ids, merges)


@given(unicode_texts)
@example("\r\n\0\x85\u2028 \N{REPLACEMENT CHARACTER}")
def test_any_text_comes_back(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.decode_bytes(ids) == text.encode()
    assert all(0 <= token_id < trained.vocab_size for token_id in ids)
    assert trained.encode(text) == ids  # now from memory
    allowed = trained.encode(text, allow_special=True)
    assert trained.decode(allowed) == text


@given(unicode_texts, patterns)
def test_pieces_join_to_the_text(text, pattern):
    pieces = split_text(text, pattern)
    assert "".join(pieces) == text
    assert "" not in pieces


@given(unicode_texts, st.text(min_size=1))
def test_what_stands_before_a_cut_does_not_matter(trained, before, after):
    before = before.rstrip() + "."
    after = f" x{after}"
    assert trained.encode(before + after) == (
        trained.encode(before) + trained.encode(after)
    )


@given(unicode_texts, unicode_texts)
def test_special_tokens_never_arise_from_text(trained, before, after):
    text = before + END_OF_TEXT + "<|user|>" + after
    first = len(trained.vocabulary)
    assert max(trained.encode(text)) < first
    allowed = trained.encode(text, allow_special=True)
    assert allowed == [
        *trained.encode(before, allow_special=True),
        *(first, first + 1),
        *trained.encode(after, allow_special=True),
    ]


@given(st.lists(st.integers(0, 1201)), st.lists(st.integers(0, 1201)))
def test_any_ids_have_bytes_that_concatenate_and_a_text(trained, a, b):
    assert trained.vocab_size == 1202
    joined = trained.decode_bytes(a) + trained.decode_bytes(b)
    assert trained.decode_bytes(a + b) == joined
    assert trained.decode(a + b) == joined.decode(errors="replace")
    assert trained.decode_bytes(iter(a)) == trained.decode_bytes(a)


def test_ids_may_come_from_torch_and_numpy(abc):
    ids = abc.encode("abcé", allow_special=True)
    for array in (torch.tensor(ids), np.array(ids), np.uint16(ids)):
        assert abc.decode(array) == "abcé"
    chars = CharTokenizer("abcé")
    assert chars.decode(torch.tensor([3, 0])) == "éa"


def test_encoding_a_long_piece_takes_no_longer_than_its_length(trained):
    draw = random.Random(0)
    for letters in ("a", "abcdefghijklmnopqrstuvwxyz"):
        text = "".join(draw.choices(letters, k=50_000))
        start = time.process_time()
        ids = trained.encode(text)
        # By scanning it takes many times as long.
        assert time.process_time() - start < 5
        assert ids == trained.to_tiktoken().encode_ordinary(text)


def test_the_answer_is_the_callers_own(abc):
    ids = abc.encode("abc")
    ids.append(5)
    assert abc.encode("abc") == [257]
    merges = {(97, 98): 256}
    tokenizer = BPETokenizer(merges)
    merges[256, 99] = 257
    assert tokenizer.merges == {(97, 98): 256}


def test_memory_is_bounded(abc, monkeypatch):
    monkeypatch.setattr(tokenization, "_MOST_CACHED", 3)
    pieces = [" abc", "ab", "c", "d", "ab", "x" * 65, "y" * 64]
    for piece in pieces:
        assert abc.decode(abc.encode(piece)) == piece
    assert set(abc._cache) == {" abc", "ab", "c"}
    monkeypatch.setattr(tokenization, "_MOST_CACHED", 4)
    abc.encode("x" * 65)
    abc.encode("y" * 64)
    assert set(abc._cache) == {" abc", "ab", "c", "y" * 64}


def test_threads_may_share_a_tokenizer(trained, docstrings):
    fresh = BPETokenizer(trained.merges)
    together = threading.Barrier(4)

    def encode_all(_):
        together.wait()
        return [fresh.encode(text) for text in docstrings[:100]]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(encode_all, range(4)))
    expected = [trained.encode(text) for text in docstrings[:100]]
    assert answers == [expected] * 4


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_behave_alike(abc, clone):
    other = clone(abc)
    text = f"abc é {END_OF_TEXT}"
    assert other.encode(text, allow_special=True) == abc.encode(
        text, allow_special=True
    )
    assert other.vocab_size == abc.vocab_size


# Characters


@given(st.text(min_size=1))
def test_characters_come_back(text):
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(iter(ids)) == text
    assert tokenizer.vocab_size == len(set(text)) == len(set(ids))
    assert set(ids) == set(range(tokenizer.vocab_size))
    assert sorted(ids) == tokenizer.encode("".join(sorted(text)))


def test_characters_by_hand():
    tokenizer = CharTokenizer("hello")
    assert tokenizer.characters == ["e", "h", "l", "o"]
    assert tokenizer.encode("hello") == [1, 0, 2, 2, 3]
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_an_unknown_character_is_named():
    tokenizer = CharTokenizer("hello")
    message = r"only the 4 known characters, got 'p' at position 3"
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("help!")
    with pytest.raises(ValueError, match="text must have at least one"):
        CharTokenizer("")


# Files


def assert_alike(a, b, texts=("", "abcabc é", f"x{END_OF_TEXT}y  z")):
    assert (a.merges, a.pattern) == (b.merges, b.pattern)
    assert list(a.merges) == list(b.merges)
    assert (a.special_ids, a.byte_order) == (b.special_ids, b.byte_order)
    assert a.vocabulary == b.vocabulary
    for text in texts:
        ids = a.encode(text, allow_special=True)
        assert ids == b.encode(text, allow_special=True)
        assert a.decode(ids) == b.decode(ids) == text


def test_saving_keeps_everything(tmp_path, trained, strings):
    path = tmp_path / "tokenizer.json"
    trained.save(path)
    assert_alike(BPETokenizer.load(path), trained, strings[:200])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_saving_keeps_what_is_not_usual(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = BPETokenizer(
        {(1, 0): 256, (256, 256): 257},
        special_tokens=["é\n", '"'],
        pattern=r"(?s).{1,5}",
        byte_order=range(255, -1, -1),
    )
    tokenizer.save("own.json")  # a string, relative
    assert_alike(BPETokenizer.load("own.json"), tokenizer)
    BPETokenizer({}).save("own.json")  # over the old one
    assert_alike(BPETokenizer.load("own.json"), BPETokenizer({}))


@pytest.mark.parametrize("fails", ["json.dumps", "os.replace"])
def test_a_save_that_fails_leaves_the_old_file(
    tmp_path, abc, monkeypatch, fails
):
    def fail(*_, **__):
        raise OSError("disk full")

    path = tmp_path / "tokenizer.json"
    abc.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(f"scratch.llm.tokenization.{fails}", fail)
    with pytest.raises(OSError, match="disk full"):
        BPETokenizer({}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_file_may_be_read_by_whom_the_system_lets(tmp_path, abc):
    plain = tmp_path / "plain"
    plain.write_text("")
    abc.save(tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode == plain.stat().st_mode


def content_of(tokenizer, path, **changed):
    tokenizer.save(path)
    return json.dumps(json.loads(path.read_text()) | changed)


WRONG = {  # what the file says instead
    "another version": {"format": "scratch byte-pair tokenizer 2"},
    "no merges": {"merges": None},
    "merges as a number": {"merges": 5},
    "merges as words": {"merges": ["ab"]},
    "three to a merge": {"merges": [[97, 98, 99]]},
    "words in a merge": {"merges": [["a", "b"]]},
    "fractions in a merge": {"merges": [[97.5, 98]]},
    "lists in a merge": {"merges": [[[97], 98]]},
    "a merge before its parts": {"merges": [[256, 97]]},
    "a negative id": {"merges": [[-1, 97]]},
    "a merge twice": {"merges": [[97, 98], [97, 98]]},
    "half of the bytes": {"byte_order": list(range(128))},
    "bytes as words": {"byte_order": "abc"},
    "no bytes": {"byte_order": None},
    "a pattern that is none": {"pattern": "("},
    "a pattern as a number": {"pattern": 5},
    "a special token as a number": {"special_tokens": [5]},
    "special tokens as a word": {"special_tokens": "ab"},
    "an empty special token": {"special_tokens": [""]},
    "a special token twice": {"special_tokens": ["a", "a"]},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named(tmp_path, abc, changed):
    path = tmp_path / "wrong.json"
    path.write_text(content_of(abc, path, **changed))
    with pytest.raises(ValueError, match=r"save, got .*wrong\.json \(\w"):
        BPETokenizer.load(path)


@pytest.mark.parametrize(
    "missing",
    ["format", "merges", "pattern", "special_tokens", "byte_order"],
)
def test_a_part_that_is_missing_is_named(tmp_path, abc, missing):
    path = tmp_path / "wrong.json"
    content = json.loads(content_of(abc, path))
    del content[missing]
    path.write_text(json.dumps(content))
    message = rf"got .*wrong\.json \(KeyError: '{missing}'"
    with pytest.raises(ValueError, match=message):
        BPETokenizer.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"5",
        b"null",
        b"\xff\xfe\x00",
        b"PK\x03\x04",
        b"[" * 100_000,
        Tokenizer(BPE()).to_str().encode(),
    ],
    ids=lambda content: repr(content[:9]),
)
def test_a_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"save, got .*foreign\.json"):
        BPETokenizer.load(path)


def test_each_truncated_file_is_named(tmp_path, abc):
    path = tmp_path / "short.json"
    whole = content_of(abc, path).encode()
    for length in range(0, len(whole), 29):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"save, got .*short\.json"):
            BPETokenizer.load(path)


def test_tokens_that_would_fill_the_memory_are_named(tmp_path):
    # Two bytes, four, eight: the 45 merges of a file of two kilobytes.
    pairs = [(97, 97)] + [(256 + i, 256 + i) for i in range(44)]
    merges = {pair: 256 + i for i, pair in enumerate(pairs)}
    message = r"at most 10,000,000 bytes together, .* \(277, 277\): 278"
    with pytest.raises(ValueError, match=message):
        BPETokenizer(merges)
    path = tmp_path / "bomb.json"
    BPETokenizer(dict(list(merges.items())[:22])).save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"merges": pairs}))
    with pytest.raises(ValueError, match=rf"bomb\.json .*{message}"):
        BPETokenizer.load(path)


def test_a_missing_file_is_named(tmp_path, abc):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        BPETokenizer.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        abc.save(tmp_path / "nowhere" / "tokenizer.json")
    assert list(tmp_path.iterdir()) == []


# GPT-2's files


@pytest.fixture
def small_gpt2(tmp_path, monkeypatch):
    """Have tiktoken know a small "GPT-2", with files in its cache."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += sorted(set(range(N_BYTES)) - set(order))
    merges = {(64, 65): 256, (256, 66): 257, (257, 256): 258, (220, 64): 259}
    small = BPETokenizer(
        merges, special_tokens=(END_OF_TEXT,), byte_order=order
    )
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    hashes = {}
    for name in ("vocab.bpe", "encoder.json"):
        content = name.encode()
        url = tokenization._GPT2_URL + name
        (folder / hashlib.sha1(url.encode()).hexdigest()).write_bytes(content)
        hashes[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(tokenization, "_GPT2_FILES", hashes)
    engine = small.to_tiktoken()
    in_no_order = reversed(engine._mergeable_ranks.items())
    engine._mergeable_ranks = dict(in_no_order)
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": engine}.__getitem__)
    return small, folder


@pytest.fixture
def no_network(monkeypatch):
    """Have tiktoken know nothing yet, and each request fail."""
    requests = []

    def get(url, *_, **__):
        requests.append(url)
        raise NoNetwork("no route to host")

    monkeypatch.setattr("requests.get", get)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    return requests


@pytest.mark.parametrize("download", [True, False])
def test_merges_are_read_out_of_the_tokens(small_gpt2, download):
    small, _ = small_gpt2
    found = gpt2_tokenizer(download=download)
    assert_alike(found, small, ["abc abcab c", f"{END_OF_TEXT} é"])


def test_the_hashes_are_those_that_tiktoken_demands():
    source = inspect.getsource(tiktoken.registry._available_plugin_modules)
    assert source  # plugins are found by name
    import tiktoken_ext.openai_public as plugin

    expected = inspect.getsource(plugin.gpt2)
    for name, digest in tokenization._GPT2_FILES.items():
        assert tokenization._GPT2_URL + name in expected
        assert digest in expected


@pytest.mark.parametrize(
    "variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"]
)
def test_missing_files_are_an_error_that_says_what_to_do(
    tmp_path, monkeypatch, no_network, variable
):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(OSError, match="GPT-2's vocabulary is not") as caught:
        gpt2_tokenizer(download=False)
    assert no_network == []
    message = str(caught.value)
    assert f"tried the cache {tmp_path}." in message
    for digest in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e"):
        assert digest in message
    for name in ("vocab.bpe", "encoder.json"):
        assert f"/gpt-2/encodings/main/{name})" in message
    assert "TIKTOKEN_CACHE_DIR" in message
    assert "The rest of the book does not need it" in message


def test_files_are_sought_in_tiktokens_own_folder(
    tmp_path, monkeypatch, no_network
):
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    expected = re.escape(f"the cache {tmp_path}/data-gym-cache.")
    with pytest.raises(OSError, match=expected):
        gpt2_tokenizer(download=False)
    assert no_network == []


def test_no_folder_at_all_is_no_reason_to_use_the_network(
    small_gpt2, monkeypatch, no_network
):
    _, folder = small_gpt2
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(folder))
    # Set to nothing, it tells tiktoken to keep nothing.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(OSError, match="GPT-2's vocabulary is not"):
        gpt2_tokenizer(download=False)
    assert no_network == []


def test_no_network_is_an_error_that_says_what_to_do(
    tmp_path, monkeypatch, no_network
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(OSError, match="GPT-2's vocabulary is not") as caught:
        gpt2_tokenizer()
    assert len(no_network) == 1
    assert f"the cache {tmp_path} and https://" in str(caught.value)
    assert isinstance(caught.value.__cause__, NoNetwork)


def test_a_download_that_is_damaged_is_an_error(
    tmp_path, monkeypatch, no_network
):
    class Answer:
        content = b"Please log in to this network"

        def raise_for_status(self):
            pass

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("requests.get", lambda url: Answer())
    with pytest.raises(OSError, match="GPT-2's vocabulary is not") as caught:
        gpt2_tokenizer()
    assert "Hash mismatch" in str(caught.value.__cause__)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_file_is_an_error_and_stays(small_gpt2, no_network, which):
    _, folder = small_gpt2
    damaged = sorted(folder.iterdir())[which]
    damaged.write_bytes(b"half of")
    with pytest.raises(OSError, match="GPT-2's vocabulary is not") as caught:
        gpt2_tokenizer(download=False)
    assert f"{damaged} is damaged" in str(caught.value.__cause__)
    assert damaged.read_bytes() == b"half of"
    assert no_network == []


# Misuse


@pytest.mark.parametrize("vocab_size", [255, 0, -1])
def test_too_small_a_vocabulary_is_named(vocab_size):
    message = f"vocab_size must be at least 256, got {vocab_size}"
    with pytest.raises(ValueError, match=message):
        train_bpe("abc", vocab_size)


@pytest.mark.parametrize("texts", ["", [], ["", ""], "a", "a b c"])
def test_too_little_text_says_how_far_it_can_go(texts):
    pattern = r"\S|\s"
    assert train_bpe(texts, 256, pattern=pattern) == {}
    message = "vocab_size must be at most 256 for these texts, got 257"
    with pytest.raises(ValueError, match=message):
        train_bpe(texts, 257, pattern=pattern)


@pytest.mark.parametrize("texts", [[b"ab"], [5], [None], [["ab"]], b"ab"])
def test_what_is_no_text_is_named(texts):
    with pytest.raises(TypeError, match=r"text must be a string, got .* of "):
        train_bpe(texts, 256)
    with pytest.raises(TypeError, match=r"text must be a string, got .* of "):
        BPETokenizer({}).encode(texts)


def test_half_of_a_surrogate_pair_is_named(abc):
    message = r"text must not hold half .* got '\\udc80' at position 3"
    for use in (abc.encode, split_text, lambda text: train_bpe(text, 256)):
        with pytest.raises(ValueError, match=message):
            use("abé\udc80")
    assert CharTokenizer("\udc80a").encode("a") == [0]  # needs no UTF-8


@pytest.mark.parametrize("pattern", [r"\w+", r"b.*", "z"])
def test_a_pattern_that_leaves_something_out_is_named(pattern):
    message = "pattern must match every character, got .* part of 'a b '"
    for use in (
        lambda: split_text("a b ", pattern),
        lambda: train_bpe("a b ", 256, pattern=pattern),
        lambda: BPETokenizer({}, pattern=pattern).encode("a b "),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_pattern_that_is_none_is_named():
    message = r"pattern must be a regular expression, got '\(a': missing"
    with pytest.raises(ValueError, match=message):
        BPETokenizer({}, pattern="(a")


@pytest.mark.parametrize(
    ("ids", "got"), [([97, 260], 260), ([-1], -1), ([10**30], 10**30)]
)
def test_an_id_out_of_range_is_named(abc, ids, got):
    message = rf"ids must be in \[0, 260\), got {got}"
    for use in (abc.decode, abc.decode_bytes):
        with pytest.raises(ValueError, match=message):
            use(ids)
    with pytest.raises(ValueError, match=message):
        abc.token_bytes(got)
    message = rf"ids must be in \[0, 2\), got {got}"
    with pytest.raises(ValueError, match=message):
        CharTokenizer("ab").decode([0, got])


@pytest.mark.parametrize(
    "ids",
    ["12", [1.5], [None], torch.rand(3), np.ones(2), torch.ones(2, 3).int()],
    ids=str,
)
def test_ids_that_are_no_integers_are_named(abc, ids):
    for tokenizer in (abc, CharTokenizer("ab")):
        with pytest.raises(TypeError, match="ids must be integers, got "):
            tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ({(97, 98): 257}, "count up from 256, got the id 257 where 256"),
        ({(97, 98): 256, (98, 99): 256}, "got the id 256 where 257"),
        ({(97, 256): 256}, r"exist before, got \(97, 256\): 256"),
        ({(300, 97): 256}, r"exist before, got \(300, 97\): 256"),
        ({(97, -1): 256}, r"exist before, got \(97, -1\): 256"),
    ],
)
def test_merges_that_do_not_fit_are_named(merges, message):
    with pytest.raises(ValueError, match=f"merges must .*{message}"):
        BPETokenizer(merges)


@pytest.mark.parametrize(
    "merges",
    [
        # "abc": the second a b c is never reached, "ab" is taken first.
        {(97, 98): 256, (98, 99): 257, (97, 257): 258},
        # "aba" twice, from the left and from the right.
        {(97, 98): 256, (256, 97): 257, (98, 97): 258, (97, 258): 259},
        # "aaa" as a, aa: the first two are merged first.
        {(97, 97): 256, (97, 256): 257},
    ],
)
def test_merges_that_no_text_reaches_are_no_engine(merges):
    message = r"can learn, got \(97, \d+\): \d+, which no text reaches"
    with pytest.raises(ValueError, match=message):
        BPETokenizer(merges).to_tiktoken()


def test_special_tokens_that_begin_alike_are_no_engine():
    names = ("<b>", "<a>bc", "<a>", "<a>d")
    tokenizer = BPETokenizer({}, special_tokens=names)
    ids = tokenizer.encode("<a>bc<a>b", allow_special=True)
    assert ids == [257, 258, ord("b")]
    message = "must not begin with one another, got '<a>' and '<a>bc'"
    with pytest.raises(ValueError, match=message):
        tokenizer.to_tiktoken()


@pytest.mark.parametrize(
    "byte_order", [range(255), range(1, 257), [0] * 256, []]
)
def test_a_byte_order_that_is_none_is_named(byte_order):
    with pytest.raises(ValueError, match="byte_order must hold each of 0 to"):
        BPETokenizer({}, byte_order=byte_order)


@pytest.mark.parametrize("names", [("",), ("a", "a"), ("a", "")])
def test_special_tokens_that_are_alike_or_empty_are_named(names):
    message = r"special_tokens must be different and not empty, got \("
    with pytest.raises(ValueError, match=message):
        BPETokenizer({}, special_tokens=names)


@pytest.mark.parametrize("names", [END_OF_TEXT, [5], [b"a"], [None]])
def test_special_tokens_that_are_no_strings_are_named(names):
    message = "special_tokens must be a sequence of strings, got "
    with pytest.raises(TypeError, match=message):
        BPETokenizer({}, special_tokens=names)
