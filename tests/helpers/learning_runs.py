"""Runs of the learning benchmark, and results of them."""

from benchmarks.learning import plans, run


def row(env, label, seed, mean=None, curve=()):
    """Make a result that a study reads; without a mean the run has failed."""
    finished = {"mean": mean, "std": 0.0, "curve": list(curve)} if mean is not None else {"failure": "MemoryError"}
    return {"env": env, "label": label, "seed": seed, "seconds": 60.0, **finished}


def result_of(run, **outcome):
    """Make the stored result of a run."""
    return {**run._asdict(), "std": 0.0, "seconds": 1.0, **outcome}


def runs_of(name):
    """List the runs of a plan in the repository."""
    return plans.runs_of(plans.read_plan(name))


def only_plan(monkeypatch, modules, runs):
    """Have modules see these runs in every plan."""
    for each in modules:
        monkeypatch.setattr(each, "runs_of", lambda plan: iter(runs))


def quick_training(monkeypatch, folder, text):
    """Replace the training command by a short program."""
    (folder / "training.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setitem(run.ALGORITHMS, "trpo", run.ALGORITHMS["trpo"]._replace(command=("training",)))
