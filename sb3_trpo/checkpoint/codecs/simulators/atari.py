"""
Atari's games in ale-py. Their episodes are replayed.

ALE can write its state into bytes and read it back, but it trusts what it reads: forged bytes end the process. Besides, they
contain neither the action that a sticky game may repeat nor the screen. So only what a reset does not restore is ever written
into an emulator: numbers of frames, generators (after a check), and the 128 bytes of memory.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import ReplayedSimulator

CLASS = "ale_py.env.AtariEnv"
N_WORDS = 624
MT19937_TEXT = re.compile(rb"(\d{1,10} ){623,624}\d{1,10}")
"""A generator in an emulator's state: its words and, with some compilers, its position among them."""
FRAMES, LENGTH, BEGIN, END = slice(8, 16), slice(24, 28), 28, 8
"""Where a state has the numbers of frames and the length of the emulator's part; the bytes before and after that part."""
HIDDEN = frozenset(("render_mode",))


class BeforeReset(NamedTuple):
    """What a game was like before its reset: ALE's state, and the memory."""

    state: bytes
    memory: np.ndarray


class Atari(ReplayedSimulator):
    """A game; its numbers of frames, generators and memory outlive a reset."""

    def before_reset(self, env: Any) -> BeforeReset | None:
        """Read a game before its reset; what the sound chip was doing outlives a reset, but is in no state."""
        return None if env.ale.getBool("sound_obs") else BeforeReset(_state_of(env), env.ale.getRAM().copy())

    def to_arrays(self, before: BeforeReset) -> dict[str, np.ndarray]:
        """Extract what a reset does not restore."""
        words = [before.state[place].split() for place in _generators_in(before.state)]
        return {
            "frames": np.frombuffer(before.state[FRAMES], "<i4"),
            "generators": np.array(words, np.uint64),
            "memory": before.memory,
        }

    def prepare(self, env: Any, arrays: dict[str, np.ndarray]) -> None:
        """Set a game's frames, generators and memory to those before the recorded reset."""
        from ale_py import ALEState

        state, frames, memory = _state_of(env), arrays["frames"], arrays["memory"]
        _require_fits(state, frames, arrays["generators"])
        if memory.shape != (env.ale.getRAMSize(),) or memory.dtype != np.uint8:
            raise ValueError(f"a game has {env.ale.getRAMSize()} bytes of memory")
        env.ale.restoreState(ALEState(_with_generators(state, frames, arrays["generators"])))
        for address, value in enumerate(memory.tolist()):
            env.ale.setRAM(address, value)

    def evidence(self, env: Any) -> bytes:
        """Return ALE's state."""
        return _state_of(env)

    def settings(self, env: Any) -> dict[str, Any]:
        """Return the game and its settings."""
        given = {name: value for name, value in env._ezpickle_kwargs.items() if name not in HIDDEN}
        plain = {name: [*value] if isinstance(value, tuple) else value for name, value in given.items()}
        return {**plain, "repeat_action_probability": env.ale.getFloat("repeat_action_probability")}

    def steps_draw(self, env: Any) -> bool:
        """Check whether frames are skipped at random; sticky actions are drawn by the emulator's own generator."""
        return isinstance(env._frameskip, tuple)


def _state_of(env: Any) -> bytes:
    state: bytes = env.ale.cloneState(include_rng=True).serialize()
    return state


def _integer(field: bytes) -> int:
    return int.from_bytes(field, "little", signed=True)


def _generators_in(state: bytes) -> list[slice]:
    """Find the generators in a state; each is a text with its length before it."""
    if _integer(state[LENGTH]) != len(state) - BEGIN - END:
        raise ValueError("this version of ale-py lays out its states in another way")
    found = []
    for match in MT19937_TEXT.finditer(state):
        begin = match.start()
        place = slice(begin, begin + _integer(state[begin - 4 : begin]))
        if MT19937_TEXT.fullmatch(state[place]) is None:
            raise ValueError("this version of ale-py lays out its generators in another way")
        found.append(place)
    if not found:
        raise ValueError("this version of ale-py keeps its generators in another way")
    return found


def _require_fits(state: bytes, frames: np.ndarray, generators: np.ndarray) -> None:
    """Check generators word by word before they reach an emulator, which would trust them."""
    n_words = [len(state[place].split()) for place in _generators_in(state)]
    fits = generators.dtype == np.uint64 and [len(words) for words in generators] == n_words and frames.shape == (2,)
    if not fits or generators.max() >= 2**32 or generators[:, N_WORDS:].max(initial=0) > N_WORDS:
        raise ValueError("the generators of a game are not what this version of ale-py has")


def _with_generators(state: bytes, frames: np.ndarray, generators: np.ndarray) -> bytes:
    """Replace the numbers of frames and the generators in a state."""
    parts, end = [], BEGIN
    for place, words in zip(_generators_in(state), generators, strict=True):
        text = b" ".join(b"%d" % word for word in words.tolist())
        parts += [state[end : place.start - 4], len(text).to_bytes(4, "little"), text]
        end = place.stop
    body = b"".join([*parts, state[end:-END]])
    head = state[: FRAMES.start] + frames.astype("<i4").tobytes() + state[FRAMES.stop : LENGTH.start]
    return head + len(body).to_bytes(4, "little") + body + state[-END:]
