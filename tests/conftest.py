"""Tests run with one thread and keep their outputs apart; the fixture notebooks are material, not tests."""

import atexit
import os
import shutil
import tempfile

collect_ignore_glob = ["notebooks/*.ipynb"]

# before any test imports torch: two threads on busy cores are slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("KDNB_QUIET", "1")
if "KDNB_OUTPUTS" not in os.environ:  # `inv test` sets its own, so that notebooks share trained teachers
    os.environ["KDNB_OUTPUTS"] = tempfile.mkdtemp(prefix="kdnb-test-")
    atexit.register(shutil.rmtree, os.environ["KDNB_OUTPUTS"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """What the passed tests counted with `record_property(name, number)`: one line a name."""
    counts = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties if report.when == "call" else []:
            if isinstance(value, int | float) and not isinstance(value, bool):
                counts[name] = counts.get(name, 0) + value
    if counts:
        terminalreporter.section("counts")
        for name, value in sorted(counts.items()):
            terminalreporter.line(f"{name}: {value:,}")
