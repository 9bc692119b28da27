"""Weights as they are handed over: a file, or a zip with what belongs to them; and the class names in either."""

from __future__ import annotations

import ast
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobkit.errors import DataValidationError
from jobkit.unpack import unpack
from nightshift_common.options.weights import ARCHIVES

LABELS_FILE = "num2label.txt"
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx")
LARGEST_LABELS = 2**20  # bytes
_NUMBERED = re.compile(r"(\d+)\s*[:=,;\s]\s*(.+)")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, and the class names that came with it, in the order of the outputs; none where none came."""

    path: Path
    labels: list[str]


@contextmanager
def opened_weights(path: Path) -> Iterator[WeightsFile]:
    """Yield the file of weights at `path`: the file itself or, of a zip, the one in it, unpacked for as long.

    A TorchScript archive is a zip, too, and may have `num2label.txt` among its extra files.

    Raises:
        DataValidationError: a zip with no or several files of weights, damaged or hostile; or class names that cannot
            be read.
    """
    if path.suffix.lower() not in ARCHIVES:
        yield WeightsFile(path, _extra_labels(path))
        return
    with tempfile.TemporaryDirectory(prefix="nightshift-weights-") as scratch:
        folder = Path(scratch) / "weights"
        unpack(path, folder, lambda _: None)
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in WEIGHTS)
        if len(found) != 1:
            names = ", ".join(str(file.relative_to(folder)) for file in found) or "none"
            raise DataValidationError(
                f"{path.name} should hold one file of weights ({', '.join(WEIGHTS)}); it holds {names}"
            )
        named = sorted(folder.rglob(LABELS_FILE))
        if len(named) > 1:
            raise DataValidationError(f"{path.name} has several files {LABELS_FILE}")
        beside = _read_labels(named[0].read_bytes()[: LARGEST_LABELS + 1], path.name) if named else []
        yield WeightsFile(found[0], beside or _extra_labels(found[0]))


def _extra_labels(path: Path) -> list[str]:
    """Return the class names among the extra files of a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                parts = PurePosixPath(entry.filename).parts
                if parts[-2:] == ("extra", LABELS_FILE):
                    with archive.open(entry) as file:
                        return _read_labels(file.read(LARGEST_LABELS + 1), path.name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise DataValidationError(f"{path.name} is damaged: {error}") from error
    return []


def _read_labels(content: bytes, name: str) -> list[str]:
    """Return class names by their numbers: JSON (an object or a list), or lines of `number name` or of names alone.

    Raises:
        DataValidationError: it is something else, or numbers are missing or there twice.
    """
    where = f"{LABELS_FILE} in {name}"
    if len(content) > LARGEST_LABELS:
        raise DataValidationError(f"{where} is longer than {LARGEST_LABELS} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataValidationError(f"{where} is no text in UTF-8: {error}") from error
    if text.lstrip()[:1] in ("{", "["):
        try:
            found = ast.literal_eval(text)  # JSON, and a dict as Python prints it: {0: 'boot'}
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise DataValidationError(f"{where} is neither JSON nor what Python prints: {error}") from error
        return _by_number(found.items(), where) if isinstance(found, Mapping) else [str(label) for label in found]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if all(numbered):
        return _by_number([(match[1], match[2].strip()) for match in numbered if match], where)
    return lines


def _by_number(pairs: Iterable[tuple[object, object]], where: str) -> list[str]:
    known: dict[int, str] = {}
    for number, label in pairs:
        if not str(number).isdecimal() or int(str(number)) in known:
            raise DataValidationError(f"{where}: {number!r} is no number of a class, or is there twice")
        known[int(str(number))] = str(label)
    if sorted(known) != list(range(len(known))):
        raise DataValidationError(f"{where} has the numbers {sorted(known)[:10]}: they go from 0 without gaps")
    return [known[number] for number in range(len(known))]
