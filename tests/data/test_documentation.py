"""The corpus holds what the libraries say, each text once, on one side."""

import argparse
import ast
import hashlib
import inspect
import json
import json.decoder
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from itertools import product

import numpy
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from scratch.data import documentation as module
from scratch.data.documentation import (
    LIBRARIES,
    SHORTEST,
    VALIDATION_SHARE,
    Corpus,
    Entry,
    documentation,
    source_code,
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a library of paths and sources."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def write(files, library="fakelib"):
        for path, source in files.items():
            file = tmp_path / "site" / library / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, str):
                source = textwrap.dedent(source).encode()
            file.write_bytes(source)

    return write


@pytest.fixture
def read(tmp_path):
    """Return a function that builds a corpus, with a cache of its own."""
    return lambda *names: documentation(names, cache=tmp_path / "cache")


def doc(subject):
    """Return a docstring that is long enough for the corpus."""
    return f"Say in enough words what {subject} is good for."


def found(corpus):
    """Return what a corpus holds but for the texts."""
    return [
        (entry.module, entry.name, entry.kind, entry.signature)
        for entry in corpus.entries
    ]


def texts(corpus):
    return [entry.text for entry in corpus.entries]


def entry(text, library="fakelib"):
    return Entry(library, "fakelib.part", "name", "function", "()", text)


def squeeze(text):
    """Tidy a docstring as the corpus promises, line by line."""
    kept = []
    for line in map(str.rstrip, text.split("\n")):
        if line or kept[-1:] != [""]:
            kept.append(line)
    return "\n".join(kept).strip()


# --- Against Python's own ways to find a docstring ---


@pytest.fixture(scope="session")
def standard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standard")
    return documentation(("argparse", "json", "textwrap"), cache=folder)


def walk(node, path=()):
    for child in ast.iter_child_nodes(node):
        named = isinstance(
            child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        )
        own = (*path, child.name) if named else path
        if named:
            yield ".".join(own), child
        yield from walk(child, own)


@pytest.mark.parametrize("living", [argparse, json.decoder, textwrap])
def test_each_docstring_that_ast_finds_is_there(living, standard):
    tree = ast.parse(inspect.getsource(living))
    expected = [
        (name, squeeze(text))
        for name, node in [("", tree), *walk(tree)]
        if (text := ast.get_docstring(node)) and len(squeeze(text)) >= SHORTEST
    ]
    assert len(expected) > 3
    assert expected == [
        (entry.name, entry.text)
        for entry in standard.entries
        if entry.module == living.__name__
    ]


def test_living_objects_say_the_same(standard):
    modules = (argparse, json, json.decoder, textwrap)
    modules = {living.__name__: living for living in modules}
    kinds = Counter()
    for entry in standard.entries:
        if entry.module not in modules:
            continue
        living = modules[entry.module]
        for part in filter(None, entry.name.split(".")):
            living = getattr(living, part)
        assert entry.text == squeeze(inspect.getdoc(living))
        assert (entry.kind == "module") == inspect.ismodule(living)
        assert (entry.kind == "class") == inspect.isclass(living)
        if inspect.isfunction(living):
            assert entry.kind == (
                "method" if "." in entry.name else "function"
            )
            expected = inspect.signature(living).parameters.values()
            namespace = {"_sys": argparse._sys, **vars(modules[entry.module])}
            exec(f"def copy{entry.signature}: pass", namespace)
            copied = inspect.signature(namespace["copy"]).parameters.values()
            assert [(p.name, p.kind) for p in copied] == [
                (p.name, p.kind) for p in expected
            ]
        kinds[entry.kind] += 1
    assert set(kinds) == {"module", "class", "function", "method"}
    assert kinds.total() > 30


# --- What is found, and how it is called ---


