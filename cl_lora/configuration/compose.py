"""Composing a configuration with Hydra's own loader, and saying in one sentence what is wrong."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from cl_lora.configuration.choices import CONFIG_MODULE, GROUPS
from cl_lora.configuration.quoting import Unread, unreadable, with_quotes
from cl_lora.configuration.renamed import unknown_choice, with_new_names
from cl_lora.support.errors import UserError, printable, shown, unknown_name
from cl_lora.sweeps import ray_launcher
from cl_lora.sweeps.launchers import not_installed

HYDRA_VERSION_BASE = "1.3"
CONFIG_PATH = f"pkg://{CONFIG_MODULE}"
CONFIG_NAME = "config"

_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
_SHOWN = 300  # characters of a text of Hydra's that is passed on
_NEAR = 3  # names that are suggested

T = TypeVar("T")


def require_assertions() -> None:
    """Refuse ``python -O``: Hydra's parser moves on within assertions.

    Raises:
        UserError: if there are none.
    """
    if not __debug__:
        raise UserError(
            "Hydra reads no override without Python's assertions; leave -O out, and unset "
            "PYTHONOPTIMIZE"
        )


_MOST_JOBS = 10_000  # all are composed and checked before the first


def _combinations(overrides: Sequence[Override]) -> int:
    """Return how many jobs a sweep has, without going through them."""
    count = 1
    for override in overrides:
        value = override.value()
        if isinstance(value, ChoiceSweep):
            count *= len(value.list)
        elif isinstance(value, RangeSweep) and value.step:
            assert value.start is not None
            assert value.stop is not None
            count *= max(0, math.ceil((value.stop - value.start) / value.step))
    return count


class Composer:
    """Composes jobs as Hydra will, from the same search path.

    Args:
        module: the module of the job, to which a relative ``config_path`` is relative.
        config_dir: ``--config-dir``, a folder of a user's own YAML files.
        config_path: ``--config-path``, in place of the package's own files.
        config_name: ``--config-name``, in place of ``config``.

    Attributes:
        task: the name of the job, as Hydra has it.
        search_path: where configuration files are looked for.
        name: of the file that all begins with, without its ending.

    Raises:
        UserError: if ``config_dir`` is no folder, or Python runs without assertions.
    """

    def __init__(
        self,
        module: str = __name__,
        *,
        config_dir: str | None = None,
        config_path: str | None = None,
        config_name: str | None = None,
    ) -> None:
        require_assertions()
        version.setbase(HYDRA_VERSION_BASE)
        setup_globals()
        ray_launcher.offer()
        self.task = module.rpartition(".")[2]
        JobRuntime.instance().set("name", self.task)
        self._own_files = config_dir is None and config_path is None
        path = create_automatic_config_search_path(None, module, config_path or CONFIG_PATH)
        if config_dir is not None:
            if not Path(config_dir).is_dir():
                raise UserError(
                    f"Expected --config-dir to be a folder but got {config_dir!r}; give "
                    "the one that holds your YAML files"
                )
            path.prepend(
                provider="command-line",
                path=f"file://{Path(config_dir).absolute()}",
                anchor=SearchPathQuery(provider="schema"),
            )
        self.search_path = path
        self._loader = ConfigLoaderImpl(config_search_path=path)
        self.name = config_name or CONFIG_NAME

    def readable(self, overrides: Sequence[str]) -> list[str]:
        """Return what a user gave as Hydra can read it: quoted, and with the names of now."""
        quoted = with_quotes(overrides)
        return with_new_names(quoted, partial(self._options, overrides=quoted))

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parse overrides.

        Raises:
            UserError: for one that is none.
        """
        parser = OverridesParser.create(config_loader=self._loader)
        parsed = []
        for override in overrides:
            try:
                parsed += parser.parse_overrides([override])
            except Unread as error:
                raise unreadable(override, error, parser) from error
            if not parsed[-1].key_or_group:
                raise unreadable(override, ValueError("no key"), parser)
        return parsed

    def load(
        self, overrides: Sequence[str], *, multirun: bool = False, validate: bool = True
    ) -> DictConfig:
        """Return the whole configuration of one job, Hydra's part included.

        Args:
            overrides: of this job.
            multirun: compose what stands above all jobs of a sweep.
            validate: refuse sweeps in the wrong place.

        Raises:
            UserError: for whatever Hydra refuses, with the nearest known names.
        """
        load = partial(
            self._loader.load_configuration,
            config_name=self.name,
            overrides=list(overrides),
            run_mode=RunMode.MULTIRUN if multirun else RunMode.RUN,
            validate_sweep_overrides=validate,
        )
        try:
            return self.explaining(load, overrides)
        except UserError:
            raise
        except Exception as error:
            # Whatever the loader trips over, it was given by the user.
            _raise_if_interrupted(error)
            raise _not_composed(f"{type(error).__name__}: {error}") from error

    def explaining(self, do: Callable[[], T], overrides: Sequence[str]) -> T:
        """Do something with Hydra; what it refuses becomes one sentence.

        Raises:
            UserError: in place of Hydra's errors.
        """
        try:
            with warnings.catch_warnings():
                # Hydra only warns where a folder of the search path is not there.
                warnings.filterwarnings("error", message="provider=.* is not available")
                return do()
        except (HydraException, OmegaConfBaseException) as error:
            _raise_if_interrupted(error)
            raise self._explain(error, overrides) from error
        except ValueError as error:
            if "Config group override must be" not in str(error):
                raise
            got = str(error).rpartition("Got ")[2]
            raise UserError(
                f"Expected the name of a choice for a group but got a {got}; give one, as "
                "model=embedded"
            ) from error
        except UserWarning as error:
            if "is not available" not in str(error):
                raise
            found = re.search(r"path=(.+) is not available", str(error))
            where = found[1] if found else str(error)
            raise UserError(
                f"Nothing is at {where!r}, which is named in hydra.searchpath; "
                "expected file://FOLDER or pkg://MODULE"
            ) from error

    def is_multirun(self, overrides: Sequence[str]) -> bool:
        """Return whether ``hydra.mode`` asks for a sweep."""
        if self._own_files and not any(
            o.lstrip("+~").startswith(("hydra", "experiment")) for o in overrides
        ):
            return False  # of the package's own files, only experiments set a mode
        try:
            mode = self.load(overrides, multirun=True, validate=False).hydra.mode
        except UserError:
            return False  # it will be told again, where it is composed to be run
        return bool(mode == RunMode.MULTIRUN)

    def expand(self, overrides: Sequence[str], *, multirun: bool) -> list[list[str]] | None:
        """Return the overrides of each job: one, or with ``multirun`` one per combination.

        Returns:
            None where another sweeper than Hydra's basic one decides the jobs while they run.

        Raises:
            UserError: for a sweep without ``multirun``.
        """
        parsed = self.parse(overrides)
        if not multirun:
            for override in parsed:
                if override.is_sweep_override():
                    raise UserError(
                        f"{override.input_line!r} names several values; add --multirun to run "
                        "each, or write a list as KEY=[A,B]"
                    )
            return [list(overrides)]
        # A sweep would keep the last of two overrides of one key, in silence.
        _check_added_once(_added_arms(parsed), {})
        hydra = self.load(overrides, multirun=True).hydra
        if hydra.sweeper["_target_"] != _BASIC_SWEEPER:
            return None
        params = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
        # Going through them would resolve what is the job's to resolve.
        given = _container(OmegaConf.to_container(hydra.overrides, resolve=False))
        task = self.parse([*params, *given["task"]])
        if (count := _combinations(task)) > _MOST_JOBS:
            raise UserError(
                f"Expected at most {_MOST_JOBS:,} jobs but the sweep has {count:,}; name fewer "
                "values"
            )
        try:
            batches = BasicSweeper.split_arguments(task, None)
        except (HydraException, ValueError) as error:  # such as a range of steps of 0
            raise UserError(f"{_sentence(str(error))}; name the values, as KEY=A,B") from error
        jobs = [[*given["hydra"], *job] for batch in batches for job in batch]
        if not jobs:
            raise UserError("A sweep has no job: a range or glob in it names nothing; widen it")
        return jobs

    def launcher(self, overrides: Sequence[str]) -> tuple[dict[str, Any], int | None]:
        """Return the options of a sweep's launcher, and how many jobs it gets at most at a time.

        An option that only a job can resolve is None.

        Raises:
            UserError: for whatever Hydra refuses.
        """
        hydra = self.load(overrides, multirun=True).hydra
        options: dict[str, Any] = {}
        for key in hydra.launcher:
            options[str(key)] = None
            with contextlib.suppress(OmegaConfBaseException):
                value = hydra.launcher[key]
                plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                options[str(key)] = plain
        return options, hydra.sweeper.get("max_batch_size")

    def compose(self, overrides: Sequence[str], number: int | None = None) -> dict[str, Any]:
        """Return the configuration of one job as plain containers.

        Args:
            overrides: of this job.
            number: the job's number in a sweep.

        Raises:
            UserError: for whatever Hydra refuses, in one sentence with the nearest known names.
        """
        parsed = self.parse(overrides)
        for override in parsed:
            self._check_choice(override, overrides)
        self._check_arms_once(parsed)
        config = self.load(overrides)
        with _as_if_running(config, number):
            try:
                return self.explaining(partial(plain, config), overrides)
            except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
                if isinstance(error, UserError):
                    raise
                # A resolver of Hydra's or OmegaConf's was given something odd.
                raise _not_composed(f"{type(error).__name__}: {error}") from error

    def known_keys(self, overrides: Sequence[str] = ()) -> list[str]:
        """Return every option, dotted, and every group.

        Args:
            overrides: those that choose groups, as ``benchmark=pacs``: other choices, other
                options.
        """
        config = self._loader.load_configuration(
            config_name=self.name, overrides=list(overrides), run_mode=RunMode.RUN
        )
        values = OmegaConf.to_container(config, resolve=False)
        assert isinstance(values, dict)
        return sorted({*self._groups(), *_dotted(values)})

    def _groups(self) -> list[str]:
        groups = self._loader.list_groups("")
        return [*(g for g in groups if g != "hydra"), *_HYDRA_GROUPS]

    def _options(self, group: str, overrides: Sequence[str]) -> list[str]:
        places = [o for o in overrides if o.startswith("hydra.searchpath=")]
        return self.explaining(
            partial(
                self._loader.get_group_options,
                group,
                config_name=self.name,
                overrides=places,
            ),
            overrides,
        )

    def _check_choice(self, override: Override, overrides: Sequence[str]) -> None:
        """Refuse an unknown choice of a group; a path or a package override is left to Hydra."""
        group = str(override.key_or_group)
        if group in _PARTS and (override.is_delete() or override.value() == []):
            raise _no_part(group)
        if override.is_delete() or override.is_sweep_override():
            return
        if group not in GROUPS and group not in _HYDRA_GROUPS:
            return
        known = self._options(group, overrides)
        value = override.value()
        for choice in value if isinstance(value, list) else [value]:
            if choice not in known and "/" not in str(choice):
                absent = not_installed(str(choice)) if group == "hydra/launcher" else None
                raise absent or unknown_choice(group, "null" if choice is None else choice, known)

    def _check_arms_once(self, overrides: Sequence[Override]) -> None:
        """Refuse a second definition of an arm, which Hydra would merge into the first."""
        added = _added_arms(overrides)
        _check_added_once(added, {})
        lines = [str(o.input_line) for o in overrides if o not in added]
        chosen = next((o.value() for o in overrides if o.key_or_group == "arms"), None)
        if isinstance(chosen, list):
            self._check_choices_agree([str(choice) for choice in chosen], lines)
        if added:
            _check_added_once(added, _arms_in(self.load(lines)))

    def _check_choices_agree(self, choices: Sequence[str], overrides: Sequence[str]) -> None:
        places = [o for o in overrides if o.startswith("hydra.searchpath=")]
        defined: dict[str, Any] = {}
        for choice in choices:
            config = self.load([*places, f"arms={choice}"])
            for name, arm in _arms_in(config).items():
                if defined.setdefault(name, arm) != arm:
                    raise UserError(
                        f"Arm {name!r} is defined twice: as {defined[name]} and, in arms={choice}, "
                        f"as {arm}; give one of them another name"
                    )

    def _explain(self, error: Exception, overrides: Sequence[str]) -> UserError:
        """Return the sentence for an error of Hydra's or OmegaConf's."""
        # OmegaConf adds lines on where it stands, of which an override says enough.
        parts = [str(e).split("\n    full_key")[0] for e in (error, error.__cause__) if e]
        text = " ".join(" ".join(parts).split())
        missing = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
        if missing:
            absent = not_installed(missing[2]) if missing[1] == "hydra/launcher" else None
            known = self._options(missing[1], overrides)
            return absent or unknown_choice(missing[1], missing[2], known)
        if "Cannot find primary config" in text:
            return UserError(
                f"There is no {self.name}.yaml for --config-name; give the folder that holds it "
                "with --config-dir"
            )
        key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)'", text)
        if key:
            name = key[1].lstrip("+~").split("@")[0]
            known = self._known_beside(overrides)
            if name not in known:
                return _unknown_option(name, known)
        if "duplicate key" in text:
            return UserError(
                f"An arm or option is defined twice: {_sentence(text.split('duplicate key')[-1])}; "
                "remove one"
            )
        if "Could not append" in text:
            return UserError(
                f"{text.split('. ')[0]}; it is defined already: leave the '+' out, or choose "
                "another name"
            )
        at = getattr(error, "full_key", None)
        return _not_composed(f"{at}: {text}" if at and at not in text else text)

    def _known_beside(self, overrides: Sequence[str]) -> list[str]:
        """Return the options that there are under the groups that ``overrides`` choose."""
        chosen = ("hydra.searchpath", *GROUPS, *_HYDRA_GROUPS)
        groups = [o for o in overrides if o.partition("=")[0].lstrip("+~") in chosen]
        try:
            return self.known_keys(groups)
        except (HydraException, OmegaConfBaseException):
            return self.known_keys()


