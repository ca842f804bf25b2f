"""Backbones (timm, local checkpoints, the embedded one) and heads."""
