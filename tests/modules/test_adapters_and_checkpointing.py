"""Policies with LoRA adapters, and with gradient checkpointing: real runs."""

import lightning as L
import pytest
import torch
from grpo_runs import grpo, identical, prompt_data, scalars, train, trainer
from models.tiny_models import language_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpovi_lightning.callbacks import ExportModel
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA, PretrainedCausalLM, SharedReference
from grpovi_lightning.structures import PromptBatch

ALL = ["q_proj", "v_proj", "down_proj", "lm_head", "embed_tokens"]


def with_lora(policy_folder, **settings):
    return PretrainedCausalLM(str(policy_folder), lora=LoRA(r=4, lora_alpha=8.0, **settings))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


class TestLoRA:
    @pytest.fixture(scope="class")
    def run(self, policy_folder, tmp_path_factory):
        folder = tmp_path_factory.mktemp("lora")
        module = grpo(policy_folder, policy=with_lora(policy_folder))
        recorded = train(module, folder, checkpoint_every=2)
        return module, recorded, folder

    def test_only_adapters_train_and_they_do(self, run):
        _, recorded, _ = run
        last = recorded.weights[-1]
        changed = {name for name in last if not torch.equal(last[name], recorded.before[name])}
        assert changed == {name for name in last if "lora_" in name} and changed

    def test_the_reference_is_the_policy_without_its_adapters(self, run, policy_folder):
        module, _, folder = run
        assert isinstance(module.reference, SharedReference)
        prompts = PromptBatch(["the fox", "a sad cat by the river"], torch.arange(2), {})
        rollout = module.engine.generate(module.policy, prompts, 2, 1, 0)
        with torch.no_grad():
            found = module.updater.logprobs(module.reference, rollout)
            untouched = PretrainedCausalLM(str(policy_folder)).load().completion_statistics(rollout, 0.9).logprobs
            trained = module.updater.logprobs(module.policy, rollout)
        torch.testing.assert_close(found, untouched, atol=1e-5, rtol=0)
        assert (trained - untouched).abs().max() > 1e-4
        assert scalars(folder)["kl"][0] == pytest.approx(0.0, abs=1e-9)
        assert scalars(folder)["kl"][2] > 1e-7

    def test_the_reference_costs_no_second_copy_of_the_weights(self, run):
        module, _, _ = run
        counted = sum(p.numel() for p in module.parameters())
        assert counted == sum(p.numel() for p in module.policy.parameters())

    def test_the_exported_model_is_a_plain_checkpoint_with_the_adapters_merged(self, run, tmp_path):
        module, _, _ = run
        module.save_pretrained(str(tmp_path / "model"))
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert not [name for name, _ in plain.named_parameters() if "lora" in name]
        ids = torch.arange(3, 11)[None]
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, module.policy.model(ids).logits, atol=1e-5, rtol=0)
        assert [name for name, _ in module.policy.named_parameters() if "lora" in name], "the policy keeps them"

    @pytest.mark.parametrize("targets", [["q_proj"], "all-linear", ["q_proj", "lm_head"], ["embed_tokens"], ALL])
    @pytest.mark.parametrize("tied", [True, False])
    def test_the_exported_model_computes_what_the_policy_does(self, tiny_tokenizer, tmp_path, tied, targets):
        language_model("llama", tiny_tokenizer, tie_word_embeddings=tied).save_pretrained(tmp_path)
        policy = with_lora(tmp_path, target_modules=targets).load()
        generator = torch.Generator().manual_seed(0)
        for name, weights in policy.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weights, std=0.3, generator=generator)

        policy.save_pretrained(tmp_path / "model")

        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        ids = torch.arange(3, 21)[None]
        with torch.no_grad():
            expected = policy.model(ids).logits
            torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4 * float(expected.std()), rtol=0)
            again = PretrainedCausalLM(str(tmp_path / "model")).load().model(ids).logits
        torch.testing.assert_close(again, plain(ids).logits)

    def test_checkpoints_hold_the_adapters_alone_and_a_run_goes_on_from_them(self, run, policy_folder, tmp_path):
        _, recorded, folder = run
        checkpoint = folder / "checkpoints" / "step=2.ckpt"
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert all("lora_" in name for name in state if name.startswith("policy."))
        assert any("lora_" in name for name in state)

        resumed = grpo(policy_folder, policy=with_lora(policy_folder))
        again = type(recorded)()
        trainer(tmp_path, 3, again).fit(resumed, prompt_data(tmp_path), ckpt_path=str(checkpoint), weights_only=True)

        assert identical(again.weights[-1], recorded.weights[-1])

    def test_a_layer_that_is_not_there_is_refused_in_one_line(self, policy_folder):
        with pytest.raises(UserError, match=r"lora: got target_modules \['q_projection'\]"):
            with_lora(policy_folder, target_modules=["q_projection"]).load()

    @pytest.mark.parametrize("settings", [{"r": 0}, {"lora_alpha": 0.0}, {"lora_alpha": float("nan")}])
    def test_settings_that_cannot_work_are_refused(self, settings):
        with pytest.raises(UserError, match="expected"):
            LoRA(**settings)


