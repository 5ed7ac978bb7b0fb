"""What the pages in docs say is so.

Of adjustment.md its examples, its theorems on random groups, its links and its picture; of performance.md its links,
names, settings, counts and quotients; of one-pass.md its links and formulas, the rest in test_one_pass_page.py.
"""

import doctest
import inspect
import math
import random
import re
import runpy
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exact_adjustment import exact_adjustment
from matplotlib.patches import Rectangle

import grpovi_lightning.adjustment
from grpovi_lightning import losses, metric_keys, rollout
from grpovi_lightning.adjustment import increase_variance
from grpovi_lightning.cli import check_fit
from grpovi_lightning.ops import chunked_statistics
from grpovi_lightning.rewards import RewardModel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "adjustment.md").read_text()
PERFORMANCE = (DOCS / "performance.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
every_page = pytest.mark.parametrize("name", ["adjustment.md", "performance.md", "one-pass.md"])


def test_every_example_prints_what_the_page_shows():
    blocks = re.findall(r"```pycon\n(.*?)```", PAGE, flags=re.DOTALL)
    assert sum(block.count(">>> ") for block in blocks) == PAGE.count(">>> ") > 30
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "adjustment.md", None, None)
    failures: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(session, out=failures.append)
    assert found.failed == 0, "".join(failures)


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_to_a_file_of_the_repository_and_to_a_heading_in_it(name):
    prose = re.sub(r"```.*?```", "", (DOCS / name).read_text(), flags=re.DOTALL)
    targets = {target for target in re.findall(r"\]\(([^)]+)\)", prose) if not target.startswith("https://")}
    assert len(targets) > 8
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (DOCS / path).resolve() if path else DOCS / name
        assert file.is_file() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_test_the_page_names_is_in_the_file_it_is_said_to_be_in():
    names = re.findall(r"`(test_\w+)`", PROSE)
    source = (ROOT / "tests/adjustment/test_increase_variance.py").read_text()
    assert len(names) > 4
    for name in names:
        assert f"def {name}(" in source, name


def test_classes_and_logged_names_on_the_page_exist():
    classes = set(re.findall(r"`(\w+(?:Range|Weights|Only))\b", PROSE))
    assert {"FixedRange", "SequenceWeights", "RangeOnly"} <= classes
    assert all(hasattr(grpovi_lightning.adjustment, name) for name in classes)
    logged = {value for name, value in vars(metric_keys).items() if name.startswith("ADJUSTMENT_")}
    names = re.findall(r"`(adjustment/[a-z_*]+)`", PROSE)
    assert len(names) > 4
    for name in names:
        assert any(key.startswith(name.removesuffix("*")) for key in logged), name


@every_page
def test_formulas_stand_as_github_reads_them(name):
    page = (DOCS / name).read_text()
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    # Inside $...$ Markdown takes a backslash before punctuation away, and may take < for a tag.
    for formula in re.findall(r"\$([^$]+)\$", prose):
        assert not re.search(r"\\[^a-zA-Z]", formula) and "<" not in formula and "\n\n" not in formula, formula
    assert all(paragraph.count("$") % 2 == 0 for paragraph in prose.split("\n\n"))
    for formula in re.findall(r"```math\n(.*?)```", page, flags=re.DOTALL):
        assert formula.count("{") == formula.count("}") and formula.count(r"\left") == formula.count(r"\right")


# The theorems, in exact arithmetic. Rewards are rescaled to [0, 1] and sorted; weights are positive and sum to 1.


