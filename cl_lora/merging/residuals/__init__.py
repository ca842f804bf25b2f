"""What one task needs beside the base that all tasks share: residuals, a file per kind.

Jiang et al. 2023 (PERU, later BYOM). A residual needs no training and no data, but it needs the
task of an image to be known.
"""

# Importing a kind registers it.
from cl_lora.merging.residuals import low_rank, sparse
from cl_lora.merging.residuals.difference import Differences
from cl_lora.merging.residuals.parts import Part, SingularDelta, SparseDelta, WholeDelta
from cl_lora.merging.residuals.registry import (
    RESIDUALS,
    Residual,
    ResidualChoice,
    make_residual,
    register_residual,
    residual_names,
    residuals_table,
)
from cl_lora.merging.residuals.residue import Residue, TaskUpdate

__all__ = [
    "RESIDUALS",
    "Differences",
    "Part",
    "Residual",
    "ResidualChoice",
    "Residue",
    "SingularDelta",
    "SparseDelta",
    "TaskUpdate",
    "WholeDelta",
    "low_rank",
    "make_residual",
    "register_residual",
    "residual_names",
    "residuals_table",
    "sparse",
]
