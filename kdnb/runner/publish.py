"""What a run left for others: its student as ONNX, or on a model hub. Nothing is uploaded unless it is said twice."""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from kdnb.errors import InputError
from kdnb.reports.run_files import find_run
from kdnb.training.export import ADAPTERS, CARD, WEIGHTS, read_student
from kdnb.training.onnx_export import ONNX

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def student_folder(given: str) -> Path:
    """The folder that holds a student: given itself, or that of a run, by the run's name or folder.

    Raises:
        InputError: no such run or folder, or no student in it.
    """
    if given and (Path(given) / WEIGHTS).is_file():
        return Path(given)
    folder = find_run(given, outside=True) / "checkpoints"
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder.parent.name} left no student; `inv distil` and runs of 04_distillation and 14_your_own do"
        )
    return folder


class Upload(NamedTuple):
    """What a push puts where.

    Attributes:
        repo: USER/NAME on the hub.
        files: that go there.
        card: text of its README.md.
        address: of what was pushed; empty until then.
    """

    repo: str
    files: list[Path]
    card: str
    address: str = ""

    def describe(self) -> str:
        sizes = [f"  {path.name:24} {path.stat().st_size:>12,} bytes" for path in self.files]
        if self.address:
            return "\n".join([f"uploaded to {self.address}", *sizes])
        shown = [f"  | {line}".rstrip() for line in self.card.splitlines()]
        head = f"dry run: with --really these would be uploaded to the model repository {self.repo}"
        return "\n".join([head, *sizes, f"the card, {CARD}:", *shown])


def push(folder: Path, repo: str, really: bool = False, private: bool = False) -> Upload:
    """Upload a student, its card and what belongs to them; without `really` only say what would be uploaded.

    Args:
        folder: that `kdnb.training.export.save_student` wrote; other files in it stay where they are.
        repo: USER/NAME of a model repository, made if it is not there. The hub is that of huggingface_hub, or the one that the
            environment variable HF_ENDPOINT names; the token is the one it keeps, or HF_TOKEN. It is never printed nor written.
        private: whether a repository that is made is.
    Raises:
        InputError: another form of repo, no student, no card; with `really` also no package, no token, or what the hub answered.
    """
    if not _REPO.fullmatch(repo):
        raise InputError(f"--repo must be USER/NAME in letters, digits, '-', '_' and '.', got {repo[:80]!r}")
    read_student(folder)
    if not (folder / CARD).is_file():
        raise InputError(
            f"{folder.name} has no card, {CARD}; a model without one says nothing about itself and is not uploaded"
        )
    files = [folder / name for name in (WEIGHTS, CARD, ADAPTERS, ONNX) if (folder / name).is_file()]
    planned = Upload(repo, files, (folder / CARD).read_text(encoding="utf-8"))
    return planned._replace(address=_upload(planned, private)) if really else planned


def _upload(planned: Upload, private: bool) -> str:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("uploading needs the package huggingface_hub; install the extra: uv sync --extra hub")
    import huggingface_hub as hub
    from huggingface_hub.errors import HTTPError

    token = hub.get_token()
    if not token:
        raise InputError("there is no token for the hub; set HF_TOKEN or log in with `hf auth login`")
    operations = [hub.CommitOperationAdd(path.name, path) for path in planned.files]
    try:
        api = hub.HfApi(token=token)
        api.create_repo(planned.repo, private=private, exist_ok=True)
        found = api.create_commit(planned.repo, operations, commit_message="Upload a distilled student")
    except (
        HTTPError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # what the hub answered, no connection, offline mode
        reason = " ".join(str(error).split()).replace(token, "***")[:300] or type(error).__name__
        raise InputError(f"the hub did not take {planned.repo}: {reason}") from None
    return str(found.commit_url)
