"""Lets torchvision's wheel import beside a CPU build of torch.

Torchvision registers meta kernels for the operators of its compiled library on import and fails
with "operator torchvision::nms does not exist" where that library could not be loaded, as beside
a CPU-only torch. Declaring the operators is enough: transforms, datasets and models work, and
``torchvision.ops.nms`` itself still raises a clear error. Where torch has an accelerator, or the
library is there, nothing is done.

Importing ``cl_lora`` calls :func:`prepare`, which costs nothing: the operators are declared at the
moment something (timm, peft, Avalanche) imports torchvision. Torch is not imported before that.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# Declarations live as long as the object that made them.
_declared: Any = None


class _BeforeTorchvision:
    """An import hook that declares the operators when torchvision is first looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing, so that the import goes on as ever."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_torchvision_operators()
        return None


def prepare() -> None:
    """Have the operators declared when torchvision is imported, if it was not yet."""
    there = any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path)
    if not there and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def declare_torchvision_operators() -> bool:
    """Declare the operators where that is needed; return whether they have been declared."""
    global _declared  # noqa: PLW0603
    import torch

    is_cpu_build = torch.version.cuda is None and torch.version.hip is None
    if _declared is None and is_cpu_build and not library_loads():
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        _declared = library
    return _declared is not None


def library_loads() -> bool:
    """Return whether torchvision's compiled library is there and fits this torch."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to repair
    libraries = sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(
        Path(spec.origin).parent.glob("_C*.pyd")
    )
    ops: Any = torch.ops  # torch leaves it untyped
    try:
        for library in libraries:
            ops.load_library(str(library))
    except OSError:
        return False
    return hasattr(ops.torchvision, "nms")
