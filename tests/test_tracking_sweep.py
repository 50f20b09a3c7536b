"""The sweep file as W&B's agent would run it, and the same search with Optuna, both with the real command for a few steps."""
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

MISSING = [name for name in ("wandb", "optuna") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'gptlearn[track]'")

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "gptlearn" / "sweeps").glob("*.yaml"))
# a few steps of a small model; later words of a command line count more
SHORT = ["--corpus=tales", "--n_docs=200", "--model.context_length=32", "--model.n_layer=1", "--model.n_head=2", "--model.d_model=16",
         "--steps=9", "--train.eval_every=3", "--train.eval_tokens=300", "--train.final_eval_tokens=300", "--train.sample_tokens=0",
         "--train.batch_size=4"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    for name, value in dict(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DATA_DIR=str(tmp_path / "data"), WANDB_DIR=str(tmp_path), OMP_NUM_THREADS="1",
                            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}").items(): monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def offered():
    "The options of `gptlearn train`."
    from gptlearn.cli import build_parser
    return set(build_parser().parse_args(["train"])["train"].keys())


def runnable(words):
    "The command, without the option --track as long as chapter 19 does not have it."
    if "track" in offered(): return words
    return [word for word in words if not word.startswith("--track")]


def settings(sweep):
    "What an agent could be told: a value for each parameter."
    return {name: p.get("value", p["values"][-1] if "values" in p else p["min"]) for name, p in sweep["parameters"].items()}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.name)
def test_the_agent_of_wandb_builds_our_command(path, monkeypatch):
    from wandb import wandb_agent

    from gptlearn.tracking import read_sweep, sweep_command
    sweep, started = read_sweep(path), []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda command=None, env=None, **kw: started.append(command) or SimpleNamespace())
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"): monkeypatch.setenv(name, "")
    agent = wandb_agent.Agent(None, None, sweep_id="x")
    agent._sweep_command = sweep["command"]
    args = {name: dict(value=value) for name, value in settings(sweep).items()}
    agent._command_run(dict(type="run", run_id="abcd1234", program=sweep["program"], args=args))
    assert started == [sweep_command(path, settings(sweep))]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.name)
def test_every_word_is_an_option_of_the_command(path):
    from gptlearn.cli import build_parser
    from gptlearn.tracking import read_sweep, sweep_command
    words = sweep_command(path, settings(read_sweep(path)))
    assert words[0] == "gptlearn" and words[1] == "train"
    args = build_parser().parse_args(runnable(words)[1:])["train"]
    for name, value in settings(read_sweep(path)).items():
        group, field = name.split(".")
        assert getattr(args[group], field) == value


def test_the_command_has_the_option_track():
    if "track" not in offered(): pytest.skip("gptlearn train has no --track yet (chapter 19)")
    for path in SWEEPS:
        from gptlearn.tracking import sweep_command
        assert any(word.startswith("--track") and "wandb" in word for word in sweep_command(path, {}))


def test_the_command_runs_and_its_metric_is_there():
    from gptlearn.tracking import read_run, read_sweep, sweep_command
    sweep = read_sweep(SWEEPS[0])
    words = runnable([*sweep_command(sweep, settings(sweep)), *SHORT, "--run", "runs/x"])
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    chosen, history = read_run("runs/x")
    for name, value in settings(sweep).items(): assert chosen[name] == value
    assert any(sweep["metric"]["name"] in line for line in history)
    if "track" in offered(): assert list(Path("wandb").glob("offline-run-*/run-*.wandb"))


def test_the_same_search_with_optuna():
    "Two trials by the sweep's own command; the second is given up at its first evaluation, and still leaves a checkpoint."
    import optuna

    from gptlearn.tracking import compare_runs, read_sweep, search, train_by_command
    from gptlearn.trainer import checkpoints

    class SecondIsGivenUp(optuna.pruners.BasePruner):
        def prune(self, study, trial): return trial.number == 1

    sweep = read_sweep(SWEEPS[0])
    sweep["command"] = runnable(sweep["command"])
    train = train_by_command(sweep, "trials", more=[*SHORT, "--steps=2000", "--train.eval_every=20"])
    short = train_by_command(sweep, "trials", more=SHORT)
    study = search(sweep, lambda s, w: (train if w.trial.number else short)(s, w), n_trials=2, storage="sqlite:///search.db", pruner=SecondIsGivenUp())
    first, second = study.trials
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED"]
    assert list(first.intermediate_values) == [3, 6, 9] and first.value == min(first.intermediate_values.values())
    table = compare_runs("trials/*")
    assert set(table.index) == {"trial-000", "trial-001"} and table.loc["trial-001", "step"] < 2000
    assert f"{table.loc['trial-000', 'train.lr']:.12g}" == f"{first.params['train.lr']:.12g}"
    saved = int(checkpoints("trials/trial-001")[-1].name[5:])  # it stops after a step, which need not have a line of its own
    assert table.loc["trial-001", "step"] <= saved < 2000
    assert re.search("stopped after step", Path("trials/trial-001.log").read_text())
