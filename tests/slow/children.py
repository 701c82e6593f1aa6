"""Processes to be killed: forked from one that has imported everything once, and trained nothing."""

import multiprocessing
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

needs_forkserver = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="kills processes that a fork server started"
)


@cache
def _context(modules: tuple[str, ...]):
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(modules))
    return found


def run_child(modules: tuple[str, ...], work: Callable, *arguments) -> int:
    """Exit code of `work(*arguments)` in a process of its own, the modules imported before it starts; paths are given as text."""
    process = _context(modules).Process(
        target=work, args=[str(one) if isinstance(one, Path) else one for one in arguments]
    )
    process.start()
    process.join()
    return process.exitcode
