"""`grpovi adjust`: the values it writes, and that everything else in the table comes back as it was."""

import csv
import io
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from helpers.exact_adjustment import exact_adjustment

from grpovi_lightning.cli import main

LN2 = math.log(2)


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(content):
    """By another reader than the one the command uses; not that of pandas 2.2, which ends a text at a zero byte."""
    options = pa_csv.ParseOptions(newlines_in_values=True)
    names = pa_csv.read_csv(io.BytesIO(content), parse_options=options).column_names
    texts = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pa_csv.read_csv(io.BytesIO(content), parse_options=options, convert_options=texts).to_pylist()


@pytest.fixture
def adjusted(tmp_path, capsysbinary):
    """Runs `grpovi adjust` on rows that were written as CSV; returns the rows that it printed."""

    def run(rows, *arguments):
        file = write_csv(tmp_path / "in.csv", rows)
        capsysbinary.readouterr()
        assert main(["adjust", str(file), "--lower", "0", "--upper", "1", *arguments]) == 0
        return read_csv(capsysbinary.readouterr().out)

    return run


def values(rows):
    return [float(row["adjusted"]) for row in rows]


def random_groups(seed, n_groups=60, zeros=True):
    """Interleaved groups of 1 to 6 completions; rewards in eighths, weights that are powers of two, some of them 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(n_groups):
        size = rng.integers(1, 7)
        weights = [Fraction(1, 2 ** int(e)) for e in rng.integers(0, 12, size)]
        if zeros and size > 1:
            weights[rng.integers(size)] = Fraction(0)
        for weight in weights:
            log_weight = math.log(weight) - 300.5 if weight else -math.inf
            rows.append(
                {"group": f"g{group}", "reward": int(rng.integers(0, 9)) / 8, "log_weight": log_weight, "w": weight}
            )
    return [rows[i] for i in rng.permutation(len(rows))]


def of_group(rows):
    """group -> positions of its rows."""
    found = {}
    for i, row in enumerate(rows):
        found.setdefault(row["group"], []).append(i)
    return found


def test_a_group_worked_by_hand(adjusted):
    """The mean, 0.45, is 1.8 of 4: one completion at 1, the next at 0.8, none left."""
    found = adjusted([{"group": "a", "reward": r} for r in (0.3, 0.8, 0.1, 0.6)])
    assert values(found) == pytest.approx([0.0, 1.0, 0.0, 0.8], abs=1e-12)


@pytest.mark.parametrize("ties", ["merge", "split"])
def test_every_group_is_solved_as_in_exact_arithmetic(adjusted, ties):
    rows = random_groups(seed=1)
    groups = of_group(rows)
    assert {len(members) for members in groups.values()} == {1, 2, 3, 4, 5, 6}
    found = values(adjusted(rows, "--ties", ties))
    n_moved = 0
    for members in groups.values():
        rewards = [Fraction(rows[i]["reward"]) for i in members]
        exact = exact_adjustment(rewards, [rows[i]["w"] for i in members], 0, 1, ties)
        for i, expected in zip(members, exact, strict=True):
            if expected is None:  # weight 0: between the values of its neighbours
                assert all((found[i] - found[j]) * (rows[i]["reward"] - rows[j]["reward"]) >= 0 for j in members)
            else:
                assert found[i] == pytest.approx(float(expected), abs=1e-9)
                n_moved += abs(found[i] - rows[i]["reward"]) > 0.01
    assert n_moved > 50


def test_without_log_weights_all_completions_weigh_the_same(adjusted):
    rows = [{"group": row["group"], "reward": row["reward"]} for row in random_groups(seed=2)]
    found = values(adjusted(rows))
    for members in of_group(rows).values():
        exact = exact_adjustment([Fraction(rows[i]["reward"]) for i in members], [1] * len(members), 0, 1)
        assert [found[i] for i in members] == pytest.approx([float(z) for z in exact], abs=1e-9)


def test_other_bounds_give_other_values(tmp_path, capsysbinary):
    """Range [-1, 3], mean 0: one of four completions at 3, the others at -1."""
    file = write_csv(tmp_path / "in.csv", [{"group": "a", "reward": r} for r in (1.0, -1.0, 0.5, -0.5)])
    assert main(["adjust", str(file), "--lower", "-1", "--upper", "3"]) == 0
    assert values(read_csv(capsysbinary.readouterr().out)) == pytest.approx([3.0, -1.0, -1.0, -1.0], abs=1e-12)


def test_equal_rewards_stay_equal_unless_ties_are_split(adjusted):
    rows = [{"group": "a", "reward": r} for r in (0.4, 0.4, 0.4, 0.4, 0.4, 0.0)]
    assert values(adjusted(rows)) == pytest.approx([0.4] * 5 + [0.0], abs=1e-12)
    assert values(adjusted(rows, "--ties", "split")) == pytest.approx([1.0, 1.0, 0.0, 0.0, 0.0, 0.0], abs=1e-12)


def test_the_order_of_the_rows_does_not_matter(adjusted):
    rows = random_groups(seed=3)
    together = [rows[i] for members in of_group(rows).values() for i in members]
    assert [row["group"] for row in together] != [row["group"] for row in rows]
    key = {id(row): value for row, value in zip(rows, values(adjusted(rows)), strict=True)}
    assert values(adjusted(together)) == pytest.approx([key[id(row)] for row in together], abs=1e-12)
    assert values(adjusted(rows[::-1])) == pytest.approx([key[id(row)] for row in rows[::-1]], abs=1e-12)


def test_rows_come_back_in_their_order_and_as_they_were(adjusted):
    rows = random_groups(seed=4)
    found = adjusted(rows)
    assert [{name: row[name] for name in row if name != "adjusted"} for row in found] == [
        {name: str(value) for name, value in row.items()} for row in rows
    ]
    assert list(found[0])[-1] == "adjusted"


def test_adjusting_twice_changes_nothing_and_says_so(adjusted, tmp_path, capsysbinary):
    rows = random_groups(seed=5)
    once = adjusted(rows)
    again = [{"group": row["group"], "reward": row["adjusted"], "log_weight": row["log_weight"]} for row in once]
    assert values(adjusted(again)) == pytest.approx(values(once), abs=1e-12)
    main(["adjust", str(tmp_path / "in.csv"), "--lower", "0", "--upper", "1"])
    assert "no group changed: in each, the rewards are equal, or as far apart" in capsysbinary.readouterr().err.decode()


def test_text_blanks_and_line_ends_survive_csv(adjusted):
    texts = [
        "001",
        "",
        "NA",
        "1.50",
        "a,b",
        'say "no"',
        "two\nlines",
        "dos\r\nlines",
        "lone \r return",
        "grün 狐",
        "x\0y",
        " ",
    ]
    texts.append("long " * 40_000)
    rows = [{"": i, "group": "0" * (i % 2 + 1), "reward": "0.50", "text": text} for i, text in enumerate(texts)]
    found = adjusted(rows)
    assert [row["text"] for row in found] == texts
    assert [row["group"] for row in found] == [row["group"] for row in rows]
    assert {row["reward"] for row in found} == {"0.50"}


def test_a_byte_order_mark_and_blank_lines_are_no_part_of_the_table(tmp_path, capsysbinary):
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbfgroup,reward\r\n\r\n1,0.25\r\n1,0.75\r\n\r\n")
    assert main(["adjust", str(tmp_path / "in.csv"), "--lower", "0", "--upper", "1"]) == 0
    assert capsysbinary.readouterr().out == b"group,reward,adjusted\n1,0.25,0.0\n1,0.75,1.0\n"


def test_groups_are_told_apart_by_their_text(adjusted):
    """As numbers 007 and 7 would be one group, and NA and None none."""
    rows = [{"group": name, "reward": reward} for name in ("007", "7", "7.0", "NA", "None") for reward in (0.25, 0.75)]
    found = adjusted(rows)
    assert [row["group"] for row in found] == [row["group"] for row in rows] and values(found) == [0.0, 1.0] * 5


def as_parquet(rows, path):
    pq.write_table(pa.Table.from_pylist([{k: v for k, v in row.items() if k != "w"} for row in rows]), path)
    return path


def test_csv_and_parquet_give_the_same_numbers_to_the_last_bit(adjusted, tmp_path, capsysbinary):
    rows = random_groups(seed=6)
    rng = np.random.default_rng(6)
    for row in rows:
        row["reward"] = rng.random()
    printed = values(adjusted(rows))
    output = {(a, b): tmp_path / f"{a}.out.{b}" for a in ("csv", "parquet") for b in ("csv", "parquet")}
    as_parquet(rows, tmp_path / "in.parquet")
    for (a, _), path in output.items():
        assert main(["adjust", str(tmp_path / f"in.{a}"), "--lower", "0", "--upper", "1", "--output", str(path)]) == 0
        assert capsysbinary.readouterr().out == b""
    for (_, b), path in output.items():
        table = pq.read_table(path).to_pylist() if b == "parquet" else read_csv(path.read_bytes())
        assert values(table) == printed
        assert [row["group"] for row in table] == [row["group"] for row in rows]
        for name in ("reward", "log_weight"):
            assert [float(row[name]) for row in table] == [row[name] for row in rows]
    for a in ("csv", "parquet"):
        schema = pq.read_schema(output[a, "parquet"])
        assert {name: str(schema.field(name).type) for name in ("group", "reward", "log_weight", "adjusted")} == {
            "group": "string",
            "reward": "double",
            "log_weight": "double",
            "adjusted": "double",
        }


def test_parquet_columns_of_every_type_come_back_unchanged(tmp_path):
    table = pa.table(
        {
            "group": pa.array([7, 7, 8]),
            "reward": pa.array([0.25, 0.5, 1.0], pa.float32()),
            "big": pa.array([2**60 + 1, None, 3]),
            "small": pa.array([1, None, 3], pa.uint8()),
            "kind": pa.array(["x", None, "x"]).dictionary_encode(),
            "list": pa.array([[1, 2], None, []]),
            "when": pa.array([1, 2, None], pa.timestamp("ns", "UTC")),
            "price": pa.array([Decimal("1.10"), None, Decimal("2.00")]),
            "flag": pa.array([True, None, False]),
            "log_weight": pa.array(["0", "-0.0", "7"]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    assert main(["adjust", str(tmp_path / "in.parquet"), "--lower", "0", "--upper", "1", "--output", str(output)]) == 0
    found = pq.read_table(output)
    assert found.drop_columns("adjusted").equals(table)
    assert found["adjusted"].to_pylist() == pytest.approx([0.0, 0.75, 1.0], abs=1e-12)
    assert len(pd.read_parquet(output)) == 3


def test_whole_numbers_with_blanks_stay_whole_from_parquet_to_csv(tmp_path, capsysbinary):
    table = pa.table({"group": [1, 1], "reward": [0.0, 1.0], "id": pa.array([2**60 + 1, None])})
    pq.write_table(table, tmp_path / "in.parquet")
    assert main(["adjust", str(tmp_path / "in.parquet"), "--lower", "0", "--upper", "1"]) == 0
    out = capsysbinary.readouterr().out.decode()
    assert out == f"group,reward,id,adjusted\n1,0.0,{2**60 + 1},0.0\n1,1.0,,1.0\n"


def test_a_frame_that_pandas_saved_is_read_and_read_back_by_pandas(tmp_path):
    frame = pd.DataFrame({"prompt": ["p", "p", "q"], "group": [3, 3, 4], "reward": [0.5, 0.25, 0.0]})
    for name, saved in (("filtered", frame[frame.group == 3]), ("indexed", frame.set_index("group"))):
        saved.to_parquet(tmp_path / f"{name}.parquet")
        output = tmp_path / f"{name}.out.parquet"
        arguments = ["adjust", str(tmp_path / f"{name}.parquet"), "--lower", "0", "--upper", "1"]
        assert main([*arguments, "--output", str(output)]) == 0
        pd.testing.assert_frame_equal(pd.read_parquet(output).drop(columns="adjusted"), saved)


def test_the_folder_of_a_parquet_file_adds_no_column(tmp_path, capsysbinary):
    folder = tmp_path / "seed=3"
    folder.mkdir()
    pq.write_table(pa.table({"group": ["a"], "reward": [0.5]}), folder / "in.parquet")
    assert main(["adjust", str(folder / "in.parquet"), "--lower", "0", "--upper", "1"]) == 0
    assert capsysbinary.readouterr().out == b"group,reward,adjusted\na,0.5,0.5\n"
