"""Hydra configuration groups, found as ``pkg://cl_lora.configs``."""
