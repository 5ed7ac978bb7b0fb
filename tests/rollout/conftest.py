import pytest

from grpovi_lightning.models import PretrainedCausalLM


@pytest.fixture
def policy(policy_folder):
    """The tiny Llama; five of its words end a completion, so that lengths differ."""
    model = PretrainedCausalLM(str(policy_folder)).load()
    model.end_token_ids = [*model.end_token_ids, 5, 11, 20, 33]
    return model
