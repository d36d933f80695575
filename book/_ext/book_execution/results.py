"""Executed notebooks: those in the cache and those kept in git."""

import shutil
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.db import NbCacheRecord
from nbformat import NotebookNode

from .chapters import Chapter, ChapterError
from .machine import Record

KEPT_METADATA_KEY = "book"


class Cache:
    """The jupyter-cache that MyST-NB reads, with a record of each result.

    MyST-NB looks a notebook up by its cells alone. So an entry made by older
    modules, data or versions must be replaced before MyST-NB reads; whether
    it is, we tell by the fingerprint in the record.
    """

    def __init__(self, path: str) -> None:
        self._cache = get_cache(path)
        self._entries = {
            entry.hashkey: entry
            for entry in self._cache.list_cache_records()
            if "record" in (entry.data or {})
            and (self._folder(entry.hashkey) / "base.ipynb").exists()
        }

    def key(self, notebook: NotebookNode) -> str:
        """Return the key under which MyST-NB looks the notebook up."""
        return self._cache.create_hashed_notebook(notebook)[1]

    def record(self, chapter: Chapter) -> Record | None:
        """Return the record of what MyST-NB would show now, if there is."""
        entry = self._entries.get(self.key(chapter.notebook))
        if entry is None or entry.data["record"] is None:
            return None
        return Record.from_dict(entry.data["record"])

    def is_fresh(self, chapter: Chapter) -> bool:
        """Tell whether MyST-NB would show what these inputs gave here."""
        entry = self._entries.get(self.key(chapter.notebook))
        return entry is not None and _was_made_by(entry, chapter)

    def find(self, chapter: Chapter) -> tuple[NotebookNode, Record] | None:
        """Look for outputs made from the very same inputs, here."""
        for entry in self._entries.values():
            if _was_made_by(entry, chapter):
                notebook = self._cache.get_cache_bundle(entry.pk).nb
                return notebook, Record.from_dict(entry.data["record"])
        return None

    def holds(self, chapter: Chapter, record: Record, *, kept: bool) -> bool:
        entry = self._entries.get(self.key(chapter.notebook))
        return entry is not None and entry.data == _data(record, kept)

    def put(
        self,
        chapter: Chapter,
        notebook: NotebookNode,
        record: Record | None,
        *,
        kept: bool = False,
    ) -> None:
        """Make MyST-NB show this notebook; no record, no outputs."""
        # A folder without its notebook, left when a build was killed, would
        # stop jupyter-cache.
        shutil.rmtree(self._folder(self.key(notebook)), ignore_errors=True)
        entry = self._cache.cache_notebook_bundle(
            CacheBundleIn(notebook, chapter.docname, data=_data(record, kept)),
            check_validity=False,
            overwrite=True,
        )
        self._entries[entry.hashkey] = entry

    def seconds(self) -> dict[str, float]:
        """Return {docname: seconds} of the last execution of each page."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.pk)
        return {
            entry.uri: entry.data["execution_seconds"] for entry in entries
        }

    def _folder(self, key: str) -> Path:
        return self._cache.path / "executed" / key


def _was_made_by(entry: NbCacheRecord, chapter: Chapter) -> bool:
    record = entry.data["record"]
    return (
        record is not None
        and not entry.data["kept"]
        and record["fingerprint"] == chapter.inputs.fingerprint
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


def _data(record: Record | None, kept: bool) -> dict:
    return {
        # The name under which MyST-NB looks for it.
        "execution_seconds": record.seconds if record else 0.0,
        "record": record.as_dict() if record else None,
        "kept": kept,
    }
