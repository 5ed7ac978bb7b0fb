"""Studies on a Ray cluster on this machine: one that is there already, and one that `compare` starts for itself."""

import re
import signal
import time

import psutil
import pytest
from ray.cluster_utils import Cluster

from grpovi_lightning.errors import UserError
from grpovi_lightning.study.launchers import make_launcher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One machine with two CPUs, whose processes have the environment of their cluster: a journal for all tests."""
    journal = tmp_path_factory.mktemp("cluster") / "journal.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAND_IN_JOURNAL", str(journal))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made.address, journal
    made.shutdown()


@pytest.fixture
def on_cluster(on_ray, cluster, monkeypatch):
    """The slow run, and RAY_ADDRESS."""
    address, on_ray.journal_file = cluster
    on_ray.journal_file.unlink(missing_ok=True)
    monkeypatch.setenv("STAND_IN_JOURNAL", str(on_ray.journal_file))
    monkeypatch.setenv("RAY_ADDRESS", address)
    return on_ray


@pytest.fixture
def on_ray(bench):
    (bench.root / "launcher.yaml").write_text("retries: 1\n")
    bench.config("other.yaml", steps=100, step_seconds=0.2)
    bench.write(prepare=None, seeds=[1], arms={"other": {"configs": ["other.yaml"]}})
    return bench


def quicken(bench):
    for file in (bench.folder / "study.yaml", bench.root / "other.yaml"):
        file.write_text(file.read_text().replace("step_seconds: 0.2", "step_seconds: 0.001"))


def checkpoint(bench):
    return bench.run_dir("other", 1) / "checkpoints" / "last.ckpt"


def test_ctrl_c_lets_a_run_save_and_a_compare_that_is_killed_does_too(on_cluster, wait_until, is_alive):
    process = on_cluster.start(launcher="ray")
    wait_until(checkpoint(on_cluster).exists, 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.startswith("grpovi: error: stopped: 0 of 1 runs finished, 1 interrupted; ")
    assert len(on_cluster.journal("sigint")) == 1 and not is_alive(on_cluster.pids()[0])

    steps = on_cluster.status("other", 1)["step"]
    process = on_cluster.start(launcher="ray")
    wait_until(lambda: on_cluster.status("other", 1)["step"] > steps, 60)
    process.kill()
    process.communicate(timeout=30)
    # Ray ends the worker with its compare, and the keeper lets the run save.
    wait_until(lambda: len(on_cluster.journal("sigint")) == 2, 30)
    wait_until(lambda: not is_alive(on_cluster.pids()[1]))
    quicken(on_cluster)
    assert on_cluster.compare() == 0
    assert "--ckpt_path" in on_cluster.journal("start")[2]["arguments"]


def test_a_run_whose_worker_dies_is_placed_anew_as_often_as_was_said(on_cluster, wait_until):
    process = on_cluster.start(launcher="ray")
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: len(on_cluster.started()) == attempt and checkpoint(on_cluster).exists(), 60)
        fit = psutil.Process(on_cluster.pids()[-1])
        keeper = fit.parent()
        # First the worker itself, of which Ray says what happened; then the keeper, of which its worker does.
        for each in (keeper.parent().parent(), keeper, fit) if attempt == 1 else (keeper, fit):
            each.kill()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"lost its worker on \S+ \(WorkerCrashedError\); retry 1 of 1, from its last checkpoint\n", output)
    assert "--ckpt_path" in on_cluster.journal("start")[1]["arguments"]
    assert re.search(
        r"lost its worker on \S+ \(the process that kept the run is gone\); no retry is left", errors.splitlines()[0]
    )


def test_a_run_that_no_machine_has_room_for_waits_says_so_and_leaves_its_queue(on_cluster, wait_until):
    (on_cluster.root / "launcher.yaml").write_text("gpus: 1\nmemory_gb: 2\n")
    process = on_cluster.start(launcher="ray")
    said = [process.stdout.readline() for _ in range(2)]
    assert said[0] == (
        "arm other seed 1: no machine of the cluster has 1 CPUs, 1 GPUs, 2 GB; it waits until one joins\n"
    )
    assert said[1].endswith("arm other seed 1: queued\n")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped: 0 of 1 runs finished, 1 waiting; run the same command again to go on" in errors
    assert on_cluster.journal() == []


def test_an_address_at_which_no_cluster_answers_is_one_line(on_ray):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:9: ") as caught:
        on_ray.compare(launcher=make_launcher("ray", None, "127.0.0.1:9"))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10
    assert not on_ray.output.exists()


def test_a_cluster_of_its_own_listens_to_this_machine_alone_and_ends_with_compare(on_ray, wait_until):
    process = on_ray.start(launcher="ray")
    wait_until(checkpoint(on_ray).exists, 60)
    started = psutil.Process(process.pid).children(recursive=True)
    listening = [
        (connection.laddr.ip, " ".join(each.cmdline()))
        for each in [psutil.Process(process.pid), *started]
        for connection in each.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address for address, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert any("raylet" in command for _, command in listening)
    assert not any("dashboard/dashboard.py" in command for _, command in listening)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in started))
