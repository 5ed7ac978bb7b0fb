"""Rollouts from vLLM, in the training process or from a server that several training processes share."""

from grpovi_lightning.rollout.vllm.ahead import OneStepAhead
from grpovi_lightning.rollout.vllm.client import VLLMServer
from grpovi_lightning.rollout.vllm.decoder import VLLMDecoder
from grpovi_lightning.rollout.vllm.engines import ColocatedVLLM, Engine

__all__ = ["ColocatedVLLM", "Engine", "OneStepAhead", "VLLMDecoder", "VLLMServer"]
