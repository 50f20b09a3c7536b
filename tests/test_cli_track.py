"""`gptlearn train --track` with the real trackers: a resumed run goes on in the same runs; without the packages, one sentence."""
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

MISSING = [name for name in ("mlflow", "wandb") if find_spec(name) is None]
OPTIONS = ("--text my.txt --tokenizer char --model.n_layer 1 --model.n_head 2 --model.d_model 16 --model.context_length 16 "
           "--train.batch_size 2 --train.eval_tokens 100 --train.final_eval_tokens 100 --train.sample_tokens 8 "
           "--train.eval_every 3 --train.log_every 1 --train.device cpu").split()


def train(folder, *words, before="pass"):
    code = f"import sys; {before}; from gptlearn.cli import main; main(sys.argv[1:])"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WANDB_"))}
    env = clean | dict(OMP_NUM_THREADS="1", WANDB_MODE="offline", WANDB_DATA_DIR=str(folder / "data"), NETRC=str(folder / "netrc"))
    return subprocess.run([sys.executable, "-c", code, "train", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my.txt").write_text("\n".join(f"A line, number {i}, of a text to learn from." for i in range(200)))
    return tmp_path


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'gptlearn[track]'")
def test_a_resumed_run_goes_on_in_the_same_runs(folder):
    import yaml
    from mlflow import MlflowClient
    for words in (["--run", "runs/x", *OPTIONS, "--steps", "6", "--track", "mlflow,wandb"], ["--resume", "runs/x", "--steps", "12"]):
        done = train(folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load((folder / "runs/x/config.yaml").read_text())["track"] == "mlflow,wandb"
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert [m.step for m in client.get_metric_history(runs[0].info.run_id, "loss")] == list(range(1, 13))
    ids = [re.search(r"-([^-]+)$", path.name)[1] for path in (folder / "wandb").glob("offline-run-*")]
    assert len(ids) == 2 and len(set(ids)) == 1       # two files for `wandb sync`, of one run


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_without_the_package(folder, name):
    done = train(folder, *OPTIONS, "--steps", "3", "--track", name, before=f"sys.modules[{name!r}] = None")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("gptlearn: ") and f"needs {name}" in done.stderr and "pip install" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["my.txt"]
