"""Checkers for the exercises of the chapter on tokenization."""

import codecs
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from scratch.exercises.verdict import Mistake, attempt, checker
from scratch.llm.tokenization import Pair, apply_merges
from scratch.llm.tokenization import merge_pair as right_merge_pair


@checker
def check_merge_pair(
    my_merge_pair: Callable[[list[int], Pair, int], list[int]],
) -> None:
    """Check my_merge_pair(ids, pair, new_id) -> ids with the pair replaced.

    >>> check_merge_pair(lambda ids, pair, new_id: ids)
    Not yet: my_merge_pair([1, 2], (1, 2), 9) must be [9], got [1, 2]. \
Put the new id in the place of both ids of the pair
    """
    for ids, pair, hint in (
        (
            [1, 2],
            (1, 2),
            "Put the new id in the place of both ids of the pair",
        ),
        ([1, 2, 3], (1, 2), "What is no pair stays, the last id too"),
        ([3, 1, 2], (1, 2), "The pair may stand at the very end"),
        ([1, 2, 3], (2, 4), "What is no pair stays as it is"),
        ([1, 2, 3, 1, 2], (1, 2), "Replace each occurrence"),
        ([3, 1, 2], (2, 1), "The order within the pair counts"),
        ([1, 3, 2], (1, 2), "Only neighbors are a pair"),
        (
            [1, 1, 1, 2],
            (1, 1),
            "Scan from the left, and do not use an id twice: after a merge "
            "go on behind both ids",
        ),
        ([1, 1, 1, 1], (1, 1), "Four equal ids are two pairs"),
        (
            [11, 2, 1, 22],
            (1, 2),
            "Compare the ids as numbers; written in a row as text, 11 and "
            "2 look as if they held 1 and 2",
        ),
        ([300, 301, 300], (300, 301), "Ids go on beyond 255"),
        ([0, 0, 5], (0, 5), "0 is an id like any other"),
        ([7], (7, 7), "One id alone is no pair"),
        ([], (1, 2), "An empty list stays empty"),
    ):
        shown = f"my_merge_pair({ids}, {pair}, 9)"
        given = list(ids)
        actual = attempt(shown, my_merge_pair, given, pair, 9)
        if given != ids:
            raise Mistake(
                f"{shown} changed its argument in place. Build a new list"
            )
        _expect_ids(shown, actual, right_merge_pair(ids, pair, 9), hint)
        if actual is given:
            raise Mistake(
                f"{shown} returned the list that it was given. Build a new "
                "one, also where there is nothing to merge"
            )


@checker
def check_encode_piece(
    encode_piece: Callable[[str, Mapping[Pair, int]], list[int]],
) -> None:
    """Check encode_piece(piece, merges) -> ids of one piece of text.

    Merges are {(left_id, right_id): new_id} in the order learned.
    """
    banana = {(97, 110): 256, (98, 256): 257, (256, 97): 258}
    late = {(98, 99): 256, (97, 98): 257}
    run = {(97, 97): 256, (256, 256): 257}
    for piece, merges, hint in (
        ("xyz", banana, "Where nothing can be merged, the bytes are the ids"),
        ("", banana, "No text, no tokens"),
        ("é", banana, "Start from the UTF-8 bytes, piece.encode()"),
        ("an", banana, "97 and 110 were merged first"),
        (
            "banana",
            banana,
            "Go on until no neighbors are a known pair: what has been "
            "merged can be merged again",
        ),
        (
            "anana",
            banana,
            "The longest token need not win. Replay the merges: the pair "
            "that was learned first is merged first",
        ),
        ("canan", banana, "Merge each occurrence of the pair"),
        (
            "abc",
            late,
            "The pair learned first comes first, not the one that stands "
            "first",
        ),
        (
            "ababc",
            late,
            "The order of learning decides, not how often a pair stands in "
            "this piece",
        ),
        ("aaaaa", run, "Scan from the left: what is left over is at the end"),
        ("日an", banana, "A character may have three bytes or four"),
    ):
        known = ", ".join(f"{pair}: {i}" for pair, i in merges.items())
        shown = f"encode_piece({piece!r}, {{{known}}})"
        given = dict(merges)
        actual = attempt(shown, encode_piece, piece, given)
        if given != merges:
            raise Mistake(f"{shown} changed merges. Only read from it")
        expected = apply_merges(list(piece.encode()), merges)
        _expect_ids(shown, actual, expected, hint)


