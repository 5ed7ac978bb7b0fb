"""Server, client and decoder where vLLM is not installed: a plain model stands in its place, the rest is real.

What vLLM itself does is tested in `tests/with_vllm`.
"""

import copy
import http.client
import json
import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers.plain_server import SECRET, PlainModel, serving
from helpers.two_processes import run_in_two_processes
from torch.distributed.device_mesh import init_device_mesh

from grpovi_lightning.cli import check_fit
from grpovi_lightning.distributed import gather_objects
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.losses import TruncatedImportanceSampling
from grpovi_lightning.models import LoRA, PretrainedCausalLM, Sharding
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.modules.updater import UpdateSettings
from grpovi_lightning.rewards import RewardFunction
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig, VLLMDecoder, most_probable
from grpovi_lightning.rollout.vllm import ColocatedVLLM, VLLMServer, client, library
from grpovi_lightning.rollout.vllm.library import described
from grpovi_lightning.rollout.vllm.requests import Versions
from grpovi_lightning.rollout.vllm.server import VLLMHTTPServer
from grpovi_lightning.structures import PromptBatch

ENDS = [1, 5, 11, 20]
FAST = pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["all weights", "an adapter"])


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("GRPOVI_VLLM_TOKEN", SECRET)


@pytest.fixture
def model(policy_folder):
    return PlainModel(policy_folder)


def loaded(folder, lora=None):
    policy = PretrainedCausalLM(str(folder), lora=lora).load()
    policy.end_token_ids = ENDS
    return policy


