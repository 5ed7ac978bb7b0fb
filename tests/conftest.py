"""Tiny checkpoints that every room's tests share; built once a session, never written to."""

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
