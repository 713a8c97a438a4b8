"""Reading by segments against a dense oracle that knows none: what is cut, grouped and padded changes no mean."""

import copy
import math
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import recurrent_oracle as oracle
from helpers.envs import BOX_ACTION, DICT
from helpers.recurrent_tools import ACTIONS, CHOICES, CRITICS, collected, small_model, vec_env

from sb3_trpo.maskable.reader import MaskedInputs
from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO, segments as segments_module
from sb3_trpo.recurrent.reader import SegmentReader, fresh_states
from sb3_trpo.recurrent.segments import segments_of
from sb3_trpo.rollouts.advantages import standardization
from sb3_trpo.update.actor import AutogradActor
from sb3_trpo.update.constraints import mean_kl
from sb3_trpo.update.critic import squared_errors
from sb3_trpo.update.surrogate import PolicyObjective

WHOLE = 10**4


@pytest.fixture(autouse=True)
def several_groups(monkeypatch):
    """Make calls cheap, so that even a small rollout is read in several groups."""
    monkeypatch.setattr(segments_module, "CALL_COST", 5)
    monkeypatch.setattr(segments_module, "STEP_COST", 0)


def made(algorithm=RecurrentTRPO, space=BOX_ACTION, n_envs=2, policy_kwargs=None, p_end=0.2, **options):
    """Collect two rollouts by one policy, and move it."""
    env = vec_env(n_envs, action_space=space, p_end=p_end)
    model = collected(small_model(algorithm, env, policy_kwargs=policy_kwargs or {}, **{"n_steps": 16} | options))
    model.policy.set_training_mode(False)
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=generator))
    return model, oracle.read(model.rollout_buffer)


def to_float64(policy):
    policy.double()
    for extractor in {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}:
        extractor.register_forward_hook(lambda _, arguments, output: output.double())


def double(part):
    if isinstance(part, th.Tensor):
        return part.double() if part.is_floating_point() else part
    if is_dataclass(part):
        return type(part)(*(double(getattr(part, field.name)) for field in fields(part)))
    if isinstance(part, tuple):
        return type(part)(*map(double, part)) if hasattr(part, "_fields") else tuple(map(double, part))
    return part


def reader_of(model):
    return model.rollout_reader(model.rollout_buffer)


def chunks_of(model, every=1, size=WHOLE, normalize=True):
    reader = reader_of(model)
    chunks = reader.chunks(every, size)
    return chunks.with_advantages(*standardization(chunks.advantages, reader.returns)) if normalize else chunks


def objective_of(model, size=WHOLE, every=1, normalize=True, convert=double, **more):
    chunks = chunks_of(model, every, size, normalize)
    converted = [convert(chunk) for chunk in chunks]
    parameters = list(model.policy.parameters())
    actor = AutogradActor(model.policy, parameters, model.distribution_kinds)
    return PolicyObjective(actor, parameters, converted, [mean_kl(0.01)], **more)


KINDS = {name: (RecurrentTRPO, space, {}) for name, space in ACTIONS.items()}
KINDS["gSDE"] = (RecurrentTRPO, BOX_ACTION, {"use_sde": True})
KINDS |= {f"masked {name}": (MaskableRecurrentTRPO, space, {}) for name, space in CHOICES.items()}
LAYERS = {"1 layer": {}, "2 layers": {"n_lstm_layers": 2}}
VARIANTS = {f"{name}, {layers}": (*KINDS[name], LAYERS[layers]) for name in KINDS for layers in LAYERS}
VARIANTS |= {f"Box, {name}": (*KINDS["Box"], CRITICS[name] | LAYERS["2 layers"]) for name in CRITICS}
VARIANTS["several hidden layers"] = (*KINDS["Discrete"], {"net_arch": {"pi": [4, 3], "vf": []}})


def variant(name, **more):
    algorithm, space, options, policy_kwargs = VARIANTS[name]
    model, rollout = made(algorithm, space, policy_kwargs=policy_kwargs, **options, **more)
    to_float64(model.policy)
    return model, rollout


