"""The rules of `inv lint` hold for every file, code cells of the notebooks included."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_ruff_has_nothing_to_say():
    command = [sys.executable, "-m", "ruff", "check", str(ROOT), "--quiet", "--no-cache", "--output-format", "concise"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, f"\n{found.stdout}{found.stderr}"


def test_mypy_has_nothing_to_say(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "--no-pretty"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, f"\n{found.stdout}{found.stderr}"
