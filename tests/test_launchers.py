"""Where jobs of a sweep run, and what is looked at before the first of them begins."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from clipkal import cli
from clipkal.config import jobs
from clipkal.config.explain import lost_job

ROOT = Path(__file__).parents[1]
HERE = ["dataset=digits", "tracking=disabled", "data.progress=false"]
PLUGINS = {  # what is typed, the option that a plugin brings, and the extra that has the plugin
    "hydra/launcher=joblib": ("launcher/joblib", "parallel"),
    "hydra/launcher=submitit_local": ("launcher/submitit_local", "slurm"),
    "hydra/launcher=submitit_slurm": ("launcher/submitit_slurm", "slurm"),
    "hydra/launcher=slurm": ("launcher/submitit_slurm", "slurm"),
    "hydra/launcher=ray": ("launcher/ray", "ray"),
    "hydra/sweeper=tune": ("sweeper/optuna", "tune"),
}


def refused(monkeypatch, capsys, *words):
    """The one line that the command ends with."""
    monkeypatch.setattr(sys, "argv", ["clipkal", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert not output.out
    (line,) = output.err.splitlines()
    return line.removeprefix("clipkal: ")


@pytest.mark.parametrize("words", PLUGINS)
def test_a_plugin_that_is_not_there_is_named_with_its_extra(monkeypatch, capsys, words):
    option, extra = PLUGINS[words]
    group, name = option.split("/")
    Plugins.instance()  # plugins that are here enter their options now
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][group], f"{name}.yaml", raising=False)
    line = refused(monkeypatch, capsys, "-m", "seed=1,2", words)
    assert line == f"{words} needs a package of its own: pip install 'clipkal[{extra}]'"


def test_every_extra_that_a_line_names_is_one(monkeypatch):
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra in PLUGINS.values()} <= set(extras)


# -- before the first job --


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fewshot.shots=1,4,x", "seed=1,2"], "not 'x' (fewshot.shots=x seed=1; none of the 6 jobs was begun)"),
        (["method=kalman,zeroshot", "predictive=sampled"], "(method=zeroshot; none of the 2 jobs was begun)"),
        (["sweep.on_error=abort", "seed=1,2"], "should be 'continue' or 'stop', not 'abort'"),
        (["method=kalman,kalmen"], "unknown method 'kalmen': did you mean 'kalman'?"),
        (["seed=1,2,1"], "seed=1,2,1: 1 stands there twice"),
        (["seed="], "could not be converted to Integer"),
    ],
)  # fmt: skip
def test_a_sweep_with_a_job_that_cannot_be_begins_none(tmp_path, monkeypatch, capsys, words, line):
    assert line in refused(monkeypatch, capsys, "-m", *HERE, f"output_dir={tmp_path}", *words)
    assert {path.name for path in tmp_path.iterdir()} <= {"multirun.yaml"}


def test_a_dataset_that_is_missing_stops_no_other_job(tmp_path, monkeypatch, capsys):
    words = ["dataset=folder,digits", "method=zeroshot", "fewshot.shots=1", "dataset.ood=[]"]
    monkeypatch.setattr(sys, "argv", ["clipkal", "-m", *HERE[1:], f"output_dir={tmp_path}", *words])
    with pytest.raises(SystemExit):
        cli.main()
    assert "2 jobs: 1 done, 1 failed" in capsys.readouterr().out


def test_a_range_is_several_values(tmp_path, monkeypatch, capsys):
    words = ["seed=range(1,4)", "fewshot.subset=old"]
    assert "none of the 3 jobs" in refused(monkeypatch, capsys, "-m", *HERE, f"output_dir={tmp_path}", *words)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("file", "no sweep can be written there (File exists); set output_dir=… to another folder"),
        ("file/below", "no sweep can be written there (Not a directory)"),
        ("${hydra:job.num}", "cannot be named by one of them"),
    ],
)
def test_a_folder_that_takes_no_sweep_is_named_at_once(tmp_path, monkeypatch, capsys, place, line):
    (tmp_path / "file").write_text("mine")
    assert line in refused(monkeypatch, capsys, "-m", "seed=1,2", f"output_dir={tmp_path}/{place}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_is_named_at_once(tmp_path, monkeypatch, capsys):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write anywhere")
    line = refused(monkeypatch, capsys, "-m", "seed=1,2", f"output_dir={tmp_path}")
    assert (
        line
        == f"{tmp_path}: no sweep can be written there (Permission denied); set output_dir=… to another folder"
    )


def test_files_of_others_in_the_folder_are_left_alone(tmp_path, monkeypatch, capsys):
    run = tmp_path / "digits" / "mini" / "zeroshot" / "1shot-seed1--dataset.ood-"
    run.mkdir(parents=True)
    mine = [tmp_path / "notes.txt", run / "notes.txt"]
    for path in mine:
        path.write_text("mine")
    words = [*HERE, "method=zeroshot", "fewshot.shots=1", "dataset.ood=[]", "seed=1,2"]
    monkeypatch.setattr(sys, "argv", ["clipkal", "-m", *words, f"output_dir={tmp_path}"])
    cli.main()
    assert "2 jobs: 2 done" in capsys.readouterr().out
    assert [path.read_text() for path in mine] == ["mine", "mine"]


@pytest.mark.parametrize("direction", ["maximize", "[minimize,maximize]"])
def test_the_highest_nll_is_not_looked_for(tmp_path, monkeypatch, capsys, direction):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'clipkal[tune]'")
    words = ["hydra/sweeper=tune", "method=adamw", "optimizer.lr=interval(1e-4,1e-1)"]
    line = refused(
        monkeypatch, capsys, "-m", *words, f"hydra.sweeper.direction={direction}", f"output_dir={tmp_path}"
    )
    assert "of which the lowest is the best" in line
    assert not list(tmp_path.iterdir())


def test_a_study_that_could_not_be_kept_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'clipkal[tune]'")
    monkeypatch.setattr(jobs, "version", lambda name: "2.1.9")
    words = ["hydra/sweeper=tune", "method=adamw", "optimizer.lr=interval(1e-4,1e-1)"]
    words += [f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db", f"output_dir={tmp_path}"]
    assert "pip install 'sqlalchemy<2' 'alembic<1.16'" in refused(monkeypatch, capsys, "-m", *words)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_went_is_one_line_and_a_bug_stays_a_bug():
    kind = type(
        "TerminatedWorkerError", (Exception,), {"__module__": "joblib.externals.loky.process_executor"}
    )
    assert "ended before it had a result (killed). The same command" in str(lost_job(kind("\nkilled\nmore")))
    assert lost_job(ValueError("ours")) is None


# -- other launchers --

CLUSTER = {  # stands in for SLURM: runs the array here, one job after another, and puts a job back that asks for it
    "sbatch": """
