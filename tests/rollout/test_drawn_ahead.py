"""Completions that a server draws while the policy is trained on those of the step before."""

import copy
import json
import math
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from helpers.plain_server import SECRET, PlainModel, serving
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from helpers.two_processes import run_in_two_processes
from modules.grpo_runs import completion_tokens, graded, grpo, identical, prompt_data, scalars, train

from grpovi_lightning.distributed import gather_objects
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA, PretrainedCausalLM
from grpovi_lightning.rollout import VLLMDecoder
from grpovi_lightning.rollout.vllm import OneStepAhead, VLLMServer
from grpovi_lightning.rollout.vllm.requests import Request
from grpovi_lightning.selection import DynamicResampling

CAP = 1.05
LORA = LoRA(r=4)


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("GRPOVI_VLLM_TOKEN", SECRET)


def module(policy_folder, url, lora=None, engine=None, **settings):
    decoder = VLLMDecoder(engine or OneStepAhead(VLLMServer(url, retry_seconds=30.0)), importance_sampling_cap=CAP)
    source = PretrainedCausalLM(str(policy_folder), lora=lora)
    return grpo(policy_folder, policy=source, decoder=decoder, **settings)


def run(policy_folder, folder, steps=4, lora=None, callbacks=(), server=None, **settings):
    """A run with a server of its own."""
    with serving(PlainModel(policy_folder)) if server is None else nullcontext(server) as server:
        torch.manual_seed(0)  # adapters begin alike
        trained = module(policy_folder, server.url, lora)
        every = {"checkpoint_every": 1, "validate_every": 2, "max_epochs": -1}
        return train(trained, folder, steps, *callbacks, **every | settings)


class WaitsForTheUpdate(PlainModel):
    """Answers a request that is drawn ahead when the update beside it has been made."""

    def __init__(self, folder):
        super().__init__(folder)
        self.updated, self.answered = threading.Event(), 0

    def complete(self, request):
        self.answered += 1
        if self.answered > 1:
            assert self.updated.wait(20), "the update was not made meanwhile"
            self.updated.clear()
        return super().complete(request)


class UpdateMade(L.Callback):
    """Says so to a model, before anything is saved."""

    def __init__(self, model):
        self.model = model

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.model.updated.set()


def test_the_server_draws_while_the_update_is_made(policy_folder, tmp_path):
    model = WaitsForTheUpdate(policy_folder)
    with serving(model) as server:
        found = run(policy_folder, tmp_path, 3, server=server, callbacks=[UpdateMade(model)], validate_every=None)
    assert len(found.outputs) == 3
    assert model.answered == 4  # the last is what a continued run would begin with


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "an adapter"])
def test_a_step_learns_from_the_policy_of_the_step_before_and_corrects_for_it(policy_folder, tmp_path, lora):
    found = run(policy_folder, tmp_path / "ahead", 4, lora)

    # Drawn once more by a server that is asked for the policy as it was then.
    torch.manual_seed(0)
    with serving(PlainModel(policy_folder)) as server:
        plain = module(policy_folder, server.url, lora, VLLMServer(server.url))
        plain.configure_model()
        weights = [found.before, *found.weights]
        for step, outcome in enumerate(found.outputs):
            sampled_by, trained = weights[max(step - 1, 0)], weights[step]
            plain.policy.model.load_state_dict(sampled_by, strict=lora is None)
            again = plain.sample(found.prompts[step], 4, step)
            assert again.completion_ids.tolist() == outcome.rollout.completion_ids.tolist()
            assert torch.equal(again.old_logprobs, outcome.rollout.old_logprobs)
            plain.policy.model.load_state_dict(trained, strict=lora is None)
            with torch.no_grad():
                now = plain.policy.completion_statistics(again, 0.9).logprobs
            ratios = (now - again.old_logprobs).exp()[again.completion_mask]
            metrics = {name: values[step] for name, values in scalars(tmp_path / "ahead").items() if step in values}
            assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(float(ratios.max()), rel=1e-3)
            assert (float(ratios.max()) > 1.001) == (step > 0)


