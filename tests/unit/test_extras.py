"""What happens without an extra, and that each brings what is promised, in interpreters that have nothing else."""

import re

import pytest
from helpers.hiding import EXTRAS, ROOT, brought_by, extras_in, hidden_without, run_without

MODEL = "from sb3_trpo import TRPO; model = TRPO('MlpPolicy', 'CartPole-v1', n_steps=32, batch_size=32"
USES = {
    "checkpoint": "import sb3_trpo.checkpoint",
    "contrib": "import sb3_trpo.maskable, sb3_trpo.recurrent",
    "plots": "import sb3_trpo.zoo.plots",
    "progress": f"{MODEL}); model.learn(32, progress_bar=True)",
    "tensorboard": f"{MODEL}, tensorboard_log='logs'); model.learn(32)",
    "zoo": "import runpy; sys.argv = ['zoo', 'train', '--help']; runpy.run_module('sb3_trpo.zoo', run_name='__main__')",
    "mujoco": "import gymnasium; gymnasium.make('Hopper-v5').reset()",
}
"""What each extra is for. Those for developers, and PyBullet's environments, are for nothing in the package."""
MISSING = {
    "checkpoint": "filelock",
    "contrib": "sb3_contrib",
    "plots": "pandas",
    "progress": "rich",
    "tensorboard": "tensorboard",
    "zoo": "optuna",
}
"""One module of each, which may be missing alone."""


def test_every_extra_is_looked_at():
    assert USES.keys() | {"test", "bench", "all", "pybullet"} == EXTRAS.keys()


@pytest.mark.parametrize("extra", USES)
def test_an_extra_brings_what_it_is_for(extra, tmp_path):
    done = run_without(hidden_without(extra), USES[extra], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", MISSING)
def test_the_package_alone_names_the_extra_and_what_works(extra, tmp_path):
    done = run_without(hidden_without(), f"{USES[extra]}\nprint('went on')", tmp_path)
    assert done.returncode != 0
    assert "went on" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert f"pip install '.[{extra}]'" in last
    assert f"pip install 'WHEEL[{extra}]'" in last
    assert not [*tmp_path.iterdir()], "nothing was begun"


@pytest.mark.parametrize(("extra", "module"), [(extra, MISSING[extra]) for extra in ("contrib", "plots", "zoo")])
def test_a_single_module_that_is_missing_is_named(extra, module, tmp_path):
    done = run_without({module}, USES[extra], tmp_path)
    assert done.returncode != 0
    assert re.search(rf"needs? {module}, which the extra \[{extra}\] brings", done.stderr.splitlines()[-1])


def test_each_variant_on_sb3_contrib_names_its_extra(tmp_path):
    program = """
import importlib
for module in ("maskable", "recurrent"):
    try:
        importlib.import_module(f"sb3_trpo.{module}")
    except ImportError as error:
        print(error)
"""
    done = run_without({"sb3_contrib"}, program, tmp_path)
    assert done.stdout.count("which the extra [contrib] brings") == 2


def test_a_command_ends_without_a_traceback(tmp_path):
    done = run_without({"optuna"}, USES["zoo"], tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_gymnasium_says_what_mujoco_needs(tmp_path):
    done = run_without(hidden_without(), "from sb3_trpo import TRPO; TRPO('MlpPolicy', 'Hopper-v5')", tmp_path)
    assert "gymnasium[mujoco]" in done.stderr.splitlines()[-1]


def test_a_fault_of_ours_is_not_taken_for_a_missing_extra(tmp_path):
    program = "from sb3_trpo.extras import needs\nwith needs('This needs', 'zoo'):\n    import sb3_trpo.nothing"
    done = run_without((), program, tmp_path)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'sb3_trpo.nothing'"


def test_nothing_but_the_one_place_tells_how_to_install_and_no_index_is_asked_for_the_package():
    telling = {}
    for path in (*ROOT.glob("sb3_trpo/**/*.py"), *ROOT.glob("benchmarks/**/*.py"), ROOT / "README.md"):
        telling[path.name] = re.findall("pip install[^\n]*", path.read_text())
    assert {name for name, lines in telling.items() if lines} == {"extras.py", "README.md"}
    assert not [line for lines in telling.values() for line in lines if re.search(r"sb3[-_]trpo\[", line)]


# README.md: an example uses what the line above it installs.

README = (ROOT / "README.md").read_text()
BLOCKS = [(match.start(), match[1]) for match in re.finditer(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)]
COMMANDS = [
    match.start() for match in re.finditer(r"^    (?:torchrun .* )?(?:python )?-m sb3_trpo\.zoo", README, re.MULTILINE)
]
SHORT = """
import functools
import sb3_trpo
learn = sb3_trpo.TRPO.learn
def learn_a_little(self, total_timesteps, *args, **kwargs):
    return learn(self, 64, *args, **kwargs)
sb3_trpo.TRPO.learn = learn_a_little
build = sb3_trpo.TRPO.__init__
@functools.wraps(build)
def build_small(self, *args, **kwargs):
    build(self, *args, **{"n_steps": 64, "batch_size": 64, **kwargs})
sb3_trpo.TRPO.__init__ = build_small
"""
MAZE = """
import gymnasium, sb3_trpo.zoo.memory_tasks
env, eval_env = (gymnasium.make("MaskedTMaze-v0") for _ in range(2))
obs, _ = env.reset()
state, episode_start = None, None
"""


def installed_before(place: int) -> list[str]:
    return extras_in(README[README.rindex("\n## ", 0, place) : place])


@pytest.mark.parametrize(("place", "code"), BLOCKS, ids=[str(number) for number, _ in enumerate(BLOCKS)])
def test_an_example_uses_what_is_installed_above_it(place, code, tmp_path):
    given = MAZE if "eval_env" in code else ""
    done = run_without(hidden_without(*installed_before(place)), SHORT + given + code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", COMMANDS)
def test_a_command_of_rl_zoo_stands_below_its_installation(place):
    assert "rl-zoo3" in brought_by(*installed_before(place))


def test_examples_and_commands_are_found():
    assert len(BLOCKS) >= 3
    assert len(COMMANDS) >= 9
