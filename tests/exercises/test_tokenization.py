"""The checkers accept right answers and name what is wrong in others."""

import codecs
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from scratch.exercises.tokenization import (
    check_decode_stream,
    check_encode_piece,
    check_merge_pair,
)
from scratch.llm.tokenization import apply_merges, merge_pair


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def by_skipping(ids, pair, new_id):
    merged, skip = [], False
    for here, following in zip(ids, [*ids[1:], None], strict=False):
        if skip:
            skip = False
        elif (here, following) == pair:
            merged.append(new_id)
            skip = True
        else:
            merged.append(here)
    return merged


def by_looking_back(ids, pair, new_id):
    merged = []
    fresh = False  # whether the last entry is an id of the input
    for token_id in ids:
        if fresh and (merged[-1], token_id) == pair:
            merged[-1] = new_id
            fresh = False
        else:
            merged.append(token_id)
            fresh = True
    return merged


def by_looking_back_at_any_id(ids, pair, new_id):
    merged = []
    for token_id in ids:
        if merged and (merged[-1], token_id) == pair:
            merged[-1] = new_id
        else:
            merged.append(token_id)
    return merged


def by_deleting_in_a_copy(ids, pair, new_id):
    ids = list(ids)
    i = 0
    while i < len(ids) - 1:
        if ids[i] == pair[0] and ids[i + 1] == pair[1]:
            ids[i : i + 2] = [new_id]
        i += 1
    return tuple(ids)


@pytest.mark.parametrize(
    "answer",
    [
        merge_pair,
        by_skipping,
        by_looking_back,
        by_deleting_in_a_copy,
        by_looking_back_at_any_id,
        lambda ids, pair, new_id: np.array(merge_pair(ids, pair, new_id)),
    ],
)
def test_merge_pair_accepts(answer):
    verdict = check_merge_pair(answer)
    assert verdict, verdict.message


