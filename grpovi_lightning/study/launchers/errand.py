"""What Ray and SLURM are given to run: it starts the keeper of a run, and waits for it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from grpovi_lightning.study.launchers.orders import WorkerLostError

_KEEPER = "grpovi_lightning.study.launchers.keeper"


@dataclass
class Errand:
    """A call without arguments that works on an order. The keeper is a process of its own, and ends with this one."""

    file: str
    """Absolute path of the order."""
    identity: str

    def __call__(self) -> dict[str, Any]:
        """Work on the order until its run is over; return the outcome as plain values.

        Raises:
            WorkerLostError: the keeper is gone without an outcome.
        """
        # The keeper notices by its standard input that this process is gone, even by SIGKILL, and then ends the run.
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", _KEEPER, self.file, self.identity],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Its own session: whatever signals the group of this process must not end the run before it has saved.
            start_new_session=True,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        )
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.read().splitlines()
        self._keeper.wait()
        if not said:
            raise WorkerLostError("the process that kept the run is gone")
        return json.loads(said[-1])

    def checkpoint(self) -> Any:
        """Let the run save and end, since its machine is wanted for something else; return what to queue again.

        Called by submitit, when the job is pre-empted or its time is nearly over.
        """
        from submitit.helpers import DelayedSubmission

        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        return DelayedSubmission(Errand(self.file, self.identity))
