"""Jobs that take no time and import nothing heavy, run by any launcher in a process of its own.

Run as: python toy_jobs.py ARGUMENTS, those of `cl-lora run`; with $TOY_EXECUTOR submitit's executor
of that name takes the place of its local one. A job leaves a line in `done.txt`,
``spc seed``; what else it does stands in `act.json`: spc -> fail, crash, kill, ...
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cl_lora.configuration.compose import plain
from cl_lora.support import progress
from cl_lora.support.errors import UserError
from cl_lora.support.files import explain_write_errors

LONG_S = 60.0


def job(composed: DictConfig) -> str:
    config = plain(composed)
    spc = config["spc"]
    acts = json.loads(Path("act.json").read_text()) if Path("act.json").exists() else {}
    act = acts.get(str(spc), "")
    print(f"words of job {spc}")
    with progress.meter("counting", 3) as advance:
        for _ in range(3):
            advance()
        line = {
            "spc": spc,
            "seeds": config["seeds"],
            "apart": config["seeds_apart"],
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "pid": os.getpid(),
            "parent": os.getppid(),
            "argv": sys.argv[1:2],
        }
        with Path("begun.txt").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if act == "fail":
            raise UserError(f"The data of {spc} is not there")
        if act == "crash":
            raise IndexError("out of\nrange")
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "kill_pool":
            os.kill(os.getppid(), signal.SIGKILL)
        if act == "kill_once" and not Path("killed").exists():
            Path("killed").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "full":
            with explain_write_errors(Path("/dev/full")), Path("/dev/full").open("wb") as full:
                full.write(b"x")
        if act in ("long", "kill_pool"):
            time.sleep(LONG_S)
        time.sleep(float(acts.get("sleep", 0.0)))
    with Path("done.txt").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return f"runs/{spc}"


def check(jobs: Sequence[Mapping[str, Any]], side_by_side: bool) -> dict[int, dict[str, Any]]:
    return {n: {"seeds_apart": True} for n in range(len(jobs))} if side_by_side else {}


if __name__ == "__main__":
    import toy_jobs  # the job is sent by the name of its module, which is not __main__

    from cl_lora.configuration.launch import launch

    if os.environ.get("TOY_EXECUTOR"):
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher

        LocalLauncher._EXECUTOR = os.environ["TOY_EXECUTOR"]
    try:
        sys.exit(launch(sys.argv[1:], toy_jobs.job, toy_jobs.check))
    except UserError as error:
        print(f"cl-lora: {error}", file=sys.stderr)
        sys.exit(2)
