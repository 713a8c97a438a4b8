"""What the algorithms on sb3-contrib's classes share: policies and buffers must be of the right base."""

import pytest
from helpers.envs import DICT, RandomEnv
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer

import sb3_trpo
from sb3_trpo.contrib_base import ContribTRPO
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO

KINDS = [MaskableTRPO, RecurrentTRPO, MaskableRecurrentTRPO]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def made(kind, space=DICT, policy=None, **settings):
    names = [*kind.policy_aliases]
    policy = policy or next(name for name in names if name.startswith("MultiInput" if space is DICT else "Mlp"))
    return kind(policy, RandomEnv(space), n_steps=8, batch_size=8, **settings)


@each_kind
def test_sb3s_policies_and_buffers_are_refused_and_the_right_ones_named(kind):
    assert issubclass(kind, ContribTRPO)
    by_name = ", ".join(kind.policy_aliases)
    with pytest.raises(ValueError, match=rf"^policy is MultiInputPolicy, but {kind.__name__} needs .*By name: {by_name}\.$"):
        made(kind, policy=sb3_trpo.MultiInputPolicy)
    buffer = kind.buffer_classes[1].__name__
    message = (
        rf"^rollout_buffer_class is DictRolloutBuffer, but {kind.__name__} needs {buffer} or a subclass of it, for Dict obs"
    )
    with pytest.raises(ValueError, match=message):
        made(kind, rollout_buffer_class=DictRolloutBuffer)


@each_kind
def test_the_buffer_fits_the_observations(kind):
    of_vectors, of_dicts = kind.buffer_classes
    assert type(made(kind).rollout_buffer) is of_dicts
    assert type(made(kind, RandomEnv().observation_space).rollout_buffer) is of_vectors


def test_a_buffer_for_other_observations_is_refused():
    with pytest.raises(ValueError, match=r"needs MaskableDictRolloutBuffer .* for Dict observations"):
        made(MaskableTRPO, rollout_buffer_class=MaskableRolloutBuffer)


def test_a_users_own_buffer_is_made_with_its_keywords():
    class Own(MaskableDictRolloutBuffer):
        def __init__(self, *arguments, note, **settings):
            super().__init__(*arguments, **settings)
            self.note = note

    model = made(MaskableTRPO, rollout_buffer_class=Own, rollout_buffer_kwargs={"note": "mine"})
    assert isinstance(model.rollout_buffer, Own)
    assert (model.rollout_buffer.note, model.rollout_buffer.buffer_size) == ("mine", 8)
