"""Which test samples were served right: one packed bit per sample, a file for every seed and arm.

``hits/seed-S/ARM.npz`` holds for each stage and experience an array called ``<stage>/<experience>``
(uint8, ``numpy.packbits`` of right and wrong), and for each experience ``n/<experience>``, the
number of its test samples.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cl_lora.run_folder.layout import SCORES_FILE
from cl_lora.support import files
from cl_lora.support.errors import UserError

Hits = NDArray[np.bool_]
Unit = tuple[int, int]
"""A stage and an experience."""

_BITS = re.compile(r"(?P<stage>-?\d+)/(?P<experience>\d+)")
_LENGTH = re.compile(r"n/(?P<experience>\d+)")


def write_hits(path: Path, hits: Mapping[Unit, Hits]) -> None:
    """Add hits to a file, whole or not at all; what is there of other units stays.

    Args:
        path: where :func:`cl_lora.run_folder.layout.hits_file` says.
        hits: (stage, experience) -> bool (N,), one entry for each test sample in its order.

    Raises:
        UserError: if the file that is there is damaged, or the disk refuses.
        ValueError: if an array is not bool (N,), or two of one experience differ in length.
    """
    for unit, right in hits.items():
        if right.dtype != np.bool_ or right.ndim != 1:
            raise ValueError(f"Expected bool (N,) for {unit} but got {right.dtype} {right.shape}")
    merged = {**(read_hits(path) if path.exists() else {}), **hits}
    arrays: dict[str, NDArray[np.generic]] = {}
    for (stage, experience), right in sorted(merged.items()):
        length = arrays.setdefault(f"n/{experience}", np.array(len(right), dtype=np.int64))
        if int(length) != len(right):
            raise ValueError(
                f"Expected {int(length)} test samples of experience {experience} at stage {stage} "
                f"but got {len(right)}"
            )
        arrays[f"{stage}/{experience}"] = np.packbits(right)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
            # A fixed date, so that the same hits are the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue(), zipfile.ZIP_DEFLATED)
    files.write_bytes(path, data.getvalue())


def read_hits(path: Path) -> dict[Unit, Hits]:
    """Return what :func:`write_hits` wrote: (stage, experience) -> bool (N,).

    Raises:
        UserError: if the file is missing, cut or damaged; says what to do.
    """
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(
            f"Expected right and wrong bits in {path} but the file is missing"
        ) from None
    except UserError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    except (AttributeError, TypeError) as error:  # a single array instead of an archive
        raise _damaged(path, "it is no archive of arrays") from error
    lengths: dict[int, int] = {}
    for name, array in arrays.items():
        found = _LENGTH.fullmatch(name)
        if found is not None:
            if array.dtype != np.int64 or array.ndim or array < 0:
                raise _damaged(path, f"{name} is no number of samples")
            lengths[int(found["experience"])] = int(array)
    hits: dict[Unit, Hits] = {}
    for name, array in arrays.items():
        if _LENGTH.fullmatch(name):
            continue
        found = _BITS.fullmatch(name)
        if found is None:
            raise _damaged(path, f"it holds {name!r}, which is no stage and experience")
        stage, experience = int(found["stage"]), int(found["experience"])
        if experience not in lengths:
            raise _damaged(path, f"the number of samples of experience {experience} is missing")
        count = lengths[experience]
        if array.dtype != np.uint8 or array.shape != (-(-count // 8),):
            raise _damaged(path, f"{name} does not hold the bits of {count} samples")
        hits[stage, experience] = np.unpackbits(array, count=count).astype(np.bool_)
    return hits


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} is damaged: {problem}; delete it, only intervals over test samples need it (to "
        f"have it again, delete {SCORES_FILE} too and run the command again)"
    )
