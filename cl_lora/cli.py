"""The table of commands. Nothing heavy is imported here: ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import NoReturn

from cl_lora import __version__
from cl_lora.support import printing
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.failures import sentence_of

USER_ERROR = 2
INTERRUPTED = 130

COMMANDS: Mapping[str, str] = {
    "run": "train the adapters, evaluate every arm, print the table",
    "demo": "run all defaults: a drawn benchmark, a small backbone, ten arms",
    "compare": "put finished runs side by side, with paired differences",
    "report": "make the report of a finished run again",
    "check": "look for damage in a run folder, and for what is missing",
    "merge": "merge LoRA folders of any model, or whole fine-tuned models",
    "export": "write a merged adapter and its heads for peft and timm alone",
    "list": "list what can be chosen: benchmarks, models, methods, arms, ...",
    "doctor": "say what is installed, and which device and data are found",
}
"""What each does; its module is ``cl_lora.commands.NAME`` and has ``run(arguments) -> code``."""

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_KEPT = "what is finished is kept, the same command goes on from there"


class Ended(KeyboardInterrupt):
    """The process is to end, by a signal: all is left as Ctrl-C leaves it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0; 2 for a user's mistake, or what the system refuses, as a full disk; 128 and its number for a
    signal that ends it, so 130 for Ctrl-C and 143 for SIGTERM. The reader of the output may go when
    it has seen enough, as in ``cl-lora doctor | head -1``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # OpenMP threads that spin while they wait collapse on a busy machine (measured: twenty times
    # slower with two threads on two cores that one other process shares); sleeping ones do not.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    printing.prepare_streams()
    try:
        with _ending_by_signals():
            try:
                code = _dispatch(given)
            except SystemExit as end:  # of the parser's --help
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            printing.finish_output()
            return code
    except KeyboardInterrupt as stopped:
        number = stopped.number if isinstance(stopped, Ended) else signal.SIGINT
        word = "ended by a signal" if isinstance(stopped, Ended) else "interrupted"
        printing.tell("")
        printing.tell(f"cl-lora: {word}; {stopped.args[0] if stopped.args else _KEPT}")
        return 128 + number
    except BrokenPipeError:
        printing.drop_output()
        return 0
    except Exception as error:
        sentence = _told(error)
        if sentence is None:
            raise
        printing.tell(f"cl-lora: {' '.join(sentence.split())}")
        return USER_ERROR
    finally:
        printing.finish_errors()


def _told(error: Exception) -> str | None:
    """Return the sentence for what went wrong; None for a mistake of ours, or where it is asked."""
    if os.environ.get("CL_LORA_TRACEBACK"):
        return None
    try:
        printing.finish_output()
    except printing.OutputError as refused:
        # What the command could not print is why it failed, if it was nothing of its own.
        error = error if isinstance(error, UserError) else refused
    except BrokenPipeError:
        printing.drop_output()
    return str(error) if isinstance(error, UserError) else sentence_of(error)


@contextlib.contextmanager
def _ending_by_signals() -> Iterator[None]:
    """End in order where a signal asks for it, of a batch system or a terminal that was closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in _ENDING if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # asked again, it ends at once
    raise Ended(number)


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0
    command, *rest = given
    if command == "--version":
        print(__version__)
        return 0
    if command in COMMANDS:
        code: int = importlib.import_module(f"cl_lora.commands.{command}").run(rest)
        return code
    if "=" in command or command.startswith(("-", "+", "~")):
        raise UserError(
            f"Expected a command but got {command!r}; write cl-lora run {' '.join(given)}"
        )
    raise unknown_name("command", command, COMMANDS)


def _help() -> str:
    return "\n".join(
        [
            "usage: cl-lora COMMAND [ARGUMENT ...]",
            "",
            "Train each LoRA adapter of a continual stream once, merge the adapters in every",
            "way, and see which merge is best and how much is forgotten.",
            "",
            "commands:",
            *(f"  {name:11} {text}" for name, text in COMMANDS.items()),
            "",
            "options:",
            "  -h, --help  show this help; `cl-lora COMMAND --help` explains one command",
            "  --version   show the version",
            "",
            "examples:",
            "  cl-lora demo",
            "  cl-lora run benchmark=domains benchmark.root=DIR model=vit_tiny",
            "  cl-lora list methods",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
