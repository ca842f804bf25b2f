"""What the system refuses, as the sentence that a user needs: no traceback helps with a full disk.

An error that is no refusal of the system is a mistake of ours, and keeps its traceback.
"""

from __future__ import annotations

import errno
import os

from cl_lora.support.errors import printable

_FULL = "free some space or choose another folder"
_RIGHTS = "check its permissions, or choose another folder"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another folder",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EIO: "check the disk, and give the same command again",
    errno.ENOENT: "check its name, and give the same command again",
    errno.ENOTDIR: "choose another name: a file is where a folder should be",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "check the links on the way to it",
}
_OTHER = "check it, and give the same command again"
_MEMORY = (
    "close other programs, raise the limit (ulimit -v), or make strategy.batch_size and "
    "eval_batch_size smaller"
)
# What torch and the interpreter say where the system gives them no more.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate",
    "could not create a primitive",  # of oneDNN, which says no more
)
_NO_THREAD = "can't start new thread"
_NO_HOME = "Could not determine home directory"


def remedy(number: int | None) -> str:
    """Return what to do about an error of the system by its number."""
    return _OTHER if number is None else _REMEDIES.get(number, _OTHER)


def sentence_of(error: BaseException) -> str | None:
    """Return what the system has refused and what to do, in one sentence; None for other errors.

    Errors that led to ``error`` are looked at as well: libraries wrap what the system says.
    """
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        found = _of_one(at)
        if found is not None:
            return found
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return None


def _of_one(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError | SystemError | OSError)
        and any(words in text.lower() for words in _NO_MEMORY)
    ):
        return f"The memory does not suffice; {_MEMORY}"
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, RuntimeError) and _NO_THREAD in text:
        return f"The system starts no more threads; {_MEMORY}"
    if isinstance(error, RuntimeError) and _NO_HOME in text:
        return (
            "Could not determine the home directory; set HOME, or name the folders: CL_LORA_CACHE "
            "for decoded images, run_dir or runs_root for runs"
        )
    return None


def _of_system(error: OSError) -> str | None:
    if error.errno is None:
        return None
    if error.filename is None and error.errno == errno.ENOENT and _is_nowhere():
        return "The current folder does not exist any more; change to another one"
    reason = error.strerror or str(error)
    given = (error.filename, error.filename2)
    names = [os.fsdecode(name) for name in given if isinstance(name, str | bytes)]
    where = printable(" -> ".join(names)) if names else "The system refuses"
    return f"{where}: {reason}; {remedy(error.errno)}"


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False
