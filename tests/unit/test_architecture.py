"""The architecture: which folders there are, what each may import, and how large they may get."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import sb3_trpo

PACKAGE = Path(sb3_trpo.__file__).parent
ROOT = "sb3_trpo"
ORDER = (
    "zoo",
    "__init__",
    "constrained",
    "recurrent",
    "maskable",
    "contrib_base",
    "trpo",
    "training_loop",
    "checkpoint",
    "update",
    "policies",
    "rollouts",
    "networks",
    "distributions",
    "parallel",
    "callbacks",
    "numerics",
    "settings",
    "extras",
)
"""Folders and files of the package, from the top down: each may import from itself and from what comes after it."""
MODULES = {
    ".".join((ROOT, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
CORE_DEPENDENCIES = {"torch", "stable_baselines3", "gymnasium", "numpy"}
MAY_IMPORT = {
    "numerics": {"torch"},
    "checkpoint": CORE_DEPENDENCIES | {"safetensors", "filelock", "mujoco", "ale_py"},
    "contrib_base": CORE_DEPENDENCIES | {"sb3_contrib"},
    "maskable": CORE_DEPENDENCIES | {"sb3_contrib"},
    "recurrent": CORE_DEPENDENCIES | {"sb3_contrib"},
}
"""What a part may import instead of the core dependencies; the zoo may import anything that its extra brings."""
SIMULATORS = {"mujoco", "ale_py"}
EXTRAS = ("sb3_contrib", "rl_zoo3", "optuna", "huggingface_sb3", "matplotlib", "pandas", "seaborn", "scipy", "rliable")
EXTRAS += ("safetensors", "psutil", "tensorboard", "tqdm", "rich", "pytest", "hypothesis", "mujoco", "ale_py")
LARGEST_FOLDER = 12
LARGEST_TOP_LEVEL = 8
LONGEST_FILE = 300
TESTED_ELSEWHERE = {"sb3_trpo.trpo"}
"""Modules whose tests are in another file than ``unit/<folder>/test_<file>.py``; ``tests/README.md`` says where."""


def part_of(module: str) -> str:
    """Return the top-level folder or file that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def imports(module: str) -> frozenset[str]:
    """Find every module that a module imports, inside functions too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            whole = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else source for name in whole}
    return frozenset(found)


def own(module: str) -> set[str]:
    """Find the modules of this package that a module imports."""
    return {name for name in imports(module) if name in MODULES}


def foreign(module: str) -> set[str]:
    """Find the top-level modules that a module imports from other distributions."""
    return {name.partition(".")[0] for name in imports(module)} - {ROOT} - sys.stdlib_module_names


def upward(module: str) -> set[str]:
    """Find what a module imports from higher layers."""
    height = ORDER.index(part_of(module))
    return {name for name in own(module) if ORDER.index(part_of(name)) < height}


def test_modules_and_imports_are_found():
    assert {"sb3_trpo", "sb3_trpo.trpo", "sb3_trpo.numerics", "sb3_trpo.numerics.trust_region"} <= MODULES.keys()
    assert own("sb3_trpo") == {"sb3_trpo.trpo", "sb3_trpo.policies"}
    assert "sb3_trpo.update.policy_step" in own("sb3_trpo.trpo")
    assert {"torch", "stable_baselines3"} <= foreign("sb3_trpo.trpo") <= CORE_DEPENDENCIES


def test_every_file_and_folder_is_listed():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
    there |= {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert there == set(ORDER)


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda path: path.name)
def test_no_folder_is_crowded(folder):
    n_files = len([*folder.glob("*.py")])
    assert n_files <= (LARGEST_TOP_LEVEL if folder == PACKAGE else LARGEST_FOLDER)


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_long(module):
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if not path.name.startswith("__")])
def test_every_module_has_a_file_of_tests(module):
    *folders, name = module.split(".")[1:]
    own = Path(__file__).parent.joinpath(*folders, f"test_{name}.py")
    assert own.exists() != (module in TESTED_ELSEWHERE)


@pytest.mark.parametrize("module", MODULES)
def test_imports_exist_and_go_down(module):
    assert {name for name in imports(module) if name.partition(".")[0] == ROOT} <= MODULES.keys()
    assert upward(module) == set()


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) != "zoo"])
def test_a_module_imports_only_what_its_folder_may(module):
    assert foreign(module) <= MAY_IMPORT.get(part_of(module), CORE_DEPENDENCIES)


def test_one_module_imports_each_simulator():
    users = {name: [module for module in MODULES if name in foreign(module)] for name in SIMULATORS}
    assert {name: len(modules) for name, modules in users.items()} == dict.fromkeys(SIMULATORS, 1)


@pytest.mark.parametrize("module", MODULES)
def test_there_is_no_cycle(module):
    reached, pending = set(), set(own(module))
    while pending:
        name = pending.pop()
        reached.add(name)
        pending |= own(name) - reached
    assert module not in reached


def test_checkpoints_are_imported_when_one_is_asked_for():
    users = {module for module in MODULES if any(part_of(name) == "checkpoint" for name in own(module))}
    assert {part_of(module) for module in users} <= {"checkpoint", "training_loop", "zoo"}
    tree = ast.parse(MODULES["sb3_trpo.training_loop"].read_text())
    imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imported if name.startswith("sb3_trpo.checkpoint")]


def loaded_by(statement: str) -> set[str]:
    """Find the top-level modules that a new interpreter has loaded after a statement."""
    program = f"{statement}; import json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=120
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_loads_no_extra_that_sb3_does_not():
    before, after = loaded_by("import stable_baselines3"), loaded_by("import sb3_trpo")
    assert ROOT in after
    assert not (after - before) & set(EXTRAS)
