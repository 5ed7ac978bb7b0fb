"""What README shows works as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from grpovi_lightning.cli import check_fit
from grpovi_lightning.study import load_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_diff_that_adds_a_loss_applies_and_its_test_and_configuration_pass(tmp_path):
    (diff,) = blocks("diff")
    assert len(diff.splitlines()) < 60
    for name in ("grpovi_lightning", "experiments", "tests/losses"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "--verbose", "-"], cwd=tmp_path, input=diff, text=True, check=True)

    configs = ["--config", "experiments/quickstart/grpo.yaml", "--config", "experiments/family/reinforce.yaml"]
    for command in (
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/losses/test_reinforce_loss.py"],
        ["-c", f"from grpovi_lightning.cli import check_fit; check_fit({configs})"],
    ):
        found = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stdout + found.stderr
    study = load_study(tmp_path / "experiments" / "family" / "study.yaml")
    assert "reinforce" in [arm.name for arm in study.arms]


def test_the_yaml_for_ones_own_model_is_a_valid_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Other tests have a module of that name: theirs, or none, is put back afterwards.
    monkeypatch.setitem(sys.modules, "my_rewards", None)
    del sys.modules["my_rewards"]
    mine, variance_increase = blocks("yaml")
    (function,) = blocks("python")
    Path("mine.yaml").write_text(mine)
    Path("variance_increase.yaml").write_text(variance_increase)
    Path("my_rewards.py").write_text(function)
    check_fit(["--config", "mine.yaml"])
    check_fit(["--config", "mine.yaml", "--config", "variance_increase.yaml"])


def test_the_reward_function_counts_right_answers():
    (function,) = blocks("python")
    space = {}
    exec(function, space)
    columns = {"prompts": ["a", "b"], "completion_ids": [[1], [2]]}
    assert space["accuracy"](completions=["it is 7", "8"], answer=["#### 7", "#### 9"], **columns) == [1.0, 0.0]


def test_every_file_of_the_tree_exists():
    (tree,) = re.findall(r"## The house\n\n```\n(.*?)```", README, flags=re.DOTALL)
    room = ROOT
    for line in tree.splitlines():
        indented = line.startswith(" ")
        for name in re.findall(r"\S+(?:/|\.py)(?= |$)", line[:21]):
            path = (room if indented else ROOT) / name
            assert path.exists(), name
            room = room if indented else path
