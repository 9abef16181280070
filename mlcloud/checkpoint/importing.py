"""States that other tools wrote, read without running any code of theirs.

    .safetensors                  its tensors by name, and what its metadata says of step and metric
    .pt .pth .bin .ckpt           what `torch.load(weights_only=True)` takes, and numpy's plain
                                  arrays (`safe_numpy`)
    a folder with `.metadata`     `torch.distributed.checkpoint` (`plain_dcp`)
    a folder of safetensors       Hugging Face's `model.safetensors.index.json` and the files that
                                  it names, or a single file

Tensors of files stay mapped from the disk until they are saved, one after the other; those of a DCP
folder are put together in memory first. Whatever is wrong is NotImportable, with the path.
"""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import plain_dcp

FORMATS = ("safetensors", "pt", "dcp")
_SUFFIXES = {
    ".safetensors": "safetensors",
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), "pt"),
}
_INDEX = ".safetensors.index.json"


@dataclass
class Found:
    """A state from elsewhere, with what it says of itself."""

    state: dict[Any, Any]
    step: int | None = None
    metric: float | None = None


def read(path: str | Path, part: str | None, format: str | None) -> Found:
    """The state in a file or folder, as the entry `part` of a state where that is given.

    Raises NotImportable, and UsageError for a format that is none.
    """
    place = Path(path)
    if format is not None and format not in FORMATS:
        raise errors.UsageError(f"import knows the formats {', '.join(FORMATS)}, not {format!r}")
    if "://" in str(path):
        raise errors.UsageError(f"{path} is no path of this machine: copy it here first")
    if not place.exists():
        raise errors.NotImportable(f"there is no file or folder {place}")
    readers: dict[str, Callable[[Path], tuple[Any, dict[str, str]]]] = {
        "safetensors": _safetensors,
        "pt": _torch,
        "dcp": _dcp,
    }
    try:
        value, notes = readers[format or _kind(place)](place)
    except errors.NotImportable as error:
        raise errors.NotImportable(f"{place} cannot be imported: {error}") from error.__cause__
    except errors.MLCloudError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are libraries
        raise errors.NotImportable(
            f"{place} cannot be imported: it is damaged or of another format "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    if part is not None:
        value = {part: value}
    if not isinstance(value, dict):
        raise errors.NotImportable(
            f"{place} holds a {type(value).__name__} and no dict: say by part= under which name it "
            "belongs in the state"
        )
    return Found(value, _step(notes.get("step")), _metric(notes.get("metric")))


def _kind(place: Path) -> str:
    if place.is_dir():
        if (place / plain_dcp.METADATA).is_file():
            return "dcp"
        if any(place.glob("*.safetensors")) or any(place.glob(f"*{_INDEX}")):
            return "safetensors"
        raise errors.NotImportable(
            "it is a folder neither of torch.distributed.checkpoint (no .metadata in it) nor of "
            "safetensors files"
        )
    kind = _SUFFIXES.get(place.suffix)
    if kind is None:
        raise errors.NotImportable(
            f"import knows {', '.join(_SUFFIXES)} and folders, not {place.name!r}; say by format= "
            f"which it is: {', '.join(FORMATS)}"
        )
    return kind


# --- one reader a format --------------------------------------------------------------------------


def _dcp(folder: Path) -> tuple[Any, dict[str, str]]:
    if not (folder / plain_dcp.METADATA).is_file():
        raise errors.NotImportable(
            "it has no .metadata, which torch.distributed.checkpoint writes last: it is no folder "
            "of its, or was not finished"
        )
    return plain_dcp.read(folder), {}


def _torch(file: Path) -> tuple[Any, dict[str, str]]:
    if file.is_dir():
        raise errors.NotImportable("it is a folder, and a .pt file was expected")
    # Files of torch before 1.6 are no zip archives, and cannot be mapped.
    return plain_dcp.load_safely(file, "", mmap=zipfile.is_zipfile(file)), {}


def _safetensors(place: Path) -> tuple[Any, dict[str, str]]:
    if not place.is_dir():
        return _tensors_of(place, None)
    index = sorted(place.glob(f"*{_INDEX}"))
    files = sorted(place.glob("*.safetensors"))
    if len(index) == 1:
        return _indexed(place, index[0])
    if not index and len(files) == 1:
        return _tensors_of(files[0], None)
    several = [each.name for each in index or files]
    raise errors.NotImportable(
        f"it has several candidates, {', '.join(several)}: name one of the files"
        if several
        else "there is no .safetensors file in it"
    )


def _indexed(folder: Path, index: Path) -> tuple[Any, dict[str, str]]:
    """The tensors of several files, which an index tells by name."""
    where = json.loads(index.read_text("utf-8")).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(each, str) for each in where.values()):
        raise errors.NotImportable(f"{index.name} has no weight_map of names to files")
    tensors: dict[str, Any] = {}
    for name in sorted(set(where.values())):
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise errors.NotImportable(f"{index.name} names a file outside the folder: {name!r}")
        if not (folder / name).is_file():
            raise errors.NotImportable(f"the file {name}, which {index.name} names, is missing")
        keys = {key for key, file in where.items() if file == name}
        tensors.update(_tensors_of(folder / name, keys)[0])
    return {key: tensors[key] for key in where}, {}


def _tensors_of(file: Path, names: set[str] | None) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise errors.UsageError(
            "import of .safetensors needs safetensors and torch: pip install safetensors"
        ) from error
    try:
        with safe_open(file, framework="pt") as opened:
            there = list(opened.keys())
            missing = sorted((names or set()) - set(there))
            if missing:
                raise errors.NotImportable(
                    f"{file.name} has no {missing[0]!r}, which the index says is in it"
                )
            tensors = {
                name: opened.get_tensor(name) for name in there if names is None or name in names
            }
            return tensors, dict(opened.metadata() or {})
    except SafetensorError as error:
        raise errors.NotImportable(
            f"{file.name} is cut short, or no safetensors file ({_first_line(error)})"
        ) from error


# --- notes ----------------------------------------------------------------------------------------


def _step(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _metric(text: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        value = float(text)  # type: ignore[arg-type]
        return value if math.isfinite(value) else None
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
