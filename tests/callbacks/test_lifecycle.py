import pytest
import torch
from modules.grpo_runs import graded, grpo, identical, scalars, train, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.callbacks import EvaluateAtStart, ExportModel
from grpovi_lightning.errors import TrainingError


def test_the_initial_policy_is_evaluated_once_before_the_first_update(policy_folder, tmp_path):
    calls = []

    def counting(prompts, completions, completion_ids, **columns):
        calls.append(len(completions))
        return graded(prompts, completions, completion_ids)

    train(grpo(policy_folder, counting), tmp_path, 2, validate_every=2)

    assert calls == [2, 1, 12, 12, 2, 1]
    assert sorted(scalars(tmp_path)["eval/reward"]) == [0, 2]


def test_the_first_evaluation_changes_nothing_in_the_training(policy_folder, tmp_path):
    with_it = train(grpo(policy_folder), tmp_path / "with", 3, validate_every=2)
    without = train(grpo(policy_folder), tmp_path / "without", 3)

    assert identical(with_it.weights[-1], without.weights[-1])
    first, second = scalars(tmp_path / "with"), scalars(tmp_path / "without")
    assert {tag: first[tag] for tag in second} == second


def test_a_run_without_held_out_prompts_is_not_evaluated(policy_folder, tmp_path):
    train(grpo(policy_folder), tmp_path, 1, EvaluateAtStart())

    assert not any(tag.startswith("eval/") for tag in scalars(tmp_path))


def test_a_resumed_run_is_not_evaluated_at_its_start_again(policy_folder, tmp_path):
    every = {"validate_every": 2, "checkpoint_every": 3, "max_epochs": -1}
    train(grpo(policy_folder), tmp_path, 3, **every)
    train(grpo(policy_folder), tmp_path, 5, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **every)

    assert sorted(scalars(tmp_path)["eval/reward"]) == [0, 2, 4]


def test_the_exported_folder_loads_in_transformers_with_the_trained_weights(policy_folder, tmp_path):
    module = grpo(policy_folder)
    train(module, tmp_path, 2, ExportModel(tmp_path / "model"))

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")

    assert identical(dict(model.named_parameters()), weights(module))
    assert tokenizer.get_vocab() == module.policy.tokenizer.get_vocab()
    assert model.generate(**tokenizer(["the fox"], return_tensors="pt"), max_new_tokens=3).shape[1] <= 5


def test_a_run_that_failed_exports_no_model(policy_folder, tmp_path):
    module = grpo(policy_folder, optimizer=lambda p: torch.optim.SGD(p, lr=1e30))

    with pytest.raises(TrainingError):
        train(module, tmp_path, 3, ExportModel(tmp_path / "model"))

    assert not (tmp_path / "model").exists()
