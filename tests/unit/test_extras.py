"""What each extra brings, and what happens without it, in interpreters that see nothing else."""

import re
from importlib import import_module

import pytest
from helpers.hiding import EXTRAS, ROOT, hidden_without, run_without
from helpers.pages import blocks_of

from sb3_trpo.extras import needs

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
"""What each extra is for. The package itself does not use those for developers and for PyBullet's environments."""
MISSING = {
    "checkpoint": "filelock",
    "contrib": "sb3_contrib",
    "plots": "pandas",
    "progress": "rich",
    "tensorboard": "tensorboard",
    "zoo": "optuna",
}
"""A module that each extra brings."""
VARIANTS = """
import importlib
for module in ("maskable", "recurrent"):
    try:
        importlib.import_module(f"sb3_trpo.{module}")
    except ImportError as error:
        print(error, file=sys.stderr)
sys.exit(1)
"""


@pytest.mark.parametrize("extra", USES)
def test_an_extra_brings_what_it_is_for(extra, tmp_path):
    assert USES.keys() | {"test", "bench", "all", "pybullet", "docs", "recipes"} == EXTRAS.keys()
    done = run_without(hidden_without(extra), USES[extra], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", MISSING)
def test_without_an_extra_the_error_names_it_and_commands_that_work(extra, tmp_path):
    done = run_without(hidden_without(), f"{USES[extra]}\nprint('went on')", tmp_path)
    assert done.returncode != 0
    assert "went on" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert f"pip install '.[{extra}]'" in last
    assert f"pip install 'WHEEL[{extra}]'" in last
    assert not [*tmp_path.iterdir()], "no work has started"


@pytest.mark.parametrize(("extra", "program", "n_errors"), [
    ("contrib", VARIANTS, 2), ("plots", USES["plots"], 1), ("zoo", USES["zoo"], 1),
])  # fmt: skip
def test_a_single_missing_module_is_named(extra, program, n_errors, tmp_path):
    done = run_without({MISSING[extra]}, program, tmp_path)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()[-n_errors:]
    assert re.search(rf"needs? {MISSING[extra]}, which the extra \[{extra}\] brings", last)
    assert done.stderr.count(f"which the extra [{extra}] brings") == n_errors
    if extra == "zoo":
        assert "Traceback" not in done.stderr, "a command ends with a sentence"


def test_a_missing_module_of_this_package_is_not_taken_for_a_missing_extra():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'sb3_trpo\.nothing'$"), needs("This needs", "zoo"):
        import_module("sb3_trpo.nothing")


def test_gymnasium_names_what_mujoco_needs(tmp_path):
    done = run_without(hidden_without(), "from sb3_trpo import TRPO; TRPO('MlpPolicy', 'Hopper-v5')", tmp_path)
    assert "gymnasium[mujoco]" in done.stderr.splitlines()[-1]


def test_one_module_has_the_command_to_install_and_it_asks_no_index_for_the_package():
    commands = {}
    for path in (*ROOT.glob("sb3_trpo/**/*.py"), *ROOT.glob("benchmarks/**/*.py"), ROOT / "README.md"):
        commands[path] = re.findall("pip install[^\n]*", path.read_text())
    assert {path.name for path, lines in commands.items() if lines} == {"extras.py", "README.md"}
    assert not [line for lines in commands.values() for line in lines if re.search(r"sb3[-_]trpo\[", line)]


# The code of a page needs what the page tells the reader to install.

PAGES = {"README.md": (), "docs/guide/masks_and_memory.md": ("contrib",)}
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


@pytest.mark.parametrize("page", PAGES)
def test_a_page_needs_no_more_than_it_says(page, tmp_path):
    code = "\n".join(blocks_of((ROOT / page).read_text()))
    done = run_without(hidden_without(*PAGES[page]), SHORT + code, tmp_path)
    assert done.returncode == 0, done.stderr
