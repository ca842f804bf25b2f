"""Wrong and hostile values of every option, and command lines that are none.

The composed configuration is walked, option by option; every kind of value has its own mistakes.
A mistake must be refused by a sentence that names the option, before anything is written anywhere;
what only looks odd must run, and give the numbers that the undisturbed run gives.
"""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from attack.core import Case, Group, Outcome, Verdict, fork, judge

TINY = (
    "benchmark.classes=3",
    "benchmark.styles=[photo,cartoon,sketch]",
    "benchmark.samples_per_class=6",
    "benchmark.test_samples_per_class=4",
    "strategy.epochs=1",
    "strategy.batch_size=8",
    "strategy.rank=2",
    "report=false",
    "references=[last]",
)
LANGUAGE = ("benchmark=few_shot_language", "strategy.targets=[q,v]")
ARMS = ("arms=none", "+arms.half={method: task_arithmetic, coefficients: 0.5}")

HUGE = "100000000000000000000"
DIGITS = "1" + "0" * 400
ENDLESS = "1" + "0" * 5000
LONG = "a" * 300
BELL = "'a\x1b[31mb'"

# What each kind of value is not, as Hydra writes it.
NO_INT = (
    *("-1", HUGE, "-" + HUGE, "1e20", DIGITS, ENDLESS, "9223372036854775808", "1.5", "nan", "inf"),
    *("-inf", "''", "abc", "[1]", "{a: 1}", "true", "'3'", "3.0", "ü", BELL),
)
NO_FLOAT = (
    *("nan", "inf", "-inf", "1e400", DIGITS, "-1e300", "1e300", "1e250", "abc", "''", "[0.1]"),
    *("{a: 1}", "true", "'0.1'", "ü", "0x10"),
)
NO_BOOL = (
    *("abc", "1", "0", "null", "''", "[]", "[true]", "{}", "1.0", "'true'", "yes", "nan", "ü"),
    *(HUGE, BELL),
)
NO_CHOICE = (
    *("abc", "''", "5", "[abc]", "{a: 1}", "ü", LONG, BELL, "true", "nan", "'../x'", DIGITS),
    *("'a\nb'", "' '", "null"),
)
NO_NAMES = ("5", "{a: 1}", "[null]", "[1.5]", "[[a]]", "['']", "[zzz]", f"[{LONG}]", "true", "zzz")
NO_TEXT = ("''", "[a]", "{a: 1}", "true", "nan", "5")
NO_NAME = (
    *NO_TEXT,
    *("../../esc", "/tmp/esc", "a/b", "..", ".", "'a\nb'", "'a\x00b'", BELL, LONG, ".hidden"),
    *("null", "'a\\b'", "'a\tb'", "' '"),
)
NO_FOLDER = ("''", "[a]", "{a: 1}", "true", "nan", "1.5", "'a\x00b'", f"/dev/null/{LONG}", LONG)
NO_FILE = (
    *("nowhere", "[a]", "{a: 1}", "5", "true", LONG, "'a\x00b'", "/nowhere/ü", "/dev/null"),
    *("''", "'a\nb'"),
)
NO_NUMBERS = ("abc", "5", "{a: 1}", "[nan]", "[inf]", "[abc]", f"[{DIGITS}]", "[]", "true", "null")

INT, FLOAT, BOOL, CHOICE = "int", "float", "bool", "choice"
NAME, TEXT, FOLDER, FILE = "name", "text", "folder", "file"
NAMES, NUMBERS = "names", "numbers"

MISTAKES: Mapping[str, Sequence[str]] = {
    INT: NO_INT,
    FLOAT: NO_FLOAT,
    BOOL: NO_BOOL,
    CHOICE: NO_CHOICE,
    NAME: NO_NAME,
    TEXT: NO_TEXT,
    FOLDER: NO_FOLDER,
    FILE: NO_FILE,
    NAMES: NO_NAMES,
    NUMBERS: NO_NUMBERS,
}