@checker
def check_decode_stream(
    decode_stream: Callable[[Iterable[bytes]], Iterator[str]],
) -> None:
    """Check decode_stream(tokens): yields text as soon as it is complete.

    The tokens are bytes; together the parts must be what
    b"".join(tokens).decode(errors="replace") gives.
    """
    each = (
        "Bytes of one character may come in two tokens: keep what is not "
        "complete and put the next token behind it"
    )
    ends = (
        "At the end, what never became complete must come out as U+FFFD: "
        'tell the decoder that this was all, and give it errors="replace"'
    )
    for tokens, hint in (
        ([b"sum", b" of"], ""),
        ([], "No tokens, no text"),
        ([b"\xf0\x9f", b"\x91\x8d", b"!"], each),
        ([b"\xf0", b"\x9f", b"\x91", b"\x8d"], each),
        ([b"caf\xc3", b"\xa9 \xe6\x97", b"\xa5"], each),
        ([b"ok \xf0\x9f"], ends),
        ([b"\xff", b"a"], "A byte that no text has becomes U+FFFD"),
        ([b"\xe6\x97", b"a"], "A character that breaks off becomes U+FFFD"),
    ):
        shown = f"decode_stream({tokens})"
        parts = attempt(shown, decode_stream, iter(tokens))
        if parts is None:
            raise Mistake(f"{shown} returned None. Use yield")
        try:
            text = attempt(shown, "".join, parts)
        except Mistake as mistake:
            if isinstance(mistake.__cause__, UnicodeDecodeError):
                raise Mistake(f"{mistake}. {hint}") from mistake
            raise
        expected = b"".join(tokens).decode(errors="replace")
        if text != expected:
            raise Mistake(
                f"{shown} must give {expected!r} in all, got {text!r}. "
                f"{hint}".rstrip()
            )
    _expect_early_text(
        decode_stream,
        [b"Re", b"turn", b" caf\xc3", b"\xa9 \xe2\x88", b"\x91", b"!"],
        hint="Yield what is complete before you ask for the next token, and "
        "keep only the bytes of the character that is not",
    )
    _expect_early_text(
        decode_stream,
        [b"\xff", b"a", b"hello", b" ", b"world", b"!"],
        hint="A byte that no text has must not hold up what comes after it",
        patience=3,
    )


def _expect_early_text(
    decode_stream: Callable[[Iterable[bytes]], Iterator[str]],
    tokens: list[bytes],
    *,
    hint: str,
    patience: int = 0,
) -> None:
    """Raise a Mistake if text is held back that could have been given.

    Args:
        patience: bytes after which a decoder must have given up on one
            that begins no character.
    """
    parts: list[str] = []
    given = []  # when each token was asked for

    def feed() -> Iterator[bytes]:
        for token in tokens:
            given.append("".join(parts))
            yield token

    for part in decode_stream(feed()):
        parts.append(part)
    for n, text in enumerate(given):
        seen = b"".join(tokens[:n])
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        due = decoder.decode(seen[: max(len(seen) - patience, 0)])
        if len(text) < len(due):
            raise Mistake(
                f"in decode_stream({tokens}), when token {n} was asked for, "
                f"{due!r} was complete and only {text!r} had been given. "
                f"{hint}"
            )


def _expect_ids(
    shown: str, actual: Any, expected: list[int], hint: str
) -> None:
    if actual is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    try:
        actual = [operator.index(token_id) for token_id in actual]
    except TypeError:
        raise Mistake(
            f"{shown} must be a list of ids, which are integers, "
            f"got {actual!r}"
        ) from None
    if actual != expected:
        raise Mistake(f"{shown} must be {expected}, got {actual}. {hint}")