def test_each_kind_is_named_and_signed(write, read):
    write(
        {
            "__init__.py": f'"""{doc("the package")}"""',
            "part.py": f'''
                """{doc("the module")}"""
                import asyncio

                @decorated
                class Outer(Base):
                    """{doc("the outer class")}"""

                    @property
                    def size(self) -> int:
                        """{doc("the size")}"""

                    class Inner:
                        """{doc("the inner class")}"""

                        async def run(self, *args, key: str = "k", **rest):
                            """{doc("running")}"""

                def function(x, /, y=1, *, z=[2, 3]):
                    """{doc("the function")}"""

                    def nested():
                        """{doc("the nested function")}"""
                ''',
        }
    )
    corpus = read("fakelib")
    assert found(corpus) == [
        ("fakelib", "", "module", ""),
        ("fakelib.part", "", "module", ""),
        ("fakelib.part", "Outer", "class", ""),
        ("fakelib.part", "Outer.size", "method", "(self)"),
        ("fakelib.part", "Outer.Inner", "class", ""),
        (
            "fakelib.part",
            "Outer.Inner.run",
            "method",
            "(self, *args, key: str='k', **rest)",
        ),
        ("fakelib.part", "function", "function", "(x, /, y=1, *, z=[2, 3])"),
        ("fakelib.part", "function.nested", "function", "()"),
    ]
    assert texts(corpus)[5] == doc("running")
    assert {entry.library for entry in corpus.entries} == {"fakelib"}


def test_definitions_under_a_condition_are_found(write, read):
    branches = {
        "if flag:": "a",
        "else:": "b",
        "try:": "c",
        "except ValueError:": "d",
        "finally:": "e",
        "with context:": "f",
        "for i in items:": "g",
        "while flag:": "h",
        "match flag:\n    case 1:": "i",
    }
    body = '\n        def {0}(): """' + doc("branch {0}") + '"""'
    source = "\n".join(
        head + body.format(name) for head, name in branches.items()
    )
    write({"__init__.py": source})
    assert texts(read("fakelib")) == [doc(f"branch {n}") for n in "abcdefghi"]


def test_a_class_in_a_function_has_methods(write, read):
    write(
        {
            "__init__.py": f'''
            def make():
                class Made:
                    if True:
                        def go(self):
                            """{doc("going")}"""
            '''
        }
    )
    assert found(read("fakelib")) == [
        ("fakelib", "make.Made.go", "method", "(self)")
    ]


def test_a_string_that_is_no_docstring_is_left_out(write, read):
    write(
        {
            "__init__.py": f'''
            """{doc("the module")}"""
            x = 1
            """{doc("an attribute")}"""
            def function():
                f"""{doc("a formatted string")}"""
            def other():
                b"""{doc("bytes")}"""
            '''
        }
    )
    assert texts(read("fakelib")) == [doc("the module")]


def test_short_texts_are_left_out(write, read):
    write(
        {
            "a.py": f'"""{"a" * (SHORTEST - 1)}   """',
            "b.py": f'"""{"b" * SHORTEST}"""',
        }
    )
    assert texts(read("fakelib")) == ["b" * SHORTEST]


@pytest.mark.parametrize(
    ("call", "place", "name"),
    [
        ("add_docstr(fakelib.absolute, {0})", "fakelib", "absolute"),
        ("add_docstr(fakelib.fast.sum, {0})", "fakelib.fast", "sum"),
        ("_C._add_docstr(_C.add, {0})", "fakelib.part", "_C.add"),
        ("add_docstr_all('item', {0})", "fakelib.part", "item"),
        ("add_newdoc('airy', {0})", "fakelib.part", "airy"),
        ("add_newdoc('fakelib.c', 'array', {0})", "fakelib.c", "array"),
        ("m.add_newdoc('fakelib', 'a', ('T', {0}))", "fakelib", "a.T"),
        ("cross = _add_docstr(_C.l_cross, {0})", "fakelib.part", "cross"),
        ("if flag: add_newdoc('airy', {0})", "fakelib.part", "airy"),
    ],
)
def test_what_is_written_in_c_is_documented_by_a_call(
    call, place, name, write, read
):
    write({"part.py": call.format(repr(doc("it")))})
    corpus = read("fakelib")
    assert found(corpus) == [(place, name, "function", "")]
    assert texts(corpus) == [doc("it")]


