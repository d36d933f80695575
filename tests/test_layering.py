"""A module imports only from earlier chapters and from support modules.

The order of the chapters is in tests/book/layout.py. Part III is ordered by
the numbers of its chapters' files.
"""

import ast
import re
from collections.abc import Mapping

import pytest
from layout import (
    ABOVE,
    BELOW,
    BETWEEN,
    CURRICULUM,
    PARTS,
    ROOT,
    chapter_modules,
    chapter_name,
    pages,
)

SRC = ROOT / "src" / "scratch"
CHAPTER_FILES = sorted(
    file.relative_to(ROOT).with_suffix("").as_posix()
    for part in PARTS
    for file in (ROOT / "book" / part).glob("*.md")
)
# Chapters whose readers have not read them yet. They are not built.
DRAFTS = sorted(
    file.relative_to(ROOT).with_suffix("").as_posix()
    for file in (ROOT / "book" / "drafts").glob("*/*.md")
)


def chapter_order() -> list[tuple[str, ...]]:
    """Return the modules of each chapter in the order of the book."""
    known = {modules[0] for modules in CURRICULUM}
    further = [
        chapter_modules(file)
        for file in CHAPTER_FILES
        if file.startswith("book/beyond/") and chapter_name(file) not in known
    ]
    return [*CURRICULUM, *further]


