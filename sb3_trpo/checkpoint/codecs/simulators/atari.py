"""
Atari's games, as ale-py has them, played again from their last reset.

ALE can write its state into bytes and read it back, but trusts what it reads: forged bytes end the process. Besides, they hold
neither the action that a sticky game may repeat nor the screen. So nothing is ever written into an emulator but what a reset
does not bring back by itself: numbers of frames, generators (checked to be such), and the 128 bytes of memory.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from sb3_trpo.checkpoint.codecs.simulators.replay import Simulator, register

N_WORDS = 624
TWISTER = re.compile(rb"(\d{1,10} ){623,624}\d{1,10}")
"""A generator in an emulator's state: its words and, with some compilers, its position among them."""
FRAMES, LENGTH, BEGIN, END = slice(8, 16), slice(24, 28), 28, 8
"""Where the numbers of frames are, and the emulator's own part: its length, what comes before and what after."""
HIDDEN = frozenset(("render_mode",))


class Before(NamedTuple):
    """What a game was like before its reset: ALE's state, and its memory."""

    state: bytes
    memory: np.ndarray


def _state_of(env: Any) -> bytes:
    state: bytes = env.ale.cloneState(include_rng=True).serialize()
    return state


def _before(env: Any) -> Before | None:
    """Read a game before its reset; what the sound chip was doing outlives a reset, and is in no state."""
    return None if env.ale.getBool("sound_obs") else Before(_state_of(env), env.ale.getRAM().copy())


def _integer(field: bytes) -> int:
    return int.from_bytes(field, "little", signed=True)


def _twisters(state: bytes) -> list[slice]:
    """Find the generators in a state; each text is preceded by its length."""
    if _integer(state[LENGTH]) != len(state) - BEGIN - END:
        raise ValueError("this version of ale-py lays out its states in another way")
    found = []
    for match in TWISTER.finditer(state):
        begin = match.start()
        place = slice(begin, begin + _integer(state[begin - 4 : begin]))
        if TWISTER.fullmatch(state[place]) is None:
            raise ValueError("this version of ale-py lays out its generators in another way")
        found.append(place)
    if not found:
        raise ValueError("this version of ale-py keeps its generators in another way")
    return found


def _pack(before: Before) -> dict[str, np.ndarray]:
    """Take from a state what a reset does not bring back."""
    words = [before.state[place].split() for place in _twisters(before.state)]
    return {
        "frames": np.frombuffer(before.state[FRAMES], "<i4"),
        "generators": np.array(words, np.uint64),
        "memory": before.memory,
    }


def _prepare(env: Any, arrays: dict[str, np.ndarray]) -> None:
    """Give a game the frames, generators and memory of another before its reset."""
    from ale_py import ALEState

    state = _state_of(env)
    places, frames, memory = _twisters(state), arrays["frames"], arrays["memory"]
    generators = arrays["generators"]
    n_words = [len(state[place].split()) for place in places]
    is_fit = generators.dtype == np.uint64 and [len(words) for words in generators] == n_words and frames.shape == (2,)
    if not is_fit or generators.max() >= 2**32 or generators[:, N_WORDS:].max(initial=0) > N_WORDS:
        raise ValueError("the generators of a game are not what this version of ale-py has")
    if memory.shape != (env.ale.getRAMSize(),) or memory.dtype != np.uint8:
        raise ValueError(f"a game has {env.ale.getRAMSize()} bytes of memory")
    parts, end = [], BEGIN
    for place, words in zip(places, generators, strict=True):
        text = b" ".join(b"%d" % word for word in words.tolist())
        parts += [state[end : place.start - 4], len(text).to_bytes(4, "little"), text]
        end = place.stop
    body = b"".join([*parts, state[end:-END]])
    head = state[: FRAMES.start] + frames.astype("<i4").tobytes() + state[FRAMES.stop : LENGTH.start]
    made = ALEState(head + len(body).to_bytes(4, "little") + body + state[-END:])
    env.ale.restoreState(made)
    for address, value in enumerate(memory.tolist()):
        env.ale.setRAM(address, value)


def _settings(env: Any) -> dict[str, Any]:
    """Name the game and how it is set up."""
    given = {name: value for name, value in env._ezpickle_kwargs.items() if name not in HIDDEN}
    plain = {name: [*value] if isinstance(value, tuple) else value for name, value in given.items()}
    return {**plain, "repeat_action_probability": env.ale.getFloat("repeat_action_probability")}


def _draws(env: Any) -> bool:
    return isinstance(env._frameskip, tuple)


register("ale_py.env.AtariEnv", Simulator(_before, _pack, _prepare, _state_of, _settings, _draws))
