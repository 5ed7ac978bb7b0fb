"""Tasks of arms in a study that runs."""

import pytest
import yaml

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.study import parse_study
from grpovi_lightning.run_record.tasks import arms_by_method


def test_the_record_of_a_study_keeps_the_tasks_of_its_arms(bench):
    arms = {
        f"{method}-{task}": {"configs": ["arm.yaml"], "task": task}
        | ({"baseline": f"plain-{task}"} if method == "other" else {})
        for task in ("easy", "hard")
        for method in ("plain", "other")
    }
    bench.write(arms=arms, seeds=[1])
    assert bench.compare() == 0
    recorded = parse_study(yaml.safe_load((bench.folder / "study.yaml").read_text()), "study.yaml", resolved=True)
    assert arms_by_method(recorded.arms) == {
        method: {task: f"{method}-{task}" for task in ("easy", "hard")} for method in ("plain", "other")
    }
    bench.write(arms=arms | {"other-hard": arms["other-hard"] | {"baseline": "plain-easy"}}, seeds=[1])
    with pytest.raises(UserError, match="has the task 'hard' and its baseline 'plain-easy' the task 'easy'"):
        bench.compare()
