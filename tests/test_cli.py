"""The command line: what it prints, what it writes, and one line for everything that can be wrong with a file."""

import csv
import gzip
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import llvmlite
import numba
import numpy as np
import pytest
import reference

import nbbce
from nbbce import _devices, cli

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

# Two elements whose losses are log 2 and log(4/3).
TWO = (np.array([0.5, 0.25]), np.array([1, 0], np.uint8))
TWO_MEAN = (math.log(2) + math.log(4 / 3)) / 2


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nbbce_command(capsys):
    """The command line in this process: from arguments to exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def result(nbbce_command):
    """What `nbbce score ... --json` prints, as a dictionary."""

    def run(*arguments):
        code, out, err = nbbce_command("score", *arguments, "--json")
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.fixture
def problem(nbbce_command):
    """What a `nbbce score` that must fail says after its name."""

    def run(*arguments):
        code, out, err = nbbce_command("score", *arguments)
        assert (code, out) == (2, "")
        assert re.fullmatch(r"nbbce score: [^\n]+\n", err)
        return err.removeprefix("nbbce score: ").rstrip("\n")

    return run


@pytest.fixture
def two():
    """TWO, as x.npy and y.npy."""
    np.save("x.npy", TWO[0])
    np.save("y.npy", TWO[1])
    return "x.npy", "y.npy"


def write_csv(path, *rows):
    """A .csv or .csv.gz file of rows of text."""
    file = gzip.open(path, "wt", newline="") if path.endswith(".gz") else open(path, "w", newline="")
    with file:
        csv.writer(file).writerows(rows)
    return path


# The example data.


def test_example_data_scores_as_scikit_learn_says(result):
    found = result(EXAMPLES / "breast_cancer_predictions.npy", EXAMPLES / "breast_cancer_targets.npy")
    # Printed by sklearn.metrics.log_loss (scikit-learn 1.9.1) in examples/make_breast_cancer.py.
    assert found["loss"] == pytest.approx(0.07383704165098376, rel=1e-15, abs=0)
    assert found["count"] == 569


def test_example_data_scores_to_the_nearest_float64(result):
    x, y = (np.load(EXAMPLES / f"breast_cancer_{name}.npy") for name in ("predictions", "targets"))
    exact = reference.total(reference.losses(x, y)) / 569
    found = result(EXAMPLES / "breast_cancer.csv:prediction", EXAMPLES / "breast_cancer.csv:target")
    assert found["loss"] == float(exact) == 0.07383704165098375


def test_example_csv_holds_the_bits_of_the_arrays():
    rows = np.loadtxt(EXAMPLES / "breast_cancer.csv", delimiter=",", skiprows=1)
    np.testing.assert_array_equal(rows[:, 0], np.load(EXAMPLES / "breast_cancer_targets.npy"))
    np.testing.assert_array_equal(rows[:, 1], np.load(EXAMPLES / "breast_cancer_predictions.npy"))


# What is printed.


def test_score_prints_aligned_loss_count_time_and_speed(nbbce_command, two):
    code, out, err = nbbce_command("score", *two)
    assert (code, err) == (0, "")
    number = r"[0-9.e+-]+"
    pattern = rf"loss   ({number}) \(mean\)\ncount  2\ntime   {number} (s|ms|us)\nspeed  {number} GB/s\n"
    match = re.fullmatch(pattern, out)
    assert match
    assert float(match[1]) == pytest.approx(TWO_MEAN, rel=1e-15)


def test_json_is_one_object(result, two):
    found = result(*two)
    assert found.pop("loss") == pytest.approx(TWO_MEAN, rel=1e-15)
    seconds, speed = found.pop("seconds"), found.pop("gb_per_second")
    assert seconds > 0
    assert speed == pytest.approx(18 / seconds / 1e9)
    assert found == {"reduction": "mean", "output": None, "count": 2, "bytes": 18}


@pytest.mark.parametrize(("seconds", "text"), [(12.34, "12.3 s"), (0.01234, "12.3 ms"), (0.00001234, "12.3 us")])
def test_time_has_a_readable_unit(seconds, text):
    assert cli._duration(seconds) == text


def test_sum_is_the_sum(result, two):
    assert result(*two, "--reduction", "sum")["loss"] == pytest.approx(2 * TWO_MEAN, rel=1e-15)


def test_loss_of_float32_has_the_digits_of_float64(result):
    x, y = np.float32([0.2, 0.7, 0.1]), np.float32([0, 1, 0])
    np.save("x.npy", x)
    np.save("y.npy", y)
    exact = reference.total(reference.losses(x, y)) / 3
    assert result("x.npy", "y.npy")["loss"] == pytest.approx(float(exact), rel=2**-23, abs=0)


def test_loss_that_is_not_finite_is_null_in_json(result, nbbce_command):
    np.save("x.npy", [0.5, 1.5])
    np.save("y.npy", [0, 1])
    assert result("x.npy", "y.npy", "--no-validate")["loss"] is None
    assert "loss   nan (mean)" in nbbce_command("score", "x.npy", "y.npy", "--no-validate")[1]


def test_sum_of_no_element_is_zero(result):
    np.save("e.npy", np.zeros(0))
    assert result("e.npy", "e.npy", "--reduction", "sum")["loss"] == 0


# Files.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_predictions_of_each_float_dtype_are_read(result, dtype):
    np.save("x.npy", TWO[0].astype(dtype))
    np.save("y.npy", TWO[1])
    assert result("x.npy", "y.npy")["loss"] == pytest.approx(TWO_MEAN, rel=1e-3 if dtype == "float16" else 1e-7)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", ">i4", "longdouble"])
def test_targets_of_each_real_dtype_are_read(result, dtype):
    np.save("x.npy", TWO[0])
    np.save("y.npy", TWO[1].astype(dtype))
    assert result("x.npy", "y.npy")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


def test_npz_array_is_read_by_its_key(result):
    np.savez("a.npz", p=TWO[0], t=TWO[1])
    np.savez_compressed("b.npz", TWO[1])
    assert result("a.npz:p", "a.npz:t") | {"seconds": 0, "gb_per_second": 0} == result("a.npz:p", "b.npz") | {
        "seconds": 0,
        "gb_per_second": 0,
    }
    assert result("a.npz:p", "b.npz:arr_0")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV"])
def test_csv_column_is_read_by_name_or_index(result, name):
    write_csv(name, ["id", "target", "p, or so"], ["a", "1", "0.5"], ["b", "0", "0.25"])
    for x, y in (("p, or so", "target"), ("2", "1")):
        assert result(f"{name}:{x}", f"{name}:{y}")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


def test_csv_column_whose_name_is_a_number_is_meant_by_it(result):
    write_csv("a.csv", ["1", "p"], ["1", "0.5"], ["0", "0.25"])
    assert result("a.csv:p", "a.csv:1")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


def test_csv_of_one_column_needs_no_name(result):
    write_csv("x.csv", ["p"], ["0.5"], ["0.25"])
    write_csv("y.csv", ["t"], ["1"], ["0"])
    assert result("x.csv", "y.csv")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


def test_csv_may_have_a_byte_order_mark_windows_lines_and_quoted_line_breaks(result):
    Path("a.csv").write_bytes('\ufeffp,"t\nx","a note"\r\n"0.5",1,"x,\ny"\r\n\r\n0.25,"0",\r\n'.encode())
    assert result("a.csv:p", "a.csv:1")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


@pytest.mark.parametrize("flags", [("True", "False"), ("TRUE", "FALSE"), (" true", "false ")])
def test_csv_may_have_labels_of_bool(result, flags):
    write_csv("a.csv", ["p", "t"], *(["0.5", flags[0]], ["0.25", flags[1]]))
    assert result("a.csv:p", "a.csv:t")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


def test_pandas_reads_and_writes_the_same_csv(result):
    import pandas

    pandas.DataFrame({"p": TWO[0], "t": TWO[1]}).to_csv("a.csv.gz")
    assert result("a.csv.gz:p", "a.csv.gz:t")["loss"] == pytest.approx(TWO_MEAN, rel=1e-15)


def test_path_may_hold_a_colon_and_an_ending_within(result, folder):
    (folder / "a:b.npz.d").mkdir()
    np.save("a:b.npz.d/x.npy", TWO[0])
    np.save("y.npy", TWO[1])
    assert result("a:b.npz.d/x.npy", "y.npy")["count"] == 2


# Weights.


def test_weight_is_a_number_or_a_file_that_broadcasts(result):
    x = np.array([[0.5, 0.25], [0.25, 0.5]])
    y = np.array([[1, 0], [0, 1]])
    np.save("x.npy", x)
    np.save("y.npy", y)
    np.save("w.npy", np.array([3, 1], np.int16))
    write_csv("w.csv", ["w"], ["3"], ["1"])
    assert result("x.npy", "y.npy", "--weight", "2")["loss"] == pytest.approx(2 * TWO_MEAN, rel=1e-15)
    exact = (4 * math.log(2) + 4 * math.log(4 / 3)) / 4
    assert result("x.npy", "y.npy", "--weight", "w.npy")["loss"] == pytest.approx(exact, rel=1e-15)
    assert result("x.npy", "y.npy", "--weight", "w.csv")["bytes"] == 32 + 32 + 16


# Logits.


@pytest.fixture
def logits():
    """Logits in both tails and labels, as z.npy and y.npy, and the arrays."""
    z, y = np.array([2.0, -20.0, 0.5, 40.0, -3.0]), np.array([1, 0, 0.25, 1, 1])
    np.save("z.npy", z)
    np.save("y.npy", y)
    return z, y


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_logits_score_to_the_exact_value(result, logits, dtype):
    z, y = logits[0].astype(dtype), logits[1]
    np.save("z.npy", z)
    exact = reference.total(reference.logits_losses(z, y)) / 5
    limit = 1e-15 if dtype == "float64" else 2**-23
    assert result("z.npy", "y.npy", "--logits")["loss"] == pytest.approx(float(exact), rel=limit, abs=0)


def test_logits_in_the_tail_have_losses_beyond_the_last_place_of_1(result):
    np.save("z.npy", [40.0, -100.0])
    np.save("y.npy", [1, 0])
    exact = reference.total(reference.logits_losses([40.0, -100.0], [1, 0]))
    found = result("z.npy", "y.npy", "--logits", "--reduction", "sum")["loss"]
    assert found == pytest.approx(float(exact), rel=1e-15, abs=0)
    assert 0 < found < 1e-17


def test_logits_change_nothing_but_the_loss_in_json(result, logits):
    found = result("z.npy", "y.npy", "--logits", "--reduction", "sum")
    assert found.pop("loss") == pytest.approx(float(reference.total(reference.logits_losses(*logits))), rel=1e-15)
    assert found.pop("gb_per_second") == pytest.approx(80 / found.pop("seconds") / 1e9)
    assert found == {"reduction": "sum", "output": None, "count": 5, "bytes": 80}


def test_infinite_logit_costs_nothing_on_the_right_side_and_infinity_on_the_wrong_one(result, nbbce_command):
    np.save("z.npy", [np.inf, -np.inf, 0])
    np.save("right.npy", [1, 0, 1])
    np.save("wrong.npy", [1, 1, 1])
    assert result("z.npy", "right.npy", "--logits")["loss"] == pytest.approx(math.log(2) / 3, rel=1e-15)
    assert result("z.npy", "wrong.npy", "--logits")["loss"] is None
    assert "loss   inf (mean)" in nbbce_command("score", "z.npy", "wrong.npy", "--logits")[1]


@pytest.mark.parametrize("validate", [[], ["--no-validate"]], ids=["", "--no-validate"])
def test_logit_that_is_nan_gives_nan(result, nbbce_command, validate):
    np.save("z.npy", [0.5, np.nan])
    np.save("y.npy", [0, 1])
    assert result("z.npy", "y.npy", "--logits", *validate)["loss"] is None
    code, out, err = nbbce_command("score", "z.npy", "y.npy", "--logits", *validate)
    assert (code, err) == (0, "")
    assert "loss   nan (mean)" in out


def test_logits_are_read_from_csv(result):
    write_csv("a.csv", ["z", "y"], ["inf", "1"], ["-inf", "0"], ["0", "1"])
    assert result("a.csv:z", "a.csv:y", "--logits")["loss"] == pytest.approx(math.log(2) / 3, rel=1e-15)


def test_losses_of_logits_are_written(result, logits):
    result("z.npy", "y.npy", "--logits", "--reduction", "none", "--output", "o.npy")
    losses = np.load("o.npy")
    found, message = reference.worst(reference.ulps, losses, reference.logits_losses(*logits), "float64", *logits)
    assert found <= 2, message


def test_weight_of_logits_is_a_factor(result, logits):
    w = np.array([1, 2, 3, 4, 5], np.uint8)
    np.save("w.npy", w)
    exact = reference.total(reference.logits_losses(*logits, w)) / 5
    found = result("z.npy", "y.npy", "--logits", "--weight", "w.npy")
    assert found["loss"] == pytest.approx(float(exact), rel=1e-15)
    assert found["bytes"] == 85
    exact = reference.total(reference.logits_losses(*logits, 0.5)) / 5
    assert result("z.npy", "y.npy", "--logits", "--weight", "0.5")["loss"] == pytest.approx(float(exact), rel=1e-15)


def test_logits_of_no_dimension_are_scored(result, problem):
    np.save("z.npy", np.float32(2))
    np.save("y.npy", np.uint8(1))
    np.save("bad.npy", np.uint8(2))
    exact = math.log1p(math.exp(-2))
    assert result("z.npy", "y.npy", "--logits", "--pos-weight", "y.npy")["loss"] == pytest.approx(exact, rel=1e-6)
    assert problem("z.npy", "bad.npy", "--logits") == "targets must be in [0, 1]; got bad.npy = 2"


# Positive weights and label smoothing, for both kinds of predictions.

BOTH = pytest.mark.parametrize("logits", [[], ["--logits"]], ids=["probabilities", "logits"])


def saved(logits, rng):
    """Predictions and soft labels of 4 rows and 3 classes, as x.npy and y.npy; and the oracle of their losses."""
    y = np.where(rng.random((4, 3)) < 0.5, rng.integers(0, 2, (4, 3)), rng.random((4, 3)))
    x = rng.normal(scale=8, size=(4, 3)) if logits else rng.random((4, 3))
    np.save("x.npy", x)
    np.save("y.npy", y)
    return x, y, reference.logits_losses if logits else reference.losses


@BOTH
def test_pos_weight_is_a_number_or_a_file_that_broadcasts(result, rng, logits):
    x, y, losses = saved(logits, rng)
    p = np.array([3, 1, 2], np.int16)
    np.save("p.npy", p)
    write_csv("p.csv", ["p"], ["3"], ["1"], ["2"])
    for text, value, read in (("2.5", 2.5, 0), ("0", 0.0, 0), ("p.npy", p, 6), ("p.csv", p, 24)):
        found = result("x.npy", "y.npy", *logits, "--pos-weight", text)
        assert found["loss"] == pytest.approx(float(reference.total(losses(x, y, pw=value)) / 12), rel=1e-15)
        assert found["bytes"] == 192 + read


@BOTH
@pytest.mark.parametrize("text", ["0.1", "1", "0"])
def test_label_smoothing_gives_a_share_of_each_label_away(result, rng, logits, text):
    x, y, losses = saved(logits, rng)
    exact = reference.total(losses(x, y, a=float(text))) / 12
    found = result("x.npy", "y.npy", *logits, "--label-smoothing", text)["loss"]
    assert found == pytest.approx(float(exact), rel=2e-15)


@BOTH
def test_weight_pos_weight_and_label_smoothing_go_together(result, rng, logits):
    x, y, losses = saved(logits, rng)
    w, p = rng.random((4, 1)), rng.random(3, np.float32)
    np.save("w.npy", w)
    np.save("p.npy", p)
    exact = losses(x, y, w, p, 0.25)
    options = [*logits, "--weight", "w.npy", "--pos-weight", "p.npy", "--label-smoothing", "0.25"]
    found = result("x.npy", "y.npy", *options)
    assert found["loss"] == pytest.approx(float(reference.total(exact) / 12), rel=2e-15)
    assert found["bytes"] == 192 + 32 + 12
    result("x.npy", "y.npy", *options, "--reduction", "none", "--output", "o.npy")
    np.testing.assert_allclose(np.load("o.npy").ravel(), [float(e) for e in exact], rtol=2e-15)


# Chunks.


@pytest.fixture(params=["C", "F"])
def large(request, monkeypatch, rng):
    """More than a hundred chunks, cut within rows and within columns."""
    monkeypatch.setattr(cli, "CHUNK", 64)
    x, y = rng.random((50, 150), np.float32), rng.integers(0, 2, (50, 150)).astype(np.uint8)
    w = rng.random(150, np.float32)
    np.save("x.npy", np.asarray(x, order=request.param))
    np.save("y.npy", y)
    np.save("w.npy", w)
    return x, y, w


def test_losses_of_a_file_in_chunks_have_the_bits_of_one_call(result, large):
    for weight in ([], ["--weight", "w.npy"]):
        assert result("x.npy", "y.npy", "--reduction", "none", "--output", "o.npy", *weight)["output"] == "o.npy"
        expected = nbbce.binary_cross_entropy(*large[: 3 if weight else 2], reduction="none")
        np.testing.assert_array_equal(np.load("o.npy"), expected, strict=True)


def test_sum_over_chunks_is_the_sum(result, large):
    exact = float(nbbce.binary_cross_entropy(*large, reduction="sum", dtype=np.float64))
    found = result("x.npy", "y.npy", "--weight", "w.npy", "--reduction", "sum")["loss"]
    assert found == pytest.approx(exact, rel=1e-15, abs=0)
    assert result("x.npy", "y.npy", "--weight", "w.npy")["loss"] == pytest.approx(exact / 7500, rel=1e-15, abs=0)


def test_bad_value_is_named_by_its_place_in_the_whole_file(problem, large):
    y = large[1]
    bad = np.load("x.npy")
    bad[37, 101] = 1.5
    np.save("bad.npy", bad)
    assert problem("bad.npy", "y.npy") == "values must be in [0, 1]; got bad.npy[37, 101] = 1.5"
    y[49, 149] = 2
    np.savez("bad.npz", y)
    assert problem("x.npy", "bad.npz:arr_0") == "values must be in [0, 1]; got bad.npz:arr_0[49, 149] = 2"


@pytest.fixture
def large_logits(large, rng):
    """Logits laid out as x.npy, and positive weights of columns, as z.npy and p.npy."""
    z = rng.normal(scale=20, size=(50, 150)).astype(np.float32)
    p = rng.random(150, np.float32)
    np.save("z.npy", np.asarray(z, order="F" if np.load("x.npy").flags.f_contiguous else "C"))
    np.save("p.npy", p)
    return z, large[1], large[2], p


def test_losses_of_logits_in_chunks_have_the_bits_of_one_call(result, large_logits):
    z, y, w, p = large_logits
    write = ["--logits", "--reduction", "none", "--output", "o.npy"]
    result("z.npy", "y.npy", *write)
    expected = nbbce.binary_cross_entropy_with_logits(z, y, reduction="none")
    np.testing.assert_array_equal(np.load("o.npy"), expected, strict=True)
    result("z.npy", "y.npy", *write, "--weight", "w.npy", "--pos-weight", "p.npy", "--label-smoothing", "0.1")
    expected = nbbce.binary_cross_entropy_with_logits(z, y, w, "none", p, label_smoothing=0.1)
    np.testing.assert_array_equal(np.load("o.npy"), expected, strict=True)


def test_sum_of_logits_over_chunks_is_the_sum(result, large_logits):
    z, y, w, p = large_logits
    exact = float(reference.logits_total_in_float64(z.ravel(), y.ravel()))
    found = result("z.npy", "y.npy", "--logits", "--reduction", "sum")["loss"]
    assert found == pytest.approx(exact, rel=2**-23, abs=0)
    assert result("z.npy", "y.npy", "--logits")["loss"] == pytest.approx(found / 7500, rel=1e-15, abs=0)
    options = ["--weight", "w.npy", "--pos-weight", "p.npy"]
    expected = float(nbbce.binary_cross_entropy_with_logits(z, y, w, "sum", p, dtype=np.float64))
    found = result("z.npy", "y.npy", "--logits", "--reduction", "sum", *options)["loss"]
    assert found == pytest.approx(expected, rel=1e-15, abs=0)


def test_bad_target_of_a_logit_is_named_by_its_place_in_the_whole_file(problem, large_logits):
    bad = np.load("y.npy").astype(np.float32)
    bad[49, 149] = 2
    bad[37, 101] = np.nan
    np.save("bad.npy", bad)
    # The first of the two in either order.
    assert problem("z.npy", "bad.npy", "--logits") == "targets must be in [0, 1]; got bad.npy[37, 101] = nan"


@pytest.mark.parametrize("shape", [(), (0,), (1,), (64,), (65,), (3, 0), (2, 3, 70), (5, 130), (130, 5), (1, 1, 1)])
def test_pieces_cover_every_element_once(shape):
    seen = np.zeros(shape, int)
    for index in cli._pieces(shape, 64):
        assert seen[index].size <= 64
        seen[index] += 1
    assert (seen == 1).all()


def test_array_of_no_dimension_is_scored(result):
    np.save("x.npy", np.float32(0.25))
    np.save("y.npy", np.uint8(0))
    np.save("w.npy", 2.0)
    assert result("x.npy", "y.npy", "--weight", "w.npy")["loss"] == pytest.approx(2 * math.log(4 / 3), rel=1e-6)
    result("x.npy", "y.npy", "--reduction", "none", "--output", "o.npy")
    assert np.load("o.npy").shape == ()


# The progress bar.


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_terminal_shows_a_progress_bar(monkeypatch, large):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.main(["score", "x.npy", "y.npy"]) == 0
    assert "0.00/7.50k" in sys.stderr.getvalue()


def test_progress_bar_is_gone_before_an_error_is_printed(monkeypatch, large):
    y = large[1]
    y[49, 149] = 2
    np.save("bad.npy", y)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.main(["score", "x.npy", "bad.npy"]) == 2
    assert re.search(r"%.*\r +\rnbbce score: values must be in \[0, 1\]; got bad", sys.stderr.getvalue(), re.DOTALL)


def test_no_terminal_shows_no_progress_bar(nbbce_command, large):
    code, _, err = nbbce_command("score", "x.npy", "y.npy")
    assert (code, err) == (0, "")


# --output.


def test_output_is_a_npy_file_of_the_losses(nbbce_command, two):
    code, out, err = nbbce_command("score", *two, "--reduction", "none", "--output", "o.npy")
    assert (code, err) == (0, "")
    assert out.startswith("losses  o.npy\ncount   2\n")
    np.testing.assert_allclose(np.load("o.npy"), [math.log(2), math.log(4 / 3)], rtol=1e-15)


def test_output_has_the_dtype_of_the_predictions_in_native_order(result):
    np.save("x.npy", TWO[0].astype(">f2"))
    np.save("y.npy", TWO[1])
    result("x.npy", "y.npy", "--reduction", "none", "--output", "o.npy")
    assert np.load("o.npy").dtype == np.float16
    assert np.load("o.npy").dtype.isnative


def test_output_replaces_an_older_file_and_has_ordinary_permissions(result, two):
    Path("o.npy").write_text("old")
    Path("new").write_text("")
    result(*two, "--reduction", "none", "--output", "o.npy")
    assert np.load("o.npy").shape == (2,)
    assert os.stat("o.npy").st_mode == os.stat("new").st_mode


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, os.strerror(28)), "bad value"], ids=str)
def test_failed_run_leaves_no_output_and_the_older_file(nbbce_command, monkeypatch, large, folder, stop):
    Path("o.npy").write_text("old")
    before = sorted(folder.iterdir())
    if stop == "bad value":
        x = np.load("x.npy")
        x[49, 149] = -1
        np.save("x.npy", x)
        expected = 2, "nbbce score: values must be in [0, 1]; got x.npy[49, 149] = -1.0\n"
    else:
        inner, calls = cli.Job.loss, []

        def loss(self, *arguments):
            calls.append(1)
            if len(calls) == 50:
                raise stop
            return inner(self, *arguments)

        monkeypatch.setattr(cli.Job, "loss", loss)
        expected = (
            (130, "") if stop is KeyboardInterrupt else (2, f"nbbce score: cannot write o.npy: {stop.strerror}\n")
        )
    code, out, err = nbbce_command("score", "x.npy", "y.npy", "--reduction", "none", "--output", "o.npy")
    assert (code, out, err) == (expected[0], "", expected[1])
    assert sorted(folder.iterdir()) == before
    assert Path("o.npy").read_text() == "old"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve disk space here")
def test_full_disk_is_found_before_the_file_is_filled(problem, monkeypatch, two, folder):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert problem(*two, "--reduction", "none", "--output", "o.npy") == f"cannot write o.npy: {os.strerror(28)}"
    assert sorted(p.name for p in folder.iterdir()) == ["x.npy", "y.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reduction", "none"], "--reduction none must go with --output LOSSES.npy; got no --output"),
        (["--output", "o.npy"], "--reduction none must go with --output LOSSES.npy; got --output without it"),
        (["--reduction", "none", "--output", "o.txt"], "--output must end in .npy; got 'o.txt'"),
        (["--reduction", "none", "--output", "y.npy"], "--output must be another file than the inputs; got y.npy"),
        (
            ["--pos-weight", "p.npy", "--reduction", "none", "--output", "p.npy"],
            "--output must be another file than the inputs; got p.npy",
        ),
        (["--reduction", "none", "--output", "no/o.npy"], "cannot write no/o.npy: No such file or directory"),
        (["--reduction", "none", "--output", "d.npy"], "cannot write d.npy: Is a directory"),
    ],
)
def test_output_that_cannot_be_is_one_line(problem, two, folder, arguments, message):
    (folder / "d.npy").mkdir()
    np.save("p.npy", 2.0)
    assert problem(*two, *arguments) == message


# Bad files: the line, after "nbbce score: ".

BAD = {
    "missing": ("no.npy", lambda: None, "cannot read no.npy: No such file or directory"),
    "missing csv": ("no.csv:p", lambda: None, "cannot read no.csv: No such file or directory"),
    "a folder": ("d.npy", lambda: os.mkdir("d.npy"), "cannot read d.npy: Is a directory"),
    "no such kind": (
        "x.txt",
        lambda: None,
        "a file must end in .npy, .npz, .csv or .csv.gz (and then :KEY or :COLUMN); got 'x.txt'",
    ),
    "text as npy": ("t.npy", lambda: Path("t.npy").write_text("0.5\n"), "cannot read t.npy: it is no .npy file"),
    "empty npy": ("t.npy", lambda: Path("t.npy").touch(), "cannot read t.npy: it is no .npy file"),
    "objects": (
        "o.npy",
        lambda: np.save("o.npy", np.array([None]), allow_pickle=True),
        "cannot read o.npy: Array can't be memory-mapped: Python objects in dtype.",
    ),
    "key of npy": ("x.npy:p", lambda: None, "a .npy file holds one array and takes no key; got 'p' for x.npy"),
    "text as npz": ("t.npz", lambda: Path("t.npz").write_text("PX"), "cannot read t.npz: it is no .npz file"),
    "broken npz": (
        "t.npz",
        lambda: Path("t.npz").write_bytes(b"PK\3\4..."),
        "cannot read t.npz: File is not a zip file",
    ),
    "no key": (
        "a.npz",
        lambda: np.savez("a.npz", p=1, t=2),
        "a.npz must be given with a key, as in a.npz:KEY; it holds 'p', 't'",
    ),
    "wrong key": ("a.npz:q", lambda: np.savez("a.npz", p=1, t=2), "a.npz holds no array 'q'; it holds 'p', 't'"),
    "npz of nothing": (
        "a.npz",
        lambda: np.savez("a.npz"),
        "a.npz must be given with a key, as in a.npz:KEY; it holds nothing",
    ),
    "empty csv": (
        "a.csv",
        lambda: Path("a.csv").touch(),
        "the first line of a.csv must name its columns; got an empty one",
    ),
    "no header": (
        "a.csv:0",
        lambda: write_csv("a.csv", ["0.5", "1"], ["0.25", "0"]),
        "the first line of a.csv must name its columns; got the numbers 0.5,1",
    ),
    "no column": (
        "a.csv",
        lambda: write_csv("a.csv", ["p", "t"]),
        "a.csv must be given with a column, as in a.csv:COLUMN; it has 'p', 't'",
    ),
    "wrong column": ("a.csv:q", lambda: write_csv("a.csv", ["p", "t"]), "a.csv has no column 'q'; it has 'p', 't'"),
    "wrong index": (
        "a.csv:9",
        lambda: write_csv("a.csv", [f"c{i}" for i in range(9)]),
        "a.csv has no column '9'; it has 'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7' and 1 more",
    ),
    "ambiguous column": (
        "a.csv:p",
        lambda: write_csv("a.csv", ["p", "p"]),
        "a.csv has 2 columns 'p'; name one by its index, as in a.csv:0",
    ),
    "no number": (
        "a.csv:p",
        lambda: write_csv("a.csv", ["p", "t"], ["0.5", "1"], ["high", "0"]),
        "a.csv, line 3, column 'p': must be a number; got 'high'",
    ),
    "separated digits": (
        "a.csv:p",
        lambda: write_csv("a.csv", ["p", "t"], ["0_0.5", "1"]),
        "a.csv, line 2, column 'p': must be a number; got '0_0.5'",
    ),
    "other digits": (
        "a.csv:p",
        lambda: write_csv("a.csv", ["p", "t"], ["True", "1"], ["\u0661", "1"]),
        "a.csv, line 3, column 'p': must be a number; got '\u0661'",
    ),
    "empty cell": (
        "a.csv.gz:0",
        lambda: write_csv("a.csv.gz", ["p", "t"], ["", "1"]),
        "a.csv.gz, line 2, column 'p': must be a number; got ''",
    ),
    "long cell": (
        "a.csv",
        lambda: write_csv("a.csv", ["p"], ["x" * 99]),
        f"a.csv, line 2, column 'p': must be a number; got '{'x' * 37}...'",
    ),
    "short line": (
        "a.csv:t",
        lambda: write_csv("a.csv", ["p", "t"], ["0.5", "1"], ["0.5"]),
        "a.csv, line 3: cells must be as many as in the header, 2; got 1",
    ),
    "decimal commas": (
        "a.csv",
        lambda: Path("a.csv").write_text("p\n0,5\n0,25\n"),
        "a.csv, line 2: cells must be as many as in the header, 1; got 2",
    ),
    "not gzipped": (
        "a.csv.gz:p",
        lambda: Path("a.csv.gz").write_text("p\n"),
        r"cannot read a.csv.gz: Not a gzipped file (b'p\n')",
    ),
    "not UTF-8": (
        "a.csv:p",
        lambda: Path("a.csv").write_bytes(b"p,\xe9\n"),
        "cannot read a.csv: 'utf-8' codec can't decode byte 0xe9 in position 2: invalid continuation byte",
    ),
    "integers": (
        "i.npy",
        lambda: np.save("i.npy", [0, 1]),
        "predictions must have dtype float16, float32 or float64; got int64 in i.npy",
    ),
    "another shape": (
        "i.npy",
        lambda: np.save("i.npy", TWO[0][:, None]),
        "targets must have the shape of the predictions, (2, 1) in i.npy; got (2,) in y.npy",
    ),
    "value": ("b.npy", lambda: np.save("b.npy", [0.5, 1.25]), "values must be in [0, 1]; got b.npy[1] = 1.25"),
    "NaN": (
        "b.csv:p",
        lambda: write_csv("b.csv", ["p", "t"], ["nan", "1"], ["0.5", "1"]),
        "values must be in [0, 1]; got b.csv:p[0] = nan",
    ),
}


if np.dtype(np.longdouble).itemsize > 8:
    BAD["longdouble"] = (
        "i.npy",
        lambda: np.save("i.npy", TWO[0].astype(np.longdouble)),
        f"predictions must have dtype float16, float32 or float64; got {np.dtype(np.longdouble)} in i.npy",
    )


@pytest.mark.parametrize("case", list(BAD))
def test_bad_predictions_are_one_line(problem, two, case):
    name, make, message = BAD[case]
    make()
    assert problem(name, "y.npy") == message


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["a", "b"], "targets must have a real dtype; got <U1 in t.npy"),
        ([1j, 0], "targets must have a real dtype; got complex128 in t.npy"),
        ([1, 0, 1], "targets must have the shape of the predictions, (2,) in x.npy; got (3,) in t.npy"),
        ([1, 2], "values must be in [0, 1]; got t.npy[1] = 2"),
        ([-1, 1], "values must be in [0, 1]; got t.npy[0] = -1"),
    ],
    ids=["text", "complex", "shape", "above", "below"],
)
def test_bad_targets_are_one_line(problem, two, targets, message):
    np.save("t.npy", targets)
    assert problem("x.npy", "t.npy") == message


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1, 2], "targets must be in [0, 1]; got t.npy[1] = 2"),
        ([-0.5, 2], "targets must be in [0, 1]; got t.npy[0] = -0.5"),
        ([1, np.nan], "targets must be in [0, 1]; got t.npy[1] = nan"),
    ],
    ids=["above", "below", "NaN"],
)
def test_bad_targets_of_logits_are_one_line_whatever_the_logits(problem, result, targets, message):
    np.save("t.npy", targets)
    for predictions in ([0.5, 0.25], [40.0, -30.0], [np.nan, np.inf]):
        np.save("z.npy", predictions)
        assert problem("z.npy", "t.npy", "--logits") == message
        assert result("z.npy", "t.npy", "--logits", "--no-validate")["loss"] is None


def test_logits_that_are_taken_for_probabilities_are_one_line(problem):
    np.save("z.npy", [0.5, -30.0])
    np.save("y.npy", [0, 1])
    assert problem("z.npy", "y.npy") == "values must be in [0, 1]; got z.npy[1] = -30.0"


def test_logits_that_are_integers_are_one_line(problem):
    np.save("z.npy", [1, -3])
    message = "predictions must have dtype float16, float32 or float64; got int64 in z.npy"
    assert problem("z.npy", "z.npy", "--logits") == message


@pytest.mark.parametrize(("option", "name"), [("--weight", "weights"), ("--pos-weight", "positive weights")])
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("heavy", "OPTION must be a number or a .npy, .npz, .csv or .csv.gz file; got 'heavy'"),
        ("no.npy", "cannot read no.npy: No such file or directory"),
        ("s.npy", "NAME must have a real dtype; got <U1 in s.npy"),
        ("w.npy", "NAME must broadcast to the shape of the predictions, (2,) in x.npy; got (2, 2) in w.npy"),
    ],
)
def test_bad_weight_is_one_line(problem, two, option, name, weight, message):
    np.save("s.npy", ["a", "b"])
    np.save("w.npy", np.ones((2, 2)))
    message = message.replace("OPTION", option).replace("NAME", name)
    assert problem(*two, option, weight) == message
    assert problem(*two, option, weight, "--logits") == message


@pytest.mark.parametrize("text", ["1.5", "-0.25", "nan", "much", "x.npy"])
def test_bad_label_smoothing_is_one_line(problem, two, text):
    message = f"--label-smoothing must be a number in [0, 1]; got {text!r}"
    assert problem(*two, "--label-smoothing", text) == message
    assert problem(*two, "--logits", "--label-smoothing", text) == message


def test_mean_of_no_element_is_one_line(problem):
    np.save("e.npy", np.zeros((0, 3)))
    assert problem("e.npy", "e.npy") == "a mean must be over one value or more; got none in e.npy"


@pytest.mark.parametrize("name", ["x.npy", "a.npz", "a.csv.gz"])
def test_file_cut_anywhere_is_one_line(problem, two, name):
    np.savez_compressed("a.npz", TWO[0])
    write_csv("a.csv.gz", ["p"], ["0.5"], ["0.25"])
    whole = Path(name).read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        Path(f"cut.{name}").write_bytes(whole[:size])
        assert problem(f"cut.{name}", "y.npy")


def test_file_too_large_for_memory_is_one_line(problem, two, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    np.savez("a.npz", TWO[0])
    monkeypatch.setattr(np, "load", load)
    assert problem("a.npz", "y.npy") == "cannot read a.npz: it does not fit into memory, which a .npy file need not"


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "nbbce: the following arguments are required: COMMAND; see nbbce --help"),
        (["score"], "nbbce score: the following arguments are required: PREDICTIONS, TARGETS; see nbbce score --help"),
        (["score", "x", "y", "--fast"], "nbbce: unrecognized arguments: --fast; see nbbce --help"),
        (["info", "now"], "nbbce: unrecognized arguments: now; see nbbce --help"),
    ],
)
def test_wrong_arguments_are_one_line(nbbce_command, arguments, line):
    assert nbbce_command(*arguments) == (2, "", line + "\n")


@pytest.mark.parametrize("arguments", [["score", "x", "y", "--reduction", "avg"], ["frobnicate"]])
def test_wrong_choice_is_one_line(nbbce_command, arguments):
    code, out, err = nbbce_command(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"nbbce( score)?: [^\n]*invalid choice: '{arguments[-1]}'[^\n]*\n", err)


def test_version_and_help_are_printed(nbbce_command):
    assert nbbce_command("--version") == (0, f"nbbce {nbbce.__version__}\n", "")
    for arguments in (["--help"], ["score", "--help"], ["info", "--help"]):
        code, out, err = nbbce_command(*arguments)
        assert (code, err) == (0, "")
        assert out.startswith("usage: nbbce")


# `nbbce info`.


def test_info_tells_versions_threads_cache_and_targets(nbbce_command, monkeypatch):
    monkeypatch.setattr(_devices, "found", lambda: _devices.Found("0.30.4", None, (), "none found: no driver"))
    code, out, err = nbbce_command("info", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["nbbce"] == nbbce.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (facts["numba"], facts["llvmlite"], facts["numpy"]) == (
        numba.__version__,
        llvmlite.__version__,
        np.__version__,
    )
    assert facts["threads"] == numba.get_num_threads()
    assert facts["threading_layer"] == numba.threading_layer()
    assert facts["targets"] == {"cpu": "yes", "cuda": "no"}
    assert facts["processor"]
    code, out, err = nbbce_command("info")
    assert (code, err) == (0, "")
    starts = [line.find(line.split("  ")[-1].strip()) for line in out.splitlines()]
    assert len(starts) == len(facts)
    assert len(set(starts)) == 1


def pretend(monkeypatch, error=0, count=2, packages=("numba-cuda", "array-api-compat")):
    """A machine with a driver that gives `error` when it is started, devices, and packages."""
    driver = SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        CUdevice_attribute=SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
        ),
        cuDriverGetVersion=lambda: (0, 13010),
        cuInit=lambda flags: (error,),
        cuDeviceGetCount=lambda: (0, count),
        cuDeviceGet=lambda index: (0, index),
        cuDeviceGetName=lambda length, device: (0, b"Some device\0\0"),
        cuDeviceGetAttribute=lambda which, device: (0, {"major": 9, "minor": device}[which]),
        cuDeviceTotalMem=lambda device: (0, 80 * 2**30),
    )
    modules = {
        "cuda.bindings.driver": driver,
        "cuda.core.system": SimpleNamespace(get_kernel_mode_driver_version=lambda: (580, 65, 6)),
    }
    monkeypatch.setattr(_devices, "import_module", modules.__getitem__)
    monkeypatch.setattr(_devices, "installed", lambda name: "0.30.4" if name in packages else None)


def about_devices(nbbce_command):
    """The lines of `nbbce info` from the targets on, with single spaces."""
    code, out, err = nbbce_command("info")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    return lines[next(k for k, line in enumerate(lines) if line.startswith("targets")) :]


def test_info_names_driver_and_devices(nbbce_command, monkeypatch):
    pretend(monkeypatch)
    assert about_devices(nbbce_command) == [
        "targets cpu: yes, cuda: yes",
        "numba cuda 0.30.4",
        "driver 580.65.06, CUDA 13.1",
        "device 0 Some device, compute capability 9.0, 80.0 GiB",
        "device 1 Some device, compute capability 9.1, 80.0 GiB",
    ]
    facts = json.loads(nbbce_command("info", "--json")[1])
    assert facts["devices"][1] == {"name": "Some device", "capability": [9, 1], "memory": 80 * 2**30}


@pytest.mark.parametrize(
    ("machine", "lines"),
    [
        ({"count": 0}, ["driver 580.65.06, CUDA 13.1", "devices none found"]),
        (
            {"error": SimpleNamespace(name="CUDA_ERROR_NO_DEVICE")},
            ["driver 580.65.06, CUDA 13.1", "devices none found: CUDA_ERROR_NO_DEVICE"],
        ),
        (
            {"packages": ["numba-cuda"]},
            [
                "driver not looked for",
                f"devices not looked for: array-api-compat is not installed; {_devices.INSTALL}",
            ],
        ),
    ],
)
def test_info_says_why_there_is_no_device(nbbce_command, monkeypatch, machine, lines):
    pretend(monkeypatch, **machine)
    assert about_devices(nbbce_command) == ["targets cpu: yes, cuda: no", "numba cuda 0.30.4", *lines]


def test_info_without_numba_cuda_names_what_to_install(nbbce_command, monkeypatch):
    pretend(monkeypatch, packages=[])
    assert about_devices(nbbce_command)[1:] == [
        "numba cuda not installed",
        "driver not looked for",
        "devices not looked for: numba-cuda is not installed; "
        "python -m pip install 'nbbce[cuda13]', or 'nbbce[cuda12]' for a driver of CUDA 12",
    ]


def test_info_without_a_driver_is_no_error(nbbce_command, monkeypatch):
    class DynamicLibNotFoundError(RuntimeError):
        """As cuda.bindings raises it."""

    def missing(name):
        raise DynamicLibNotFoundError("some\nlines")

    pretend(monkeypatch)
    monkeypatch.setattr(_devices, "import_module", missing)
    assert about_devices(nbbce_command)[2:] == ["driver none found", "devices none found: no driver"]


def test_info_of_this_machine_is_no_error():
    found = fresh("info")
    assert (found.returncode, found.stderr) == (0, "")
    assert re.search(r"^device", found.stdout, re.MULTILINE)


def fresh(*arguments, **variables):
    """`python -m nbbce` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "nbbce", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_info_counts_kernels_in_the_cache_folder(folder):
    found = fresh("info", "--json", NBBCE_CACHE=str(folder / "kernels"))
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stdout)
    assert Path(facts["cache"]).parent == folder / "kernels"
    assert facts["kernels"] == 0
    Path(facts["cache"], "a.1.nbc").touch()
    assert json.loads(fresh("info", "--json", NBBCE_CACHE=str(folder / "kernels")).stdout)["kernels"] == 1


