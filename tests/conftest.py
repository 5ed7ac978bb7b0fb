"""What every room's tests share: tiny checkpoints, built once a session and never written to, and waiting."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# `helpers` is imported where it is needed: tests of `analysis` do without torch.


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave helpers alone: looking for doctests in them would import them again under a second name."""
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if helper else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=5, help="SIGKILLs of the tests in tests/integration, at random moments"
    )
    parser.addoption("--ranks", type=int, default=2, help="processes of the sharded runs in tests/modules: 2 or 4")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A saved word-level tokenizer of about 40 words, padding on the left; decoding joins words by spaces."""
    from helpers.tiny_checkpoints import save_tokenizer

    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tiny_tokenizer(tokenizer_folder):
    """The tokenizer of `tokenizer_folder`, loaded afresh."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory, tokenizer_folder) -> Path:
    """A checkpoint of a random two-layer Llama causal LM with the tokenizer of `tokenizer_folder`."""
    from helpers.tiny_checkpoints import save_policy

    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer_folder)


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory, tokenizer_folder) -> Path:
    """A checkpoint of a random two-layer Llama classifier with one label, with the policy's tokenizer."""
    from helpers.tiny_checkpoints import save_reward_model

    return save_reward_model(tmp_path_factory.mktemp("reward"), tokenizer_folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """What a user brings, in a folder of its own; see `helpers.own_input`."""
    from helpers.own_input import write_own_input

    root = tmp_path_factory.mktemp("own")
    write_own_input(root)
    return root


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """A function that waits until a condition holds, and fails after some seconds."""

    def wait(condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    return wait


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    """A function that tells whether a process does anything yet."""

    def alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        # A process that ended but was not yet reaped by whoever inherited it does nothing any more.
        listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return bool(listed.stdout.strip()) and not listed.stdout.strip().startswith("Z")

    return alive