_HYDRA_GROUPS = (
    "hydra/launcher",
    "hydra/sweeper",
    "hydra/job_logging",
    "hydra/hydra_logging",
    "hydra/help",
    "hydra/hydra_help",
    "hydra/output",
    "hydra/env",
)
"""Hydra's own groups: it lists them only one folder at a time."""


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the configuration of one job from the package's own files, as plain containers.

    Raises:
        UserError: as :meth:`Composer.compose`.
    """
    composer = Composer()
    return composer.compose(composer.readable(overrides))


def known_keys(overrides: Sequence[str] = ()) -> list[str]:
    """Return every option of the package's own files: see :meth:`Composer.known_keys`."""
    return Composer().known_keys(overrides)


def plain(config: DictConfig) -> dict[str, Any]:
    """Return what a job sees: plain containers, resolved, without Hydra's own part."""
    job = config.copy()
    with read_write(job), open_dict(job):
        job.pop("hydra", None)
        job.pop("experiment", None)  # it has overridden the others by now
    values = _container(OmegaConf.to_container(job, resolve=True))
    for key in _NEEDED:
        if key not in values:
            raise _no_part(key)
    for key in _PARTS:
        if not isinstance(values[key], dict):
            raise UserError(
                f"Expected {key} to hold options but got {shown(values[key])}; choose one of "
                f"`cl-lora run --help`, as {key}={_EXAMPLES[key]}"
            )
    return values


