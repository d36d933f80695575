"""A fingerprint covers all that decides the outputs of a chapter."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from book_execution import execution, fingerprint
from book_execution.execution import opened_files
from book_execution.fingerprint import (
    cells_digest,
    collect_inputs,
    is_input,
)
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def notebook_of(*cells, kernel: str = "python3"):
    spec = {"name": kernel, "display_name": kernel}
    return new_notebook(cells=list(cells), metadata={"kernelspec": spec})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A book whose package `toy` imports in each way that Python has."""
    files = {
        "src/toy/__init__.py": "",
        "src/toy/leaf.py": "ONE = 1",
        "src/toy/user.py": "import toy.leaf as leaf",
        "src/toy/reader.py": "NAME = 'table.csv'",
        "src/toy/table.csv": "1,2",
        "src/toy/late.py": "def f():\n    from toy.leaf import ONE",
        "src/toy/broken.py": "def (",
        "src/toy/pack/__init__.py": "from . import inner",
        "src/toy/pack/inner.py": "from ..leaf import ONE",
        "src/toy/pack/sibling.py": "from .inner import ONE",
        "book/part/beside.py": "import toy.leaf",
        "book/part/near.txt": "near",
        "data/far.txt": "far",
        "_build/made.txt": "made",
        ".hidden/secret.txt": "secret",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path.resolve()


def inputs_of(root: Path, *cells: str, reads: tuple[str, ...] = ()):
    notebook = notebook_of(*(new_code_cell(cell) for cell in cells))
    folder = root / "book" / "part"
    return collect_inputs(notebook, folder=folder, root=root, reads=reads)


LEAF = {"__init__", "leaf"}


@pytest.mark.parametrize(
    ("cell", "modules"),
    [
        ("import toy", {"__init__"}),
        ("import toy.leaf", LEAF),
        ("import toy.leaf as short", LEAF),
        ("from toy import leaf", LEAF),
        ("from toy.leaf import ONE", LEAF),
        ("from toy.leaf import *", LEAF),
        ("if True:\n    from toy import leaf", LEAF),
        ("import toy.user", LEAF | {"user"}),
        ("import toy.late", LEAF | {"late"}),
        ("from toy import pack", LEAF | {"pack/__init__", "pack/inner"}),
        (
            "from toy.pack import sibling",
            LEAF | {"pack/__init__", "pack/inner", "pack/sibling"},
        ),
        ("%matplotlib inline\nimport toy.leaf", LEAF),
        ("%%time\nimport toy.leaf", LEAF),
        ("!ls\nimport toy.leaf", LEAF),
        ("import toy.broken", {"__init__", "broken"}),
        ("import os, numpy", set()),
        ("import toy.not_there", {"__init__"}),
        ("this is no Python", set()),
    ],
)
def test_modules_are_found_however_they_are_imported(root, cell, modules):
    found = inputs_of(root, cell).modules
    assert set(found) == {f"src/toy/{name}.py" for name in modules}


def test_a_module_beside_the_chapter_and_its_imports_are_found(root):
    found = inputs_of(root, "import beside").modules
    assert "book/part/beside.py" in found
    assert "src/toy/leaf.py" in found


@pytest.mark.parametrize(
    ("cell", "files"),
    [
        ("open('near.txt')", {"book/part/near.txt"}),
        ("open('../../data/far.txt')", {"data/far.txt"}),
        ("open('data/far.txt')", {"data/far.txt"}),
        ("import toy.reader", {"src/toy/table.csv"}),
        ("open('missing.txt')", set()),
        ("open('_build/made.txt')", set()),
        ("open('.hidden/secret.txt')", set()),
        ("open('/etc/hostname')", set()),
        ("x = 'a\\0b', '.', '', 'data'", set()),
    ],
)
def test_files_that_a_string_names_are_found(root, cell, files):
    assert set(inputs_of(root, cell).files) == files


def test_files_can_be_declared_by_pattern(root):
    found = inputs_of(root, "1", reads=("data/*.txt", "book/part/near.txt"))
    assert set(found.files) == {"data/far.txt", "book/part/near.txt"}


def test_a_declared_file_must_exist(root):
    with pytest.raises(ValueError, match=r"reads must .* got 'data/\*.csv'"):
        inputs_of(root, "1", reads=("data/*.csv",))


@pytest.mark.parametrize(
    "name",
    ["src/toy/leaf.py", "src/toy/table.csv", "book/part/near.txt"],
)
def test_an_edit_of_an_input_changes_the_fingerprint(root, name):
    cells = "from toy import pack, reader", "open('near.txt')"
    before = inputs_of(root, *cells)
    assert inputs_of(root, *cells).fingerprint == before.fingerprint
    (root / name).write_text("something_else = 2")
    after = inputs_of(root, *cells)
    assert after.fingerprint != before.fingerprint
    assert after.changes_since(before) == [name]


def test_an_edit_of_another_file_does_not_change_it(root):
    before = inputs_of(root, "import toy.leaf").fingerprint
    (root / "src/toy/user.py").write_text("x = 1")
    (root / "data/far.txt").write_text("nearer")
    assert inputs_of(root, "import toy.leaf").fingerprint == before


@pytest.mark.parametrize("package", ["torch", "numpy", "matplotlib"])
def test_a_new_release_changes_the_fingerprint(root, monkeypatch, package):
    before = inputs_of(root, "1")
    old = before.environment[package]
    real = fingerprint.version
    monkeypatch.setattr(
        fingerprint, "version", lambda n: "9.0" if n == package else real(n)
    )
    after = inputs_of(root, "1")
    assert after.fingerprint != before.fingerprint
    assert after.changes_since(before) == [f"{package} ({old}, now 9.0)"]


def test_a_new_minor_python_counts_and_a_patch_does_not(root, monkeypatch):
    def fingerprint_on(*version: str) -> str:
        monkeypatch.setattr(
            fingerprint.platform, "python_version_tuple", lambda: version
        )
        return inputs_of(root, "1").fingerprint

    before = fingerprint_on("3", "12", "1")
    assert fingerprint_on("3", "12", "2") == before
    assert fingerprint_on("3", "13", "1") != before


def test_the_same_release_for_another_hardware_does_not_count(monkeypatch):
    monkeypatch.setattr(fingerprint, "version", lambda name: "2.0+cu128")
    assert fingerprint.environment()["torch"] == "2.0"


def test_a_package_that_is_not_installed_is_left_out():
    versions = fingerprint.installed_versions(["numpy", "no-such-package"])
    assert list(versions) == ["numpy"]


def digest_of(*cells, kernel: str = "python3") -> str:
    return cells_digest(notebook_of(*cells, kernel=kernel))


def test_prose_captions_and_looks_are_not_code():
    plain = digest_of(new_code_cell("x"), new_code_cell("y"))
    caption = {"mystnb": {"figure": {"caption": "Fine."}}}
    assert plain == digest_of(
        new_markdown_cell("Some text."),
        new_code_cell("x", metadata=caption),
        new_code_cell("y", metadata={"tags": ["hide-input"]}),
    )


@pytest.mark.parametrize(
    "other",
    [
        [new_code_cell("y"), new_code_cell("x")],
        [new_code_cell("x")],
        [new_code_cell("x "), new_code_cell("y")],
        [new_code_cell("xy"), new_code_cell("")],
        [
            new_code_cell("x"),
            new_code_cell("y", metadata={"tags": ["skip-execution"]}),
        ],
    ],
)
def test_other_code_is_other_code(other):
    assert digest_of(*other) != digest_of(
        new_code_cell("x"), new_code_cell("y")
    )


def test_another_kernel_is_other_code():
    cell = new_code_cell("x")
    assert digest_of(cell) != digest_of(cell, kernel="julia")


def test_changes_name_what_came_and_what_went(root):
    before = inputs_of(root, "import toy.leaf")
    after = replace(
        before, modules={"src/toy/__init__.py": "", "src/new.py": "1"}
    )
    assert after.changes_since(before) == [
        "src/new.py",
        "src/toy/__init__.py",
        "src/toy/leaf.py (no longer used)",
    ]


@pytest.mark.parametrize(
    "name",
    ["src/toy/__pycache__/x.pyc", "src/toy.egg-info/PKG", "x/../.git/y"],
)
def test_what_tools_write_is_no_input(root, name):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / "x").mkdir(exist_ok=True)
    path.write_text("x")
    assert path.is_file()
    assert not is_input(path, root)


def test_opened_files_are_those_read_but_not_written_first(root):
    log = root / "log"
    compiled = root / "src/toy/__pycache__/leaf.cpython-311.pyc"
    lines = [
        f"r {root}/data/far.txt",
        f"w {root}/data/own.txt",
        f"r {root}/data/own.txt",
        f"r {root}/data/gone.txt",
        f"r {compiled}",
        f"r {root}/.hidden/secret.txt",
    ]
    (root / "data/own.txt").write_text("own")
    log.write_text("\n".join(lines))
    assert opened_files(log, root) == {"data/far.txt", "src/toy/leaf.py"}


def test_the_watch_runs_the_sitecustomize_that_it_hides(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('the hidden one')")
    watch = Path(execution.__file__).parent / "watch"
    search = os.pathsep.join([str(watch), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", "print('then the program')"],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["the hidden one", "then the program"]
    assert done.stderr == ""
