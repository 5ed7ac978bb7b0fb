"""A server of the package in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

SECRET = "a secret of the tests".replace(" ", "-")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(folder, port, *arguments):
    """Start a server; it answers when it has loaded."""
    command = [sys.executable, "-m", "grpovi_lightning.rollout.vllm", str(folder), "--port", str(port)]
    command += ["--kv_cache_gb", "0.05", "--options", '{"enforce_eager": true}', *map(str, arguments)]
    environment = os.environ | {"GRPOVI_VLLM_TOKEN": SECRET, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def ended(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@contextmanager
def serving(folder, *arguments):
    """Yield the address of a server that runs inside."""
    port = free_port()
    process = started(folder, port, *arguments)
    try:
        assert process.stdout.readline() == f"vllm server: http://127.0.0.1:{port}\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        ended(process)