_EXAMPLES = {"benchmark": "shapes", "model": "embedded", "strategy": "lora", "arms": "default"}
_PARTS = tuple(_EXAMPLES)
"""What is a choice of files, with one that is always there."""

_NEEDED = (*_PARTS, "plugins", "report")
"""What no run can be without."""


def _no_part(key: str) -> UserError:
    example = f"give one, as {key}={_EXAMPLES[key]}" if key in _PARTS else f"leave ~{key} out"
    none = ", or arms=none for no arms" if key == "arms" else ""
    return UserError(f"The configuration has no {key} any more; {example}{none}")


def _arms_in(config: DictConfig) -> dict[str, Any]:
    """Return the arms of a configuration, nothing resolved."""
    arms = config.get("arms")
    if not OmegaConf.is_dict(arms):
        raise _no_part("arms")
    return _container(OmegaConf.to_container(arms))


def _added_arms(overrides: Sequence[Override]) -> list[Override]:
    keys = re.compile(r"arms\.[^.]+")
    return [o for o in overrides if o.is_add() and keys.fullmatch(str(o.key_or_group))]


def _check_added_once(added: Sequence[Override], defined: Mapping[str, Any]) -> None:
    """Refuse an arm that is there already, or is added twice."""
    known = dict(defined)
    for override in added:
        name = str(override.key_or_group).removeprefix("arms.")
        if name in known:
            raise UserError(
                f"Arm {name!r} is defined twice: as {known[name]} and in "
                f"{override.input_line!r}; give the new one another name"
            )
        known[name] = override.value()


