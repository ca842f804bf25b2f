"""The table of commands. Nothing heavy is imported here: ``--help`` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from cl_lora import __version__
from cl_lora.support.errors import UserError, unknown_name

USER_ERROR = 2
INTERRUPTED = 130

COMMANDS: Mapping[str, str] = {
    "run": "train the adapters, evaluate every arm, print the table",
    "demo": "run all defaults: a drawn benchmark, a shipped backbone, ten arms",
    "compare": "put runs side by side, with paired differences",
    "report": "make the report of a run again from its folder",
    "merge": "merge LoRA folders of any model, or whole models, without the base",
    "export": "take a merged adapter and its heads home, for peft and timm alone",
    "list": "show what can be chosen: benchmarks, models, methods, arms, ...",
    "doctor": "say what is installed and what will be used",
}
"""What each does; its module is ``cl_lora.commands.NAME`` and has ``run(arguments) -> code``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # OpenMP threads that spin while they wait collapse on a busy machine (measured: twenty times
    # slower with two threads on two cores that one other process shares); sleeping ones do not.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _dispatch(given)
    except UserError as error:
        print(f"cl-lora: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(
            "\ncl-lora: interrupted; what is finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in `cl-lora list arms | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
            "Train every LoRA adapter of a continual stream once, merge it every way, and see",
            "what is forgotten.",
            "",
            *(f"  {name:9} {text}" for name, text in COMMANDS.items()),
            "",
            "`cl-lora COMMAND --help` says more. `cl-lora demo` is a good start.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
