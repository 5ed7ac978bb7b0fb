"""Runs of every kind that were killed, cut or taken up at an earlier step: what stands is the run that was not."""

import json
import shutil

import lightning as L
import pytest
import torch
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from helpers.tiny_checkpoints import save_policy
from modules.grpo_runs import EPOCH, TIMES
from modules.module_kinds import KINDS, checkpoint, fit
from safetensors.torch import load_file
from torch import nn

from analysis.run_log import read_scalars
from grpovi_lightning.callbacks import ExportModel
from grpovi_lightning.callbacks.status import report_warning
from grpovi_lightning.modules.checkpoints import FrozenLeftOut


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory, tokenizer_folder):
    """A policy whose output head is its embedding."""
    return save_policy(tmp_path_factory.mktemp("tied"), tokenizer_folder, tie_word_embeddings=True)


@pytest.fixture(scope="module", params=KINDS)
def run(request, tied_folder, reward_folder, tmp_path_factory):
    """(kind, function that makes its module, folder of a whole run of four steps, its module)."""
    kind, folder = request.param, tmp_path_factory.mktemp("run")

    def make():
        return KINDS[kind](tied_folder, reward_folder)

    return kind, make, folder, fit(kind, make(), folder, 4)


def curves(folder):
    """(metric, step) -> value, as the report reads them; without times."""
    found = read_scalars(folder).scalars
    return {(s.metric, s.step): s.value for s in found if s.metric != EPOCH and not any(t in s.metric for t in TIMES)}


def exported(folder):
    """What the exported folders hold, by file."""
    files = [file for name in ("model", "reward_model") for file in sorted((folder / name).rglob("*"))]
    read = {".safetensors": load_file, ".json": lambda file: json.loads(file.read_text())}
    return {str(file.relative_to(folder)): read[file.suffix](file) for file in files if file.suffix in read}


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if torch.is_tensor(first) else first == second


def status(folder):
    return json.loads((folder / "status.json").read_text())


class Kill(L.Callback):
    """Ends the process, as far as Lightning can tell, after training and before the export."""

    def on_train_end(self, trainer, pl_module):
        raise KeyboardInterrupt


def test_steps_that_a_later_attempt_superseded_are_in_no_curve(run, tmp_path):
    kind, make, straight, _ = run
    first = make()
    fit(kind, first, tmp_path, 6)
    fit(kind, make(), tmp_path, 4, ckpt_path=checkpoint(first, tmp_path, 2))

    assert max(step for _, step in curves(straight)) == 4
    assert curves(tmp_path) == curves(straight)
    assert status(tmp_path)["state"] == "finished"


def test_a_run_taken_up_at_its_new_end_is_cut_there(run, tmp_path):
    kind, make, straight, whole = run
    shutil.copytree(straight, tmp_path / "run")
    fit(kind, make(), tmp_path / "run", 2, ckpt_path=checkpoint(whole, straight, 2))

    assert {key for key in curves(straight) if key[1] < 2 or (key[1] == 2 and key[0].startswith("eval/"))} == set(
        curves(tmp_path / "run")
    )


