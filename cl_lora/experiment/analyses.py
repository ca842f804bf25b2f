"""Tables beside the scores that nothing is chosen by: how adapters and their features are alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.embedding import embed
from cl_lora.experiment.relations import facts, relations
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.experiment.similarity import pairs_of, similarities
from cl_lora.experiment.spectra import spectra
from cl_lora.experiment.stages import Stage
from cl_lora.run_folder.records import Embedding, Similarity
from cl_lora.run_folder.rows import EMBEDDINGS, FACTS, RELATIONS, SIMILARITIES, SPECTRA
from cl_lora.run_folder.seals import read_table, write_table
from cl_lora.support import progress
from cl_lora.support.errors import UserError

log = logging.getLogger(__name__)


def compare_features(folder: Path, bench: Workbench, stages: Sequence[Stage]) -> None:
    """Write how alike upstream and downstream adapters are, where a stage adapts some."""
    there = read_table(folder, SIMILARITIES)
    known = {(s.seed, s.evaluated, s.adapter) for s in there}
    pairs = [
        (j, members)
        for j, members in pairs_of(stages)
        if not known.issuperset((bench.seed, j, m) for m in members)
    ]
    total = sum(len(members) for _, members in pairs)
    if not pairs:
        return
    found: list[Similarity] = []
    with progress.meter(f"seed {bench.seed}: comparing features", total) as advance:
        for pair in pairs:
            try:
                found += similarities(bench, pair, advance)
            except UserError as error:  # an analysis: nothing else depends on it
                name = bench.benchmark.names[pair[0]]
                log.warning("features of %r are not compared: %s", name, error)
    new = {(s.seed, s.evaluated, s.adapter) for s in found}
    kept = [s for s in there if (s.seed, s.evaluated, s.adapter) not in new]
    write_table(folder, SIMILARITIES, [*kept, *found])


def relate_adapters(folder: Path, bench: Workbench, stages: Sequence[Stage]) -> None:
    """Write how alike any two adapters are, and what each is like, where subsets are merged."""
    grouped = any(stage.group for stage in stages)
    if not grouped or FRESH.name not in bench.banks:
        return
    seed, count = bench.seed, len(bench.banks[FRESH.name])
    told = read_table(folder, FACTS)
    if seed not in {fact.seed for fact in told}:
        write_table(folder, FACTS, [*told, *facts(bench)])
    there = read_table(folder, RELATIONS)
    if seed not in {relation.seed for relation in there}:
        with progress.meter(f"seed {seed}: comparing adapters", count) as advance:
            found = relations(bench, advance)
        write_table(folder, RELATIONS, [*there, *found])


def measure_spectra(folder: Path, bench: Workbench) -> None:
    """Write how fast the singular values of each adapter fall."""
    there = read_table(folder, SPECTRA)
    known = {(row.seed, row.bank) for row in there}
    missing = [name for name in bench.banks if (bench.seed, name) not in known]
    if not missing:
        return
    total = sum(len(bench.banks[name]) for name in missing)
    with progress.meter(f"seed {bench.seed}: spectra of adapters", total) as advance:
        found = [row for name in missing for row in spectra(bench, name, advance)]
    write_table(folder, SPECTRA, [*there, *found])


def place_features(
    folder: Path, bench: Workbench, j: int, served: Mapping[str, Callable[[], Served]]
) -> None:
    """Write where the features of experience ``j`` lie in the plane under every arm and row.

    Args:
        folder: of the run.
        bench: its first seed.
        j: index of the experience.
        served: name of an arm or a row -> makes what it serves.
    """
    there = read_table(folder, EMBEDDINGS)
    known = {row.arm for row in there if row.evaluated == j and row.seed == bench.seed}
    missing = [name for name in served if name not in known]
    if not missing:
        return
    found: list[Embedding] = []
    with progress.meter(f"seed {bench.seed}: placing features", len(missing)) as advance:
        for name in missing:
            found += embed(bench, {name: served[name]()}, j, advance)
    write_table(folder, EMBEDDINGS, [*there, *found])
