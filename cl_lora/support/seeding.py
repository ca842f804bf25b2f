"""Random generators derived from (seed, purpose, keys): one draw never disturbs another."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, purpose: str, *keys: int | str) -> int:
    """Return a 63-bit seed that depends on all arguments, the same on every machine."""
    text = "\x1f".join([str(int(seed)), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """Return a numpy generator of its own for ``purpose``."""
    return np.random.default_rng(derive(seed, purpose, *keys))


def torch_generator(seed: int, purpose: str, *keys: int | str) -> torch.Generator:
    """Return a CPU torch generator of its own for ``purpose``."""
    return torch.Generator().manual_seed(derive(seed, purpose, *keys))


def seed_everything(seed: int, purpose: str, *keys: int | str) -> None:
    """Seed the global generators of python, numpy and torch, for libraries that use only those."""
    value = derive(seed, purpose, *keys)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