def test_info_says_that_the_cache_is_off_and_what_layer_fails():
    found = fresh("info", NBBCE_CACHE="0", NUMBA_THREADING_LAYER="none such")
    assert (found.returncode, found.stderr) == (0, "")
    assert re.search(r"^cache +off$", found.stdout, re.MULTILINE)
    assert re.search(r"^threading layer +none such, which fails: .", found.stdout, re.MULTILINE)


def test_setting_that_numba_refuses_is_one_line():
    found = fresh("info", NUMBA_NUM_THREADS="0")
    assert (found.returncode, found.stdout) == (2, "")
    assert re.fullmatch(r"nbbce info: Numba cannot be imported: [^\n]+\n", found.stderr)


# Whole processes.


def test_python_m_nbbce_scores_the_examples():
    found = fresh("score", "examples/breast_cancer.csv:1", "examples/breast_cancer.csv:0", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["loss"] == 0.07383704165098375


def test_error_of_a_process_is_one_line_and_code_2(folder):
    found = fresh("score", folder / "no.npy", folder / "no.npy")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == f"nbbce score: cannot read {folder / 'no.npy'}: No such file or directory\n"


@pytest.mark.parametrize("arguments", [["info"], ["--help"]], ids=" ".join)
def test_reader_that_has_gone_is_met_with_silence(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nbbce", *arguments]
    found = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    # With PYTHONUNBUFFERED set, argparse itself passes over the error.
    assert found.returncode in (141, 0 if arguments == ["--help"] else 141)
    assert found.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_cannot_be_printed_is_one_line():
    command = [sys.executable, "-m", "nbbce", "info"]
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert found.returncode == 2
    assert found.stderr == "nbbce info: cannot write to standard output: No space left on device\n"


def test_interrupt_is_quiet(nbbce_command, monkeypatch, two):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(nbbce, "binary_cross_entropy", interrupted)
    assert nbbce_command("score", *two) == (130, "", "")


def test_importing_the_command_line_imports_neither_numba_nor_tqdm():
    code = "import sys, nbbce.cli; print(sorted({'numba', 'llvmlite', 'tqdm'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
