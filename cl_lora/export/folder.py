"""The folder of an export: a PEFT adapter, heads, the base where it must, and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cl_lora import __version__
from cl_lora.adapters.peft_folder import Contents, write_files
from cl_lora.export.card import model_card
from cl_lora.export.choice import Choice
from cl_lora.export.fusing import LowRank, fused, low_rank
from cl_lora.export.model import WITH, Base, base_of, base_weights
from cl_lora.export.rebuilt import Rebuilt, ServedHead, rebuild
from cl_lora.support import files
from cl_lora.support.errors import UserError

CARD_FILE = "README.md"
EXPORT_FILE = "export.json"
HEADS_FILE = "heads.safetensors"
FORMAT = 1
"""Version of ``export.json``."""

_BOTH = ("weight", "bias")
_SHAPES = (set(_BOTH), {f"{part}.{side}" for part in ("norm", "hidden", "out") for side in _BOTH})
"""The weights of the heads that the card's code knows."""


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        choice: of which row, stage and seed.
        update: the update as factors.
        heads: the heads.
        base: the base model.
        other_head: why the heads are not those that were scored; empty if they are.
    """

    folder: Path
    choice: Choice
    update: LowRank
    heads: tuple[ServedHead, ...]
    base: Base
    other_head: str


def export(
    choice: Choice,
    out: str | Path,
    *,
    rank: int | None = None,
    dense: bool = False,
    head: str | None = None,
    with_base: bool = False,
) -> Exported:
    """Write what a row of a run served as a folder that peft and timm read without this package.

    Written under a temporary name, then renamed: a folder that exists is whole.

    Args:
        choice: the row, its stage and its seed.
        out: the folder; it must not exist.
        rank: cut every module's update to this rank; None keeps it exactly.
        dense: whether a dense update may be written as factors of full rank.
        head: ``trained`` or ``none`` in place of a head that is not in the run folder.
        with_base: whether the weights of the base model go along; those of the embedded one do.

    Raises:
        UserError: if ``out`` exists or cannot be written, the update is dense and nothing says how
            to write it, or what the row served cannot be made again.
    """
    out = Path(out)
    if out.exists():
        raise UserError(
            f"Expected --out to be a new folder but {out} exists; delete it or choose another name"
        )
    rebuilt = rebuild(choice, head)
    for served in rebuilt.heads:
        _check_head(served)
    update = low_rank(fused(rebuilt.entries), rank, dense)
    base = base_of(choice.run, with_base)
    record = _record(choice, rebuilt, update, base, rank)
    contents = Contents(
        update.factors,
        training={"export": {key: record[key] for key in ("cl_lora", "run", "arm", "stage")}},
        base=rebuilt.base,
    )
    weights = base_weights(choice.run, base)
    with files.whole_folder(out) as folder:
        write_files(folder, contents)
        if rebuilt.heads:
            _save(folder / HEADS_FILE, _flat(rebuilt.heads))
        if weights is not None:
            _save(folder / WITH, weights)
        files.write_json(folder / EXPORT_FILE, record)
        files.write_text(folder / CARD_FILE, model_card(record))
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors keeps its files from others
    return Exported(out, choice, update, rebuilt.heads, base, rebuilt.other_head)


def _check_head(served: ServedHead) -> None:
    if set(served.state) not in _SHAPES:
        raise UserError(
            f"The head {served.name!r} has the weights {', '.join(served.state) or 'none'} but "
            "only linear and MLP heads can be exported; give --head none for the backbone alone"
        )


def _record(
    choice: Choice, rebuilt: Rebuilt, update: LowRank, base: Base, rank: int | None
) -> dict[str, Any]:
    """Return ``export.json``: all that is needed to serve, and where it comes from."""
    run, stage = choice.run, choice.stage
    tasks = {head.task.name: head.task for head in rebuilt.heads}
    return {
        "format": FORMAT,
        "cl_lora": __version__,
        "run": run.name,
        "data": {"name": run.stream.name, "fingerprint": run.stream.fingerprint},
        "arm": choice.row,
        "description": run.description(choice.row),
        "variant": run.variant(choice.row),
        "seed": choice.seed,
        "stage": {"index": stage.index, "name": stage.name},
        "coefficients": rebuilt.coefficients,
        "update": {
            "modules": len(update.factors),
            "ranks": list(update.ranks),
            "cut_to": rank,
            "relative_error": update.error,
        },
        "model": base.record(),
        "tasks": {name: task.record() for name, task in tasks.items()},
        "heads": {
            head.name: {"task": head.task.name, "experiences": list(head.experiences)}
            for head in rebuilt.heads
        },
        "other_head": rebuilt.other_head,
        # Measured under another head they would say nothing of what is here.
        "metrics": {} if rebuilt.other_head else choice.metrics,
        "precision": run.identity["precision"],
    }


def _flat(heads: tuple[ServedHead, ...]) -> dict[str, Tensor]:
    return {f"{h.name}/{key}": value for h in heads for key, value in h.state.items()}


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    own = {key: value.detach().float().cpu().clone().contiguous() for key, value in tensors.items()}
    safetensors.torch.save_file(own, path, {"format": "pt"})
