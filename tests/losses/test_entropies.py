"""The entropy bonus, and the selection of tokens by their entropy."""

import numpy as np
import pytest
import torch
from losses.loss_batches import (
    LOSSES,
    classes_of,
    entropies_of,
    random_batch,
    random_selection,
    random_weights,
    value_and_gradient,
)
from losses.test_loss_relations import same

from grpovi_lightning import losses
from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import BNPOLoss, EntropyBonus, GRPOLoss, HighEntropyTokens, TokenSelection

WITHOUT_ENTROPIES = [name for name, make in LOSSES.items() if not make().needs_entropies]


class TestBonus:
    def both(self, name, coefficient, **settings):
        inner = LOSSES[name](**settings)
        return inner, EntropyBonus(inner, coefficient)

    def gradients(self, loss, batch, entropies, **arguments):
        """By the log-probabilities and by the entropies."""
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (batch.logprobs, entropies)]
        output = loss(leaves[0], *batch[1:], entropies=leaves[1], **arguments)
        return output.loss.item(), *torch.autograd.grad(output.loss, leaves, allow_unused=True)

    @pytest.mark.parametrize("beta", [0.0, 0.1])
    @pytest.mark.parametrize("name", WITHOUT_ENTROPIES)
    def test_it_takes_the_entropies_off_as_the_loss_adds_up_its_tokens(self, name, beta):
        batch, entropies = random_batch(0), random_weights(0, random_batch(0))
        inner, loss = self.both(name, 0.3, beta=beta)
        value, by_logprobs, by_entropies = self.gradients(loss, batch, entropies)
        plain, gradient = value_and_gradient(inner, batch)

        mask = batch.completion_mask
        # The weight of a token in the loss, by adding a constant to it alone.
        one = torch.zeros_like(batch.logprobs).requires_grad_()
        (inner.total(one, mask) / inner.denominator(mask)).backward()
        assert value == pytest.approx(plain - 0.3 * (one.grad * entropies).sum().item(), rel=1e-12)
        torch.testing.assert_close(by_entropies, -0.3 * one.grad, rtol=1e-12, atol=0)
        torch.testing.assert_close(by_logprobs, gradient, rtol=1e-12, atol=0)

    def test_with_bnpo_it_is_the_mean_over_the_tokens(self):
        batch = random_batch(1)
        entropies, mask = random_weights(1, batch), batch.completion_mask
        loss = EntropyBonus(BNPOLoss(), 0.5)(*batch, entropies=entropies).loss
        mean = np.mean([entropies[b, t].item() for b, t in np.argwhere(mask.numpy())])
        assert (BNPOLoss()(*batch).loss - loss).item() == pytest.approx(0.5 * mean)

    @pytest.mark.parametrize("name", WITHOUT_ENTROPIES)
    def test_a_coefficient_of_0_is_the_loss_itself_without_any_entropy(self, name):
        batch = random_batch(2)
        inner, loss = self.both(name, 0.0, beta=0.1)
        found, expected = value_and_gradient(loss, batch), value_and_gradient(inner, batch)
        assert found[0] == expected[0] and torch.equal(found[1], expected[1])
        assert not loss.needs_entropies and loss.penalties == inner.penalties
        assert loss(*batch).metrics == inner(*batch).metrics

    def test_sampling_weights_and_selection_leave_it_alone(self):
        batch, entropies = random_batch(3), random_weights(3, random_batch(3))
        loss = EntropyBonus(GRPOLoss(), 0.3)
        _, _, expected = self.gradients(loss, batch, entropies)
        none = {"sampling_weights": torch.zeros_like(entropies), "selected": torch.zeros_like(batch.completion_mask)}
        _, by_logprobs, by_entropies = self.gradients(loss, batch, entropies, **none)
        assert torch.equal(by_entropies, expected) and (by_logprobs == 0).all()

    def test_two_of_them_add_up(self):
        batch = random_batch(4)
        twice = EntropyBonus(EntropyBonus(GRPOLoss(beta=0.1), 0.1), 0.2)
        same(value_and_gradient(twice, batch), value_and_gradient(EntropyBonus(GRPOLoss(beta=0.1), 0.3), batch))

    def test_without_entropies_it_is_refused(self):
        with pytest.raises(ValueError, match=r"^entropies: got None, expected \[B, T\] because of entropy_coef 0\.3$"):
            EntropyBonus(GRPOLoss(), 0.3)(*random_batch(5))
        with pytest.raises(ValueError, match=r"^entropies: got shape \[6, 1\]"):
            EntropyBonus(GRPOLoss(), 0.3)(*random_batch(5), entropies=torch.ones(6, 1))


