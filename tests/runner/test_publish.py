"""Uploading a student: what would go where, and that nothing else does; against a hub of our own on this machine."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import kdnb
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.runner.publish import push, student_folder
from kdnb.runs import start_run

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
TOKEN = "hf_verysecrettokenofnobody"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNB_CACHE", str(root / "cache"))
        data = kdnb.load("digits", image_size=8)
        teacher = build("resnet8w4", **data.normalization)
        kdnb.distil(teacher, "resnet8w4", data, epochs=1).save(root / "student", licence="mit")
    (root / "student" / "notes.txt").write_text("not for others")
    return root / "student"


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as an upload asks for; keeps what it was sent."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.calls.append((self.path, body, self.headers.get("Authorization")))
        if self.server.refuse:
            return self.answer(403, {"error": f"no rights for {TOKEN}"})
        address = f"http://127.0.0.1:{self.server.server_port}/me/pet"
        if self.path.endswith("/preupload/main"):
            modes = {"README.md": "regular"}  # weights go to the store of large files
            files = [
                {"path": one["path"], "uploadMode": modes.get(one["path"], "lfs"), "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path.endswith("/objects/batch"):
            upload = {"actions": {"upload": {"href": f"{address}/large"}}}
            objects = [{"oid": one["oid"], "size": one["size"]} | upload for one in json.loads(body)["objects"]]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if self.path.endswith("/commit/main"):
            return self.answer(200, {"commitUrl": f"{address}/commit/1", "commitOid": "1"})
        return self.answer(200, {"url": address, "name": "me/pet", "id": "me/pet"})

    do_GET = do_PUT = do_POST

    def answer(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.refuse = [], False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def inv_push(hub, tmp_path, *arguments, token=TOKEN):
    """In a process of its own: the package reads its settings once, when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "KDNB_OUTPUTS": str(tmp_path / "outputs"),
    }
    command = [sys.executable, "-m", "invoke", "push", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_dry_run_shows_files_sizes_and_card_and_asks_nobody(saved, hub, tmp_path):
    found = inv_push(hub, tmp_path, saved, "--repo", "me/pet", token="")
    assert found.returncode == 0 and not hub.calls
    assert "dry run: with --really" in found.stdout and "license: mit" in found.stdout
    size = (saved / "student.safetensors").stat().st_size
    assert f"student.safetensors      {size:>12,} bytes" in found.stdout and "notes.txt" not in found.stdout


def test_really_uploads_the_student_and_its_card_and_nothing_else(saved, hub, tmp_path):
    found = inv_push(hub, tmp_path, saved, "--repo", "me/pet", "--really")
    assert found.returncode == 0, found.stderr
    assert f"uploaded to http://127.0.0.1:{hub.server_port}/me/pet/commit/1" in found.stdout
    (commit,) = [body for path, body, _ in hub.calls if path.endswith("/commit/main")]
    lines = [json.loads(line) for line in commit.splitlines()]
    assert {line["value"]["path"] for line in lines if line["key"] != "header"} == {"student.safetensors", "README.md"}
    (large,) = [body for path, body, _ in hub.calls if path.endswith("/large")]
    assert large == (saved / "student.safetensors").read_bytes()
    assert {authorization for _, _, authorization in hub.calls} <= {f"Bearer {TOKEN}", None}
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN not in found.stdout + found.stderr + kept


def test_without_a_token_nothing_is_sent(saved, hub, tmp_path):
    found = inv_push(hub, tmp_path, saved, "--repo", "me/pet", "--really", token="")
    assert found.returncode == 2 and not hub.calls
    assert found.stderr.strip() == "there is no token for the hub; set HF_TOKEN or log in with `hf auth login`"


def test_what_the_hub_refuses_is_one_sentence_without_the_token(saved, hub, tmp_path):
    hub.refuse = True
    found = inv_push(hub, tmp_path, saved, "--repo", "me/pet", "--really")
    assert found.returncode == 2 and found.stderr.startswith("the hub did not take me/pet: ") and "403" in found.stderr
    assert len(found.stderr.splitlines()) == 1 and TOKEN not in found.stdout + found.stderr


@pytest.mark.parametrize("repo", ["", "pet", "me/pet/two", "../pet", "me/p et", "https://me/pet"])
def test_a_repository_is_user_and_name(saved, repo):
    with pytest.raises(InputError, match="--repo must be USER/NAME"):
        push(saved, repo)


def test_a_student_without_a_card_is_not_uploaded(saved, tmp_path):
    (tmp_path / "student.safetensors").write_bytes((saved / "student.safetensors").read_bytes())
    with pytest.raises(InputError, match="has no card, README.md"):
        push(tmp_path, "me/pet")


def test_a_student_is_found_by_the_name_of_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    run = start_run("04_distillation", {"seed": 0, "threads": 1})
    name = run.folder.name
    with pytest.raises(InputError, match="left no student"):
        student_folder(name)
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "student.safetensors").write_bytes(b"")
    assert student_folder(name) == run.folder.resolve() / "checkpoints"
    with pytest.raises(InputError, match="unknown run"):
        student_folder("seed7")
