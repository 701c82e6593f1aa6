"""Commands of the project: `uv run inv --list`. Bad input ends with one sentence and exit code 2."""

import compileall
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path

from invoke import Exit, task

from kdnb.errors import InputError, check_name

if Path(sys.argv[0]).name in ("inv", "invoke", "__main__.py") and sys.argv[2:] in (["--help"], ["-h"]):
    # `inv TASK --help`: invoke would take --help for the task's first value
    os.execv(sys.executable, [sys.executable, "-m", "invoke", "--help", sys.argv[1]])

ROOT = Path(__file__).resolve().parent
DEMO = ("01_teacher", "02_synthesis", "03_fast_ad", "05_reusable_generator")
DEMO_SHORTER = {"02_synthesis": {"domains": ["same", "mixed"]}}  # the priors that 03 needs as well
DEMO_ASIDE = "03_fast_ad"  # runs beside the others: two notebooks of one thread each fill two cores
DEMO_METRICS = (
    "teacher_top1",
    "student_top1",
    "student_top1_cadr",
    "student_top1_constant",
    "student_top1_unguided",
    "student_top1_noise",
    "student_top1_public",
    "same_student_top1",
    "same_student_top1_unguided",
    "agreement_guided",
    "agreement_unguided",
    "student_top1_generator",
)
LOCK = (
    "--all-extras --group dev --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q "
    "-o requirements.lock"
)


def _say(text, file=None, flush=True):
    """Print a line; where nobody reads any more (`inv run ... | head -1`) the work goes on in silence."""
    stream = file or sys.stdout
    try:
        print(text, file=stream, flush=flush)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _one_sentence():
    """`InputError` becomes a line on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        raise Exit(str(error), 2) from None


def _count(name: str, given: str | int) -> int:
    """A whole number from 1 on, of an option."""
    if not str(given).isdecimal() or int(given) < 1:
        raise InputError(f"{name} must be a whole number from 1 on, got {given}")
    return int(given)


def _call(*command: str, folder: str | Path = ROOT, **environment: str) -> None:
    """Run a command in the project's folder, or another; its exit code becomes ours."""
    if command[0] == sys.executable:
        _compile_once()
    result = subprocess.run(command, cwd=folder, env=os.environ | environment)
    if result.returncode:
        raise Exit(code=result.returncode)


def _compile_once() -> None:
    """Where Python may not keep bytecode (`PYTHONDONTWRITEBYTECODE`), every kernel compiles torch anew: compile the environment once.

    A stamp in it holds the packages that were compiled; elsewhere Python keeps bytecode by itself and nothing is done here.
    """
    packages = Path(sysconfig.get_path("purelib"))
    stamp, names = packages / ".compiled", "\n".join(sorted(path.name for path in packages.glob("*.dist-info")))
    if (
        not sys.dont_write_bytecode
        or not os.access(packages, os.W_OK)
        or stamp.is_file()
        and stamp.read_text() == names
    ):
        return
    _say("compiling the environment, once (about a minute)", file=sys.stderr, flush=True)
    compileall.compile_dir(packages, quiet=2, workers=0)
    stamp.write_text(names)


def _run(plan, limit=None, again=False):
    from kdnb.runner.worker import execute_plan

    _compile_once()
    for note in plan.notes:
        _say(f"note: {note}", file=sys.stderr)
    outcome = execute_plan(plan, limit, again)
    fine = outcome.status == "ok"
    _say(
        f"{plan.notebook}: {outcome.describe()}" if fine else outcome.describe(),
        file=sys.stdout if fine else sys.stderr,
        flush=True,
    )
    if outcome.status == "interrupted":  # whoever stopped this run does not want the next one either
        raise Exit(code=outcome.exit_code)
    return outcome