KINDS: Mapping[str, str | Sequence[str]] = {
    # Where a default does not say what kind of value it is, and where the kind has other mistakes.
    "seeds": (
        *("abc", "[-1]", "[1.5]", "[]", "[1,1]", "null", "[true]", "{a: 1}", "-1", "nan"),
        *(f"[{HUGE}]", f"[{DIGITS}]", "['1']", "[[1]]", "true", "[0,null]", HUGE, "''", "1e20"),
    ),
    "references": (*NO_NAMES, "[last,last]", "[half]", "abc"),
    "shots": ("abc", "[-1]", "[1.5]", "[]", "[1,1]", "null", "{a: 1}", f"[{HUGE}]", "[[1]]", "nan"),
    "yardstick": tuple(v for v in NO_CHOICE if v != "null"),
    "threads": INT,
    "run_dir": FOLDER,
    "runs_root": FOLDER,
    "embed": ("zzz", "-1", HUGE, DIGITS, "1.5", "[a]", "{a: 1}", "true", "0", "''", BELL),
    "tracker": ("abc", "[abc]", "5", "{a: 1}", "true", "[null]", LONG, "['']", "''", BELL),
    "plugins": (
        *("abc", "5", "null", "{a: 1}", "[5]", "[null]", "['']", "[no_such_module]", "[.x]"),
        *("['../x']", "[[os]]", f"[{LONG}]", "['a\nb']", "true", "['a b']", "[ü]"),
    ),
    "subsets.triples_with": (*NO_NAMES, "[a]", "[a,a]", "[a,b,c]"),
    "subsets.all_subsets": (*NO_INT, "1", "0"),
    "adaptation.grid": (*NO_NUMBERS, "[0.5]", "[1.0,0.5]", "[-1,1]", "[0,1]", "[1,1]"),
    "adaptation.select_on": CHOICE,
    "model.name": NO_CHOICE,
    "model.checkpoint": FILE,
    "model.img_size": (*NO_INT, "0", "7"),
    "model.mean": (*NO_NUMBERS[:-1], "[0.5]", "[1,2,3,4]", "[0.1,0.2,nan]"),
    "model.std": (*NO_NUMBERS[:-1], "[0.5]", "[0,1,1]", "[-1,1,1]", "[inf,1,1]"),
    "strategy.name": ("[a]", "{a: 1}"),
    "strategy.targets": (*NO_NAMES, "[]", "null", "[qkv,q]", "[q,q]", "[0]"),
    "strategy.patience": (*NO_INT, "0"),
    "benchmark.kind": CHOICE,
    "benchmark.name": NAME,
    "benchmark.styles": (*NO_NAMES, "[]", "null", "[photo,photo]"),
    "benchmark.cache_dir": tuple(v for v in NO_FOLDER if v != LONG),
    "benchmark.root": tuple(v for v in NO_FILE if v != "/dev/null"),
    "benchmark.domains": (*NO_NAMES, "[]", "[photo,photo]", "['photo\n']"),
    "benchmark.split_lists": tuple(v for v in NO_FILE if v not in ("5",)),
    "benchmark.downstream": tuple(v for v in NO_CHOICE if v != "null"),
    "benchmark.upstream": (*NO_NAMES, "[]", "[photo,photo]"),
    "benchmark.images": CHOICE,
    "benchmark.downstream_classes": (*NO_INT, "1", "0"),
    "benchmark.class_seed": NO_INT,
    "benchmark.order_seed": NO_INT,
    "benchmark.overlap": (*NO_NUMBERS, "[2]", "[-0.1,1]"),
    "benchmark.groups": (
        *("abc", "1", "0", "-1", HUGE, DIGITS, "1.5", "[1]", "{a: 1}", "null", "true", "{}", "nan"),
        *("{a: [circle]}", "{a: [0], b: [0]}", "''", "{a: [zzz, zzy], b: [x, y]}"),
    ),
    "benchmark.samples_per_class": (*NO_INT, "0"),
    "benchmark.test_samples_per_class": (*NO_INT, "0"),
    "benchmark.only": (*NO_NAMES, "[]", "[photo,photo]"),
    "benchmark.path": ("''", "[a]", "{a: 1}", "5", "null", "nowhere", LONG, "'a\x00b'", "'a\nb'"),
    "benchmark.config_name": ("''", "[a]", "{a: 1}", "5", "true"),
    "benchmark.revision": ("''", "[a]", "{a: 1}", "5", "true"),
    "benchmark.sets": (*NO_NAMES, "[]", "[photo,photo]"),
    "benchmark.prompt": (*NO_TEXT, "abc", "'{question}'", "'{question} {options} {x}'", "'{'"),
    "benchmark.option": (*NO_TEXT, "abc", "'{letter}'", "'{letter} {text} {text}'"),
    "benchmark.options": ("5", "abc", "[a]", "{zzz: 1}", "{classes: 0}", "{classes: abc}", "null"),
    "benchmark.tasks": ("5", "abc", "[a]", "{a: 1}", "{a: {source: zzz}}", "{a: {}}", "null"),
    "model.source": CHOICE,
    "model.prompts": ("[]", "abc", "[abc]", "5", "[5]", "{a: 1}", "['{} {}']", "[null]"),
    "model.task_prompts": ("5", "abc", "[a]", "{a: 1}", "{a: []}", "{a: [abc]}"),
    "model.max_length": (*NO_INT, "0", "1"),
}

ZERO = frozenset(
    {
        "adaptation.warmup_steps",
        "adaptation.steps",
        "adaptation.epochs",
        "adaptation.weight_decay",
        "benchmark.first_class",
        "benchmark.split_seed",
        "benchmark.val_fraction",
        "strategy.weight_decay",
        "strategy.warmup",
        "strategy.dropout",
    }
)
"""Numbers that may be 0."""

FEW_SHOT = ("protocol=shots", "strategy.head=own", "benchmark=few_shot_covariate_shapes")
BESIDE: Mapping[str, Sequence[str]] = {
    # What an option needs beside it, so that it is what is wrong.
    "shots": FEW_SHOT,
    "draws": FEW_SHOT,
    "subsets": ("protocol=subsets", "strategy.head=own"),
}
ALSO: Mapping[str, Sequence[str]] = {
    # Words that name an option as well.
    "name": ("name", "group", "choice", "model"),
    "kind": ("kind",),
    "targets": ("target",),
    "plugins": ("plugin",),
    "styles": ("style",),
    "references": ("reference", "row"),
    "run_dir": ("run_dir", "folder", "write"),
    "runs_root": ("runs_root", "folder", "write"),
    "cache_dir": ("cache_dir", "folder", "write", "cache"),
    "tracker": ("track",),
    "downstream_classes": ("classes",),
    "options": ("options", "option", "images"),
    "tasks": ("tasks", "task"),
    "path": ("path", "hub", "datasets"),
    **{f"{what}_column": ("column",) for what in ("image", "label", "domain")},
}


