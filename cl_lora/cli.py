"""The command line. Nothing heavy is imported here: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from cl_lora import __version__
from cl_lora.configuration.choices import config_names
from cl_lora.support.errors import UserError, unknown_name

USER_ERROR = 2
INTERRUPTED = 130

_RUN_HELP = """\
usage: cl-lora run [OVERRIDE ...] [--multirun]

Train one adapter an experience, merge after each experience in every arm,
evaluate every arm on every experience, and print the table. What is finished
is never computed again: run the same command again to go on.

Overrides are Hydra's: GROUP=CHOICE or KEY=VALUE.
"""
_RUN_EXAMPLES = """\
  KEY          default  meaning
  seeds        [0]      one bank of adapters is trained for each
  run_dir      null     the run folder; null: named by the configuration
  precision    auto     fp32, bf16, or auto: bf16 where the device is fast at it
  device       auto     auto, cpu or cuda
  strategy.*            rank, lora_alpha, targets, epochs, lr, head, ...
  arms.NAME             your own: '+arms.mine={method: ties, density: 0.1}'

  All keys and their meaning: configs/config.yaml, configs/GROUP/CHOICE.yaml

examples:
  cl-lora run
  cl-lora run benchmark=pacs benchmark.root=DIR model=vit_tiny \\
      arms=paper_adaptive 'seeds=[0,1,2]'
  cl-lora run strategy.head=prototypes 'arms=[default,paper_fixed]'
  cl-lora run --multirun strategy.rank=4,8,16
"""


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
    if given and (given[0] in ("-h", "--help", "--version") or given[0] in _COMMANDS):
        first = given[0]
        if first == "--version":
            print(__version__)
            return 0
        if first in ("-h", "--help"):
            print(_main_help())
            return 0
        return _COMMANDS[first][0](given[1:])
    # `cl-lora` alone, or with overrides only, means `cl-lora run`.
    if not given or "=" in given[0] or given[0].startswith(("-", "+", "~")):
        return _run(given)
    raise unknown_name("command", given[0], _COMMANDS)


def _main_help() -> str:
    lines = [f"  {name:9} {text}" for name, (_, text) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: cl-lora [COMMAND] [ARGUMENT ...]",
            "",
            "Train every LoRA adapter of a continual stream once, merge it every way, and see",
            "what is forgotten.",
            "",
            *lines,
            "",
            "`cl-lora COMMAND --help` says more. Without a command it is `cl-lora run`.",
        ]
    )


def _run(given: list[str]) -> int:
    if "-h" in given or "--help" in given:
        print(_RUN_HELP)
        for group in ("benchmark", "model", "strategy", "arms", "experiment"):
            print(_choices(group))
        print()
        print(_RUN_EXAMPLES, end="")
        return 0
    from cl_lora.configuration.launch import launch

    _quieten()
    return launch(given)


def _choices(group: str) -> str:
    names = ", ".join(config_names(group))
    return textwrap.fill(names, 80, initial_indent=f"  {group:11}  ", subsequent_indent=15 * " ")


def _list(given: list[str]) -> int:
    from cl_lora.commands import list as listing

    parser = _parser("list", "Show what can be chosen.")
    parser.add_argument("what", metavar="WHAT", help=", ".join(listing.LISTS))
    what = parser.parse_args(given).what
    if what not in listing.LISTS:
        raise unknown_name("list", what, listing.LISTS)
    listing.show(what)
    return 0


def _doctor(given: list[str]) -> int:
    _parser(
        "doctor", "Say what is installed, which device is used, which data is found."
    ).parse_args(given)
    from cl_lora.commands.doctor import examine

    _quieten()
    return examine()


def _compare(given: list[str]) -> int:
    from cl_lora.commands.reports import compare

    return compare(given, _parser)


def _report(given: list[str]) -> int:
    from cl_lora.commands.reports import report

    return report(given, _parser)


_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "run": (_run, "train the adapters, evaluate every arm, print the table"),
    "compare": (_compare, "put runs side by side, with paired differences"),
    "report": (_report, "make the report of a run again from its folder"),
    "list": (_list, "show benchmarks, models, methods, coefficients, arms, experiments"),
    "doctor": (_doctor, "say what is installed and what will be used"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"cl-lora {command}", description=description)


def _quieten() -> None:
    """Show our own progress lines; keep the libraries' warnings about themselves away."""
    warnings.filterwarnings("ignore")
    # A full disk hits log.txt first, and logging would print tracebacks of its own.
    logging.raiseExceptions = False
    logger = logging.getLogger("cl_lora")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.propagate = False


if __name__ == "__main__":
    sys.exit(main())
