"""The run as TensorBoard event files: one TensorBoard run per arm, and details beside them."""

from __future__ import annotations

from cl_lora.reporting.tensorboard.folders import write_tensorboard

__all__ = ["write_tensorboard"]
