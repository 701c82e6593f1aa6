"""Run once more from the record of a run, and compare what comes out."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kdnb.reports.compare import Comparison, _whole, compare_runs
from kdnb.reports.outcome import Outcome
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan_again
from kdnb.storage.naming import run_folder


def verify(folder: Path, reuse: bool = False, limit: float | None = None) -> tuple[Outcome, Comparison | None]:
    """Execute a run once more from its own record, in outputs of its own that are removed afterwards, and compare.

    Args:
        folder: of the run, as `kdnb.reports.run_files.find_run` gives it.
        reuse: take teachers and priors from the artifact cache instead of training them again.
        limit: seconds, as `run_notebook`.
    Returns:
        The outcome of the new execution, and the comparison; None if it did not end well.
    Raises:
        InputError: the run's record or files are damaged, it has no results, or the notebook's parameters have changed.
    """
    _whole(folder)
    planned = plan_again(folder)
    with tempfile.TemporaryDirectory(prefix="kdnb-verify-") as fresh, _outputs_in(Path(fresh), reuse):
        planned = replace(planned, folder=run_folder(planned.profile, planned.notebook, planned.parameters))
        outcome = run_notebook(planned, limit)
        return outcome, compare_runs(folder, planned.folder) if outcome.status == "ok" else None


@contextmanager
def _outputs_in(folder: Path, reuse: bool) -> Iterator[None]:
    from kdnb.storage.paths import cache_root

    changed = {"KDNB_OUTPUTS": str(folder), "KDNB_CACHE": str(cache_root() if reuse else folder / "cache")}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