def imported(source: str, module: str) -> list[tuple[int, str]]:
    """Return line and name of each module of scratch that a source imports.

    Args:
        module: the module's own name, "nn/neuron", for relative imports.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["scratch", *module.split("/")][: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [
            (node.lineno, name.removeprefix("scratch.").replace(".", "/"))
            for name in names
            if name.startswith("scratch.")
        ]
    return found


def _is_under(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}/") for root in roots)


def layering_problems(
    source: str,
    module: str,
    order: list[tuple[str, ...]],
    between: Mapping[str, str] = BETWEEN,
) -> list[str]:
    """Return what a module imports and must not."""
    position = {
        name: number
        for number, modules in enumerate(order)
        for name in modules
    }
    for name, chapter in between.items():
        if chapter in position:
            position[name] = position[chapter] + 0.5
    problems = []
    if _is_under(module, ABOVE):
        return []
    for line, name in imported(source, module):
        where = f"src/scratch/{module}.py:{line}"
        # `from scratch.nn.neuron import Neuron` names a thing in a module.
        target = name if name in position else name.rpartition("/")[0]
        if _is_under(name, ABOVE):
            problems.append(
                f"{where}: {name} is above the chapters; only "
                f"{', '.join(ABOVE)} may import it"
            )
        elif target not in position:
            if _is_under(name, PARTS) and name not in PARTS:
                problems.append(f"{where}: {name} is in no chapter")
        elif _is_under(module, BELOW):
            problems.append(
                f"{where}: {module} supports the chapters and must not "
                f"import one, got {target}"
            )
        elif position[target] > position.get(module, -1):
            problems.append(
                f"{where}: {module} must not import {target}, which comes "
                "later in the book"
            )
    return problems


def module_files() -> list[str]:
    return sorted(
        file.relative_to(SRC).with_suffix("").as_posix()
        for file in SRC.rglob("*.py")
        if file.name != "__init__.py"
    )


MODULES = module_files()
CHAPTER_MODULES = [m for m in MODULES if m.split("/")[0] in PARTS]


def test_the_modules_are_found():
    assert "nn/neuron" in CHAPTER_MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_came_before(module):
    source = (SRC / f"{module}.py").read_text("utf8")
    problems = layering_problems(source, module, chapter_order())
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_its_place(module):
    known = [m for modules in chapter_order() for m in modules]
    if module in CHAPTER_MODULES:
        assert module in known, (
            f"{module} is in no chapter. Add it to CURRICULUM in "
            "tests/book/layout.py"
        )
    else:
        assert _is_under(module, (*BELOW, *BETWEEN, *ABOVE)), (
            f"{module} is no chapter and no support module. Add it to BELOW, "
            "BETWEEN or ABOVE in tests/book/layout.py"
        )


@pytest.mark.parametrize("module", CHAPTER_MODULES)
def test_a_chapters_module_has_one_chapter_and_one_test_file(module):
    files = [*CHAPTER_FILES, *DRAFTS]
    chapters = [f for f in files if module in chapter_modules(f)]
    assert len(chapters) == 1, f"{module} has chapters {chapters}, must be one"
    part, name = module.split("/")
    tests = ROOT / "tests" / part / f"test_{name}.py"
    assert tests.is_file(), f"{module} has no tests. Write {tests}"


@pytest.mark.parametrize("chapter", CHAPTER_FILES)
def test_a_chapter_is_numbered_listed_and_has_its_modules(chapter):
    assert re.fullmatch(r"book/\w+/\d\d_[a-z0-9_]+", chapter)
    assert chapter in pages(), f"{chapter} is not in _toc.yml"
    for module in chapter_modules(chapter):
        assert (SRC / f"{module}.py").is_file(), f"{chapter}: no {module}.py"


def test_chapters_stand_in_the_order_of_the_book():
    order = {modules[0]: i for i, modules in enumerate(chapter_order())}
    listed = [page for page in pages() if page in CHAPTER_FILES]
    numbers = [order[chapter_name(page)] for page in listed]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    "file",
    sorted(SRC.rglob("__init__.py")),
    ids=lambda file: file.relative_to(SRC.parent).as_posix(),
)
def test_packages_export_nothing(file):
    body = ast.parse(file.read_text("utf8")).body
    assert len(body) == 1, f"{file} must hold a docstring and nothing else"
    assert ast.get_docstring(ast.Module(body, [])), f"{file} has no docstring"


ORDER = [("nn/one",), ("nn/two", "nn/twin"), ("llm/three",)]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("nn/two", "from scratch.nn.one import f"),
        ("nn/two", "import scratch.nn.one"),
        ("nn/two", "from scratch.nn import one"),
        ("nn/two", "from .one import f"),
        ("nn/two", "from scratch.nn.twin import f"),
        ("nn/two", "from scratch.plotting import f"),
        ("nn/two", "from scratch.data.toy import f"),
        ("llm/three", "from ..nn.one import f"),
        ("exercises/two", "from scratch.nn.two import f"),
        ("exercises/two", "from scratch.exercises.verdict import f"),
        ("__main__", "from scratch.llm.three import f"),
        ("plotting", "from scratch.data.toy import f"),
        ("nn/one", "import torch.nn"),
    ],
)
def test_an_import_from_before_is_accepted(module, line):
    assert layering_problems(line, module, ORDER) == []


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("nn/one", "from scratch.nn.two import f", "comes later"),
        ("nn/one", "import scratch.nn.two", "comes later"),
        ("nn/one", "from scratch.nn import twin", "comes later"),
        ("nn/one", "from . import two", "comes later"),
        ("nn/one", "from .two import f", "comes later"),
        ("nn/two", "from ..llm.three import f", "comes later"),
        ("nn/two", "def g():\n    from scratch.llm import three", "later"),
        ("nn/two", "from scratch.nn.four import f", "in no chapter"),
        ("nn/two", "from scratch.exercises.two import f", "above"),
        ("plotting", "from scratch.nn.one import f", "must not import one"),
        ("data/toy", "from ..nn.one import f", "must not import one"),
        ("data/toy", "from scratch.exercises import two", "above"),
    ],
)
def test_an_import_from_later_is_rejected(module, line, message):
    (problem,) = layering_problems(line, module, ORDER)
    assert message in problem


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("files", "from scratch.nn.two import f", None),
        ("files", "from scratch.data.toy import f", None),
        ("files", "from scratch.llm.three import f", "comes later"),
        ("files", "from scratch.exercises import two", "above"),
        ("llm/three", "from scratch.files import f", None),
        ("llm/three", "from scratch import files", None),
        ("exercises/two", "from scratch import files", None),
        ("nn/twin", "from scratch.files import f", "comes later"),
        ("nn/one", "from scratch import files", "comes later"),
        ("plotting", "from scratch import files", "must not import one"),
    ],
)
def test_a_module_may_stand_between_chapters(module, line, message):
    problems = layering_problems(line, module, ORDER, {"files": "nn/twin"})
    if message is None:
        assert problems == []
    else:
        assert message in problems[0]
