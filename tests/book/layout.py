"""Where the book's files lie, and the order in which its chapters come."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
PARTS = ("nn", "llm", "beyond")

# Each chapter's module, in the order of the book. A chapter with more than
# one module names them all; the first has the chapter's own name.
CURRICULUM = (
    ("nn/neuron",),
    ("nn/activations",),
    ("nn/forward_propagation",),
    ("nn/losses",),
    ("nn/backpropagation", "nn/autograd"),
    ("nn/gradient_descent", "nn/optimizers"),
    ("llm/tokenization",),
    ("llm/embeddings",),
    ("llm/self_attention",),
    ("llm/multi_head_attention",),
    ("llm/feed_forward",),
    ("llm/transformer_block",),
    ("llm/gpt", "llm/gpt2_weights"),
    ("llm/training",),
    ("llm/generation",),
    ("llm/classification",),
    ("llm/instruction_tuning",),
)

# Support modules under the chapters import none of them; those above may
# import any. One that stands between them may import up to the chapter that
# is named, and may be imported from the next one on.
BELOW = ("plotting", "reproducibility", "data")
BETWEEN = {"checkpoints": "llm/gpt"}
ABOVE = ("exercises", "presets", "pretrained", "__main__")


@dataclass(frozen=True)
class Problem:
    """One thing to mend: where it is, and what to do."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def assert_none(problems: list[Problem]) -> None:
    """Fail a test with one line per problem."""
    if problems:
        pytest.fail("\n".join(map(str, problems)), pytrace=False)


def toc_pages(toc: str) -> list[str]:
    """Return the pages that a _toc.yml names, in order, the root first.

    >>> toc_pages("root: book/index\\nchapters: [{file: book/nn/01_neuron}]")
    ['book/index', 'book/nn/01_neuron']
    """

    def walk(node: object) -> list[str]:
        if isinstance(node, list):
            return [page for item in node for page in walk(item)]
        if not isinstance(node, dict):
            return []
        own = [node[key] for key in ("root", "file") if key in node]
        return own + [page for value in node.values() for page in walk(value)]

    return [page.removesuffix(".md") for page in walk(yaml.safe_load(toc))]


def pages() -> list[str]:
    """Return the pages of this book."""
    return toc_pages((ROOT / "_toc.yml").read_text(encoding="utf8"))


def is_chapter(page: str) -> bool:
    """Say whether a page is a chapter: whether it lies in a part's folder.

    >>> is_chapter("book/nn/01_neuron"), is_chapter("book/notation")
    (True, False)
    """
    parts = page.split("/")
    return len(parts) == 3 and parts[0] == "book" and parts[1] in PARTS


def chapter_name(page: str) -> str:
    """Return the part and the name of a chapter, without its number.

    >>> chapter_name("book/llm/03_self_attention")
    'llm/self_attention'
    """
    part, name = page.split("/")[-2:]
    return f"{part}/{re.sub(r'^[0-9]+_', '', name)}"


def chapter_modules(page: str) -> tuple[str, ...]:
    """Return the modules of a chapter; one not in the table has its own name.

    >>> chapter_modules("book/nn/05_backpropagation")
    ('nn/backpropagation', 'nn/autograd')
    """
    name = chapter_name(page)
    for modules in CURRICULUM:
        if modules[0] == name:
            return modules
    return (name,)
