"""CONTRIBUTING.md, followed to the letter in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdnb.storage.paths import PROJECT

TEXT = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHAPTERS = {match[1]: match[2] for match in re.finditer(r"^## (Add a [a-z ]+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)}
BLOCK = re.compile(
    r"^```\w+\n# (new file|in|run)(?: ([\w./]+))?(?:, (before|after): ([^\n]*))?\n(.*?)^```", re.M | re.S
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that git knows or would take, in a folder of their own."""
    copy = tmp_path_factory.mktemp("checkout")
    listed = ["git", "-C", str(PROJECT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines():
        if (PROJECT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, copy / name)
    return copy


def follow(checkout: Path, kind: str, name: str, where: str, mark: str, body: str) -> None:
    if kind == "new file":
        (checkout / name).write_text(body, encoding="utf-8")
    elif kind == "in":
        text = (checkout / name).read_text(encoding="utf-8")
        assert text.count(mark) == 1, f"{name} has {text.count(mark)} times {mark!r}"
        place = text.index(mark) if where == "before" else text.index("\n", text.index(mark)) + 1
        (checkout / name).write_text(text[:place] + body + text[place:], encoding="utf-8")
    else:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("KDNB_", "PYTEST"))}
        environment |= {"PYTHONPATH": str(checkout), "KDNB_OUTPUTS": str(checkout / "outputs")}
        for line in body.splitlines():
            command = re.sub(r"^python\b", sys.executable, line)
            done = subprocess.run(command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_what_the_chapter_says_works(chapter, checkout):
    """In the order of the page: the notebook reads the data set that was added before."""
    blocks = BLOCK.findall(CHAPTERS[chapter])
    assert len(blocks) == CHAPTERS[chapter].count("```") // 2 >= 3
    for block in blocks:
        follow(checkout, *block)


def test_the_page_has_the_three_chapters():
    assert list(CHAPTERS) == ["Add a method", "Add a data set", "Add a notebook"]
