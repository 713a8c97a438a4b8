"""
All codecs, in order.

The first codec that handles an object's class encodes the object. So a class comes before its base class: ``bool`` before
``int``, an enumeration of integers before both, NumPy's ``float64``, a ``float``, before ``float``.
"""

from __future__ import annotations

from sb3_trpo.checkpoint.codecs.arrays import ArrayCodec, NumpyScalarCodec, StateDictCodec, TensorCodec
from sb3_trpo.checkpoint.codecs.codec import Codecs
from sb3_trpo.checkpoint.codecs.containers import DictCodec, SequenceCodec
from sb3_trpo.checkpoint.codecs.environments import VecEnvCodec
from sb3_trpo.checkpoint.codecs.generators import (
    NumpyGeneratorCodec,
    PythonRandomCodec,
    RandomStateCodec,
    SpaceCodec,
    TorchGeneratorCodec,
)
from sb3_trpo.checkpoint.codecs.logs import MonitorFileCodec
from sb3_trpo.checkpoint.codecs.objects import (
    BuiltinFunctionCodec,
    FunctionCodec,
    IgnoredModuleCodec,
    LeftToScriptCodec,
    ObjectCodec,
    PartialCodec,
)
from sb3_trpo.checkpoint.codecs.scalars import (
    BytesCodec,
    EnumCodec,
    FlagCodec,
    FloatCodec,
    IntCodec,
    JsonCodec,
    TextCodec,
)
from sb3_trpo.checkpoint.codecs.simulators import atari, box2d
from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import ReplayedSimulator
from sb3_trpo.checkpoint.codecs.simulators.mujoco import MuJoCoCodec
from sb3_trpo.checkpoint.codecs.simulators.replay import ReplayedEnvCodec

REPLAYED: dict[str, ReplayedSimulator] = {**dict.fromkeys(box2d.CLASSES, box2d.Box2D()), atari.CLASS: atari.Atari()}
"""Environments that are restored by replaying episodes, by the name of their class."""

CODECS = Codecs(
    (
        *(FlagCodec(), EnumCodec(), JsonCodec(), IntCodec(), BytesCodec(), NumpyScalarCodec(), FloatCodec(), TextCodec()),
        *(SequenceCodec(), DictCodec(), ArrayCodec(), TensorCodec(), StateDictCodec()),
        *(NumpyGeneratorCodec(), RandomStateCodec(), PythonRandomCodec(), TorchGeneratorCodec(), SpaceCodec()),
        *(VecEnvCodec(), MonitorFileCodec(), FunctionCodec(), BuiltinFunctionCodec(), PartialCodec(), LeftToScriptCodec()),
        *(MuJoCoCodec(), ReplayedEnvCodec(REPLAYED), IgnoredModuleCodec(), ObjectCodec()),
    )
)
