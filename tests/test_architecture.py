"""The direction of imports, as the design has it: no arrow goes up."""

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
MODULES = {
    ".".join((ROOT, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
VARIANTS = {f"sb3_trpo.{name}" for name in ("variants", "masks", "maskable", "sequences", "recurrent")}
TOOLS = {"sb3_trpo.zoo", "sb3_trpo.plots", "sb3_trpo.screens"}
CHECKPOINTS = {name for name in MODULES if name.startswith("sb3_trpo.checkpoint")}
CORE = sorted(MODULES.keys() - VARIANTS - TOOLS - CHECKPOINTS)
CORE_DEPENDENCIES = {"torch", "stable_baselines3", "gymnasium", "numpy"}
EXTRAS = ("sb3_contrib", "rl_zoo3", "optuna", "huggingface_sb3", "matplotlib", "pandas", "seaborn", "scipy", "rliable")
EXTRAS += ("safetensors", "psutil", "tensorboard", "tqdm", "rich", "pytest", "hypothesis", "mujoco", "ale_py")


def layer(module: str) -> int:
    """Give the height of a module in the design's drawing."""
    if module.startswith(("sb3_trpo.numerics", "sb3_trpo.distributed", "sb3_trpo.rendezvous")):
        return 0
    higher = {"sb3_trpo.trpo": 2, **dict.fromkeys(VARIANTS, 3), ROOT: 4, **dict.fromkeys(TOOLS, 5)}
    return higher.get(module, 1)


@cache
def imports(module: str) -> frozenset[str]:
    """Name every module imported anywhere in a module's file, inside functions too."""
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
    """Name the modules of the package that one imports."""
    return {name for name in imports(module) if name in MODULES}


def foreign(module: str) -> set[str]:
    """Name the distributions outside the standard library that one imports."""
    return {name.partition(".")[0] for name in imports(module)} - {ROOT} - sys.stdlib_module_names


def numerics() -> list[str]:
    return [module for module in MODULES if module.startswith("sb3_trpo.numerics")]


def test_the_modules_are_found():
    assert {"sb3_trpo", "sb3_trpo.trpo", "sb3_trpo.numerics", "sb3_trpo.numerics.trust_region"} <= MODULES.keys()
    assert own("sb3_trpo") == {"sb3_trpo.trpo", "sb3_trpo.policies"}
    assert "sb3_trpo.objective" in own("sb3_trpo.trpo")
    assert {"torch", "stable_baselines3"} <= foreign("sb3_trpo.trpo") <= CORE_DEPENDENCIES


@pytest.mark.parametrize("module", MODULES)
def test_every_import_of_ours_exists(module):
    assert {name for name in imports(module) if name.partition(".")[0] == ROOT} <= MODULES.keys()


@pytest.mark.parametrize("module", numerics())
def test_numerics_import_torch_and_themselves_only(module):
    assert foreign(module) <= {"torch"}
    assert own(module) <= set(numerics())


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_goes_up(module):
    assert {name for name in own(module) if layer(name) > layer(module)} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if layer(module) < 2])
def test_nothing_below_imports_the_algorithm(module):
    assert not own(module) & {ROOT, "sb3_trpo.trpo"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - TOOLS))
def test_nothing_imports_the_tools(module):
    assert not own(module) & TOOLS


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_extra(module):
    assert foreign(module) <= CORE_DEPENDENCIES


@pytest.mark.parametrize("module", MODULES)
def test_there_is_no_cycle(module):
    reached, pending = set(), set(own(module))
    while pending:
        name = pending.pop()
        reached.add(name)
        pending |= own(name) - reached
    assert module not in reached


@pytest.mark.parametrize("module", sorted(CHECKPOINTS))
def test_checkpoints_import_their_own_extra_only(module):
    simulators = {"sb3_trpo.checkpoint.mujoco_state": {"mujoco"}, "sb3_trpo.checkpoint.atari_state": {"ale_py"}}
    assert foreign(module) <= CORE_DEPENDENCIES | {"safetensors", "filelock"} | simulators.get(module, set())


@pytest.mark.parametrize("module", CORE)
def test_the_core_needs_checkpoints_only_when_asked_for_one(module):
    assert not own(module) & CHECKPOINTS or module == "sb3_trpo.trpo"  # from_checkpoint() imports them


def loaded_by(statement: str) -> set[str]:
    """Name the top-level modules that a fresh interpreter has after a statement."""
    program = f"{statement}; import json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=120
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_loads_no_extra_that_sb3_does_not():
    before, after = loaded_by("import stable_baselines3"), loaded_by("import sb3_trpo")
    assert ROOT in after
    assert not (after - before) & set(EXTRAS)
