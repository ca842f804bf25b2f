"""Backbones (timm, local checkpoints, the embedded one) and heads."""

import cl_lora._compat  # noqa: F401  (must run before timm imports torchvision)
