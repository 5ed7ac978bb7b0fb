import math

import pytest
import torch
from helpers.rollouts import rollout_of_logprobs

from grpovi_lightning.adjustment import SequenceWeights, TokenMeanWeights, UniformWeights
from grpovi_lightning.errors import UserError

# Two prompts of two completions, of different lengths: token log-probabilities of the reference.
ROWS = [[-1.0, -2.0, -3.0], [-0.5], [-4.0, -2.0], [-1.0, -1.0, -1.0]]
SUMS = [[-6.0, -0.5], [-6.0, -3.0]]
MEANS = [[-2.0, -0.5], [-3.0, -1.0]]


@pytest.mark.parametrize("fill", [0.0, -9.0, math.nan, math.inf])
def test_sequence_weights_are_the_sum_over_tokens_whatever_stands_at_padding(fill):
    weights = SequenceWeights()(rollout_of_logprobs(ROWS, group_size=2, fill=fill))
    assert weights.dtype == torch.float64 and weights.tolist() == SUMS


@pytest.mark.parametrize("fill", [0.0, math.nan])
def test_token_mean_weights_are_the_mean_over_tokens(fill):
    assert TokenMeanWeights()(rollout_of_logprobs(ROWS, group_size=2, fill=fill)).tolist() == MEANS


@pytest.mark.parametrize(("weights", "expected"), [(SequenceWeights, SUMS), (TokenMeanWeights, MEANS)])
def test_a_temperature_divides_the_log_weights(weights, expected):
    found = weights(temperature=4.0)(rollout_of_logprobs(ROWS, group_size=2))
    assert found.tolist() == [[value / 4 for value in group] for group in expected]


def test_normalised_sequence_weights_are_the_sequence_probabilities_over_their_sum():
    weights = SequenceWeights()(rollout_of_logprobs(ROWS, group_size=2)).softmax(dim=1)
    expected = [[math.exp(value) / sum(map(math.exp, group)) for value in group] for group in SUMS]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_uniform_weights_are_equal_and_read_no_reference():
    rollout = rollout_of_logprobs(ROWS, group_size=2)
    object.__setattr__(rollout, "ref_logprobs", None)
    assert torch.equal(UniformWeights()(rollout), torch.zeros(2, 2, dtype=torch.float64))
    assert not UniformWeights.needs_reference and SequenceWeights.needs_reference and TokenMeanWeights.needs_reference


def test_long_completions_are_summed_in_float64():
    row = [-0.1] * 4096  # a float32 sum of these would be off by about 1e-3
    found = SequenceWeights()(rollout_of_logprobs([row, [-1.0]], group_size=2))[0, 0].item()
    assert found == pytest.approx(4096 * float(torch.tensor(-0.1)), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(UserError, match="weights temperature: got"):
        SequenceWeights(temperature)
