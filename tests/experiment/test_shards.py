"""Shards of a run, joined, are byte for byte what one process scores."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from tiny_run import TRAINING, overrides
from whole_runs import content, rows, stamps

from cl_lora.benchmarks import make_benchmark
from cl_lora.cli import main
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment import dealing, pipeline
from cl_lora.experiment.arms import ArmDefaults, make_arm
from cl_lora.experiment.dealing import Piece, deal, pieces
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.pipeline import execute
from cl_lora.experiment.shards import execute_shard
from cl_lora.experiment.stages import Outline, get_protocol, shots_of
from cl_lora.run_folder.parts import Plan, Shard, part_folders
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import DivergedError, UserError

pytestmark = pytest.mark.slow

SMALL = ("model.img_size=16", "precision=fp32", "device=cpu", "report=false", *TRAINING)
STREAM = (
    *("seeds=[0,1]", "references=[base,last]", "benchmark.styles=[photo,cartoon]"),
    "+arms.grid={method: svd, spc: 2, coefficients: {name: grid, values: [0.3, 1.0]}}",
    "+arms.newton={method: svd, spc: 2, "
    "coefficients: {name: adaptive, solver: gauss_newton, iterations: 2, start: previous}}",
)
TASKS = (
    *("experiment=multitask_shapes", "arms=none", "seeds=[0,1]", "references=[single,other_seed]"),
    *("strategy.patience=null", "subsets.triples_with=null", "spc=1", "strategy.head_hidden=8"),
    *("~benchmark.tasks.style", "~benchmark.tasks.outline", "benchmark.samples_per_class=4"),
    *("benchmark.test_samples_per_class=2", "benchmark.val_fraction=0.25"),
    *(f"benchmark.tasks.{t}.classes=3" for t in ("object", "area", "orientation")),
    *(f"benchmark.tasks.{t}.styles=[photo]" for t in ("object", "area", "orientation")),
    "+arms.mean={method: task_arithmetic}",
    "+arms.refit={method: cat, coefficients: 1, head: refit}",
    "+arms.learned={method: cat, coefficients: {name: adaptive, b_max: 1.5, steps: 2}}",
)
REUSE = (
    *("experiment=reuse_shapes", "arms=none", "embed=null", "strategy.patience=null"),
    *("~benchmark.tasks.cartoon", "~benchmark.tasks.sketch", "references=[single]", "seeds=[0]"),
    *(f"benchmark.tasks.{t}.classes=3" for t in ("photo", "painting", "style")),
    *("benchmark.tasks.style.styles=[photo,painting]", "benchmark.tasks.style.samples_per_class=4"),
    *("benchmark.samples_per_class=4", "benchmark.test_samples_per_class=4"),
    "benchmark.val_fraction=0.25",
    "+arms.low={residual: {name: low_rank, q: 1}}",
    "+arms.fisher={method: fisher, labels: data, coefficients: 1.0}",
    "+arms.grid={method: task_arithmetic, "
    "coefficients: {name: grid, values: [0.3, 1.0]}, select_on: val}",
)
FEW = (
    *(
        "arms=none",
        "references=[]",
        "yardstick=null",
        "strategy.targets=[q,fc1]",
        "benchmark.classes=3",
    ),
    *("benchmark.styles=[photo,cartoon,sketch]", "benchmark.samples_per_class=6"),
    *("benchmark.test_samples_per_class=4", "shots=[1,all]", "seeds=[0]"),
    *("adaptation.warmup_steps=2", "adaptation.steps=2", "adaptation.epochs=0"),
    "+arms.classifier={adapt: head}",
    "+arms.uniform={method: task_arithmetic, adapt: head}",
    "+arms.learned={method: task_arithmetic, coefficients: softmax, adapt: coefficients}",
    "+arms.ties={method: ties, adapt: head}",
)
MORE = (
    *("draws=2", "adaptation.grid=[0.3,1.0]", "+arms.lora={adapt: lora}"),
    "+arms.beside={method: task_arithmetic, coefficients: softmax, adapt: lora}",
)
RUNS = {
    "prefixes": STREAM,
    "subsets": TASKS,
    "all_at_once": REUSE,
    "shots": ("experiment=few_shot_shapes", *FEW, *MORE),
    "few_shot_stream": ("experiment=few_shot_stream", *FEW),
}
TABLES = ("scores.csv", "coefficients.csv")


def config(folder: Path, protocol: str, *more: str) -> dict[str, Any]:
    if protocol == "prefixes":
        return compose_config(overrides(folder, *SMALL, *RUNS[protocol], *more))
    return compose_config([f"run_dir={folder}", *RUNS[protocol], *SMALL, *more])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns what one process makes of a protocol, computed once."""
    root = tmp_path_factory.mktemp("one")

    def made(protocol: str) -> Path:
        folder = root / protocol
        return folder if folder.exists() else execute(config(folder, protocol))

    return made


