"""TensorBoard event files: one file -> its scalars, with a check that the file is whole.

TensorBoard's own readers stop without a word at a damaged record and return what came before it. A curve that ends
early for that reason looks like a short run, so every checksum is checked here before a value is trusted.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]  generated code

from analysis.scalars import DamagedLogError, Restart, ScalarLog

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CRC.size


def event_files(folder: Path) -> list[Path]:
    """Return the event files directly in `folder`, oldest first: their names start with the time they were made."""
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file())


def read_events(content: bytes) -> ScalarLog:
    """Read the scalars of an event file.

    Raises:
        DamagedLogError: A complete record fails one of its two checksums, or holds no event.
    """
    log = ScalarLog()
    for offset, data in _records(content, log):
        try:
            event = Event.FromString(data)
        except DecodeError:
            raise DamagedLogError(f"the record at byte {offset} of {len(content)} holds no event") from None
        step, wall_time = event.step, event.wall_time
        for value in event.summary.value:
            if value.HasField("simple_value"):
                log.metrics.append(value.tag)
                log.steps.append(step)
                log.values.append(value.simple_value)
                log.times.append(wall_time)
        if event.session_log.status == SessionLog.START:
            log.restarts.append(Restart(step, wall_time))
    return log


def _records(content: bytes, log: ScalarLog) -> Iterator[tuple[int, bytes]]:
    """Yield the place and the data of every complete record, and note in `log` whether the file ends inside one.

    A record is: length (8 bytes, little-endian), its masked CRC-32C (4), data, the CRC of the data (4).
    """
    offset, size = 0, len(content)
    while offset < size:
        start = offset + _HEADER_BYTES
        if start > size:
            log.is_torn = True
            return
        header = content[offset : offset + _LENGTH.size]
        if _CRC.unpack_from(content, offset + _LENGTH.size)[0] != _masked_crc(header):
            raise DamagedLogError(f"not a TensorBoard record at byte {offset} of {size}")
        end = start + _LENGTH.unpack(header)[0]
        if end + _CRC.size > size:
            log.is_torn = True
            return
        data = content[start:end]
        if _CRC.unpack_from(content, end)[0] != _masked_crc(data):
            raise DamagedLogError(f"the checksum of the record at byte {offset} of {size} does not match")
        yield offset, data
        offset = end + _CRC.size


def _masked_crc(data: bytes) -> int:
    """Return the CRC-32C of `data`, rotated and shifted as the format wants it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
