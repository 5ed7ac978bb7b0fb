"""The wheel: built from the repository, installed into an empty environment, used far from the repository."""

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("grpovi_lightning", "analysis")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
pytestmark = pytest.mark.slow


def run(*command, cwd):
    found = subprocess.run([str(part) for part in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since a build leaves its folders beside the sources; without the network."""
    copy = tmp_path_factory.mktemp("repository")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").touch()  # must not get into the wheel
    output = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", output, copy, cwd=output)
    (found,) = output.iterdir()
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel; the dependencies are read from the environment of the tests.

    A path in a .pth file is searched, but .pth files in it are not read: an editable install there does not count.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    run(*install, wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_both_packages_their_types_the_template_and_the_licence_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    metadata = "grpovi_lightning-" + wheel.name.split("-")[1] + ".dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata}
    assert {"grpovi_lightning/py.typed", "analysis/py.typed", f"{metadata}/licenses/LICENSE"} <= set(names)
    for package in PACKAGES:
        sources = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {str(path.relative_to(ROOT)) for path in sources} <= set(names)
    about = zipfile.ZipFile(wheel).read(f"{metadata}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in about and "Author: the GRPOVI Lightning authors" in about


def test_a_study_copied_from_the_repository_runs_and_is_reported_from_the_wheel(environment, tmp_path):
    where = "import analysis, grpovi_lightning; print(analysis.__file__, grpovi_lightning.__file__)"
    for file in run(environment / "bin" / "python", "-c", where, cwd=tmp_path).split():
        assert Path(file).is_relative_to(environment)

    experiments = tmp_path / "my-studies"
    for name in ("miniature", "quickstart"):
        shutil.copytree(ROOT / "experiments" / name, experiments / name)
    study = yaml.safe_load((experiments / "miniature" / "study.yaml").read_text())
    for unneeded in ("one_pass", "reward_model"):  # each takes a process, and starting one takes most of the time
        del study["prepare"][unneeded]
    study["report"] = {"metric": study["report"]["metric"]}
    study["arms"] = {"grpo": {"configs": [*study["arms"]["grpo"]["configs"], "short.yaml"]}}
    (experiments / "miniature" / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    gold = {"function": "grpovi_lightning.data.embedded.gold_reward", "name": "gold"}
    reward = {"class_path": "grpovi_lightning.rewards.RewardFunction", "init_args": gold}
    short = {"trainer": {"max_steps": 2, "val_check_interval": 1}, "model": {"init_args": {"reward": reward}}}
    (experiments / "miniature" / "short.yaml").write_text(yaml.safe_dump(short))

    run(
        environment / "bin" / "grpovi",
        "compare",
        experiments / "miniature" / "study.yaml",
        "--seeds",
        "1",
        cwd=tmp_path,
    )
    report = tmp_path / "runs" / "miniature" / "report"
    assert "<svg" in (report / "index.html").read_text()
    with (report / "efficiency.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert (row["arm"], row["n_seeds"]) == ("grpo", "1")