@contextmanager
def _beside(notebook: str, seed: str):
    """Run a notebook in a process of its own; yields the function that waits for it, shows its last words and returns its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "invoke", "run", notebook, "-p", f"seed={seed}"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

    def finish() -> int:
        if process.poll() is None:
            _say(f"waiting for {notebook}", flush=True)
        words = process.communicate()[0].replace("\r", "\n").splitlines()
        _say(
            "\n".join(
                line for line in words if line.startswith(notebook) and "cells" not in line or process.returncode
            ),
            flush=True,
        )
        return process.returncode

    try:
        yield finish
    finally:
        if process.poll() is None:  # the others were interrupted
            process.terminate()
            process.wait()


# --- running notebooks ---------------------------------------------------------------------------------------------------------


@task(help={"seed": "random seed"})
def demo(context, seed="0"):
    """Train a teacher, sample its data back, distil students, one of them with no data at all; then a report with the numbers."""
    from kdnb.reports.page import build_report
    from kdnb.reports.run_files import read_run
    from kdnb.runner.plan import plan
    from kdnb.storage.paths import outputs_root

    with _one_sentence():
        plans = [plan(name, overrides={"seed": seed} | DEMO_SHORTER.get(name, {})) for name in DEMO]
        _compile_once()
        with _beside(DEMO_ASIDE, seed) as finish:
            codes = [_run(planned).exit_code for planned in plans if planned.notebook != DEMO_ASIDE]
            codes.append(finish())
        page = build_report([planned.folder for planned in plans], outputs_root() / "demo", f"kdnb demo, seed {seed}")
    found = {row["metric"]: row["value"] for planned in plans for row in read_run(planned.folder).results}
    for name in DEMO_METRICS:
        _say(f"{name:24} {found.get(name, 'missing')}")
    _say(f"report: {os.path.relpath(page)}")
    missing = 1 if set(DEMO_METRICS) - set(found) else 0
    if code := next(filter(None, codes), missing):
        raise Exit(code=code)


@task(
    positional=["notebook"],
    iterable=["parameter"],
    help={
        "notebook": "an experiment, as 01_teacher or 04_distillation/kd (`inv experiments`); 01 will do where only one begins so",
        "parameter": "name=value; may be repeated (`inv params NOTEBOOK` lists them)",
        "profile": "folder under params/",
        "limit": "seconds after which the run is stopped",
        "resume": "go on with a run: give its name or its folder (`inv runs`) in place of the notebook",
        "again": "execute it once more, though it has finished and nothing has changed",
        "rehearse": "only cut to two steps a loop, as `inv rehearse` does",
        "processes": "train by so many processes together, on cuda one device each (01_teacher and 04_distillation)",
    },
)
def run(
    context,
    notebook,
    parameter=None,
    profile="quick",
    limit=None,
    resume=False,
    again=False,
    rehearse=False,
    processes=1,
):
    """Run one notebook headless: outputs/PROFILE/NOTEBOOK/RUN. A run that was stopped goes on; one that has finished is shown.

    Exit codes: 0 ended well, 1 a cell failed, 2 bad input, 4 the kernel died, or one of several processes, 5 over the limit, 6 a check
    does not hold, 130 stopped.
    """
    from kdnb.reports.listing import describe_results
    from kdnb.reports.run_files import find_run
    from kdnb.runner.plan import parse_limit, parse_overrides, plan, plan_again

    with _one_sentence():
        if rehearse and (resume or again):
            raise InputError("a rehearsal is a run of its own; leave --resume and --again out")
        if rehearse:
            return _rehearse(notebook, parameter, profile, limit)
        if resume and (parameter or profile != "quick"):
            raise InputError("a resumed run keeps its parameters; leave --parameter and --profile out")
        planned = (
            plan_again(find_run(notebook)) if resume else plan(notebook, profile, parse_overrides(parameter or []))
        )
        seconds = parse_limit(limit)
        if (count := _count("processes", processes)) > 1:
            from kdnb.runner.together import make_ahead

            if problem := make_ahead(planned, count):
                raise Exit(f"{planned.notebook}: {problem}", 4)
        outcome = _run(planned, seconds, again)
    if results := describe_results(outcome.folder):
        _say(results)
    _say(f"outputs: {os.path.relpath(outcome.folder)}")
    _say(f"report: {os.path.relpath(outcome.folder / 'report.html')}")
    if outcome.exit_code:
        raise Exit(code=outcome.exit_code)


@task(
    positional=[],
    iterable=["parameter"],
    help={
        "teacher": "of the zoo, timm:NAME, torchvision:NAME or FILE.py:function",
        "student": "the same",
        "data": "a folder of pictures, FILE.py:function or a data set's name",
        "method": "a name of kdnb.methods.METHODS",
        "epochs": "passes over the training images",
        "teacher_checkpoint": "weights of the teacher; without, it is trained first",
        "onnx": "also leave the student as ONNX, compared with torch (extra `export`)",
        "parameter": "a further parameter of notebook 04 as name=value; may be repeated",
        "limit": "seconds after which the run is stopped",
    },
)
def distil(
    context,
    teacher="",
    student="",
    data="",
    method="dkd",
    epochs="20",
    teacher_checkpoint="",
    onnx=False,
    parameter=None,
    limit=None,
):
    """Distil a teacher into a student on your own pictures; the student is left as safetensors with a card."""
    from kdnb.runner.distil import plan_distillation
    from kdnb.runner.plan import parse_limit, parse_overrides

    with _one_sentence():
        more = parse_overrides(parameter or [])
        planned = plan_distillation(teacher, student, data, method, epochs, teacher_checkpoint, more)
        if onnx:
            from kdnb.training.onnx_export import check_packages

            check_packages()
        outcome = _run(planned, parse_limit(limit))
        if outcome.exit_code:
            raise Exit(code=outcome.exit_code)
        folder = outcome.folder / "checkpoints"
        made = _export(folder, planned.parameters["student"]) if onnx else ""
    _say((folder / "README.md").read_text(encoding="utf-8"))
    _say(f"student: {os.path.relpath(folder / 'student.safetensors')}")
    if made:
        _say(made)


def _export(folder: Path, network: str) -> str:
    """The line that is said of a student's ONNX file."""
    from kdnb.training.export import export_student

    found = export_student(folder, network)
    return f"onnx: {os.path.relpath(found.path)}: {found.describe()}"


