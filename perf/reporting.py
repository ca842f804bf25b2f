"""What the reports of a run cost: drawing, files of figures, TensorBoard and the page.

    python -m perf.reporting RUN

RUN is a finished run, such as that of ``cl-lora demo``; it is copied, and stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from cl_lora.reporting.figures import draw_figures, write_figures
from cl_lora.reporting.html import write_html
from cl_lora.reporting.tensorboard import write_tensorboard
from cl_lora.run_folder.reader import RunFolder
from perf.common import interleaved, report


def main() -> None:
    parser = argparse.ArgumentParser(description="What the reports of a run cost.")
    parser.add_argument("run", type=Path, help="a finished run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        shutil.copytree(given.run, folder)
        # Read again each time: what a run has been asked once is kept with it.
        found = interleaved(
            {
                "drawing": lambda: draw_figures(RunFolder.read(folder)),
                "drawing, and files of figures": lambda: write_figures(RunFolder.read(folder)),
                "TensorBoard": lambda: write_tensorboard(RunFolder.read(folder)),
                "drawing, and the page": lambda: write_html(RunFolder.read(folder)),
            }
        )
        run = RunFolder.read(folder)
        rows = [{"case": name, **v} for name, v in found.items()]
        drawing, files, events, page = (v["cpu_s"] for v in found.values())
        report(
            "reporting",
            f"{len(run.arms)} arms, {len(run.references)} baselines, {len(run.seeds)} seed(s), "
            f"{len(draw_figures(run))} figures",
            rows,
            all_reports_cpu_s=files + events + page - drawing,
        )


if __name__ == "__main__":
    main()
