"""Executed notebooks: those in the cache and those kept in git."""

import shutil
from pathlib import Path
from typing import NamedTuple

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.db import NbCacheRecord
from nbformat import NotebookNode

from .chapters import Chapter, ChapterError
from .machine import Record

KEPT_METADATA_KEY = "book"


class _Held(NamedTuple):
    """What the cache holds under one key."""

    pk: int  # in the cache; later entries have larger ones
    docname: str
    record: Record | None  # None if there are no outputs
    is_kept: bool  # True if made elsewhere and kept in git


class Cache:
    """The jupyter-cache that MyST-NB reads, with a record of each result.

    MyST-NB looks a notebook up by its cells alone. So an entry made by older
    modules, data or versions must be replaced before MyST-NB reads; whether
    it is, we tell by the fingerprint in the record.
    """

    def __init__(self, path: str) -> None:
        self._cache = get_cache(path)
        self._held: dict[str, _Held] = {}
        for entry in self._cache.list_cache_records():
            if (self._folder(entry.hashkey) / "base.ipynb").exists():
                self._remember(entry)

    def key(self, notebook: NotebookNode) -> str:
        """Return the key under which MyST-NB looks the notebook up."""
        return self._cache.create_hashed_notebook(notebook)[1]

    def record(self, chapter: Chapter) -> Record | None:
        """Return the record of what MyST-NB would show now, if there is."""
        held = self._held.get(self.key(chapter.notebook))
        return held.record if held else None

    def holds(self, chapter: Chapter, record: Record | None) -> bool:
        """Tell whether MyST-NB would show these outputs kept in git."""
        held = self._held.get(self.key(chapter.notebook))
        return held is not None and held.is_kept and held.record == record

    def is_fresh(self, chapter: Chapter) -> bool:
        """Tell whether MyST-NB would show what these inputs gave here."""
        held = self._held.get(self.key(chapter.notebook))
        return held is not None and _was_made_by(held, chapter)

    def find(self, chapter: Chapter) -> tuple[NotebookNode, Record] | None:
        """Look for outputs made from the very same inputs, here.

        They may lie under another key if a caption or a tag has changed.
        """
        for held in self._held.values():
            if _was_made_by(held, chapter):
                return self._cache.get_cache_bundle(held.pk).nb, held.record
        return None

    def put(
        self,
        chapter: Chapter,
        notebook: NotebookNode,
        record: Record | None,
        *,
        is_kept: bool = False,
    ) -> None:
        """Make MyST-NB show this notebook; no record, no outputs."""
        # A folder without its notebook, left when a build was killed, would
        # stop jupyter-cache.
        shutil.rmtree(self._folder(self.key(notebook)), ignore_errors=True)
        data = {
            # The name under which MyST-NB looks for it.
            "execution_seconds": record.seconds if record else 0.0,
            "record": record.as_dict() if record else None,
            "is_kept": is_kept,
        }
        entry = self._cache.cache_notebook_bundle(
            CacheBundleIn(notebook, chapter.docname, data=data),
            check_validity=False,
            overwrite=True,
        )
        self._remember(entry)

    def seconds(self) -> dict[str, float]:
        """Return {docname: seconds} of the last execution of each page."""
        held = sorted(h for h in self._held.values() if h.record)
        return {h.docname: h.record.seconds for h in held}

    def _remember(self, entry: NbCacheRecord) -> None:
        try:
            record = entry.data["record"]
            self._held[entry.hashkey] = _Held(
                pk=entry.pk,
                docname=entry.uri,
                record=Record.from_dict(record) if record else None,
                is_kept=entry.data["is_kept"],
            )
        except (KeyError, TypeError):
            return  # not put by us, or by another version of us

    def _folder(self, key: str) -> Path:
        return self._cache.path / "executed" / key


def _was_made_by(held: _Held, chapter: Chapter) -> bool:
    return (
        held.record is not None
        and not held.is_kept
        and held.record.fingerprint == chapter.inputs.fingerprint
    )


def read_kept(chapter: Chapter) -> tuple[NotebookNode, Record] | None:
    """Read the executed notebook in git, None if there is none.

    Raises: ChapterError if `refresh` did not write it.
    """
    if not chapter.kept_path.exists():
        return None
    notebook = nbformat.read(chapter.kept_path, as_version=4)
    try:
        record = Record.from_dict(notebook.metadata[KEPT_METADATA_KEY])
    except (KeyError, TypeError):
        raise ChapterError(
            f"{chapter.docname}: {chapter.kept_path} must be written by "
            f"{chapter.refresh_command}"
        ) from None
    return notebook, record


def write_kept(
    chapter: Chapter, executed: NotebookNode, record: Record
) -> None:
    """Write an executed notebook for git: code cells, outputs, record.

    Equal outputs give equal bytes: the ids of the cells are their places,
    keys are sorted, and only metadata of known meaning stays.
    """
    cells = [
        nbformat.v4.new_code_cell(
            id=f"cell-{place}",
            source=cell.source,
            outputs=cell.outputs,
            execution_count=cell.execution_count,
            metadata={k: v for k, v in cell.metadata.items() if k == "tags"},
        )
        for place, cell in enumerate(
            c for c in executed.cells if c.cell_type == "code"
        )
    ]
    metadata = {
        key: executed.metadata[key]
        for key in ("kernelspec", "language_info", "widgets")
        if key in executed.metadata
    }
    metadata[KEPT_METADATA_KEY] = record.as_dict()
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    chapter.kept_path.parent.mkdir(parents=True, exist_ok=True)
    new = chapter.kept_path.with_suffix(".new")
    nbformat.write(notebook, new)
    new.replace(chapter.kept_path)
