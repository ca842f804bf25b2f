"""Merging LoRA folders and whole models from anywhere, a tensor at a time, without the base model.

>>> from cl_lora.joining import from_options, read_recipe
>>> from_options([], "ties")
Traceback (most recent call last):
    ...
cl_lora.support.errors.UserError: Expected adapters to merge but got none; give their folders
"""

from cl_lora.joining.comparing import Comparison, compare
from cl_lora.joining.inputs import Inputs, open_inputs
from cl_lora.joining.join import join
from cl_lora.joining.joined import Joined
from cl_lora.joining.recipe import Recipe, from_options, make_recipe, read_recipe

__all__ = [
    "Comparison",
    "Inputs",
    "Joined",
    "Recipe",
    "compare",
    "from_options",
    "join",
    "make_recipe",
    "open_inputs",
    "read_recipe",
]
