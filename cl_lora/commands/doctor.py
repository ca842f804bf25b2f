"""``cl-lora doctor``: versions, device and precision, data sets that are found."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cl_lora import __version__
from cl_lora.commands.terminal import Parser, console, quieten
from cl_lora.configuration.choices import config_names, config_values
from cl_lora.support.errors import UserError

_PACKAGES = (
    "torch",
    "torchvision",
    "avalanche-lib",
    "timm",
    "peft",
    "hydra-core",
    "tensorboard",
    "numpy",
)
_OPTIONAL = ("datasets",)


def run(given: Sequence[str]) -> int:
    """Print the report; 0 if everything that is needed is there, else 1."""
    Parser(
        "doctor",
        "Say what is installed, which device and precision are used, and which data sets are "
        "found. CL_LORA_PACS=DIR says where to look for PACS; other benchmarks likewise.",
        ["doctor"],
    ).parse_args(given)
    import torch

    from cl_lora.configuration.plugins import load_plugins
    from cl_lora.experiment.settings import has_fast_bf16, pick_device
    from cl_lora.run_folder.environment import device_name, package_versions
    from cl_lora.support.compat import library_loads

    quieten()
    load_plugins()

    shown = console(highlight=False, markup=False, soft_wrap=True)
    shown.print(f"cl-lora {__version__}")
    versions = package_versions([*_PACKAGES, *_OPTIONAL])
    missing = [name for name in _PACKAGES if versions[name] is None]
    for name, number in versions.items():
        absent = (
            "MISSING"
            if name in _PACKAGES
            else "not installed (optional: pip install 'cl-lora[hub]')"
        )
        shown.print(f"  {name:14} {number or absent}")
    if not library_loads():
        shown.print(
            "\ntorch and torchvision are of different builds: models and transforms work, "
            "torchvision.ops does not; install both from one index to have it"
        )
    device = pick_device("auto")
    shown.print(
        f"\ndevice      {device} ({device_name(device)}); {torch.get_num_threads()} of "
        f"{os.cpu_count()} CPU threads"
    )
    used = "bf16 autocast" if has_fast_bf16(device) else "fp32"
    shown.print(f"precision   {used} (precision=auto; this device decides)")
    shown.print(f"cache       {_cache()}")
    shown.print("\ndata sets")
    for name in config_names("benchmark"):
        shown.print(f"  {name:14} {_found(name)}")
    if missing:
        shown.print(f"\nMissing: {', '.join(missing)}; pip install -c constraints.txt -e .")
    return 1 if missing else 0


def _cache() -> str:
    from cl_lora.benchmarks.cache import cache_folder

    try:
        return str(cache_folder())
    except (UserError, RuntimeError) as error:
        return f"none: {error}"


def _found(name: str) -> str:
    from cl_lora.benchmarks import found

    config = config_values("benchmark", name)
    # A root for each real benchmark can be told through the environment, e.g. CL_LORA_PACS.
    variable = f"CL_LORA_{name.upper()}"
    if variable in os.environ:
        config["root" if "root" in config else "path"] = os.environ[variable]
    try:
        there = found(config)
    except (UserError, OSError) as error:
        return f"found, but: {error}"
    return there or f"not found; give benchmark.{'path=NAME' if 'path' in config else 'root=DIR'}"