@task(
    positional=["run"],
    help={
        "run": "name of a run that left a student (`inv distil`, 04, 14), or a folder with student.safetensors",
        "network": "FILE.py:function of the student, where it is code of your own",
    },
)
def export(context, run, network=""):
    """Write a run's student as ONNX beside its weights, compared with torch (extra `export`)."""
    from kdnb.runner.publish import student_folder
    from kdnb.training.onnx_export import check_packages

    with _one_sentence():
        folder = student_folder(run)
        check_packages()
        _say(_export(folder, network))


@task(
    positional=["run"],
    help={
        "run": "name of a run that left a student (`inv distil`, 04, 14), or a folder with student.safetensors",
        "repo": "USER/NAME of a model repository; made if it is not there",
        "really": "upload; without, only what would be uploaded is shown",
        "private": "a repository that is made is private",
    },
)
def push(context, run, repo="", really=False, private=False):
    """Upload a run's student and its card to a model hub; a dry run unless --really is given."""
    from kdnb.runner.publish import push as upload
    from kdnb.runner.publish import student_folder

    with _one_sentence():
        _say(upload(student_folder(run), repo, really, private).describe())


@task(
    positional=["name"],
    iterable=["parameter"],
    help={
        "name": "experiment, as `inv run` takes it, or a profile for all of its experiments",
        "parameter": "name=value; may be repeated",
        "profile": "folder under params/",
        "limit": "seconds after which a rehearsal is stopped",
        "shared": "let experiments share what they make, as real runs do; it is then measured in the first of them alone",
    },
)
def rehearse(context, name, parameter=None, profile="quick", limit=None, shared=False):
    """Run an experiment with its real networks, sizes and batches, each loop cut to two steps; say what the whole would take."""
    _rehearse(name, parameter, profile, limit, shared)


def _rehearse(name, parameter, profile, limit, shared=False):
    from kdnb.runner.plan import experiments, parse_limit, parse_overrides, profiles
    from kdnb.runner.rehearse import rehearse as one

    failed = []
    with _one_sentence():
        profile, names = (name, experiments(name)) if name in profiles() else (profile, [name])
        for number, experiment in enumerate(names):
            _compile_once()
            found = one(
                experiment,
                profile,
                parse_overrides(parameter or []),
                parse_limit(limit),
                fresh=not shared or number == 0,
            )
            _say(found.describe(), flush=True)
            failed += [experiment] * bool(found.outcome.exit_code)
            if found.outcome.status == "interrupted":
                break
    if failed:
        raise Exit(f"did not come to its end: {', '.join(failed)}", 1)


@task(
    name="all",
    help={"profile": "folder under params/", "again": "execute also what has finished and has not changed since"},
)
def run_all(context, profile="quick", again=False):
    """Run every experiment of a profile, one after another, then write its report."""
    from kdnb.reports.page import report as write
    from kdnb.runner.plan import experiments, plan

    with _one_sentence():
        names = experiments(profile)
        plans = [plan(name, profile) for name in names]
        outcomes = [_run(planned, again=again) for planned in plans]
        _say(f"report: {os.path.relpath(write(profile))}")
    for name, outcome in zip(names, outcomes, strict=True):
        _say(f"{name:56} {outcome.status:12} {outcome.seconds:8.1f} s")
    if code := max((outcome.exit_code for outcome in outcomes), default=0):
        raise Exit(code=code)