def compared(model, dense, objective, ent_coef=0.0):
    """Compare all that an update uses with the oracle's numbers, in float64; give the model of the problem and a candidate."""
    theta = oracle.parameters_of(model.policy)
    jac = dense.jacobian(theta)
    problem, entropy, _ = objective.local_model()
    assert entropy == pytest.approx(dense.entropy(theta), rel=1e-6, abs=1e-7)
    assert problem.surrogate == pytest.approx(dense.surrogate(theta, ent_coef), rel=1e-6, abs=1e-7)
    th.testing.assert_close(problem.gradient, dense.gradient(theta, jac, ent_coef), rtol=1e-5, atol=1e-8)
    fisher = dense.fisher(theta, jac)
    vectors = th.randn((4, len(fisher)), generator=th.Generator().manual_seed(0), dtype=th.float64)
    products = th.stack([problem.fisher @ v for v in vectors])
    th.testing.assert_close(products, vectors @ fisher, rtol=1e-7, atol=1e-9 * fisher.abs().max().item())
    assert problem.evaluate().kl == 0.0
    new = moved(model.policy)
    candidate = problem.evaluate()
    assert candidate.kl == pytest.approx(dense.kl(theta, new), rel=1e-6, abs=1e-7)
    assert candidate.surrogate == pytest.approx(dense.surrogate(new, ent_coef), rel=1e-6, abs=1e-7)
    return problem, candidate


def moved(policy):
    generator = th.Generator().manual_seed(2)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * th.randn(parameter.shape, generator=generator, dtype=th.float64).to(parameter.dtype))
    return oracle.parameters_of(policy)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_uses_what_the_dense_oracle_computes(name):
    model, rollout = variant(name)
    assert len({segment.length for segment in cut(model)}) > 1
    objective = objective_of(model, ent_coef=0.1)
    assert any(chunk.n_padding for chunk in objective.chunks)
    problem, candidate = compared(model, oracle.Oracle(rollout, model.action_space), objective, 0.1)
    assert (problem.fisher @ problem.gradient).any()
    assert candidate.kl > 1e-4


@pytest.mark.parametrize("name", ["Box, 2 layers", "Discrete, 1 layer", "gSDE, 1 layer", "masked MultiDiscrete, 1 layer"])
def test_float32_is_the_oracle_up_to_rounding(name):
    algorithm, space, options, policy_kwargs = VARIANTS[name]
    model, rollout = made(algorithm, space, policy_kwargs=policy_kwargs, **options)
    theta, dense = oracle.parameters_of(model.policy), oracle.Oracle(rollout, space)
    jac = dense.jacobian(theta)
    problem = objective_of(model, convert=lambda chunk: chunk).local_model().model
    assert problem.gradient.dtype is th.float32
    assert problem.surrogate == pytest.approx(dense.surrogate(theta), rel=1e-4, abs=1e-5)
    gradient, fisher = dense.gradient(theta, jac), dense.fisher(theta, jac)
    assert (problem.gradient - gradient).norm() < 1e-4 * gradient.norm()
    v = th.randn(len(gradient), generator=th.Generator().manual_seed(0))
    assert (problem.fisher @ v - fisher @ v.double()).norm() < 1e-4 * (fisher @ v.double()).norm()
    new = moved(model.policy)
    assert problem.evaluate().kl == pytest.approx(dense.kl(theta, new), rel=1e-4)


def cut(model, longest=WHOLE):
    """Cut a rollout into segments."""
    reader_of(model)
    return segments_of(model.rollout_buffer.episode_starts.reshape(-1), model.n_steps, longest)


@pytest.mark.parametrize("space", [BOX_ACTION, spaces.Discrete(3)], ids=["Box", "Discrete"])
@pytest.mark.parametrize(("every", "longest"), [(1, 3), (3, WHOLE), (2, 4)])
def test_segments_that_are_cut_or_left_out_are_those_of_the_oracle(space, every, longest):
    model, rollout = made(space=space, n_steps=10, n_envs=3, p_end=0.1, seed=1)
    weights = oracle.weights_of_every(rollout, every, longest)
    assert 0 < weights.sum() < weights.numel() or every == 1
    to_float64(model.policy)
    compared(model, oracle.Oracle(rollout, space, weights, longest), objective_of(model, longest, every))


def test_the_fisher_matrix_may_use_fewer_segments():
    model, rollout = made()
    to_float64(model.policy)
    theta = oracle.parameters_of(model.policy)
    dense = oracle.Oracle(rollout, BOX_ACTION, oracle.weights_of_every(rollout, 2))
    few = objective_of(model, every=2, normalize=False).chunks
    problem = objective_of(model, fisher_chunks=few).local_model().model
    v = th.ones(len(oracle.flat(theta)), dtype=th.float64)
    th.testing.assert_close(problem.fisher @ v, dense.fisher(theta, dense.jacobian(theta)) @ v, rtol=1e-7, atol=1e-10)
    whole = oracle.Oracle(rollout, BOX_ACTION)
    th.testing.assert_close(problem.gradient, whole.gradient(theta, whole.jacobian(theta)), rtol=1e-5, atol=1e-8)


