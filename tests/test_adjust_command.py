"""`grpovi adjust`: what it prints where, and what it refuses."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpovi_lightning.adjust_table import deliver
from grpovi_lightning.cli import main
from grpovi_lightning.errors import UserError

GOOD = "group,reward\na,0.3\na,0.8\na,0.1\na,0.6\nb,1\nb,0\n"
RANGE = ["--lower", "0", "--upper", "1"]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""The usual environment, in which Python writes once more when it ends what it could not write before."""
COMMAND = [sys.executable, "-m", "grpovi_lightning.cli", "adjust"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary_of(text, capsys, *arguments):
    with open("in.csv", "w") as file:
        file.write(text)
    assert main(["adjust", "in.csv", *(arguments or RANGE)]) == 0
    return capsys.readouterr().err


def test_the_table_goes_to_standard_output_and_the_summary_to_standard_error(own_folder):
    (own_folder / "in.csv").write_text(GOOD)
    found = subprocess.run([*COMMAND, "in.csv", *RANGE], capture_output=True, text=True, check=True)
    header, *rows = found.stdout.splitlines()
    assert header == "group,reward,adjusted" and len(rows) == 6
    # Group a: 0.0725 and 0.2075, worked by hand; group b: 0.25 twice.
    assert found.stderr.splitlines() == [
        "groups: 2, changed: 1 (50.0%), completions: 6",
        "range: 0.0 to 1.0, weights: uniform",
        "weighted reward variance, mean over groups: 0.1613 before, 0.2288 after",
    ]


def test_an_output_file_gets_what_standard_output_would(own_folder, capsysbinary):
    (own_folder / "in.csv").write_text(GOOD)
    assert main(["adjust", "in.csv", *RANGE]) == 0
    printed = capsysbinary.readouterr().out
    assert main(["adjust", "in.csv", *RANGE, "--output", "out.csv"]) == 0
    assert (own_folder / "out.csv").read_bytes() == printed
    assert capsysbinary.readouterr().out == b""


def test_the_summary_weights_the_variance_and_names_the_weights(capsys):
    """Weights 1/4 and 3/4 of 0.5 and 0.1: mean 0.2, variance 0.03; then 0.8 and 0: 0.12."""
    text = "group,reward,log_weight\na,0.5,-1000\na,0.1,-998.9013877113318903\n"
    err = summary_of(text, capsys)
    assert "weights: from log_weight" in err and "0.03 before, 0.12 after" in err


def test_rewards_at_the_bounds_are_said_to_be_a_fixed_point(capsys):
    err = summary_of("group,reward\na,1\na,0\na,0\nb,1\n", capsys)
    assert "changed: 0 (0.0%)" in err and "no group changed: every reward is at a bound already" in err


def test_groups_without_any_difference_are_said_to_be_unchanged(capsys):
    err = summary_of("group,reward\na,0.5\na,0.5\nb,0.2\n", capsys)
    assert "no group changed: in each, the rewards are equal" in err
    assert "at a bound" not in err


def test_a_reward_that_only_its_last_digits_move_counts_as_unchanged(capsys):
    """The solution of 1, 0.1, 0 is itself; computed in logarithms it is 0.1 up to rounding."""
    assert "no group changed: in each" in summary_of("group,reward\na,1\na,0.1\na,0\n", capsys)


def test_a_group_that_changed_is_not_said_to_be_unchanged(capsys):
    assert "no group changed" not in summary_of(GOOD, capsys)


def test_a_negative_bound_is_a_number_and_no_option(capsys):
    assert "range: -0.5 to 1.0" in summary_of(GOOD, capsys, "--lower", "-0.5", "--upper", "1")


@pytest.mark.parametrize("n_rows", [1, 100_000])
def test_a_reader_that_goes_away_leaves_no_traceback(own_folder, n_rows):
    (own_folder / "in.csv").write_text("group,reward\n" + "a,0.5\n" * n_rows)
    process = subprocess.Popen(
        [*COMMAND, "in.csv", *RANGE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=BUFFERED
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert "Traceback" not in err and "ignored" not in err and "Error" not in err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line(own_folder):
    (own_folder / "in.csv").write_text(GOOD)
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [*COMMAND, "in.csv", *RANGE], stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED
        )
    assert found.returncode == 2
    assert found.stderr == "grpovi: error: standard output: cannot be written: No space left on device\n"


def test_the_command_starts_without_lightning_or_transformers(own_folder):
    (own_folder / "in.csv").write_text(GOOD)
    code = (
        "import sys; from grpovi_lightning.cli import main; main(sys.argv[1:]); "
        "print([name for name in ('lightning', 'transformers', 'datasets', 'jsonargparse') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, "adjust", "in.csv", *RANGE], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def refused(own_folder, capsys):
    """Runs the command on files of the given content; returns the one line it printed, after nothing was written."""

    def run(content, *arguments, name="in.csv", also=None):
        for file, data in {name: content, **(also or {})}.items():
            if isinstance(data, pa.Table):
                pq.write_table(data, file)
            elif data is not None:
                (own_folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())
        before = {file.name: file.read_bytes() for file in own_folder.iterdir() if file.is_file()}
        capsys.readouterr()
        assert main(["adjust", name, *(arguments or RANGE)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert {file.name: file.read_bytes() for file in own_folder.iterdir() if file.is_file()} == before
        (line,) = printed.err.splitlines()
        assert line.startswith("grpovi: error: ")
        return line.removeprefix("grpovi: error: ")

    return run


BAD_TABLES = {
    "missing": (None, "in.csv: no such file"),
    "empty": ("", "in.csv: no rows"),
    "only blank lines": ("\n\n", "in.csv: no rows"),
    "only a header": ("group,reward\n", "in.csv: no rows"),
    "no group": ("prompt,reward\na,1\n", "no column 'group', it has prompt, reward"),
    "no reward": ("group,score\na,1\n", "no column 'reward', it has group, score"),
    "other separator": ("group;reward\na;1\n", "in.csv, line 1: got columns separated by ';', expected commas"),
    "adjusted already": ("group,reward,adjusted\na,1,1\n", "has a column 'adjusted' already"),
    "one name twice": ("group,reward,x,x\na,1,2,3\n", "got 2 columns 'x', expected one"),
    "too few values": ("group,reward,x\na,1,2\na,1\n", "in.csv, line 3: got 2 values, expected 3"),
    "too many values": ("group,reward\na,1\na,1,7\n", "in.csv, line 3: got 3 values, expected 2"),
    "open quote": ('group,reward\na,1\n"a,1\n', "in.csv, line 3: no valid CSV"),
    "not UTF-8": (b"group,reward\n\xff,1\n", "in.csv: cannot be read: 'utf-8' codec"),
    "text": ("group,reward\na,1\na,high\n", "in.csv, line 3: reward: got 'high', expected a finite number"),
    "blank": ("group,reward\na,1\na,\n", "in.csv, line 3: reward: got nothing, expected a finite number"),
    "nan": ("group,reward\na,nan\n", "in.csv, line 2: reward: got 'nan', expected a finite number"),
    "infinite": ("group,reward\na,-inf\n", "in.csv, line 2: reward: got '-inf', expected a finite number"),
    "below": ("group,reward\na,-0.5\n", "line 2: reward: got '-0.5', expected at least 0.0, the lower bound; widen"),
    "above": ("group,reward\na,1\na,1.5\n", "line 3: reward: got '1.5', expected at most 1.0, the upper bound; widen"),
    "no name": ("group,reward\na,1\n,1\n", "in.csv, line 3: group: got nothing, expected the name of a group"),
    "blank name": ("group,reward\n ,1\n", "in.csv, line 2: group: got ' ', expected the name of a group"),
    "weight text": ("group,reward,log_weight\na,1,x\n", "line 2: log_weight: got 'x', expected a number, or -inf"),
    "weight blank": ("group,reward,log_weight\na,1,\n", "line 2: log_weight: got nothing, expected a number, or -inf"),
    "weight nan": ("group,reward,log_weight\na,1,NaN\n", "line 2: log_weight: got 'NaN', expected a number"),
    "weight infinite": ("group,reward,log_weight\na,1,inf\n", "line 2: log_weight: got 'inf', expected a number"),
    "weights zero": (
        "group,reward,log_weight\na,1,0\na,1,-inf\nb,1,-inf\na,0,0\nb,0,-inf\n",
        "in.csv, line 4: log_weight: got -inf for all of group 'b', expected one weight above zero",
    ),
    "line of a long row": ('group,reward,x\na,1,"\n\n"\n\nb,2,"\n"\n', "in.csv, line 6: reward: got '2'"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_is_not_in_order_is_one_line(refused, name):
    content, said = BAD_TABLES[name]
    assert said in refused(content)
    assert said in refused(content, *RANGE, "--output", "out.csv")


BAD_PARQUET = {
    "rubbish": ("rubbish", "in.parquet: cannot be read"),
    "no rows": (pa.table({"group": pa.array([], pa.string()), "reward": pa.array([], pa.float64())}), "no rows"),
    "null": (pa.table({"group": [1, 2], "reward": [0.5, None]}), "in.parquet, row 2: reward: got nothing"),
    "truth values": (pa.table({"group": [1], "reward": [True]}), "row 1: reward: got True, expected a finite number"),
    "above": (pa.table({"group": [1, 2], "reward": [0, 3]}), "in.parquet, row 2: reward: got 3, expected at most 1.0"),
    "no name": (pa.table({"group": [1.0, None], "reward": [0, 1]}), "in.parquet, row 2: group: got nothing"),
    "nan name": (pa.table({"group": [1.0, float("nan")], "reward": [0, 1]}), "in.parquet, row 2: group: got nan"),
    "list": (pa.table({"group": [[1], [2]], "reward": [0, 1]}), "row 1: group: got [1], expected text or a number"),
    "twice": (pa.table([[1], [1], [2]], names=["group", "reward", "reward"]), "got 2 columns 'reward'"),
}


@pytest.mark.parametrize("name", BAD_PARQUET)
def test_a_parquet_table_that_is_not_in_order_is_one_line(refused, name):
    content, said = BAD_PARQUET[name]
    assert said in refused(content, name="in.parquet")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lower", "0"], "required: --upper"),
        (["--upper", "1"], "required: --lower"),
        (["--lower", "0", "--upper", "one"], "--upper: invalid float value: 'one'"),
        (["--lower", "1", "--upper", "1"], "bounds: got --lower 1.0 and --upper 1.0, expected finite numbers, lower"),
        (["--lower", "2", "--upper", "1"], "bounds: got --lower 2.0"),
        (["--lower", "nan", "--upper", "1"], "bounds: got --lower nan"),
        (["--lower", "0", "--upper", "inf"], "bounds: got --lower 0.0 and --upper inf"),
        (["--lower=-1e308", "--upper=1e308"], "bounds: got --lower -1e+308"),
        ([*RANGE, "--ties", "random"], "--ties: invalid choice: 'random'"),
        ([*RANGE, "--output", "out.txt"], "output out.txt: got ending '.txt', expected .csv or .parquet"),
        ([*RANGE, "--output", "out"], "output out: got ending ''"),
        ([*RANGE, "--output", "nowhere/out.csv"], "output nowhere/out.csv: no such folder nowhere"),
        ([*RANGE, "--output", "in.csv"], "output in.csv: exists already and is not overwritten"),
        ([*RANGE, "--output", "there.parquet"], "output there.parquet: exists already and is not overwritten"),
    ],
)
def test_arguments_that_are_not_in_order_are_one_line(refused, arguments, said):
    assert said in refused(GOOD, *arguments, also={"there.parquet": "precious"})


def test_an_unknown_ending_is_named_with_the_known_ones(refused):
    assert "in.jsonl: got ending '.jsonl', expected .csv or .parquet" in refused("{}", name="in.jsonl")


def test_a_file_that_appears_meanwhile_is_not_overwritten(own_folder):
    (own_folder / "out.csv").write_text("precious")
    with pytest.raises(UserError, match=r"output out\.csv: exists already and is not overwritten"):
        deliver(b"new", (own_folder / "out.csv").relative_to(own_folder))
    assert (own_folder / "out.csv").read_text() == "precious"


def test_a_file_that_cannot_be_finished_is_taken_away(own_folder):
    with pytest.raises(TypeError):
        deliver(None, own_folder / "out.csv")
    assert not list(own_folder.iterdir())
