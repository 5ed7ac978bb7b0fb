"""What reward functions are told about the run."""

from modules.grpo_runs import grpo, train
from modules.held_out_sets import one_set

from grpovi_lightning.modules import HeldOutEvaluation
from grpovi_lightning.structures import RunProgress


def test_a_function_is_told_how_far_the_run_is(policy_folder, tmp_path):
    """Three steps of two updates each; eight prompts in two steps of four are a pass."""
    seen = []

    def reward(completions, trainer_state):
        seen.append(("reward", len(completions), trainer_state))
        return [float(len(text)) for text in completions]

    def metric(completions, trainer_state):
        seen.append(("metric", len(completions), trainer_state))
        return [0.0] * len(completions)

    evaluation = HeldOutEvaluation(metrics={"mine": metric})
    made = grpo(policy_folder, reward, num_iterations=2, evaluation=evaluation)
    train(made, tmp_path, 6, validate_every=3, data=one_set(tmp_path / "data", "near", validation_batch_size=8))

    def state(step):
        return RunProgress(step=step, global_step=2 * step, max_steps=6, epoch=step / 2)

    evaluated = [[("reward", 4, state(step)), ("metric", 4, state(step))] for step in (0, 3)]
    trained = [("reward", 16, state(step)) for step in range(3)]
    assert seen == [*evaluated[0], *trained, *evaluated[1]]


def test_a_module_without_a_trainer_has_no_state(policy_folder):
    from grpovi_lightning.modules.progress import run_progress

    assert run_progress(grpo(policy_folder), 0, 1) is None
