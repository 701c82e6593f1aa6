"""A process that saves is killed at every file operation, and meets a full disk there: what was stored before is whole, or what was to be
stored is; never a mixture, never an error."""

import json
import signal
from functools import cache, partial
from pathlib import Path

import pytest

from tests.slow.children import needs_forkserver, run_child
from tests.slow.savers import FULL, NOTHING, SAVERS, work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:.*falling back to the checkpoint"),
    needs_forkserver,
]

LAZY = ("pandas", "torch._dynamo", "kdnb.models.resnet")  # what the children would each import anew


child = partial(run_child, ("tests.slow.routines", "tests.slow.savers", *LAZY), work)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a reader finds at each mark of a saver that nothing stops, and its count of file operations."""

    @cache
    def run(name: str) -> tuple[list[str], int]:
        folder = tmp_path_factory.mktemp("undisturbed")
        (folder / "kept").mkdir()
        assert child(name, folder / "kept", 0, False, folder / "answer") == 0
        looks, count = json.loads((folder / "answer").read_text())
        assert len(set(looks)) >= 2 and count >= 20
        return looks, count

    return run


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


@pytest.mark.parametrize("name", SAVERS)
def test_a_process_killed_at_any_file_operation_leaves_the_old_or_the_new(name, undisturbed, tmp_path, record_property):
    (looks, count), saver, found = undisturbed(name), SAVERS[name], []
    gap, every = {NOTHING} if saver.gap else set(), 5 if saver.heavy else 2
    for at in range(1, count + 1):
        folder, answer = tmp_path / f"{at}", tmp_path / f"answer-{at}"
        folder.mkdir()
        assert child(name, folder, at, False, answer) == -signal.SIGKILL and not answer.exists()
        found.append(saver.look(folder))
        assert found[-1] in {*looks, *gap}, at
        assert len(leftovers(folder)) <= 1, at
        if at % every == 0:  # the next one does the work and finds no obstacle
            assert child(name, folder, 0, False, answer) == 0, at
            assert saver.look(folder) == looks[-1], at
            assert not saver.sweeps or not leftovers(folder), at
    assert found[0] == looks[0] and set(found) == {*looks, *gap}, "the deaths do not cover the whole work"
    position = 0
    for one in (one for one in found if one not in gap or one in looks):
        position = looks.index(one, position)  # an older state does not come back
    record_property("kill points", count)


@pytest.mark.parametrize("name", SAVERS)
def test_a_full_disk_is_an_error_that_leaves_the_old_or_the_new_and_no_rubbish(
    name, undisturbed, tmp_path, record_property
):
    (looks, count), saver = undisturbed(name), SAVERS[name]
    for at in range(1, count + 1, 9 if saver.heavy else 3):
        folder, answer = tmp_path / f"{at}", tmp_path / f"answer-{at}"
        folder.mkdir()
        code = child(name, folder, at, True, answer)
        assert code in (0, FULL) and (code == FULL or at > count // 2), at
        assert saver.look(folder) in {*looks, NOTHING if saver.gap else looks[0]} and not leftovers(folder), at
        record_property("full disks", int(code == FULL))
