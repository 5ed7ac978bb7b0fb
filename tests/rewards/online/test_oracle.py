"""Answers at random with the stated chance, and answers from files that may be late, wrong or missing."""

import json
import threading
import time
from dataclasses import replace

import pytest
import torch
from helpers.rollouts import rollout_of_words

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards.online import BradleyTerryOracle, FileOracle
from grpovi_lightning.rewards.online.oracle import Question

PROMPTS = ["the fox", "a boat"]
GROUPS = [["the fox runs", "fox"], ["a boat", "a red boat in the river"]]
PAIRS = [(0, 1), (3, 2)]
QUESTIONS = [Question("0-0", 0, 1), Question("0-1", 3, 2)]


def words(prompts, completions, completion_ids, **columns):
    return [float(len(text.split())) for text in completions]


@pytest.fixture
def rollout(tiny_tokenizer):
    return rollout_of_words(tiny_tokenizer, PROMPTS, GROUPS)


def asked(oracle, rollout, questions=QUESTIONS, unanswered=(), seed=1):
    return oracle.answer(rollout, questions, unanswered, seed)


class TestBradleyTerry:
    def test_the_share_of_ones_is_the_sigmoid_of_the_scaled_margin(self, rollout):
        # Rewards 3 and 1: the chance is sigmoid(0.35 * 2) = 0.668.
        many = [Question(f"0-{i}", 0, 1) for i in range(20_000)]
        labels = asked(BradleyTerryOracle(words, 0.35), rollout, many).labels
        expected = torch.sigmoid(torch.tensor(0.7)).item()
        assert sum(labels.values()) / 20_000 == pytest.approx(expected, abs=4 * (0.25 / 20_000) ** 0.5)

    def test_a_large_scale_always_prefers_the_better_one_and_says_what_each_is_worth(self, rollout):
        answers = asked(BradleyTerryOracle(words, 1e3), rollout, [*QUESTIONS, Question("0-2", 1, 0)])
        assert answers.labels == {"0-0": 1, "0-1": 1, "0-2": 0}
        assert answers.gold == [3.0, 1.0, 2.0, 6.0] and not answers.problems

    def test_the_same_seed_and_step_give_the_same_answers_and_others_do_not(self, rollout):
        many = [Question(f"0-{i}", 0, 1) for i in range(64)]
        oracle = BradleyTerryOracle(words, 0.1)
        assert asked(oracle, rollout, many) == asked(oracle, rollout, many)
        assert asked(oracle, rollout, many).labels != asked(oracle, rollout, many, seed=2).labels

    def test_a_completion_without_a_gold_reward_is_an_error(self, rollout):
        oracle = BradleyTerryOracle(lambda prompts, completions, completion_ids: [None, 1.0, 1.0, 1.0])
        with pytest.raises(TrainingError, match="gave no reward for 'the fox runs', expected a number for every"):
            asked(oracle, rollout)

    def test_a_gold_reward_that_needs_a_column_of_the_training_prompts_says_so_before(self):
        oracle = BradleyTerryOracle(lambda completions, difficulty: [], 1.0)
        oracle.check_columns(["difficulty"])
        with pytest.raises(
            UserError, match="needs the argument 'difficulty', but the columns of the train table are a"
        ):
            oracle.check_columns(["a"])

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
    def test_a_scale_that_is_not_positive_is_refused(self, scale):
        with pytest.raises(UserError, match=r"oracle scale: got .*, expected a finite number above 0"):
            BradleyTerryOracle(words, scale)


def write_answers(folder, lines, name="a.jsonl"):
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    draft = folder / "answers" / f"{name}.part"
    draft.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    draft.replace(folder / "answers" / name)


def waited(oracle, rollout, questions=QUESTIONS, unanswered=()):
    """What the oracle says when it stops waiting, and how often it was asked."""
    answers, calls = asked(oracle, rollout, questions, unanswered), 1
    while answers.waiting:
        answers, calls = asked(oracle, rollout, questions, unanswered), calls + 1
    return answers, calls


def question_lines(folder):
    return [json.loads(line) for line in (folder / "questions" / "00000000.jsonl").read_text().split("\n")[:-1]]