class TestStartingFromAnAdapter:
    @pytest.fixture(scope="class")
    def adapter(self, policy_folder, tmp_path_factory):
        """An adapter that was trained for two steps, as a run leaves it."""
        folder = tmp_path_factory.mktemp("first")
        train(grpo(policy_folder, policy=with_lora(policy_folder)), folder, 2, ExportModel(folder / "model"))
        return folder / "adapter"

    @pytest.fixture(scope="class")
    def run(self, policy_folder, adapter, tmp_path_factory):
        folder = tmp_path_factory.mktemp("second")
        module = grpo(policy_folder, policy=PretrainedCausalLM(str(policy_folder), adapter=str(adapter)))
        recorded = train(module, folder, 3, ExportModel(folder / "model"), checkpoint_every=2)
        return module, recorded, folder

    def test_the_adapter_goes_on_being_trained_and_is_written_anew(self, run, adapter):
        _, recorded, folder = run
        changed = {n for n, w in recorded.weights[-1].items() if not torch.equal(w, recorded.before[n])}
        assert changed == {n for n in recorded.before if ".default" in n} and changed
        before, after = (load_file(where / "adapter_model.safetensors") for where in (adapter, folder / "adapter"))
        assert before.keys() == after.keys() and not identical(before, after)

    def test_the_penalty_is_against_the_policy_with_the_adapter_as_it_was(self, run):
        module, _, folder = run
        assert isinstance(module.reference, SharedReference)
        kl = scalars(folder)["kl"]
        assert kl[0] == pytest.approx(0.0, abs=1e-9)
        assert kl[2] > 1e-7

    def test_the_run_is_that_of_its_merged_start(self, run, adapter, policy_folder, tmp_path):
        """Sampling from the model that the first run exported, merged, gives the same completions at step 0."""
        _, recorded, _ = run
        merged = train(grpo(adapter.with_name("model")), tmp_path, 1)
        assert merged.outputs[0].rollout.texts == recorded.outputs[0].rollout.texts

    def test_an_interrupted_run_goes_on_with_the_same_bits(self, run, adapter, policy_folder, tmp_path):
        _, recorded, folder = run
        checkpoint = folder / "checkpoints" / "step=2.ckpt"
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert all(".default" in name for name in state if name.startswith("policy."))

        resumed = grpo(policy_folder, policy=PretrainedCausalLM(str(policy_folder), adapter=str(adapter)))
        again = type(recorded)()
        trainer(tmp_path, 3, again).fit(resumed, prompt_data(tmp_path), ckpt_path=str(checkpoint), weights_only=True)

        assert identical(again.weights[-1], recorded.weights[-1])


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"init_lora_weights": "olora"}])
def test_a_run_with_options_of_peft_goes_on_with_the_same_bits(policy_folder, tmp_path, options):
    def module():
        return grpo(policy_folder, policy=with_lora(policy_folder, options=options))

    recorded = train(module(), tmp_path / "whole", 3, checkpoint_every=2)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step=2.ckpt"
    again = train(module(), tmp_path / "rest", 3, ckpt_path=str(checkpoint))
    assert identical(again.weights[-1], recorded.weights[-1])
    assert scalars(tmp_path / "whole")["kl"][0] == pytest.approx(0.0, abs=1e-8)


class PlainUpdates(L.Callback):
    """Notes before each step whether the updates are going to run prompts once."""

    def __init__(self):
        self.noted = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.noted.append(pl_module.policy.runs_prompts_once)


class TestGradientCheckpointing:
    def test_a_real_run_computes_activations_again_in_every_step(self, policy_folder, tmp_path):
        source = PretrainedCausalLM(str(policy_folder), gradient_checkpointing=True)
        updates = PlainUpdates()
        train(grpo(policy_folder, policy=source), tmp_path, 3, updates, validate_every=1)
        assert updates.noted == [False, False, False]

    def test_a_step_is_the_step_without_it(self, policy_folder, tmp_path):
        source = PretrainedCausalLM(str(policy_folder), gradient_checkpointing=True)
        module = grpo(policy_folder, policy=source, optimizer=sgd)
        recomputed = train(module, tmp_path / "recomputed")
        kept = train(grpo(policy_folder, optimizer=sgd), tmp_path / "kept")

        assert [o.rollout.texts for o in recomputed.outputs] == [o.rollout.texts for o in kept.outputs]
        for name, weights in kept.weights[-1].items():
            step = (weights - kept.before[name]).norm()
            assert (recomputed.weights[-1][name] - weights).norm() <= 1e-4 * step + 1e-9

    def test_updates_take_the_plain_path_and_rollouts_keep_their_cache(self, policy_folder):
        policy = PretrainedCausalLM(str(policy_folder), gradient_checkpointing=True).load()
        policy.train()
        assert policy.passes.capabilities.shares_prefix and not policy.runs_prompts_once
        assert policy.passes.capabilities.decodes_by_groups
        policy.eval()
        assert policy.runs_prompts_once
