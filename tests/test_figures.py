"""The README's tables are the figures in the committed files, and its examples give what it shows."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        (
            "asv_benchmarks/speed.py",
            "--markdown",
            "asv_benchmarks/speed-znver5.json",
            "asv_benchmarks/speed-znver4.json",
        ),
        ("asv_benchmarks/accuracy.py", "--markdown"),
        ("asv_benchmarks/device.py", "asv_benchmarks/device-h100.json"),
    ],
    ids=["speed", "accuracy", "device"],
)
def test_table_in_the_readme_is_what_the_committed_figures_say(command):
    script, *arguments = command
    printed = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.strip()
    assert printed.count("\n") > 3
    assert printed in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("picture", sorted(path.name for path in (ROOT / "docs").glob("*.png")))
def test_picture_is_shown_in_the_readme(picture):
    assert f"docs/{picture}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_of_the_readme_give_what_it_shows():
    outcome = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert outcome.attempted > 20
    assert outcome.failed == 0