@task(
    name="plan",
    positional=["sweep"],
    help={
        "sweep": "a name of params/sweeps/, or the path of a sweep file",
        "parameter": "name=value over the file's, for every run; may be repeated",
        "workers": "runs at once",
        "really": "more than 10,000 runs are meant",
        "elsewhere": "the data are on another machine: don't look for them",
    },
    iterable=["parameter"],
)
def plan_sweep(context, sweep, parameter=None, workers=1, really=False, elsewhere=False):
    """Say what a sweep will take before anything starts: runs, those done, device-hours and storage of the rest."""
    from kdnb.runner.forecast import describe_plan
    from kdnb.runner.plan import parse_overrides
    from kdnb.runner.sweep_files import read_sweep

    with _one_sentence():
        found = read_sweep(sweep, parse_overrides(parameter or []), really, files=not elsewhere)
        _say(describe_plan(found, _count("workers", workers)))


@task(
    positional=["name"],
    iterable=["parameter"],
    help={
        "name": "a sweep of params/sweeps/, or the path of a sweep file",
        "workers": "runs at once on this machine",
        "threads": "CPU threads of each run; part of its recipe, as -p threads=T",
        "gpus": "devices that the workers take in turn, one a run",
        "address": "a Ray cluster's address, or `local` for one on this machine (extra `ray`); its nodes take the runs",
        "parameter": "name=value over the file's, for every run; may be repeated",
        "limit": "seconds after which a run is stopped",
        "again": "execute also what has finished",
        "really": "more than 10,000 runs are meant",
    },
)
def sweep(
    context, name, workers=1, threads=None, gpus=0, address="", parameter=None, limit=None, again=False, really=False
):
    """Execute all runs of a sweep that have not finished, several at once; then its table and report. Stopped, it can be continued.

    Exit codes: 0 all ended well, 1 some failed, were lost four times or ran too long, 2 bad input, 6 nothing but checks that do not hold,
    130 stopped.
    """
    from kdnb.runner.plan import parse_limit, parse_overrides
    from kdnb.runner.sweep import LocalWorkers, exit_code, run_sweep, sweep_folder
    from kdnb.runner.sweep_files import read_sweep
    from kdnb.runner.sweep_results import write_results

    with _one_sentence():
        over = parse_overrides([*(parameter or []), *([f"threads={threads}"] if threads else [])])
        seconds, count = parse_limit(limit), _count("workers", workers)
        found = read_sweep(name, over, really)
        _compile_once()
        if address:
            from kdnb.runner.on_ray import RayWorkers

            pool = RayWorkers(address, seconds, again, count)
        else:
            gpus = _count("gpus", gpus) if str(gpus) != "0" else 0
            pool = LocalWorkers(count, gpus, sweep_folder(found.name) / "logs", seconds, again)
        jobs = run_sweep(found, pool, again=again, show=True)
        _say(write_results(found, jobs))
    if code := exit_code(jobs):
        raise Exit(code=code)


@task(help={"profile": "folder under params/; none: all"})
def experiments(context, profile=None):
    """List all experiments by profile and notebook: what `inv run` and `inv params` take."""
    from kdnb.runner.show import list_experiments

    with _one_sentence():
        _say(list_experiments(profile))


@task(
    positional=["notebook"],
    help={
        "notebook": "name, as 01_teacher, or an experiment's, as 04_distillation/kd",
        "profile": "folder under params/; with it the values of the experiment are shown",
    },
)
def params(context, notebook, profile=None):
    """Print a notebook's parameters: type, default, meaning; with --profile an experiment's values, and the file each is from."""
    from kdnb.runner.show import describe_experiment, describe_notebook

    with _one_sentence():
        wants_values = profile or "/" in notebook
        _say(describe_experiment(notebook, profile or "quick") if wants_values else describe_notebook(notebook))


