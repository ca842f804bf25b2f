"""The HPARAMS tab of TensorBoard: the settings of every arm beside its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_lora.reporting.describe import arm_settings
from cl_lora.run_folder.reader import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def hparams_of(run: RunFolder, arm: str) -> dict[str, str | float]:
    """Return the settings of an arm, as the HPARAMS tab shows them."""
    s = arm_settings(run, arm)
    given: dict[str, Any] = {
        "method": s.method or ("baseline" if not s.adapt else ""),
        "space": s.space if s.method else "",
        "coefficients": s.rule,
        **{s.scale_title if k == s.scale else k: v for k, v in s.rule_options.items()},
        **s.options,
        "spc": s.spc,
        "head": s.head,
        "tune_head": "yes" if s.tune_head else "",
        "anchor": s.anchor,
        "adapt": s.adapt,
        "start": s.start,
        "bank": s.bank,
        "residual": s.residual,
        **s.residual_options,
    }
    # All numbers as float, as the values of one column must be of one kind.
    return {
        k: float(v) if isinstance(v, int | float) and not isinstance(v, bool) else str(v)
        for k, v in given.items()
        if v not in ("", None)
    }


def domains_of(run: RunFolder) -> dict[str, list[Any]]:
    """Return every setting with the values it takes over all arms.

    TensorBoard takes the columns of the table from one run's description and ignores the others:
    so each run describes them all.
    """
    domains: dict[str, list[Any]] = {}
    for arm in (*run.arms, *run.references):
        for key, value in hparams_of(run, arm).items():
            if value not in domains.setdefault(key, []):
                domains[key].append(value)
    # The values of one column must be of one kind: mixed ones become text.
    return {
        k: v if len({isinstance(x, str) for x in v}) == 1 else [str(x) for x in v]
        for k, v in domains.items()
    }


def add_hparams(
    writer: SummaryWriter,
    arm: str,
    hparams: Mapping[str, str | float],
    results: Sequence[str],
    domains: Mapping[str, list[Any]],
) -> None:
    """Write the settings of an arm and the names of its results."""
    # Not SummaryWriter.add_hparams: it opens a further run named by the time, and cannot leave
    # out a setting that an arm does not have.
    from tensorboard.plugins.hparams import summary_v2

    columns = [
        summary_v2.HParam(k, summary_v2.Discrete(v, dtype=type(v[0]))) for k, v in domains.items()
    ]
    metrics = [summary_v2.Metric(tag, display_name=tag.split("/", 1)[1]) for tag in results]
    typed = {k: v if v in domains[k] else str(v) for k, v in hparams.items()}
    file_writer: Any = writer.file_writer
    file_writer.add_summary(summary_v2.hparams_config_pb(columns, metrics))
    file_writer.add_summary(summary_v2.hparams_pb(typed, trial_id=arm))
