"""The server of a vLLM, as a training process sees it."""

import http.client
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetensors.torch import save_file

from grpovi_lightning.background import result_of, started_thread
from grpovi_lightning.errors import TrainingError, UserError, shown
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.models.handover import HandedOver
from grpovi_lightning.rollout.vllm.engines import Engine, handed_over
from grpovi_lightning.rollout.vllm.library import described, known
from grpovi_lightning.rollout.vllm.requests import ADAPTER_CONFIG, Completion, Request, Versions, as_bytes, token

_GONE = (OSError, http.client.HTTPException)
_LONGEST_WAIT = 10.0  # seconds between two attempts
_HANDOVERS = 20


class VLLMServer(Engine):
    """vLLM as a server that training processes share: `python -m grpovi_lightning.rollout.vllm MODEL`.

    Weights are sent when they have changed, and to a server that was started anew. Processes with equal weights, as
    those of one run, share one copy; runs with weights of their own need a server each. Sharded weights are gathered
    in the main memory of the first process, which sends them for all.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8017", retry_seconds: float = 120.0, time_limit: float = 3600.0
    ) -> None:
        """Say where it is; the token comes from the environment variable `GRPOVI_VLLM_TOKEN`.

        Args:
            url: `http://HOST:PORT`, or https behind a proxy.
            retry_seconds: how long a server that does not answer is tried again before the run stops.
            time_limit: seconds that an answer may take.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise UserError(f"url: got {url!r}, expected one such as http://127.0.0.1:8017")
        for name, value in {"retry_seconds": retry_seconds, "time_limit": time_limit}.items():
            if not 0.0 < value < float("inf"):
                raise UserError(f"{name}: got {value}, expected a number above 0")
        self.url, self.retry_seconds, self.time_limit = url, retry_seconds, time_limit
        self._about: dict[str, Any] | None = None

    def check(self, source: CausalLMSource) -> None:
        token()
        try:
            about = self._model()
        except TrainingError as error:
            raise UserError(
                f"{error}; start it: python -m grpovi_lightning.rollout.vllm MODEL (docs/vllm.md)"
            ) from error
        self._compare(about, known(source))

    def complete(self, policy: LanguageModel, request: Request) -> list[Completion]:
        return self._completions(request, *self._handed_over(policy))

    def completing(self, policy: LanguageModel, request: Request) -> Callable[[], list[Completion]]:
        """Begin to draw B completions of the policy as it is now, and return what waits for them."""
        versions, handed = self._handed_over(policy)
        kept = None if handed is None else handed.kept()  # a server that is started anew may ask for them
        return partial(result_of, started_thread(lambda: self._completions(request, versions, kept)))

    def _handed_over(self, policy: LanguageModel) -> tuple[Versions, HandedOver | None]:
        about = self._model()
        self._compare(about, described(policy.model.config))
        return handed_over(policy, about["lora_rank"])

    def _completions(self, request: Request, versions: Versions, handed: HandedOver | None) -> list[Completion]:
        content = {"base": versions.base, "adapter": versions.adapter, "request": request.as_json()}
        for attempt in range(_HANDOVERS):
            status, answer = self._asked("POST", "/completions", as_bytes(content))
            if status != HTTPStatus.CONFLICT:
                return [(tokens, logprobs) for tokens, logprobs in answer["completions"]]
            if handed is None:  # the first process sends them
                time.sleep(min(0.25 * 2.0**attempt, _LONGEST_WAIT))
                continue
            if answer["base"] != versions.base:
                self._send(f"/weights/{versions.base}", handed.tensors)
            if handed.adapter is not None:
                config = {ADAPTER_CONFIG: handed.adapter.config}
                self._send(f"/adapter/{versions.adapter}", handed.adapter.tensors, config)
        if handed is None:
            raise TrainingError(
                f"vLLM server {self.url}: it lost the weights that the first process had sent for all; was it started "
                "again, or do other runs use it? Continue the run from its last checkpoint with --ckpt_path"
            )
        raise TrainingError(
            f"vLLM server {self.url}: other weights replaced this run's {_HANDOVERS} times in a row; give each run a "
            "server of its own"
        )

    def _model(self) -> dict[str, Any]:
        if self._about is None:
            self._about = self._asked("GET", "/model")[1]
        return self._about  # type: ignore[return-value]

    def _compare(self, about: dict[str, Any], expected: dict[str, Any]) -> None:
        served = about["config"]
        for name in sorted(served.keys() & expected.keys()):
            if served[name] != expected[name]:
                raise UserError(
                    f"vLLM server {self.url}: its model has {name} {shown(served[name])}, the policy "
                    f"{shown(expected[name])}; start it with the policy's checkpoint"
                )

    def _send(self, path: str, tensors: Any, headers: dict[str, str] | None = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "weights.safetensors")
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
            self._asked("PUT", path, file, headers)

    def _asked(
        self, method: str, path: str, body: bytes | Path = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Return status and answer; a server that is gone is tried again."""
        begin, wait = time.monotonic(), 0.25
        while True:
            try:
                status, answer = self._once(method, path, body, headers or {})
                break
            except _GONE as error:
                if time.monotonic() - begin + wait > self.retry_seconds:
                    raise TrainingError(
                        f"vLLM server {self.url}: no answer for {self.retry_seconds:g} s ({type(error).__name__}: "
                        f"{error}); start it again, and continue the run from its last checkpoint with --ckpt_path"
                    ) from error
            time.sleep(wait)
            wait = min(2.0 * wait, _LONGEST_WAIT)
        if status in (HTTPStatus.OK, HTTPStatus.CONFLICT):
            return status, answer
        message = f"vLLM server {self.url}: {answer['error']}"
        raise TrainingError(message) if status >= HTTPStatus.INTERNAL_SERVER_ERROR else UserError(message)

    def _once(self, method: str, path: str, body: bytes | Path, headers: dict[str, str]) -> tuple[int, Any]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=self.time_limit)
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        headers = headers | {"Authorization": f"Bearer {token()}", "Content-Length": str(size)}
        try:
            if isinstance(body, bytes):
                connection.request(method, path, body, headers)
            else:
                with body.open("rb") as file:
                    connection.request(method, path, file, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        try:
            answer = json.loads(content)
            answer["error"] = str(answer.get("error", ""))
        except (ValueError, AttributeError, TypeError) as error:
            raise TrainingError(f"vLLM server {self.url}: it answers as no server of this package does") from error
        return response.status, answer
