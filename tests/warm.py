"""Starts commands in processes of their own without importing everything again for each.

A cold ``python -m cl_lora`` pays seconds for torch, timm, peft and avalanche before it does
anything. Here one process has imported them, and every command is a fork of it, with the arguments,
folder, environment and standard streams of whoever asked, and with its own end: exit code, signal,
exit handlers and all. :func:`python` stands for the interpreter in any command:

    subprocess.run([*warm.python(), "-m", "cl_lora", "list", "methods"], cwd=..., env=...)

It is not for what an interpreter reads while it starts (``-O``, locale, encoding), for what must
not be imported, or for signals sent to the process: those tests start a cold one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

_IMPORTS = (
    "cl_lora.commands.run",
    "cl_lora.commands.report",
    "cl_lora.commands.compare",
    "cl_lora.commands.export",
    "cl_lora.commands.merge",
    "cl_lora.benchmarks.avalanche",
    "cl_lora.configuration.launch",
    "cl_lora.experiment.pipeline",
    "cl_lora.joining",
    "cl_lora.reporting.compare",
    "cl_lora.reporting.html",
    "cl_lora.reporting.tensorboard",
    "cl_lora.strategies.lora",
    # Only after cl_lora, which makes them loadable beside any torch.
    "hydra.main",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "peft",
    "rich.table",
    "tensorboard.summary.writer.event_file_writer",
    "timm.models.vision_transformer",
)


# For tests ----------------------------------------------------------------------------------------


def python() -> list[str]:
    """Return the words that stand for a Python interpreter: ``-m``, ``-c`` or a file follow.

    The first call of a process starts the one that is forked; it ends with its caller.
    """
    import atexit
    import subprocess
    import tempfile

    if not _PLACE:
        folder = tempfile.TemporaryDirectory(prefix="warm-")
        _PLACE.append(str(Path(folder.name) / "socket"))
        server = subprocess.Popen(
            [sys.executable, "-P", __file__, "serve", _PLACE[0]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"

        def end() -> None:
            server.communicate()  # it ends with its standard input
            folder.cleanup()

        atexit.register(end)
    return [sys.executable, "-S", "-E", __file__, "ask", _PLACE[0]]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which ``cl-lora`` is such a command, and the cache is of its own.

    Args:
        folder: an empty one, where the command and the cache are put.
    """
    import shlex

    program = folder / "bin" / "cl-lora"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(python())} -P -m cl_lora "$@"\n')
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]]),
        "CL_LORA_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }


_PLACE: list[str] = []
"""The socket of this process's server, once there is one."""


# What is started for a command, and hands it to the server ----------------------------------------


def _ask(place: str, arguments: list[str]) -> None:
    """Let the server run a command on these standard streams, and end as it ends."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(place)
        request = json.dumps(
            {"arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ)}
        ).encode()
        socket.send_fds(asked, [len(request).to_bytes(8, "big")], [0, 1, 2])
        asked.sendall(request)
        answer = asked.makefile().readline()
    code = int(answer) if answer else 70
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# The server ---------------------------------------------------------------------------------------


def _serve(place: str) -> list[str]:
    """Fork a process for every command; return its arguments, in that process only."""
    import contextlib
    import gc
    import importlib
    import select
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries miss is nothing a test asked for
        for name in _IMPORTS:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    listening.listen()
    print("ready", flush=True)
    while True:
        asked, _, _ = select.select([listening, sys.stdin.fileno()], [], [])
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if listening not in asked:
            os._exit(0)  # whoever started it has gone
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            return _begin(connection)
        connection.close()


def _begin(connection: socket.socket) -> list[str]:
    """Fork the command and return its arguments there; here, wait for it and tell how it ended."""
    import contextlib
    import random
    import select

    import numpy as np

    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(length, "big")))
    command = os.fork()
    if command:
        for number in streams:
            os.close(number)
        # Ctrl-C reaches all at once: whoever asked ends by it, and the command with them.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        pause = 0.002
        while True:
            done, status = os.waitpid(command, os.WNOHANG)
            if done:
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                os._exit(0)
            if select.select([connection], [], [], pause)[0]:  # who asked was killed
                os.killpg(command, signal.SIGKILL)
            pause = min(0.03, 1.5 * pause)
    os.setsid()
    connection.close()
    for number, there in enumerate(streams):
        os.dup2(there, number)
        os.close(there)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    np.random.seed()
    arguments: list[str] = request["arguments"]
    return arguments


def _run(arguments: list[str]) -> None:
    """Do what ``python ARGUMENTS`` does, but let the system clear away all that was imported."""
    import atexit
    import threading
    import traceback

    code = 0
    try:
        _execute(arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as where it was closed
                stream.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code)


def _execute(arguments: list[str]) -> None:
    import runpy
    import types

    safe = arguments[0] == "-P"
    kind, *rest = arguments[safe:]
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if kind == "-m":
        sys.argv = rest
        sys.path[:0] = [] if safe else [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[:0] = [] if safe else [""]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.argv = [kind, *rest]
        sys.path[:0] = [] if safe else [str(Path(kind).resolve().parent)]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        _ask(sys.argv[2], sys.argv[3:])
    _run(_serve(sys.argv[2]))
