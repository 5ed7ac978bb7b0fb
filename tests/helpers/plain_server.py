"""The server for vLLM, over HTTP as it is, with a plain model in the place of vLLM."""

import json
import threading
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM

from grpovi_lightning.errors import UserError
from grpovi_lightning.rollout.vllm.library import described
from grpovi_lightning.rollout.vllm.requests import Versions
from grpovi_lightning.rollout.vllm.server import VLLMHTTPServer

SECRET = "of-the-tests-alone"


class PlainModel:
    """What a server asks of vLLM, by passes over whole sequences; a token is drawn by a generator of its completion."""

    lora_rank, max_model_len = 8, 100

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.base = {name: torch.zeros_like(tensor) for name, tensor in self.model.state_dict().items()}
        self.versions, self.adapter, self.taken = Versions(), None, []

    def take_base(self, version, tensors):
        self.base = {name: tensor.clone() for name, tensor in tensors}
        self.model.load_state_dict(self.base)
        self.versions, self.adapter = Versions(version), None
        self.taken.append("base")

    def take_adapter(self, version, config, tensors):
        weights = {name: tensor.clone() for name, tensor in self.base.items()}
        scale = json.loads(config)["lora_alpha"] / json.loads(config)["r"] if config else 0.0
        for name in [name for name in tensors if "lora_A" in name]:
            layer = name.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[layer] += scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        self.model.load_state_dict(weights)
        self.versions = Versions(self.versions.base, version)
        self.taken.append("adapter")

    def complete(self, request):
        if request.longest() > self.max_model_len:
            raise UserError("too long for the room that there is")
        members = len(request.seeds) // len(request.prompts)
        return [self._drawn(request, request.prompts[row // members], seed) for row, seed in enumerate(request.seeds)]

    @torch.no_grad()
    def _drawn(self, request, prompt, seed):
        tokens, logprobs, generator = [], [], torch.Generator().manual_seed(seed)
        while len(tokens) < request.max_tokens and not (tokens and tokens[-1] in request.end_token_ids):
            logits = self.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1] / request.temperature
            drawn = logits.argmax() if request.greedy else torch.multinomial(logits.softmax(-1), 1, generator=generator)
            tokens.append(int(drawn))
            logprobs.append(float(logits.log_softmax(-1)[tokens[-1]]))
        return tokens, logprobs


@contextmanager
def serving(model, port=0):
    server = VLLMHTTPServer(("127.0.0.1", port), SECRET)
    thread = threading.Thread(target=server.serve, args=(model, {"config": described(model.model.config)}))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