@pytest.fixture
def bank(one: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that returns a run of which the adapters are there and nothing else."""

    def made(protocol: str, to: str = "run") -> Path:
        folder = tmp_path / to
        shutil.copytree(one(protocol) / "adapters", folder / "adapters")
        for statistics in folder.glob("adapters/*/*/statistics"):
            shutil.rmtree(statistics)
        # What is told of adapters takes long, and is not what is tested here.
        told = (
            "config.yaml",
            "similarity.csv",
            "relations.csv",
            "adapter_facts.csv",
            "spectra.csv",
            "tables.json",
        )
        for name in told:
            if (one(protocol) / name).exists():
                shutil.copy(one(protocol) / name, folder)
        return folder

    return made


def sentence(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def measured(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Return the accounts without what a clock or the memory says."""
    path = folder / "accounts.csv"
    there = rows(folder, path.name) if path.exists() else []
    clocked = ("seconds", "peak_memory_mb")
    return {"accounts": [row for row in there if row["quantity"] not in clocked]}


def trained(folder: Path) -> dict[str, int]:
    """Return when each file was written that only training writes; records take statistics in."""
    return {k: v for k, v in stamps(folder).items() if not k.endswith("training.json")}


def same(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """Return the names of files that differ."""
    return [k for k in first.keys() | second.keys() if first.get(k) != second.get(k)]


# The same numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", RUNS)
def test_shards_joined_are_what_one_process_scores(
    one: Callable[[str], Path], bank: Callable[..., Path], protocol: str
) -> None:
    whole = one(protocol)
    # How many shards there are is dealt with by the same code whatever the protocol.
    for count in (1, 2, 3) if protocol == "prefixes" else (3,):
        folder = bank(protocol, f"run-{count}")
        before = trained(folder)
        for number in range(count, 0, -1):
            execute_shard(config(folder, protocol), Shard(number, count))
        plan = Plan.read(folder)
        assert plan is not None
        assert all(plan.units)  # none is idle
        joined = RunFolder.read(folder)
        execute(config(folder, protocol))
        assert same(content(folder), content(whole)) == []
        assert measured(folder) == measured(whole)
        assert {k: v for k, v in trained(folder).items() if k in before} == before
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in whole.iterdir())
        # What was read before the parts were joined is what stands in the tables now.
        after = RunFolder.read(folder)
        assert list(joined.scores) == list(after.scores)
        assert joined.coefficients.equals(after.coefficients)
        assert joined.accounts.equals(after.accounts)


def test_shards_train_what_is_missing_seed_by_seed(
    one: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    execute_shard(config(folder, "prefixes"), Shard(2, 2))
    assert {p.name for p in (folder / "adapters").iterdir()} == {"seed-1"}
    execute_shard(config(folder, "prefixes"), Shard(1, 2))
    execute(config(folder, "prefixes"))
    # Only when and how fast an adapter was trained differs.
    differing = same(content(folder), content(one("prefixes")))
    assert all(name.endswith("/training.json") for name in differing)


# Who does what ------------------------------------------------------------------------------------


def test_a_shard_that_is_done_scores_nothing_again(
    bank: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bank("prefixes")
    execute_shard(config(folder, "prefixes"), Shard(1, 3))
    (part,) = part_folders(folder)
    there = (part / "scores.csv").read_bytes()
    plan = Plan.read(folder)
    assert plan is not None
    assert {(s["seed"], s["arm"], s["stage"]) for s in rows(part)} == {
        (str(seed), row, str(stage)) for seed, row, stage in plan.of(Shard(1, 3))
    }
    scored: list[object] = []
    score = Evaluator.score

    def counting(self: Evaluator, *given: Any) -> Any:
        scored.append(given)
        return score(self, *given)

    monkeypatch.setattr(Evaluator, "score", counting)
    execute_shard(config(folder, "prefixes"), Shard(1, 3))
    assert scored == []
    assert (part / "scores.csv").read_bytes() == there
    execute(config(folder, "prefixes"))  # and the plain command does the rest only
    assert len(scored) == sum(map(len, plan.units[1:]))


def test_only_what_is_missing_is_dealt_out(one: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(one("prefixes"), folder)
    execute_shard(config(folder, "prefixes"), Shard(1, 2))
    assert not (folder / "parts").exists()  # nothing was
    more = "+arms.more={method: task_arithmetic, coefficients: 0.7}"
    execute_shard(config(folder, "prefixes", more), Shard(1, 2))
    plan = Plan.read(folder)
    assert plan is not None
    assert [{(seed, row) for seed, row, _ in units} for units in plan.units] == [
        {(0, "more")},
        {(1, "more")},
    ]


def test_pieces_keep_together_what_shares(tmp_path: Path) -> None:
    raw = config(tmp_path, "shots")
    benchmark = make_benchmark(raw["benchmark"], 16)
    arms = [make_arm(name, given) for name, given in raw["arms"].items()]
    outline = Outline(benchmark.names, (), (6.0,) * 3, (1, 2))
    stages = get_protocol("shots").stages(outline)
    units = [((0, arm.name, s.index), s, arm) for s in stages for arm in arms]
    found = [
        ({row for _, row, _ in piece.units}, {stages[t].evaluated for _, _, t in piece.units})
        for piece in pieces(units, benchmark)
    ]
    together = ({"classifier", "lora"}, {"uniform", "learned", "beside"}, {"ties"})
    for j in range(3):
        for rows_ in together:
            assert (rows_, {(j,)}) in found
    assert len(found) == 9


def test_an_arm_that_is_adapted_stays_whole_where_its_merge_is_scored(tmp_path: Path) -> None:
    """At the stages of a stream that have no support set."""
    benchmark = make_benchmark(config(tmp_path, "shots")["benchmark"], 16)
    given = {"method": "ties", "adapt": "lora"}
    arms = [make_arm(name, given, ArmDefaults(head="own")) for name in ("one", "other")]
    outline = Outline(benchmark.names, (), (6.0,) * 3, (1,))
    stages = get_protocol("few_shot_stream").stages(outline)
    merged = [s for s in stages if shots_of(s) is None]
    assert len(merged) == 3
    units = [((0, arm.name, s.index), s, arm) for s in merged for arm in arms]
    found = [{row for _, row, _ in piece.units} for piece in pieces(units, benchmark)]
    assert found == [{"one"}, {"other"}]


@pytest.mark.parametrize(
    ("costs", "count", "expected"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([4, 4, 4, 4], 3, [2, 1, 1]),
        ([1, 1, 10], 3, [1, 1, 1]),
        ([10, 1, 1, 1], 2, [1, 3]),
        ([3, 1, 1, 5, 2], 2, [3, 2]),
        ([5, 5], 4, [1, 1, 0, 0]),
        ([], 2, [0, 0]),
        ([7], 1, [1]),
    ],
)
def test_pieces_are_cut_evenly(costs: list[int], count: int, expected: list[int]) -> None:
    given = [Piece(((0, str(i), 0),), cost) for i, cost in enumerate(costs)]
    dealt = deal(given, count)
    assert [len(units) for units in dealt] == expected
    assert sorted(u for units in dealt for u in units) == sorted(p.units[0] for p in given)


def test_learning_costs_more_than_scoring(tmp_path: Path) -> None:
    raw = config(tmp_path, "prefixes")
    benchmark = make_benchmark(raw["benchmark"], 16)
    untrained, first, *_ = get_protocol("prefixes").stages(Outline(benchmark.names))
    scored = 2 * len(benchmark.experiences[0].test)
    assert dealing.cost(untrained, None, benchmark) == 0
    assert dealing.cost(first, None, benchmark) == scored
    half, ties = (make_arm(name, raw["arms"][name]) for name in ("half", "ties_learned"))
    assert dealing.cost(first, half, benchmark) == scored
    assert dealing.cost(first, ties, benchmark) == scored + 3 * 2 * ties.buffer_batch_size


# What goes wrong ----------------------------------------------------------------------------------


def test_a_part_that_is_missing_is_named_until_it_is_there(
    bank: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bank("prefixes")
    execute_shard(config(folder, "prefixes"), Shard(3, 3))
    for command in (["report", str(folder)], ["compare", str(folder)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"{folder} lacks the parts 1/3, 2/3: " in said
        assert "run the same command with --shard 1/3 and so on, or without --shard" in said
    plan = Plan.read(folder)
    assert plan is not None
    arm = next(row for seed, row, _ in plan.of(Shard(1, 3)) if seed == 0)
    assert main(["export", str(folder), "--arm", arm, "--out", str(folder / "out")]) == 2
    assert "has no scores in" in (said := capsys.readouterr().err)
    assert "lacks the parts 1/3, 2/3" in said


def test_another_command_is_refused(bank: Callable[..., Path]) -> None:
    folder = bank("prefixes")
    execute_shard(config(folder, "prefixes"), Shard(1, 2))
    said = sentence(execute_shard, config(folder, "prefixes"), Shard(1, 3))
    assert "is dealt out to 2 shards but got --shard 1/3" in said
    more = config(folder, "prefixes", "+arms.more={method: ties}")
    said = sentence(execute_shard, more, Shard(2, 2))
    assert "were dealt out by another command (arms.more is None there" in said
    other = config(folder, "prefixes", "strategy.epochs=2")
    assert "holds another configuration (strategy.epochs is 1 there and 2 here)" in sentence(
        execute_shard, other, Shard(2, 2)
    )
    assert [p.name for p in part_folders(folder)] == ["shard-1-of-2"]
    assert "more" not in RunFolder.read(folder, allow_unfinished=True).arms


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--shard", "0/2"], "Expected --shard i/n, part i of n with 1 <= i <= n, but got '0/2'"),
        (["--shard=3/2"], "but got '3/2'"),
        (["--shard", "a/b"], "but got 'a/b'"),
        (["--shard", "1/0"], "but got '1/0'"),
        (["--shard"], "but got ''"),
        (["--shard", "1/2", "--shard=2/2"], "--shard is given as 1/2 and as 2/2"),
        (
            ["--shard", "1/2", "--multirun"],
            "--shard divides one run among processes but --multirun",
        ),
        (["-m", "--shard", "1/2", "strategy.rank=2,4"], "but --multirun makes several runs"),
        (["--shard", "1/2", "hydra.mode=MULTIRUN"], "but --multirun makes several runs"),
    ],
)
def test_a_bad_command_line_is_one_sentence(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["run", f"run_dir={tmp_path / 'run'}", *given]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_what_is_left(
    bank: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bank("prefixes")
    given = ["run", *overrides(folder, *SMALL, *RUNS["prefixes"])]
    assert main([*given[:3], "--shard", "1/2", *given[3:]]) == 0
    said = capsys.readouterr().out
    assert f"Part 1/2: {folder / 'parts' / 'shard-1-of-2'}" in said
    assert f"{folder} lacks the part 2/2: " in said
    assert main([*given, "--shard=2/2"]) == 0
    assert f"All parts of {folder} are whole" in capsys.readouterr().out


def test_an_arm_that_diverges_in_a_part_is_left_out_of_all(
    bank: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bank("prefixes")
    serve = pipeline.serve_arm

    def failing(bench: Any, arm: Any, stage: Any) -> Any:
        if arm.name == "grid" and bench.seed == 1:
            raise DivergedError("Arm 'grid' diverged")
        return serve(bench, arm, stage)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "serve_arm", failing)
        execute_shard(config(folder, "prefixes"), Shard(1, 2))
        said = sentence(execute_shard, config(folder, "prefixes"), Shard(2, 2))
    assert said.startswith("Arm 'grid' diverged; everything else is finished")
    joined = RunFolder.read(folder)
    assert "grid" not in joined.arms
    assert "half" in joined.arms
    raw = config(folder, "prefixes")
    del raw["arms"]["grid"]
    execute(raw)
    assert RunFolder.read(folder).config["stopped"]["grid"]["reason"] == "Arm 'grid' diverged"
    assert not (folder / "parts").exists()


def test_a_unit_that_two_parts_score_differently_is_refused(bank: Callable[..., Path]) -> None:
    folder = bank("prefixes")
    for number in (1, 2):
        execute_shard(config(folder, "prefixes"), Shard(number, 2))
    first, second = (part / "scores.csv" for part in part_folders(folder))
    line = first.read_text().splitlines()[1].split(",")
    seed, row, stage = line[0], line[1], line[2]
    line[5] = repr(float(line[5]) + 0.125)
    second.write_text(second.read_text() + ",".join(line) + "\n")
    (second.parent / "seals.csv").unlink()  # as of a version that knew no digests
    for call in (RunFolder.read, lambda path: execute(config(path, "prefixes"))):
        said = sentence(call, folder)
        assert f"both have scored {row!r} of seed {seed} at stage {stage} but not alike" in said


# Real processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kills(one: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("kills")
    given = [o for o in overrides(folder, *SMALL, *RUNS["prefixes"]) if "run_dir" not in o]
    driver = Path(__file__).parent / "shard_kill_driver.py"
    done = subprocess.run(
        [*warm.python(), str(driver), str(folder), json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + "".join(p.read_text() for p in folder.glob("*.log"))
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_shards_lose_nothing(kills: dict[str, Any], one: Callable[[str], Path]) -> None:
    assert kills["killed"] == [True] * len(kills["killed"])
    assert len(kills["killed"]) == 6
    assert kills["codes"] == [0] * len(kills["codes"])
    assert kills["trained_again"] == []
    assert kills["lost"] == []
    assert kills["in_use"] == [2, 2]
    run = Path(kills["run"])
    assert "Another process is writing to" in (run.parent / "in_use.log").read_text()
    differing = same(content(run), content(one("prefixes")))
    assert all(name.endswith("/training.json") for name in differing)
    assert [str(p) for p in run.rglob(".*.*")] == []
    assert not (run / "parts").exists()
