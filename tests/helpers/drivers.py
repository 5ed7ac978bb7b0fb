"""Runs a script of the tests in a process of its own, as one that starts ranks has to be."""

import os
import subprocess
import sys


def run_driver(script, folder, *arguments) -> None:
    """Run a script with arguments in a folder, on one thread a process; fails with what it said when it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