def test_the_factors_of_an_update_are_the_ratios_to_the_policy_that_drew_up_to_the_cap(policy_folder):
    updater = module(policy_folder, "http://127.0.0.1:9").updater
    mask, before = torch.tensor([[True, True, False]]), torch.tensor([[-1.0, -2.0, 0.0]])
    rollout = SimpleNamespace(completion_mask=mask, old_logprobs=before)
    now = torch.tensor([[-1.2, -1.0, 0.0]])
    old, factors = updater.old_policy(SimpleNamespace(old_logprobs=None, rollout=rollout), now)
    assert torch.equal(old, now)
    assert factors[0].tolist() == pytest.approx([math.exp(-0.2), CAP, 1.0])


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "an adapter"])
def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_stopped(policy_folder, tmp_path, lora):
    straight = run(policy_folder, tmp_path / "straight", 5, lora)
    stopped = tmp_path / "stopped"
    run(policy_folder, stopped, 3, lora)
    last = stopped / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["drawn_ahead"]

    resumed = run(policy_folder, stopped, 5, lora, ckpt_path=last)  # by a server that never saw the weights before

    tokens = [completion_tokens(outcome) for outcome in straight.outputs[3:]]
    assert [completion_tokens(outcome) for outcome in resumed.outputs] == tokens
    assert identical(resumed.weights[-1], straight.weights[-1])
    assert scalars(stopped) == scalars(tmp_path / "straight")


class DiesOnce(WaitsForTheUpdate):
    """Is replaced by a model without weights while it draws ahead, when the policy has changed."""

    def complete(self, request):
        if self.answered == 1:
            assert self.updated.wait(20)
            self.server.model = PlainModel(self.folder)
            raise SystemExit  # the connection ends without an answer
        return super().complete(request)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_a_server_that_comes_back_meanwhile_gets_the_weights_of_before_the_update(policy_folder, tmp_path):
    undisturbed = run(policy_folder, tmp_path / "undisturbed", 3, validate_every=None)
    model = DiesOnce(policy_folder)
    with serving(model) as server:
        model.server, model.folder = server, policy_folder
        made = [UpdateMade(model)]
        found = run(policy_folder, tmp_path / "disturbed", 3, server=server, callbacks=made, validate_every=None)
        assert server.model is not model
    assert identical(found.weights[-1], undisturbed.weights[-1])


class FailsAt(PlainModel):
    """Cannot answer one of its requests."""

    def __init__(self, folder, number):
        super().__init__(folder)
        self.number, self.answered = number, 0

    def complete(self, request):
        self.answered += 1
        if self.answered == self.number:
            raise RuntimeError("no memory left")
        return super().complete(request)


@pytest.mark.parametrize(("number", "steps"), [(3, 3), (4, 3)], ids=["in the middle", "beside the last step"])
def test_a_step_is_saved_although_the_completions_of_the_next_one_could_not_be_drawn(
    policy_folder, tmp_path, caplog, number, steps
):
    with serving(FailsAt(policy_folder, number)) as server:
        found = run(policy_folder, tmp_path, steps, server=server, validate_every=None)
    assert len(found.outputs) == steps  # what is missing was drawn when it was needed
    assert (tmp_path / "checkpoints" / f"step={steps}.ckpt").exists()
    saved = torch.load(tmp_path / "checkpoints" / f"step={number - 1}.ckpt", weights_only=True)["drawn_ahead"]
    assert json.loads(saved)["rows"] == []
    (line,) = [record.message for record in caplog.records if "drawn when it begins" in record.message]
    assert "RuntimeError: no memory left" in line and "\n" not in line


@pytest.mark.parametrize("state", ["x", "[]", '{"rows": 3}', '{"rows": [[1]], "settings": {}}', "[" * 100_000])
def test_what_is_no_state_is_refused_in_one_line(state):
    with pytest.raises(UserError, match="checkpoint: what was drawn ahead cannot be read"):
        OneStepAhead().take_drawn_ahead(state)


