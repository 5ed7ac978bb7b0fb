import json

import pytest
import torch
from modules.grpo_runs import identical, quiet, scalars, trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.data import DemonstrationDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import SFTModule

PAIRS = [
    ("write about the red fox", "the fox runs near the house ."),
    ("the old house", "it"),
    ("a sad cat", "the cat sleeps in a small boat"),
    ("ten words", "a dog finds the river and sings to it"),
]


SETS = {"hard": PAIRS[:3], "easy": PAIRS * 2}


def batch(pairs=PAIRS):
    return {"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]}


def transformers_loss(folder, pairs):
    """The library's own loss with labels of -100 on prompts and padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [(tokenizer(p)["input_ids"], [*tokenizer(c)["input_ids"], tokenizer.eos_token_id]) for p, c in pairs]
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.tensor([p + c + [0] * (width - len(p + c)) for p, c in rows])
    labels = torch.tensor([[-100] * len(p) + c + [-100] * (width - len(p + c)) for p, c in rows])
    mask = torch.tensor([[1] * len(p + c) + [0] * (width - len(p + c)) for p, c in rows])
    return model, model(input_ids=ids, attention_mask=mask, labels=labels).loss


@pytest.fixture
def sft(policy_folder):
    return lambda **settings: SFTModule(PretrainedCausalLM(str(policy_folder)), **settings)


@pytest.fixture
def data(tmp_path):
    for name, pairs in (("train", PAIRS * 2), ("validation", PAIRS[:3])):
        rows = [json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")]
    return lambda: DemonstrationDataModule(*files, batch_size=4, validation_batch_size=2, seed=1)


def fit(module, folder, data, steps, **settings):
    with quiet():
        trainer(folder, steps, **settings).fit(module, data)


def test_loss_and_gradient_equal_those_of_transformers_with_prompts_labelled_minus_100(sft, policy_folder):
    module = sft()
    module.configure_model()
    model, expected = transformers_loss(policy_folder, PAIRS)
    expected.backward()

    total, count = module._loss(batch())
    (total / count).backward()

    assert float(count) == sum(len(c.split()) + 1 for _, c in PAIRS)
    torch.testing.assert_close(total / count, expected, atol=1e-6, rtol=0)
    theirs = dict(model.named_parameters())
    for name, p in module.policy.model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)


def test_the_logged_loss_is_that_of_the_batch_before_its_update(sft, data, policy_folder, tmp_path):
    module = sft(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    seen = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: seen.append(batch) or step(batch, batch_idx)

    fit(module, tmp_path / "run", data(), 1)

    pairs = list(zip(seen[0]["prompt"], seen[0]["completion"], strict=True))
    logged = scalars(tmp_path / "run")["loss"]
    assert logged == {0: pytest.approx(float(transformers_loss(policy_folder, pairs)[1].detach()), rel=1e-5)}


def test_the_held_out_loss_is_the_mean_over_all_held_out_tokens(sft, data, policy_folder, tmp_path):
    fit(sft(), tmp_path / "run", data(), 1, validate_every=1)

    logged = scalars(tmp_path / "run")["eval/loss"]

    expected = float(transformers_loss(policy_folder, PAIRS[:3])[1].detach())
    assert min(logged) == 0
    assert logged[0] == pytest.approx(expected, rel=1e-5)


def test_several_held_out_sets_are_evaluated_by_name_and_the_first_stands_for_all(sft, data, policy_folder, tmp_path):
    files = data().sources
    sets = {"hard": files["validation"], "easy": files["train"]}
    named = DemonstrationDataModule(files["train"], sets, batch_size=4, validation_batch_size=3, seed=1)
    fit(sft(), tmp_path / "run", named, 1, validate_every=1)

    logged = scalars(tmp_path / "run")

    losses = {name: float(transformers_loss(policy_folder, rows)[1]) for name, rows in SETS.items()}
    assert losses["hard"] != pytest.approx(losses["easy"], rel=1e-3)
    for key, name in (("eval/hard/loss", "hard"), ("eval/easy/loss", "easy"), ("eval/loss", "hard")):
        assert logged[key][0] == pytest.approx(losses[name], rel=1e-5) and sorted(logged[key]) == [0, 1]


def test_training_lowers_the_loss(sft, data, tmp_path):
    fit(sft(optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3)), tmp_path / "run", data(), 30, validate_every=10)

    loss = scalars(tmp_path / "run")["eval/loss"]

    assert sorted(loss) == [0, 10, 20, 30]
    assert loss[30] < 0.3 * loss[0]


def test_two_runs_with_one_seed_are_equal_to_the_last_bit(sft, data, tmp_path):
    modules = [sft(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2)) for _ in range(2)]
    for i, module in enumerate(modules):
        fit(module, tmp_path / str(i), data(), 3)

    assert identical(*(dict(module.policy.model.named_parameters()) for module in modules))
    assert scalars(tmp_path / "0") == scalars(tmp_path / "1")


def test_the_saved_model_is_the_trained_one(sft, data, tmp_path):
    module = sft()
    fit(module, tmp_path / "run", data(), 1)

    module.save_pretrained(str(tmp_path / "model"))

    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    assert identical(saved, dict(module.policy.model.named_parameters()))


def test_a_missing_checkpoint_is_refused_before_loading(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        SFTModule(PretrainedCausalLM(str(tmp_path / "nowhere"))).check_inputs()
