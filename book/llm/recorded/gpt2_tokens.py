"""What GPT-2's tokenizer makes of the chapter's lines, and is ours equal?

    python book/llm/recorded/gpt2_tokens.py

needs GPT-2's vocabulary in tiktoken's cache, or the network once. It encodes
the lines and samples below with tiktoken, compares our own encoder with
tiktoken on them and on 27 000 generated strings, and writes gpt2_tokens.json
beside this file. It takes under a minute. The chapter on tokenization shows
the result.
"""

import argparse
import json
import platform
import random
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import tiktoken

from scratch.llm.tokenization import (
    END_OF_TEXT,
    BPETokenizer,
    gpt2_tokenizer,
)

TARGET = Path(__file__).with_suffix(".json")
SEED = 0
N_EACH = 3000  # generated strings of each kind
LONGEST = 24  # parts of a generated string

LINES = [
    "Return the sum of the elements.",
    "Hello, world!",
    "  Hello,",
    "sum sum Sum SUM",
    "    return x",
    "1 12 123 1234 12345 123456",
    "I don't. I DON'T.",
    "naïve café",
    "SolidGoldMagikarp",
    " SolidGoldMagikarp",
    "👍🏽",
    END_OF_TEXT,
]

# One text, written in several ways.
SAMPLES = {
    "English": (
        "The function returns the sum of all elements. If the list is "
        "empty, the result is zero."
    ),
    "Python": (
        "def total(elements):\n    result = 0\n    for x in elements:\n"
        "        result += x\n    return result\n"
    ),
    "German": (
        "Die Funktion gibt die Summe aller Elemente zurück. Ist die Liste "
        "leer, so ist das Ergebnis null."
    ),
    "Spanish": (
        "La función devuelve la suma de todos los elementos. Si la lista "
        "está vacía, el resultado es cero."
    ),
    "Russian": (
        "Функция возвращает сумму всех элементов. Если список пуст, "
        "результат равен нулю."
    ),
    "Greek": (
        "Η συνάρτηση επιστρέφει το άθροισμα όλων των στοιχείων. Αν η λίστα "  # noqa: RUF001
        "είναι κενή, το αποτέλεσμα είναι μηδέν."
    ),
    "Hindi": (
        "यह फ़ंक्शन सभी तत्वों का योग लौटाता है। यदि सूची खाली हो, तो परिणाम "
        "शून्य होता है।"
    ),
    "Japanese": (
        "この関数はすべての要素の合計を返します。"
        "リストが空の場合、結果はゼロです。"
    ),
    "emoji": "😀 🎉 👍🏽 👩‍💻 🇯🇵 ❤️ 🚀 🤖",
}

_WORDS = "the sum of elements Return tensor naïve Straße файл 要素".split()
_SPACES = [" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\xa0", "\u3000"]
_EMOJI = [*"😀🎉👍🤖🚀❤🇯🇵👩💻", "🏽", "\u200d", "\ufe0f"]
_ENDINGS = "s d m t ll ve re S D M T LL VE RE".split()
_MARKS = ["'", "\u2019", "''", "' "]


def any_character(draw: random.Random) -> str:
    """Return a code point that UTF-8 can hold, rare ones included."""
    code = draw.choice(
        [draw.randrange(0x800), draw.randrange(0x110000 - 2048)]
    )
    return chr(code if code < 0xD800 else code + 2048)  # no surrogates


def contraction(draw: random.Random) -> str:
    return (
        draw.choice([*_WORDS, "I", "DON", ""])
        + draw.choice(_MARKS)
        + draw.choice(_ENDINGS)
    )


def number(draw: random.Random) -> str:
    digits = str(draw.randrange(10 ** draw.randint(1, 12)))
    return draw.choice(["", "-", " ", "$", "0x", "½", "٣"]) + digits


def spaced_word(draw: random.Random) -> str:
    return draw.choice(["", *_SPACES]) + draw.choice(_WORDS)


PARTS: dict[str, Callable[[random.Random], str]] = {
    "any characters": any_character,
    "ASCII": lambda draw: chr(draw.randrange(128)),
    "words and spaces": spaced_word,
    "spaces alone": lambda draw: draw.choice(_SPACES),
    "numbers": number,
    "emoji": lambda draw: draw.choice(_EMOJI),
    "contractions": contraction,
    "long runs": lambda draw: draw.choice("ab5- é") * draw.randint(1, 60),
    "special token": lambda draw: draw.choice(
        [END_OF_TEXT, "<|", "|>", "endoftext", " ", "\n", "a"]
    ),
}


def generated(kind: str, n: int = N_EACH) -> list[str]:
    """Return n random strings of a kind, the same ones each time."""
    draw = random.Random(f"{kind} {SEED}")
    part = PARTS[kind]
    return [
        "".join(part(draw) for _ in range(draw.randint(1, LONGEST)))
        for _ in range(n)
    ]


def is_equal(ours: BPETokenizer, theirs: tiktoken.Encoding, text: str) -> bool:
    """Say whether both give the same ids and text, in both modes."""
    plain = ours.encode(text)
    special = ours.encode(text, allow_special=True)
    return (
        plain == theirs.encode_ordinary(text)
        and special == theirs.encode(text, allowed_special="all")
        and ours.decode(plain) == ours.decode(special) == text
    )


def encoded(theirs: tiktoken.Encoding, text: str) -> dict:
    ids = theirs.encode_ordinary(text)
    tokens = [theirs.decode_single_token_bytes(i).hex() for i in ids]
    return {"text": text, "ids": ids, "tokens": tokens}


def run() -> dict:
    theirs = tiktoken.get_encoding("gpt2")
    ours = gpt2_tokenizer()
    strings = {
        "this page's lines": [*LINES, *SAMPLES.values()],
        **{kind: generated(kind) for kind in PARTS},
    }
    return {
        "date": date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "tiktoken": version("tiktoken"),
            "regex": version("regex"),
        },
        "vocab_size": ours.vocab_size,
        "compared": {kind: len(texts) for kind, texts in strings.items()},
        "equal": {
            kind: sum(is_equal(ours, theirs, text) for text in texts)
            for kind, texts in strings.items()
        },
        "lines": [encoded(theirs, text) for text in LINES],
        "samples": {
            name: encoded(theirs, text) for name, text in SAMPLES.items()
        },
    }


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    TARGET.write_text(json.dumps(run(), indent=1) + "\n", encoding="utf8")
