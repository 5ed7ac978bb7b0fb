"""Runs functions in two processes joined by gloo, as two ranks of a run would be."""

import multiprocessing
import tempfile
import traceback
from pathlib import Path

import torch.distributed as dist

_SECONDS = 240
_pair: "_Pair | None" = None


def run_in_two_processes(function, folder, *arguments) -> None:
    """Calls `function(rank, folder, *arguments)` in two processes; fails when either fails.

    The processes are started once and kept: starting them, which loads torch, takes longer than what they do here.

    Args:
        function: importable by name.
        folder: a folder for what the ranks write.
        arguments: handed on.
    """
    global _pair
    _pair = _pair or _Pair()
    failures = _pair.run(function, str(folder), *arguments)
    if failures:
        _pair.end()  # a rank that failed may have left the other waiting
        _pair = None
        raise AssertionError("\n".join(failures))


class _Pair:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        meeting = str(Path(tempfile.mkdtemp()) / "meeting")
        pipes = [context.Pipe() for _ in range(2)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_serve, args=(rank, meeting, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def run(self, *task) -> list[str]:
        """What went wrong, by rank."""
        for pipe in self.pipes:
            pipe.send(task)
        # A rank that failed stops answering for both, so the first failure is enough to know.
        failures = []
        for rank, pipe in enumerate(self.pipes):
            try:
                answer = pipe.recv() if pipe.poll(_SECONDS if not failures else 5) else "no answer"
            except EOFError:
                answer = "the process ended"
            failures += [f"rank {rank}: {answer}"] if answer else []
        return failures

    def end(self) -> None:
        for process in self.processes:
            process.kill()


def _serve(rank, meeting, pipe) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    while True:
        function, folder, *arguments = pipe.recv()
        try:
            function(rank, folder, *arguments)
            pipe.send("")
        except Exception:
            pipe.send(traceback.format_exc())
