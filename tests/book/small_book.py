"""A small book in a temporary folder, to test what a build executes."""

import contextlib
import html
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import book_execution
from sphinx.cmd.build import build_main

EXTENSIONS = Path(book_execution.__file__).parents[1]
CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["myst_nb", "book_execution"]
nb_execution_mode = "cache"
nb_execution_timeout = 60
root_doc = "book/index"
exclude_patterns = ["_build", "book/_executed"]
project = "Small book"
html_theme = "basic"
"""
CHAPTER = """\
---
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
{front_matter}
---

# Chapter {name}

Some prose.

```{{code-cell}} ipython3
:tags: [remove-input]

import os
with open(os.environ["SMALL_BOOK_RUNS"], "a") as runs:
    print("{name}", file=runs)
```

```{{code-cell}} ipython3
:tags: []

{code}
```
"""


class Built(NamedTuple):
    status: int  # exit status of the build
    output: str  # all that it said
    executed: list[str]  # chapters, in the order in which they began


class SmallBook:
    """A book whose chapters note in a file that they were executed.

    Builds run in this process, as those of a live preview do.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder.resolve() / "root"
        self._runs = folder / "runs"
        self.write("conf.py", CONF)
        self.write(
            "book/index.md",
            "# Index\n\n```{toctree}\n:glob:\n\npart/*\nbuilt\n```\n",
        )
        self.write("book/built.md", "# Built\n\n```{execution-table}\n```\n")

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SMALL_BOOK_RUNS": str(self._runs),
            "PYTHONPATH": str(self.root / "src"),
        }

    def path(self, name: str) -> Path:
        return self.root / name

    def write(self, name: str, text: str) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")

    def replace(self, name: str, old: str, new: str) -> None:
        text = self.path(name).read_text(encoding="utf8")
        assert old in text
        self.write(name, text.replace(old, new))

    def chapter(self, name: str, code: str, *, front_matter: str = "") -> None:
        """Add book/part/<name>.md."""
        self.write(
            f"book/part/{name}.md",
            CHAPTER.format(name=name, code=code, front_matter=front_matter),
        )

    def build(self, *options: str) -> Built:
        """Build as `sphinx-build` does; "-W" and the like are options."""
        arguments = ["-b", "html", *options]
        arguments += [str(self.root), str(self.path("_build/html"))]
        before = len(self.runs())
        with self._here(), _heard() as output:
            status = build_main([*arguments, "--no-color"])
        return Built(status, output.getvalue(), self.runs()[before:])

    def refresh(self, *arguments: str) -> Built:
        """Run `python -m book_execution refresh` in this process."""
        from book_execution.__main__ import main

        before = len(self.runs())
        with self._here(), _heard() as output:
            try:
                status = main(["refresh", *arguments])
            except SystemExit as end:
                status = end.code
        return Built(status, output.getvalue(), self.runs()[before:])

    def page(self, name: str) -> str:
        """Return the text of a built page, with one space between words."""
        source = self.path(f"_build/html/book/{name}.html").read_text("utf8")
        text = html.unescape(re.sub(r"<[^>]*>", "", source))
        return " ".join(text.split())

    def runs(self) -> list[str]:
        if not self._runs.exists():
            return []
        return self._runs.read_text().split()

    @contextlib.contextmanager
    def _here(self):
        before, folder = dict(os.environ), os.getcwd()
        os.environ.update(self.variables)
        os.chdir(self.root)
        try:
            yield
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def _heard():
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        yield output
