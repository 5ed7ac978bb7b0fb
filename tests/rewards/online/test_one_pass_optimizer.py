import gc
import weakref

import numpy as np
import pytest
import torch
from helpers.two_processes import run_in_two_processes
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import logsigmoid, scaled_dot_product_attention
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards.online.optimizer import OnePassOptimizer


def pairs(n_pairs, dim, seed=0):
    """[n_pairs, dim] float64 feature differences of different lengths."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_pairs, dim)) * rng.uniform(0.3, 2.0, size=dim)


def linear_head(dim, seed=1, dtype=torch.float64):
    head = nn.Linear(dim, 1, bias=False, dtype=dtype)
    head.weight.data = torch.tensor(np.random.default_rng(seed).normal(size=(1, dim)), dtype=dtype)
    return head


def closure_of(optimizer, loss_function):
    def closure():
        optimizer.zero_grad()
        loss = loss_function()
        loss.backward()
        return loss

    return closure


def preference_loss(head, z):
    return lambda: -logsigmoid(head(z)).mean()


def reference_cg(matrix, b, n_steps):
    """Textbook conjugate gradient in float64."""
    x, r = np.zeros_like(b), b.copy()
    d = r
    for _ in range(n_steps):
        alpha = r @ r / (d @ matrix @ d)
        x, after = x + alpha * d, r - alpha * matrix @ d
        d, r = after + (after @ after) / (r @ r) * d, after
    return x


def reference_step(theta, z, damping, lr=1.0, n_steps=3):
    """One update of the paper's Algorithm 5 on the mean Bradley-Terry loss of a linear reward."""
    p = 1 / (1 + np.exp(-z @ theta))
    gradient = z.T @ (p - 1) / len(z)
    matrix = (z.T * (p * (1 - p))) @ z / len(z) + damping * np.eye(len(theta))
    return theta - lr * reference_cg(matrix, gradient, n_steps)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_updates_of_a_linear_head_are_those_of_numpy(dtype, tolerance):
    head = linear_head(12, dtype=dtype)
    optimizer = OnePassOptimizer(head.parameters(), lr=0.7, total_steps=4)
    theta = head.weight.detach().double().numpy()[0].copy()

    for t in range(1, 7):  # the damping grows to 0.8 in four updates and stays there
        z = pairs(20, 12, seed=t)
        optimizer.step(closure_of(optimizer, preference_loss(head, torch.tensor(z, dtype=dtype))))
        theta = reference_step(theta, z, damping=0.8 * min(1.0, t / 4), lr=0.7)

        np.testing.assert_allclose(head.weight.detach()[0], theta, rtol=0, atol=tolerance * np.abs(theta).max())
    assert optimizer.n_updates == 6
    assert optimizer.n_negative_curvature == 0


def test_half_precision_weights_are_updated_by_single_precision_algebra():
    head, exact = linear_head(12, dtype=torch.bfloat16), linear_head(12)
    exact.weight.data = head.weight.data.double()
    z = torch.tensor(pairs(20, 12)).bfloat16()

    for one in (head, exact):
        optimizer = OnePassOptimizer(one.parameters(), lr=1.0, total_steps=1)
        optimizer.step(closure_of(optimizer, preference_loss(one, z.to(one.weight.dtype))))

    assert head.weight.dtype == torch.bfloat16
    torch.testing.assert_close(head.weight.double(), exact.weight, rtol=0.02, atol=0.02)


def test_as_many_steps_as_pairs_and_one_are_a_damped_newton_step():
    z = pairs(4, 30)
    head = linear_head(30)
    theta = head.weight.detach().numpy()[0].copy()
    optimizer = OnePassOptimizer(head.parameters(), lr=1.0, n_steps=4, damping=0.3, total_steps=1)

    optimizer.step(closure_of(optimizer, preference_loss(head, torch.tensor(z))))

    p = 1 / (1 + np.exp(-z @ theta))
    newton = np.linalg.solve((z.T * (p * (1 - p))) @ z / 4 + 0.3 * np.eye(30), z.T @ (p - 1) / 4)
    np.testing.assert_allclose(head.weight.detach()[0], theta - newton, rtol=0, atol=1e-12)


def llama(attention="sdpa"):
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=12,
            hidden_size=4,
            intermediate_size=6,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
            num_labels=1,
            initializer_range=0.3,
            attn_implementation=attention,
        )
    )


