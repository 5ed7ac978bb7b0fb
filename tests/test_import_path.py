"""Files of the working folder hide neither this package nor what it stands on; reward functions are found there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.own_input import run_config, write_own_input, write_yaml

import grpovi_lightning
from grpovi_lightning.cli import main
from grpovi_lightning.study.comparison import PROGRAM
from grpovi_lightning.study.process import Run, launch

ROOT = Path(grpovi_lightning.__file__).parents[1]
HIDING = ("analysis/", "datasets/", "grpovi_lightning/", "torch.py", "lightning.py", "transformers/", "yaml.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Own input in a folder whose other files have the names of modules."""
    root = tmp_path_factory.mktemp("own")
    write_own_input(root)
    for name in HIDING:
        if name.endswith("/"):
            (root / name).mkdir()
            if name != "analysis/":  # an empty folder hides a module, too
                (root / name / "__init__.py").write_text("raise SystemExit('the wrong module')\n")
        else:
            (root / name).write_text("raise SystemExit('the wrong module')\n")
    config = run_config(root, root / "run")
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    write_yaml(root / "run.yaml", config)
    return root


def test_a_command_leaves_the_import_path_alone_unless_it_needs_reward_functions(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    for arguments in (["report", "."], ["adjust", "none.csv", "--lower=0", "--upper=1"], ["task"], ["compare", "x"]):
        assert main(arguments) == 2
    assert sys.path == before
    assert main(["fit", "--config", "run.yaml", "--trainer.max_steps", "0"]) == 2
    assert sys.path == [*before, str(folder)]


@pytest.mark.slow
def test_a_run_of_a_study_starts_in_a_folder_full_of_names(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = Run("a", folder / "run", ("fit", "--config", "run.yaml"), (), folder / "locks" / "a", seed=1)
    assert launch(run, PROGRAM).exit_status == 0, run.log.read_text()


@pytest.mark.slow
def test_the_report_of_an_installed_command_starts_there_too(folder):
    code = "import sys; from grpovi_lightning.cli import main; sys.exit(main(['report', 'nothing']))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "nothing" in done.stderr and "Error" not in done.stderr
