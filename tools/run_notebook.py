"""Run the code cells of a notebook in order, as Jupyter would, without Jupyter.

``python tools/run_notebook.py NOTEBOOK`` runs it in the current folder and prints what the cells
print; with ``--write`` that is stored in the notebook as their outputs. A line that begins with
``!`` is a command of the shell. The first cell that fails ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SHELL = "_shell"


def code_cells(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the code cells of a parsed notebook."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def as_python(source: str) -> str:
    """Return a cell's source with every ``!`` line as a call of Python's.

    Example:
        >>> as_python("x = 1\\n!echo a \\\\\\n  b")
        "x = 1\\n_shell('echo a   b')"
    """
    lines = source.replace("\\\n", " ").splitlines() if "!" in source else source.splitlines()
    return "\n".join(f"{_SHELL}({line[1:]!r})" if line.startswith("!") else line for line in lines)


def shell(tell: Callable[[str], object]) -> Callable[[str], None]:
    """Return what runs a command of the shell, and tells what it prints on standard output.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """

    def run(command: str) -> None:
        words = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        tell(done.stdout)

    return run


def run_cells(notebook: Mapping[str, Any]) -> list[str]:
    """Run every code cell in one namespace, and return what each printed."""
    space: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for cell in code_cells(notebook):
        printed = io.StringIO()
        space[_SHELL] = shell(printed.write)
        with contextlib.redirect_stdout(printed):
            exec(compile(as_python("".join(cell["source"])), "cell", "exec"), space)
        found.append(printed.getvalue())
        print(printed.getvalue(), end="", flush=True)
    return found


def with_outputs(notebook: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
    """Store what the code cells printed as their outputs."""
    for number, (cell, text) in enumerate(zip(code_cells(notebook), outputs, strict=True), 1):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(True)}
        cell["execution_count"], cell["outputs"] = number, [stream] if text else []
    return notebook


def main() -> None:
    """Run the notebook that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebook")
    given = parser.parse_args()
    notebook = json.loads(given.notebook.read_text(encoding="utf-8"))
    outputs = run_cells(notebook)
    if given.write:
        text = json.dumps(with_outputs(notebook, outputs), indent=1, ensure_ascii=False)
        given.notebook.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