@pytest.mark.parametrize(
    "call",
    [
        "add_docstr({0})",
        "add_docstr(fakelib.x)",
        "add_docstr()",
        "add_newdoc(())",
        "add_newdoc('x', b'{0}')",
        "add_newdoc('x', text)",
        "add_newdoc('x', text.upper())",
        "add_newdoc('x', {0}.strip())",
        "add_newdoc('x', {0} + text)",
        "add_newdoc('x', {0} * 2)",
        "add_newdoc(*args)",
        "add_other('x', {0})",
        "(lambda x, y: x)('x', {0})",
    ],
)
def test_a_call_that_spells_out_no_docstring_is_left_out(call, write, read):
    write({"part.py": f"{call.format(repr(doc('it')))}\n'x'.join(y)"})
    assert read("fakelib").entries == ()


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("'Sum of all that ' + 'is in the array.'", None),
        ("'Sum of all that is in {x}.'.format(**shared)", "in x."),
        ("'Sum of all: {{{x}}} and {{}}.'.format(**shared)", "{x} and {}."),
        ("'Sum of all ' + '{a} {b}'.format(a=1) + '{c}'", "all a b{c}"),
        ("f'Sum of all that is in {x}.'", "in x."),
        ("f'Sum of all that is in {x[0]!r:>3}.'", "in ...."),
    ],
)
def test_a_docstring_that_is_put_together_is_read(
    expression, text, write, read
):
    write({"part.py": f"add_newdoc('x', {expression} + '{'-' * SHORTEST}')"})
    (only,) = texts(read("fakelib"))
    said = only.removesuffix("-" * SHORTEST)
    assert said.endswith(text or "Sum of all that is in the array.")


# --- Which files are read ---


def test_nothing_is_imported_or_run(write, read, tmp_path):
    trap = f'''
        """{doc("the trap")}"""
        open({str(tmp_path / "ran")!r}, "w").close()
        raise SystemExit
        '''
    write({"__init__.py": trap, "sub/__init__.py": trap, "sub/b.py": trap})
    with pytest.warns(UserWarning, match=r"left out: fakelib\.sub$"):
        corpus = read("fakelib", "fakelib.sub")
    assert texts(corpus) == [doc("the trap")]
    assert texts(source_code(("fakelib",))) == [textwrap.dedent(trap)]
    assert not (tmp_path / "ran").exists()
    assert not {"fakelib", "fakelib.sub"} & set(sys.modules)


def test_tests_and_copies_of_other_libraries_are_left_out(write, read):
    folders = "test tests deep/tests/more idle_test _vendor externals".split()
    write({f"{folder}/a.py": f'"""{doc(folder)}"""' for folder in folders})
    write({"testing.py": f'"""{doc("testing")}"""'})
    assert found(read("fakelib")) == [("fakelib.testing", "", "module", "")]


def test_a_library_may_lie_in_a_folder_called_tests(write, read, tmp_path):
    write({"__init__.py": f'"""{doc("it")}"""'}, library="tests/mylib")
    sys.path.insert(0, str(tmp_path / "site" / "tests"))
    try:
        assert texts(read("mylib")) == [doc("it")]
    finally:
        sys.path.pop(0)


def test_a_single_file_and_a_namespace_package_are_libraries(
    write, read, tmp_path
):
    write({"fakesingle.py": f'"""{doc("one file")}"""'}, library="")
    write({"deep/part.py": f'"""{doc("a part")}"""'}, library="fakespace")
    assert found(read("fakesingle", "fakespace")) == [
        ("fakesingle", "", "module", ""),
        ("fakespace.deep.part", "", "module", ""),
    ]


def test_the_standard_library_is_called_python(read, write, monkeypatch):
    write({"abc.py": f'"""{doc("abc")}"""', "site-packages/x.py": "'''x'''"})
    folder = module.importlib.util.find_spec("fakelib")
    (place,) = folder.submodule_search_locations
    monkeypatch.setattr(
        module.sysconfig, "get_paths", lambda: {"stdlib": place}
    )
    corpus = read("python")
    assert found(corpus) == [("abc", "", "module", "")]
    assert corpus.entries[0].library == "python"
    assert corpus.versions == {"python": sys.version.split()[0]}


