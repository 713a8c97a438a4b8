"""Windows and pictures with and without a display, in separate processes, since GLFW may abort them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_trpo
from sb3_trpo import TRPO
from sb3_trpo.zoo import rendering

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such variables")


def zoo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where there is no display."""
    environment = {name: value for name, value in os.environ.items() if name not in (*DISPLAYS, "MUJOCO_GL")}
    environment["PYTHONPATH"] = str(Path(sb3_trpo.__file__).parents[1])
    command = [sys.executable, "-m", "sb3_trpo.zoo", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Make what training leaves behind."""
    folder = tmp_path_factory.mktemp("run")
    run = folder / "logs" / "trpo" / "Hopper-v5_1"
    settings = run / "Hopper-v5"
    settings.mkdir(parents=True)
    (settings / "config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- []\n")
    (settings / "args.yml").write_text("!!python/object/apply:collections.OrderedDict\n- - - env_kwargs\n    - null\n")
    TRPO("MlpPolicy", "Hopper-v5", n_steps=128).save(run / "Hopper-v5.zip")
    return folder


AGENT = ("--algo", "trpo", "--env", "Hopper-v5", "-f", "logs")


@on_linux
def test_without_a_display_a_window_is_refused_with_advice(run_folder):
    done = zoo(run_folder, "enjoy", *AGENT, "-n", "5")
    assert done.returncode == 1, done.stderr
    for part in ("neither DISPLAY nor WAYLAND_DISPLAY is set", "--no-render", "record_video", "MUJOCO_GL"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


@on_linux
def test_an_agent_plays_without_a_window_or_a_display(run_folder):
    done = zoo(run_folder, "enjoy", *AGENT, "-n", "5", "--no-render")
    assert done.returncode == 0, done.stderr


@on_linux
def test_a_video_is_recorded_without_a_display(run_folder):
    done = zoo(run_folder, "record_video", *AGENT, "-n", "5")
    if "A test could not render" in done.stderr:
        pytest.skip("no library draws MuJoCo's environments here")
    assert done.returncode == 0, done.stderr
    (video,) = run_folder.glob("logs/**/*.mp4")
    assert video.stat().st_size > 0


@pytest.fixture
def headless(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", DISPLAYS)
def test_linux_needs_one_of_two_displays_to_show_windows(headless, monkeypatch, name):
    assert not rendering.has_display()
    monkeypatch.setenv(name, "")
    assert not rendering.has_display()
    monkeypatch.setenv(name, ":0")
    assert rendering.has_display()
    monkeypatch.delenv(name)
    for system in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        assert rendering.has_display()


def test_the_first_backend_that_works_is_used_and_only_if_something_is_rendered(headless, monkeypatch):
    tried = []

    def run(command, env, **_):
        tried.append(env.get("MUJOCO_GL"))
        if tried[-1] != "osmesa":
            raise subprocess.CalledProcessError(-6, command)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("MUJOCO_GL", "to be put back")
    monkeypatch.delenv("MUJOCO_GL")
    rendering.prepare_rendering("Hopper-v5", None)
    assert tried == []
    rendering.prepare_rendering("Hopper-v5", "rgb_array")
    assert tried == [None, "egl", "osmesa"]
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_a_message_explains_that_nothing_can_draw(headless, monkeypatch, capsys):
    monkeypatch.setattr(rendering, "TRIAL", "raise SystemExit(1)")
    assert rendering.rendering_settings("Hopper-v5") is None
    rendering.prepare_rendering("Hopper-v5", "rgb_array")
    assert "A test could not render Hopper-v5. Without a display MuJoCo's environments can be rendered if MUJOCO_GL" in (
        capsys.readouterr().err
    )


def test_an_environment_without_mujoco_needs_no_backend(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert rendering.rendering_settings("MaskedTMaze-v0") == {}
