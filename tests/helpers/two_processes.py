"""Runs a function in two processes joined by gloo, as two ranks of a run would be."""

import torch.distributed as dist
import torch.multiprocessing as mp


def run_in_two_processes(function, folder, *arguments) -> None:
    """Calls `function(rank, folder, *arguments)` in two fresh processes; fails when either fails.

    Args:
        function: importable by name.
        folder: an empty folder, for the meeting and for what the ranks write.
        arguments: handed on.
    """
    mp.spawn(_joined, args=(function, str(folder), *arguments), nprocs=2)


def _joined(rank, function, folder, *arguments) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        function(rank, folder, *arguments)
    finally:
        dist.destroy_process_group()
