"""Two published experiments as their users run them: real networks and batches from teachers in published files, about fifty true steps,
killed on the way, taken up again, evaluated, and read by plain torch. Only the numbers of steps and images are cut.

CIFAR-100 is noise in its own files, 3,200 training and 200 test images of it.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from kdnb.generators.diffusion import build_prior
from kdnb.models import build
from kdnb.reports.outcome import read_outcome
from kdnb.storage.paths import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]


def write_cifar100(root: Path) -> None:
    rng, folder = np.random.default_rng(0), root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 3200), ("test", 200)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = (np.arange(count) % 100).tolist()
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"fine_labels": labels}, protocol=4))


class Experiment:
    """A run from the command line, in folders of its own."""

    def __init__(self, folder: Path, name: str, **parameters):
        write_cifar100(folder / "data")
        self.folder, self.name = folder, name
        self.parameters = {"device": "cpu", "threads": 1, "milestones": [], **parameters}
        self.environment = os.environ | {
            "KDNB_DATA": str(folder / "data"),
            "KDNB_OUTPUTS": str(folder / "outputs"),
            "OMP_NUM_THREADS": "1",
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "invoke", *words]

    def words(self) -> list[str]:
        given = [f"-p {name}={value}" for name, value in self.parameters.items()]
        return ["run", self.name, "--profile", "cifar100", *(word for text in given for word in text.split(" ", 1))]

    def kill_after_a_checkpoint(self) -> None:
        """SIGKILL to the runner and its kernel once a student has left a checkpoint on its way."""
        process = subprocess.Popen(self.command(*self.words()), cwd=PROJECT, env=self.environment)
        while not list(self.folder.glob("outputs/**/step-*.safetensors")):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(1)
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            one.kill()
        assert process.wait() == -signal.SIGKILL
        psutil.wait_procs(family)

    def finish(self) -> str:
        found = subprocess.run(
            self.command(*self.words()), cwd=PROJECT, env=self.environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
        return found.stdout + found.stderr

    @property
    def run_folder(self) -> Path:
        (folder,) = (self.folder / "outputs" / "cifar100" / self.name.split("/")[0]).iterdir()
        return folder

    def evaluate(self) -> str:
        student = self.run_folder / "checkpoints" / "student.safetensors"
        words = ["evaluate", str(student), "--dataset", "cifar100"]
        found = subprocess.run(self.command(*words), cwd=PROJECT, env=self.environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    def prove(self, student: str) -> None:
        """Killed, taken up where it was, finished, evaluated by the architecture in its own file, loaded by plain torch."""
        self.kill_after_a_checkpoint()
        assert "continues at" in self.finish()
        assert read_outcome(self.run_folder)["status"] == "ok"
        text = self.evaluate()
        assert f"{student}, weights" in text and "200 test images of 32x32" in text and "ECE" in text
        net = build(student, num_classes=100)
        net.load_state_dict(load_file(self.run_folder / "checkpoints" / "student.safetensors"))
        assert net.eval()(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_a_fusion_pair_from_a_teacher_of_repdistiller(tmp_path):
    torch.manual_seed(0)
    weights = build("wrn_40_2", 100).state_dict()
    torch.save({"epoch": 240, "model": weights, "best_acc": 75.6}, tmp_path / "ckpt_epoch_240.pth")
    Experiment(
        tmp_path,
        "04_distillation/wrn_40_2-vgg8-fusion",
        teacher_checkpoint=tmp_path / "ckpt_epoch_240.pth",
        seeds="[0]",
        others="[]",
        epochs=1,  # 50 steps of 64 images for each of three students
    ).prove("vgg8")


def test_fast_ad_from_a_teacher_of_fast_ad_and_a_prior_of_full_size(tmp_path):
    torch.manual_seed(0)
    torch.save({"epoch": 200, "model_state_dict": build("resnet34", 100).state_dict()}, tmp_path / "teacher.pth")
    torch.save(build_prior("unet", 3, 32).state_dict(), tmp_path / "prior.pth")
    Experiment(
        tmp_path,
        "03_fast_ad",
        teacher_checkpoint=tmp_path / "teacher.pth",
        prior_folder=tmp_path / "prior.pth",
        num_steps=2,
        epochs=2,
        student_steps=4,  # six students of eight steps and two of two
    ).prove("resnet18")
