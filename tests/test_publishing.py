"""`grpovi push`: what a run trained goes to the hub with its card, through the real client to a hub of this machine."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.chat import save_chat_policy, user, write_jsonl
from helpers.commands import refusal
from helpers.hub_server import TOKEN, Hub, Repository
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from analysis.run_config import DEFAULTS
from grpovi_lightning.cli import main
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.rewards import RewardFunction
from grpovi_lightning.run_record.layout import SCALARS_FILE

REPO = "ada/tiny"
REWARDS = """
def letters(prompts, completions, **columns):
    return [float(len(c[0]["content"])) for c in completions]


def fox(prompts, completions, **columns):
    return [float("fox" in c[0]["content"]) for c in completions]
"""


def function(name):
    return {"class_path": "grpovi_lightning.rewards.RewardFunction", "init_args": {"function": f"push_rewards.{name}"}}


def settings(root):
    parts = {"rewards": [function("letters"), function("fox")], "reward_weights": [1.0, 0.0]}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "grpovi_lightning.modules.GRPOModule",
            "init_args": {
                "policy": {
                    "class_path": "grpovi_lightning.models.PretrainedCausalLM",
                    "init_args": {"path": str(root / "bases" / "chat"), "lora": {"r": 2, "lora_alpha": 4}},
                },
                "reward": {"class_path": "grpovi_lightning.rewards.CompositeReward", "init_args": parts},
                "group_size": 4,
                "sampling": {"max_completion_length": 6, "temperature": 0.9},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "grpovi_lightning.data.PromptDataModule",
            "init_args": {
                "train": str(root / "prompts.jsonl"),
                "prompts_per_step": 2,
                "preparation": {"held_out_fraction": 0.3},
                "conversations": {"system_prompt": "be calm | </pre> <b>"},
            },
        },
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of one seed: GRPO and GRPOVI with adapters, two steps each."""
    root = tmp_path_factory.mktemp("push")
    save_chat_policy(root / "bases" / "chat")
    (root / "push_rewards.py").write_text(REWARDS)
    words = ["fox", "dog", "cat", "tree", "boat", "house", "river", "ten", "five", "calm"]
    write_jsonl(root / "prompts.jsonl", [{"prompt": [user(f"write about the {word}")]} for word in words])
    (root / "grpo.yaml").write_text(yaml.safe_dump(settings(root)))
    increase = {"class_path": "grpovi_lightning.adjustment.VarianceIncrease"}
    (root / "grpovi.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"adjustment": increase}}}))
    plan = {"name": "tiny", "seeds": [1], "arms": {"grpo": {}, "grpovi": {"baseline": "grpo"}}}
    (root / "runs").mkdir()
    (root / "runs" / "study.yaml").write_text(yaml.safe_dump(plan | {"report": {"metric": "eval/reward"}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", list(sys.path))
        for arm, more in (("grpo", []), ("grpovi", ["--config", "grpovi.yaml"])):
            place = ["--trainer.default_root_dir", str(root / "runs" / "arms" / arm / "seed_1")]
            assert main(["fit", "--config", "grpo.yaml", *more, *place]) == 0
    return root


@pytest.fixture
def run(study, tmp_path, monkeypatch):
    """The GRPOVI run in a copy of its study, to be written into; the current folder is the one that holds both."""
    shutil.copytree(study / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs/arms/grpovi/seed_1")


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A hub that the client of this process talks to, logged in."""
    server = Hub()
    home = tmp_path_factory.mktemp("hub")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # large files go by plain HTTP
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_CACHE": str(home / "cache"),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    yield server
    server.shutdown()
    server.server_close()


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_model_arrives_as_it_is_with_its_card_and_still_loads(run, hub, capsys):
    before = files_of(run)
    assert main(["push", str(run), REPO]) == 0
    assert capsys.readouterr().out == f"push: {hub.url}/{REPO}\n"
    arrived = hub.repositories[REPO].branches["main"]
    assert len(hub.repositories[REPO].commits) == 1 and not hub.repositories[REPO].private
    assert set(arrived) == {".gitattributes", "README.md", *(path.name for path in (run / "model").iterdir())}
    assert {name: arrived[name] for name in before if "/" not in name and name in arrived} == {}
    assert all(arrived[name.removeprefix("model/")] == was for name, was in before.items() if name.startswith("model/"))
    assert f"PUT /lfs/{hashlib.sha256(before['model/model.safetensors']).hexdigest()}" in hub.requests
    made = {"model/README.md", SCALARS_FILE}
    assert {name: now for name, now in files_of(run).items() if name not in made} == before
    assert (run / "model" / "README.md").read_bytes() == arrived["README.md"]
    AutoModelForCausalLM.from_pretrained(run / "model")
    AutoTokenizer.from_pretrained(run / "model")


def test_the_card_names_data_method_settings_and_numbers(run, capsys):
    assert main(["push", str(run), REPO, "--card_only"]) == 0
    assert capsys.readouterr().out == f"card: {run}/model/README.md\n"
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["grpovi-lightning", "grpovi"],
    }
    text = card.text
    assert "# tiny\n" in text and "GRPOVI, GRPO with reward variance increase" in text
    assert "| train | `prompts.jsonl` (local) |" in text and "held_out_fraction 0.3" in text
    assert "| 1.0 | `RewardFunction (function push_rewards.letters)` |" in text
    assert "| 0.0 (watched, not trained on) | `RewardFunction (function push_rewards.fox)` |" in text
    for row in ("steps | `2`", "prompts per step | `2`", "completions per prompt (group size) | `4`", "seed | `1`"):
        assert f"| {row} |" in text
    assert "temperature 0.9" in text and "AdamW (lr 0.01" in text and "`GRPOLoss`" in text
    assert "The run did not finish" not in text and 'AutoModelForCausalLM.from_pretrained("ada/tiny")' in text
    assert f"torch `{torch.__version__}`" in text
    assert "one seed only, so nothing can be said about other seeds" in text and "`grpo` 1, `grpovi` 1" in text


def test_the_numbers_of_the_card_are_those_that_tensorboard_has(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["push", str(run), REPO, "--card_only"]) == 0
    events = EventAccumulator(str(run))
    events.Reload()
    first, last = events.Scalars("eval/reward")
    rows = [
        line.split("|") for line in (run / "model" / "README.md").read_text().splitlines() if "`eval/reward`" in line
    ]
    numbers = [[part.strip().replace("\N{MINUS SIGN}", "-") for part in row[2:6]] for row in rows if len(row) == 7]
    (found,) = numbers
    assert [int(found[0]), int(found[2])] == [first.step, last.step] == [0, 2]
    assert [float(found[1]), float(found[3])] == pytest.approx([first.value, last.value], rel=5e-3)


def test_no_folder_of_the_machine_is_in_what_is_pushed(run, study, hub, capsys):
    for what, repo in (("model", "ada/whole"), ("adapter", "ada/part")):
        assert main(["push", str(run), repo, "--what", what]) == 0
        for name, content in hub.repositories[repo].branches["main"].items():
            assert str(study).encode() not in content and str(Path.home()).encode() + b"/" not in content, name
    assert (
        "Folders of the machine are cut from paths"
        in hub.repositories["ada/whole"].branches["main"]["README.md"].decode()
    )
    assert "push: adapter_config.json is without the folders of this machine there" in capsys.readouterr().out
    assert str(study) in (run / "adapter" / "adapter_config.json").read_text()


def test_an_adapter_goes_alone_and_its_card_says_how_to_put_it_on_the_base(run, study, hub):
    assert main(["push", str(run), REPO, "--what", "adapter", "--private"]) == 0
    repository = hub.repositories[REPO]
    arrived = repository.branches["main"]
    assert repository.private
    assert set(arrived) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = ModelCard(arrived["README.md"].decode())
    assert card.data.library_name == "peft" and card.data.tags == ["grpovi-lightning", "grpovi", "lora"]
    assert 'PeftModel.from_pretrained(base, "ada/tiny")' in card.text
    assert json.loads(arrived["adapter_config.json"])["base_model_name_or_path"] == "chat"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(study / "bases" / "chat"), str(run / "adapter"))


def test_a_branch_is_made_and_a_second_push_replaces_what_the_first_left(run, hub):
    assert main(["push", str(run), REPO, "--revision", "seed-1"]) == 0
    repository = hub.repositories[REPO]
    assert set(repository.branches["main"]) == {".gitattributes"} and len(repository.branches["seed-1"]) > 3
    assert 'revision="seed-1"' in (run / "model" / "README.md").read_text()
    repository.branches["seed-1"]["model-00001-of-00002.safetensors"] = b"of an earlier push"
    (run / "model" / "generation_config.json").write_text("{}")
    assert main(["push", str(run), REPO, "--revision", "seed-1"]) == 0
    assert repository.branches["seed-1"]["generation_config.json"] == b"{}"
    assert "model-00001-of-00002.safetensors" not in repository.branches["seed-1"]
    assert "model.safetensors" in repository.branches["seed-1"]


@pytest.mark.parametrize("where", ["here", "on the hub"])
@pytest.mark.parametrize("kind", ["foreign", "changed"])
def test_a_card_of_somebody_else_is_not_overwritten(run, hub, capsys, where, kind):
    assert main(["push", str(run), REPO]) == 0
    card = run / "model" / "README.md"
    text = "# mine\n" if kind == "foreign" else card.read_text().replace("# tiny", "# My tiny model")
    if where == "here":
        card.write_text(text)
    else:
        hub.repositories[REPO].branches["main"]["README.md"] = text.encode()
    line = refusal(capsys, "push", run, REPO)
    assert ("was not written by grpovi push" if kind == "foreign" else "was changed since grpovi push wrote it") in line
    assert (str(card) if where == "here" else REPO) in line
    assert len(hub.repositories[REPO].commits) == 1
    assert where == "on the hub" or card.read_text() == text


def test_what_cannot_be_pushed_is_refused_in_one_line_before_the_hub_is_asked(run, hub, capsys):
    def refused(*arguments):
        return refusal(capsys, "push", *arguments)

    assert "no such folder" in refused("nowhere", REPO)
    assert "is a study: name one of its runs" in refused("runs", REPO)
    for name in ("tiny", "a/b/c", "ada/", "a da/x"):
        assert "expected user/name, such as ada/my-policy" in refused(run, name)
    assert "expected the name of a branch" in refused(run, REPO, "--revision", "a b")
    assert "--private has no effect with --card_only" in refused(run, REPO, "--private", "--card_only")
    (run / "config.yaml").rename(run / "kept.yaml")
    assert "no config.yaml" in refused(run, REPO, "--card_only")
    (run / "kept.yaml").rename(run / "config.yaml")
    shutil.rmtree(run / "adapter")
    assert "no adapter was trained there; it has model" in refused(run, REPO, "--what", "adapter")
    (run / "model" / "config.json").unlink()
    assert "no config.json in it" in refused(run, REPO)
    shutil.rmtree(run / "model")
    assert "no model was trained there; a run writes it when training ends" in refused(run, REPO)
    assert hub.requests == [] and not hub.repositories


def test_without_a_token_or_a_hub_nothing_is_written(run, hub, capsys, monkeypatch):
    def refused():
        line = refusal(capsys, "push", run, REPO)
        assert not (run / "model" / "README.md").exists() and not hub.repositories
        return line

    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "the hub refuses (401)" in refused()
    monkeypatch.delenv("HF_TOKEN")
    assert "not logged in to the hub" in refused()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the hub is off (HF_HUB_OFFLINE)" in refused()
    assert main(["push", str(run), REPO, "--card_only"]) == 0
    (run / "model" / "README.md").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    assert f"the hub cannot be reached at {nobody}" in refused()


def test_what_the_hub_refuses_is_said_with_its_reason(run, hub, capsys):
    assert "(403): You don't have the rights to create a model under the namespace lab" in refusal(
        capsys, "push", run, "lab/tiny"
    )
    hub.broken = "/commit/"
    assert "(403): the quota is used up" in refusal(capsys, "push", run, REPO)
    hub.broken = None
    assert set(hub.repositories[REPO].branches["main"]) == {".gitattributes"}
    assert "exists and is public" in refusal(capsys, "push", run, REPO, "--private")
    hub.repositories["ada/part"] = Repository(branches={"main": {"adapter_config.json": b"{}"}})
    assert "holds adapter files (adapter_config.json)" in refusal(capsys, "push", run, "ada/part")
    assert not (run / "model" / "README.md").exists()


def test_a_run_that_did_not_finish_says_so(run):
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "interrupted", "step": 1}))
    assert main(["push", str(run), REPO, "--card_only"]) == 0
    text = (run / "model" / "README.md").read_text()
    assert "**The run did not finish**: it was interrupted at step 1 of 2" in text
    assert "It does not count there: interrupted at step 1 of 2" in text


@pytest.mark.slow
def test_the_command_needs_no_torch_and_goes_where_the_environment_says(run, hub, tmp_path):
    """As a process of its own, which reads HF_ENDPOINT by itself."""
    code = (
        "import sys\nfrom grpovi_lightning.cli import main\n"
        f"status = main(['push', {str(run)!r}, {REPO!r}])\n"
        "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)\nsys.exit(status)"
    )
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "0"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.repositories[REPO].branches["main"]


def test_an_exported_model_has_what_vllm_reads_of_its_configuration(run):
    """The configuration alone: vLLM is not installed with this package."""
    folder = run / "model"
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert (folder / "tokenizer_config.json").is_file() and (folder / "tokenizer.json").is_file()
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert set(ends if isinstance(ends, list) else [ends]) <= set(range(len(tokenizer)))
    assert tokenizer.apply_chat_template([user("ten")], add_generation_prompt=True, tokenize=False).endswith(
        "<|assistant|>"
    )


def test_the_defaults_that_a_card_names_are_those_of_the_module():
    module = GRPOModule(PretrainedCausalLM("x"), RewardFunction(len, "length"))
    parts = {"adjustment": module.adjustment, "advantage": module.advantage, "loss": module.updater.loss}
    assert {name: type(part).__name__ for name, part in parts.items()} == DEFAULTS
