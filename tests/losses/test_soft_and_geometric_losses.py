"""SAPO, GMPO and DPPO: what they reduce to, and the tokens that tell them from GRPO."""

import math

import numpy as np
import pytest
import torch
from losses.loss_batches import Batch, random_batch, random_weights, value_and_gradient
from losses.test_loss_relations import same

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.losses import CISPOLoss, DPPOTVLoss, GMPOLoss, GRPOLoss, GSPOLoss, SAPOLoss


def tokens(ratios, advantages, old=0.1):
    """A batch of float64 sequences, each of one length, with these ratios; every token had the probability `old`."""
    before = torch.full_like(torch.tensor(ratios, dtype=torch.float64), old).log()
    logprobs = before + torch.tensor(ratios, dtype=torch.float64).log()
    mask = torch.ones(logprobs.shape, dtype=torch.bool)
    return Batch(logprobs, before, torch.tensor(advantages, dtype=torch.float64), mask, None)


class TestSAPO:
    def test_the_gate_halves_where_its_sigmoid_says_so_on_either_side_of_1(self):
        # 4 s (1 - s) is 1/2 where s = (1 +- sqrt(1/2)) / 2, so at tau (ratio - 1) = +-log((1 + h) / (1 - h)).
        h = math.sqrt(0.5)
        distance = math.log((1 + h) / (1 - h)) / 4.0
        batch = tokens([[1 - distance], [1.0], [1 + distance]], [1.0, 1.0, 1.0])
        _, gradient = value_and_gradient(SAPOLoss(sapo_temperature_pos=4.0), batch)
        expected = [-(1 - distance) / 2 / 3, -1 / 3, -(1 + distance) / 2 / 3]
        np.testing.assert_allclose(gradient.flatten(), expected, rtol=1e-12)

    def test_the_sign_of_the_advantage_chooses_the_temperature(self):
        batch = tokens([[1.5], [1.5], [1.5]], [1.0, -1.0, 0.0])
        loss = SAPOLoss(sapo_temperature_pos=1.0, sapo_temperature_neg=2.0)
        expected = -4 / (1 + math.exp(-0.5)) + 2 / (1 + math.exp(-1)) + 0
        assert value_and_gradient(loss, batch)[0] == pytest.approx(expected / 3)

    def test_a_small_temperature_leaves_the_gradient_of_the_unclipped_ratio(self):
        batch = random_batch(1)
        _, gradient = value_and_gradient(SAPOLoss(sapo_temperature_pos=1e-4, sapo_temperature_neg=1e-4), batch)
        _, unclipped = value_and_gradient(GRPOLoss(epsilon=1.0, epsilon_high=1e6), batch)
        torch.testing.assert_close(gradient, unclipped, rtol=1e-6, atol=0)

    def test_a_token_beyond_the_clip_range_keeps_a_gradient(self):
        batch = tokens([[1.5], [0.5]], [1.0, -1.0])
        assert (value_and_gradient(GRPOLoss(), batch)[1] == 0).all()
        assert (value_and_gradient(SAPOLoss(), batch)[1] != 0).all()


class TestGMPO:
    @pytest.mark.parametrize("settings", [{}, {"beta": 0.1}])
    def test_where_nothing_is_clipped_it_is_gspo(self, settings):
        batch, weights = random_batch(2), random_weights(2, random_batch(2))
        gmpo = value_and_gradient(GMPOLoss(epsilon=50.0, **settings), batch, sampling_weights=weights)
        gspo = GSPOLoss(epsilon=1.0, epsilon_high=1e9, **settings)
        same(gmpo, value_and_gradient(gspo, batch, sampling_weights=weights))

    def test_for_completions_of_one_token_it_is_grpo_with_the_clip_range_in_logs(self):
        batch = random_batch(3)._replace(completion_mask=torch.arange(9).expand(6, 9) == 0)
        grpo = GRPOLoss(epsilon=1 - math.exp(-0.3), epsilon_high=math.exp(0.2) - 1)
        same(
            value_and_gradient(GMPOLoss(epsilon=0.3, epsilon_high=0.2), batch),
            value_and_gradient(grpo, batch),
        )

    def test_an_outlier_costs_its_own_gradient_alone(self):
        batch = tokens([[1.1, 5.0, 1.2]], [1.0])
        assert (value_and_gradient(GSPOLoss(), batch)[1] == 0).all()
        _, gradient = value_and_gradient(GMPOLoss(), batch)
        ratio = (1.1 * math.exp(0.4) * 1.2) ** (1 / 3)
        np.testing.assert_allclose(gradient, [[-ratio / 3, 0.0, -ratio / 3]], rtol=1e-12)

    def test_clipped_tokens_are_counted_one_by_one(self):
        metrics = GMPOLoss()(*tokens([[2.0, 0.5, 1.0], [2.0, 0.5, 0.5]], [1.0, -1.0])).metrics
        assert metrics[keys.CLIP_RATIO_HIGH_MEAN].item() == pytest.approx(1 / 6)
        assert metrics[keys.CLIP_RATIO_LOW_MEAN].item() == pytest.approx(2 / 6)
        assert metrics[keys.CLIP_RATIO_REGION_MEAN].item() == pytest.approx(3 / 6)


class TestDPPO:
    @pytest.mark.parametrize("settings", [{}, {"beta": 0.1}])
    def test_where_no_token_stays_out_it_is_cispo(self, settings):
        batch = random_batch(4)
        batch = batch._replace(old_logprobs=batch.old_logprobs.clamp(max=0.0))  # those of probabilities
        dppo = DPPOTVLoss(epsilon=1.0, max_ratio=1.5, **settings)
        same(value_and_gradient(dppo, batch), value_and_gradient(CISPOLoss(epsilon_high=1.5, **settings), batch))

    def test_a_rare_token_may_change_its_ratio_much_and_a_frequent_one_little(self):
        # Up by 0.03 at four times the probability, and by 0.2 at 1.4 times: the clip and this loss choose differently.
        rare, frequent = tokens([[4.0]], [1.0], old=0.01), tokens([[1.4]], [1.0], old=0.5)
        assert value_and_gradient(GRPOLoss(epsilon=0.5), rare)[1] == 0
        assert value_and_gradient(DPPOTVLoss(), rare)[1] == pytest.approx(-4.0)
        assert value_and_gradient(GRPOLoss(epsilon=0.5), frequent)[1] == pytest.approx(-1.4)
        assert value_and_gradient(DPPOTVLoss(), frequent)[1] == 0

    def test_only_moves_away_from_the_old_policy_stop(self):
        ratios = [[1.5], [0.5], [1.5], [0.5]]  # the probability moves by 0.2 each time
        batch = tokens(ratios, [1.0, 1.0, -1.0, -1.0], old=0.4)
        _, gradient = value_and_gradient(DPPOTVLoss(), batch)
        assert gradient.flatten().ne(0).tolist() == [False, True, True, False]
        metrics = DPPOTVLoss()(*batch).metrics
        found = [metrics[key].item() for key in (keys.CLIP_RATIO_LOW_MEAN, keys.CLIP_RATIO_HIGH_MEAN)]
        assert found == [0.25, 0.25] and metrics[keys.CLIP_RATIO_REGION_MEAN].item() == 0.5

    def test_both_ends_may_differ(self):
        batch = tokens([[1.5], [0.5]], [1.0, -1.0], old=0.4)
        _, gradient = value_and_gradient(DPPOTVLoss(epsilon=0.1, epsilon_high=0.3), batch)
        assert gradient.flatten().ne(0).tolist() == [True, False]