def test_a_checkpoint_without_any_leaves_nothing_of_before_and_a_module_can_be_copied(policy_folder):
    made = module(policy_folder, "", engine=OneStepAhead(Unasked()))
    engine, policy = made.engine.decoder.engine, SimpleNamespace(is_sharded=False)
    engine.begin(policy, request_of(3, 4))
    again = copy.deepcopy(made).engine.decoder.engine
    assert again.complete(policy, request_of(3, 4)) == drawn(request_of(3, 4))
    again.take_drawn_ahead(None)
    with pytest.raises(AssertionError, match="drawn anew"):
        again.complete(policy, request_of(3, 4))


def request_of(*prompts):
    tokens = [[prompt, prompt + 1] for prompt in prompts]
    seeds = [10 * prompt + member for prompt in prompts for member in range(2)]
    return Request(tokens, seeds, 4, [1], False, 1.0, 0, 1.0, 0.0, 1.0)


def drawn(request):
    return [([seed], [-float(seed) / 7]) for seed in request.seeds]


class Unasked(VLLMServer):
    """Answers what is begun, and nothing else."""

    def completing(self, policy, request):
        return lambda: drawn(request)

    def complete(self, policy, request):
        raise AssertionError("drawn anew")


def save_and_go_on(rank, folder, sharded):
    engine, policy = OneStepAhead(Unasked()), SimpleNamespace(is_sharded=sharded)
    engine.begin(policy, request_of(*([3, 4], [5, 6])[rank]))
    state = engine.drawn_ahead()
    assert gather_objects(state) == [state] * 2
    again = OneStepAhead(Unasked())
    again.take_drawn_ahead(state)
    for prompts in ([[5, 4], [3, 6]][rank], [3, 4, 5, 6]):  # dealt otherwise, and all in one process
        assert again.complete(policy, request_of(*prompts)) == drawn(request_of(*prompts))
    if sharded:  # what one of them lacks, both have drawn: the weights are gathered by both
        with pytest.raises(AssertionError, match="drawn anew"):
            again.complete(policy, request_of(3, 9 if rank else 4))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole weights", "sharded weights"])
def test_what_two_processes_had_drawn_serves_any_number_of_processes(tmp_path, sharded):
    run_in_two_processes(save_and_go_on, tmp_path, sharded)


def test_what_was_not_begun_is_drawn_when_it_is_asked_for():
    engine, policy = OneStepAhead(Unasked()), SimpleNamespace(is_sharded=False)
    engine.begin(policy, request_of(3, 4))
    for other in (request_of(3, 5), Request(**request_of(3, 4).as_json() | {"temperature": 0.5})):
        with pytest.raises(AssertionError, match="drawn anew"):
            engine.complete(policy, other)
    assert engine.complete(policy, request_of(4, 3)) == drawn(request_of(4, 3))  # what was begun is still there


def test_what_cannot_be_drawn_ahead_is_refused_before_anything_is_loaded(policy_folder, tmp_path):
    def refused(data, match, **settings):
        made = grpo(policy_folder, graded, **settings)
        trainer = L.Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False)
        with pytest.raises(UserError, match=match):
            made.check_settings(trainer, data)

    ahead, data = OneStepAhead(VLLMServer()), prompt_data(tmp_path)
    uncorrected = VLLMDecoder(ahead, importance_sampling_cap=None)
    refused(data, "got no importance_sampling, but completions come from weights", decoder=uncorrected)
    spare = prompt_data(tmp_path, spare_prompts_per_step=3)
    refused(spare, "got resampling DynamicResampling", decoder=VLLMDecoder(ahead), resampling=DynamicResampling())
    refused(L.LightningDataModule(), "got the data module LightningDataModule", decoder=VLLMDecoder(ahead))
