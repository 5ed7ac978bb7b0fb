"""A vLLM that training processes share, over HTTP.

Every request carries the token of the environment variable `GRPOVI_VLLM_TOKEN`. Weights travel as safetensors, the rest
as JSON: nothing that is received is run as code.

| request | answer |
|---|---|
| `GET /model` | what is loaded |
| `PUT /weights/DIGEST`, safetensors | the weights are those now |
| `PUT /adapter/DIGEST`, safetensors, its settings in the header `Adapter-Config` | so is the adapter |
| `POST /completions`, JSON: `base`, `adapter`, `request` | completions; 409 where it has other weights |
"""

import hmac
import json
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.handover import digest
from grpovi_lightning.rollout.vllm.loaded import LoadedModel
from grpovi_lightning.rollout.vllm.requests import ADAPTER_CONFIG, Request, Versions, as_bytes


class VLLMHTTPServer(ThreadingHTTPServer):
    """Answers requests with one model, one after the other."""

    daemon_threads = True
    model: LoadedModel
    about: dict[str, Any]

    def __init__(self, address: tuple[str, int], token: str) -> None:
        """Listen; who asks before `serve` is called has to wait.

        Args:
            address: host, and port; 0 for any that is free.
            token: that every request has to carry.

        Raises:
            UserError: the address cannot be listened on.
        """
        self.token = token
        self.lock = threading.Lock()  # vLLM is used by one thread at a time
        try:
            super().__init__(address, _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {address[0]}:{address[1]}: {error}; choose another --port") from error

    def serve(self, model: LoadedModel, about: dict[str, Any]) -> None:
        """Answer until the process is interrupted; `about` is what `GET /model` tells beside the model's attributes."""
        self.model, self.about = model, about
        try:
            self.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            self.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 600  # seconds without a byte from a client that began a request
    server: VLLMHTTPServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        """Tell what is loaded."""
        self._answer({"/model": self._model})

    def do_PUT(self) -> None:
        """Take weights or an adapter."""
        version = self.path.rpartition("/")[2]
        self._answer({f"/weights/{version}": self._weights, f"/adapter/{version}": self._adapter}, version)

    def do_POST(self) -> None:
        """Complete prompts."""
        self._answer({"/completions": self._completions})

    def _answer(self, routes: dict[str, Callable[..., Any]], *arguments: str) -> None:
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            return self._send(HTTPStatus.UNAUTHORIZED, {"error": "wrong token; set the same GRPOVI_VLLM_TOKEN"})
        route = routes.get(self.path)
        if route is None:
            return self._send(HTTPStatus.NOT_FOUND, {"error": f"no such path: {self.path[:80]}"})
        try:
            with tempfile.NamedTemporaryFile() as body:  # on disk: weights can be larger than the memory that is free
                self._receive(body)
                status, content = route(Path(body.name), *arguments)
        except (UserError, ValueError, TypeError, KeyError, SafetensorError) as error:
            status, content = HTTPStatus.BAD_REQUEST, {"error": " ".join(str(error).split())}
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": reason}
        self._send(status, content)

    def _receive(self, file: Any) -> None:
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            part = self.rfile.read(min(left, 1 << 20))
            if not part:
                raise ConnectionError("the client went away")
            file.write(part)
            left -= len(part)
        file.flush()

    def _send(self, status: HTTPStatus, content: Any) -> None:
        body = as_bytes(content)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status is not HTTPStatus.OK:  # what was not read of the request is no further one
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def _model(self, body: Path) -> tuple[HTTPStatus, Any]:
        model = self.server.model
        return HTTPStatus.OK, self.server.about | {
            "lora_rank": model.lora_rank,
            "max_model_len": model.max_model_len,
        }

    def _weights(self, body: Path, version: str) -> tuple[HTTPStatus, Any]:
        with self.server.lock:
            if self.server.model.versions.base != version:
                self.server.model.take_base(version, _tensors(body, version).items())
        return HTTPStatus.OK, {}

    def _adapter(self, body: Path, version: str) -> tuple[HTTPStatus, Any]:
        config = json.dumps(json.loads(self.headers[ADAPTER_CONFIG]), sort_keys=True)
        with self.server.lock:
            if self.server.model.versions.adapter != version:
                self.server.model.take_adapter(version, config, _tensors(body, version, config))
        return HTTPStatus.OK, {}

    def _completions(self, body: Path) -> tuple[HTTPStatus, Any]:
        content = json.loads(body.read_bytes())
        request, asked = Request(**content["request"]), Versions(content["base"], content["adapter"])
        with self.server.lock:
            model = self.server.model
            if model.versions.base == asked.base and asked.adapter is None and model.versions.adapter is not None:
                model.take_adapter(None, "", {})
            if model.versions != asked:
                has = {"base": model.versions.base, "adapter": model.versions.adapter}
                return HTTPStatus.CONFLICT, {"error": "other weights", **has}
            return HTTPStatus.OK, {"completions": model.complete(request)}

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests that went well."""

    def log_error(self, format: str, *args: Any) -> None:
        print(f"vllm server: {format % args}", file=sys.stderr, flush=True)


def _tensors(file: Path, version: str, text: str = "") -> dict[str, Tensor]:
    """Read tensors, and make sure that they are those that were announced."""
    tensors = load_file(file)
    found = digest(tensors, text)
    if found != version:
        raise UserError(f"got weights with digest {found[:12]}, announced as {version[:12]}: lost on the way?")
    return tensors
