"""The settings files are complete and differ from RL Zoo's only with a reason."""

import re
from pathlib import Path

import gymnasium as gym
import pytest
import rl_zoo3
import rl_zoo3.import_envs  # registers the tasks without velocities
import yaml

from sb3_trpo import TRPO
from sb3_trpo.constrained.velocity_tasks import LIMIT, THRESHOLDS, velocity_task
from sb3_trpo.zoo.algorithms import ALGORITHMS, config_file

HYPERPARAMS = Path(rl_zoo3.__file__).parent / "hyperparams"
RL_ZOO, PPO_LSTM = (yaml.safe_load((HYPERPARAMS / f"{algo}.yml").read_text()) for algo in ("trpo", "ppo_lstm"))
TEXT = config_file("trpo").read_text()
OURS, OURS_LSTM = yaml.safe_load(TEXT), yaml.safe_load(config_file("trpo_lstm").read_text())
TUNED = {*re.findall(r"^(\S+):(?: &\S+)?  # tuned: ", TEXT, re.MULTILINE)}
CONTRIB_TARGET_KL = 0.01
MUJOCO = {name for name, spec in gym.registry.items() if "mujoco" in str(spec.entry_point) and "Velocity" not in name}
MUJOCO_V5 = sorted(name for name in MUJOCO if name.endswith("-v5"))


def test_each_algorithm_has_a_settings_file():
    for algo in ALGORITHMS:
        assert "default" in yaml.safe_load(config_file(algo).read_text())


@pytest.mark.parametrize("env", sorted(PPO_LSTM))
def test_there_are_settings_for_every_task_that_rl_zoo_tunes_recurrent_ppo_for(env):
    assert {re.sub(r"-v\d+$", "", name) for name in OURS_LSTM} >= {re.sub(r"-v\d+$", "", env)}


@pytest.mark.parametrize("env", [name for name in OURS_LSTM if name in gym.registry and name != "CarRacing-v3"])
def test_settings_of_recurrent_policies_make_a_model(env, run_zoo, tmp_path, monkeypatch):
    learned = []
    monkeypatch.setattr(TRPO, "learn", lambda model, *args, **kwargs: learned.append(model))
    run_zoo("train", "--algo", "trpo_lstm", "--env", env, "-f", tmp_path, "-params", "n_envs:1")
    (model,) = learned
    target_kl = model.target_kl(1.0) if callable(model.target_kl) else model.target_kl
    assert target_kl == float(str(OURS_LSTM[env].get("target_kl", CONTRIB_TARGET_KL)).removeprefix("lin_"))
    assert model.batch_size <= model.n_steps * OURS_LSTM[env].get("n_envs", 1)


@pytest.mark.parametrize("task", THRESHOLDS)
def test_velocity_tasks_have_the_settings_of_their_tasks_and_a_limit(task):
    limited = yaml.safe_load(config_file("trpo_cost").read_text())[velocity_task(task)]
    assert limited == OURS[task] | {"target_kl": 0.03, "cost_limits": {"cost": LIMIT}}


@pytest.mark.parametrize("env", sorted(RL_ZOO.keys() - MUJOCO - TUNED))
def test_tasks_that_we_have_not_tuned_have_rl_zoos_settings_except_for_target_kl(env):
    own_default = {} if env == "default" else {"n_critic_updates": 10}
    ours, theirs = dict(OURS[env]), own_default | RL_ZOO[env]
    ratio = ours.pop("target_kl", CONTRIB_TARGET_KL) / theirs.pop("target_kl", CONTRIB_TARGET_KL)
    assert ratio == pytest.approx(round(ratio)), "the number of action dimensions"
    for settings in (ours, theirs):
        if "policy_kwargs" in settings:
            settings["policy_kwargs"] = settings["policy_kwargs"].replace(" ", "")
    assert ours == theirs


@pytest.mark.parametrize("env", [*MUJOCO_V5, *sorted(MUJOCO & set(RL_ZOO))])
def test_mujoco_tasks_share_their_settings_except_for_those_that_are_explained(env):
    assert len(MUJOCO_V5) == 11
    shared, own = OURS["HalfCheetah-v5"], OURS[env]
    exceptions = {name for name in own if own[name] != shared.get(name)}
    text = block_of(env)
    assert shared.keys() <= own.keys()
    for name in exceptions:
        assert re.search(rf"^  {name}: {re.escape(str(own[name]))}  # .{{20}}", text, re.MULTILINE | re.IGNORECASE), name


def block_of(env: str) -> str:
    """Return the lines of a task and of the task that it inherits from, except for those that all MuJoCo tasks share."""
    own = re.search(rf"^{env}:.*\n((?:  .*\n)+)", TEXT, re.MULTILINE)[1]
    shared = re.search(r"<<: \*(\w+)", own)
    if not shared or shared[1] == "mujoco":
        return own
    return own + block_of(re.search(rf"^(\S+): &{shared[1]}$", TEXT, re.MULTILINE)[1])
