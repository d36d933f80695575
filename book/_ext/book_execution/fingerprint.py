"""What decides the outputs of a chapter: cells, code, data, environment."""

import ast
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

SOURCE_FOLDER = "src"
PACKAGES = ("torch", "numpy", "matplotlib")
# The tags that change what is executed; all others only change the look.
EXECUTION_TAGS = {"skip-execution", "raises-exception"}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that decides what the cells of one chapter print.

    Paths are relative to the root of the book, digests are sha256.
    """

    cells: str  # digest of the code cells, in order
    modules: dict[str, str]  # path -> digest
    files: dict[str, str]  # path -> digest
    environment: dict[str, str]  # name -> version

    @property
    def fingerprint(self) -> str:
        return _digest(json.dumps(asdict(self), sort_keys=True).encode())

    def covers(self, path: str) -> bool:
        return path in self.modules or path in self.files

    def changes_since(self, earlier: "Inputs") -> list[str]:
        """Name the modules, files and versions that differ, sorted."""
        changes = []
        for kind in ("modules", "files", "environment"):
            old, new = getattr(earlier, kind), getattr(self, kind)
            for name in sorted(old.keys() | new.keys()):
                before, now = old.get(name), new.get(name)
                if before == now:
                    continue
                if kind == "environment":
                    name = f"{name} ({before}, now {now})"
                elif now is None:
                    name = f"{name} (no longer used)"
                changes.append(name)
        return changes


def collect_inputs(
    notebook: NotebookNode, *, folder: Path, root: Path, reads: Iterable[str]
) -> Inputs:
    """Find all that decides the outputs of a notebook.

    Modules are followed through their own imports, as far as they lie in
    the source folder or beside the chapter. A file is found when a string in
    the cells or in these modules names it, relative to the chapter, to the
    root or to the module; or when `reads` does.

    Args:
        folder: where the chapter lies, and where it is executed.
        root: the book; only files in it are inputs.
        reads: glob patterns relative to root, from the front matter.

    Raises: ValueError if a pattern of reads matches no file.
    """
    modules, files = {}, {}
    search = (root / SOURCE_FOLDER, folder)
    cells = [c.source for c in notebook.cells if c.cell_type == "code"]
    found = [_parse_cell(source) for source in cells]
    todo = [(_merge(found), folder)]
    while todo:
        code, beside = todo.pop()
        for literal in code.literals:
            for base in (folder, root, beside):
                if is_input(path := base / literal, root):
                    files[_relative(path, root)] = _file_digest(path)
        for path in _module_files(code.imports, search):
            name = _relative(path, root)
            if name not in modules:
                text = path.read_bytes()
                modules[name] = _digest(text)
                package = _package_of(path, search)
                todo.append((_parse_module(text, package), path.parent))
    for pattern in reads:
        matches = [p for p in root.glob(pattern) if is_input(p, root)]
        if not matches:
            raise ValueError(
                f"reads must name files relative to the root of the book, "
                f"got {pattern!r}"
            )
        files |= {_relative(p, root): _file_digest(p) for p in matches}
    return Inputs(
        cells=cells_digest(notebook),
        modules=modules,
        files=files,
        environment=environment(),
    )


def cells_digest(notebook: NotebookNode) -> str:
    """Digest what the kernel gets: code, in order, and for which kernel.

    A caption, an alternative text or a tag that hides a cell is prose: it
    lies in the metadata of a code cell, but does not enter.
    """
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    cells = [
        [c.source, sorted(EXECUTION_TAGS & set(c.metadata.get("tags", [])))]
        for c in notebook.cells
        if c.cell_type == "code"
    ]
    return _digest(json.dumps([kernel, cells]).encode())


def environment() -> dict[str, str]:
    """Return the versions that outputs depend on.

    Of "2.13.0+cu128" only "2.13.0" counts, so that one release is the same
    on every kind of hardware.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    versions = installed_versions(PACKAGES)
    public = {name: v.partition("+")[0] for name, v in versions.items()}
    return {"python": python} | public


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return {package: version}, leaving out what is not installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def is_input(path: Path, root: Path) -> bool:
    """Tell whether path is a file of the book, not of a tool or a build."""
    try:
        parts = path.resolve().relative_to(root).parts
        return path.is_file() and not any(
            part.startswith(".")
            or part in ("_build", "__pycache__")
            or part.endswith(".egg-info")
            for part in parts
        )
    except (OSError, ValueError):  # elsewhere, or a string that is no path
        return False


class _Code(NamedTuple):
    imports: frozenset[str]  # dotted names, some of which may be attributes
    literals: frozenset[str]  # strings that could be the name of a file


def _parse_cell(source: str) -> _Code:
    source = re.sub(r"\A\s*%%.*", "", source)  # "%%time" hides what follows
    try:
        return _parse_module(TransformerManager().transform_cell(source), "")
    except SyntaxError:  # its execution will say so
        return _Code(frozenset(), frozenset())


@lru_cache(maxsize=1024)
def _parse_module(source: str | bytes, package: str) -> _Code:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return _Code(frozenset(), frozenset())
    imports, literals = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            imports |= {base} | {f"{base}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if 0 < len(node.value) < 256 and "\n" not in node.value:
                literals.add(node.value)
    return _Code(frozenset(imports), frozenset(literals))


def _merge(codes: list[_Code]) -> _Code:
    return _Code(
        frozenset().union(*(code.imports for code in codes)),
        frozenset().union(*(code.literals for code in codes)),
    )


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the dotted name that `from ... import` imports from.

    One leading dot means the package itself, each further one its parent.
    """
    if node.level == 0:
        return node.module or ""
    parents = package.split(".")[: 1 - node.level or None]
    return ".".join([*parents, *filter(None, [node.module])])


def _package_of(path: Path, search: Iterable[Path]) -> str:
    for base in search:
        if path.is_relative_to(base):
            return ".".join(path.relative_to(base).parent.parts)
    return ""


def _module_files(
    names: Iterable[str], search: Iterable[Path]
) -> Iterator[Path]:
    """Yield the files that importing these names executes, parents too."""
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            for base in search:
                stem = base.joinpath(*parts[:depth])
                for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                    if path.is_file():
                        yield path


def _relative(path: Path, root: Path) -> str:
    return path.resolve().relative_to(root).as_posix()


def _file_digest(path: Path) -> str:
    return _digest(path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
