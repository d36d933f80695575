"""The documentation corpus: what installed Python libraries say of themselves.

Sources are read as text and parsed with ast; none is imported or run.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from filelock import FileLock

LIBRARIES = ("python", "torch", "numpy", "scipy", "sklearn", "matplotlib")
VALIDATION_SHARE = 0.1  # part of the texts that is held out
SHORTEST = 30  # characters; what is shorter says little
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where it is not the import name
# Tests, other installed libraries, and copies of other people's libraries.
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_SKIPPED |= {"_vendor", "externals"}
# Functions by which a library documents what is written in C.
_ADDERS = {"add_docstr", "add_docstr_all", "_add_docstr", "add_newdoc"}


class Entry(NamedTuple):
    """One text of a corpus and where it comes from."""

    library: str  # import name, or "python" for the standard library
    module: str  # "json.decoder"
    name: str  # qualified within the module: "JSONDecoder.decode", or ""
    kind: str  # "module", "class", "function", "method" or "file"
    signature: str  # "(self, s)", or "" where there is none
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the text is for validation; depends on nothing else."""
        return int(_digest(self.text)[:8], 16) < VALIDATION_SHARE * 2**32


@dataclass(frozen=True)
class Corpus:
    """Texts of several libraries, no two alike, each in one of two parts."""

    entries: tuple[Entry, ...]
    versions: dict[str, str]  # of each library that was read
    missing: tuple[str, ...] = ()  # libraries that are not installed

    @property
    def train(self) -> list[Entry]:
        """The entries to learn from."""
        return [entry for entry in self.entries if not entry.held_out]

    @property
    def validation(self) -> list[Entry]:
        """The entries to be judged on, about a tenth."""
        return [entry for entry in self.entries if entry.held_out]

    def statistics(self) -> str:
        """Return a table of what the corpus holds, in texts and megabytes.

        A megabyte is 10^6 bytes of UTF-8; lengths are in characters.
        """
        rows = [("library", "version", "texts", "MB", "median", "validation")]
        for library, version in self.versions.items():
            own = [e for e in self.entries if e.library == library]
            rows.append((library, version, *_measures(own)))
        rows.append(("all", "", *_measures(self.entries)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  "
            + "  ".join(
                f"{cell:>{width}}"
                for cell, width in zip(row[2:], widths[2:], strict=True)
            )
            for row in rows
        ]
        if self.missing:
            lines.append(f"not installed: {', '.join(self.missing)}")
        return "\n".join(lines)


def documentation(
    libraries: Sequence[str] = LIBRARIES, *, cache: Path | str | None = None
) -> Corpus:
    """Return the docstrings of installed libraries, cleaned, none twice.

    The first call takes about half a minute and writes what it found to
    the cache, under a name made from the versions of the libraries (or,
    where one has none, its files). Later calls read that file. Two
    processes may call at once. A library that is not installed is left
    out, with a warning that names it.

    Args:
        libraries: import names; "python" is the standard library.
        cache: folder for the file, by default $SCRATCH_CACHE, else
            $XDG_CACHE_HOME/scratch, else ~/.cache/scratch.

    Raises: ValueError if none is installed, a name comes twice, or the
        cache cannot be written.
    """
    roots, missing = _find(libraries)
    versions = {library: _version(library) for library in roots}
    folder = _cache_folder() if cache is None else Path(cache)
    _check_writable(folder)
    path = folder / f"documentation-{_fingerprint(roots, versions)}.jsonl"
    with FileLock(path.with_suffix(".lock")):
        entries = _read_cache(path)
        if entries is None:
            found = _docstrings(roots)
            entries = _without_duplicates(found)
            _write_cache(path, entries)
    return Corpus(entries, versions, missing)


def source_code(libraries: Sequence[str] = LIBRARIES) -> Corpus:
    """Return the Python source files of installed libraries, none twice.

    About five times the text of documentation(), for training at scale.
    Tests are left out. Reading takes seconds, so nothing is cached. A
    library that is not installed is left out, with a warning.

    Args:
        libraries: import names; "python" is the standard library.

    Raises: ValueError if none is installed or a name comes twice.
    """
    roots, missing = _find(libraries)
    found = (
        Entry(library, module, "", "file", "", source)
        for library, root in roots.items()
        for module, source in _sources(library, root)
    )
    entries = _without_duplicates(found)
    versions = {library: _version(library) for library in roots}
    return Corpus(entries, versions, missing)


def _measures(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Format the number of texts, megabytes, median length and held out."""
    size = sum(len(entry.text.encode()) for entry in entries)
    middle = median(len(entry.text) for entry in entries) if entries else 0
    held_out = sum(entry.held_out for entry in entries)
    return (
        f"{len(entries):,}",
        f"{size / 1e6:.2f}",
        f"{middle:,.0f}",
        f"{held_out:,}",
    )


def _find(libraries: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the folder of each installed library, and those missing."""
    if isinstance(libraries, str) or len(set(libraries)) < len(libraries):
        raise ValueError(
            "libraries must be a sequence of different import names, "
            f"got {libraries!r}"
        )
    roots = {}
    for library in libraries:
        if library == "python":
            roots[library] = Path(sysconfig.get_paths()["stdlib"])
        # A name with a dot would import what stands before the dot.
        elif library.isidentifier() and (
            spec := importlib.util.find_spec(library)
        ):
            places = spec.submodule_search_locations or [spec.origin]
            if Path(places[0]).exists():  # not what is built into Python
                roots[library] = Path(places[0])
    missing = tuple(name for name in libraries if name not in roots)
    if not roots:
        raise ValueError(
            "libraries must name at least one installed library, "
            f"got {tuple(libraries)}"
        )
    if missing:
        warnings.warn(
            "not installed as Python source and left out: "
            f"{', '.join(missing)}",
            stacklevel=3,
        )
    return roots, missing


def _version(library: str) -> str:
    if library == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _sources(library: str, root: Path) -> Iterator[tuple[str, str]]:
    """Yield module name and text of each readable source file, in order."""
    prefix = () if library == "python" else (library,)
    for file in _files(root):
        parts = () if file == root else file.relative_to(root).parts
        parts = prefix + tuple(part.removesuffix(".py") for part in parts)
        if parts[-1] == "__init__":
            parts = parts[:-1]
        try:
            source = importlib.util.decode_source(file.read_bytes())
            source.encode()
        except (OSError, UnicodeError, SyntaxError):
            continue
        yield ".".join(parts), source


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return [
        file
        for file in sorted(root.rglob("*.py"))
        if file.is_file()
        and not _SKIPPED.intersection(file.relative_to(root).parts)
    ]


def _docstrings(roots: dict[str, Path]) -> Iterator[Entry]:
    for library, root in roots.items():
        for module, source in _sources(library, root):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of their escapes
                    found = list(_documented(ast.parse(source), module))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            for place, name, kind, signature, text in found:
                text = _clean(text)
                if len(text) >= SHORTEST:
                    yield Entry(library, place, name, kind, signature, text)


class _Docstring(NamedTuple):
    """A docstring as it stands in a source file."""

    module: str
    name: str
    kind: str
    signature: str
    text: str


def _documented(
    node: ast.AST, module: str, name: str = "", parent: str = "module"
) -> Iterator[_Docstring]:
    """Yield the docstrings of a node and of all that it holds, in order."""
    kind = parent
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if isinstance(node, ast.ClassDef):
        kind = "class"
    elif is_function:
        kind = "method" if parent == "class" else "function"
    if is_function or isinstance(node, ast.ClassDef):
        name = f"{name}.{node.name}" if name else node.name
    elif isinstance(node, ast.Expr):
        yield from _added(node.value, module)
    elif isinstance(node, ast.Assign):  # cholesky = add_docstr(...)
        for found in _added(node.value, module):
            target = ast.unparse(node.targets[0])
            yield found._replace(module=module, name=target)
    if (is_function or isinstance(node, ast.ClassDef | ast.Module)) and (
        text := ast.get_docstring(node, clean=False)
    ):
        signature = f"({ast.unparse(node.args)})" if is_function else ""
        yield _Docstring(module, name, kind, signature, text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _documented(child, module, name, kind)


def _added(call: ast.expr, module: str) -> Iterator[_Docstring]:
    """Yield the docstring that a call gives to something written in C.

    Such as add_docstr(torch.abs, "...") or add_newdoc("airy", "...").
    """
    if not isinstance(call, ast.Call):
        return
    adder = getattr(call.func, "attr", getattr(call.func, "id", ""))
    parts = [
        part
        for arg in call.args
        for part in (arg.elts if isinstance(arg, ast.Tuple) else [arg])
    ]
    if adder not in _ADDERS or len(parts) < 2:
        return
    text = _literal(parts.pop())
    if text is None:
        return
    words = [_literal(part) or ast.unparse(part) for part in parts]
    qualified = ".".join(words)
    library = module.split(".")[0]
    if len(words) > 1 and words[0].startswith(library):
        place, name = words[0], ".".join(words[1:])
    elif qualified.startswith(f"{library}."):
        place, _, name = qualified.rpartition(".")
    else:
        place, name = module, qualified
    yield _Docstring(place, name, "function", "", text)


def _literal(node: ast.expr) -> str | None:
    """Return the string that an expression spells out, if it is one.

    What format or an f-string fills in is known only when it is run; the
    name stands for it, or three dots.
    """
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _literal(part) or getattr(part.value, "id", "...")
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _literal(node.left), _literal(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        template = _literal(node.func.value)
        if node.func.attr == "format" and template is not None:
            filled = re.sub(r"\{(\w+)\}", r"\1", template)
            return filled.replace("{{", "{").replace("}}", "}")
    return None


def _clean(text: str) -> str:
    """Dedent, drop spaces at ends of lines, keep one empty line of several."""
    # An escape may spell half of a character, which no encoding can write.
    text = inspect.cleandoc(text.encode("utf8", "replace").decode("utf8"))
    text = re.sub(r"[^\S\n]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _digest(text: str) -> str:
    """Return a hash that ignores case, digits and how much space there is."""
    plain = re.sub(r"\d+", "0", " ".join(text.casefold().split()))
    return hashlib.sha256(plain.encode()).hexdigest()


def _without_duplicates(found: Iterable[Entry]) -> tuple[Entry, ...]:
    first: dict[str, Entry] = {}
    for entry in found:
        first.setdefault(_digest(entry.text), entry)
    return tuple(first.values())


def _cache_folder() -> Path:
    if own := os.environ.get("SCRATCH_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "scratch"


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"cache must be a folder that can be written, got {folder} "
            f"({error.strerror}); SCRATCH_CACHE can name another"
        ) from error


def _fingerprint(roots: dict[str, Path], versions: dict[str, str]) -> str:
    """Return a name for what this code finds in these libraries."""
    parts = [Path(__file__).read_text(encoding="utf8")]
    for name, root in roots.items():
        parts.append(f"{name} {versions[name]} {root}")
        if versions[name] == "unknown":  # nothing else tells that it changed
            stats = [(file, file.stat()) for file in _files(root)]
            parts += [f"{f} {s.st_mtime_ns} {s.st_size}" for f, s in stats]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read_cache(path: Path) -> tuple[Entry, ...] | None:
    """Return the entries, or None where there is no sound file."""
    try:
        lines = path.read_text(encoding="utf8").splitlines()
        count, *rows = map(json.loads, lines)
        entries = tuple(Entry(*row) for row in rows)
    except (OSError, ValueError, TypeError):
        return None
    return entries if count == len(entries) else None


def _write_cache(path: Path, entries: Sequence[Entry]) -> None:
    """Write to a temporary name and rename: no one sees half a file."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf8", dir=path.parent, suffix=".part", delete=False
    ) as file:
        # ASCII, so that each line break ends an entry.
        file.writelines(
            f"{json.dumps(part)}\n" for part in (len(entries), *entries)
        )
    os.replace(file.name, path)
