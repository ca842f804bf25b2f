"""Lets torchvision's wheel import beside a CPU build of torch; import this before timm.

Torchvision registers meta kernels for the operators of its compiled library on import and fails
with "operator torchvision::nms does not exist" where that library could not be loaded, as beside
a CPU-only torch. Declaring the operators is enough: transforms, datasets and models work, and
``torchvision.ops.nms`` itself still raises a clear error. Where torch has an accelerator, or the
library is there, nothing is done.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# Declarations live as long as the object that made them.
_declared: Any = None
# Torch leaves these two untyped.
_ops: Any = torch.ops
_library: Any = torch.library


def _library_loads() -> bool:
    """Whether torchvision's compiled library is there and fits this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to repair
    libraries = sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(
        Path(spec.origin).parent.glob("_C*.pyd")
    )
    try:
        for library in libraries:
            _ops.load_library(str(library))
    except OSError:
        return False
    return hasattr(_ops.torchvision, "nms")


def declare_torchvision_operators() -> bool:
    """Declare the operators where that is needed; return whether they have been declared."""
    global _declared  # noqa: PLW0603
    is_cpu_build = torch.version.cuda is None and torch.version.hip is None
    if _declared is None and is_cpu_build and not _library_loads():
        library = _library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        _declared = library
    return _declared is not None


declare_torchvision_operators()
