"""The reader's own text, from a file or a folder."""

import codecs
from pathlib import Path

# How a file may say in its first bytes what encoding it has.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's: comes before it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def load_text(
    path: Path | str,
    *,
    suffixes: tuple[str, ...] | None = None,
    encoding: str = "utf-8",
) -> list[str]:
    """Return the text of a file, or of each file in a folder, by path.

    Folders are read with all that lies in them, hidden files and folders
    left out. A byte order mark decides over encoding. Line ends become \\n.

    Args:
        suffixes: of the files to read in a folder, such as (".txt", ".md");
            None reads every file.
        encoding: of files without a byte order mark.

    Raises: FileNotFoundError if path is missing; ValueError if a file is
        empty, binary or not in the encoding (each names the file), or if
        the folder holds no file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path must be a file or folder, got {path}")
    if not path.is_dir():
        return [_read(path, encoding)]
    if isinstance(suffixes, str):
        raise TypeError(
            f"suffixes must be a tuple of strings, got {suffixes!r}"
        )
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and not any(
            part.startswith(".") for part in file.relative_to(path).parts
        )
        and (suffixes is None or file.suffix in suffixes)
    ]
    if not files:
        wanted = "a file" if suffixes is None else f"a file in {suffixes}"
        raise ValueError(f"path must hold {wanted}, got the folder {path}")
    return [_read(file, encoding) for file in files]


def _read(file: Path, encoding: str) -> str:
    raw = file.read_bytes()
    marked = next((name for mark, name in _MARKS if raw.startswith(mark)), "")
    name = codecs.lookup(marked or encoding).name
    if b"\0" in raw and not name.startswith(("utf-16", "utf-32")):
        raise ValueError(
            f"path must hold text, got a binary file: {file} has a zero "
            f"byte at offset {raw.index(0)}; suffixes=(...) chooses files"
        )
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        # What was decoded may begin behind the mark.
        offset = len(raw) - len(error.object) + error.start
        raise ValueError(
            f"encoding must be that of the file, got {name}: {file} has "
            f"the byte 0x{raw[offset]:02x} at offset {offset}; older files "
            "from Windows are often cp1252"
        ) from error
    if not text.strip():
        raise ValueError(f"path must hold text, got an empty file: {file}")
    return text.replace("\r\n", "\n").replace("\r", "\n")
