"""What docs/security.md promises: no foreign code, no writing elsewhere, no open port, no secret in a file."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import refusal
from helpers.own_input import run_config, write_own_input, write_yaml

from grpovi_lightning.cli import main
from grpovi_lightning.errors import without_secrets
from grpovi_lightning.models.checkpoint_folder import write_folder

GL = "grpovi_lightning"


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    write_own_input(folder)
    return folder


@pytest.fixture
def here(ground, tmp_path, monkeypatch):
    for entry in ground.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def files(folder):
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("evil"),)


# No code of others


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_runs_no_code(here, capsys, command):
    torch.save({"global_step": 1, "state_dict": {"w": Evil()}, "loops": {}, "optimizer_states": []}, "a.ckpt")
    file = write_yaml(here / "run.yaml", run_config(Path("."), Path("run")))
    assert "that could run code" in refusal(capsys, command, "--config", file, "--ckpt_path", "a.ckpt")
    assert not Path("evil").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load("a.ckpt", weights_only=True)
    torch.load("a.ckpt", weights_only=False)
    assert Path("evil").exists()  # the trap works


PLACES = {
    "as rest.pt": ("rest.pt", "that could run code"),
    "raw as rest.pt": ("rest.pt", "got a folder whose rest.pt is damaged or was cut short"),
    "as a part": ("part_1_of_1.safetensors", "got a folder whose part_1_of_1.safetensors is damaged or was cut short"),
    "as torch's own metadata": (".metadata", "is not of this run"),
    "as Lightning's own metadata": ("meta.pt", "is not of this run"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_parts_runs_no_code(here, capsys, command, place):
    content = {"global_step": 1, "state_dict": {}, "loops": {}, "optimizer_states": []}
    write_folder(here / "a.ckpt", content, {})
    name, said = PLACES[place]
    if place.startswith("raw") or name.endswith("safetensors"):
        (here / "a.ckpt" / name).write_bytes(pickle.dumps(Evil()))
    else:
        with (here / "a.ckpt" / name).open("wb") as out:
            torch.save(content | {"state_dict": {"w": Evil()}}, out)
    file = write_yaml(here / "run.yaml", run_config(Path("."), Path("run")))
    assert said in refusal(capsys, command, "--config", file, "--ckpt_path", "a.ckpt")
    assert not Path("evil").exists()


@pytest.mark.parametrize("setting", ["policy", "reward"])
def test_a_model_folder_runs_no_code(here, capsys, setting):
    folder = here / "foreign"
    folder.mkdir()
    for entry in (here / "checkpoint").iterdir():
        (folder / entry.name).write_bytes(entry.read_bytes())
    own = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoModelForSequenceClassification": "own.M"}
    (folder / "own.py").write_text("import pathlib; pathlib.Path('evil').touch()\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": own}))
    config = run_config(Path("."), Path("run"))
    arguments = config["model"]["init_args"]
    if setting == "policy":
        arguments["policy"]["init_args"]["path"] = "foreign"
    else:
        arguments["reward"] = {"class_path": f"{GL}.rewards.RewardModel", "init_args": {"path": "foreign"}}
    line = refusal(capsys, "fit", "--config", write_yaml(here / "run.yaml", config))
    assert "foreign cannot be loaded: The repository foreign contains custom code" in line
    assert not Path("evil").exists() and not Path("run").exists()


def test_a_table_runs_no_code(here, capsys):
    """A folder with a loading script beside its table is read as a folder of tables."""
    (here / "set").mkdir()
    (here / "set" / "set.py").write_text("import pathlib; pathlib.Path('evil').touch()\n")
    config = run_config(Path("."), Path("run"))
    config["data"]["init_args"] |= {"train": "set", "validation": None}
    refusal(capsys, "fit", "--config", write_yaml(here / "run.yaml", config))
    (here / "table.jsonl").write_bytes(pickle.dumps(Evil()))
    config["data"]["init_args"]["train"] = "table.jsonl"
    refusal(capsys, "fit", "--config", write_yaml(here / "run.yaml", config))
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    "command", [["fit", "--config"], ["compare"], ["sample", "--output", "o", "--config"], ["task", "--config"]]
)
def test_a_yaml_file_runs_no_code(here, capsys, command):
    (here / "a.yaml").write_text(
        "name: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [evil]]\n"
    )
    before = files(here)
    assert "could not determine a constructor for the tag" in refusal(capsys, *command, "a.yaml")
    assert files(here) == before


def test_no_setting_lets_a_checkpoint_bring_code():
    sources = {path: path.read_text() for path in Path(__file__).parents[1].glob("grpovi_lightning/**/*.py")}
    said = [line.strip() for text in sources.values() for line in text.splitlines() if "trust_remote_code" in line]
    assert said and all("trust_remote_code=False" in line or '"trust_remote_code": False' in line for line in said)
    assert not any("weights_only=False" in text for text in sources.values())
    loads = [
        line for text in sources.values() for line in text.splitlines() if "torch.load(" in line and ">>>" not in line
    ]
    assert all("weights_only=True" in line for line in loads) and loads


# Nothing is written elsewhere


def study_of(here, config, **changes):
    write_yaml(here / "run.yaml", config)
    content = {"name": "small", "seeds": [1], "arms": {"plain": {"configs": ["run.yaml"]}}} | changes
    return write_yaml(here / "study.yaml", content)


ELSEWHERE = {
    "checkpoints": {"checkpoint": {"dirpath": "/tmp/elsewhere"}},
    "checkpoints by dots": {"checkpoint": {"dirpath": "${study_dir}/../elsewhere"}},
    "a logger": {
        "trainer": {
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}}
        }
    },
    "a callback": {
        "trainer": {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "elsewhere"}}
            ]
        }
    },
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_study_writes_nothing_outside_its_folder(here, capsys, name):
    config = run_config(Path("."), Path("run"))
    for section, settings in ELSEWHERE[name].items():
        config[section] = config.get(section, {}) | settings
    study = study_of(here, config)
    before = files(here)
    line = refusal(capsys, "compare", study)
    assert line.startswith("arm 'plain': ") and "expected a place in the study's folder runs/small" in line
    assert files(here) == before


@pytest.mark.parametrize("name", ["../small", "/tmp/small", "a/b"])
@pytest.mark.parametrize("what", ["study", "arm", "stage"])
def test_names_in_a_study_lead_nowhere_else(here, capsys, name, what):
    part = {name: {"configs": ["run.yaml"]}}
    changes = {"study": {"name": name}, "arm": {"arms": part}, "stage": {"prepare": part}}[what]
    study = study_of(here, run_config(Path("."), Path("run")), **changes)
    before = files(here)
    assert "cannot name a folder" in refusal(capsys, "compare", study)
    assert files(here) == before


@pytest.mark.parametrize("link", ["arms", "arms/plain", "arms/plain/seed_1"])
def test_a_link_in_a_study_s_folder_leads_nowhere_else(here, capsys, link):
    study = study_of(here, run_config(Path("."), Path("run")))
    (here / "elsewhere").mkdir()
    place = here / "runs" / "small" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(here / "elsewhere")
    assert "is or goes through a link to" in refusal(capsys, "compare", study)
    assert not list((here / "elsewhere").iterdir())


def test_the_output_itself_may_be_a_link(here, capsys):
    study = study_of(here, run_config(Path("."), Path("run")))
    (here / "large").mkdir()
    (here / "runs").symlink_to(here / "large")
    assert main(["compare", study, "--dry-run"]) == 0


# No open port


LISTENING = """
import os, pathlib

