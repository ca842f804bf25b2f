"""From the command line to jobs: our checks of all jobs first, then Hydra runs them."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.types import TaskFunction

from cl_lora.configuration.compose import CONFIG_NAME, CONFIG_PATH, Composer, require_assertions
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.printing import narrate
from cl_lora.sweeps.launchers import launcher_of
from cl_lora.sweeps.sweep import JOB_FILES, Plan, conduct, labels_of

Job = Mapping[str, Any]
Changes = Mapping[int, Mapping[str, Any]]
"""Job -> options that a sweep sets for it."""

Check = Callable[[Sequence[Job], bool], Changes]
"""Takes the configurations of several jobs, and whether two may run at the same time."""

SWEEP_FOLDER = ".cl-lora-sweep"
"""``hydra.sweep.dir`` of ``configs/config.yaml``: where launchers keep files of their own."""

_FULL_ERROR = "HYDRA_FULL_ERROR"


def launch(
    arguments: Sequence[str], job: TaskFunction, check: Check, imports: Sequence[str] = ()
) -> int:
    """Run a command line of Hydra's: every job that it asks for, or what its flags ask to show.

    All jobs are composed before the first is run, and several are checked together. Only where
    another sweeper than Hydra's basic one makes the jobs while they run, each must check itself,
    and the first that fails is the last.

    Args:
        arguments: overrides and Hydra's flags, in any order.
        job: runs one composed configuration and returns its run folder; importable, since
            launchers send it by name.
        check: finds what is wrong with several plain configurations, before the first is run, and
            says what the sweep sets for each.
        imports: modules that every job needs, which a launcher's process imports once.

    Returns:
        The exit code.

    Raises:
        UserError: for an unknown flag, option, choice or value.
    """
    require_assertions()
    given = _Arguments(arguments)
    flags = given.values
    composer = Composer(
        job.__module__,
        config_dir=flags.config_dir,
        config_path=flags.config_path,
        config_name=flags.config_name,
    )
    # Hydra reads them from the flags once more.
    flags.overrides = overrides = composer.readable(flags.overrides)
    several = given.runs and (flags.multirun or composer.is_multirun(overrides))
    plan = _plan(composer, overrides, several, check, imports) if given.runs else None
    # What hydra.main does, but for reading sys.argv, which runs record as the user's command.
    run = partial(
        _run_hydra,
        args=flags,
        args_parser=given.parser,
        config_path=CONFIG_PATH,
        config_name=CONFIG_NAME,
    )

    def hand_over(task: TaskFunction) -> None:
        with _wrapped() if flags.help else contextlib.nullcontext():
            composer.explaining(partial(run, task_function=task), overrides)

    def run_one() -> None:
        hydra = Hydra.create_main_hydra2(composer.task, composer.search_path)
        try:
            # As _run_hydra has it, which composes once more to find out that this is no sweep.
            hydra.run(composer.name, job, [*overrides, "hydra.mode=RUN"])
        finally:
            GlobalHydra.instance().clear()

    sweep = Path(SWEEP_FOLDER).absolute()
    try:
        with _errors_raised():
            if plan is not None:
                return conduct(plan, job, hand_over)
            if given.runs and not several:
                composer.explaining(run_one, overrides)
            else:
                hand_over(job)
    except SystemExit as end:
        # Help ends with 0; what Hydra has refused by itself is told already.
        return 0 if not end.code else 2
    finally:
        _tidy(sweep)
    return 0


def _plan(
    composer: Composer,
    overrides: Sequence[str],
    several: bool,
    check: Check,
    imports: Sequence[str],
) -> Plan | None:
    """Compose and check every job; return the sweep, None where there is none to plan."""
    jobs = composer.expand(overrides, multirun=several)
    if jobs is None:
        return None
    numbers = range(len(jobs)) if several else (None,)
    configs = [composer.compose(job, n) for job, n in zip(jobs, numbers, strict=True)]
    if not several:
        return None
    options, most = composer.launcher(overrides)
    kind = launcher_of(options)
    changes: Changes = {}
    if len(configs) > 1:
        changes = check(configs, kind.side_by_side)
        narrate(f"{len(configs)} jobs, all checked")
    at_once = kind.at_once(options, min(len(configs), most or len(configs)))
    folder = Path(SWEEP_FOLDER).absolute()
    return Plan(kind, labels_of(jobs), at_once, changes, folder, tuple(imports))


_OWN_FLAGS = ("--dry-run", "--quiet", "--shard", "--verbose")
"""What ``cl-lora run`` has taken out before Hydra's flags are read."""


