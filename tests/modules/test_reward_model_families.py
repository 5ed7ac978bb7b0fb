"""From a pretrained body to three GRPOVI steps: a reward model is trained, exported, read elsewhere, used."""

import json

import pytest
import torch
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from models.tiny_classifiers import save_body
from modules.grpo_runs import grpo, quiet, scalars, train, trainer
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.data import PreferenceDataModule
from grpovi_lightning.models import LoRA
from grpovi_lightning.modules import RewardModelModule
from grpovi_lightning.rewards import RewardModel
from grpovi_lightning.rewards.models import classifier_scores
from grpovi_lightning.rewards.sequences import pair_rows

PROMPTS = ["write about the fox", "a cat", "the old house in red"]
PAIRS = [
    {"prompt": p, "chosen": f"the happy {w} sings", "rejected": f"the sad {w} sees it"}
    for p in PROMPTS
    for w in ("fox", "dog", "cat", "tree")
]
FAMILIES = ["llama", "gemma2", "gpt_neox", "bert"]


def batch():
    return {name: [pair[name] for pair in PAIRS] for name in PAIRS[0]}


def fitted(path, folder, lora=None, steps=4, **settings):
    """A reward model trained on the pairs."""
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    module = RewardModelModule(path, lora=lora, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3), **settings)
    with quiet():
        trainer(folder / "run", steps).fit(module, PreferenceDataModule(str(file), batch_size=6, seed=1))
    return module


@pytest.mark.parametrize("lora", [None, LoRA(r=4, lora_alpha=8.0)], ids=["whole", "LoRA"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_gives_its_scores_and_grpovi_trains_on_them(
    family, lora, policy_folder, tiny_tokenizer, tmp_path
):
    start = save_body(family, tiny_tokenizer, tmp_path / "start")
    module = fitted(start, tmp_path, lora)
    module.save_pretrained(str(tmp_path / "reward"))

    rows = pair_rows(module.tokenizer, batch())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    with torch.no_grad():
        trained = classifier_scores(module.model.eval(), rows)
        expected = torch.cat([plain(torch.tensor([row])).logits[:, 0] for row in rows])
    assert float(expected[: len(PAIRS)].mean() - expected[len(PAIRS) :].mean()) > 0.01
    torch.testing.assert_close(trained, expected, atol=2e-5, rtol=1e-4)
    assert not [name for name in load_file(tmp_path / "reward" / "model.safetensors") if "lora" in name]
    assert not (tmp_path / "reward" / "adapter_config.json").exists()

    policy = grpo(policy_folder, RewardModel(str(tmp_path / "reward")), adjustment=VarianceIncrease())
    record = train(policy, tmp_path / "grpovi", 3)
    assert all(bool(outcome.rewards.isfinite().all()) for outcome in record.outputs)
    assert max(scalars(tmp_path / "grpovi")["adjustment/frac_groups_changed"].values()) > 0
    assert any(not torch.equal(value, record.before[name]) for name, value in record.weights[-1].items())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_adapters_and_head_are_what_lora_trains(family, tiny_tokenizer, tmp_path):
    start = save_body(family, tiny_tokenizer, tmp_path / "start")
    module = fitted(start, tmp_path, LoRA(r=4), steps=1)
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    head = {"score.weight"} if family == "llama" else {"classifier.weight", "classifier.bias"}
    assert {name for name in trained if "lora_" not in name} == head
    assert len(trained) > len(head)

    again = RewardModelModule(start)
    again.configure_model()
    before = dict(again.model.state_dict())
    after = {name.replace(".base_layer", ""): value for name, value in module.model.state_dict().items()}
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == head


def test_a_resumed_lora_run_is_the_run_that_was_never_stopped(tiny_tokenizer, tmp_path):
    start = save_body("llama", tiny_tokenizer, tmp_path / "start")
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))

    def run(name, steps, **where):
        module = RewardModelModule(start, lora=LoRA(r=4), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
        with quiet():
            trainer(tmp_path / name, steps, checkpoint_every=2, max_epochs=-1).fit(
                module, PreferenceDataModule(str(file), batch_size=6, seed=1), **where
            )
        return module

    straight = run("straight", 4)
    run("stopped", 2)
    resumed = run("stopped", 4, ckpt_path=tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)

    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    saved = torch.load(tmp_path / "straight" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name or "score" in name for name in saved if name.startswith("model."))