def disturbed(samples):
    """Put other finite numbers wherever there is padding."""
    padding, generator = samples.weights == 0, th.Generator().manual_seed(0)

    def other(part):
        changed = part.clone()
        if part.is_floating_point():
            changed[padding] = 3.0 * th.randn(part[padding].shape, generator=generator)
        else:
            changed[padding] = part[~padding][0]
        return changed

    inputs, masks = samples.inputs, None
    if isinstance(inputs, MaskedInputs):
        inputs, masks = inputs.unmasked, th.where(padding[:, None], 1.0, inputs.action_masks)
    inputs = replace(inputs, observations=other(inputs.observations))
    actions = samples.actions.clone()
    actions[padding] = samples.actions[~padding][-1]
    numbers = {name: other(getattr(samples, name)) for name in ("old_log_prob", "advantages", "returns")}
    return samples._replace(inputs=inputs if masks is None else MaskedInputs(inputs, masks), actions=actions, **numbers)


def mean_error(minibatch, policy):
    total, n = squared_errors([double(part) for part in minibatch], policy)
    return total.item() / n


def results_of(model, size):
    """Compute everything that an update uses, and the losses of the critic."""
    problem, entropy, _ = objective_of(model, size, ent_coef=0.1).local_model()
    np.random.seed(0)
    parts = [*reader_of(model).minibatches(9)]
    losses = [mean_error(part, model.policy) for part in parts]
    v = th.randn(problem.gradient.shape, generator=th.Generator().manual_seed(0), dtype=th.float64)
    old = copy.deepcopy(model.policy.state_dict())
    moved(model.policy)
    candidate = problem.evaluate()
    model.policy.load_state_dict(old)
    numbers = th.tensor([problem.surrogate, entropy, candidate.surrogate, candidate.kl, *losses], dtype=th.float64)
    return th.cat((numbers, problem.gradient, problem.fisher @ v))


@pytest.mark.parametrize("name", ["Box, 2 layers", "Discrete, 1 layer", "masked MultiBinary, 1 layer"])
def test_padding_never_matters(name, monkeypatch):
    model, _ = variant(name)
    plain, n_padding, honest = results_of(model, WHOLE), [], SegmentReader.read

    def read(reader, segments, **options):
        samples = honest(reader, segments, **options)
        n_padding.append(int((samples.weights == 0).sum()))
        assert n_padding[-1] == samples.n_padding
        return disturbed(samples)

    monkeypatch.setattr(SegmentReader, "read", read)
    th.testing.assert_close(results_of(model, WHOLE), plain, rtol=1e-10, atol=1e-12)
    assert max(n_padding) > 0


@pytest.mark.parametrize("name", ["Box, 2 layers", "masked Discrete, 1 layer"])
def test_grouping_changes_no_result_as_long_as_no_segment_is_cut(name):
    model, _ = variant(name, n_envs=3)
    longest = max(segment.length for segment in cut(model))
    sizes = {size: len(reader_of(model).chunks(1, size)) for size in (longest, 2 * longest, WHOLE)}
    assert sizes[longest] > sizes[WHOLE] > 1
    whole = results_of(model, WHOLE)
    for size in sizes:
        th.testing.assert_close(results_of(model, size), whole, rtol=1e-8, atol=1e-10)
    assert not th.allclose(results_of(model, longest - 1), whole, rtol=1e-6)


def counted(samples):
    """Return the returns without padding, which tell transitions apart."""
    return samples.returns[samples.weights > 0].tolist()


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("batch_size", [1, 5, 12, WHOLE])
def test_the_critic_sees_each_transition_once_and_has_the_oracles_loss(critic, batch_size):
    model, rollout = made(policy_kwargs=CRITICS[critic])
    to_float64(model.policy)
    minibatches = [*reader_of(model).minibatches(batch_size)]
    assert len(minibatches) == math.ceil(rollout.returns.numel() / batch_size)
    seen = [value for minibatch in minibatches for part in minibatch for value in counted(part)]
    assert sorted(seen) == sorted(rollout.returns.reshape(-1).tolist())
    sizes = [sum(len(counted(part)) for part in minibatch) for minibatch in minibatches]
    assert max(sizes) < 2 * batch_size
    assert len(minibatches) == pytest.approx(rollout.returns.numel() / batch_size, abs=1) or batch_size == WHOLE
    losses = [mean_error(minibatch, model.policy) for minibatch in minibatches]
    dense = oracle.Oracle(rollout, BOX_ACTION, longest=batch_size)
    expected = dense.critic_loss(oracle.parameters_of(model.policy))
    assert np.average(losses, weights=sizes) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_critics_minibatches_differ_from_pass_to_pass():
    model, _ = made()
    one, other = ([counted(part) for batch in reader_of(model).minibatches(8) for part in batch] for _ in range(2))
    assert one != other