class _Arguments:
    """A command line of Hydra's, apart: overrides may stand before, between and after flags.

    Raises:
        UserError: for an unknown flag, or flags that exclude each other.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.parser = get_args_parser()
        parser = _Parser(parents=[self.parser], add_help=False)
        self.values, unknown = parser.parse_known_intermixed_args(list(arguments))
        if unknown:
            flags = [s for a in parser._actions for s in a.option_strings if s.startswith("--")]
            raise unknown_name("flag", unknown[0], [*flags, *_OWN_FLAGS])
        values = self.values
        modes = {
            "--run": values.run,
            "--multirun": values.multirun,
            "--cfg": values.cfg,
            "--info": values.info,
            "--shell-completion": values.shell_completion,
        }
        asked = [name for name, there in modes.items() if there]
        if len(asked) > 1:
            raise UserError(f"{asked[0]} and {asked[1]} exclude each other; give one of them")
        if values.resolve and not (values.cfg or values.help):
            raise UserError("--resolve says how --cfg shows the configuration; give --cfg job too")
        if values.shell_completion:
            _check_completion(values.overrides)
        if values.experimental_rerun is not None:
            raise UserError(
                "--experimental-rerun is not offered; give the same command again, which computes "
                "only what is missing"
            )
        self.runs = not (values.help or values.hydra_help) and asked in (
            [],
            ["--run"],
            ["--multirun"],
        )


_COMPLETIONS = ("install", "uninstall", "query")
_SHELLS = ("bash", "fish", "zsh")


def _check_completion(given: Sequence[str]) -> None:
    """Refuse what Hydra meets with a traceback."""
    found = [text.partition("=") for text in given]
    if len(found) != 1 or found[0][0] not in _COMPLETIONS or found[0][2] not in _SHELLS:
        raise UserError(
            f"Expected one of {', '.join(f'{name}=SHELL' for name in _COMPLETIONS)} with "
            f"--shell-completion, for {', '.join(_SHELLS[:-1])} or {_SHELLS[-1]}, but got "
            f"{' '.join(given) or 'none'!r}; give --shell-completion install=bash, for example"
        )
    if found[0][0] == "query" and "COMP_LINE" not in os.environ:
        raise UserError(
            "query is what a shell asks while a line is typed, and no line was found; give "
            "--shell-completion install=SHELL"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see cl-lora run --hydra-help")


@contextlib.contextmanager
def _wrapped() -> Iterator[None]:
    """Wrap the lines of choices that Hydra prints to the width of the terminal."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:  # Hydra exits when it has printed help
        width = shutil.get_terminal_size().columns
        for line in printed.getvalue().splitlines():
            choices = len(line) > width and re.match(r"\w+: ", line)
            print(textwrap.fill(line, width, subsequent_indent="  ") if choices else line)


@contextlib.contextmanager
def _errors_raised() -> Iterator[None]:
    """Let Hydra raise errors; by itself it prints them and exits."""
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        with contextlib.redirect_stderr(cast("IO[str]", _Stderr(sys.stderr))):
            yield
    finally:
        if before is None:
            del os.environ[_FULL_ERROR]
        else:
            os.environ[_FULL_ERROR] = before


class _Stderr:
    """Standard error without Hydra's line above an error: the error says what has failed."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if text.startswith("Error executing job with overrides:"):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _tidy(folder: Path) -> None:
    """Remove what a sweep leaves where no launcher has kept anything of its own."""
    with contextlib.suppress(OSError):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(JOB_FILES)}
        if names <= {"multirun.yaml"}:
            (folder / "multirun.yaml").unlink(missing_ok=True)
            folder.rmdir()