def listens(completions):
    descriptors = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    own = {os.readlink(each) for each in descriptors if os.path.exists(each)}
    rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/self/net/{name}").readlines()[1:]]
    mine = [row for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]  # 0A: it listens
    with open("ports.txt", "a") as out:
        out.write("".join(f"{row[1]}\\n" for row in mine))
    return [float(len(text)) for text in completions]
"""


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="Linux tells which ports a process has")
def test_a_run_listens_at_no_port(here):
    (here / "listening_rewards.py").write_text(LISTENING)
    reward = {"class_path": f"{GL}.rewards.RewardFunction", "init_args": {"function": "listening_rewards.listens"}}
    config = run_config(Path("."), Path("run"), reward=reward)
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    command = [sys.executable, "-m", f"{GL}.cli", "fit", "--config", write_yaml(here / "run.yaml", config)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert Path("ports.txt").read_text() == ""


# No secret in a file


SECRETS = {
    "HF_TOKEN": "hf_QmVzdFNlY3JldA",
    "JUDGE_API_KEY": "sk-4711-verysecret",
    "WANDB_API_KEY": "0123456789abcdef01",
}
TELLS = """
import os

def tells(completions, trainer_state):
    if trainer_state.step == 1:
        raise PermissionError("401 for " + " ".join(os.environ[name] for name in ("HF_TOKEN", "JUDGE_API_KEY")))
    return [float(len(text)) for text in completions]
"""


def test_tokens_and_keys_of_the_environment_are_in_no_file_and_no_message(here, monkeypatch, capsys):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (here / "telling_rewards.py").write_text(TELLS)
    reward = {"class_path": f"{GL}.rewards.RewardFunction", "init_args": {"function": "telling_rewards.tells"}}
    config = run_config(Path("."), Path("run"), reward=reward)
    config["checkpoint"] = {"every_n_train_steps": 1}
    line = refusal(capsys, "fit", "--config", write_yaml(here / "run.yaml", config), status=1)
    assert "401 for <HF_TOKEN> <JUDGE_API_KEY>" in line
    written = [path for path in (here / "run").rglob("*") if path.is_file()]
    assert {"status.json", "config.yaml", "last.ckpt"} <= {path.name for path in written}
    assert "failed_reward_step_1_rank_0.json" in {path.name for path in written}
    for value in SECRETS.values():
        assert not [path for path in written if value.encode() in path.read_bytes()]
    assert main(["report", "run"]) in (0, 2)
    said = capsys.readouterr()
    assert not any(value in said.out + said.err for value in SECRETS.values())
    assert not [p for p in (here / "run").rglob("*") if p.is_file() and SECRETS["HF_TOKEN"].encode() in p.read_bytes()]


@pytest.mark.parametrize("name", ["JUDGE_API_KEY", "HF_TOKEN", "${study_dir}"])
def test_settings_take_no_token_out_of_the_environment(here, monkeypatch, capsys, name):
    monkeypatch.setenv("JUDGE_API_KEY", SECRETS["JUDGE_API_KEY"])
    config = run_config(Path("."), Path("run"))
    config["model"]["init_args"]["reward"]["init_args"]["kwargs"] = {"key": f"${{oc.env:{name}}}"}
    line = refusal(capsys, "fit", "--config", write_yaml(here / "run.yaml", config))
    assert "which would be written into config.yaml; let the code that needs it read the variable by itself" in line
    assert SECRETS["JUDGE_API_KEY"] not in line and not Path("run").exists()


def test_short_values_and_other_variables_stay_as_they_are():
    environment = {"KEY": "short", "HOME": "/home/somebody", "MY_SECRET": "12345678"}
    assert without_secrets("short /home/somebody 12345678", environment) == "short /home/somebody <MY_SECRET>"