def loses_the_last(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def overlapping(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            merged.append(new_id)
            i += 1 if pair[0] == pair[1] else 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def from_the_right(ids, pair, new_id):
    return merge_pair(ids[::-1], pair[::-1], new_id)[::-1]


def in_any_order(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids):
        if sorted(ids[i : i + 2]) == sorted(pair):
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def first_only(ids, pair, new_id):
    for i, found in enumerate(pairwise(ids)):
        if found == pair:
            return [*ids[:i], new_id, *ids[i + 2 :]]
    return list(ids)


def looks_past_the_end(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and ids[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def in_place(ids, pair, new_id):
    ids[:] = merge_pair(ids, pair, new_id)
    return ids


def as_text(ids, pair, new_id):
    text = " ".join(map(str, ids))
    text = text.replace(f"{pair[0]} {pair[1]}", str(new_id))
    return [int(word) for word in text.split()]


def as_bytes(ids, pair, new_id):
    return list(bytes(ids).replace(bytes(pair), bytes([new_id])))


def drops_the_left(ids, pair, new_id):
    return [
        new_id if found == pair else found[1]
        for found in pairwise([None, *ids])
    ]


def as_strings(ids, pair, new_id):
    return [str(i) for i in merge_pair(ids, pair, new_id)]


def as_fractions(ids, pair, new_id):
    return [i + 0.7 for i in merge_pair(ids, pair, new_id)]


def the_same_list(ids, pair, new_id):
    merged = merge_pair(ids, pair, new_id)
    return ids if merged == ids else merged


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (loses_the_last, r"must be \[9, 3\], got \[9\]. .* the last id too"),
        (overlapping, "do not use an id twice"),
        (from_the_right, "Scan from the left"),
        (in_any_order, "order within the pair"),
        (first_only, "Replace each occurrence"),
        (looks_past_the_end, "raised IndexError"),
        (in_place, "in place"),
        (as_text, "as numbers"),
        (as_bytes, "raised ValueError|beyond 255"),
        (drops_the_left, "must be .* in the place of both"),
        (lambda ids, pair, new_id: None, "returned None"),
        (lambda ids, pair, new_id: ids, "Put the new id in the place of both"),
        (lambda ids, pair: ids, "raised TypeError"),
        (merge_pair([1], (1, 1), 2), "without calling"),
        (lambda ids, pair, new_id: 9, "must be a list of ids"),
        (as_strings, r"are integers, got \['9'\]"),
        (as_fractions, r"are integers, got \[9\.7\]"),
        (the_same_list, "returned the list that it was given"),
    ],
)
def test_merge_pair_says_what_is_wrong(answer, words):
    assert_says(words, check_merge_pair(answer))


def replay_all(piece, merges):
    ids = list(piece.encode())
    for pair, new_id in merges.items():
        ids = merge_pair(ids, pair, new_id)
    return ids


def lowest_first(piece, merges):
    ids = list(piece.encode())
    while True:
        known = [merges[pair] for pair in pairwise(ids) if pair in merges]
        if not known:
            return ids
        pair = next(p for p, i in merges.items() if i == min(known))
        ids = merge_pair(ids, pair, merges[pair])


@pytest.mark.parametrize(
    "answer",
    [
        lambda piece, merges: apply_merges(list(piece.encode()), merges),
        replay_all,
        lowest_first,
    ],
)
def test_encode_piece_accepts(answer):
    verdict = check_encode_piece(answer)
    assert verdict, verdict.message


def spell(token_id, merges):
    for (left, right), new_id in merges.items():
        if new_id == token_id:
            return spell(left, merges) + spell(right, merges)
    return bytes([token_id])


def longest_match(piece, merges):
    tokens = {spell(i, merges): i for i in [*range(256), *merges.values()]}
    rest, ids = piece.encode(), []
    while rest:
        n = max(n for n in range(1, len(rest) + 1) if rest[:n] in tokens)
        ids.append(tokens[rest[:n]])
        rest = rest[n:]
    return ids


def leftmost_first(piece, merges):
    ids = list(piece.encode())
    while True:
        known = [pair for pair in pairwise(ids) if pair in merges]
        if not known:
            return ids
        ids = merge_pair(ids, known[0], merges[known[0]])


def most_frequent_first(piece, merges):
    ids = list(piece.encode())
    while True:
        known = Counter(pair for pair in pairwise(ids) if pair in merges)
        if not known:
            return ids
        best = max(known, key=lambda p: (known[p], -merges[p]))
        ids = merge_pair(ids, best, merges[best])


def one_merge(piece, merges):
    ids = list(piece.encode())
    known = [pair for pair in pairwise(ids) if pair in merges]
    if known:
        first = min(known, key=merges.get)
        ids = merge_pair(ids, first, merges[first])
    return ids


def by_code_points(piece, merges):
    return apply_merges([ord(char) for char in piece], merges)


def last_learned_first(piece, merges):
    ids = list(piece.encode())
    for pair, new_id in reversed(merges.items()):
        ids = merge_pair(ids, pair, new_id)
    return ids


def first_occurrence(piece, merges):
    ids = list(piece.encode())
    for pair, new_id in merges.items():
        ids = first_only(ids, pair, new_id)
    return ids


def empties_merges(piece, merges):
    ids = list(piece.encode())
    for pair in list(merges):
        ids = merge_pair(ids, pair, merges.pop(pair))
    return ids


def needs_two(piece, merges):
    ids = list(piece.encode())
    while True:
        first = min(pairwise(ids), key=lambda p: merges.get(p, 10**9))
        if first not in merges:
            return ids
        ids = merge_pair(ids, first, merges[first])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (longest_match, "longest token need not win"),
        (leftmost_first, "not the one that stands first"),
        (most_frequent_first, "not how often"),
        (one_merge, "can be merged again"),
        (by_code_points, "UTF-8 bytes"),
        (last_learned_first, "can be merged again"),
        (first_occurrence, "must be"),
        (empties_merges, "changed merges"),
        (needs_two, "raised ValueError"),
        (lambda piece, merges: list(piece.encode()), "merged first"),
        (lambda piece, merges: piece.encode("utf-16-le"), "bytes are the ids"),
        (lambda piece, merges: piece, "must be a list of ids"),
        (lambda piece, merges: None, "returned None"),
    ],
)
def test_encode_piece_says_what_is_wrong(answer, words):
    assert_says(words, check_encode_piece(answer))


