"""What is kept of log files: the same numbers as without it, and never those of other files."""

import json
import multiprocessing
import os
import shutil
import struct
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_runs import GOLD, line, write_events, write_run, write_status
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from analysis import load_runs, load_status, run_log
from analysis.run_log import read_scalars
from analysis.scalar_cache import cached
from grpovi_lightning.run_record.layout import SCALARS_FILE


def fresh(folder: Path):
    """What a reader finds that knows of nothing kept."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy, ignore=lambda *_: [SCALARS_FILE])
    found = read_scalars(copy)
    shutil.rmtree(copy)
    return found


def same(one, other):
    pd.testing.assert_frame_equal(one.table, other.table)
    return (one.damage, one.torn_tail) == (other.damage, other.torn_tail)


def parses(monkeypatch):
    """The files that are parsed from now on, a list that grows."""
    seen, parsed = [], run_log._parsed
    monkeypatch.setattr(run_log, "_parsed", lambda paths, contents: seen.extend(paths) or parsed(paths, contents))
    return seen


def by_hand(folder: Path) -> list[tuple[str, int, float, float]]:
    """What counts of the runs below, value by value, from what TensorBoard's own reader finds."""
    latest, restarts = {}, []
    for path in sorted(folder.glob("events*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.session_log.status == SessionLog.START:
                restarts.append((event.step, event.wall_time))
            for value in event.summary.value:
                key = (value.tag, event.step)
                if key not in latest or event.wall_time >= latest[key][1]:
                    latest[key] = (value.simple_value, event.wall_time)
    return [
        (name, step, *latest[name, step])
        for name, step in sorted(latest)
        if not any(
            step >= (first if name.startswith("eval/") else first - 1) and latest[name, step][1] < time
            for first, time in restarts
        )
    ]


def mark_restart(path: Path, step: int, wall_time: float):
    with path.open("ab") as file:
        mark = Event(wall_time=wall_time, step=step, session_log=SessionLog(status=SessionLog.START))
        RecordWriter(file).write(mark.SerializeToString())


ATTEMPTS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from([GOLD, "reward", "kl"]), st.integers(1, 6), max_size=3),
        st.integers(0, 5),
        st.sampled_from(["whole", "whole", "torn", "damaged", "empty"]),
        st.sampled_from([100.0, 101.0, 102.0]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attempts=ATTEMPTS)
def test_resumed_grown_torn_and_damaged_runs_read_alike_with_what_was_kept_and_without(tmp_path, attempts):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    for number, (logged, begin, state, time) in enumerate(attempts):
        curves = {name: {begin + step: number + step / 8 for step in range(n)} for name, n in logged.items()}
        path = write_events(folder, curves, wall_time=time, name=str(number))
        if number:
            mark_restart(path, begin + 1, time)
        content = bytearray(path.read_bytes())
        if state == "damaged":
            content[len(content) // 2] ^= 1
        path.write_bytes(content[: {"torn": len(content) - 3, "empty": 0}.get(state, len(content))])
        for _ in range(2):  # the second time from what was kept the first time
            found = read_scalars(folder)
            assert same(found, fresh(folder))
            if found.damage is None:
                assert list(found.scalars) == by_hand(folder)


def test_files_are_parsed_once_and_again_when_they_grow(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "grpo" / "seed_1", line(0, 1), seed=1)
    write_run(tmp_path / "grpo" / "seed_2", line(0, 1), seed=2)
    seen = parses(monkeypatch)
    first = load_runs(tmp_path)
    assert len(seen) == 2
    pd.testing.assert_frame_equal(load_runs(tmp_path), first)
    assert len(seen) == 2
    write_events(folder, {GOLD: {110: 2.0}}, name="2")
    grown = load_runs(tmp_path)
    assert len(seen) == 4, "both files of the one run that grew"
    assert len(grown) == len(first) + 1
    assert grown.loc[(grown["seed"] == 1) & (grown["step"] == 110), "value"].tolist() == [2.0]


def test_a_file_that_was_replaced_is_read_though_its_size_and_time_are_the_same(tmp_path):
    path = write_events(tmp_path, {GOLD: {0: 0.25}})
    before = path.stat()
    assert read_scalars(tmp_path).table["value"].tolist() == [0.25]
    write_events(tmp_path, {GOLD: {0: 0.75}})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read_scalars(tmp_path).table["value"].tolist() == [0.75]


def test_what_another_version_of_the_reader_kept_is_not_used(tmp_path, monkeypatch):
    write_events(tmp_path, {GOLD: line(0, 1)})
    read_scalars(tmp_path)
    seen = parses(monkeypatch)
    read_scalars(tmp_path)
    assert not seen
    monkeypatch.setattr(run_log, "_READER", b"another")
    read_scalars(tmp_path)
    assert len(seen) == 1


def test_no_byte_of_the_kept_file_can_be_flipped_so_that_other_numbers_come_out(tmp_path):
    write_events(tmp_path, {GOLD: {0: 0.5, 10: 0.75}, "reward": {0: 2.0}})
    expected = read_scalars(tmp_path)
    kept = tmp_path / SCALARS_FILE
    whole = kept.read_bytes()
    key = json.loads(pq.read_schema(kept).metadata[b"grpovi"])["key"]
    assert same(cached(kept, key), expected)
    for place in range(0, len(whole), 7):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        found = cached(kept, key)
        assert found is None or same(found, expected), place


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x80\x04]\x94.", None], ids=["empty", "cut", "pickle", "other"])
def test_a_kept_file_that_is_none_is_replaced(tmp_path, content):
    write_events(tmp_path, {GOLD: line(0, 1)})
    expected = read_scalars(tmp_path)
    kept = tmp_path / SCALARS_FILE
    if content is None:
        pd.DataFrame({"metric": ["x"]}).to_parquet(kept)
    else:
        kept.write_bytes(content)
    assert same(read_scalars(tmp_path), expected)
    assert pq.read_metadata(kept).num_rows == len(expected.table)


def test_where_nothing_can_be_kept_runs_are_read_all_the_same(tmp_path, monkeypatch):
    write_events(tmp_path, {GOLD: line(0, 1)})
    (tmp_path / SCALARS_FILE).mkdir()  # also for root, whom no permission stops
    seen = parses(monkeypatch)
    for _ in range(2):
        assert len(read_scalars(tmp_path).table) == len(line(0, 1))
    assert len(seen) == 2
    assert not list(tmp_path.glob("*.tmp")), "nothing half written stays behind"


def load(folder, start, results):
    start.wait()
    results.put([load_runs(folder)["value"].sum() for _ in range(3)])


def test_processes_that_read_at_once_find_the_same(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "grpo" / f"seed_{seed}", line(0, seed), seed=seed)
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=load, args=(tmp_path, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sums == [[load_runs(tmp_path)["value"].sum()] * 3] * 2


def test_a_whole_record_that_holds_no_event_is_damage(tmp_path):
    path = write_events(tmp_path, {GOLD: {0: 0.5}})
    size = path.stat().st_size
    with path.open("ab") as file:
        RecordWriter(file).write(b"\xff" * 5)
    write_status(tmp_path)
    assert read_scalars(tmp_path).damage == (
        f"{path.name}: the record at byte {size} of {path.stat().st_size} holds no event"
    )
    assert load_status(tmp_path)["problem"].tolist()[0].startswith("damaged log file events.out")
    assert struct.unpack("<Q", path.read_bytes()[size : size + 8]) == (5,)
