"""What is installed fits together, and the package needs what it says."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "scratch"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
IMPORT_NAMES = {"scikit-learn": "sklearn"}


def normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it.

    >>> normal("Sphinx_Design")
    'sphinx-design'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Return the pinned versions of a requirements file.

    >>> pins("# a\\n-e .\\nOne_two==1.0  # why\\nother>=2")
    {'one-two': '1.0'}
    """
    found = re.findall(r"^([\w.-]+)==([^\s#;]+)", text, re.MULTILINE)
    return {normal(name): version for name, version in found}


def loose_lines(text: str) -> list[str]:
    """Return the requirements that are not pinned.

    >>> loose_lines("-c constraints.txt\\n-e .\\na==1\\nb>=2\\nc")
    ['b>=2', 'c']
    """
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [
        line
        for line in lines
        if line and not line.startswith("-") and "==" not in line
    ]


def required_imports(source: str) -> set[str]:
    """Return the packages that a module needs: it may try others.

    >>> required_imports("import a.b\\ntry:\\n  import c\\n"
    ...     "except ImportError: pass\\nfrom .d import e")
    {'a'}
    """
    tree = ast.parse(source)
    optional = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.Try)
        and any(
            handler.type and "ImportError" in ast.unparse(handler.type)
            for handler in guard.handlers
        )
        for statement in guard.body
        for node in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if node in optional:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def declared() -> set[str]:
    return {
        normal(re.match(r"[\w.-]+", line)[0])
        for line in PROJECT["dependencies"]
    }


def test_what_is_installed_fits_together():
    check = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_requirements_are_pinned_and_the_constraints_agree():
    text = (ROOT / "requirements.txt").read_text("utf8")
    constraints = pins((ROOT / "constraints.txt").read_text("utf8"))
    wanted = pins(text)
    assert loose_lines(text) == []
    assert wanted
    assert {name: constraints.get(name) for name in wanted} == wanted


def test_constraints_hold_no_local_versions():
    text = (ROOT / "constraints.txt").read_text("utf8")
    assert [line for line in text.splitlines() if "+" in line] == []


def test_what_the_package_needs_is_pinned_for_the_book():
    wanted = pins((ROOT / "requirements.txt").read_text("utf8"))
    assert declared() - set(wanted) == set()


def test_the_package_pins_nothing():
    pinned = [d for d in PROJECT["dependencies"] if re.search("==|<|~=", d)]
    assert pinned == []


@pytest.mark.parametrize(
    "file",
    sorted(SRC.rglob("*.py")),
    ids=lambda file: file.relative_to(SRC).as_posix(),
)
def test_a_module_imports_only_what_the_package_declares(file):
    known = {IMPORT_NAMES.get(name, name) for name in declared()}
    needed = required_imports(file.read_text("utf8"))
    unknown = needed - known - set(sys.stdlib_module_names) - {"scratch"}
    assert unknown == set(), (
        f"{file} imports {unknown}: add it to dependencies in pyproject.toml"
    )


def test_licenses_are_named_and_there():
    for pattern in PROJECT["license-files"]:
        assert list(ROOT.glob(pattern)), pattern


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, and tests use no network")
    project = tmp_path / "project"
    copytree(
        ROOT / "src",
        project / "src",
        ignore=ignore_patterns("__pycache__", "*.egg-info"),
    )
    wanted = ["pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]]
    for name in wanted:
        copy(ROOT / name, project)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"]
    built = subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", str(tmp_path), "."],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = {
        file.relative_to(project / "src").as_posix()
        for file in (project / "src").rglob("*")
        if file.is_file() and "egg-info" not in file.as_posix()
    }
    assert package - set(names) == set()
    for name in PROJECT["license-files"]:
        assert any(entry.endswith(f"licenses/{name}") for entry in names)