def incremental(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(token)
    yield decoder.decode(b"", final=True)


def only_what_is_text(tokens):
    return (part for part in incremental(tokens) if part)


def one_ahead(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    tokens = iter(tokens)
    held = next(tokens, b"")
    for token in tokens:
        yield decoder.decode(held)
        held = token
    yield decoder.decode(held, final=True)


def by_reason(tokens):
    rest = b""
    for token in tokens:
        rest += token
        text = ""
        while rest:
            try:
                text, rest = text + rest.decode(), b""
            except UnicodeDecodeError as error:
                text += rest[: error.start].decode()
                if error.reason == "unexpected end of data":
                    rest = rest[error.start :]
                    break
                text += "\N{REPLACEMENT CHARACTER}"
                rest = rest[error.end :]
        yield text
    yield rest.decode(errors="replace")


def by_length(tokens):
    """Waits at a byte that begins no character until four have come."""
    rest = b""
    for token in tokens:
        rest += token
        for n in range(4):
            try:
                yield rest[: len(rest) - n].decode()
            except UnicodeDecodeError:
                continue
            rest = rest[len(rest) - n :]
            break
        else:
            yield rest[:-3].decode(errors="replace")
            rest = rest[-3:]
    yield rest.decode(errors="replace")


@pytest.mark.parametrize(
    "answer", [incremental, only_what_is_text, by_reason, by_length]
)
def test_decode_stream_accepts(answer):
    verdict = check_decode_stream(answer)
    assert verdict, verdict.message


def each_alone(tokens):
    for token in tokens:
        yield token.decode(errors="replace")


def ignores(tokens):
    for token in tokens:
        yield token.decode(errors="ignore")


def strict(tokens):
    for token in tokens:
        yield token.decode()


def never_ends(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(token)


def strict_decoder(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")()
    for token in tokens:
        yield decoder.decode(token)
    yield decoder.decode(b"", final=True)


def at_the_end(tokens):
    yield b"".join(tokens).decode(errors="replace")


def waits_for_valid(tokens):
    held = b""
    for token in tokens:
        held += token
        try:
            yield held.decode()
        except UnicodeDecodeError:
            continue
        held = b""


def waits_until_all_is_valid(tokens):
    held = b""
    for token in tokens:
        held += token
        try:
            yield held.decode()
        except UnicodeDecodeError:
            continue
        held = b""
    yield held.decode(errors="replace")


def stops_at_a_bad_byte(tokens):
    held = b""
    for token in tokens:
        held += token
        try:
            text, rest = held.decode(), b""
        except UnicodeDecodeError as error:
            text = held[: error.start].decode()
            rest = held[error.start :]
        held = rest
        yield text
    yield held.decode(errors="replace")


def first_then_rest(tokens):
    parts = incremental(tokens)
    yield next(parts)
    yield "".join(parts)


def text_so_far(tokens):
    held = b""
    for token in tokens:
        held += token
        yield held.decode(errors="ignore")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (each_alone, "in two tokens"),
        (ignores, "in two tokens"),
        (strict, "raised UnicodeDecodeError.* keep what is not complete"),
        (never_ends, "this was all"),
        (strict_decoder, 'UnicodeDecodeError.* give it errors="replace"'),
        (at_the_end, "'Re' was complete and only '' had been given"),
        (waits_for_valid, "this was all"),
        (
            waits_until_all_is_valid,
            r"'Return caf' was complete and only 'Return' .* keep only",
        ),
        (stops_at_a_bad_byte, "only '' had been given. A byte that no text"),
        (first_then_rest, "'Return' was complete and only 'Re' had"),
        (one_ahead, "when token 1 was asked for, 'Re' was complete"),
        (text_so_far, "must give 'sum of' in all"),
        (lambda tokens: None, "Use yield"),
        (
            lambda tokens: list(incremental(tokens)),
            "before you ask for the next",
        ),
        (lambda: iter(()), "raised TypeError"),
    ],
)
def test_decode_stream_says_what_is_wrong(answer, words):
    assert_says(words, check_decode_stream(answer))
