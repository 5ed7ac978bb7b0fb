import subprocess
import sys

import pytest
import yaml

from grpovi_lightning.errors import UserError
from grpovi_lightning.study.launchers import LocalLauncher, extras, make_launcher
from grpovi_lightning.study.launchers.needs import Needs
from grpovi_lightning.study.plan import plan_arms, plan_prepare
from grpovi_lightning.study.specification import load_study


@pytest.fixture
def written(tmp_path):
    def write(**content):
        file = tmp_path / "launcher.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def test_a_run_asks_for_what_its_arm_or_stage_or_else_every_run_needs(bench, written):
    study = load_study(bench.write(threads_per_run=3))
    settings = written(gpus=1, memory_gb=16, runs={"other": {"gpus": 8}, "prepare/sft": {"gpus": 0.5, "cpus": 2}})
    launcher = make_launcher("ray", settings)
    launcher.check(study)
    runs = plan_prepare(study, bench.folder) + plan_arms(study, bench.folder)
    found = {run.owner: launcher.needs.of(run) for run in runs}
    assert found == {
        "task": Needs(1, 1, 16),
        "sft": Needs(2, 0.5, 16),
        "plain": Needs(3, 1, 16),
        "other": Needs(3, 8, 16),
    }


def test_by_default_all_runs_are_handed_over_at_once():
    assert make_launcher("ray").jobs(threads=4, runs=60) == 60
    assert make_launcher("slurm").jobs(threads=4, runs=60) == 60
    assert LocalLauncher().jobs(threads=10**6, runs=60) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ray", {"gpu": 1}, "unknown key 'gpu' (did you mean 'gpus'?)"),
        ("ray", {"gpus": -1}, "gpus is -1, expected a number of at least 0"),
        ("ray", {"gpus": "all"}, "gpus is 'all', expected a number"),
        ("ray", {"memory_gb": True}, "memory_gb is True, expected a number"),
        ("ray", {"retries": -1}, "retries is -1, expected a whole number of at least 0"),
        ("ray", {"retries": 1.5}, "retries is 1.5, expected a whole number"),
        ("ray", {"address": 6379}, "address is 6379, expected text"),
        ("ray", {"minutes": 5}, "unknown key 'minutes'"),
        ("ray", {"runs": ["a"]}, "runs is a list, expected a mapping"),
        ("ray", {"runs": {"a": {"gups": 1}}}, "runs: a: unknown key 'gups' (did you mean 'gpus'?)"),
        ("ray", {"runs": {"a": {"gpus": "x"}}}, "gpus is 'x', expected a number"),
        ("slurm", {"minutes": 0}, "minutes: got 0, expected at least 1"),
        ("slurm", {"cluster": "slrum"}, "cluster is 'slrum' (did you mean 'slurm'?); expected one of slurm, local"),
        ("slurm", {"parameters": "gpu"}, "parameters is text, expected a mapping"),
        ("local", {"gpus": 1}, "--launcher-settings are for --launcher ray and slurm"),
    ],
)
def test_a_wrong_setting_is_one_line(name, content, message, written):
    with pytest.raises(UserError) as caught:
        make_launcher(name, written(**content))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_an_arm_that_the_study_has_not_are_refused(bench, written):
    launcher = make_launcher("slurm", written(runs={"othr": {"gpus": 1}}))
    with pytest.raises(UserError, match=r"the study has no 'othr' \(did you mean 'other'\?\)"):
        launcher.check(load_study(bench.write()))


def test_a_settings_file_that_is_not_there_is_named_with_those_beside_it(tmp_path, written):
    written()
    with pytest.raises(UserError, match=r"do not exist \(did you mean .*launcher.yaml"):
        make_launcher("ray", tmp_path / "launchr.yaml")


def test_an_address_goes_with_ray_and_wins_over_the_file(written):
    assert make_launcher("ray", written(address="a:1"), "b:2").address == "b:2"
    with pytest.raises(UserError, match="--ray-address goes with --launcher ray; got --launcher slurm"):
        make_launcher("slurm", None, "b:2")


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_package_that_is_missing_is_named_before_anything_is_written(bench, monkeypatch, name, package):
    bench.write()
    monkeypatch.setattr(extras, "find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(UserError) as caught:
        bench.compare(launcher=make_launcher(name))
    message = f"--launcher {name} needs the package {package}: pip install 'grpovi-lightning[{name}]'"
    assert str(caught.value) == message
    assert not bench.output.exists()


def test_neither_package_is_imported_unless_it_is_asked_for():
    code = "import grpovi_lightning.cli, sys; print([name for name in ('ray', 'submitit') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