@task(
    positional=["checkpoint"],
    help={
        "checkpoint": "file of weights: a student or teacher of kdnb, or of any published form",
        "dataset": "data set whose test images are shown to it; a folder of one's own as folder:PATH",
        "architecture": "network that the weights are of (docs/models.md); none: what the file says",
        "image-size": "height and width in pixels; none: what the file says, else the data set's own",
        "device": "torch device",
    },
)
def evaluate(context, checkpoint, dataset="", architecture="", image_size=None, device="cpu"):
    """Measure a checkpoint on a data set's test images: top-1, top-5, negative log-likelihood, calibration."""
    from kdnb.parameters import check
    from kdnb.runs import check_device
    from kdnb.training.evaluate_file import evaluate_file

    with _one_sentence():
        if not dataset:
            raise InputError("give --dataset: inv evaluate CHECKPOINT --dataset digits")
        size = None if image_size is None else check("image_size", image_size)
        check_device(check("device", device))
        found = evaluate_file(Path(checkpoint), dataset, architecture, size, device)
    _say(found.describe())


@task(
    help={
        "profile": "folder under outputs/",
        "baseline": "experiment to compare with, as the report names it, such as method=kd",
    }
)
def report(context, profile="quick", baseline=""):
    """Write the report of all runs of a profile: outputs/PROFILE/report/index.html."""
    from kdnb.reports.page import report as write

    with _one_sentence():
        _say(f"report: {os.path.relpath(write(profile, baseline))}")


@task(help={"profile": "folder under outputs/; none: all"})
def runs(context, profile=""):
    """List the runs there are: name, how each ended, seconds, main results."""
    from kdnb.reports.listing import list_runs

    with _one_sentence():
        _say(list_runs(profile))


@task(positional=["run"], help={"run": "name of a run or the beginning of it, as 01_teacher/seed0, or a folder"})
def show(context, run):
    """Show one run: how it ended, its parameters, results, checks and files."""
    from kdnb.reports.listing import describe_run
    from kdnb.reports.run_files import find_run

    with _one_sentence():
        _say(describe_run(find_run(run, outside=True)))


@task(positional=["first", "second"], help={"first": "name of a run, or a folder", "second": "another one"})
def compare(context, first, second):
    """Say what two runs differ in, and whether their results are equal, within spread or different (then exit code 1)."""
    from kdnb.reports.compare import compare_runs
    from kdnb.reports.run_files import find_run

    with _one_sentence():
        found = compare_runs(find_run(first, outside=True), find_run(second, outside=True))
    _say(found.describe())
    if found.verdict.startswith("different"):
        raise Exit(code=1)


@task(
    positional=["run"],
    help={
        "run": "name of a run, or a folder",
        "reuse": "take teachers and priors from the cache",
        "limit": "seconds after which the new execution is stopped",
    },
)
def verify(context, run, reuse=False, limit=None):
    """Execute a run once more from its own record, in a fresh folder, and compare; exit code 1 if it does not come out again."""
    from kdnb.reports.run_files import find_run
    from kdnb.runner.plan import parse_limit
    from kdnb.runner.verify import verify as again

    with _one_sentence():
        outcome, found = again(find_run(run, outside=True), reuse, parse_limit(limit))
    _say(outcome.describe())
    if found:
        _say(found.describe())
    if outcome.exit_code or not found.reproduced:
        raise Exit(code=outcome.exit_code or 1)


@task(iterable=["notebook"], help={"notebook": "name; may be repeated; none: all"})
def record(context, notebook=None):
    """Run notebooks with their defaults and store the outputs in notebooks/."""
    from kdnb.runner.keep import record_notebook
    from kdnb.runner.plan import notebook_names

    with _one_sentence():
        for name in notebook or notebook_names():
            outcome = record_notebook(name)
            _say(f"{name}: {outcome.describe()}", flush=True)
            if outcome.exit_code:
                raise Exit(code=outcome.exit_code)


@task
def lab(context):
    """Open JupyterLab on this machine only, with a token. More options of JupyterLab after `--`."""
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [sys.executable, "-m", "jupyter", "lab", "--ip=127.0.0.1", f"--ServerApp.root_dir={ROOT}", *root]
    _call(*command, *shlex.split(context.remainder))


@task(positional=["dataset"], help={"dataset": "fashion_mnist, cifar10 or cifar100"})
def download(context, dataset):
    """Download a data set into KDNB_DATA, or data/ of the checkout."""
    from kdnb.data import load
    from kdnb.data.check import check_files
    from kdnb.data.locate import FILES

    with _one_sentence():
        check_name("data set to download", dataset, FILES)
        load(dataset, download=True)
        check_files(dataset)
    _say(f"{dataset}: complete")