def of_all_segments(model, function):
    """Apply a function to all segments of a rollout; return the results by (step, env), without padding."""
    samples = reader_of(model).read(cut(model))
    with th.no_grad():
        return function(samples)[samples.weights > 0].reshape(model.n_envs, model.n_steps).T.double()


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("name", ["Box", "Discrete", "gSDE", "masked Discrete", "masked MultiBinary"])
def test_segments_give_what_the_policy_gave_step_by_step(name, critic):
    algorithm, space, options = KINDS[name]
    env = vec_env(3, action_space=space)
    kwargs = CRITICS[critic] | LAYERS["2 layers"]
    model = collected(small_model(algorithm, env, n_steps=25, policy_kwargs=kwargs, **options))
    rollout = oracle.read(model.rollout_buffer)
    assert rollout.starts[1:].any()
    assert not rollout.starts[0].all()
    log_prob = of_all_segments(model, lambda samples: samples.inputs.distribution(model.policy).log_prob(samples.actions))
    th.testing.assert_close(log_prob, rollout.log_probs, rtol=1e-5, atol=1e-5)
    values = of_all_segments(model, lambda samples: samples.inputs.values(model.policy).flatten())
    th.testing.assert_close(values, rollout.values, rtol=1e-5, atol=1e-6)


def test_dict_observations_are_read_by_segments_too():
    env = vec_env(2, observation_space=DICT)
    model = collected(small_model(env=env, policy="MultiInputLstmPolicy", n_steps=8))
    rollout = th.as_tensor(model.rollout_buffer.log_probs.copy()).double()
    log_prob = of_all_segments(model, lambda samples: samples.inputs.distribution(model.policy).log_prob(samples.actions))
    th.testing.assert_close(log_prob, rollout, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_first_state_of_a_segment_is_the_acting_policys_or_zero(n_layers):
    model, rollout = made(policy_kwargs={"n_lstm_layers": n_layers})
    for segment in cut(model):
        states = reader_of(model).read([segment]).inputs.lstm_states
        env, step = divmod(segment.start, model.n_steps)
        for kept, read in zip((*rollout.states["pi"], *rollout.states["vf"]), (*states.pi, *states.vf), strict=True):
            expected = kept[step, :, env] * (1.0 - rollout.starts[step, env])
            th.testing.assert_close(read[:, 0].double(), expected)
    several = reader_of(model).read(cut(model)).inputs.lstm_states
    assert all(part.is_contiguous() for part in (*several.pi, *several.vf))  # cuDNN takes no others
    going_on = ~rollout.starts[0].bool()
    assert rollout.states["pi"][0][0][:, going_on].any()


def test_fresh_states_are_zeros_of_the_policys_shape():
    states = fresh_states(small_model(policy_kwargs={"n_lstm_layers": 2}).policy, 5)
    tensors = [*states.pi, *states.vf]
    assert {tuple(part.shape) for part in tensors} == {(2, 5, 3)}
    assert not any(part.any() for part in tensors)
    assert len({part.data_ptr() for part in tensors}) == 4


EDGES = {
    "one segment": {"n_envs": 1, "p_end": 0.0},
    "episodes of one step": {"p_end": 1.0},
    "rollouts of one step": {"n_envs": 3, "n_steps": 1, "batch_size": 2},
    "a batch larger than the rollout": {"batch_size": 1000},
}


@pytest.mark.parametrize("size", [1, 2, WHOLE])
@pytest.mark.parametrize("edge", EDGES)
def test_edge_cases_are_those_of_the_oracle_too(edge, size):
    model, rollout = made(**EDGES[edge])
    to_float64(model.policy)
    compared(model, oracle.Oracle(rollout, BOX_ACTION, longest=size), objective_of(model, size))
