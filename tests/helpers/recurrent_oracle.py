"""
A recurrent policy's update, dense and in float64: no sequences, no padding, LSTMs by their equations.

The rollout is read step by step, all environments at once. Memory is reset where episodes start. It takes over the acting
policy's state at the rollout's first step, and wherever an argument says so. Every quantity is a weighted mean over
transitions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from helpers.recurrent_tools import options_of
from torch.autograd.functional import hessian, jacobian

Theta = dict[str, th.Tensor]


class Rollout(NamedTuple):
    """Copies of what a buffer holds; everything begins with (step, env)."""

    observations: th.Tensor
    actions: th.Tensor
    log_probs: th.Tensor
    values: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    starts: th.Tensor
    states: dict[str, tuple[th.Tensor, th.Tensor]]
    masks: th.Tensor | None


def read(buffer: Any) -> Rollout:
    assert not buffer.generator_ready
    names = ("observations", "actions", "log_probs", "values", "advantages", "returns", "episode_starts")

    def copied(name: str) -> th.Tensor:
        return th.as_tensor(np.array(getattr(buffer, name))).double()

    states = {who: (copied(f"hidden_states_{who}"), copied(f"cell_states_{who}")) for who in ("pi", "vf")}
    masks = th.as_tensor(buffer.action_masks.copy()) if hasattr(buffer, "action_masks") else None
    return Rollout(*map(copied, names), states, masks)


def sequence_starts(rollout: Rollout, longest: int = 10**6) -> th.Tensor:
    """Mark where sequences start, if none may be longer than that."""
    marks = th.zeros(rollout.starts.shape, dtype=th.bool)
    for env in range(marks.shape[1]):
        age = longest
        for step in range(len(marks)):
            if step == 0 or rollout.starts[step, env] or age == longest:
                marks[step, env], age = True, 0
            age += 1
    return marks


def weights_of_every(rollout: Rollout, k: int, longest: int = 10**6) -> th.Tensor:
    """Give 1 to the transitions of every k-th sequence, counted from the shortest to the longest, then env after env."""
    index = sequence_starts(rollout, longest).T.reshape(-1).long().cumsum(0) - 1
    lengths = index.bincount().tolist()
    kept = sorted(range(len(lengths)), key=lambda sequence: (lengths[sequence], sequence))[::k]
    return th.isin(index, th.tensor(kept)).double().reshape(rollout.starts.T.shape).T


def parameters_of(policy: th.nn.Module) -> Theta:
    return {name: parameter.detach().double().clone() for name, parameter in policy.named_parameters()}


def flat(theta: Theta) -> th.Tensor:
    return th.cat([value.reshape(-1) for value in theta.values()])


def memory(theta: Theta, lstm: str, rollout: Rollout, who: str, kept: th.Tensor) -> th.Tensor:
    """Run an LSTM over the rollout; ``kept`` marks where it takes over the acting policy's state."""
    layers = range(sum(name.startswith(f"{lstm}.weight_hh") for name in theta))
    state = [[part[0, layer] for part in rollout.states[who]] for layer in layers]
    outputs = []
    for step, observation in enumerate(rollout.observations.flatten(2)):
        x = observation
        alive = 1.0 - rollout.starts[step][:, None]
        for layer in layers:
            w_ih, w_hh, b_ih, b_hh = (
                theta[f"{lstm}.{part}_l{layer}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            acting = [part[step, layer] for part in rollout.states[who]]
            h, c = (alive * th.where(kept[step][:, None], a, s) for a, s in zip(acting, state[layer], strict=True))
            i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = h = o.sigmoid() * c.tanh()
            state[layer] = [h, c]
        outputs.append(x)
    return th.stack(outputs)


def layers(theta: Theta, prefix: str, x: th.Tensor) -> th.Tensor:
    names = [name[: -len(".weight")] for name in theta if name.startswith(prefix) and name.endswith(".weight")]
    for name in names:
        x = (x @ theta[f"{name}.weight"].T + theta[f"{name}.bias"]).tanh()
    return x


def outputs(theta: Theta, rollout: Rollout, kept: th.Tensor | None = None) -> th.Tensor:
    """Give what parametrizes the distribution, shape ``(n_steps, n_envs, k)``: mean and std, or logits."""
    kept = sequence_starts(rollout) if kept is None else kept
    latent = layers(theta, "mlp_extractor.policy_net", memory(theta, "lstm_actor", rollout, "pi", kept))
    mean = latent @ theta["action_net.weight"].T + theta["action_net.bias"]
    if "log_std" not in theta:
        return mean
    if theta["log_std"].dim() == 1:
        return th.cat((mean, theta["log_std"].exp().expand_as(mean)), dim=-1)
    variance = latent.detach().square() @ theta["log_std"].exp().square()  # gSDE learns no features by its noise
    return th.cat((mean, (variance + 1e-6).sqrt()), dim=-1)


def values(theta: Theta, rollout: Rollout, kept: th.Tensor | None = None) -> th.Tensor:
    kept = sequence_starts(rollout) if kept is None else kept
    if "critic.weight" in theta:
        latent = rollout.observations.flatten(2) @ theta["critic.weight"].T + theta["critic.bias"]
    else:
        own = any(name.startswith("lstm_critic") for name in theta)
        latent = memory(theta, "lstm_critic" if own else "lstm_actor", rollout, "vf", kept)
    latent = layers(theta, "mlp_extractor.value_net", latent)
    return (latent @ theta["value_net.weight"].T + theta["value_net.bias"]).squeeze(-1)


def choices(z: th.Tensor, space: spaces.Space, mask: th.Tensor | None) -> list[th.Tensor]:
    """Give the log-probabilities of the options of each choice in one state, with those that are forbidden left out."""
    options = options_of(space)
    if isinstance(space, spaces.MultiBinary) and mask is None:
        logits = [th.stack((th.zeros_like(bit), bit)) for bit in z]
    else:
        logits = [*z.split(options)]
    allowed = [each > 0 for each in (th.ones(sum(options)) if mask is None else mask).split(options)]
    return [part[some].log_softmax(0) for part, some in zip(logits, allowed, strict=True)]


def kl(old: th.Tensor, new: th.Tensor, space: spaces.Space, mask: th.Tensor | None) -> th.Tensor:
    """Compute KL(old || new) in one state."""
    if isinstance(space, spaces.Box):
        (m, s), (n, r) = old.chunk(2), new.chunk(2)
        return ((r / s).log() + (s.square() + (m - n).square()) / (2.0 * r.square()) - 0.5).sum()
    pairs = zip(choices(old, space, mask), choices(new, space, mask), strict=True)
    return th.stack([(p.exp() * (p - q)).sum() for p, q in pairs]).sum()


def entropy(z: th.Tensor, space: spaces.Space, mask: th.Tensor | None) -> th.Tensor:
    if isinstance(space, spaces.Box):
        return (0.5 + 0.5 * np.log(2.0 * np.pi) + z.chunk(2)[1].log()).sum()
    return th.stack([-(p.exp() * p).sum() for p in choices(z, space, mask)]).sum()


def log_prob(z: th.Tensor, action: th.Tensor, space: spaces.Space, mask: th.Tensor | None) -> th.Tensor:
    if isinstance(space, spaces.Box):
        mean, std = z.chunk(2)
        return (-0.5 * ((action - mean) / std).square() - std.log() - 0.5 * np.log(2.0 * np.pi)).sum()
    flags = (th.ones(sum(options_of(space))) if mask is None else mask).split(options_of(space))
    places = [int((flag[: int(taken)] > 0).sum()) for flag, taken in zip(flags, action, strict=True)]
    return th.stack([p[place] for p, place in zip(choices(z, space, mask), places, strict=True)]).sum()


class Oracle:
    """
    One rollout and the policies one may compare on it.

    :param rollout: read from a buffer before the update
    :param space: of the actions
    :param weights: of the transitions, all 1 if not given
    :param longest: sequences are cut at this length
    """

    def __init__(self, rollout: Rollout, space: spaces.Space, weights: th.Tensor | None = None, longest: int = 10**6) -> None:
        self.rollout, self.space = rollout, space
        self.kept = sequence_starts(rollout, longest)
        self.weights = th.ones_like(rollout.starts) if weights is None else weights

    def z(self, theta: Theta) -> th.Tensor:
        return outputs(theta, self.rollout, self.kept).flatten(0, 1)

    def mean(self, terms: list[th.Tensor] | th.Tensor) -> th.Tensor:
        terms = th.stack(terms) if isinstance(terms, list) else terms
        w = self.weights.reshape(-1)
        return th.einsum("n,n...->...", w, terms) / w.sum()

    def masks(self) -> list[th.Tensor | None]:
        return [None] * self.weights.numel() if self.rollout.masks is None else [*self.rollout.masks.flatten(0, 1)]

    def kl(self, old: Theta, new: Theta) -> float:
        states = zip(self.z(old), self.z(new), self.masks(), strict=True)
        return self.mean([kl(p, q, self.space, mask) for p, q, mask in states]).item()

    def entropy(self, theta: Theta) -> float:
        return self.mean([entropy(z, self.space, mask) for z, mask in zip(self.z(theta), self.masks(), strict=True)]).item()

    def advantages(self, normalize: bool = True) -> th.Tensor:
        """Standardize by the transitions that count."""
        counted = self.rollout.advantages[self.weights > 0]
        return (self.rollout.advantages - counted.mean()) / counted.std() if normalize else self.rollout.advantages

    def surrogate_of(self, z: th.Tensor, ent_coef: float = 0.0, normalize: bool = True) -> th.Tensor:
        actions, old = self.rollout.actions.flatten(0, 1), self.rollout.log_probs.reshape(-1)
        advantages = self.advantages(normalize).reshape(-1)
        terms = []
        for index, mask in enumerate(self.masks()):
            ratio = (log_prob(z[index], actions[index], self.space, mask) - old[index]).exp()
            bonus = ent_coef * entropy(z[index], self.space, mask) if ent_coef else 0.0
            terms.append(ratio * advantages[index] + bonus)
        return self.mean(terms)

    def surrogate(self, theta: Theta, ent_coef: float = 0.0) -> float:
        return self.surrogate_of(self.z(theta), ent_coef).item()

    def jacobian(self, theta: Theta) -> th.Tensor:
        """dz / dtheta, shape ``(n, k, n_parameters)``."""
        names, ends = [*theta], np.cumsum([0, *(value.numel() for value in theta.values())])

        def by_vector(vector: th.Tensor) -> th.Tensor:
            pieces = [vector[start:end] for start, end in pairwise(ends)]
            return self.z({name: piece.view_as(theta[name]) for name, piece in zip(names, pieces, strict=True)})

        return jacobian(by_vector, flat(theta), vectorize=True)

    def gradient(self, theta: Theta, jac: th.Tensor, ent_coef: float = 0.0) -> th.Tensor:
        z = self.z(theta).requires_grad_()
        (by_z,) = th.autograd.grad(self.surrogate_of(z, ent_coef), z)
        return th.einsum("nk,nkp->p", by_z, jac)

    def fisher(self, theta: Theta, jac: th.Tensor) -> th.Tensor:
        """Mean of J^T M J with M the Hessian of KL(old || .) in z."""
        states = zip(self.z(theta), self.masks(), strict=True)
        metric = [hessian(lambda new, z=z, mask=mask: kl(z, new, self.space, mask), z) for z, mask in states]
        return self.mean(th.einsum("nkp,nkl,nlq->npq", jac, th.stack(metric), jac))

    def critic_loss(self, theta: Theta) -> float:
        errors = values(theta, self.rollout, self.kept) - self.rollout.returns
        return self.mean(errors.square().reshape(-1)).item()