def random_groups(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        n = rng.randint(2, 7)
        s = sorted((Fraction(rng.randint(0, 24), 24) for _ in range(n)), reverse=True)
        w = [Fraction(rng.choice([1, 2, 3, 7, 500])) for _ in range(n)]
        if len(set(s)) > 1:
            yield s, [weight / sum(w) for weight in w], rng


def mean(p, values):
    return sum(weight * value for weight, value in zip(p, values, strict=True))


def fill(s, p):
    """The theorem's f, from the order and the mean alone."""
    left, f = mean(p, s), []
    for weight in p:
        f.append(min(left / weight, Fraction(1)))
        left -= weight * f[-1]
    return f


def test_the_theorem_gives_the_best_extreme_point_and_the_identity_says_by_how_much():
    for s, p, rng in random_groups(400):
        f, mu = fill(s, p), mean(p, s)
        assert f == exact_adjustment(s, p, 0, 1, "split")
        inside = [k for k, value in enumerate(f) if 0 < value < 1]
        assert len(inside) <= 1
        missing = sum(p[k] * f[k] * (1 - f[k]) for k in inside)
        assert mean(p, [value**2 for value in f]) - mu**2 == mu * (1 - mu) - missing

        # A feasible g: between the rewards, the constant at the mean and f.
        u, v = Fraction(rng.randint(0, 8), 8), Fraction(rng.randint(0, 8), 8)
        g = [u * a + (1 - u) * (v * mu + (1 - v) * b) for a, b in zip(s, f, strict=True)]
        behind = [mean(p[: i + 1], f[: i + 1]) - mean(p[: i + 1], g[: i + 1]) for i in range(len(s))]
        steps = sum((a - b) * d for (a, b), d in zip(pairwise(g), behind, strict=False))
        assert min(behind) >= 0 and behind[-1] == 0
        shortfall = mean(p, [a * a for a in f]) - mean(p, [b * b for b in g])
        assert shortfall == mean(p, [(a - b) ** 2 for a, b in zip(f, g, strict=True)]) + 2 * steps
        # Not only for squares: the mean absolute deviation is largest, too.
        assert mean(p, [abs(a - mu) for a in f]) >= mean(p, [abs(b - mu) for b in g])


def test_the_scan_ends_in_the_closed_form_whichever_feasible_move_it_takes():
    for s, p, rng in random_groups(400, seed=1):
        above = [sum(p[:k], Fraction(0)) for k in range(len(p) + 1)]
        mu, k, last = mean(p, s), 0, len(p)
        while True:
            moves = [(k + 1, last), (k, last - 1)]
            moves = [(a, b) for a, b in moves if a <= b and above[a] <= mu <= above[b]]
            if not moves:
                break
            k, last = rng.choice(moves)
        block = [(mu - above[k]) / p[k]] if last == k + 1 else []
        assert [Fraction(1)] * k + block + [Fraction(0)] * (len(p) - last) == fill(s, p)


def test_one_completion_that_takes_all_cuts_the_group_at_its_own_reward():
    cut = 0
    for s, p, rng in random_groups(400, seed=2):
        d = rng.randrange(len(s))
        p = [weight * (1000 if i == d else 1) for i, weight in enumerate(p)]
        p = [weight / sum(p) for weight in p]
        above, below = sum(p[:d]), sum(p[d + 1 :])
        if above <= p[d] * s[d] and below <= p[d] * (1 - s[d]):
            f = fill(s, p)
            assert f[:d] == [1] * d and f[d + 1 :] == [0] * (len(s) - d - 1)
            assert abs(f[d] - s[d]) <= max(above, below) / p[d]
            cut += 1
    assert cut > 100


def test_one_group_raises_the_variance_over_all_responses_by_what_the_page_says():
    for s, p, rng in random_groups(50, seed=3):
        share = Fraction(1, rng.randint(2, 1000))  # of the group in the response space; the others keep their rewards
        others = [Fraction(rng.randint(0, 24), 24) for _ in range(5)]
        space = [share * weight for weight in p] + [(1 - share) / 5] * 5

        def variance(rewards, space=space, others=others):
            return mean(space, [r * r for r in rewards + others]) - mean(space, rewards + others) ** 2

        f = fill(s, p)
        rise = variance(f) - variance(s)
        assert rise == share * (mean(p, [a * a for a in f]) - mean(p, [a * a for a in s]))
        assert 0 <= rise <= share / 4


@pytest.mark.parametrize("deepest", [1, 40, 400, 2900])
def test_values_and_mean_are_as_exact_as_section_3_says(deepest):
    rng = random.Random(deepest)
    for _ in range(100):
        rewards = [rng.random() for _ in range(rng.randint(2, 8))]
        exponents = [rng.randint(0, deepest) for _ in rewards]
        weights, logs = [2 ** (deepest - e) for e in exponents], [-math.log(2) * e for e in exponents]
        total, order = sum(weights), sorted(range(len(rewards)), key=lambda i: -rewards[i])
        exact = exact_adjustment(rewards, weights, 0, 1)
        group, log_weights = torch.tensor([[rewards], [logs]], dtype=torch.float64)
        found = increase_variance(group, log_weights, lower=0.0, upper=1.0)[0].tolist()

        normalised = [math.log(total) - math.log(weight) for weight in weights]
        delta = Fraction(2) ** -52 * Fraction(8 + max(map(abs, [*logs, *normalised])))
        below = Fraction(0)
        for i in reversed(order):
            below += weights[i] * Fraction(rewards[i])
            assert abs(Fraction(found[i]) - exact[i]) <= delta * (1 + below / weights[i])
        spent = sum(weight * Fraction(value) for weight, value in zip(weights, found, strict=True))
        assert abs(spent - below) <= delta * below


# The picture.


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(DOCS / "draw_adjustment.py"))