def moved(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def generate(policy, url, step=2, choose=None, **settings):
    sampling = SamplingConfig(max_completion_length=6, temperature=0.8)
    decoder = VLLMDecoder(VLLMServer(url, **settings))
    engine = RolloutEngine(sampling, decoder, **({} if choose is None else {"choose": choose}))
    return engine.generate(policy, PromptBatch(["the red fox", "sad"], torch.tensor([7, 9]), {}), 3, 1, step)


def assert_is_of_the_policy(policy, rollout, temperature=0.8):
    with torch.no_grad():
        expected = policy.completion_statistics(rollout, temperature).logprobs
    torch.testing.assert_close(rollout.old_logprobs, expected, atol=1e-4, rtol=0)


@FAST
def test_weights_go_over_once_and_again_after_each_update(policy_folder, model, lora):
    policy = loaded(policy_folder, lora)
    with serving(model) as server:
        for _ in range(3):
            for step in (2, 3):
                assert_is_of_the_policy(policy, generate(policy, server.url, step))
            moved(policy)

    assert model.taken == (["base"] * 3 if lora is None else ["base", "adapter", "adapter", "adapter"])


def test_an_adapter_is_taken_away_for_a_policy_without(policy_folder, model):
    adapted = loaded(policy_folder, LoRA(r=4))
    moved(adapted)
    with serving(model) as server:
        generate(adapted, server.url)
        plain = loaded(policy_folder)
        assert_is_of_the_policy(plain, generate(plain, server.url))

    assert model.taken == ["base", "adapter", "adapter"]


def test_seeds_belong_to_seed_step_prompt_and_completion(policy_folder, model):
    policy = loaded(policy_folder)
    with serving(model) as server:
        first, again, other = (generate(policy, server.url, step) for step in (2, 2, 3))

    assert first.texts == again.texts != other.texts
    assert len(set(first.texts)) > 3


def test_the_most_probable_completion_has_one_text_at_every_step(policy_folder, model):
    policy = loaded(policy_folder)
    with serving(model) as server:
        first, other = (generate(policy, server.url, step, most_probable) for step in (2, 3))

    assert first.texts == other.texts
    assert len(set(first.texts)) == 2


def test_a_server_that_comes_back_without_weights_gets_them_again(policy_folder, model):
    policy = loaded(policy_folder)
    with serving(model) as server:
        port = server.server_address[1]
        before = generate(policy, server.url)
    found = []
    waiting = threading.Thread(target=lambda: found.append(generate(policy, f"http://127.0.0.1:{port}")))
    waiting.start()
    waiting.join(0.6)
    assert waiting.is_alive()
    with serving(PlainModel(policy_folder), port):
        waiting.join(60)

    assert found[0].texts == before.texts


def test_one_that_does_not_is_one_line_that_says_how_to_go_on(policy_folder, model):
    with serving(model) as server:
        url = server.url
    with pytest.raises(TrainingError, match=r"no answer for 0.5 s \(ConnectionRefusedError.*last checkpoint") as error:
        generate(loaded(policy_folder), url, retry_seconds=0.5)
    assert "\n" not in str(error.value)
    source = PretrainedCausalLM(str(policy_folder))
    with pytest.raises(UserError, match=r"no answer for 0.5 s .*; start it: python -m"):
        VLLMDecoder(VLLMServer(url, retry_seconds=0.5)).check(source, SamplingConfig())


def test_weights_that_another_run_keeps_replacing_stop_this_one(policy_folder, model, monkeypatch):
    monkeypatch.setattr(PlainModel, "take_base", lambda self, version, tensors: None)
    with serving(model) as server, pytest.raises(TrainingError, match="replaced this run's 20 times in a row"):
        generate(loaded(policy_folder), server.url)


def test_sharded_weights_that_the_server_lost_are_named_where_another_process_had_sent_them(
    policy_folder, model, monkeypatch
):
    monkeypatch.setattr(client, "_HANDOVERS", 2)
    monkeypatch.setattr(client, "handed_over", lambda policy, rank: (Versions("of the first process"), None))
    with serving(model) as server, pytest.raises(TrainingError, match="it lost the weights that the first process had"):
        generate(loaded(policy_folder), server.url)


def test_a_failure_in_the_server_is_one_line_here_and_the_server_goes_on(policy_folder, model, monkeypatch, capfd):
    policy = loaded(policy_folder)
    with serving(model) as server:
        with monkeypatch.context() as patch:
            patch.setattr(PlainModel, "complete", lambda self, request: 1 / 0)
            with pytest.raises(TrainingError, match="ZeroDivisionError: division by zero"):
                generate(policy, server.url)
        model.max_model_len = 3
        with pytest.raises(UserError, match="too long for the room"):
            generate(policy, server.url)
        model.max_model_len = 100
        assert_is_of_the_policy(policy, generate(policy, server.url))
    assert "ZeroDivisionError" in capfd.readouterr().err  # with its traceback, where the server runs


def test_completions_that_stop_without_an_end_are_one_line(policy_folder, model, monkeypatch):
    monkeypatch.setattr(PlainModel, "complete", lambda self, request: [([3, 4], [-1.0, -1.0])] * 6)
    with (
        serving(model) as server,
        pytest.raises(TrainingError, match=r"completion 0: .* 2 tokens without an end token, expected 6"),
    ):
        generate(loaded(policy_folder), server.url)


def asked(server, method, path, body=b"", headers=None):
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.request(method, path, body, {"Authorization": f"Bearer {SECRET}"} | (headers or {}))
    response = connection.getresponse()
    return response.status, json.loads(response.read())["error" if response.status != 200 else "config"]


def test_without_the_secret_nothing_is_answered_or_read(model, monkeypatch):
    with serving(model) as server:
        for given in ("", "Bearer", f"Bearer {SECRET}x", f"Basic {SECRET}", "Bearer \xfc"):
            status, error = asked(server, "PUT", "/weights/abc", b"x" * 100, {"Authorization": given})
            assert status == 401 and "GRPOVI_VLLM_TOKEN" in error
        monkeypatch.setenv("GRPOVI_VLLM_TOKEN", "another-one-than-there")
        with pytest.raises(UserError, match="wrong token; set the same GRPOVI_VLLM_TOKEN"):
            VLLMServer(server.url).check(PretrainedCausalLM("unused"))
    assert model.taken == []


PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."
BAD = {
    "no path": ("GET", "/weights", b"", 404),
    "a path that leads elsewhere": ("PUT", "/weights/../../etc/passwd", b"", 404),
    "no JSON": ("POST", "/completions", b"no JSON", 400),
    "no request": ("POST", "/completions", b'{"base": null, "adapter": null, "request": {}}', 400),
    "a pickle": ("PUT", "/weights/abc", PICKLE, 400),
    "other weights than announced": ("PUT", "/weights/abc", (2).to_bytes(8, "little") + b"{}", 400),
    "an adapter without settings": ("PUT", "/adapter/abc", b"", 400),
}


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD.values(), ids=BAD)
def test_what_is_no_request_is_refused_in_one_line_and_changes_nothing(model, method, path, body, status):
    with serving(model) as server:
        found, error = asked(server, method, path, body)
        assert found == status and error and "\n" not in error
        assert asked(server, "GET", "/model") == (200, described(model.model.config))
    assert model.taken == []