def test_the_encoding_that_a_file_names_is_used(write, read):
    text = doc("the café in Łódź")
    for i, encoding in enumerate(("latin2", "utf-8", "utf-8-sig")):
        cookie = f"# -*- coding: {encoding} -*-\n"
        source = f'{cookie}"""{text} {"abc"[i]}"""\r\n'
        write({f"{encoding}.py": source.encode(encoding)})
    assert sorted(texts(read("fakelib"))) == [f"{text} {c}" for c in "abc"]


@pytest.mark.parametrize(
    "bad",
    [
        b"def broken(:\n",
        b"# coding: no-such-encoding\n",
        b"'caf\xe9'\n",
        b"x = '\0'\n",
        b"x = " + b"-" * 100_000 + b"1",
        b"if a: pass\n" + b"elif a: pass\n" * 20_000,
        b"x = " + b"a." * 5_000 + b"b",
    ],
)
def test_a_file_that_cannot_be_parsed_is_passed_over(bad, write, read):
    sound = f'"""{doc("the sound one")}"""\n'.encode()
    write({"a.py": sound, "b.py": bad + b"\n" + sound.replace(b"the", b"no")})
    assert texts(read("fakelib")) == [doc("the sound one")]


def test_what_is_no_readable_file_is_passed_over(
    write, read, tmp_path, monkeypatch
):
    write({"a.py": f'"""{doc("it")}"""', "folder.py/b.txt": "", "c.py": ""})
    (tmp_path / "site/fakelib/link.py").symlink_to("nowhere")
    bytes_of = module.Path.read_bytes

    def refuse(path):
        if path.name == "c.py":
            raise PermissionError
        return bytes_of(path)

    monkeypatch.setattr(module.Path, "read_bytes", refuse)
    assert texts(read("fakelib")) == [doc("it")]


def test_half_of_a_character_is_replaced(write, read, tmp_path):
    write({"a.py": rf'"""{doc("it")} \ud800."""'})
    corpus = read("fakelib")
    assert texts(corpus) == [f"{doc('it')} ?."]
    assert read("fakelib") == corpus


@pytest.mark.filterwarnings("error")
def test_warnings_about_their_escapes_are_theirs(write, read):
    write({"a.py": rf'"""{doc("it")} \d"""'})
    assert texts(read("fakelib")) == [rf"{doc('it')} \d"]


# --- Cleaning and duplicates ---


def test_texts_are_tidied_and_examples_keep_their_shape(write, read):
    write(
        {
            "a.py": '''
            def f():
                """  Return a table, one row for each line.   \t

                \t


                >>> if True:
                ...     f()
                  a  b
                \tc

                .. note::
                    Indented.

                """
            '''
        }
    )
    assert texts(read("fakelib")) == [
        "Return a table, one row for each line.\n\n>>> if True:\n"
        "...     f()\n  a  b\n    c\n\n.. note::\n    Indented."
    ]


def test_of_equal_texts_the_first_stays(write, read):
    write(
        {
            "a.py": f'"""{doc("release 10")}"""',
            "b.py": f'"""{doc("RELEASE  9")}"""',
            "c.py": f'"""{doc("no release")}"""',
        }
    )
    write({"a.py": f'"""{doc("release 11")}"""'}, library="otherlib")
    corpus = read("fakelib", "otherlib")
    assert texts(corpus) == [doc("release 10"), doc("no release")]
    assert list(corpus.versions) == ["fakelib", "otherlib"]
    (first, *_) = read("otherlib", "fakelib").entries
    assert (first.library, first.text) == ("otherlib", doc("release 11"))


def plain_digest(text):
    """Hash a text by its words; all numbers are one."""
    words = [re.sub("[0-9]+", "0", word.casefold()) for word in text.split()]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


ascii_text = st.text(st.characters(max_codepoint=127), max_size=60)