@dataclass(frozen=True)
class Attempt:
    """One command line.

    Attributes:
        name: of the case.
        given: what follows ``cl-lora run``.
        says: words of which the sentence must hold one; none where any sentence will do.
        legit: whether it must run instead of being refused; ``same``: with the numbers of the
            undisturbed run, ``whole``: with numbers that are complete.
        may_write: whether a mistake may only be found when something is there already.
    """

    name: str
    given: tuple[str, ...]
    says: tuple[str, ...] = ()
    legit: str = ""
    arms: tuple[str, ...] = ARMS[:1]
    tiny: tuple[str, ...] = TINY
    env: Mapping[str, str] = field(default_factory=dict)


def _cases(seed: int, prepared: Path) -> list[Case]:
    """Return every case; what all need is made in ``prepared``."""
    _tree(prepared / "tree")
    attempts = [
        *_of_options(seed, prepared),
        *_of_arms(seed),
        *_of_deleted(),
        *_of_lines(prepared),
        *_of_flags(),
        *_of_places(prepared),
        *_of_legit(prepared),
    ]
    names = [a.name for a in attempts]
    assert len(set(names)) == len(names), [n for n in names if names.count(n) > 1][:5]
    right = cache(partial(_undisturbed, prepared))
    made = [Case(a.name, partial(_run, a, prepared, right)) for a in attempts]
    return [*made, *_interrupts(seed, prepared)]


GROUP = Group("settings", "wrong settings", _cases)


# --- running one


def _environment(prepared: Path) -> dict[str, str]:
    return {
        "XDG_CACHE_HOME": str(prepared / "cache"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HYDRA_FULL_ERROR": "0",
    }


def _run(
    attempt: Attempt, prepared: Path, right: Callable[[], str], where: Path
) -> tuple[Verdict, str]:
    cwd = where / "in" / "here"
    cwd.mkdir(parents=True)
    arguments = ["run", *attempt.tiny, *attempt.arms, *attempt.given]
    outcome = fork(arguments, cwd, {**_environment(prepared), **attempt.env})
    if attempt.legit:
        verdict, shown = judge(outcome, partial(_is_right, attempt.legit, cwd, right), where)
        if verdict is Verdict.REFUSED:
            return Verdict.UNCLEAR, f"refused but legitimate: {shown}"
        return verdict, shown
    return _judge_refusal(outcome, attempt.says, where)


def _judge_refusal(outcome: Outcome, says: Sequence[str], where: Path) -> tuple[Verdict, str]:
    verdict, shown = judge(outcome, None)
    left = [str(p.relative_to(where)) for p in where.rglob("*")]
    left = sorted(p for p in left if p not in ("in", os.path.join("in", "here")))
    if left and verdict in (Verdict.REFUSED, Verdict.UNCLEAR):
        return Verdict.HALF, f"refused but left {', '.join(left[:5])}: {shown}"
    if verdict is Verdict.REFUSED and says:
        last = [line for line in outcome.err.splitlines() if line.strip()][-1].lower()
        if not any(word.lower() in last for word in says):
            return Verdict.UNCLEAR, f"names none of {', '.join(says)}: {shown}"
    return verdict, shown


def _scores(root: Path) -> str:
    """Return the scores of the only run somewhere below a folder."""
    (found,) = root.rglob("scores.csv")
    return found.read_text(encoding="utf-8")


def _undisturbed(prepared: Path) -> str:
    where = prepared / "undisturbed"
    where.mkdir()
    outcome = fork(["run", *TINY, *ARMS], where, _environment(prepared))
    assert outcome.code == 0, outcome.err
    return _scores(where)


def _is_right(how: str, cwd: Path, right: Callable[[], str]) -> bool:
    made = list(cwd.rglob("scores.csv"))
    if len(made) != 1:
        return False
    scores = _scores(cwd)
    if how == "same":
        return scores == right()
    lines = [line.split(",") for line in scores.splitlines()]
    place = lines[0].index("value")
    values = [float(line[place]) for line in lines[1:]]
    return bool(values) and all(math.isfinite(v) and 0 <= v <= 1 for v in values)


# --- the options of the composed configuration


_EACH = 4
"""Mistakes that are drawn for each option."""


def _of_options(seed: int, prepared: Path) -> Iterator[Attempt]:
    """Go through every option of the defaults, then through what other choices add."""
    tree = prepared / "tree"
    seen: set[str] = set()
    wholes: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("", (), TINY),
        ("class_incremental_shapes", ("benchmark=class_incremental_shapes",), TINY[4:]),
        ("few_shot_label_shapes", ("benchmark=few_shot_label_shapes", *FEW_SHOT[:2]), TINY[4:8]),
        ("few_shot_covariate_shapes", FEW_SHOT, TINY[4:8]),
        ("multitask_shapes", ("benchmark=multitask_shapes", "strategy.head=own"), TINY[4:]),
        *(
            (name, (f"benchmark={name}", f"benchmark.root={tree}", *FEW_SHOT[:2]), TINY[4:8])
            for name in ("domains", "task_folders", "few_shot_task", "few_shot_entangled")
        ),
        ("hub", ("benchmark=hub", f"benchmark.path={tree}"), TINY[4:]),
        ("few_shot_language", (*LANGUAGE, "model=flan_t5_small"), TINY[4:8]),
        ("clip_b32", ("model=clip_b32",), TINY),
        ("timm", ("model=timm", "model.name=vit_tiny_patch16_224"), TINY),
    ]
    draw = random.Random(f"{seed}-options")
    for whole, beside, tiny in wholes:
        for key, default in _composed(beside):
            part = key.partition(".")[0]
            if whole and part != ("model" if "model=" in beside[0] else "benchmark"):
                continue
            if key in ("benchmark.kind", "model.source") and whole:
                continue
            mistakes = list(_mistakes(key, default))
            if key in seen and key != "benchmark.root":
                continue
            mistakes = draw.sample(mistakes, min(_EACH, len(mistakes)))
            seen.add(key)
            last = key.rpartition(".")[2]
            more = BESIDE.get(key, BESIDE.get(part, ())) if not whole else ()
            small = tuple(v for v in tiny if not (more and v.startswith(("benchmark", "ref"))))
            for value in mistakes:
                new = "+" if key in ("model.source",) else ""
                yield Attempt(
                    f"{whole or 'defaults'}: {new}{key}={value[:40]!r}"
                    + (f" of {len(value)}" if len(value) > 40 else ""),
                    (*beside, *more, f"{new}{key}={value}"),
                    _told(value, ALSO.get(last, (last,))),
                    tiny=tuple(v for v in small if not v.startswith(f"{key}=")),
                )


