"""The command that starts a server: `python -m grpovi_lightning.rollout.vllm MODEL`."""

import json
import signal
import sys
from argparse import Namespace
from types import FrameType
from typing import Any

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.hub import looks_local
from grpovi_lightning.models.sources import check_checkpoint, load_config
from grpovi_lightning.one_line_parser import OneLineParser
from grpovi_lightning.rollout.vllm.library import check_options, described, require_vllm
from grpovi_lightning.rollout.vllm.loaded import LoadedModel
from grpovi_lightning.rollout.vllm.requests import TOKEN, token
from grpovi_lightning.rollout.vllm.server import VLLMHTTPServer


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns:
        0 stopped, 2 the request was wrong.
    """
    try:
        given = _parser().parse_args(arguments)
        server = VLLMHTTPServer((given.host, given.port), token())
        model, about = _model(given)
    except UserError as error:
        print(f"vllm server: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    print(f"vllm server: {server.url}", flush=True)
    server.serve(model, about)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m grpovi_lightning.rollout.vllm",
        description="Serves a vLLM to training processes on this machine, which send it their weights. The "
        f"environment variable {TOKEN} holds the secret that they share.",
    )
    parser.add_argument("model", help="checkpoint of the policy, folder or hub name; its weights are not read")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8017, help="0: any that is free")
    parser.add_argument("--dtype", default="float32", help="of the weights: that of the policy")
    parser.add_argument("--kv_cache_gb", type=float, default=4.0, help="memory for keys and values")
    parser.add_argument("--lora_rank", type=int, default=0, help="rank of the adapters that are trained, 0: none")
    parser.add_argument("--options", default="{}", help="further arguments of vllm.LLM, as JSON")
    return parser


def _model(given: Namespace) -> tuple[LoadedModel, dict[str, Any]]:
    """Load the model; return it with what the server tells about it."""
    try:
        options = dict(json.loads(given.options))
    except (ValueError, TypeError) as error:
        raise UserError(f"--options: got {given.options!r}, expected a JSON object: {error}") from error
    check_options(options)
    if looks_local(given.model):
        check_checkpoint(given.model, "model")
    config = load_config(given.model)
    about = {"vllm": require_vllm().__version__, "config": described(config)}
    return LoadedModel(given.model, given.dtype, given.kv_cache_gb, given.lora_rank, options), about


if __name__ == "__main__":
    sys.exit(main())