class TestNames:
    def test_they_follow_from_the_step_and_the_texts(self, rollout, tiny_tokenizer):
        first, second = Question.about(rollout, PAIRS)
        assert Question.about(rollout, PAIRS[::-1]) == [second, first]
        assert first.name.startswith("0-") and first.name != second.name
        later = Question.about(replace(rollout, step=3), PAIRS)
        assert {question.name for question in later}.isdisjoint({first.name, second.name})
        other = rollout_of_words(tiny_tokenizer, PROMPTS, [["the fox runs", "a fox"], GROUPS[1]])
        assert [question.name for question in Question.about(other, PAIRS)][1:] == [second.name]

    def test_the_order_of_the_two_is_part_of_it(self, rollout):
        assert Question.about(rollout, [(0, 1)])[0].name != Question.about(rollout, [(1, 0)])[0].name

    def test_the_same_texts_twice_in_a_round_are_two_questions(self, tiny_tokenizer):
        same = rollout_of_words(tiny_tokenizer, ["the fox"], [["fox", "dog", "fox"]], truncated=[False, False, True])
        names = [question.name for question in Question.about(same, [(0, 1), (2, 1)])]
        assert names[1] == names[0] + "+"


class TestFiles:
    def test_questions_are_written_and_answers_read(self, rollout, tmp_path):
        write_answers(tmp_path, [{"name": "0-0", "label": 1}, {"name": "0-1", "label": 0, "by": "me"}])
        answers, calls = waited(FileOracle(str(tmp_path), timeout_seconds=60.0), rollout)
        assert answers.labels == {"0-0": 1, "0-1": 0} and not answers.problems and answers.gold is None and calls == 1
        assert question_lines(tmp_path) == [
            {"name": "0-0", "prompt": "the fox", "first": "the fox runs", "second": "fox"},
            {"name": "0-1", "prompt": "a boat", "first": "a red boat in the river", "second": "a boat"},
        ]

    def test_it_waits_for_whoever_answers(self, rollout, tmp_path):
        def answer():
            while not (tmp_path / "questions" / "00000000.jsonl").exists():
                time.sleep(0.005)
            write_answers(tmp_path, [{"name": "0-0", "label": 0}], "first.jsonl")
            time.sleep(0.05)
            write_answers(tmp_path, [{"name": "0-1", "label": 1}], "second.jsonl")

        thread = threading.Thread(target=answer)
        thread.start()
        answers, calls = waited(FileOracle(str(tmp_path), timeout_seconds=60.0, poll_seconds=0.01), rollout)
        thread.join()
        assert answers.labels == {"0-0": 0, "0-1": 1} and calls > 1

    def test_it_comes_back_between_two_looks_so_that_others_are_heard(self, rollout, tmp_path):
        oracle = FileOracle(str(tmp_path), timeout_seconds=3600.0, poll_seconds=0.01)
        began = time.monotonic()
        assert asked(oracle, rollout).waiting and asked(oracle, rollout).waiting
        assert time.monotonic() - began < 5.0

    def test_silence_ends_at_the_time_out_and_is_told(self, rollout, tmp_path):
        write_answers(tmp_path, [{"name": "0-1", "label": 1}])
        answers, _ = waited(FileOracle(str(tmp_path), timeout_seconds=0.05, poll_seconds=0.01), rollout)
        assert answers.labels == {"0-1": 1}
        (problem,) = answers.problems
        assert "questions had no answer after 0.05 s; training goes on" in problem

    def test_late_answers_to_earlier_questions_are_found_and_those_to_none_are_told(self, rollout, tmp_path):
        oracle = FileOracle(str(tmp_path), 0.0)
        asked(oracle, replace(rollout, step=7), [Question("7-3", 0, 1), Question("7-4", 0, 1)])
        names = ("0-0", "0-1", "elsewhere", "7-3", "7-4")
        write_answers(tmp_path, [{"name": name, "label": 1} for name in names])
        answers = asked(oracle, rollout, unanswered=["7-3"])
        assert answers.labels == {"0-0": 1, "0-1": 1, "7-3": 1}
        (problem,) = answers.problems  # 7-4 was asked, and is answered long since
        assert "a.jsonl, line 3: no question has the name 'elsewhere'" in problem

    @pytest.mark.parametrize(
        "line",
        ['{"name": "0-0", "label": 2}', '{"name": "0-0", "label": true}', '{"name": "0-0"', '{"label": 1}', "1", "yes"],
    )
    def test_a_line_that_is_no_answer_is_told_and_counts_as_none(self, rollout, tmp_path, line):
        write_answers(tmp_path, [line, {"name": "0-1", "label": 0}])
        answers = asked(FileOracle(str(tmp_path), 0.0), rollout)
        assert answers.labels == {"0-1": 0}
        assert "a.jsonl, line 1: got" in answers.problems[0] and "label" in answers.problems[0]

    def test_the_later_of_two_answers_counts(self, rollout, tmp_path):
        write_answers(tmp_path, [{"name": "0-0", "label": 0}, {"name": "0-0", "label": 1}], "a.jsonl")
        write_answers(tmp_path, [{"name": "0-1", "label": 1}], "b.jsonl")
        write_answers(tmp_path, [{"name": "0-1", "label": 0}], "c.jsonl")
        assert asked(FileOracle(str(tmp_path), 0.0), rollout).labels == {"0-0": 1, "0-1": 0}

    def test_no_character_of_a_text_ends_a_line_of_the_questions_or_of_the_answers(self, tiny_tokenizer, tmp_path):
        odd = rollout_of_words(tiny_tokenizer, ["the fox"], [["fox", "dog"]])
        odd = replace(odd, texts=["one\u2028two\u0085three\n", "\ud800 half a character"])
        questions = Question.about(odd, [(0, 1)])
        oracle = FileOracle(str(tmp_path), 0.0)
        asked(oracle, odd, questions)
        (line,) = question_lines(tmp_path)
        assert (line["first"], line["second"]) == tuple(odd.texts)
        (tmp_path / "answers" / "a.jsonl").write_text(
            "\ufeff" + json.dumps({**line, "second": "", "label": 1}, ensure_ascii=False), encoding="utf-8"
        )
        answers = asked(FileOracle(str(tmp_path), 0.0), odd, questions)
        assert answers.labels == {line["name"]: 1} and not answers.problems

    def test_a_file_that_cannot_be_read_is_told_and_one_that_an_editor_hides_is_passed_over(self, rollout, tmp_path):
        write_answers(tmp_path, [{"name": "0-0", "label": 1}, {"name": "0-1", "label": 1}])
        (tmp_path / "answers" / ".#a.jsonl").symlink_to(tmp_path / "nowhere")
        (tmp_path / "answers" / "b.jsonl").mkdir()
        answers = asked(FileOracle(str(tmp_path), 0.0), rollout)
        assert answers.labels == {"0-0": 1, "0-1": 1}
        assert len(answers.problems) == 1 and "b.jsonl" in answers.problems[0]

    def test_asking_again_adds_what_is_new_and_takes_nothing_away(self, rollout, tmp_path):
        asked(FileOracle(str(tmp_path), 0.0), rollout)
        before = (tmp_path / "questions" / "00000000.jsonl").read_text()
        asked(FileOracle(str(tmp_path), 0.0), rollout, [QUESTIONS[1], Question("0-2", 1, 0)])
        after = (tmp_path / "questions" / "00000000.jsonl").read_text()
        assert after.startswith(before) and [line["name"] for line in question_lines(tmp_path)] == ["0-0", "0-1", "0-2"]

    def test_a_question_file_that_somebody_changed_is_named_and_left_alone(self, rollout, tmp_path):
        asked(FileOracle(str(tmp_path), 0.0), rollout)
        file = tmp_path / "questions" / "00000000.jsonl"
        file.write_text("not a question\n")
        with pytest.raises(UserError, match=r"00000000\.jsonl holds a line that is no question; restore it"):
            asked(FileOracle(str(tmp_path), 0.0), rollout)
        assert file.read_text() == "not a question\n"

    def test_no_questions_write_no_file(self, rollout, tmp_path):
        assert not asked(FileOracle(str(tmp_path), 0.0), rollout, []).waiting
        assert not (tmp_path / "questions").exists()

    def test_settings_that_cannot_work_are_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"oracle timeout_seconds: got -1\.0, expected"):
            FileOracle(str(tmp_path), -1.0)
        for poll in (float("nan"), 0.0, 11.0):
            with pytest.raises(UserError, match=r"oracle poll_seconds: got .*, expected above 0 and up to 10"):
                FileOracle(str(tmp_path), 1.0, poll)
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(UserError, match=r"oracle folder .*file is no folder that can be written; name another"):
                FileOracle(str(path)).check()
        FileOracle(str(tmp_path / "new" / "folder")).check()
        assert not (tmp_path / "new").exists()
