"""What every command shares at the terminal: parsing its arguments, and quiet libraries."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from cl_lora.support.errors import UserError
from cl_lora.support.printing import Lines, be_quiet

if TYPE_CHECKING:
    from rich.console import Console


_EXAMPLES = "examples:\n"


class _Formatter(argparse.HelpFormatter):
    """Wraps texts, but leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """The parser of one command; a mistake is one sentence.

    Args:
        command: its name.
        description: what it does.
        examples: command lines without ``cl-lora``, which the help shows.
    """

    def __init__(self, command: str, description: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=f"cl-lora {command}",
            description=description,
            epilog=_EXAMPLES + "\n".join(f"  cl-lora {example}" for example in examples),
            formatter_class=_Formatter,
        )

    def add_plugins(self) -> None:
        """Accept ``--plugin MODULE``, any number of times."""
        self.add_argument(
            "--plugin",
            metavar="MODULE",
            dest="plugins",
            action="append",
            default=[],
            help="a module of yours that registers further choices",
        )

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as a sentence."""
        raise UserError(f"{message}; see {self.prog} --help")


def console(**options: Any) -> Console:
    """Return rich's console for standard output; where its reader has gone, that is no error.

    Rich by itself ends the process with exit code 1 then, as in ``cl-lora doctor | head -1``.
    """
    from rich.console import Console

    class Printing(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Printing(**options)


@dataclass(frozen=True)
class Verbosity:
    """How much is printed on standard error.

    Attributes:
        quiet: only tables, warnings and errors.
        verbose: every step with its time, those of each score too.
    """

    quiet: bool = False
    verbose: bool = False

    @property
    def level(self) -> int:
        """The least important messages of the log that are shown."""
        return logging.WARNING if self.quiet else logging.DEBUG if self.verbose else logging.INFO


def show_at(verbosity: Verbosity) -> None:
    """Show as much from now on, of the log and beside it."""
    quieten()
    be_quiet(verbosity.quiet)
    logger = logging.getLogger("cl_lora")
    logger.setLevel(min(verbosity.level, logging.INFO))  # log.txt holds the same in any case
    for handler in logger.handlers:
        handler.setLevel(verbosity.level)
        line = "%(asctime)s %(message)s" if verbosity.verbose else "%(message)s"
        handler.setFormatter(Lines(line, datefmt="%H:%M:%S"))


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to what is standard error then, which a caller within this process may redirect."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def quieten() -> None:
    """Show our own progress lines; keep the libraries' warnings about themselves away."""
    warnings.filterwarnings("ignore")
    # A full disk hits log.txt first, and logging would print tracebacks of its own.
    logging.raiseExceptions = False
    logger = logging.getLogger("cl_lora")
    if not logger.handlers:
        logger.setLevel(logging.INFO)
        handler = _ToStandardError()
        handler.setFormatter(Lines("%(message)s"))
        logger.addHandler(handler)
    logger.propagate = False