def gpt2():
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=12, n_positions=6, n_embd=4, n_layer=1, n_head=2, n_inner=6, pad_token_id=0, num_labels=1,
            initializer_range=0.3, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, attn_implementation="sdpa",
        )
    )  # fmt: skip


TOKENS = torch.randint(1, 12, (8, 6), generator=torch.Generator().manual_seed(5))
TOKENS[0, 4:] = 0


def classifier_loss(call):
    """The mean Bradley-Terry loss of four pairs, one of them with padding; `call` takes what a classifier takes."""
    mask = (TOKENS > 0).long()
    chosen, rejected = call(input_ids=TOKENS, attention_mask=mask, use_cache=False).logits.squeeze(-1).chunk(2)
    return -logsigmoid(chosen - rejected).mean()


def flat(tensors):
    return torch.cat([x.detach().flatten() for x in tensors])


def step_of(model, **settings):
    """What one update with lr 1 subtracts, and the optimizer."""
    before = flat(model.parameters())
    optimizer = OnePassOptimizer(model.parameters(), lr=1.0, total_steps=1, **settings)
    optimizer.step(closure_of(optimizer, lambda: classifier_loss(model)))
    return (before - flat(model.parameters())).numpy(), optimizer


def automatic_hessian(model):
    """[N, N], forward over reverse, through attention written out."""
    names, values = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in values]

    def loss(vector):
        weights = {name: part.view_as(p) for name, part, p in zip(names, vector.split(sizes), values, strict=True)}
        return classifier_loss(lambda **inputs: functional_call(model, weights, kwargs=inputs))

    return hessian(loss)(flat(values)).numpy()


def numerical_hessian(model, width=1e-5):
    """[N, N], central differences of the gradient."""
    columns = []
    for p in model.parameters():
        for i in range(p.numel()):
            gradients = []
            for sign in (1, -1):
                p.data.view(-1)[i] += sign * width
                gradients.append(flat(torch.autograd.grad(classifier_loss(model), list(model.parameters()))))
                p.data.view(-1)[i] -= sign * width
            columns.append((gradients[0] - gradients[1]) / (2 * width))
    return torch.stack(columns).numpy()


@pytest.mark.parametrize(
    ("build", "dense", "tolerance"),
    [
        # Llama's norms and rotations compute in float32 whatever the model's dtype.
        pytest.param(llama, lambda: automatic_hessian(_seeded(lambda: llama("eager"))), 1e-4, id="torch.func, Llama"),
        pytest.param(gpt2, lambda: numerical_hessian(_seeded(gpt2)), 1e-7, id="finite differences, GPT-2"),
    ],
)
def test_an_update_of_a_full_model_is_that_of_the_explicit_hessian(build, dense, tolerance):
    model, matrix = _seeded(build), dense()
    gradient = flat(torch.autograd.grad(classifier_loss(model), list(model.parameters()))).numpy()
    lowest = np.linalg.eigvalsh(matrix)[0]
    assert lowest < -0.01  # a full model is not convex

    damping = 0.5 - lowest
    found, optimizer = step_of(model, damping=damping)

    expected = reference_cg(matrix + damping * np.eye(len(matrix)), gradient, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.linalg.norm(expected))
    assert np.linalg.norm(found - gradient / damping) > 0.1 * np.linalg.norm(found)  # the Hessian has a say
    assert optimizer.n_negative_curvature == 0


def _seeded(build):
    torch.manual_seed(3)
    return build().double()


def test_negative_curvature_ends_the_iteration_and_is_counted():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = OnePassOptimizer([w], lr=0.1, damping=0.5, total_steps=1)

    optimizer.step(closure_of(optimizer, lambda: -(w**2).sum()))  # the Hessian is -2 I; the gradient (-2, -4)

    # With the damping -1.5 I, whose size divides the gradient.
    torch.testing.assert_close(w.detach(), torch.tensor([1.0, 2.0]) * (1 + 0.1 * 2 / 1.5))
    assert optimizer.n_negative_curvature == 1


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_a_newton_step_at_negative_curvature_is_no_larger_for_a_larger_loss(scale):
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = OnePassOptimizer([w], lr=1.0, damping=0.1, total_steps=1)

    optimizer.step(closure_of(optimizer, lambda: -scale * (w**2).sum()))

    factor = 1 + 2 * scale / (2 * scale - 0.1)  # about 2; by the gradient itself it were 1 + 2 scale
    torch.testing.assert_close(w.detach(), torch.tensor([1.0, 2.0], dtype=torch.float64) * factor)