def test_a_run_killed_before_its_export_exports_when_it_goes_on(run, tmp_path):
    kind, make, straight, _ = run
    with pytest.raises(SystemExit):
        fit(kind, make(), tmp_path, 4, Kill())
    assert status(tmp_path)["state"] == "interrupted" and not (tmp_path / "model").exists()

    fit(kind, make(), tmp_path, 4, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")

    assert status(tmp_path)["state"] == "finished"
    assert exported(straight) and same(exported(tmp_path), exported(straight))
    assert (tmp_path / "reward_model").exists() == (kind == "grpo with a reward that learns")


def test_nothing_frozen_is_in_a_checkpoint_and_an_older_one_that_holds_it_loads(run, tmp_path):
    kind, make, straight, whole = run
    saved = torch.load(checkpoint(whole, straight, 2), weights_only=True)
    trained = {name for name, p in whole.named_parameters(remove_duplicate=False) if p.requires_grad}
    parameters = {name for name, _ in whole.named_parameters(remove_duplicate=False)}
    assert saved["state_dict"].keys() & parameters == trained

    older = tmp_path / "older.ckpt"
    torch.save(saved | {"state_dict": whole.state_dict() | saved["state_dict"]}, older)
    fit(kind, make(), tmp_path / "run", 4, ckpt_path=older)
    assert same(exported(tmp_path / "run"), exported(straight))


def test_an_export_that_was_cut_leaves_nothing_that_looks_whole(run, tmp_path, monkeypatch):
    kind, make, straight, whole = run
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    module = make()
    write = module.save_pretrained

    def full_disk(folder):
        write(folder)
        raise OSError("no space left")

    monkeypatch.setattr(module, "save_pretrained", full_disk)
    last = checkpoint(whole, straight, 4)
    with pytest.raises(OSError, match="no space left"):
        fit(kind, module, tmp_path / "run", 4, ckpt_path=last)
    assert not (tmp_path / "run" / "model").exists()
    assert status(tmp_path / "run")["state"] == "failed"

    fit(kind, make(), tmp_path / "run", 4, ckpt_path=last)
    assert same(exported(tmp_path / "run"), exported(straight))
    assert not list((tmp_path / "run").glob("*.new"))


def test_a_model_of_superseded_steps_is_replaced(tied_folder, reward_folder, tmp_path):
    module = KINDS["sft"](tied_folder, reward_folder)
    fit("sft", module, tmp_path, 4)
    of_four = exported(tmp_path)
    fit("sft", KINDS["sft"](tied_folder, reward_folder), tmp_path, 2, ckpt_path=checkpoint(module, tmp_path, 2))
    assert not same(exported(tmp_path), of_four)


class Warn(L.Callback):
    """Gives a warning in every step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        report_warning(trainer, f"odd in step {batch_idx}")


@pytest.mark.filterwarnings("ignore:odd in step")
def test_the_record_keeps_what_no_later_attempt_superseded(tied_folder, reward_folder, tmp_path):
    module = KINDS["grpo"](tied_folder, reward_folder)
    fit("grpo", module, tmp_path, 5, Warn())
    before = status(tmp_path)
    (tmp_path / "status.json").unlink()
    fit("grpo", KINDS["grpo"](tied_folder, reward_folder), tmp_path, 3, ckpt_path=checkpoint(module, tmp_path, 2))

    after = status(tmp_path)
    assert before["warnings"] == [f"odd in step {step}" for step in range(5)]
    assert after["warnings"] == before["warnings"][:2]
    assert after["first_rollout"] == before["first_rollout"]
    assert (after["step"], after["max_steps"]) == (3, 3)


class Buffers(FrozenLeftOut):
    """Trained and frozen parts with buffers; the frozen body is in use under two names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.body = nn.Sequential(nn.Linear(2, 2), nn.Module()).requires_grad_(False)
        self.body[1].register_buffer("angles", torch.ones(3))
        self.body_again = self.body
        self.head = nn.Linear(2, 1)
        self.head.register_buffer("scale", torch.ones(()))
        self.range = nn.Module()
        self.range.register_buffer("lower", torch.zeros(()))


def test_buffers_of_frozen_parts_are_left_out_and_all_others_saved():
    module = Buffers()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {"steps", "head.weight", "head.bias", "head.scale", "range.lower"}
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])


def test_a_folder_that_only_looks_like_an_export_is_replaced(tied_folder, reward_folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "half").write_text("")
    (tmp_path / "model.new").mkdir()
    fit("sft", KINDS["sft"](tied_folder, reward_folder), tmp_path, 2)
    assert (tmp_path / "model" / "model.safetensors").is_file() and not (tmp_path / "model" / "half").exists()
    assert ExportModel(tmp_path / "model").folder == tmp_path / "model"
