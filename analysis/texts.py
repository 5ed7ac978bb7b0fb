"""What the policies wrote: the same held-out prompts under each arm, and the mean reward of every prompt."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.completions import RUN, read_run
from analysis.loading import RunFolder, find_runs
from analysis.study import Analysis
from analysis.tables import groups, rows_where
from grpovi_lightning.run_record.completions import HELD_OUT
from grpovi_lightning.run_record.layout import RecordError

N_PROMPTS = 4
MOST_ARMS = 8
SHOWN = 1000
"""Characters of a text that the page shows."""
SHOWN_LINES = 30
"""Lines of them at most."""
SHOWN_IN_TABLE = 120
"""Characters of a prompt in `prompts.csv`."""

_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufff9-\ufffb{_DIRECTIONS}]")


@dataclass(frozen=True)
class Shown:
    """A text as the page shows it.

    Attributes:
        text: its beginning, control characters made visible.
        length: characters of the whole.
        cut: how many of them are left out.
    """

    text: str
    length: int
    cut: int


@dataclass(frozen=True)
class Sample:
    """A completion: its text, reward, components of the reward, KL (NaN where not known), tokens."""

    completion: Shown
    reward: float
    components: Mapping[str, float]
    kl: float
    length: int
    truncated: bool


@dataclass(frozen=True)
class SamePrompt:
    """One prompt, and what each arm wrote to it: (step, one sample an arm), None where an arm has none."""

    prompt: Shown
    steps: list[tuple[int, list[Sample | None]]]


@dataclass(frozen=True)
class Texts:
    """The section of the report.

    Attributes:
        arms: in order, those that are shown.
        n_arms: those that have completions.
        seed: of the runs that are shown.
        set: name of the held-out set; empty of one without a name.
        prompts: the first ones in the order of their ids that all these runs have.
        n_prompts: of those, how many there are.
        problems: a line for each run that could not be read.
        without: arms none of whose runs kept completions.
    """

    arms: list[str]
    n_arms: int
    seed: int | None
    set: str
    prompts: list[SamePrompt]
    n_prompts: int
    problems: list[str]
    without: list[str]


def prompt_rewards(completions: pd.DataFrame) -> pd.DataFrame:
    """Return the mean reward of every held-out prompt at the end of training, arm by arm.

    A prompt counts at the last step at which any run of the arm was evaluated; runs that ended before it are not in
    its means, and `n` shows it. Completions without a reward are left out.

    Args:
        completions: as from `load_completions`.

    Returns:
        One row an arm, held-out set and prompt, sorted: `prompt_id`, `prompt`, `arm`, `set`, `step`, `reward` and each
        `rewards/<name>` (mean over a run's completions of the prompt, then over its seeds), `n` (seeds with a reward).
    """
    held_out = rows_where(completions, completions["split"] == HELD_OUT)
    rewards = ["reward", *(name for name in held_out.columns if name.startswith("rewards/"))]
    columns = ["prompt_id", "prompt", "arm", "set", "step", *rewards, "n"]
    found = []
    for (arm, name), rows in groups(held_out, "arm", "set"):
        last = rows_where(rows, rows["step"] == rows["step"].max())
        means: dict[str, Any] = {"prompt": "first"} | dict.fromkeys(rewards, "mean")
        by_run = last.groupby(["prompt_id", "run"], as_index=False).agg(means)
        by_prompt = by_run.groupby("prompt_id").agg(means)
        by_prompt["n"] = by_run.groupby("prompt_id")["reward"].count()
        found.append(by_prompt.reset_index().assign(arm=arm, set=name, step=last["step"].iloc[0]))
    if not found:
        return pd.DataFrame(columns=columns)
    table = pd.concat(found, ignore_index=True).reindex(columns=columns)
    return table.sort_values(["set", "prompt_id", "arm"], kind="stable", ignore_index=True)


def as_csv(table: pd.DataFrame) -> str:
    """Return a table of `prompt_rewards` as CSV, with the beginning of each prompt: its id names the whole."""
    shortened = [shown(prompt, SHOWN_IN_TABLE) for prompt in table["prompt"]]
    prompts = [each.text + (f"… ({each.length} characters)" if each.cut else "") for each in shortened]
    return table.assign(prompt=prompts).to_csv(index=False, lineterminator="\n")


def last_evaluations(analysis: Analysis) -> tuple[pd.DataFrame, list[str]]:
    """Return the held-out rows of each run that counts at its last evaluation, without texts, and what is unreadable.

    Returns:
        rows as of `load_completions`, and a line for each run whose files are damaged.
    """
    tables, problems = [], []
    for folder in _folders(analysis, analysis.counted["run"]):
        try:
            rows = read_run(folder, HELD_OUT, without=("completion", "logprob", "ref_logprob", "kl", "ids"))
        except RecordError as error:
            problems.append(str(error))
            continue
        tables += [rows_where(of_set, of_set["step"] == of_set["step"].max()) for _, of_set in groups(rows, "set")]
    columns = [*RUN, "step", "prompt_id", "prompt", "reward"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns), problems


def _folders(analysis: Analysis, runs: Iterable[str]) -> list[RunFolder]:
    wanted = set(runs)
    return [folder for folder in find_runs(analysis.path) if folder.run in wanted]


def texts_of(analysis: Analysis, last: pd.DataFrame, problems: list[str]) -> Texts | None:
    """Choose what the page shows, from `last_evaluations`; None where no run that counts kept completions.

    The seed is the smallest one that the most arms have. The set is that of the compared metric, else the first by
    name. Prompts come in the order of their ids, which are hashes, so that no arm and no reward has a say.
    """
    if last.empty and not problems:
        return None
    known = set(last["arm"])
    without = [arm for arm in analysis.arms if arm not in known]
    sets = sorted(set(last["set"]))
    name = next((each for each in sets if each and f"/{each}/" in analysis.settings.metric), sets[0] if sets else "")
    of_set = rows_where(last, (last["set"] == name) & last["seed"].notna())
    n_arms_of = {int(seed): rows["arm"].nunique() for (seed,), rows in groups(of_set, "seed")}
    seed = min(n_arms_of, key=lambda each: (-n_arms_of[each], each)) if n_arms_of else None
    of_arm = {str(arm): rows for (arm,), rows in groups(rows_where(of_set, of_set["seed"] == seed), "arm")}
    arms = [arm for arm in analysis.arms if arm in of_arm][:MOST_ARMS]
    ids = sorted(set.intersection(*(set(of_arm[arm]["prompt_id"]) for arm in arms))) if arms else []
    runs = {str(of_arm[arm]["run"].iloc[0]) for arm in arms}
    tables = [read_run(folder, HELD_OUT, ids[:N_PROMPTS]) for folder in _folders(analysis, runs)]
    rows = [rows_where(table, (table["set"] == name) & (table["member"] == 0)) for table in tables]
    prompts = _side_by_side(pd.concat(rows, ignore_index=True), arms, ids[:N_PROMPTS]) if ids else []
    return Texts(arms, len(known), seed, name, prompts, len(ids), problems, without)


def _side_by_side(rows: pd.DataFrame, arms: Sequence[str], prompt_ids: Sequence[str]) -> list[SamePrompt]:
    """Return these prompts at the first, the middle and the last evaluation that all arms have."""
    common = sorted(set.intersection(*(set(rows_where(rows, rows["arm"] == arm)["step"]) for arm in arms)))
    steps = sorted({common[0], common[len(common) // 2], common[-1]}) if common else []
    # Of rows with equal prompts the first counts.
    cells = {(row["prompt_id"], row["step"], row["arm"]): row for row in reversed(rows.to_dict("records"))}
    found = []
    for prompt_id in prompt_ids:
        prompt = rows_where(rows, rows["prompt_id"] == prompt_id)["prompt"].iloc[0]
        at = [[cells.get((prompt_id, step, arm)) for arm in arms] for step in steps]
        samples = [[None if row is None else _sample(row) for row in of_step] for of_step in at]
        found.append(SamePrompt(shown(prompt), list(zip(map(int, steps), samples, strict=True))))
    return found


def _sample(row: Mapping[Any, Any]) -> Sample:
    components = {name.removeprefix("rewards/"): row[name] for name in row if str(name).startswith("rewards/")}
    return Sample(
        completion=shown(row["completion"]),
        reward=row["reward"],
        components={name: value for name, value in components.items() if len(components) > 1},
        kl=row["kl"],
        length=int(row["length"]),
        truncated=bool(row["truncated"]),
    )


def shown(text: str, most: int = SHOWN) -> Shown:
    r"""Return the beginning of a text with control characters made visible; line feeds and tabs stay.

    >>> shown("a\x00b\u202e", 40).text
    'a⟨U+0000⟩b⟨U+202E⟩'
    >>> shown("x" * 10, 4)
    Shown(text='xxxx', length=10, cut=6)
    >>> shown("a\n" * 50).cut
    41
    """
    beginning = "\n".join(text[:most].split("\n", SHOWN_LINES)[:SHOWN_LINES])
    return Shown(_CONTROL.sub(_visible, beginning), len(text), len(text) - len(beginning))


def _visible(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match.group()):04X}⟩"  # not U+2400 and the like, which many fonts lack
