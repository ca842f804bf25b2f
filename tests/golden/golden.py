"""Freezes a tiny run of every head policy byte for byte, and compares a later version with it.

``python tests/golden/golden.py freeze FILE`` before a move, ``... check FILE`` after it. The bytes
hold on one machine only (one CPU thread, one torch), so nothing frozen is committed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_run import overrides

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from cl_lora.experiment.pipeline import execute

ARMS = (
    "+arms.ties_factors={method: ties, space: factors, coefficients: 1}",
    "+arms.tuned={method: task_arithmetic, spc: 2, tune_head: true, "
    "coefficients: {name: softmax, steps: 2}}",
    "+arms.prototypes={method: task_arithmetic, head: prototypes, spc: 2}",
    "+arms.magnitude={method: magnitude_prune, trim: global, coefficients: [1, 0.5, 0.25]}",
    "+arms.svd={method: svd, coefficients: 0.5}",
)
HEADS = {
    "shared": (),
    "per_experience": (),
    "frozen": (),
    "prototypes": ("spc=2",),
    "split": ("strategy.head=shared", "strategy.targets=[q,v]", "precision=bf16"),
}


def composed(overrides: list[str]) -> dict[str, object]:
    """Return the configuration of some overrides as plain containers."""
    with initialize_config_module("cl_lora.configs", version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    return {str(k): v for k, v in config.items() if k != "experiment"}


def frozen() -> dict[str, object]:
    """Return every score, coefficient and adapter tensor of the runs, as text or digest."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for head in sys.argv[3:] or HEADS:
            more = HEADS[head]
            run = Path(folder, head)
            policy = () if head == "split" else (f"strategy.head={head}",)
            arms = tuple(
                a for a in ARMS if not (head == "prototypes" and a.startswith("+arms.tun"))
            )
            given = overrides(run, "seeds=[0,1]", *policy, *more, *arms)
            if head != "split":
                given.append("precision=fp32")
            execute(composed(given))
            for name in ("scores.csv", "coefficients.csv"):
                rows = list(csv.reader((run / name).open(newline="")))[1:]
                found[f"{head}/{name}"] = ["|".join(row) for row in rows]
            for path in sorted(run.glob("adapters/*/*/*.safetensors")):
                key = str(path.relative_to(folder))
                found[key] = hashlib.blake2b(path.read_bytes()).hexdigest()[:32]
            for path in sorted(run.glob("buffers/*.json")):
                indices = json.loads(path.read_text())["indices"]
                found[str(path.relative_to(folder))] = indices
    return found


def check(there: dict[str, object], here: dict[str, object]) -> int:
    """Print what differs and return how much."""
    there = {k: v for k, v in there.items() if k.split("/")[0] in {h.split("/")[0] for h in here}}
    different = [key for key in dict.fromkeys([*there, *here]) if there.get(key) != here.get(key)]
    for key in different:
        print("DIFFERENT", key)
        a, b = there.get(key), here.get(key)
        if isinstance(a, list) and isinstance(b, list):
            for x in sorted(set(a) ^ set(b))[:6]:
                print("   ", "-" if x in a else "+", x)
    print(f"{len(there)} files compared, {len(different)} differ")
    return len(different)


if __name__ == "__main__":
    mode, file = sys.argv[1], Path(sys.argv[2])
    now = frozen()
    if mode == "freeze":
        file.write_text(json.dumps(now, indent=1))
    else:
        sys.exit(min(check(json.loads(file.read_text()), now), 1))
