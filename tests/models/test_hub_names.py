"""Hub names, against a hub on this machine that answers as the real one does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants, hf_hub_download

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA, PretrainedCausalLM
from grpovi_lightning.models.hub import looks_local

COMMIT = "0" * 40
IDS = torch.arange(3, 11)[None]


class Hub(BaseHTTPRequestHandler):
    """Has the files of `folder` as the repository own/model; own/gated is gated, and all else is not there."""

    folder = None

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name == "own/gated":
            return self.refuse(403, "GatedRepo")
        if name != "own/model":
            return self.refuse(401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if not (self.folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        content = (self.folder / file).read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{file}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(policy_folder, tmp_path, monkeypatch):
    """A hub at work, and an empty cache."""
    handler = type("HubOf", (Hub,), {"folder": policy_folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    files = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("own/gated", None, "own/gated: the model is gated; accept its terms at https://huggingface.co/own/gated"),
        ("own/modell", None, "own/modell: no such folder, nor a public repository of the hub; check its spelling"),
        ("own/model", "v9", "own/model: the repository has no revision 'v9'"),
    ],
)
def test_what_a_hub_refuses_is_said_in_one_line_before_anything_is_loaded(hub, name, revision, message):
    with pytest.raises(UserError, match=message) as raised:
        PretrainedCausalLM(name, revision=revision).check()
    assert "\n" not in str(raised.value)


def test_a_repository_without_the_file_is_refused(hub, tmp_path):
    hub.folder = tmp_path
    with pytest.raises(UserError, match=r"policy own/model: the repository has no config\.json"):
        PretrainedCausalLM("own/model").check()


def test_an_adapter_at_the_hub_is_looked_for_too(hub, policy_folder):
    with pytest.raises(UserError, match=r"adapter own/model: the repository has no adapter_config\.json"):
        PretrainedCausalLM(str(policy_folder), adapter="own/model").check()


def test_a_repository_that_is_there_passes(hub):
    PretrainedCausalLM("own/model", revision=COMMIT, lora=LoRA()).check()


def test_a_policy_in_the_cache_is_loaded_while_offline_and_its_adapter_names_the_commit(
    hub, policy_folder, tmp_path, monkeypatch
):
    for file in policy_folder.iterdir():
        hf_hub_download("own/model", file.name, revision=COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    policy = PretrainedCausalLM("own/model", revision=COMMIT, lora=LoRA(r=4)).load()
    policy.save_pretrained(tmp_path / "model")

    expected = PretrainedCausalLM(str(policy_folder)).load().model(IDS).logits
    assert torch.equal(policy.model(IDS).logits, expected)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("own/model", COMMIT)


@pytest.mark.parametrize("settings", [{}, {"revision": "v1"}, {"gguf_file": "m.gguf"}])
def test_a_hub_name_while_offline_is_refused_with_what_is_missing_and_how_to_get_it(hub, monkeypatch, settings):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if "gguf_file" in settings:
        pytest.importorskip("gguf")
    with pytest.raises(UserError, match="is not in the cache, and the hub is off") as raised:
        PretrainedCausalLM("own/model", **settings).check()
    command = "hf download own/model" + (" --revision v1" if "revision" in settings else "")
    assert command in str(raised.value) and settings.get("gguf_file", "config.json") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "local"),
    [("own/model", False), ("./own", True), ("/own/model", True), ("own", True), ("a/b/c", True), ("~/own", True)],
)
def test_a_hub_name_is_an_owner_and_a_name(path, local):
    assert looks_local(path) == local
