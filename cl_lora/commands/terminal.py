"""What every command shares at the terminal: parsing its arguments, and quiet libraries."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

from cl_lora.support.errors import UserError
from cl_lora.support.printing import Lines

if TYPE_CHECKING:
    from rich.console import Console


class Parser(argparse.ArgumentParser):
    """The parser of one command; a mistake is one sentence.

    Args:
        command: its name.
        description: what it does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"cl-lora {command}", description=description)

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


def quieten() -> None:
    """Show our own progress lines; keep the libraries' warnings about themselves away."""
    warnings.filterwarnings("ignore")
    # A full disk hits log.txt first, and logging would print tracebacks of its own.
    logging.raiseExceptions = False
    logger = logging.getLogger("cl_lora")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Lines("%(message)s"))
        logger.addHandler(handler)
    logger.propagate = False