@given(ascii_text)
@example("A1\n b22\t\tc")
def test_the_digest_sees_no_case_space_or_digits(text):
    digest = module._digest(text)
    assert digest == plain_digest(text)
    assert digest == module._digest(text.upper())
    assert digest == module._digest("  ".join(["", *text.split(), ""]))
    assert digest == module._digest(re.sub(r"\d+", "7", text))
    assert digest != module._digest(text + "x")


# --- The split ---


@given(st.text(max_size=40), st.text(max_size=5))
def test_the_side_depends_on_the_text_alone(text, other):
    sides = {
        Entry(*fields, text).held_out
        for fields in (("a", "b", "c", "class", ""), 5 * (other,))
    }
    again = entry(f" {text.upper().lower()}  ")
    if text.isascii():
        sides.add(again.held_out)
    assert len(sides) == 1


def test_the_share_is_a_tenth_and_does_not_move():
    words = map("".join, product("abcdefghij", repeat=4))
    entries = tuple(entry(f"text {word}") for word in words)
    corpus = Corpus(entries, {"fakelib": "1"})
    share = len(corpus.validation) / len(entries)
    # Three standard deviations of a draw with that chance.
    assert abs(share - VALIDATION_SHARE) < 3 * (0.1 * 0.9 / 10_000) ** 0.5
    assert corpus.validation == [
        e for e in entries if int(plain_digest(e.text)[:8], 16) < 0.1 * 2**32
    ]


def test_both_sides_keep_the_order_and_share_nothing():
    entries = tuple(entry("text " + "b" * i) for i in range(500))
    corpus = Corpus(entries, {"fakelib": "1"})
    backwards = Corpus(entries[::-1], {"fakelib": "1"})
    for side in ("train", "validation"):
        assert getattr(corpus, side) == getattr(backwards, side)[::-1]
    assert set(corpus.train) | set(corpus.validation) == set(entries)
    assert not set(corpus.train) & set(corpus.validation)


def test_another_library_moves_no_text(write, read):
    body = '\ndef f{0}(): """' + doc("{0}") + '"""'
    words = ["f" + "oh"[i % 2] * (i + 1) for i in range(60)]
    write({"a.py": "".join(body.format(word) for word in words)})
    write({"a.py": body.format("another")}, library="otherlib")
    alone, both = read("fakelib"), read("otherlib", "fakelib")
    assert 0 < len(alone.validation) < 20
    assert set(alone.validation) <= set(both.validation)
    assert set(alone.train) <= set(both.train)


# --- The cache ---


@pytest.fixture
def cached(write, read, tmp_path):
    """Return a corpus of three texts and the file that keeps it."""
    body = '\ndef f{0}(): """' + doc("caf\u00e9\u2028 {0}") + '"""'
    write({"a.py": "".join(map(body.format, "abc"))})
    corpus = read("fakelib")
    (file,) = (tmp_path / "cache").glob("*.jsonl")
    return corpus, file


def test_a_second_build_is_the_same_byte_for_byte(cached, tmp_path):
    corpus, file = cached
    second = documentation(("fakelib",), cache=str(tmp_path / "second"))
    assert second == corpus
    again = tmp_path / "second" / file.name
    assert again.read_bytes() == file.read_bytes()
    # The lock may stay, but nothing half written.
    kept = {path.suffix for path in again.parent.iterdir()}
    assert kept <= {".jsonl", ".lock"}


def test_a_later_call_reads_the_file(cached, read, monkeypatch):
    monkeypatch.setattr(module, "_docstrings", None)
    assert read("fakelib") == cached[0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[: raw[:-1].rindex(b"\n") + 1],
        lambda raw: raw + raw.splitlines(keepends=True)[-1],
        lambda raw: raw.replace(b'"fakelib", ', b"", 1),
        lambda raw: b"<html>",
        lambda raw: b"\xff\xfe\x00",
        lambda raw: b"1\n2\n",
        lambda raw: b"[]",
    ],
)
def test_a_spoiled_file_is_made_again(spoil, cached, read):
    corpus, file = cached
    sound = file.read_bytes()
    file.write_bytes(spoil(sound))
    assert read("fakelib") == corpus
    assert file.read_bytes() == sound