def _told(value: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return by what a sentence shows the mistake: the option, or what was given for it."""
    shown = value.strip("[]'\"")[:20]
    return (*names, shown) if len(shown) > 2 else tuple(names)


def _composed(beside: Sequence[str]) -> list[tuple[str, Any]]:
    from cl_lora.configuration.compose import compose_config

    config = compose_config(list(beside))
    flat: list[tuple[str, Any]] = []
    for key, value in config.items():
        if key in ("arms",):
            continue
        if isinstance(value, Mapping):
            flat += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            flat.append((key, value))
    if not any(key == "model.source" for key, _ in flat):
        flat.append(("model.source", "timm"))
    return flat


def _mistakes(key: str, default: Any) -> Sequence[str]:
    given = KINDS.get(key)
    if given is None:
        given = _kind(key, default)
    mistakes = MISTAKES[given] if isinstance(given, str) else given
    if given == FLOAT and key not in ("strategy.lora_alpha",):
        mistakes = (*mistakes, "-1")
    if given in (INT, FLOAT):
        mistakes = (*mistakes, *(() if key in ZERO else ("0",)), "null")
    if default is None and "null" in mistakes:
        mistakes = tuple(v for v in mistakes if v != "null")
    return tuple(dict.fromkeys(mistakes))


def _kind(key: str, default: Any) -> str:
    for kind, type_ in ((BOOL, bool), (INT, int), (FLOAT, float), (CHOICE, str)):
        if isinstance(default, type_):
            return kind
    raise LookupError(f"{key} has no kind: say it in KINDS")


# --- arms


def _arm(text: str, name: str = "x") -> str:
    return f"+arms.{name}={text}"


def _of_arms(seed: int) -> Iterator[Attempt]:
    draw = random.Random(f"{seed}-arms")
    yield from _of_registered(draw)
    yield from _of_own_options(draw)
    yield from _of_adaptations(draw)
    yield from _of_names()


def _odd(draw: random.Random, default: Any, size: int) -> list[str]:
    """Return mistakes of an option of an arm by the kind of its default."""
    kinds = {bool: NO_BOOL, int: NO_INT, float: NO_FLOAT, str: NO_CHOICE}
    mistakes = kinds.get(type(default), ("abc", "-1", "1.5", HUGE, "true", "[a]", "nan", "''"))
    # Of these some are right for one option or another, or cannot stand in a mapping.
    left = ("null", "3.0", "1", "5", "[1]", "[0.1]", "ü", BELL)
    kept = [v for v in mistakes if v not in left]
    return draw.sample(kept, min(size, len(kept)))


def _of_registered(draw: random.Random) -> Iterator[Attempt]:
    from cl_lora.merging.coefficients.registry import RULES
    from cl_lora.merging.registry import METHODS
    from cl_lora.merging.residuals.registry import RESIDUALS

    for method, info in sorted(METHODS.items()):
        for option, spec in sorted(info.options.items()):
            for value in _odd(draw, spec.default, 1):
                if option == "rank" and value == "0":
                    continue
                yield Attempt(
                    f"arm {method}.{option}={value[:40]} {len(value)}",
                    (_arm(f"{{method: {method}, {option}: {value}}}"),),
                    _told(value, (option, "name")),
                )
    for rule, info_ in sorted(RULES.items()):
        for option, spec in sorted(info_.options.items()):
            for value in _odd(draw, spec.default, 3):
                if (option, value) == ("lr", "1e250"):  # so large a step may be taken
                    continue
                yield Attempt(
                    f"arm coefficients {rule}.{option}={value[:40]} {len(value)}",
                    (
                        _arm(
                            "{method: task_arithmetic, coefficients: "
                            f"{{name: {rule}, {option}: {value}}}}}"
                        ),
                    ),
                    _told(value, (option,)),
                )
    for kept, info__ in sorted(RESIDUALS.items()):
        for option, spec in sorted(info__.options.items()):
            for value in _odd(draw, spec.default, 3):
                if (option, value) == ("m", "1.5"):  # per cent
                    continue
                yield Attempt(
                    f"arm residual {kept}.{option}={value[:40]} {len(value)}",
                    (
                        _arm(f"{{residual: {{name: {kept}, {option}: {value}}}}}"),
                        "protocol=all_at_once",
                        "strategy.head=own",
                    ),
                    (option,),
                )


def _of_own_options(draw: random.Random) -> Iterator[Attempt]:
    own: Mapping[str, Sequence[str]] = {
        "method": ("abc", "''", "5", "[ties]", "{a: 1}", "true", LONG, "null"),
        "space": ("abc", "5", "[a]", "true", "{a: 1}"),
        "rank": ("0", "-1", "1.5", HUGE, DIGITS, "abc", "true", "[1]", "1e20"),
        "coefficients": (
            *("abc", "''", "nan", "inf", "[]", "{}", "{a: 1}", "{name: abc}", "true", "[a]"),
            *("[1,2]", "1e39", "-1e39", DIGITS, "[nan]", "{name: [1]}", "{name: null}", "null"),
            *("'1/n'", "[1,null]", "[[1]]", "{name: grid, values: []}", "{name: uniform, x: 1}"),
        ),
        "spc": ("0", "-1", "1.5", HUGE, DIGITS, "abc", "true", "[1]", "''", "1e20"),
        "buffer_batch_size": ("0", "-1", "1.5", HUGE, DIGITS, "abc", "true", "[1]"),
        "head": ("abc", "own", "5", "[shared]", "true", "{a: 1}"),
        "tune_head": ("abc", "1", "[]", "true"),
        "members": ("0", "-1", "1.5", HUGE, "abc", "true", "9"),
        "bank": ("abc", "5", "[fresh]", "true", "sequentiall"),
        "residual": ("abc", "5", "[low_rank]", "{}", "{name: abc}", "{q: 8}", "true", "''"),
        "select_on": ("abc", "5", "val", "[val]", "true"),
        "adapt": ("abc", "5", "[head]", "true", "none", "head"),
        "start": ("base", "merge", "abc"),
        "head_start": ("abc", "zero"),
        "truncate": ("true", "abc"),
        "adaptation": ("{}", "5", "{steps: 1}"),
        "zzz": ("1", "null"),
        "densty": ("0.5",),
        "'a b'": ("1",),
        "ü": ("1",),
    }
    for option, values in own.items():
        for value in draw.sample(list(values), min(4, len(values))):
            if (option, value) in (("tune_head", "[]"), ("adaptation", "{}")):
                continue
            method_ = "" if option == "method" else "method: task_arithmetic, "
            yield Attempt(
                f"arm {option}: {value[:40]} {len(value)}",
                (_arm(f"{{{method_}{option}: {value}}}"),),
            )
    for text in ("5", "abc", "''", "[a]", "null", "{}", "true", "nan", "[]", "{ties: 1}", "1e20"):
        yield Attempt(f"an arm that is {text}", (_arm(text),), ("arm",))


def _of_adaptations(draw: random.Random) -> Iterator[Attempt]:
    few = (*FEW_SHOT, "references=[]", "shots=[1]")
    adapting: Mapping[str, Sequence[str]] = {
        "warmup_steps": NO_INT,
        "steps": NO_INT,
        "batch_size": (*NO_INT, "0"),
        "lora_lr": (*NO_FLOAT, "0", "-1"),
        "grid": ("[]", "[2]", "5", "abc", "[1,0.5]", "null", "[nan]", f"[1,{DIGITS}]"),
        "select_on": ("abc", "5", "null", "[a]"),
        "zzz": ("1",),
    }
    for option, values in adapting.items():
        for value in draw.sample(list(values), min(4, len(values))):
            if value in ("ü", BELL):
                continue
            yield Attempt(
                f"arm adaptation.{option}={value[:40]} {len(value)}",
                (*few, _arm(f"{{adapt: lora, adaptation: {{{option}: {value}}}}}")),
                (option,),
                arms=("arms=none",),
                tiny=TINY[4:8],
            )


def _of_names() -> Iterator[Attempt]:
    for key in (
        LONG,
        "..",
        ".",
        "''",
        "a/b",
        "a b",
        "ä",
        "'a\nb'",
        "last",
        "base",
        "a.b",
        "-",
        "~",
    ):
        shown = key[:20] + f" {len(key)}"
        if key != "-":
            yield Attempt(f"an arm called {shown}", (_arm("{method: ties}", key),))
    for name in (
        "'..'",
        "'.'",
        "'a/b'",
        "'a\nb'",
        f"'{LONG}'",
        "'x\x1b[31m'",
        "'../../esc'",
        "' '",
    ):
        yield Attempt(f"arms that hold {name[:20]!r}", (f"+arms={{{name}: {{method: ties}}}}",))


# --- what is taken away, and command lines that are none


def _of_deleted() -> Iterator[Attempt]:
    for key in (
        *("arms", "benchmark", "model", "strategy", "plugins", "report"),
        *("benchmark.kind", "model.name", "hydra", "hydra.run", "hydra.job"),
        *("arms.zzz", "zzz", "benchmark.zzz", "strategy.zzz", "seeds=5", "spc=7", "=", ""),
    ):
        yield Attempt(f"~{key}", (f"~{key}",))
    yield Attempt("~benchmark.name", ("~benchmark.name", *ARMS[1:]), legit="same")


def _of_lines(prepared: Path) -> Iterator[Attempt]:
    lines = (
        *(
            "=5",
            "=",
            "==",
            "5",
            "abc",
            "a b=1",
            "ü=1",
            "-x=1",
            "+=1",
            "++=1",
            "+",
            "~",
            "++",
            "@x=1",
        ),
        *("a@=1", "a:b=1", "a..b=1", ".a=1", "a.=1", "a/=1", "/=1", "//=1", "[a]=1", "{a}=1"),
        *(
            "zzz=1",
            "strategy.zzz=1",
            "strategi.rank=2",
            "rank=2",
            "strategy.rank.x=2",
        ),
        *("seeds.x=1", "seeds[0]=1", "report.x=true", "model.name.x=1", "benchmark.kind.x=1"),
        *("strategy=zzz", "benchmark=zzz", "model=zzz", "arms=zzz", "experiment=zzz"),
        *("strategy=5", "benchmark=5", "model=[]", "strategy=[]", "benchmark=[]", "arms=[zzz]"),
        *("strategy=null", "benchmark=null", "model=null", "arms=null", "arms=5", "arms={}"),
        *("benchmark=[shapes,pacs]", "model={a: 1}", "strategy=''", "arms=''", "benchmark=''"),
        *("benchmark=../shapes", "benchmark=/etc/passwd", "benchmark=../../../etc/passwd"),
        *("model=a/b", "strategy='lora\n'", f"strategy={LONG}", "arms=ü"),
        *(
            "benchmark@x=shapes",
            "model@benchmark=embedded",
            "benchmark@=shapes",
            "arms@a.b=default",
        ),
        *("+benchmark@x=shapes", "+model@strategy=embedded", "+benchmark=shapes", "+zzz=1"),
        *("++zzz=1", "+strategy.zzz=1", "++strategy.zzz=1", "+benchmark.zzz=1", "+model.zzz=1"),
        *("+zzz.y=1", "+subsets.zzz=1", "+adaptation.zzz=1", "+strategy.rank=2"),
        *("strategy.rank=", "strategy.rank", "strategy.rank==2", "strategy.rank=2=3"),
        *(
            "strategy.rank='2",
            'strategy.rank="2',
            "seeds=[0",
            "seeds=0]",
            "seeds=[0,]",
            "seeds=[,]",
        ),
        *("strategy={rank: 2", "strategy.rank=(2)", "strategy.rank=2;3", "strategy.rank=`ls`"),
        *("strategy.rank=$(ls)", "strategy.rank=<2>", "strategy.rank=2#3", "strategy.rank=2!"),
        *("strategy.rank=2^3", "strategy.rank=2&3", "strategy.rank=~2", "seeds=[[[[0]]]]"),
        *("strategy.rank=2,4", "strategy.rank=range(1,3)", "strategy.rank=choice(1,2)"),
        *("strategy.rank=glob(*)", "strategy.rank=interval(0,1)", "strategy.rank=sort(3,2,1)"),
        *("strategy.rank=int(abc)", "strategy.rank=float(2)", "strategy.rank=str(2)"),
        *(
            "strategy.rank=bool(2)",
            "strategy.rank=zzz(2)",
            "strategy.rank=tag(a,2)",
        ),
        *("strategy.rank=json_str([1])", "strategy.rank=range(1,9999999999)", "spc=range(1,1)"),
        *("spc=range(1,5,0)", "spc=range(a,b)", "spc=range(1,5,-1)", "seeds=range(0,3)"),
        *(
            "spc=${zzz}",
            "spc=${strategy.zzz}",
            "spc=${oc.env:NO_SUCH_VARIABLE}",
            "spc=${oc.env:HOME}",
        ),
        *("spc=${spc}", "spc=${oc.env:}", "spc=${zzz:1}", "spc=${", "spc=${}", "spc='${'"),
        *("spc=${strategy}", "spc=${hydra:zzz}", "spc=${hydra:job.zzz}", "spc=${now:%Y}"),
        *(
            "spc=${oc.create:1}",
            "spc=${oc.decode:abc}",
            "spc=${oc.decode:'{a'}",
            "spc=${oc.select:zzz}",
        ),
        *(
            "spc=${oc.dict.keys:zzz}",
            "spc=${oc.deprecated:zzz}",
            "spc=${${zzz}}",
            "seeds=${benchmark}",
        ),
        *("seeds=[${seeds}]", "strategy.rank=${strategy.name}", "report=${spc}", "arms=${model}"),
        *("benchmark.name=${oc.env:HOME}", "benchmark.name=${now:/%Y}", "benchmark=${model}"),
        *("strategy.rank=2 strategy.epochs=1", "strategy.rank:2", "strategy.rank 2", "\t=1", " = "),
        *(f"strategy.rank={ENDLESS}", f"seeds=[{ENDLESS}]", f"{LONG}=1", f"zzz{'.a' * 200}=1"),
        *("seeds=" + "[" * 60 + "0" + "]" * 60, "strategy.rank='\x00'", "strategy.rank=\x07"),
        *("hydra.zzz=1", "hydra=5", "hydra.mode=zzz", "hydra.job.chdir=abc", "hydra/launcher=zzz"),
        *("hydra/sweeper=zzz", "hydra/job_logging=zzz", "hydra/zzz=1", "hydra.searchpath=5"),
        *(
            "hydra.searchpath=[zzz]",
            "hydra.searchpath=[file:///nowhere]",
            "hydra.searchpath=[pkg://zzz]",
        ),
        *("hydra.run=5", "hydra.sweep.dir=[1]"),
        *(
            "hydra.output_subdir=[1]",
            "hydra.job.name=[1]",
            "hydra.launcher.zzz=1",
            "hydra.job=null",
        ),
        *("optional strategy_model=zzz", "experiment=''"),
        *(
            "experiment=5",
            "experiment=[reuse_shapes,zzz]",
            "defaults=[]",
        ),
        *("_self_=1", "benchmark._target_=os.system", "model.name=${oc.env:PATH}"),
        *("+benchmark._target_=os.system", "+strategy._target_=os.system", "+_target_=os.system"),
    )
    for line in lines:
        yield Attempt(f"{line[:60]!r} {len(line)}", (line,), ())
    yield Attempt("arms=[]", ("arms=[]", "references=[]"), arms=())
    yield Attempt("no arm and no row", ("references=[]",), ("arm",), arms=("arms=none",))
    yield Attempt("no arm, rows null", ("references=null",), ("arm",), arms=("arms=none",))
    yield Attempt("an arm twice", ARMS[1:], ("twice", "half"), arms=ARMS)
    yield Attempt("an arm twice, otherwise", ("+arms.half={method: ties}",), ("half",), arms=ARMS)
    yield Attempt(
        "an arm overridden", ("arms.half={method: ties}",), ("half",), arms=("arms=none",)
    )
    yield Attempt("an arm of two choices", ("arms=[buffer,zzz]",), ("zzz",), arms=())
    yield Attempt("the same choice twice", ("benchmark=shapes", "benchmark=pacs"))
    yield Attempt("an option both here and gone", ("spc=3", "~spc", "spc=-1"))
    yield Attempt(
        "bytes that are no UTF-8", (os.fsdecode(b"benchmark.name=a\xffb"),), ("UTF-8", "name")
    )
    yield Attempt(
        "bytes that are no UTF-8, a folder", (os.fsdecode(b"run_dir=a\xffb"),), ("UTF-8",)
    )
    for value in ("[ä,ö]", "{a: ü}", "ä,ö", "[a b,c;d]"):
        yield Attempt(f"letters without quotes in {value}", (f"seeds={value}",))


def _of_flags() -> Iterator[Attempt]:
    flags: Sequence[tuple[str, ...]] = (
        *(
            ("--zzz",),
            ("--cfg",),
            ("--cfg", "zzz"),
            ("--info", "zzz"),
            ("--multirun", "--cfg", "job"),
        ),
        *(
            ("--package",),
            ("--config-dir",),
            ("--config-dir", "/nowhere"),
            ("--config-name", "zzz"),
        ),
        *(("--config-path", "/nowhere"), ("--config-dir", "/dev/null"), ("--config-name", "")),
        *(
            ("--config-path", "../../esc"),
            ("--config-name", "../x"),
            ("--resolve",),
            ("-x",),
            ("-c",),
        ),
        *(
            ("--multirun", "strategy.rank=2,"),
            ("--multirun", "strategy.rank=0,2"),
        ),
        *(
            ("-m", "strategy.rank=2,2"),
            ("-m", f"strategy.rank=2,{HUGE}"),
            ("-m", "benchmark=shapes,zzz"),
        ),
        *(
            ("-m", "strategy.rank=range(1,3,0)"),
            ("-m", "spc=abc,5"),
        ),
        *(("-m", "strategy.rank=glob(*)"), ("-m", "hydra.sweeper.max_batch_size=abc", "spc=5,6")),
        *(
            ("-m", "hydra/launcher=zzz", "spc=5,6"),
            ("-m", "report=true,abc"),
            ("-m", "arms=none,zzz"),
        ),
        *(
            ("--shard",),
            ("--shard", "0/2"),
            ("--shard", "3/2"),
            ("--shard", "1/0"),
            ("--shard", "a/b"),
        ),
        *(
            ("--shard", f"1/{HUGE}"),
            ("--shard", "-1/2"),
            ("--shard", "1.5/2"),
            ("--shard=",),
            ("--shard", "1"),
        ),
        *(
            ("--experimental-rerun", "x"),
            ("--shell-completion", "zzz"),
            ("--run", "--multirun"),
            ("--",),
        ),
        *(
            ("-m", "spc=range(1,99999999)"),
            ("--multirun", f"spc={DIGITS},5"),
            ("", ""),
            ("--cfg", ""),
        ),
    )
    for given in flags:
        if given in (("--",), ("-m", "strategy.rank=2,2"), ("-m", "strategy.rank=2,")):
            continue
        yield Attempt(f"flags {' '.join(given)[:60]!r}", given)


# --- where things lie


def _of_places(prepared: Path) -> Iterator[Attempt]:
    for place in ("run_dir", "runs_root"):
        for value in ("/dev/null", "/dev/null/x", "/proc/x", "/proc/self/mem/x"):
            yield Attempt(f"{place}={value}", (f"{place}={value}",))
    for value in ("/dev/null", "/dev/null/x", "/proc/x"):
        yield Attempt(f"cache_dir={value}", (f"benchmark.cache_dir={value}",))
    data = ("benchmark=domains",)
    for value in (
        "/data/Bilder für x",
        "/data/日本",
        "/data/a;b",
        "/data/a&b",
        "/data/a#b",
        "/data/(a)",
    ):
        yield Attempt(
            f"root={value}",
            (*data, f"benchmark.root={value}"),
            ("/data",),
            tiny=TINY[4:],
        )
    for value in ("/data/Bilder, für x", "/data/[ä]", "/data/{ä}", "/data/Bilder'ü", '/data/a"ü'):
        yield Attempt(
            f"root={value}", (*data, f"benchmark.root={value}"), ("quote", "/data"), tiny=TINY[4:]
        )


def _of_legit(prepared: Path) -> Iterator[Attempt]:
    same: Sequence[tuple[str, ...]] = (
        ("run_dir=Läufe mit Leerzeichen",),
        ("runs_root=日本語/ü",),
        ("run_dir=a;b&c#d!e^f`g~h",),
        ("run_dir='a, b'",),
        ("run_dir=5",),
        ("run_dir=~nobody_there/x",),
        (f"run_dir={'a' * 200}",),
        (f"runs_root={'/'.join(['a' * 50] * 6)}",),
        ("benchmark.name=Bilder für x",),
        ("benchmark.name=日本",),
        ("benchmark.cache_dir=Zwischen Läger",),
        ("eval_batch_size=1",),
        ("eval_batch_size=100000",),
        ("threads=1",),
        ("spc=1",),
        ("buffer_batch_size=1",),
        ("seeds=0",),
        ("yardstick=last",),
        ("yardstick=half",),
        ("strategy.full_lr=1.0",),
        ("strategy.head_hidden=1",),
        ("report=True",),
        ("device=cpu",),
        ("~draws",),
        ("references=[last]", "references=[last]"),
        ("strategy.rank=int('2')",),
        ("strategy.rank=2", "strategy.rank=2"),
        ("++strategy.rank=2",),
        ("benchmark=shapes",),
        ("hydra.verbose=false",),
        ("strategy.name=ü",),
    )
    for given in same:
        tiny = tuple(
            v for v in TINY if not any(g.partition("=")[0] == v.partition("=")[0] for g in given)
        )
        yield Attempt(
            f"legitimate: {' '.join(given)[:60]} {len(given[0])}",
            given,
            legit="same",
            arms=ARMS,
            tiny=tiny if not given[0].startswith("benchmark=") else TINY,
        )
    whole: Sequence[tuple[str, ...]] = (
        ("strategy.batch_size=1000000",),
        ("strategy.dropout=0",),
        ("strategy.lr=1",),
        ("strategy.warmup=0.99",),
        ("seeds=[4294967296]",),
        ("seeds=[9223372036854775807]",),
        ("benchmark.split_seed=9223372036854775807",),
        ("benchmark.first_class=999",),
        ("benchmark.classes=1",),
        ("strategy.targets=[fc2,q]",),
        ("strategy.rank=192",),
        (f"+arms.{'a' * 80}={{method: ties, coefficients: 1}}",),
        ("+arms.x={method: ties, density: 1}",),
        ("+arms.x={method: task_arithmetic, coefficients: -3}",),
    )
    for given in whole:
        yield Attempt(
            f"legitimate: {given[0][:60]} {len(given[0])}", given, legit="whole", arms=ARMS
        )


# --- Ctrl-C


def _interrupts(seed: int, prepared: Path) -> Iterator[Case]:
    """Interrupt while the configuration is composed and checked."""
    draw = random.Random(f"{seed}-interrupts")

    def run(after: float, where: Path) -> tuple[Verdict, str]:
        cwd = where / "in" / "here"
        cwd.mkdir(parents=True)

        def before() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, after)

        arguments = ["run", *TINY, *ARMS, "strategy.rank=0"]
        outcome = fork(arguments, cwd, _environment(prepared), before)
        verdict, shown = judge(outcome, None)
        if verdict is Verdict.REFUSED:
            return verdict, shown  # it was through before
        told = outcome.err.strip().splitlines()[-1:] or [""]
        if outcome.code == 130 and told[0].startswith("cl-lora: interrupted;"):
            return Verdict.REFUSED, told[0]
        return (Verdict.UNCLEAR if verdict is Verdict.WRONG else verdict), shown

    for number in range(24):
        after = draw.uniform(0.005, 0.6)
        yield Case(f"Ctrl-C number {number} after {after:.3f} s", partial(run, after))


def _tree(root: Path) -> None:
    """Write three domains of two classes of three small images."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for domain in ("photo", "cartoon", "sketch"):
        for name in ("cat", "dog"):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
