"""The chapters of the book: pages with code cells, and what they declare."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

from .fingerprint import Inputs, collect_inputs

KEPT_FOLDER = "book/_executed"
FRONT_MATTER_KEY = "book"
NETWORK_VARIABLE = "BOOK_NETWORK"


class ChapterError(SphinxError):
    """A chapter cannot be shown as it is; the build stops."""

    category = "Chapter error"


@dataclass(frozen=True)
class Chapter:
    """One page that is executed.

    Its front matter may say, under the key `book`:

        runs-on: gpu      executed by `make gpu` only, outputs kept in git
        runs-on: network  the same, unless BOOK_NETWORK=1 says there is one
        reads: [...]      files that no string in its code names, as glob
                          patterns relative to the root of the book
    """

    docname: str
    path: Path
    root: Path
    notebook: NotebookNode
    config: NbParserConfig
    runs_on: str  # "cpu", "gpu" or "network"
    reads: tuple[str, ...]

    @cached_property
    def inputs(self) -> Inputs:
        try:
            return self.inputs_now()
        except ValueError as error:
            raise ChapterError(f"{self.docname}: {error}") from None

    def inputs_now(self) -> Inputs:
        """Read all inputs again; they may change while a chapter runs."""
        return collect_inputs(
            self.notebook,
            folder=self.path.parent,
            root=self.root,
            reads=self.reads,
        )

    @property
    def code(self) -> list[tuple[str, dict]]:
        """What MyST-NB looks a chapter up by: (source, metadata) of cells."""
        return [
            (c.source, c.metadata)
            for c in self.notebook.cells
            if c.cell_type == "code"
        ]

    @property
    def has_code(self) -> bool:
        return bool(self.code)

    @property
    def is_kept(self) -> bool:
        """True if this build shows outputs kept in git."""
        return self.runs_on != "cpu" and not self.need_is_met

    @property
    def need_is_met(self) -> bool:
        has_network = os.environ.get(NETWORK_VARIABLE) == "1"
        return self.runs_on == "network" and has_network

    @property
    def kept_path(self) -> Path:
        """book/llm/gpt -> book/_executed/llm/gpt.ipynb"""
        folder = PurePosixPath(KEPT_FOLDER)
        page = PurePosixPath(self.docname)
        if page.is_relative_to(folder.parent):
            page = page.relative_to(folder.parent)
        return self.root / folder / f"{page}.ipynb"

    @property
    def refresh_command(self) -> str:
        if self.runs_on == "network":
            return f"`{NETWORK_VARIABLE}=1 make gpu PRESET=cpu`"
        return "`make gpu`, or without a GPU `make gpu PRESET=cpu`"

    def line_of(self, cell_index: int) -> int:
        """Return the line of the page on which a cell begins."""
        lines = self.notebook.metadata.get("source_map", [])
        return lines[cell_index] if cell_index < len(lines) else 0

    def with_outputs_of(self, executed: NotebookNode) -> NotebookNode:
        """Return this chapter's notebook with the outputs of another.

        Both must have equal code cells; captions and tags are ours.
        """
        notebook = copy.deepcopy(self.notebook)
        notebook.cells = [c for c in notebook.cells if c.cell_type == "code"]
        donors = [c for c in executed.cells if c.cell_type == "code"]
        for cell, donor in zip(notebook.cells, donors, strict=True):
            cell.outputs = donor.outputs
            cell.execution_count = donor.execution_count
        for key in ("language_info", "widgets"):
            if key in executed.metadata:
                notebook.metadata[key] = executed.metadata[key]
        return notebook


def read_chapters(app: Sphinx) -> list[Chapter]:
    """Read all pages with code cells that MyST-NB will take from the cache.

    Call after Sphinx has found the pages.
    Raises: ChapterError if a page would be executed by MyST-NB itself, or
        if its front matter is wrong.
    """
    chapters = []
    for docname in sorted(app.env.found_docs):
        chapter = read_chapter(app, docname)
        if chapter is not None:
            chapters.append(chapter)
    return chapters


def read_chapter(app: Sphinx, docname: str) -> Chapter | None:
    """Read one page, None if it is not to be executed."""
    path = Path(app.env.doc2path(docname))
    text = path.read_text(encoding="utf-8-sig")
    config = app.env.mystnb_config
    # The reader of MyST-NB itself, or the cache would be asked for another
    # notebook than the one we put there.
    reader = create_nb_reader(str(path), app.env.myst_config, config, text)
    if reader is None:
        return None
    notebook = reader.read(text)
    overrides = dict(notebook.metadata.get(config.metadata_key, {}))
    overrides.pop("output_folder", None)
    config = config.copy(**overrides)
    page = PurePosixPath(path.as_posix())
    if config.execution_mode == "off" or any(
        page.match(pattern) for pattern in config.execution_excludepatterns
    ):
        return None
    if config.execution_mode != "cache":
        raise ChapterError(
            f"{docname}: execution_mode must be cache or off, "
            f"got {config.execution_mode}"
        )
    runs_on, reads = _declared(docname, notebook.metadata)
    root = Path(app.srcdir).resolve()
    return Chapter(docname, path, root, notebook, config, runs_on, reads)


def _declared(docname: str, metadata: Mapping) -> tuple[str, tuple]:
    """Return runs-on and reads of the front matter, checked."""
    declared = metadata.get(FRONT_MATTER_KEY, {})
    unknown = set(declared) - {"runs-on", "reads"}
    if unknown:
        raise ChapterError(
            f"{docname}: the keys of {FRONT_MATTER_KEY} must be runs-on or "
            f"reads, got {', '.join(sorted(unknown))}"
        )
    runs_on = declared.get("runs-on", "cpu")
    if runs_on not in ("cpu", "gpu", "network"):
        raise ChapterError(
            f"{docname}: runs-on must be cpu, gpu or network, got {runs_on}"
        )
    reads = declared.get("reads", [])
    if not isinstance(reads, list):
        raise ChapterError(f"{docname}: reads must be a list, got {reads}")
    return runs_on, tuple(reads)