def test_a_server_with_another_model_is_refused_before_anything_is_loaded(policy_folder, tmp_path, model):
    config = json.loads((policy_folder / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with serving(model) as server:
        decoder = VLLMDecoder(VLLMServer(server.url))
        decoder.check(PretrainedCausalLM(str(policy_folder)), SamplingConfig())
        with pytest.raises(UserError, match=r"its model has rms_norm_eps 1e-06, the policy 0\.5; start it with"):
            decoder.check(PretrainedCausalLM(str(other)), SamplingConfig())


@pytest.mark.parametrize("value", [None, "short", "with spaces in the middle", "ünicode-ünicode-ünicode"])
def test_a_secret_that_is_none_is_asked_for(policy_folder, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("GRPOVI_VLLM_TOKEN")
    else:
        monkeypatch.setenv("GRPOVI_VLLM_TOKEN", value)
    with pytest.raises(UserError, match=r"GRPOVI_VLLM_TOKEN: got .*, expected a secret of at least 16 ASCII") as error:
        VLLMServer().check(PretrainedCausalLM(str(policy_folder)))
    assert value is None or value not in str(error.value)


def test_a_port_that_is_taken_is_one_line(model):
    with serving(model) as server, pytest.raises(UserError, match=r"cannot listen on 127.0.0.1:\d+: .* --port"):
        VLLMHTTPServer(("127.0.0.1", server.server_address[1]), SECRET)


@pytest.mark.parametrize("url", ["127.0.0.1:8017", "ftp://a:1", "http://", "http://a:1/path"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UserError, match="url: got"):
        VLLMServer(url)


def test_where_vllm_is_missing_the_colocated_one_says_so_before_anything_is_loaded(policy_folder, monkeypatch):
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vllm is not installed here; see docs/vllm"):
        VLLMDecoder().check(PretrainedCausalLM(str(policy_folder)), SamplingConfig())


def test_what_means_something_else_to_vllm_is_refused():
    with pytest.raises(UserError, match=r"got min_p 0.1 with top_p 0.9, which vLLM applies in the other order"):
        VLLMDecoder().check(PretrainedCausalLM("unused"), SamplingConfig(min_p=0.1, top_p=0.9))
    with pytest.raises(UserError, match="ColocatedVLLM: got 2 training processes, expected one; let them share"):
        VLLMDecoder().check_processes(2)
    VLLMDecoder(VLLMServer()).check_processes(2)
    with pytest.raises(UserError, match="kv_cache_gb: got 0, expected a number above 0"):
        ColocatedVLLM(kv_cache_gb=0)
    with pytest.raises(UserError, match="lora_rank: got -1, expected at least 0"):
        ColocatedVLLM(lora_rank=-1)
    with pytest.raises(UserError, match="options: got 'trust_remote_code', expected some of block_size, enable"):
        ColocatedVLLM(options={"max_num_seqs": 8, "trust_remote_code": True})


def of_module(policy_folder, decoder, **updates):
    source, reward = PretrainedCausalLM(str(policy_folder)), RewardFunction(lambda **_: [])
    return GRPOModule(source, reward, decoder=decoder, updates=UpdateSettings(**updates)).updater.settings


def test_updates_are_corrected_by_default_with_vllm_and_with_it_alone(policy_folder):
    correction = of_module(policy_folder, VLLMDecoder()).importance_sampling
    assert isinstance(correction, TruncatedImportanceSampling) and correction.cap == 2.0
    own = TruncatedImportanceSampling(1.5)
    assert of_module(policy_folder, VLLMDecoder(), importance_sampling=own).importance_sampling is own
    assert of_module(policy_folder, VLLMDecoder(importance_sampling_cap=None)).importance_sampling is None
    assert of_module(policy_folder, None).importance_sampling is None


@pytest.mark.parametrize("name", ["colocated", "server", "ahead"])
def test_the_overlays_that_are_shipped_are_valid(name, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    check_fit(["--config", "experiments/quickstart/grpo.yaml", "--config", f"experiments/vllm/{name}.yaml"])


def sample_sharded_policies(rank, folder, policy_folder, lora):
    os.environ["GRPOVI_VLLM_TOKEN"] = SECRET
    torch.manual_seed(0)  # adapters begin alike
    whole = loaded(policy_folder, LoRA(r=4) if lora else None)
    policy = copy.deepcopy(whole)
    Sharding().spread(policy, init_device_mesh("cpu", (2,)), "32-true")
    model = PlainModel(policy_folder) if rank == 0 else None
    with serving(model) if model else nullcontext() as server:
        (url,) = gather_objects(server.url if server else None)[:1]
        for step in range(3):
            rollout = generate(policy, url, step)
            assert_is_of_the_policy(whole, rollout)
            assert gather_objects(rollout.texts) == [rollout.texts] * 2
            for trained in (whole, policy):
                with torch.no_grad():
                    for parameter in trained.parameters():
                        parameter.add_(0.03 * parameter.requires_grad)
        gather_objects(None)  # the other process may still be asking
        assert model is None or model.taken == (["base", *["adapter"] * 3] if lora else ["base"] * 3)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "an adapter"])
def test_the_first_process_hands_over_weights_that_processes_share(tmp_path, policy_folder, lora):
    run_in_two_processes(sample_sharded_policies, tmp_path, str(policy_folder), lora)
