"""The files that the command line reads: one array from .npy, .npz or .csv, as a user names it."""

from __future__ import annotations

import csv
import gzip
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.lib.format import open_memmap

from nbbce._arrays import Array

# Cells that are no numbers and stand for some, as pandas, R and others write labels of bool.
FLAGS = {"True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0, "true": 1.0, "false": 0.0}


class Problem(Exception):
    """What the user can put right, as one line."""


@dataclass(frozen=True)
class Source:
    """An array and the file that it is from, as the user named it (with key or column) and on disk."""

    name: str
    path: Path
    array: Array


def one_line(error: BaseException) -> str:
    """What an error says, as one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


_FILE = re.compile(r"(?P<path>.*?(?P<kind>\.npy|\.npz|\.csv|\.csv\.gz))(?::(?P<part>.*))?", re.IGNORECASE | re.DOTALL)


def is_file_name(text: str) -> bool:
    """Whether `text` names a file of a kind that can be read."""
    return _FILE.fullmatch(text) is not None


def read_array(name: str) -> Source:
    """The array in a file, as `name` says: FILE or FILE:PART."""
    match = _FILE.fullmatch(name)
    if match is None:
        raise Problem(f"a file must end in .npy, .npz, .csv or .csv.gz (and then :KEY or :COLUMN); got {name!r}")
    path, part = Path(match["path"]), match["part"]
    try:
        array = _READERS[match["kind"].lower()](path, part)
    except Problem:
        raise
    except MemoryError:
        raise Problem(f"cannot read {path}: it does not fit into memory, which a .npy file need not") from None
    except Exception as error:
        # NumPy, zipfile, gzip and csv raise a dozen kinds of errors for a broken file.
        raise Problem(f"cannot read {path}: {one_line(error)}") from None
    return Source(name, path, array)


def _read_npy(path: Path, part: str | None) -> Array:
    if part is not None:
        raise Problem(f"a .npy file holds one array and takes no key; got {part!r} for {path}")
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise Problem(f"cannot read {path}: it is no .npy file")
    return np.asarray(open_memmap(path, mode="r"))


def _read_npz(path: Path, key: str | None) -> Array:
    with path.open("rb") as file:
        if file.read(4) not in (b"PK\3\4", b"PK\5\6"):  # with members, and without
            raise Problem(f"cannot read {path}: it is no .npz file")
        file.seek(0)
        # Not by its path: NumPy leaves a broken file open.
        arrays = np.load(file, allow_pickle=False)
        keys = list(arrays.files)
        if key is None:
            if len(keys) != 1:
                raise Problem(f"{path} must be given with a key, as in {path}:KEY; it holds {_list(keys)}")
            key = keys[0]
        if key not in keys:
            raise Problem(f"{path} holds no array {key!r}; it holds {_list(keys)}")
        return np.asarray(arrays[key])


def _read_csv(path: Path, column: str | None) -> Array:
    with _open_text(path) as file:
        names = next(csv.reader(file), [])
    position = _column(path, names, column)
    try:
        values, uneven = _load(path, position, None)
    except ValueError:
        # Labels as pandas writes those of bool?  With a function for each cell a million take 0.35 s, not 0.14.
        try:
            values, uneven = _load(path, position, _number)
        except ValueError:
            _find_bad_line(path, names, position)
            raise
    if uneven:
        _find_bad_line(path, names, position)
    return values


def _load(path: Path, position: int, converters: Callable[[str], float] | None) -> tuple[Array, bool]:
    """The numbers of a column, and whether lines seem to be of different lengths."""
    with _open_text(path) as file, warnings.catch_warnings():
        lines = _Lines(file, len(next(csv.reader(file))))
        warnings.filterwarnings("ignore", "loadtxt: input contained no data", UserWarning)
        values = np.loadtxt(
            lines,
            np.float64,
            comments=None,
            delimiter=",",
            converters=converters,
            usecols=position,
            ndmin=1,
            quotechar='"',
        )
    return values, lines.uneven


class _Lines:
    """The lines of a file, with a note whether one seems to have more or fewer cells than the header."""

    def __init__(self, file: TextIO, cells: int) -> None:
        self._file, self._commas, self.uneven = file, cells - 1, False

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            if line.count(",") != self._commas:
                self.uneven = True
            yield line


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _column(path: Path, names: list[str], column: str | None) -> int:
    """Index of the column that the user means."""
    if not names:
        raise Problem(f"the first line of {path} must name its columns; got an empty one")
    if all(map(_is_number, names)):
        # Without a header the first values would be lost, silently.
        raise Problem(f"the first line of {path} must name its columns; got the numbers {','.join(names)}")
    if column is None:
        if len(names) > 1:
            raise Problem(f"{path} must be given with a column, as in {path}:COLUMN; it has {_list(names)}")
        return 0
    if names.count(column) > 1:
        raise Problem(f"{path} has {names.count(column)} columns {column!r}; name one by its index, as in {path}:0")
    if column in names:
        return names.index(column)
    if column.isdecimal() and int(column) < len(names):
        return int(column)
    raise Problem(f"{path} has no column {column!r}; it has {_list(names)}")


def _find_bad_line(path: Path, names: list[str], position: int) -> None:
    """Raise a Problem for the first line that does not have the header's number of cells, or no number."""
    with _open_text(path) as file:
        reader = csv.reader(file)
        next(reader)
        for cells in reader:
            if cells and len(cells) != len(names):
                raise Problem(
                    f"{path}, line {reader.line_num}: cells must be as many as in the header, {len(names)}; "
                    f"got {len(cells)}"
                )
            if cells and not _is_number(cells[position], finite=False):
                raise Problem(
                    f"{path}, line {reader.line_num}, column {names[position]!r}: must be a number; "
                    f"got {_short(cells[position])}"
                )


def _number(text: str) -> float:
    """The number that a cell holds."""
    flag = FLAGS.get(text.strip())
    if flag is None and ("_" in text or not text.isascii()):  # which Python takes for a separator, and for digits
        raise ValueError
    return float(text) if flag is None else flag


def _is_number(text: str, finite: bool = True) -> bool:
    try:
        number = _number(text)
    except ValueError:
        return False
    return math.isfinite(number) or not finite


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _list(names: Sequence[str]) -> str:
    """Names in a message, the first few of many."""
    if not names:
        return "nothing"
    return ", ".join(map(_short, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


_READERS: dict[str, Callable[[Path, str | None], Array]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
}
