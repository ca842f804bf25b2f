"""What an adapter was trained on: enough that peft opens the folder without being told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class BaseModel:
    """The base model of an adapter, in the words of peft's configuration.

    Attributes:
        task_type: e.g. ``SEQ_CLS``; which ``AutoPeftModelFor...`` opens the folder.
        name_or_path: ``base_model_name_or_path``, a name on the hub or a folder.
        revision: the version on the hub.
        auto_mapping: the class of a base model that has no task type.
        fan_in_fan_out: whether the adapted layers keep their weights as (d_in, d_out), such as
            GPT-2's Conv1D. Factors and deltas are (d_out, d_in) all the same; whoever adds them
            to such a weight transposes.
        head_module: the module of the base model whose weights are the adapter's head
            (``modules_to_save``); None if the head is kept beside the adapter.
    """

    task_type: str | None = None
    name_or_path: str | None = None
    revision: str | None = None
    auto_mapping: Mapping[str, str] | None = None
    fan_in_fan_out: bool = False
    head_module: str | None = None


def common_base(bases: Sequence[BaseModel]) -> BaseModel:
    """Return what all ``bases`` agree on; each field on which they differ is as if unknown."""
    first, *others = bases
    agreed = {
        field.name: getattr(first, field.name)
        for field in fields(BaseModel)
        if all(getattr(other, field.name) == getattr(first, field.name) for other in others)
    }
    return BaseModel(**agreed)