def test_what_changes_the_result_changes_the_file(
    cached, write, read, monkeypatch
):
    def files():
        read("fakelib")
        return set(cached[1].parent.glob("*.jsonl"))

    assert files() == {cached[1]}
    for i, version in enumerate(("2.0", "2.1", "2.0")):
        monkeypatch.setattr(module, "_version", lambda _, v=version: v)
        assert len(files()) == (2, 3, 3)[i]
    monkeypatch.setattr(module, "__file__", __file__)  # the code itself
    assert len(files()) == 4


def test_a_library_without_a_version_may_be_edited(cached, write, read):
    assert cached[0].versions == {"fakelib": "unknown"}
    write({"b.py": f'"""{doc("news")}"""'})
    assert texts(read("fakelib"))[3:] == [doc("news")]
    write({"b.py": f'"""{doc("newer")}"""'})
    assert texts(read("fakelib"))[3:] == [doc("newer")]


def test_the_version_is_that_of_the_distribution(write, read):
    write({"METADATA": "Name: x\nVersion: 4.5\n"}, "fakelib-4.5.dist-info")
    write({"METADATA": "Version: 6.7\n"}, "scikit_learn-6.7.dist-info")
    write({"__init__.py": ""})
    write({"__init__.py": ""}, library="sklearn")
    assert module._version("fakelib") == "4.5"
    assert module._version("sklearn") == "6.7"


@pytest.mark.slow
def test_two_processes_at_once_build_once(write, tmp_path):
    write({"a.py": f'"""{doc("it")}"""'})
    script = f"""
        import os, sys, time
        from pathlib import Path
        from scratch.data import documentation as module

        build, folder = module._docstrings, Path({str(tmp_path)!r})

        def slow(roots):
            (folder / f"built-{{os.getpid()}}").touch()
            time.sleep(1)
            return build(roots)

        module._docstrings = slow
        (folder / f"ready-{{os.getpid()}}").touch()
        while len(list(folder.glob("ready-*"))) < 2:
            time.sleep(0.01)
        corpus = module.documentation(("fakelib",), cache=folder)
        print(corpus.entries)
        """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert said[0] == said[1]
    assert doc("it") in said[0]
    assert len(list(tmp_path.glob("built-*"))) == 1
    (file,) = tmp_path.glob("*.jsonl")
    assert len(module._read_cache(file)) == 1


def test_the_cache_lies_where_the_environment_says(
    write, tmp_path, monkeypatch
):
    write({"a.py": f'"""{doc("it")}"""'})
    monkeypatch.setattr(module.Path, "home", lambda: tmp_path / "home")
    monkeypatch.delenv("SCRATCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, folder in (
        ("", "home/.cache/scratch"),
        ("XDG_CACHE_HOME", "xdg/scratch"),
        ("SCRATCH_CACHE", "own"),
    ):
        if name:
            own = tmp_path / folder.removesuffix("/scratch")
            monkeypatch.setenv(name, str(own))
        assert not (tmp_path / folder).exists()
        documentation(("fakelib",))
        assert len(list((tmp_path / folder).glob("*.jsonl"))) == 1


def test_a_cache_that_cannot_be_written_is_named(
    write, read, tmp_path, monkeypatch
):
    write({"a.py": f'"""{doc("it")}"""'})
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(ValueError, match=r"cache must .*/file") as caught:
            documentation(("fakelib",), cache=folder)
        assert "SCRATCH_CACHE" in str(caught.value)

    def refuse(dir):
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cache \(Permission denied\)"):
        read("fakelib")


# --- What is asked for ---


@pytest.mark.parametrize("build", ["documentation", "source_code"])
def test_a_missing_library_is_named_where_it_was_asked_for(build, write, read):
    write({"a.py": f'"""{doc("it")}"""'})
    build = read if build == "documentation" else lambda *n: source_code(n)
    with pytest.warns(UserWarning, match="left out: nolib, sys") as caught:
        corpus = build("nolib", "fakelib", "sys")
    if build is not read:
        assert caught[0].filename == __file__
    assert corpus.missing == ("nolib", "sys")
    assert list(corpus.versions) == ["fakelib"]
    assert corpus.statistics().endswith("\nnot installed: nolib, sys")
    for missing in (("nolib",), ("nolib", "no.lib", ""), ()):
        with pytest.raises(ValueError, match="at least one installed"):
            build(*missing)


