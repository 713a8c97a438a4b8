"""The commands ``sb3-trpo`` and ``python -m sb3_trpo.zoo``: what they print, and how they end."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from sb3_trpo.zoo.__main__ import TRACEBACK, main
from sb3_trpo.zoo.experiment import envs_of_rank

TRAIN = ("train", "--algo", "trpo", "-n", "64", "--env")


@pytest.fixture
def end(tmp_path, monkeypatch, capsys):
    """Run a command; give its exit code as a shell sees it, and its errors."""

    def run(*arguments, program="sb3-trpo"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{program}", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        is_text = isinstance(ended.value.code, str)
        return (1, ended.value.code) if is_text else (ended.value.code, printed.out + printed.err)

    return run


def test_the_command_is_installed():
    (command,) = [each for each in metadata.entry_points(group="console_scripts") if each.name == "sb3-trpo"]
    assert command.load() is main


@pytest.mark.parametrize(("program", "name"), [("sb3-trpo", "sb3-trpo"), ("__main__.py", "python -m sb3_trpo.zoo")])
def test_help_calls_the_command_as_the_user_did(program, name, end):
    code, printed = end("--help", program=program)
    assert code == 0
    assert printed.startswith(f"usage: {name} SCRIPT")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((*TRAIN, "CartPole-v7"), 1, "sb3-trpo: error: CartPole-v7 not found in gym registry, you maybe meant CartPole-v1?"),
        ((*TRAIN, "CartPole-v1", "-params", "n_steps:0"), 1, "sb3-trpo: error: n_steps is 0, but must be an integer >= 1."),
        (
            ("train", "--algo", "trop", "--env", "CartPole-v1"),
            2,
            "sb3-trpo train: error: argument --algo: invalid choice: 'trop'",
        ),
        (("enjoy", "--algo", "trpo", "--env", "CartPole-v1", "-f", "x"), 1, "error: The x/trpo folder was not found"),
        ((*TRAIN, "CartPole-v1", "-conf", "missing.yml"), 1, "No such file or directory: 'missing.yml'"),
        ((*TRAIN, "CartPole-v1", "--gym-packages", "nopkg"), 1, "error: No module named 'nopkg'"),
        ((*TRAIN, "CartPole-v1", "-params", "n_steps:1 2"), 1, "sb3-trpo: error: invalid syntax"),
        (("trian",), 2, "sb3-trpo: error: argument script: invalid choice: 'trian'"),
    ],
    ids=["environment", "setting", "algorithm", "folder", "file", "module", "expression", "script"],
)
def test_what_the_user_can_change_ends_in_a_sentence(arguments, code, message, end):
    ended, printed = end(*arguments)
    assert ended == code
    assert message in printed


def test_the_traceback_is_shown_on_request_and_if_the_error_speaks_of_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sb3-trpo", *TRAIN, "CartPole-v1", "-params", "n_steps:0"])
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ValueError, match="n_steps is 0"):
        main()
    monkeypatch.delenv(TRACEBACK)
    monkeypatch.setattr("sb3_trpo.zoo.command.run", lambda script: json.loads(""))  # a fault of ours
    with pytest.raises(ValueError, match="Expecting value"):
        main()
    monkeypatch.setattr("sb3_trpo.zoo.command.run", lambda script: envs_of_rank(list, None, 3, []))  # another, in our code
    with pytest.raises(TypeError, match="unsupported operand"):
        main()


def test_the_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "sb3_trpo.zoo", "train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--conf-file" in done.stdout
