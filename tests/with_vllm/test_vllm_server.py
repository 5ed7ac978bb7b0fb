import http.client
import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from with_vllm.policies import eager, generate, loaded, moved
from with_vllm.servers import SECRET, free_port, serving, started

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.models import LoRA, PretrainedCausalLM
from grpovi_lightning.rollout.vllm import VLLMDecoder, VLLMServer


@pytest.fixture(scope="module")
def url(vllm_policy_folder):
    with serving(vllm_policy_folder, "--lora_rank", 4) as found:
        yield found


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("GRPOVI_VLLM_TOKEN", SECRET)


def difference(policy, rollout):
    with torch.no_grad():
        expected = policy.completion_statistics(rollout, 1.0).logprobs
    return float((rollout.old_logprobs - expected)[rollout.completion_mask].abs().max())


def test_after_each_of_five_updates_the_server_has_the_weights(vllm_policy_folder, url):
    policy, decoder = loaded(vllm_policy_folder), VLLMDecoder(VLLMServer(url))
    found = []
    for _ in range(6):
        found.append(difference(policy, generate(policy, decoder)))
        moved(policy)
    print("largest differences", found)
    assert max(found) < 1e-3


def test_adapters_travel_alone_and_one_of_higher_rank_is_merged(vllm_policy_folder, url, monkeypatch):
    sent = []
    asked = VLLMServer._asked
    monkeypatch.setattr(VLLMServer, "_asked", lambda self, *args: sent.append(args[1]) or asked(self, *args))
    for rank, travels in {4: "adapter", 16: "weights"}.items():
        policy, decoder = loaded(vllm_policy_folder, lora=LoRA(r=rank)), VLLMDecoder(VLLMServer(url))
        assert difference(policy, generate(policy, decoder)) < 1e-3
        sent.clear()
        for _ in range(2):
            moved(policy)
            assert difference(policy, generate(policy, decoder)) < 1e-3
        assert [path.split("/")[1] for path in sent] == ["completions", travels, "completions"] * 2


def test_it_completes_as_the_colocated_one_does(vllm_policy_folder, url):
    policy = loaded(vllm_policy_folder)
    here, there = (generate(policy, VLLMDecoder(engine)) for engine in (eager(), VLLMServer(url)))

    assert here.texts == there.texts
    torch.testing.assert_close(here.old_logprobs, there.old_logprobs, atol=1e-5, rtol=0)


def test_processes_with_equal_weights_share_a_copy_and_others_take_turns(vllm_policy_folder, url):
    policies = [loaded(vllm_policy_folder) for _ in range(4)]
    for policy in policies[2:]:
        moved(policy)
    with ThreadPoolExecutor(4) as pool:
        decoders = [VLLMDecoder(VLLMServer(url)) for _ in policies]
        rollouts = list(pool.map(lambda pair: generate(*pair), zip(policies, decoders, strict=True)))

    assert max(difference(*pair) for pair in zip(policies, rollouts, strict=True)) < 1e-3
    assert rollouts[0].texts == rollouts[1].texts != rollouts[2].texts == rollouts[3].texts


def asked(url, method, path, body=b"", token=SECRET, **headers):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    headers = {"Authorization": f"Bearer {token}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize("token", ["", SECRET[:-1], SECRET + "x", "ü" * 20])
def test_without_the_token_nothing_is_answered(url, token):
    for method, path in (("GET", "/model"), ("PUT", "/weights/a"), ("POST", "/completions")):
        status, answer = asked(url, method, path, b"", token.encode().decode("latin-1"))
        assert (status, list(answer)) == (401, ["error"])


BAD = {
    "no path": ("GET", "/weights", b"", 404),
    "no JSON": ("POST", "/completions", b"no JSON", 400),
    "no request": ("POST", "/completions", b'{"base": null, "adapter": null, "request": {}}', 400),
    "a pickle": ("PUT", "/weights/abc", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", 400),
    "other weights than announced": ("PUT", "/weights/abc", (2).to_bytes(8, "little") + b"{}", 400),
    "an adapter without settings": ("PUT", "/adapter/abc", b"", 400),
}


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD.values(), ids=BAD)
def test_what_is_no_request_is_refused_in_one_line_and_the_server_goes_on(url, method, path, body, status):
    found, answer = asked(url, method, path, body)

    assert found == status
    assert answer["error"] and "\n" not in answer["error"]
    assert asked(url, "GET", "/model")[0] == 200


def test_a_policy_of_another_shape_is_refused_although_vllm_would_take_it(vllm_policy_folder, tmp_path, url):
    from helpers.tiny_checkpoints import save_policy

    other = save_policy(tmp_path / "other", vllm_policy_folder, head_dim=64)
    with pytest.raises(UserError, match="its model has head_dim 32, the policy 64; start it with the policy's check"):
        VLLMServer(url).check(PretrainedCausalLM(str(other)))
    with pytest.raises(UserError, match="its model has head_dim 32, the policy 64"):
        generate(loaded(other), VLLMDecoder(VLLMServer(url)))
    VLLMServer(url).check(PretrainedCausalLM(str(vllm_policy_folder)))


def test_weights_that_vllm_does_not_take_are_refused_and_leave_no_half_loaded_model(vllm_policy_folder, url):
    policy, decoder = loaded(vllm_policy_folder), VLLMDecoder(VLLMServer(url))
    generate(policy, decoder)
    policy.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="vLLM cannot take the policy's weights"):
        generate(policy, decoder)

    del policy.model.extra
    assert difference(policy, generate(policy, decoder)) < 1e-3


def test_a_prompt_that_does_not_fit_is_one_line(vllm_policy_folder, url):
    policy = loaded(vllm_policy_folder)
    policy.limits.check = lambda *arguments: None
    with pytest.raises(UserError, match=r"got a prompt and completion of 216 tokens, but vLLM has room for 128"):
        generate(policy, VLLMDecoder(VLLMServer(url)), texts=["red " * 200])


def test_a_second_server_on_the_port_is_refused_and_sigterm_ends_one(vllm_policy_folder, url):
    process = started(vllm_policy_folder, int(url.rpartition(":")[2]))
    assert (process.wait(60), process.stdout.read()) == (2, "")
    port = free_port()
    process = started(vllm_policy_folder, port)
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_server_without_a_secret_does_not_start(vllm_policy_folder, monkeypatch):
    import os
    import sys

    for value in (None, "short"):
        environment = {name: v for name, v in os.environ.items() if name != "GRPOVI_VLLM_TOKEN"}
        environment |= {} if value is None else {"GRPOVI_VLLM_TOKEN": value}
        command = [sys.executable, "-m", "grpovi_lightning.rollout.vllm", str(vllm_policy_folder), "--port", "0"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert "GRPOVI_VLLM_TOKEN" in done.stderr.splitlines()[-1]


def test_a_server_that_nobody_started_is_one_line(vllm_policy_folder):
    gone = VLLMServer(f"http://127.0.0.1:{free_port()}", retry_seconds=1.0)
    with pytest.raises(UserError, match=r"no answer for 1 s .* start it: python -m grpovi_lightning\.rollout\.vllm"):
        gone.check(PretrainedCausalLM(str(vllm_policy_folder)))
    with pytest.raises(TrainingError, match="continue the run from its last checkpoint"):
        generate(loaded(vllm_policy_folder), VLLMDecoder(gone))