@pytest.mark.parametrize("wrong", ["json", ("json", "abc", "json")])
def test_names_must_be_a_sequence_of_different_ones(wrong, tmp_path):
    for build in (documentation, source_code):
        with pytest.raises(ValueError, match=r"different .* got .*json"):
            build(wrong)


def test_statistics_counts_as_one_does_by_hand():
    sizes = {"short": (40, "a"), "long": (900_000, "\u00e9")}
    entries = [entry(n * c, library) for library, (n, c) in sizes.items()]
    entries.append(entry(60 * "c", "short"))
    corpus = Corpus(tuple(entries), {"short": "1.0", "long": "2"}, ("gone",))
    short, long, last = (e.held_out for e in entries)
    # 900,000 letters of two bytes each are 1.8 million bytes.
    assert corpus.statistics().splitlines() == [
        "library  version  texts    MB   median  validation",
        f"short    1.0          2  0.00       50  {short + last:10d}",
        f"long     2            1  1.80  900,000  {long:10d}",
        f"all                   3  1.80       60  {short + long + last:10d}",
        "not installed: gone",
    ]


def test_a_library_that_says_nothing_counts_zero(write, read):
    write({"a.py": ""})
    assert re.findall(
        r"^fakelib .*$", read("fakelib").statistics(), re.MULTILINE
    ) == ["fakelib  unknown      0  0.00       0           0"]


# --- Source code ---


def test_source_code_is_the_files_as_they_are(write):
    write(
        {
            "__init__.py": "x = 1\r\n",
            "b/part.py": "# coding: latin1\ny = 'caf\u00e9'".encode("latin1"),
            "c.py": "X  = 22\n",  # as the first, but for what is ignored
            "d.py": "def broken(:\n",  # text all the same
            "e.py": b"\xff",
            "tests/a.py": "z = 3",
        }
    )
    corpus = source_code(("fakelib",))
    assert corpus.entries == tuple(
        Entry("fakelib", place, "", "file", "", text)
        for place, text in (
            ("fakelib", "x = 1\n"),
            ("fakelib.b.part", "# coding: latin1\ny = 'caf\u00e9'"),
            ("fakelib.d", "def broken(:\n"),
        )
    )
    assert source_code(("textwrap",)).entries[0].text == inspect.getsource(
        textwrap
    )


# --- The real corpus ---


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return the whole corpus and the seconds of work that it took."""
    began = time.process_time()
    corpus = documentation(cache=tmp_path_factory.mktemp("real"))
    return corpus, time.process_time() - began


@pytest.mark.slow
def test_the_real_corpus_is_large_quick_and_clean(real):
    corpus, seconds = real
    assert seconds < 60
    assert tuple(corpus.versions) == LIBRARIES
    assert len(corpus.entries) > 25_000
    assert sum(len(e.text.encode()) for e in corpus.entries) > 14e6
    assert min(Counter(e.library for e in corpus.entries).values()) > 1_000
    assert min(len(text) for text in texts(corpus)) >= SHORTEST
    assert all(text == squeeze(text) for text in texts(corpus))
    assert len({plain_digest(t) for t in texts(corpus)}) == len(corpus.entries)
    train, validation = set(corpus.train), set(corpus.validation)
    assert not train & validation
    assert 0.09 < len(validation) / len(corpus.entries) < 0.11
    for signature in {e.signature for e in corpus.entries if e.signature}:
        assert ast.parse(f"def f{signature}: pass")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("living", "least"),
    [(torch, 150), (torch.linalg, 15), (numpy.ma, 50), (numpy.ndarray, 8)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_real_libraries_say_the_same(living, least, real):
    """Where nothing was filled in, what is read is what help() shows."""
    said = {
        squeeze(inspect.cleandoc(text))
        for name in dir(living)
        if isinstance(text := getattr(living, name).__doc__, str)
    }
    assert len(said & set(texts(real[0]))) > least