def test_the_damping_of_the_update_bounds_a_step_along_negative_curvature():
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = OnePassOptimizer([w], lr=1.0, damping=0.8, total_steps=4)

    optimizer.step(closure_of(optimizer, lambda: -0.125 * (w**2).sum()))  # -0.25 I, and -0.05 I with the damping 0.2

    torch.testing.assert_close(w.detach(), torch.tensor([1.0, 2.0], dtype=torch.float64) * (1 + 0.25 / 0.2))
    assert optimizer.n_negative_curvature == 1


def test_plain_attention_cannot_be_differentiated_twice_and_in_an_update_it_can():
    x = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    w = nn.Parameter(torch.eye(4))

    def loss():
        return scaled_dot_product_attention(x @ w, x @ w, x @ w).square().sum()

    (gradient,) = torch.autograd.grad(loss(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(gradient.sum(), w)
    optimizer = OnePassOptimizer([w], lr=0.1, total_steps=1)
    before = loss().item()
    assert optimizer.step(closure_of(optimizer, loss)).item() == pytest.approx(before, rel=1e-5)
    assert loss().item() < before


def test_what_stands_in_grad_after_the_closure_is_the_right_hand_side():
    z = torch.tensor(pairs(20, 12))
    whole, half = linear_head(12), linear_head(12)
    before = whole.weight.detach().clone()
    optimizers = [OnePassOptimizer(head.parameters(), lr=1.0, total_steps=1) for head in (whole, half)]

    def halved():
        loss = closure_of(optimizers[1], preference_loss(half, z))()
        half.weight.grad.mul_(0.5)
        return loss

    optimizers[0].step(closure_of(optimizers[0], preference_loss(whole, z)))
    optimizers[1].step(halved)

    torch.testing.assert_close(2 * (half.weight - before), whole.weight - before, rtol=1e-12, atol=1e-14)


def test_gradients_of_other_parameters_and_frozen_ones_are_left_alone():
    body, head = nn.Linear(5, 3), nn.Linear(3, 1)
    spare = nn.Parameter(torch.ones(2))
    head.bias.requires_grad_(False)
    optimizer = OnePassOptimizer([*head.parameters(), spare], lr=1.0, total_steps=1)
    bias, before = head.bias.clone(), head.weight.clone()

    optimizer.step(closure_of(optimizer, lambda: head(body(torch.ones(4, 5)).tanh()).exp().mean()))

    assert body.weight.grad is None
    assert spare.grad is None and spare.tolist() == [1.0, 1.0]
    assert torch.equal(head.bias, bias)
    assert not torch.equal(head.weight, before)


def test_each_group_has_its_own_learning_rate():
    def updated(groups):
        layers = [linear_head(6, seed=s) for s in (1, 2)]
        before = [layer.weight.detach().clone() for layer in layers]
        optimizer = OnePassOptimizer(groups(layers), lr=1.0, total_steps=1)
        z = torch.tensor(pairs(9, 6))
        optimizer.step(closure_of(optimizer, lambda: -logsigmoid(layers[0](z) + layers[1](z)).mean()))
        return [layer.weight.detach() - old for layer, old in zip(layers, before, strict=True)]

    one = updated(lambda layers: [layer.weight for layer in layers])
    two = updated(lambda layers: [{"params": layers[0].weight}, {"params": layers[1].weight, "lr": 0.25}])

    torch.testing.assert_close(two[0], one[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(two[1], 0.25 * one[1], rtol=1e-12, atol=1e-15)


def test_a_loss_without_curvature_gives_the_damped_gradient():
    w, slope = nn.Parameter(torch.zeros(3)), torch.tensor([1.0, -2.0, 4.0])
    optimizer = OnePassOptimizer([w], lr=1.0, damping=0.5, total_steps=1)

    optimizer.step(closure_of(optimizer, lambda: w @ slope))

    torch.testing.assert_close(w.detach(), -slope / 0.5)


def test_a_restored_optimizer_goes_on_with_the_same_bits():
    def run(head, optimizer, batches):
        for seed in batches:
            z = torch.tensor(pairs(8, 5, seed), dtype=torch.float32)
            optimizer.step(closure_of(optimizer, preference_loss(head, z)))

    heads = [linear_head(5, dtype=torch.float32) for _ in range(2)]
    optimizers = [OnePassOptimizer(head.parameters(), lr=0.9, total_steps=9) for head in heads]
    run(heads[0], optimizers[0], range(3))
    heads[1].load_state_dict(heads[0].state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())

    for head, optimizer in zip(heads, optimizers, strict=True):
        run(head, optimizer, range(3, 6))

    assert torch.equal(heads[0].weight, heads[1].weight)
    assert optimizers[1].n_updates == 6


def test_the_graph_of_a_batch_is_freed_with_the_update():
    head, z = linear_head(5), torch.tensor(pairs(8, 5))
    optimizer, kept = OnePassOptimizer(head.parameters(), lr=1.0, total_steps=1), []

    def closure():
        optimizer.zero_grad()
        loss = preference_loss(head, z)()
        kept.append(weakref.ref(loss))
        loss.backward()

    gc.disable()
    try:
        optimizer.step(closure)
        assert kept[0]() is None
    finally:
        gc.enable()


# What is refused


def weight():
    return nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"total_steps": 0}, "total_steps: got 0, expected at least 1"),
        ({"n_steps": 0}, "n_steps: got 0, expected at least 1"),
        ({"damping": 0.0}, r"damping: got 0\.0, expected a positive number"),
        ({"damping": float("nan")}, "damping: got nan, expected a positive number"),
        ({"lr": -1.0}, r"lr: got -1\.0, expected a positive number"),
        ({"params": []}, "empty parameter list"),
        ({"params": [torch.ones(2, requires_grad=True) * 2]}, "non-leaf.*; expected the trainable leaf tensors"),
        ({"params": [{"params": [torch.ones(2)], "lr": 0.0}]}, r"lr: got 0\.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        OnePassOptimizer(**{"params": [weight()], "lr": 1.0, "total_steps": 10} | settings)


def refused_step(closure_for):
    w = weight()
    optimizer = OnePassOptimizer([w], lr=1.0, total_steps=10)
    with pytest.raises(UserError) as error:
        optimizer.step(closure_for(w))
    assert w.tolist() == [1.0, 1.0] and optimizer.n_updates == 0
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_step_without_a_closure_is_refused():
    assert "got step() without a closure" in refused_step(lambda w: None)


def test_a_closure_without_backward_is_refused():
    assert "never called backward()" in refused_step(lambda w: lambda: w.sum())


def test_two_backward_calls_are_refused():
    assert "a second backward()" in refused_step(lambda w: lambda: [w.exp().sum().backward() for _ in range(2)])


def test_backward_with_a_weight_is_refused():
    assert "with `gradient`" in refused_step(lambda w: lambda: w.exp().backward(torch.ones(2)))


def test_accumulated_gradients_are_refused():
    def after_another_batch(w):
        w.exp().sum().backward()
        return lambda: w.exp().sum().backward()

    assert "gradients of earlier batches" in refused_step(after_another_batch)


def test_a_gradient_scaler_is_refused():
    w = weight()
    optimizer, scaler = OnePassOptimizer([w], lr=1.0, total_steps=10), torch.amp.GradScaler("cpu")
    scaler.scale(w.exp().sum()).backward()

    with pytest.raises(UserError, match="bf16-mixed instead of 16-mixed"):
        scaler.step(optimizer)


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were():
    w = weight()
    optimizer = OnePassOptimizer([w], lr=1.0, total_steps=10)

    with pytest.raises(TrainingError, match="expected a finite number"):
        optimizer.step(closure_of(optimizer, lambda: (w - 1).log().sum()))

    assert w.tolist() == [1.0, 1.0] and optimizer.n_updates == 0


def _refused_on_rank(rank, folder):
    torch.distributed.barrier()  # neither rank leaves before both have met
    refusal = refused_step(lambda w: lambda: w.exp().sum().backward())
    assert "got 2 processes, expected 1" in refusal


def test_several_processes_are_refused(tmp_path):
    run_in_two_processes(_refused_on_rank, tmp_path)
