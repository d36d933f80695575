"""Tokenization: text becomes numbers, and the numbers become text again."""

import hashlib
import heapq
import json
import operator
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import regex
import tiktoken

N_BYTES = 256  # ids 0..255 are the bytes; merged tokens start here
END_OF_TEXT = "<|endoftext|>"  # stands between two documents

# How GPT-2 cuts text before it merges: a contraction, a word with its
# leading space, a number, a run of signs, or white space.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)
_FORMAT = "scratch byte-pair tokenizer 1"
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_GPT2_FILES = {  # and their SHA-256
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc"
    "4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82"
    "f612a97c5d1cdaf36ed2256dbf636783",
}
_MOST_CACHED = 100_000  # pieces whose ids a tokenizer remembers
_MOST_BYTES = 10_000_000  # of all tokens together; GPT-2's have 320,000
_LONG = 64  # bytes; pieces above it are rare, and slow to merge by scanning

Pair = tuple[int, int]


class CharTokenizer:
    """One token per character; the vocabulary is that of a sample text.

    Ids follow the order of the characters' code points.

    Raises: ValueError if text is empty.
    """

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("text must have at least one character, got ''")
        self.characters = sorted(set(text))
        self._ids = {char: i for i, char in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return the id of each character.

        Raises: ValueError at the first character that is not known.
        """
        for position, char in enumerate(text):
            if char not in self._ids:
                raise ValueError(
                    f"text must hold only the {self.vocab_size} known "
                    f"characters, got {char!r} at position {position}"
                )
        return [self._ids[char] for char in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids.

        Raises: ValueError if an id is not in [0, vocab_size).
        """
        return "".join(
            self.characters[_checked(token_id, self.vocab_size)]
            for token_id in ids
        )


def merge_pair(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of pair by new_id, scanning left to right.

    >>> merge_pair([1, 1, 1, 2], pair=(1, 1), new_id=9)
    [9, 1, 2]
    """
    merged = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def apply_merges(ids: Sequence[int], merges: Mapping[Pair, int]) -> list[int]:
    """Merge neighbors, the pair learned first always first.

    Args:
        merges: {(left_id, right_id): new_id}; a smaller new_id was learned
            earlier.

    >>> apply_merges([1, 2, 3], {(2, 3): 4, (1, 2): 5})
    [1, 4]
    """
    ids = list(ids)
    while len(ids) > 1:
        known = [pair for pair in pairwise(ids) if pair in merges]
        if not known:
            break
        first = min(known, key=merges.__getitem__)
        ids = merge_pair(ids, first, merges[first])
    return ids


def split_text(text: str, pattern: str = GPT2_PATTERN) -> list[str]:
    """Cut text into the pieces within which tokens are merged.

    What counts as a letter or a number is decided as tiktoken does, whose
    Unicode tables may be of another year than ours.

    Raises: TypeError if text is not a string; ValueError if it holds half
        of a surrogate pair, which UTF-8 cannot write, or if pattern leaves
        out a part of it.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"text must be a string, got {text!r:.40} of type "
            f"{type(text).__name__}"
        )
    looked_at = text
    if not text.isascii():
        if half := regex.search(r"[\uD800-\uDFFF]", text):
            raise ValueError(
                "text must not hold half of a surrogate pair, got "
                f"{half[0]!r} at position {half.start()}"
            )
        looked_at = text.translate(_seen_by_tiktoken())
    found = regex.compile(pattern).finditer(looked_at)
    pieces = [text[match.start() : match.end()] for match in found]
    if sum(map(len, pieces)) != len(text):
        raise ValueError(
            f"pattern must match every character, got {pattern!r}, which "
            f"leaves out a part of {text[:40]!r}"
        )
    return pieces


def train_bpe(
    texts: str | Iterable[str],
    vocab_size: int,
    *,
    pattern: str = GPT2_PATTERN,
) -> dict[Pair, int]:
    """Learn merges until the vocabulary holds vocab_size tokens.

    Each round gives a new id to the pair of neighboring ids that occurs
    most often within the pieces. Ties go to the smallest pair, so equal
    texts give equal merges.

    Args:
        texts: one text or several, read as UTF-8 bytes.
        vocab_size: tokens wanted, counting the 256 bytes.
        pattern: cuts each text into pieces; no token reaches over a cut.

    Returns: {(left_id, right_id): new_id} in the order learned.
    Raises: ValueError if vocab_size is below 256 or there are no more
        pairs to merge.
    Source: Sennrich et al. (2016), algorithm 1, on bytes as in Radford et
        al. (2019), section 2.2.

    >>> train_bpe("hahaha", vocab_size=258)
    {(104, 97): 256, (256, 256): 257}
    """
    if vocab_size < N_BYTES:
        raise ValueError(
            f"vocab_size must be at least {N_BYTES}, got {vocab_size}"
        )
    texts = [texts] if isinstance(texts, str) else texts
    pieces = Counter(
        chain.from_iterable(split_text(text, pattern) for text in texts)
    )
    pairs = _PairCounts(pieces)
    merges: dict[Pair, int] = {}
    for new_id in range(N_BYTES, vocab_size):
        best = pairs.pop_most_frequent()
        if best is None:
            raise ValueError(
                f"vocab_size must be at most {new_id} for these texts, "
                f"got {vocab_size}"
            )
        pairs.merge(best, new_id)
        merges[best] = new_id
    return merges


class _PairCounts:
    """How often each pair of neighbors occurs, kept up to date.

    A merge changes only the pieces that hold the pair. The heap offers the
    most frequent pair first; an entry whose count is no longer true is
    passed over, since each change adds a new entry.
    """

    def __init__(self, pieces: Mapping[str, int]) -> None:
        self.pieces = [list(piece.encode()) for piece in pieces]
        self.occurrences = list(pieces.values())  # of each piece
        self.counts: Counter[Pair] = Counter()
        self.places: defaultdict[Pair, set[int]] = defaultdict(set)
        for i, ids in enumerate(self.pieces):
            for pair in pairwise(ids):
                self.counts[pair] += self.occurrences[i]
                self.places[pair].add(i)
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def pop_most_frequent(self) -> Pair | None:
        while self.heap:
            negative_count, pair = heapq.heappop(self.heap)
            if -negative_count == self.counts[pair]:
                return pair
        return None

    def merge(self, pair: Pair, new_id: int) -> None:
        changes: Counter[Pair] = Counter()
        for i in self.places.pop(pair):
            before = self.pieces[i]
            after = merge_pair(before, pair, new_id)
            for old in pairwise(before):
                changes[old] -= self.occurrences[i]
            for new in pairwise(after):
                changes[new] += self.occurrences[i]
                if new_id in new:
                    self.places[new].add(i)
            self.pieces[i] = after
        for changed, change in changes.items():
            self.counts[changed] += change
            if change and self.counts[changed]:
                entry = (-self.counts[changed], changed)
                heapq.heappush(self.heap, entry)


class BPETokenizer:
    """Turn text into tokens by replaying learned merges, and back.

    Ids 0 to 255 are the bytes, then come the merged tokens in the order
    learned, then the special tokens. Text never becomes a special token
    unless the caller of encode allows it.

    Args:
        merges: {(left_id, right_id): new_id} from train_bpe.
        special_tokens: names that get ids of their own.
        pattern: cuts text into pieces, the same as in training.
        byte_order: the byte values of ids 0 to 255; GPT-2 has its own.

    Raises: ValueError if merges do not count up from 256 or use an id
        before it exists, if the tokens have more than ten million bytes
        together, if byte_order is not a permutation of 0 to 255, if a
        special token is empty or comes twice, or if pattern is no regular
        expression.
    """

    def __init__(
        self,
        merges: Mapping[Pair, int],
        *,
        special_tokens: Sequence[str] = (),
        pattern: str = GPT2_PATTERN,
        byte_order: Sequence[int] = range(N_BYTES),
    ) -> None:
        if sorted(byte_order) != list(range(N_BYTES)):
            raise ValueError(
                "byte_order must hold each of 0 to 255 once, got "
                f"{list(byte_order)}"
            )
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(
                "pattern must be a regular expression, got "
                f"{pattern!r}: {error}"
            ) from error
        self.merges = dict(merges)
        self.special_tokens = _checked_special_tokens(special_tokens)
        self.pattern = pattern
        self.byte_order = tuple(byte_order)
        self.vocabulary = _spell_out(self.merges, self.byte_order)
        self.special_ids = {
            name: len(self.vocabulary) + i
            for i, name in enumerate(self.special_tokens)
        }
        self._id_of_byte = {b: i for i, b in enumerate(self.byte_order)}
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary) + len(self.special_tokens)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of text.

        Args:
            allow_special: whether the name of a special token in the text
                becomes that token. Leave it off for text that you did not
                write: off, the name is text like any other.
        """
        if not (allow_special and self.special_ids):
            return self._encode_ordinary(text)
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        names = "|".join(map(regex.escape, longest_first))
        ids = []
        for part in regex.split(f"({names})", text):
            if part in self.special_ids:
                ids.append(self.special_ids[part])
            else:
                ids.extend(self._encode_ordinary(part))
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        ids = []
        for piece in split_text(text, self.pattern):
            ids.extend(self._encode_piece(piece))
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        if piece in self._cache:
            return self._cache[piece]
        ids = [self._id_of_byte[byte] for byte in piece.encode()]
        if len(ids) > _LONG:  # the same ids, in less time
            return _apply_merges_with_heap(ids, self.merges)
        ids = apply_merges(ids, self.merges)
        if len(self._cache) < _MOST_CACHED:
            self._cache[piece] = ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, a special one's name included.

        Raises: ValueError if token_id is not in [0, vocab_size).
        """
        token_id = _checked(token_id, self.vocab_size)
        if token_id < len(self.vocabulary):
            return self.vocabulary[token_id]
        return self.special_tokens[token_id - len(self.vocabulary)].encode()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the ids, which may end within a character."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids.

        Bytes that are no valid UTF-8, such as half a character at an end,
        become U+FFFD, the replacement character.

        Raises: ValueError if an id is not in [0, vocab_size).
        """
        return self.decode_bytes(ids).decode(errors="replace")

    def to_tiktoken(self) -> tiktoken.Encoding:
        """Return tiktoken's engine with these tokens: same ids, faster.

        On hundreds of thousands of spaces in a row it panics, and so does
        tiktoken's own tokenizer for GPT-2.

        Raises: ValueError if a merge can never be reached, since tiktoken,
            which knows tokens and no merges, would give other ids; or if
            one special token begins with another, since tiktoken need not
            take the longest.
        """
        names = sorted(self.special_tokens)
        for shorter, longer in pairwise(names):
            if longer.startswith(shorter):
                raise ValueError(
                    "special_tokens must not begin with one another, got "
                    f"{shorter!r} and {longer!r}"
                )
        earlier: dict[Pair, int] = {}
        for (left, right), new_id in self.merges.items():
            ids = [self._id_of_byte[b] for b in self.vocabulary[new_id]]
            if apply_merges(ids, earlier) != [left, right]:
                raise ValueError(
                    "merges must be ones that train_bpe can learn, got "
                    f"{(left, right)}: {new_id}, which no text reaches"
                )
            earlier[left, right] = new_id
        ranks = {token: i for i, token in enumerate(self.vocabulary)}
        return tiktoken.Encoding(
            name="scratch",
            pat_str=self.pattern,
            mergeable_ranks=ranks,
            special_tokens=self.special_ids,
        )

    def save(self, path: Path | str) -> None:
        """Write everything to one JSON file, whole or not at all."""
        path = Path(path)
        content = {
            "format": _FORMAT,
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "byte_order": self.byte_order,
            "merges": list(self.merges),
        }
        # Half a file never stands at path: written elsewhere, then renamed.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            file.write_text(json.dumps(content), encoding="utf8")
            os.replace(file, path)

    @classmethod
    def load(cls, path: Path | str) -> "BPETokenizer":
        """Read what save wrote.

        The file holds no code, but a pattern, which can be written so that
        it runs for years. Load files of people whom you trust.

        Raises: FileNotFoundError if path is missing; ValueError, naming
            path, if it is damaged or was not written by save.
        """
        raw = Path(path).read_bytes()
        try:
            content = json.loads(raw)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']!r}")
            pairs = [(left, right) for left, right in content["merges"]]
            return cls(
                {pair: N_BYTES + i for i, pair in enumerate(pairs)},
                special_tokens=content["special_tokens"],
                pattern=content["pattern"],
                byte_order=content["byte_order"],
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                "path must be a file written by BPETokenizer.save, got "
                f"{path} ({type(error).__name__}: {error})"
            ) from error


def gpt2_tokenizer(*, download: bool = True) -> BPETokenizer:
    """Return GPT-2's tokenizer, with the vocabulary that OpenAI published.

    tiktoken fetches two files once and keeps them; without a network they
    must lie in its cache already. The merges are then read out of the
    tokens: the two parts of a token are what the earlier merges make of
    its bytes.

    Args:
        download: whether to use the network for what is not in the cache.

    Raises: OSError if the files are neither in the cache nor to be had.
    Source: Radford et al. (2019), section 2.2.
    """
    # Where tiktoken looks; the last one that is set counts.
    folder = Path(tempfile.gettempdir()) / "data-gym-cache"
    for variable in ("DATA_GYM_CACHE_DIR", "TIKTOKEN_CACHE_DIR"):
        folder = Path(os.environ.get(variable, folder))
    urls = [_GPT2_URL + name for name in _GPT2_FILES]
    files = [folder / hashlib.sha1(url.encode()).hexdigest() for url in urls]
    tried = f"the cache {folder}"
    try:
        if not download:
            # tiktoken would delete a damaged file and fetch it again.
            for file, expected in zip(
                files, _GPT2_FILES.values(), strict=True
            ):
                if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
                    raise OSError(f"{file} is damaged")
        else:
            tried += f" and {_GPT2_URL}"
        ranks = tiktoken.get_encoding("gpt2")._mergeable_ranks
    except (OSError, ValueError) as error:
        raise OSError(
            "GPT-2's vocabulary is not available: tried "
            f"{tried}. It is two files, to be stored as "
            + " and ".join(
                f"{file.name} (from {url})"
                for file, url in zip(files, urls, strict=True)
            )
            + f" in {folder}, or in the folder that TIKTOKEN_CACHE_DIR "
            "names. The rest of the book does not need it."
        ) from error
    byte_order = [token[0] for token in ranks if len(token) == 1]
    byte_order.sort(key=lambda byte: ranks[bytes([byte])])
    id_of_byte = {byte: i for i, byte in enumerate(byte_order)}
    merges: dict[Pair, int] = {}
    for token in sorted(ranks, key=ranks.__getitem__)[N_BYTES:]:
        left, right = apply_merges([id_of_byte[b] for b in token], merges)
        merges[left, right] = ranks[token]
    return BPETokenizer(
        merges, special_tokens=(END_OF_TEXT,), byte_order=byte_order
    )


def _apply_merges_with_heap(
    ids: Sequence[int], merges: Mapping[Pair, int]
) -> list[int]:
    """Return what apply_merges does, in n log n steps for n ids.

    The heap offers the pair learned first, the leftmost first. An entry
    whose tokens have been merged otherwise is passed over.
    """
    ids: list[int | None] = list(ids)  # None: part of a token further left
    left = list(range(-1, len(ids) - 1))  # where each one's neighbors are
    right = list(range(1, len(ids) + 1))
    heap: list[tuple[int, int]] = []

    def offer(i: int) -> None:
        if i >= 0 and right[i] < len(ids):
            new_id = merges.get((ids[i], ids[right[i]]))
            if new_id is not None:
                heapq.heappush(heap, (new_id, i))

    for i in range(len(ids)):
        offer(i)
    while heap:
        new_id, i = heapq.heappop(heap)
        j = right[i]
        if j == len(ids) or merges.get((ids[i], ids[j])) != new_id:
            continue
        ids[i], ids[j] = new_id, None
        right[i] = right[j]
        if right[i] < len(ids):
            left[right[i]] = i
        offer(left[i])
        offer(i)
    return [token_id for token_id in ids if token_id is not None]


def _spell_out(
    merges: Mapping[Pair, int], byte_order: Sequence[int]
) -> list[bytes]:
    """Return the bytes of each token, by id."""
    vocabulary = [bytes([byte]) for byte in byte_order]
    n_bytes = N_BYTES
    for (left, right), new_id in merges.items():
        if new_id != len(vocabulary):
            raise ValueError(
                f"merges must count up from {N_BYTES}, got the id {new_id} "
                f"where {len(vocabulary)} is due"
            )
        if not 0 <= min(left, right) <= max(left, right) < new_id:
            raise ValueError(
                "merges must join tokens that exist before, got "
                f"{(left, right)}: {new_id}"
            )
        # Tokens that double in each merge would fill any memory.
        n_bytes += len(vocabulary[left]) + len(vocabulary[right])
        if n_bytes > _MOST_BYTES:
            raise ValueError(
                f"merges must make tokens of at most {_MOST_BYTES:,} bytes "
                f"together, got more at {(left, right)}: {new_id}"
            )
        vocabulary.append(vocabulary[left] + vocabulary[right])
    return vocabulary


def _checked(token_id: int, vocab_size: int) -> int:
    try:
        token_id = operator.index(token_id)  # numpy's and torch's, too
    except TypeError as error:
        raise TypeError(f"ids must be integers, got {token_id!r}") from error
    if not 0 <= token_id < vocab_size:
        raise ValueError(f"ids must be in [0, {vocab_size}), got {token_id}")
    return token_id


def _checked_special_tokens(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(n, str) for n in names):
        raise TypeError(
            f"special_tokens must be a sequence of strings, got {names!r}"
        )
    if "" in names or len(set(names)) < len(names):
        raise ValueError(
            "special_tokens must be different and not empty, "
            f"got {tuple(names)}"
        )
    return tuple(names)


@cache
def _seen_by_tiktoken() -> dict[int, str]:
    """Map characters that tiktoken sorts otherwise to some of its sort.

    Letters, numbers and signs: both libraries bring tables of Unicode, of
    different years.
    """
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    signs, others = set(), {}
    for kind, stand_in in ((r"\p{L}", "x"), (r"\p{N}", "0")):
        engine = tiktoken.Encoding(
            name="only what matches",
            pat_str=kind,
            mergeable_ranks={bytes([i]): i for i in range(N_BYTES)},
            special_tokens={},
        )
        ids = engine.encode_ordinary(everything)
        theirs = set(engine.decode_bytes(ids).decode())
        ours = set(regex.findall(kind, everything))
        signs |= ours - theirs
        others |= dict.fromkeys(theirs - ours, stand_in)
    return str.maketrans(
        dict.fromkeys(signs, "\N{REPLACEMENT CHARACTER}") | others
    )
