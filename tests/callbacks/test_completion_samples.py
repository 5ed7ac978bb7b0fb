import html
import json
import re

import pytest
import torch
from modules.grpo_runs import grpo, prompt_data, texts, train
from modules.held_out_sets import SETS, named_sets

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.adjustment.weights import UniformWeights
from grpovi_lightning.callbacks import CompletionSamples
from grpovi_lightning.callbacks.samples import markdown_table
from grpovi_lightning.errors import UserError
from grpovi_lightning.modules import HeldOutEvaluation

HOSTILE = (
    "<script>alert('x')</script> | a\nb `c` **d** [e](javascript:f) & \\ # _g_ \r\x00 ~~h~~ <img src=x> é 漢字 😀 &lt;"
)


def rows(table):
    """Cells as a reader sees them, header and rule left out."""
    lines = table.split("\n")
    assert set(lines[1]) <= set("| -")
    return [[html.unescape(cell.strip()) for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def tag(found, end):
    """`add_text` appends `/text_summary` to the tag."""
    (key,) = [name for name in found if name.startswith(end)]
    return found[key]


@pytest.fixture
def run(policy_folder, tmp_path):
    module = grpo(policy_folder, adjustment=VarianceIncrease(UniformWeights()))
    recorded = train(module, tmp_path, 5, CompletionSamples(every_n_steps=2, n_prompts=2), validate_every=2)
    return recorded, texts(tmp_path)


def test_training_samples_show_reward_adjusted_reward_and_advantage(run):
    recorded, found = run
    tables = tag(found, "completions")

    assert sorted(tables) == [0, 2, 4]
    for step, table in tables.items():
        output, shown = recorded.outputs[step], rows(table)
        assert len(shown) == 2 * 4
        for i, (prompt, completion, *numbers) in enumerate(shown):
            p, g = divmod(i, 4)
            assert prompt == output.rollout.prompts.texts[p]
            assert completion == output.rollout.texts[i]
            shown_values = (output.rewards, output.adjusted.rewards, output.advantages)
            expected = [float(values[p, g]) for values in shown_values]
            assert [float(number) for number in numbers] == pytest.approx(expected, abs=5e-4)
        assert table.split("\n")[0] == "| prompt | completion | reward | adjusted reward | advantage |"


def test_held_out_samples_stand_at_the_updates_done_and_are_of_the_held_out_prompts(run):
    tables = tag(run[1], "eval/completions")

    assert sorted(tables) == [0, 2, 4]
    assert [row[0] for row in rows(tables[0])] == ["the fox", "write a happy cat"]
    assert [len(row) for row in rows(tables[4])] == [3, 3]


def test_each_held_out_set_has_a_table_with_one_of_the_samples_of_a_prompt(policy_folder, tmp_path):
    module = grpo(policy_folder, evaluation=HeldOutEvaluation(samples=3))
    train(module, tmp_path, 1, CompletionSamples(n_held_out=3), validate_every=1, data=named_sets(tmp_path / "data"))
    for name, prompts in SETS.items():
        tables = tag(texts(tmp_path), f"eval/{name}/completions")
        assert sorted(tables) == [0, 1]
        assert [row[0] for row in rows(tables[1])] == prompts[:2]  # of the first batch
    module = grpo(policy_folder)
    train(module, tmp_path / "one", 1, CompletionSamples(), validate_every=1, data=named_sets(tmp_path / "data"))
    for name in SETS:  # the first of three samples is the only one of one
        three, one = (tag(texts(folder), f"eval/{name}/completions")[0] for folder in (tmp_path, tmp_path / "one"))
        assert three == one


def test_samples_of_a_continued_run_stand_at_their_own_steps(policy_folder, tmp_path):
    samples = {"validate_every": 2, "checkpoint_every": 3, "max_epochs": -1}
    train(grpo(policy_folder), tmp_path, 3, CompletionSamples(every_n_steps=2), **samples)
    train(
        grpo(policy_folder),
        tmp_path,
        6,
        CompletionSamples(every_n_steps=2),
        ckpt_path=tmp_path / "checkpoints" / "last.ckpt",
        **samples,
    )

    found = texts(tmp_path)
    assert sorted(tag(found, "completions")) == [0, 2, 4]
    assert sorted(tag(found, "eval/completions")) == [0, 2, 4, 6]


def test_hostile_text_is_shown_literally_and_stays_in_its_cell():
    table = markdown_table(["prompt", "completion"], [[HOSTILE, "next"], ["a", "b"]])

    assert len(table.split("\n")) == 4
    line = table.split("\n")[2]
    assert not re.search(r"[<>`*\[\]\\_~'#]", line.replace("&#", ""))
    assert line.count("|") == 3
    for character in HOSTILE:
        if not character.isalnum() and character not in " .,-":
            assert f"&#{ord(character)};" in line


def test_the_markdown_of_tensorboard_shows_hostile_text_as_text():
    from tensorboard.plugin_util import markdowns_to_safe_html

    table = markdown_table(["prompt", "completion"], [[HOSTILE, "- not a list"]])

    page = markdowns_to_safe_html([table], lambda parts: "".join(parts))

    assert not re.search(r"<(script|img|code|strong|em|a|del|li)\b", page)
    assert len(re.findall(r"<td", page)) == 2
    cell = html.unescape(re.search(r"<td[^>]*>(.*?)</td>", page, re.S).group(1))
    for part in ("<script>alert('x')</script> |", "`c` **d** [e](javascript:f)", "_g_", "<img src=x> é 漢字 😀 &lt;"):
        assert part in cell


def test_hostile_completions_reach_the_event_file_literally(policy_folder, tmp_path):
    module = grpo(policy_folder)
    module.configure_model()
    data = prompt_data(tmp_path / "data")
    prompt = "write <script>alert(1)</script> | ` about\nthe fox"
    (tmp_path / "data" / "prompts.jsonl").write_text((json.dumps({"prompt": prompt}) + "\n") * 3)

    train(module, tmp_path, 1, CompletionSamples(every_n_steps=1), data=data)

    shown = rows(tag(texts(tmp_path), "completions")[0])
    assert {row[0] for row in shown} == {prompt}
    assert "<script>" not in tag(texts(tmp_path), "completions")[0]


def test_an_interval_below_1_is_refused():
    with pytest.raises(UserError, match=r"samples\.every_n_steps: got 0, expected at least 1"):
        CompletionSamples(every_n_steps=0)


def test_runs_without_completions_write_no_samples(policy_folder, tmp_path):
    callback = CompletionSamples(every_n_steps=1)
    callback.on_train_batch_end(None, None, {"loss": torch.tensor(1.0)}, None, 0)
    callback.on_train_batch_end(None, None, torch.tensor(1.0), None, 0)
