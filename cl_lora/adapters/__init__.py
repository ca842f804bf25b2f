"""Adapters: factors, PEFT folders in and out, and the bank. No model code is imported here."""

from cl_lora.adapters.adapter import Adapter
from cl_lora.adapters.bank import AdapterBank
from cl_lora.adapters.base_model import BaseModel, common_base
from cl_lora.adapters.factors import LoRAFactors, concatenate, truncate

__all__ = [
    "Adapter",
    "AdapterBank",
    "BaseModel",
    "LoRAFactors",
    "common_base",
    "concatenate",
    "truncate",
]