file=${!#}
echo >> "$SLURM_HERE/arrays"
array=$(wc -l < "$SLURM_HERE/arrays")
cp "$file" "$SLURM_HERE/batch.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$file")
( for i in $(seq 0 ${last:-0}); do
    export SLURM_JOB_ID=$array$i SLURM_JOB_NODELIST=here
    export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
    if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=$array SLURM_ARRAY_TASK_ID=$i; else export SLURM_JOB_ID=$array; fi
    bash "$file"
    while [ -f "$SLURM_HERE/requeue" ]; do rm "$SLURM_HERE/requeue"; bash "$file"; done
  done
  touch "$SLURM_HERE/done" ) > "$SLURM_HERE/log" 2>&1 < /dev/null &
echo "Submitted batch job $array"
""",
    "srun": """
while [[ $1 == -* ]]; do case $1 in --unbuffered) shift;; *) shift 2;; esac; done
exec "$@"
""",
    "sacct": """
[ -f "$SLURM_HERE/done" ] && state=COMPLETED || state=RUNNING
echo "JobID|State|NodeList"
array=$(wc -l < "$SLURM_HERE/arrays")
for i in "" _0 _1 _2 _3; do echo "$array$i|$state|here"; done
""",
    "scontrol": """
touch "$SLURM_HERE/requeue"
""",
}


@pytest.fixture
def env(tmp_path):
    """The environment of a command, on a cluster of one machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'clipkal[slurm]'")
    here = tmp_path / "cluster"
    here.mkdir()
    for name, body in CLUSTER.items():
        (here / name).write_text(f"#!{shutil.which('bash')}{body}")
        (here / name).chmod(0o755)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "SLURM_HERE": str(here),
    }


def command(env, *words):
    ran = subprocess.run([sys.executable, "-m", "clipkal", *words], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def results(folder):
    found = {}
    for path in sorted(folder.rglob("results.json")):
        content = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = content["sets"], content["training"].get("val_nll")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "slurm"])
def test_other_launchers_give_the_same_numbers_and_skip_what_is_done(tmp_path, env, launcher):
    words = ["-m", *HERE, "method=kalman,zeroshot", "seed=1,2", "threads=1", "dataset.ood=[noisy]"]
    table = command(env, *words, f"output_dir={tmp_path / 'basic'}")
    other = [*words, f"output_dir={tmp_path / 'other'}", f"hydra/launcher={launcher}"]
    found = command(env, *other)
    assert sorted(table.partition("\nrun ")[2].replace("basic", "other").splitlines()) == sorted(
        found.partition("\nrun ")[2].splitlines()
    )
    assert results(tmp_path / "basic") == results(tmp_path / "other")
    assert len(results(tmp_path / "other")) == 4
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    (tmp_path / "cluster" / "done").unlink(missing_ok=True)
    assert "4 jobs: 4 done" in command(env, *other)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}


@pytest.mark.slow
def test_a_preempted_job_saves_a_checkpoint_goes_back_into_the_queue_and_goes_on(tmp_path, env):
    words = [
        *HERE,
        "method=adamw",
        "optimizer.lr=0.001",
        "optimizer.batch_size=8",
        "optimizer.epochs=600",
        "threads=1",
    ]
    alone = [*words, "checkpoint_every=1000", "dataset.ood=[noisy]"]
    command(env, *alone, f"output_dir={tmp_path / 'alone'}")
    out = tmp_path / "slurm"
    queued = ["-m", *alone, "hydra/launcher=slurm", "hydra.launcher.partition=gpu", f"output_dir={out}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "clipkal", *queued], env=env, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not (curves := list(out.rglob("metrics.csv"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert curves
    time.sleep(1)
    os.kill(int(_worker(env, out)), signal.SIGUSR2)
    output = process.communicate(timeout=200)[0]
    assert "1 job: 1 done" in output
    log = "".join(path.read_text() for path in (tmp_path / "cluster").glob("log"))
    assert "going on from the checkpoint in" in log
    batch = (tmp_path / "cluster" / "batch.sh").read_text()
    for line in (
        "--partition=gpu",
        "--gpus-per-node=1",
        "--time=60",
        "--signal=USR2@120",
        "--cpus-per-task=4",
    ):
        assert f"#SBATCH {line}\n" in batch
    assert results(out) == results(tmp_path / "alone")


def _worker(env, out):
    """The process of the job, which has its folder among its arguments."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and any(word.startswith(str(out)) for word in words):
            return entry.name
    raise AssertionError("no job runs")
