"""Checkpoints that vLLM can run: on a CPU, attention heads have 32 numbers at least."""

import importlib.util

import pytest

found = importlib.util.find_spec("vllm")


def pytest_collection_modifyitems(config, items):
    if found is None:
        skip = pytest.mark.skip(reason="vllm is not installed here: `make test-vllm` makes an environment for it")
        for item in items:
            if "with_vllm" in item.path.parts:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def vllm_policy_folder(tmp_path_factory, tokenizer_folder):
    from helpers.tiny_checkpoints import save_policy

    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer_folder, head_dim=32)