# --- keeping the project in order ----------------------------------------------------------------------------------------------


@task(help={"k": "only tests whose names match, as pytest's -k", "slow": "also the tests that take minutes"})
def test(context, slow=False, k=""):
    """Run all tests: modules, commands, and every notebook against its stored outputs. More pytest arguments after `--`."""
    outputs = ROOT / "outputs" / "test"
    shutil.rmtree(outputs, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "notebooks",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=900",
        "--nbval-kernel-startup-timeout=120",
        "--nbval-sanitize-with=tests/nbval.cfg",
    ]
    if (os.cpu_count() or 1) >= 2:
        command += ["-n", "2", "--dist", "loadfile"]  # a notebook's cells must stay with one worker
    if not slow:
        command += ["-m", "not slow"]
    if k:
        command += ["-k", k]
    _call(*command, *shlex.split(context.remainder), OMP_NUM_THREADS="1", KDNB_QUIET="1", KDNB_OUTPUTS=str(outputs))


@task
def docs(context):
    """Write the tables of README and docs/ from the tables in the code."""
    from kdnb.runner.reference import write_pages

    for name in write_pages():
        _say(f"{name}: tables written anew")


@task
def methods(context):
    """List the distillation methods: name, idea, source."""
    from kdnb.methods import METHODS

    for name, entry in METHODS.items():
        _say(f"{name:28} {entry.summary:56} {entry.source}")


@task
def lint(context):
    """Check the code: with ruff what it does and how it is laid out, with mypy its types."""
    _call(sys.executable, "-m", "ruff", "check", ".")
    _call(sys.executable, "-m", "ruff", "format", "--check", ".")
    _call(sys.executable, "-m", "mypy")


@task(positional=["folder"], help={"folder": "with golden files, or several with commas between"})
def parity(context, folder):
    """Compare with recorded outputs of the public reference implementations."""
    _call(sys.executable, "-m", "tests.parity", *folder.split(","))


@task
def bench(context):
    """Run every script in benchmarks/; each prints the figures that the README quotes."""
    for script in sorted((ROOT / "benchmarks").glob("*.py")):
        _say(f"# {script.name}", flush=True)
        _call(sys.executable, str(script))


def _pins(locked: str) -> list[str]:
    """The requirements of a lock, each with its version and marker, without hashes and comments."""
    return [line.split(" \\")[0].strip() for line in locked.splitlines() if line and line[0] not in " #"]


def _toml_list(key: str, lines: list[str]) -> str:
    return "\n".join([f"{key} = [", *(f"    {json.dumps(line)}," for line in lines), "]"])


@task(help={"upgrade": "take the newest versions that fit, instead of keeping those of the lock"})
def lock(context, upgrade=False):
    """Write requirements.lock anew, and its versions into pyproject.toml, where `uv run` finds them."""
    project = ROOT / "pyproject.toml"
    text = project.read_text()
    empty = re.sub(r"(?ms)^((?:build-)?constraint-dependencies = \[\n).*?^\]", r"\1]", text)
    build = re.search(r"(?m)^requires = \[(.*)\]$", text).group(1).replace('"', "")
    with tempfile.TemporaryDirectory() as folder:  # the old pins must not bind the new ones
        (Path(folder) / "pyproject.toml").write_text(empty)
        (Path(folder) / "build.in").write_text("\n".join(build.split(",")))
        shutil.copy(ROOT / "README.md", folder)
        shutil.copy(ROOT / "requirements.lock", folder)
        _call(
            "uv", "pip", "compile", "pyproject.toml", *LOCK.split(), *(["--upgrade"] if upgrade else []), folder=folder
        )
        _call(
            "uv",
            "pip",
            "compile",
            "build.in",
            "--universal",
            "--no-header",
            "--no-annotate",
            "--python-version",
            "3.11",
            "-q",
            "-o",
            "build.txt",
            folder=folder,
        )
        locked = (Path(folder) / "requirements.lock").read_text()
        built = (Path(folder) / "build.txt").read_text()
    for key, pins in (("build-constraint-dependencies", _pins(built)), ("constraint-dependencies", _pins(locked))):
        empty = empty.replace(f"\n{key} = [\n]", "\n" + _toml_list(key, pins))
    (ROOT / "requirements.lock").write_text(locked)
    project.write_text(empty)
