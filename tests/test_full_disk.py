"""A full disk: one line, status 1, the last checkpoint whole; with room again the run ends in the same bits."""

import errno
import json
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from helpers.commands import refusal
from helpers.own_input import run_config, write_own_input, write_yaml

from analysis import load_completions
from analysis.loading import load_runs
from grpovi_lightning.cli import main
from grpovi_lightning.errors import failed_write

DISK = 3 * 2**20


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    write_own_input(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(fit(folder, folder / "whole" / "seed_1")) == 0
    return folder


def fit(root, run):
    config = run_config(root, run)
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 2}
    config["checkpoint"] = {"every_n_train_steps": 1}
    return ["fit", "--config", write_yaml(root / "run.yaml", config)]


@pytest.fixture
def disk(tmp_path):
    """A disk of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place]).returncode:
        pytest.skip("a disk of its own takes the right to mount one")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def what_a_reader_sees(run):
    """Weights, completions, and every scalar but the clock's."""
    runs = load_runs(run.parent)
    kept = runs[~runs.metric.str.contains("time|seconds|throughput")]
    scalars = {(row.metric, row.step): row.value for row in kept.itertuples()}
    texts = load_completions(run).drop(columns=["arm", "run", "seed"]).to_json()
    return (run / "model" / "model.safetensors").read_bytes(), texts, scalars


@pytest.mark.parametrize("room", [2, 30, 600, 1100], ids="{} KB".format)
def test_a_full_disk_is_one_line_and_with_room_again_the_run_ends_in_the_same_bits(
    root, disk, monkeypatch, capsys, room
):
    """It ends in the first records, the completions, the second step, and the second checkpoint."""
    monkeypatch.chdir(root)
    run = disk / "run" / "seed_1"
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - room * 1024))
    line = refusal(capsys, *fit(root, run), status=1)
    assert line.startswith("cannot write: ") and "No space left on device" in line and "; make room, then " in line
    last = run / "checkpoints" / "last.ckpt"
    assert last.exists() == (room >= 600) and (f"--ckpt_path {last}" in line) == last.exists()

    (disk / "ballast").unlink()
    begins = ["--restart"] if (run / "status.json").exists() else []
    assert main([*fit(root, run), *(["--ckpt_path", str(last)] if last.exists() else begins)]) == 0
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert what_a_reader_sees(run) == what_a_reader_sees(root / "whole" / "seed_1")


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_may_not_grow_further_is_the_same_line(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    arguments = fit(root, tmp_path / "run" / "seed_1")
    with largest_file(200_000):
        line = refusal(capsys, *arguments, status=1)
    assert line.startswith("cannot write: File too large") and line.endswith("--restart: it left no checkpoint")
    assert main([*arguments, "--restart"]) == 0


@pytest.mark.parametrize("command", ["sample", "task"])
def test_other_commands_say_it_in_one_line_too(root, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(root)
    config = run_config(root, tmp_path)
    parts = {name: config["model"]["init_args"][name] for name in ("policy", "reward", "sampling")}
    file = write_yaml(tmp_path / "sample.yaml", parts | {"data": config["data"], "seed": 1})
    arguments = {"sample": ["--config", file], "task": ["--seed", "1"]}[command]
    with largest_file(300):
        line = refusal(capsys, command, *arguments, "--output", tmp_path / "output", status=1)
    assert line.startswith("cannot write: File too large") and line.endswith(
        "; make room, then run the same command again"
    )


def test_an_error_that_is_none_of_the_disk_keeps_its_own_words():
    assert failed_write(OSError(errno.ENOENT, "No such file or directory", "a")) is None
    assert failed_write(ValueError("no space for argument")) is None
    wrapped = RuntimeError("a library's")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "a", None, "b")
    assert failed_write(wrapped) == "No space left on device: b"
