"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what the kernel takes for "forget the highest resident set"
_MB = 1024.0**2
_MMAP_THRESHOLD, _LARGE = -3, 2**22  # what mallopt calls it, and from how many bytes on


@dataclass
class Peak:
    """The outcome of :func:`peak_memory`.

    Attributes:
        mb: MiB beyond what was held before; None until the work is done, or where nothing tells.
    """

    mb: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the highest memory of the work inside, beyond what was held when it began.

    On CUDA what torch allocates on the device; on the CPU of Linux the resident set of the process,
    of which freed pages are given back first. Elsewhere nothing is measured.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.mb = (torch.cuda.max_memory_allocated(device) - before) / _MB
        return
    start = _reset() if device.type == "cpu" else None
    yield peak
    highest = _resident("VmHWM")
    if start is not None and highest is not None:
        peak.mb = max(0.0, highest - start)


def give_back() -> None:
    """Give freed memory back to the system, where the C library does when it is asked (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def give_back_at_once() -> None:
    """Have this process give every large tensor back to the system as soon as it is freed.

    The C library of Linux learns from what is freed to keep ever larger pieces for later, which no
    tensor of another size fits into: a loop over tensors of many sizes grows without holding
    anything. For a command that promises little memory; elsewhere keeping pieces is faster.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, _LARGE)


def _reset() -> float | None:
    """Forget the highest resident set and return what is held now, in MiB."""
    give_back()
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(key: str) -> float | None:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return float(line.split()[1]) / 1024
    return None
