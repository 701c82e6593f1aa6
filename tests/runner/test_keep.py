import json
import shutil
from pathlib import Path

import nbformat
import pytest

from kdnb.errors import InputError
from kdnb.runner import keep
from kdnb.runner.keep import clean, problems, record_notebook
from tests.material import FIXTURES


def executed():
    """A notebook as papermill leaves it, with one of each kind of leftover."""
    v4 = nbformat.v4
    result = v4.new_output("execute_result", {"text/plain": "2"}, execution_count=9)
    cells = [
        v4.new_markdown_cell("title"),
        v4.new_code_cell(
            "seed: int = 0  # seed",
            execution_count=3,
            metadata={"tags": ["parameters"], "papermill": {"status": "completed"}},
        ),
        v4.new_code_cell("seed = 1", execution_count=4, metadata={"tags": ["injected-parameters"]}),
        v4.new_markdown_cell("banner", metadata={"tags": ["papermill-error-cell-tag"]}),
        v4.new_code_cell(
            "1 + 1",
            execution_count=9,
            outputs=[result],
            metadata={"execution": {"iopub.status.busy": "now"}, "trusted": True},
        ),
        v4.new_code_cell("", execution_count=None),
    ]
    metadata = {
        "papermill": {"duration": 3},
        "kernelspec": {"name": "mine", "display_name": "Mine"},
        "language_info": {"name": "python", "version": "3.11.7"},
    }
    return v4.new_notebook(cells=cells, metadata=metadata)


def showing(output):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", execution_count=1, outputs=[output])])


def text(content, kind="text/plain"):
    return nbformat.v4.new_output("display_data", {kind: content})


def test_clean_keeps_what_a_reader_needs_and_nothing_of_the_run():
    kept = clean(executed())
    assert [cell.source for cell in kept.cells] == ["title", "seed: int = 0  # seed", "1 + 1", ""]
    assert [cell.get("execution_count") for cell in kept.cells] == [None, 1, 2, None]
    assert kept.cells[2].outputs == [
        {"output_type": "execute_result", "data": {"text/plain": "2"}, "metadata": {}, "execution_count": 2}
    ]
    assert kept.cells[1].metadata == {"tags": ["parameters"]} and kept.cells[2].metadata == {}
    assert kept.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(kept)


def test_clean_drops_what_the_day_decides():
    stream = nbformat.v4.new_output("stream", text="loss 1\nreused: 3 students from the cache\nloss 2\n")
    assert clean(showing(stream)).cells[0].outputs[0].text == "loss 1\nloss 2\n"
    assert clean(showing(nbformat.v4.new_output("stream", text="reused: x\n"))).cells[0].outputs == []


def test_clean_leaves_its_argument_alone_and_changes_nothing_twice():
    original = executed()
    before = json.dumps(original)
    once = clean(original)
    assert json.dumps(original) == before and clean(once) == once


@pytest.mark.parametrize(
    "content", ["/home/me/x.py", "see /tmp/ipykernel_1/2.py:3", "'/Users/x'", "(/usr/lib)", r"C:\\data", r"C:\data"]
)
def test_a_path_of_a_machine_is_a_problem(content):
    assert problems(showing(text(content))) == ["code cell 1 shows a path of this machine"]
    assert problems(showing(nbformat.v4.new_output("stream", text=content)))


@pytest.mark.parametrize(
    "content", ["1/2", "outputs/quick", "loss/tmp", "a/home/b", "https://example.org/home/x", "train 3/usr"]
)
def test_other_slashes_are_no_problem(content):
    assert problems(showing(text(content))) == []


def test_this_checkout_is_a_path_of_a_machine(monkeypatch):
    monkeypatch.setattr(keep, "PROJECT", Path("/srv/lab/kdnb"))
    assert problems(showing(text("file /srv/lab/kdnb/kdnb/runs.py")))


def test_encoded_images_are_not_read_as_text():
    assert problems(showing(text("AB+/tmp/xy", "image/png"))) == []


def test_outputs_of_code_that_is_in_no_commit_are_a_problem():
    (found,) = problems(showing(nbformat.v4.new_output("stream", text="cpu with 1 thread(s), commit 8cf7d5eb11+\n")))
    assert found.startswith("kdnb differed from its commit")
    assert problems(showing(nbformat.v4.new_output("stream", text="commit 8cf7d5eb11\n"))) == []


def test_an_error_and_an_oversized_notebook_are_problems():
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[])
    assert problems(showing(error)) == ["code cell 1 holds an error"]
    (found,) = problems(showing(text("x" * 700_000)))
    assert "600000 are allowed" in found


# --- recording, with real kernels ----------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    shutil.copytree(FIXTURES, folder)
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(folder))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "params" / "quick").mkdir(parents=True)
    return folder


def test_a_recorded_notebook_holds_the_outputs_of_its_defaults(project):
    before = nbformat.read(project / "fine.ipynb", as_version=4)
    assert record_notebook("fine").status == "ok"
    after = nbformat.read(project / "fine.ipynb", as_version=4)
    assert [(cell.id, cell.source) for cell in after.cells] == [(cell.id, cell.source) for cell in before.cells]
    assert [cell.execution_count for cell in after.cells if cell.cell_type == "code"] == [1, 2, 3, 4]
    assert after.cells[-1].outputs[0].text == "epochs 2\n"
    assert clean(after) == after


def test_a_failing_notebook_is_not_stored(project):
    before = (project / "raises.ipynb").read_bytes()
    assert record_notebook("raises").status == "failed"
    assert (project / "raises.ipynb").read_bytes() == before


def test_a_notebook_that_shows_a_path_is_not_stored(project):
    path = project / "fine.ipynb"
    path.write_text(path.read_text().replace('print(\\"epochs\\", p.epochs)', 'print(\\"/home/me\\")'))
    before = path.read_bytes()
    with pytest.raises(InputError, match="fine is not stored: code cell 4 shows a path"):
        record_notebook("fine")
    assert path.read_bytes() == before


def test_a_quick_file_that_differs_from_the_defaults_is_refused(project):
    (project.parent / "params" / "quick" / "fine.yaml").write_text("epochs: 3\n")
    with pytest.raises(InputError, match="defaults differ in epochs"):
        record_notebook("fine")


def test_a_notebook_that_is_edited_while_it_runs_is_not_overwritten(project, monkeypatch):
    path = project / "fine.ipynb"
    real = keep.run_notebook

    def run_and_edit(planned):
        outcome = real(planned)
        path.write_text(path.read_text().replace("Ends well", "Ends very well"))
        return outcome

    monkeypatch.setattr(keep, "run_notebook", run_and_edit)
    with pytest.raises(InputError, match="edited while it ran"):
        record_notebook("fine")
    assert "Ends very well" in path.read_text()
