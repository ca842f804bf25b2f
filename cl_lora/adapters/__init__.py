"""Adapters: factors, PEFT folders in and out, and the bank. No model code is imported here."""

from cl_lora.adapters.adapter import Adapter
from cl_lora.adapters.bank import AdapterBank
from cl_lora.adapters.base_model import BaseModel, common_base
from cl_lora.adapters.entries import Entry, entry_delta, entry_name, entry_numbers, entry_shape
from cl_lora.adapters.factors import LoRAFactors, concatenate, truncate

__all__ = [
    "Adapter",
    "AdapterBank",
    "BaseModel",
    "Entry",
    "LoRAFactors",
    "common_base",
    "concatenate",
    "entry_delta",
    "entry_name",
    "entry_numbers",
    "entry_shape",
    "truncate",
]