def test_the_bars_of_the_picture_keep_mean_order_and_bounds_and_are_the_exact_solution(drawing):
    left, right = ([patch for patch in axes.patches if isinstance(patch, Rectangle)] for axes in drawing["draw"]().axes)
    width, before, after = (
        np.array([get(bar) for bar in bars])
        for get, bars in [(Rectangle.get_width, left), (Rectangle.get_height, left), (Rectangle.get_height, right)]
    )
    assert len(before) == 8 and (np.diff(before) < 0).all() and (np.diff(after) <= 0).all()
    np.testing.assert_allclose(width, [bar.get_width() for bar in right], atol=1e-12)
    assert width.sum() == pytest.approx(1.0) and all(bar.get_y() == 0.0 for bar in [*left, *right])
    assert width @ after == pytest.approx(width @ before, abs=1e-12)
    assert after.min() >= 0.0 and after.max() <= 1.0 and np.isin(after, [0.0, 1.0]).sum() == 7
    exact = exact_adjustment(before.tolist(), width.tolist(), 0, 1)
    np.testing.assert_allclose(after, [float(value) for value in exact], atol=1e-12)
    for bars, axes in zip((before, after), drawing["draw"]().axes, strict=True):
        variance = width @ (bars - width @ bars) ** 2
        assert axes.get_title(loc="left").endswith(f"{variance:.3f}")


def test_the_group_of_the_picture_is_the_one_on_the_page(drawing):
    for name in ("rewards", "weights"):
        (numbers,) = re.findall(rf">>> {name} = \[([\d., ]{{40,}})\]", PAGE)
        assert [float(number) for number in numbers.split(",")] == drawing[name.upper()].tolist()


def test_the_script_writes_the_same_picture_every_time_and_the_one_in_docs_is_up_to_date(tmp_path, monkeypatch):
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        monkeypatch.setattr("sys.argv", ["draw_adjustment.py", str(folder)])
        runpy.run_path(str(DOCS / "draw_adjustment.py"), run_name="__main__")
        (picture,) = folder.iterdir()
        assert picture.name == "adjustment_group.svg"
        written.append(picture.read_text())
    assert written[0] == written[1] and written[0].rstrip().endswith("</svg>") and "<dc:date>" not in written[0]

    # Another release of matplotlib may place things elsewhere; the numbers and words stay.
    written[1] = (DOCS / "adjustment_group.svg").read_text()
    words = [re.findall(r">([^<>\n]+)</text>", svg) for svg in written]
    assert words[0] == words[1] and len(words[0]) > 30


# docs/performance.md. Its times are those of one machine and stay untested; what can be counted is counted.


