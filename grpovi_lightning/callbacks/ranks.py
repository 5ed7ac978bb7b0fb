"""What the other processes of a run do when one of them is gone."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import lightning as L
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from grpovi_lightning.errors import UserError
from grpovi_lightning.trainer_state import leave_children_alone, local_children

_OF_THE_NETWORK = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "recvbytes",
    "sendbytes",
    "socket",
    "timed out",
)
"""Words in what a collective raises whose other end is gone."""
_BEAT_SECONDS = 1.0
_MISSED_BEATS = 5
"""As many missing say that a process is gone whose connection is."""


class RankWatch(L.Callback):
    """Ends a run of several processes in one line when one of them is gone, and names it.

    Each process has a thread that counts up a number at the process group's store, and reads those of the others. A
    process that was killed closes its connections, and whoever waits for it in a collective fails at once; the numbers
    say whom it waited for. Where no connection tells, as when a machine is gone, the time limit ends the wait.
    Lightning by itself would kill all processes of the machine without a word.
    """

    def __init__(self, time_limit: float = 120.0) -> None:
        """Check the limit.

        Args:
            time_limit: seconds without a sign of life after which a process counts as gone. A process that computes, or
                waits for a reward, gives signs of life.

        Raises:
            UserError: it is not above 0.
        """
        if not 0 < time_limit < float("inf"):
            raise UserError(f"ranks.time_limit: got {time_limit}, expected seconds above 0")
        self.time_limit = time_limit
        self.on_lost: Callable[[str], object] = lambda reason: None
        """Called by the thread with what it says, before it ends the process."""
        self._pulse: _Pulse | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to watch, once the processes know each other."""
        if stage == "fit" and trainer.world_size > 1 and dist.is_initialized():
            leave_children_alone(trainer)
            self._pulse = _Pulse(trainer, self.time_limit, self._lost_for_good)
            self._pulse.start()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the others that this process is done, whose signs of life then end."""
        if self._pulse is not None:
            self._pulse.end("done")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Find out who is gone, if it was about the network, or tell the others why this process ends."""
        if self._pulse is None:
            return
        said = f"{type(exception).__name__}: {exception}".lower()
        if isinstance(exception, RuntimeError) and any(word in said for word in _OF_THE_NETWORK):
            self._pulse.find_lost()
        self._pulse.end(" ".join(f"{type(exception).__name__}: {exception}".split())[:300])

    @property
    def lost(self) -> str | None:
        """Who is gone, in words; None where nobody is."""
        return None if self._pulse is None else self._pulse.reason

    @property
    def speaks(self) -> bool:
        """Whether this process is the first of those that are left, which says so."""
        return self._pulse is None or self._pulse.first_left

    def _lost_for_good(self, trainer: L.Trainer, reason: str) -> None:
        self.on_lost(reason)
        if self.speaks:
            print(f"grpovi: error: {reason}", file=sys.stderr, flush=True)
        for child in local_children(trainer):
            child.kill()
        os._exit(1)  # the main thread waits in a collective, which nothing interrupts


def rank_watch(trainer: L.Trainer) -> RankWatch | None:
    """Return the trainer's watch; None where it has none."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, RankWatch)), None)


class _Pulse(threading.Thread):
    """Counts up this process's number and reads the others'."""

    def __init__(self, trainer: L.Trainer, limit: float, lost_for_good: Callable[[L.Trainer, str], object]) -> None:
        super().__init__(name="signs of life", daemon=True)
        self.trainer, self.rank, self.limit, self.lost_for_good = trainer, trainer.global_rank, limit, lost_for_good
        self.others = [rank for rank in range(trainer.world_size) if rank != self.rank]
        self.reason: str | None = None
        self.first_left = self.rank == 0
        self.store = PrefixStore("grpovi-ranks", _own_connection())
        self._over, self._looking = threading.Event(), threading.Lock()
        now = time.monotonic()
        self._count = 0
        self._seen: dict[int, tuple[bytes, float]] = dict.fromkeys(self.others, (b"", now))
        self._reached = now
        self._ended: dict[int, str] = {}
        self.store.set(f"name/{self.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        # Each waits for the others, which are at the same place.
        self._names = {rank: f"rank {rank} ({self.store.get(f'name/{rank}').decode()})" for rank in self.others}

    def run(self) -> None:
        """Look again and again, until this process is done or another one is gone for too long."""
        beat = min(_BEAT_SECONDS, self.limit / 4)
        while not self._over.wait(beat):
            self.look()
            if gone := self._gone(self.limit):
                self._conclude(gone, f"gave no sign of life for {self.limit:g} s")
                if not self._over.is_set():  # the main thread may be at its end by now
                    self.lost_for_good(self.trainer, str(self.reason))

    def look(self) -> None:
        """Count up, and read what others say."""
        with self._looking, suppress(RuntimeError):  # the store is in the process of rank 0, which may be gone
            self._count += 1
            self.store.set(f"beat/{self.rank}", str(self._count))
            now = self._reached = time.monotonic()
            for rank in self.others:
                if (end := self._read(f"end/{rank}")) is not None:
                    self._ended[rank] = end.decode()
                if (beat := self._read(f"beat/{rank}")) not in (None, self._seen[rank][0]):
                    self._seen[rank] = beat or b"", now

    def _read(self, key: str) -> bytes | None:
        return self.store.get(key) if self.store.check([key]) else None

    def find_lost(self) -> None:
        """Find out who is gone, now that a connection is."""
        patience = _MISSED_BEATS * min(_BEAT_SECONDS, self.limit / 4)
        until = time.monotonic() + 3 * patience
        while time.monotonic() < until:
            self.look()
            failed = [rank for rank, end in self._ended.items() if end != "done"]
            if gone := failed or self._gone(patience):
                self._conclude(gone, self._ended.get(gone[0], "it was killed, or its machine is gone"))
                return
            time.sleep(patience / _MISSED_BEATS)

    def end(self, how: str) -> None:
        """Stop counting, and say how this process ends."""
        self._over.set()
        with self._looking, suppress(RuntimeError):
            self.store.set(f"end/{self.rank}", how)

    def _gone(self, seconds: float) -> list[int]:
        """Return the ranks that gave no sign for so long; only rank 0, if that has the store which is gone."""
        now = time.monotonic()
        if self.rank != 0 and now - self._reached > seconds:
            return [] if self._ended.get(0) == "done" else [0]
        return [rank for rank in self.others if rank not in self._ended and now - self._seen[rank][1] > seconds]

    def _conclude(self, gone: list[int], why: str) -> None:
        self.first_left = all(rank in gone or rank in self._ended for rank in self.others if rank < self.rank)
        names = " and ".join(self._names[rank] for rank in gone)
        self.reason = f"{names} ended while the others waited for it: {why}"


def _own_connection() -> Any:
    """Return a connection to the process group's store that no wait of the main thread holds up."""
    store: Any = dist.distributed_c10d._get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    store = store.clone()
    store.set_timeout(timedelta(seconds=60))
    return store
