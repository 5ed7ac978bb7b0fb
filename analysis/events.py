"""TensorBoard event files of one run -> scalars, with a check that the files are whole.

TensorBoard's own readers stop without a word at a damaged record and return what came before it. A curve that
ends early for that reason looks like a short run, so the files are checked here before their values are trusted.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[attr-defined]  generated code
from tensorboard.summary.writer.record_writer import masked_crc32c

from grpovi_lightning.metric_keys import EVAL_PREFIX

_LENGTH_BYTES = 8
_CRC_BYTES = 4
_HEADER_BYTES = _LENGTH_BYTES + _CRC_BYTES


class Scalar(NamedTuple):
    """One logged value: `step` counts policy updates, `wall_time` is in seconds since the epoch."""

    metric: str
    step: int
    value: float
    wall_time: float


class Restart(NamedTuple):
    """Where a resumed run went on: it supersedes what was logged before `wall_time`, evaluations from `step` on.

    The last training step before the checkpoint is logged at `step - 2`, so that training is superseded from
    `step - 1` on.
    """

    step: int
    wall_time: float

    def supersedes(self, scalar: Scalar) -> bool:
        """Tell whether an attempt of the run from here on logs `scalar` anew, or ended before it."""
        first = self.step if scalar.metric.startswith(EVAL_PREFIX) else self.step - 1
        return scalar.step >= first and scalar.wall_time < self.wall_time


@dataclass(frozen=True)
class RunScalars:
    """What the event files of one run hold.

    Attributes:
        scalars: One entry a (metric, step), sorted by metric and step. Empty where a file is damaged.
        damage: What is wrong with a file, or None.
        torn_tail: Name of the newest event file when it ends inside a record. A process that was killed leaves
            that behind; in a run that says it finished it means that values are missing.
    """

    scalars: tuple[Scalar, ...]
    damage: str | None = None
    torn_tail: str | None = None


def event_files(folder: Path) -> list[Path]:
    """Return the event files directly in `folder`, oldest first: their names start with the time they were made."""
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file())


def read_scalars(folder: Path) -> RunScalars:
    """Read every scalar of the event files directly in `folder`.

    A resumed run has several files and logs the steps after its checkpoint again: for one (metric, step) the value
    with the latest wall time counts, and for equal wall times the one written last. Steps after the checkpoint that
    only an earlier attempt made do not count.

    Args:
        folder: A run directory.

    Returns:
        The scalars of all files together, or none and the reason where a file is damaged or cannot be read.
    """
    latest: dict[tuple[str, int], Scalar] = {}
    restarts: list[Restart] = []
    torn_tail = None
    for path in event_files(folder):
        try:
            torn = is_torn(path)
        except (OSError, DamagedRecordError) as error:
            return RunScalars((), damage=f"{path.name}: {error}")
        torn_tail = path.name if torn else None
        restarts += _restarts_of(path)
        for scalar in _scalars_of(path):
            key = (scalar.metric, scalar.step)
            if key not in latest or scalar.wall_time >= latest[key].wall_time:
                latest[key] = scalar
    standing = [latest[key] for key in sorted(latest) if not any(each.supersedes(latest[key]) for each in restarts)]
    return RunScalars(tuple(standing), torn_tail=torn_tail)


class DamagedRecordError(ValueError):
    """A record of an event file fails its checksum."""


def is_torn(path: Path) -> bool:
    """Tell whether the file ends inside a record, as a process that was killed leaves it.

    A record is: length (8 bytes, little-endian), its masked CRC-32C (4), data, the CRC of the data (4).

    Raises:
        DamagedRecordError: A complete record fails one of its two checksums.
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    offset = 0
    while offset < len(content):
        header = content[offset : offset + _LENGTH_BYTES]
        start = offset + _HEADER_BYTES
        if start > len(content):
            return True
        if struct.unpack("<I", content[offset + _LENGTH_BYTES : start])[0] != masked_crc32c(header):
            raise DamagedRecordError(f"not a TensorBoard record at byte {offset} of {len(content)}")
        end = start + struct.unpack("<Q", header)[0]
        if end + _CRC_BYTES > len(content):
            return True
        if struct.unpack("<I", content[end : end + _CRC_BYTES])[0] != masked_crc32c(content[start:end]):
            raise DamagedRecordError(f"the checksum of the record at byte {offset} of {len(content)} does not match")
        offset = end + _CRC_BYTES
    return False


def _restarts_of(path: Path) -> list[Restart]:
    events = LegacyEventFileLoader(str(path)).Load()
    return [Restart(event.step, event.wall_time) for event in events if event.session_log.status == SessionLog.START]


def _scalars_of(path: Path) -> list[Scalar]:
    accumulator = event_accumulator.EventAccumulator(
        str(path),
        size_guidance={event_accumulator.SCALARS: 0},  # 0 keeps all; the default is a random sample
        purge_orphaned_data=False,  # superseded steps are settled by wall time, over all files of the run
    )
    accumulator.Reload()
    return [
        Scalar(metric, int(event.step), float(event.value), float(event.wall_time))
        for metric in accumulator.Tags()[event_accumulator.SCALARS]
        for event in accumulator.Scalars(metric)
    ]