def table(heading, first):
    """Rows of cells of the table under a heading whose first column is named `first`."""
    section = PERFORMANCE[PERFORMANCE.index(f"\n## {heading}") :]
    lines = section[section.index(f"\n| {first} |") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def number(text):
    """The first number in a cell."""
    return float(re.findall(r"[\d.,]+", text)[0].replace(",", ""))


@pytest.fixture(scope="module")
def sizes():
    """The workloads' sizes by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return runpy.run_path(str(ROOT / "benchmarks" / "write_workload.py"))["NAMED"]


def test_every_test_that_the_performance_page_names_is_in_a_file_that_it_links_to():
    names = set(re.findall(r"`(test_\w+)`", PERFORMANCE))
    linked = set(re.findall(r"\]\(\.\./(tests/[^)]+\.py)\)", PERFORMANCE))
    assert len(names) > 10 and len(linked) > 5
    sources = {path: (ROOT / path).read_text() for path in linked}
    for name in names:
        assert any(f"def {name}(" in source for source in sources.values()), name
    for path, source in sources.items():
        assert any(f"def {name}(" in source for name in names), path


def test_files_classes_and_scalars_on_the_performance_page_exist():
    prose = re.sub(r"```.*?```", "", PERFORMANCE, flags=re.DOTALL)
    files = re.findall(r"(?:benchmarks|docs|experiments)/[\w/]+\.\w+", prose)
    assert {"benchmarks/profile_step.py", "benchmarks/against_trl.py"} <= set(files)
    assert all((ROOT / file).is_file() for file in files), files
    classes = set(re.findall(r"`(\w+(?:Decoder|Sampling))`", prose))
    assert {"GroupDecoder", "PlainDecoder", "StaticDecoder", "CompiledDecoder"} <= classes
    assert all(any(hasattr(room, name) for room in (rollout, losses)) for name in classes), classes
    shares = {metric_keys.step_share(phase) for phase in metric_keys.STEP_PHASES}
    logged = shares | {value for value in vars(metric_keys).values() if isinstance(value, str)}
    scalars = set(re.findall(r"`((?:step_time|throughput)[\w/]*)`", prose))
    assert set(metric_keys.STEP_PHASES) <= scalars <= logged
    assert {name for name in logged - shares if name.startswith("throughput/") and name[-1] != "/"} <= scalars


def test_every_decoder_is_on_the_performance_page():
    of_page = {cell.strip("`") for row in table("4.", "`decoder`")[1:] for cell in re.findall(r"`\w+`", row[0])}
    exported = {name for name in rollout.__all__ if name.endswith("Decoder")} - {"Decoder"}
    assert of_page == exported


def test_defaults_on_the_performance_page_are_those_of_the_code():
    def default(of_class, name):
        return inspect.signature(of_class).parameters[name].default

    words = " ".join(PERFORMANCE.split())
    settings = {"block": rollout.CompiledDecoder, "max_shapes": rollout.CompiledDecoder, "batch_size": RewardModel}
    for name, of_class in settings.items():
        (shown,) = set(re.findall(rf"`{name}`[ ,]+\(?(\d+)\)", words))
        assert int(shown) == default(of_class, name), name
    assert default(rollout.GroupDecoder, "drop_share") == 0.25 and "more than a quarter of the rows" in words
    engine = rollout.RolloutEngine(rollout.SamplingConfig())
    assert isinstance(engine.decoder, rollout.GroupDecoder) and "`GroupDecoder` (default)" in words
    assert 4 * default(chunked_statistics, "logits_at_once") == 16 * 2**20 and "chunks of 16 MiB of logits" in words


def test_the_yaml_of_the_performance_page_is_a_valid_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```yaml\n(.*?)```", PERFORMANCE, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        (tmp_path / "more.yaml").write_text(block)
        check_fit(["--config", "experiments/quickstart/grpo.yaml", "--config", str(tmp_path / "more.yaml")])


def test_commands_of_the_performance_page_have_options_that_their_scripts_know():
    source = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    commands = re.findall(r"^    (?:\S*python) (benchmarks/\w+\.py)(.*)$", PERFORMANCE, flags=re.MULTILINE)
    assert len(commands) > 3
    for script, rest in commands:
        assert (ROOT / script).is_file()
        for option in re.findall(r" --[\w-]+", rest.partition("#")[0]):
            assert f'"{option.strip()}"' in source, option


def test_tokens_that_a_group_reads_are_counted_from_the_workloads(sizes):
    rows = {row[0]: [number(cell) for cell in row[1:]] for row in table("2.", "workload")[1:]}
    assert rows.keys() == sizes.keys()
    for name, (prompt, completion, plain, once, quotient) in rows.items():
        assert (prompt, completion) == (sizes[name].prompt, sizes[name].completion)
        members = sizes[name].group_size
        assert plain == members * (prompt + completion) and once == prompt + members * completion
        assert quotient == pytest.approx(plain / once, abs=0.005)


def test_the_profile_adds_up_and_the_picture_shows_the_same_run(sizes):
    header, *rows = table("1.", "ms")
    assert header[1:] == list(sizes)
    *parts, end_to_end = [[number(cell) for cell in row[1:]] for row in rows]
    phases = [phase.removeprefix("step_time/") for phase in metric_keys.STEP_PHASES]
    assert [row[0] for row in rows] == [*phases, "rest", "between steps", "end to end"]
    for column, total in zip(zip(*parts, strict=True), end_to_end, strict=True):
        assert sum(column) == pytest.approx(total, abs=0.06 * len(column))
    words = re.findall(r">([^<>\n]+)</text>", (DOCS / "performance.svg").read_text())
    assert {*phases, "rest", "between steps", *sizes} <= {word.strip() for word in words}
    found = [word for word in words if re.fullmatch(r"\s*[\d.,]+ (ms|s)", word)]
    shown = sorted(number(word) * (1e3 if word.endswith(" s") else 1) for word in found)
    assert shown == pytest.approx(sorted(end_to_end), rel=0.006)


def test_ratios_against_trl_are_quotients_and_every_verdict_follows_from_them(sizes):
    rows = table("7.", "step")[1:]
    assert {row[0] for row in rows} == set(sizes)
    for name, trl, ours, ratio, *others in rows:
        for of_trl, of_ours, found in ((trl, ours, ratio), others[:3]):
            assert number(found) == pytest.approx(number(of_trl) / number(of_ours), abs=0.012), name
        goal, reached = number(others[3]), others[4]
        met = tuple(number(found) >= goal for found in (ratio, others[2]))
        assert reached == {(True, True): "both", (True, False): "compiled", (False, False): "no"}[met], name
    for name, trl, compiled, group, *shares in table("7.", "peak memory")[1:]:
        for ours, share in zip((compiled, group), shares, strict=True):
            assert number(share) == pytest.approx(number(ours) / number(trl), abs=0.006), name


def test_what_is_learned_from_the_same_completions_is_the_same():
    rows = table("7.", "seed")[1:]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    for _, their_kl, our_kl, their_reward, our_reward, difference in rows:
        assert number(our_kl) == pytest.approx(number(their_kl), rel=1e-3) and our_reward == their_reward
        assert float(difference) < 2e-3