class TestSelected:
    @pytest.mark.parametrize("name", WITHOUT_ENTROPIES)
    def test_it_is_a_factor_of_0_or_1_and_the_denominator_counts_all_tokens(self, name):
        batch = random_batch(6)
        loss, selected = LOSSES[name](beta=0.1), random_selection(6, batch)
        factors = value_and_gradient(loss, batch, sampling_weights=selected.double())
        same(value_and_gradient(loss, batch, selected=selected), factors)
        same(value_and_gradient(loss, batch, selected=torch.ones_like(selected)), value_and_gradient(loss, batch))

    def test_its_share_of_the_tokens_is_a_metric(self):
        batch = random_batch(7)
        selected, mask = random_selection(7, batch), batch.completion_mask
        metrics = GRPOLoss()(*batch, selected=selected).metrics
        share = (selected & mask).sum().item() / mask.sum().item()
        assert metrics[keys.FRAC_TOKENS_SELECTED].item() == pytest.approx(share) and 0 < share < 1
        assert keys.FRAC_TOKENS_SELECTED not in GRPOLoss()(*batch).metrics

    def test_another_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"^selected: got shape \[6, 1\]"):
            GRPOLoss()(*random_batch(8), selected=torch.ones(6, 1, dtype=torch.bool))


SELECTIONS = classes_of(losses, TokenSelection)


class TestHighEntropy:
    @pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("seed", range(6))
    def test_it_is_the_share_of_the_tokens_with_the_most_of_it(self, seed, share):
        batch = random_batch(seed, n_rows=8, length=12)
        entropies, mask = random_weights(seed, batch), batch.completion_mask
        selected = HighEntropyTokens(share)(entropies, mask)
        ordered = sorted(((entropies[b, t].item(), b, t) for b, t in np.argwhere(mask.numpy())), reverse=True)
        expected = {(b, t) for _, b, t in ordered[: max(1, round(share * len(ordered)))]}
        assert {(b, t) for b, t in np.argwhere(selected.numpy())} == {(int(b), int(t)) for b, t in expected}

    def test_it_is_the_papers_quantile(self):
        # Above the (1 - share)-quantile of the tokens, as NumPy has it; here none stands on the border.
        entropies = torch.tensor(np.random.default_rng(0).permutation(101).reshape(1, 101) / 10.0)
        selected = HighEntropyTokens(0.2)(entropies, entropies >= 0)
        threshold = np.quantile(entropies.numpy(), 0.8)
        assert torch.equal(selected, entropies > threshold) and selected.sum() == 20

    def test_tokens_of_one_distribution_are_selected_together_although_rounding_tells_them_apart(self):
        entropies = torch.tensor([[1.0, 1.0 + 1e-6, 0.2, 0.3], [1.0 - 1e-6, 0.9, 0.1, 0.4]])
        selected = HighEntropyTokens(0.25)(entropies, torch.ones_like(entropies).bool())
        assert selected.tolist() == [[True, True, False, False], [True, False, False, False]]

    @pytest.mark.parametrize("share", [0.0, -0.2, 1.01, float("nan"), 20])
    def test_a_share_that_is_none_is_refused(self, share):
        with pytest.raises(UserError, match=rf"top_entropy_quantile: got {share}, expected a share in \(0, 1\]"):
            HighEntropyTokens(share)

    @pytest.mark.parametrize("name", SELECTIONS)
    def test_padding_and_the_order_of_sequences_change_no_selection(self, name):
        batch = random_batch(9)
        entropies, mask, order = random_weights(9, batch), batch.completion_mask, torch.tensor([3, 0, 5, 1, 4, 2])
        select = SELECTIONS[name]()
        selected = select(entropies, mask)
        assert 0 < selected.sum() < mask.sum() and not (selected & ~mask).any() and selected.dtype == torch.bool
        assert torch.equal(select(entropies[order], mask[order]), selected[order])
        wide = torch.nn.functional.pad(entropies.masked_fill(~mask, torch.nan), (0, 3), value=torch.inf)
        found = select(wide, torch.nn.functional.pad(mask, (0, 3)))
        assert torch.equal(found, torch.nn.functional.pad(selected, (0, 3)))


def test_the_entropies_of_the_tests_depend_on_the_log_probabilities():
    batch = random_batch(10)
    with_bonus, without = (value_and_gradient(loss, batch)[1] for loss in (EntropyBonus(GRPOLoss(), 1.0), GRPOLoss()))
    assert ((with_bonus - without).abs() > 1e-3)[batch.completion_mask].float().mean() > 0.5
    assert entropies_of(batch).shape == batch.logprobs.shape