def _container(values: Any) -> dict[str, Any]:
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextlib.contextmanager
def _as_if_running(config: DictConfig, number: int | None) -> Iterator[None]:
    """Set what Hydra sets where a job runs, for values that interpolate it."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    try:
        if number is not None:
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.job.num, config.hydra.job.id = number, str(number)
        hydra.set_config(config)
        folder = Path(config.hydra.run.dir)
        if number is not None:
            folder = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
        with read_write(config.hydra):
            config.hydra.runtime.output_dir = str(folder.absolute())
        hydra.set_config(config)
        yield
    finally:
        hydra.cfg = before


def _unknown_option(name: str, known: Sequence[str]) -> UserError:
    """Suggest the dotted options that end in ``name``; else those that are spelled alike."""
    if not name.startswith("hydra"):
        known = [k for k in known if not k.startswith("hydra")]
    same = [k for k in known if k.endswith(f".{name}")]
    if not same:
        return unknown_name("option", name, known)
    hint = " or ".join(repr(k) for k in same[:_NEAR])
    return UserError(f"Unknown option {name!r}: did you mean {hint}?")


def _not_composed(text: str) -> UserError:
    return UserError(
        f"The configuration does not compose: {printable(_sentence(text))}; correct the override, "
        "as KEY=VALUE (cl-lora run --help lists every KEY)"
    )


def _raise_if_interrupted(error: BaseException) -> None:
    """Raise Ctrl-C again, which a library below took for a failure of its own."""
    below: BaseException | None = error
    seen: set[int] = set()
    while below is not None and id(below) not in seen:
        if isinstance(below, KeyboardInterrupt):
            raise below from error  # a signal that ends the process is one too, of its own kind
        seen.add(id(below))
        below = below.__cause__ or below.__context__


def _sentence(text: str) -> str:
    return " ".join(text.split())[:_SHOWN].rstrip(".;")


def _dotted(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        keys.append(name)
        if isinstance(value, Mapping) and key != "arms":
            keys += _dotted(value, f"{name}.")
    return keys
