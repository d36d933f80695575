"""The reader's own text is read as it was meant, or the file is named."""

import codecs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratch.data.text import load_text

TEXT = "Über naïve Änderungen: 10 €\nZweite Zeile\n"


@pytest.fixture
def put(tmp_path):
    """Return a function that writes a file and returns its path."""

    def put(name, raw=b"some text"):
        file = tmp_path / "own" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)
        return file

    return put


# --- Encodings ---


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_decides(mark, encoding, put):
    file = put("a.txt", mark + TEXT.encode(encoding))
    assert load_text(file) == [TEXT]
    if mark:
        assert load_text(file, encoding="latin1") == [TEXT]


@pytest.mark.parametrize(
    "encoding", ["cp1252", "utf-16-le", "UTF_16BE", "utf32", "U8", "cp037"]
)
def test_a_file_without_a_mark_has_the_encoding_that_is_named(encoding, put):
    text = TEXT if encoding != "cp037" else "plain"
    raw = text.encode(encoding)
    for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF16_LE):
        raw = raw.removeprefix(mark)
    assert load_text(put("a.txt", raw), encoding=encoding) == [text]


def test_utf16_has_more_than_one_name(put):
    raw = "ab".encode("utf-16-le")
    assert load_text(put("a.txt", raw), encoding="utf16") == ["ab"]


@given(st.text(st.characters(codec="utf8"), min_size=1))
@example("\ufeffa")
@example("\x1a\x0c.")
def test_what_was_written_is_what_is_read(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.txt"
    text = text.replace("\0", "-").replace("\r", "\n") + "."
    file.write_text(text, encoding="utf-8-sig", newline="")
    assert load_text(str(file)) == [text]


def test_a_wrong_encoding_names_the_file_and_the_byte(put):
    file = put("old.txt", "Über".encode("cp1252"))
    with pytest.raises(ValueError, match=r"utf-8: .*old\.txt .*0xdc at .* 0;"):
        load_text(file)
    assert load_text(file, encoding="cp1252") == ["Über"]


@pytest.mark.parametrize(
    ("raw", "encoding", "place"),
    [
        (b"abc\xff", "utf-8", "0xff at offset 3;"),
        (codecs.BOM_UTF8 + b"ab\xe9", "utf-8-sig", "0xe9 at offset 5;"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8", "utf-16", "0x00 at offset 4;"),
        (codecs.BOM_UTF32_BE + b"abcd", "utf-32", "0x61 at offset 4;"),
    ],
)
def test_the_offset_counts_from_the_start_of_the_file(
    raw, encoding, place, put
):
    with pytest.raises(ValueError, match=place) as caught:
        load_text(put("a.txt", raw))
    assert f"got {encoding}: " in str(caught.value)


def test_an_encoding_must_exist(put):
    with pytest.raises(LookupError, match="utf-9"):
        load_text(put("a.txt"), encoding="utf-9")


def test_line_ends_become_one_character(put):
    file = put("a.txt", b"a\r\nb\rc\nd\r\r\n\r\n")
    assert load_text(file) == ["a\nb\nc\nd\n\n\n"]


# --- Files that hold no text ---


@pytest.mark.parametrize(
    "raw", [b"\x89PNG\r\n\0", b"text\0", b"\xef\xbb\xbf\0"]
)
def test_a_binary_file_is_named(raw, put):
    put("a.txt")
    file = put("b.png", raw)
    for path in (file, file.parent):
        with pytest.raises(ValueError, match=r"binary .*b\.png") as caught:
            load_text(path)
        assert f"offset {raw.index(0)}; suffixes=" in str(caught.value)
    assert load_text(file.parent, suffixes=(".txt",)) == ["some text"]


@pytest.mark.parametrize("raw", [b"", b" \r\n\t", codecs.BOM_UTF8])
def test_an_empty_file_is_named(raw, put):
    put("a.txt")
    file = put("b/empty.txt", raw)
    for path in (file, file.parent.parent):
        with pytest.raises(ValueError, match=r"empty file: .*empty\.txt"):
            load_text(path)


# --- Folders ---


def test_a_folder_is_read_whole_and_in_order(put):
    for name in ("c.txt", "a/z.md", "b.txt", "a/b/x", "B.txt"):
        put(name, name.encode())
    folder = put("d.txt", b"d.txt").parent
    expected = ["B.txt", "a/b/x", "a/z.md", "b.txt", "c.txt", "d.txt"]
    assert load_text(folder) == expected
    assert load_text(str(folder)) == expected


def test_suffixes_choose(put):
    for name in ("a.txt", "b.md", "c.TXT", "d.tar.md", "txt", "e.txt/f.c"):
        folder = put(name, name.encode()).parent
    folder = folder.parent
    assert load_text(folder, suffixes=(".txt", ".md")) == [
        "a.txt",
        "b.md",
        "d.tar.md",
    ]
    with pytest.raises(ValueError, match=r"a file in \('\.py',\), got .*own"):
        load_text(folder, suffixes=(".py",))
    with pytest.raises(TypeError, match=r"suffixes must .* got '\.txt'"):
        load_text(folder, suffixes=".txt")


def test_hidden_files_are_left_out_unless_named(put):
    folder = put("a.txt").parent
    put(".hidden", b"\0")
    hidden = put(".git/config", b"hidden text")
    assert load_text(folder) == ["some text"]
    # A folder that lies in a hidden one is read when it is asked for.
    assert load_text(hidden) == load_text(hidden.parent) == ["hidden text"]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must .*nothing\.txt"):
        load_text(tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match=f"hold a file, got .*{tmp_path}"):
        load_text(tmp_path)
