"""The run folder: what it holds, who may write to it, and what is already in it."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any

import yaml

from cl_lora.benchmarks.core import DomainBenchmark, Indices
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.experiment.arms import Arm, make_arms, settings_of
from cl_lora.experiment.evaluator import Coefficient
from cl_lora.experiment.settings import FORMAT, Settings
from cl_lora.run_folder.environment import device_name, environment
from cl_lora.support import files
from cl_lora.support.errors import UserError

log = logging.getLogger(__name__)

# Names that a killed process may leave in a run folder: a dot, the final name, a random end.
_LEFTOVERS = (
    *(f".{name}.*" for name in ("config.yaml", "environment.json", "stream.json")),
    *(f".{name}.*" for name in ("scores.csv", "coefficients.csv", "report.html")),
    *(f".{name}.*" for name in ("figures", "tensorboard")),
    *(f"{name}/.*" for name in ("adapters/*", "buffers", "figures", "tensorboard")),
)
_COEFFICIENT_COLUMNS = ("seed", "arm", "stage", "group", "adapter", "value")


class RunWriter:
    """Writes one run folder; use it as a context manager.

    Everything is written under a temporary name and renamed, so that a killed run leaves only
    whole files. While it is open no other process can write to the folder. Nothing of the
    configuration is recorded before :meth:`record_stream`, so that a mistake which the data shows
    (too few samples for a buffer, say) leaves the folder as it was.

    Raises:
        UserError: if the folder cannot be written, is in use, is no run folder, was written by
            another version, or holds another configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder
        self._stack = ExitStack()
        with files.explain_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._recorded()  # refuses a folder of something else before anything is put there
            self._lock()
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _lock(self) -> None:
        lock: IO[str] = self._stack.enter_context((self.folder / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stack.close()
            raise UserError(
                f"Another process is writing to {self.folder}; wait for it, or choose another "
                "run_dir"
            ) from error

    def _open(self) -> None:
        recorded = self._recorded()
        known = {arm.name: arm for arm in _recorded_arms(recorded)}
        asked = {arm.name: arm for arm in self.settings.make_arms(self.settings.raw["arms"])}
        self._check_same(recorded)
        self._check_arms(known, asked)
        self._remove_leftovers()
        wanted = self.settings.raw["arms"]
        stopped = recorded.get("stopped", {})
        self.stopped: dict[str, Any] = {n: s for n, s in stopped.items() if n not in wanted}
        self.arms: dict[str, Any] = {**recorded.get("arms", {}), **wanted}
        self._made = {**known, **asked}
        self.references = tuple(
            dict.fromkeys([*recorded.get("references", []), *self.settings.references])
        )
        self.seeds = tuple(sorted({*recorded.get("seeds", []), *self.settings.seeds}))
        self.scores = ScoreTable()
        if (self.folder / "scores.csv").exists():
            self.scores = ScoreTable.read(self.folder / "scores.csv")
        self._coefficients = self._read_coefficients()
        self._renewed = {
            name
            for name, arm in asked.items()
            if name in stopped and stopped[name]["variant"] != arm.variant
        }

    def made_arms(self) -> tuple[Arm, ...]:
        """Return every arm of the run; those of earlier commands as they were recorded."""
        return tuple(self._made[name] for name in self.arms)

    def _forget_renewed(self) -> None:
        """Leave out what stopped arms had before they were given other settings."""
        if not self._renewed:
            return
        self._coefficients = [c for c in self._coefficients if c.arm not in self._renewed]
        files.write_text(self.folder / "coefficients.csv", self._coefficients_csv())
        self.scores = ScoreTable(score for score in self.scores if score.arm not in self._renewed)
        self.scores.write(self.folder / "scores.csv", [*self.arms, *self.references])

    def stop(self, arm: Arm, reason: UserError) -> None:
        """Take an arm out of the run: later commands skip it until they name it again.

        What was scored of it stays. Its settings may then be others; they replace it.
        """
        given = self.arms.pop(arm.name)
        self.stopped[arm.name] = {"arm": given, "variant": arm.variant, "reason": str(reason)}
        self._write_config()

    def _write_config(self) -> None:
        raw = self.settings.raw
        config = {
            "format": FORMAT,
            "name": f"{raw['benchmark']['name']}-{raw['model']['name']}",
            "identity": self.settings.identity,
            **raw,
            "run_dir": None,
            "runs_root": None,
            "arms": self.arms,
            "variants": {arm.name: arm.variant for arm in self.made_arms()},
            "references": list(self.references),
            "seeds": list(self.seeds),
        }
        if self.stopped:
            config["stopped"] = self.stopped
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        files.write_text(self.folder / "config.yaml", text)

    def _record_configuration(self) -> None:
        self._forget_renewed()  # before config.yaml says that they are not stopped any more
        self._write_config()
        self._write_environment()
        handler = logging.FileHandler(self.folder / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger("cl_lora").addHandler(handler)
        self._stack.callback(_close, handler)
        self._stack.callback(logging.getLogger("cl_lora").removeHandler, handler)

    def _write_environment(self) -> None:
        """Write where this command runs; where earlier ones ran stays below ``earlier``."""
        path = self.folder / "environment.json"
        device = self.settings.device
        here = environment(
            device=str(device),
            device_name=device_name(device),
            precision="bf16" if self.settings.bf16 else "fp32",
            seeds=self.settings.seeds,
        )
        earlier: list[dict[str, Any]] = []
        if path.exists():
            with suppress(ValueError):  # a damaged file is replaced: nothing is computed from it
                there = json.loads(path.read_text())
                earlier = [*there.pop("earlier", []), there]
        earlier = [e for e in earlier if {**e, "written": here["written"]} != here]
        files.write_json(path, {**here, "earlier": earlier} if earlier else here)

    def _remove_leftovers(self) -> None:
        """Delete the temporary names that a killed process left behind, and nothing else.

        The folder is known to be a run's, or empty but for such names.
        """
        for pattern in _LEFTOVERS:
            for path in self.folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _recorded(self) -> dict[str, Any]:
        path = self.folder / "config.yaml"
        if not path.exists():
            others = [
                path.name
                for path in self.folder.iterdir()
                if path.name != ".lock" and not path.name.startswith(".config.yaml.")
            ]
            if others:
                raise UserError(
                    f"{self.folder} holds other files ({sorted(others)[0]}, ...) and no run; "
                    "choose an empty or new run_dir"
                )
            return {}
        try:
            recorded = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}); use a new run_dir"
            ) from error
        if not isinstance(recorded, dict) or recorded.get("format") != FORMAT:
            found = recorded.get("format") if isinstance(recorded, dict) else None
            raise UserError(
                f"{self.folder} was written in format {found}, this version writes {FORMAT}; "
                "choose another run_dir"
            )
        return recorded

    def _check_same(self, recorded: Mapping[str, Any]) -> None:
        if not recorded:
            return
        here = json.loads(json.dumps(self.settings.identity))
        there = {key: recorded.get("identity", {}).get(key) for key in here}
        difference = _first_difference(there, here)
        if difference:
            key, old, new = difference
            raise UserError(
                f"{self.folder} holds another configuration ({key} is {old!r} there and {new!r} "
                "here); choose another run_dir, or leave run_dir out"
            )

    def _check_arms(self, known: Mapping[str, Arm], asked: Mapping[str, Arm]) -> None:
        for name in [name for name in asked if name in known]:
            difference = _first_difference(known[name].variant, asked[name].variant)
            if difference:
                key, old, new = difference
                raise UserError(
                    f"Arm {name!r} is defined twice: {key} is {old!r} in {self.folder} and "
                    f"{new!r} here; give the new one another name, or choose another run_dir"
                )

    def record_stream(self, benchmark: DomainBenchmark, backbone: Mapping[str, Any]) -> None:
        """Begin: check that data and weights are those of the folder, and record what is run.

        Writes config.yaml, environment.json and stream.json, and opens log.txt.

        Raises:
            UserError: if the data or the backbone's weights have changed.
        """
        path = self.folder / "stream.json"
        value = {
            "name": benchmark.name,
            "domains": list(benchmark.domains),
            "classes": list(benchmark.classes),
            "fingerprint": benchmark.fingerprint,
            "train_sizes": [len(i) for i in benchmark.train],
            "test_sizes": [len(i) for i in benchmark.test],
            "backbone": dict(backbone),
        }
        if path.exists():
            there = json.loads(path.read_text())
            for key, what in (("fingerprint", "data"), ("backbone", "backbone's weights")):
                if there.get(key) != value[key]:
                    raise UserError(
                        f"The {what} changed since {self.folder} was begun; use a new run_dir"
                    )
        self._record_configuration()
        files.write_json(path, value)

    def record_buffers(
        self, seed: int, benchmark: DomainBenchmark, buffers: Mapping[int, Sequence[Indices]]
    ) -> None:
        """Write the indices of every buffer of a seed."""
        for spc, parts in buffers.items():
            named = {
                domain: [int(i) for i in part]
                for domain, part in zip(benchmark.domains, parts, strict=True)
            }
            files.write_json(
                self.folder / "buffers" / f"seed-{seed}-spc-{spc}.json",
                {"seed": seed, "samples_per_class": spc, "indices": named},
            )

    def add(self, scores: Iterable[Score], coefficients: Iterable[Coefficient]) -> None:
        """Record one unit: an arm after an experience. Coefficients go first, scores seal it."""
        new = list(coefficients)
        if new:
            unit = (new[0].seed, new[0].arm, new[0].stage)
            kept = [c for c in self._coefficients if (c.seed, c.arm, c.stage) != unit]
            order = {name: i for i, name in enumerate(self.arms)}
            self._coefficients = sorted(
                [*kept, *new], key=lambda c: (c.seed, order.get(c.arm, len(order)), c.stage)
            )
            files.write_text(self.folder / "coefficients.csv", self._coefficients_csv())
        self.scores.append(scores)
        self.scores.write(self.folder / "scores.csv", [*self.arms, *self.references])

    def _coefficients_csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COEFFICIENT_COLUMNS)
        for c in self._coefficients:
            writer.writerow([c.seed, c.arm, c.stage, c.group, c.adapter, repr(c.value)])
        return text.getvalue()

    def _read_coefficients(self) -> list[Coefficient]:
        path = self.folder / "coefficients.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            try:
                return [
                    Coefficient(
                        int(r["seed"]),
                        r["arm"],
                        int(r["stage"]),
                        r["group"],
                        int(r["adapter"]),
                        float(r["value"]),
                    )
                    for r in csv.DictReader(file)
                ]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path} is damaged ({error}); delete it and scores.csv, the same command "
                    "computes both again from the adapters"
                ) from error


def _recorded_arms(recorded: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Build the arms of a config.yaml as it describes them, whatever the defaults of today.

    A folder from before variants were recorded has the run's settings alone.
    """
    variants = recorded.get("variants", {})
    return make_arms(
        {
            name: {**arm, **settings_of(variants.get(name, {}))}
            for name, arm in recorded.get("arms", {}).items()
        },
        spc=recorded.get("spc", 5),
        buffer_batch_size=recorded.get("buffer_batch_size", 32),
    )


def _close(handler: logging.Handler) -> None:
    # On a full disk closing tries once more to write what is buffered, and must not hide the
    # sentence that says so.
    with suppress(OSError):
        handler.close()


def _first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found = _first_difference(a, b, f"{prefix}{key}.")
            if found:
                return found
        elif a != b:
            return f"{prefix}{key}", a, b
    return None
