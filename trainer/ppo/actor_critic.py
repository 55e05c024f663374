"""The policy being trained and its critic: two separate models with one optimizer each.

Only estimators that need a critic have one (`PpoSection.has_critic`). Both start from the SFT model, the
critic with a new head that returns 0 everywhere; or the critic starts from the reward model, whose scalar at
the last token it learns to predict at every token. Trained weights are float32; the bodies compute in the
section's dtype. Evaluation mode throughout: dropout is off.

With `[ppo.lora]` both are frozen and get one adapter each; the head of the critic is trained as usual. The
body of a fresh critic is then the base of the policy, held in memory once.

Shapes: N response tokens, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fairlead.config import RunConfig
from fairlead.config.training import PpoSection
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.heads import ScalarHead
from fairlead.nn.loading import (
    Loader,
    check_vocabulary,
    load_causal_lm,
    load_pretrained,
    load_tokenizer,
    tokenizer_fingerprint,
    torch_device,
    torch_dtype,
)
from fairlead.nn.reward_model import (
    RewardModel,
    check_reads_last_token,
    load_divided_reward_model,
    load_reward_model,
)
from fairlead.nn.unembedding import check_unembedding, output_layer
from fairlead.transports.weights.base import Adapter
from trainer import compiling, finite, optim, seeds
from trainer.distributed import sharding
from trainer.distributed.group import Group
from trainer.distributed.loading import loader
from trainer.model_state import load_optimizer, load_tensors, optimizer_tensors, trained_tensors
from trainer.ppo.average import WeightAverage
from trainer.sequences import (
    PaddedSequences,
    autocast,
    predictor_hidden,
    response_logprobs,
    response_logprobs_and_entropies,
)

_AVERAGE = "policy_ema"
"""Name of the averaged weights in a checkpoint."""


class Critic(nn.Module):
    """A transformer body with a scalar head."""

    def __init__(self, body: PreTrainedModel, head: ScalarHead) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, batch: PaddedSequences) -> Tensor:
        """Return the values [N] at the positions that predict the response tokens, in float32."""
        values_N: Tensor = self.head(predictor_hidden(self.body, batch))
        return values_N


def _call(critic: Critic, batch: PaddedSequences) -> Tensor:
    found: Tensor = critic(batch)
    return found


@dataclass(frozen=True, slots=True)
class _Trained:
    """A model with its optimizer."""

    name: str
    """`policy` or `critic`, as in the names of checkpoint files and figures."""
    model: nn.Module
    optimizer: torch.optim.AdamW
    learning_rate: float
    """The peak of its schedule."""
    rate_key: str
    """The key of that rate, for messages."""


class ActorCritic:
    """Policy, critic if there is one, and their optimizers."""

    def __init__(
        self,
        policy: PreTrainedModel,
        critic: Critic | None,
        section: PpoSection,
        *,
        adapter: Adapter | None = None,
        group: Group | None = None,
    ) -> None:
        """
        Args:
            policy: its weights are divided among the ranks.
            critic: the same; None: the estimator needs none.
            section: the recipe.
            adapter: describes the policy's adapter, which is then published instead of the whole model.
            group: the ranks that train together; None: only this process.
        """
        self.policy = policy
        self.critic = critic
        self.adapter = adapter
        self.group = group or Group.single()
        compute = torch_dtype(section)
        self.device = policy.device if self.group.size == 1 else torch_device(section.device)
        """The device that all models compute on."""
        self._policy_root = sharding.Root(policy)
        self._critic_root = None if critic is None else sharding.Root(critic)
        with sharding.sharing(policy, critic):
            for root in (self._policy_root, self._critic_root):
                if root is not None:
                    sharding.shard(
                        root, self.device, compute=compute, group=self.group, offload=section.offload
                    )
        self.dtype = sharding.autocast_dtype(section, self.group)
        self._section = section
        self._trained = [_trained("policy", policy, section.learning_rate, "ppo.learning_rate")]
        if critic is not None:
            rate = section.critic_learning_rate
            self._trained.append(_trained("critic", critic, rate, "ppo.critic_learning_rate"))
        self.average = WeightAverage(policy, decay=section.ema_decay) if section.ema_decay else None
        """The average of the policy's weights; None without `ema_decay`."""
        rates = " and ".join(one.rate_key for one in self._trained)
        self._finite_steps = finite.FiniteSteps("ppo", rate=rates)

    @property
    def optimizers(self) -> dict[str, torch.optim.AdamW]:
        """The optimizer of each model, by `policy` and `critic`."""
        return {one.name: one.optimizer for one in self._trained}

    def logprobs(self, batch: PaddedSequences, *, temperature: float) -> Tensor:
        """Return log-probs [N] of the response tokens under the policy."""
        found: Tensor = self._policy_root(response_logprobs, batch, temperature=temperature, dtype=self.dtype)
        return found

    def logprobs_and_entropies(self, batch: PaddedSequences, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the result of `logprobs`, and the entropies [N] of the same distributions."""
        found: tuple[Tensor, Tensor] = self._policy_root(
            response_logprobs_and_entropies, batch, temperature=temperature, dtype=self.dtype
        )
        return found

    def reference_logprobs(self, batch: PaddedSequences, *, temperature: float) -> Tensor:
        """Return log-probs [N] under the policy without its adapters: the model that it started from.

        Raises:
            ConfigError: if it has none.
        """
        if not adapters.is_adapted(self.policy):
            raise ConfigError(
                "reference.engine",
                got="'trainer' in the rollout workers, which send no reference log-probs",
                allowed="the same setting for workers and trainer",
            )
        with adapters.disabled(self.policy):
            return self.logprobs(batch, temperature=temperature)

    def values(self, batch: PaddedSequences) -> Tensor:
        """Return the values [N] of the critic, which there must be."""
        assert self._critic_root is not None
        with autocast(self.device, self.dtype):
            values_N: Tensor = self._critic_root(_call, batch)
        return values_N

    def check_architecture(self, reward: RewardModel | None, critic_path: str) -> None:
        """Check what `load` checks of whole models, with those that the ranks hold together.

        Args:
            reward: the reward model that the critic starts from, if there is one.
            critic_path: its path, for messages.

        Raises:
            ModelLoadError: if an architecture cannot be trained.
        """
        self._policy_root.check(check_unembedding)
        if reward is not None and self._critic_root is not None:
            with autocast(self.device, torch_dtype(self._section)):
                self._critic_root.check(lambda _: check_reads_last_token(critic_path, reward.model))

    def set_learning_rates(self, update: int) -> float:
        """Apply the learning-rate schedule of an update; return the policy's rate."""
        for one in self._trained:
            first = self._section.critic_warmup_updates if one.name == "policy" else 0
            factor = optim.ppo_learning_rate_factor(update, self._section, first=first)
            optim.set_learning_rate(one.optimizer, one.learning_rate * factor)
        return float(self._trained[0].optimizer.param_groups[0]["lr"])

    def step(self, losses: Mapping[str, float], *, where: str, with_policy: bool = True) -> dict[str, float]:
        """Step the optimizers; return the gradient norms before clipping and the number of skipped steps.

        A model whose loss or gradient is not finite stays unchanged.

        Args:
            losses: figures of the step; read are `policy_loss`, `ptx_loss`, and `value_loss` with a critic.
            where: the step, for messages.
            with_policy: False while only the critic is trained.

        Raises:
            NotFinite: if too many steps in a row were skipped.
        """
        loss_of = {"policy": losses["policy_loss"], "critic": losses.get("value_loss", 0.0)}
        ptx_loss = losses.get("ptx_loss", 0.0)
        stepped = [one for one in self._trained if with_policy or one.name != "policy"]
        norms = {
            one.name: optim.clipped_step(
                one.optimizer,
                optim.learning(one.model),
                max_norm=self._section.max_gradient_norm,
                loss=loss_of[one.name] + (ptx_loss if one.name == "policy" else 0.0),
            )
            for one in stepped
        }
        if self.average is not None and with_policy:
            self.average.update()
        # The critic first: the policy learns from its values.
        names = [one.name for one in reversed(stepped)]
        numbers = {
            **{f"the loss of the {name}": loss_of[name] for name in names},
            "the loss on demonstrations": ptx_loss,
            **{f"the gradient of the {name}": norms[name] for name in names},
        }
        skipped = not self._finite_steps.check(numbers, where=where)
        return {
            **{f"{name}_gradient_norm": norm for name, norm in norms.items()},
            "skipped_steps": float(skipped),
        }

    def check_ended(self) -> None:
        """Check, before a result is written, that the last step was not skipped.

        Raises:
            NotFinite: if it was.
        """
        self._finite_steps.check_ended()

    def check_weights(self) -> None:
        """Check the trained weights of every model.

        Raises:
            NotFinite: if one is not finite.
        """
        for one in self._trained:
            tensors = trained_tensors(one.model)
            finite.check_weights(tensors, what=f"ppo: the {one.name}", rate=one.rate_key, group=self.group)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return every tensor that a resumed run needs, by file name."""
        return {
            **{one.name: trained_tensors(one.model) for one in self._trained},
            **{f"{one.name}_optimizer": optimizer_tensors(one.model, one.optimizer) for one in self._trained},
            **({} if self.average is None else {_AVERAGE: self.average.tensors}),
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state` returned.

        Raises:
            CorruptCheckpoint: if names or shapes do not match this model.
            ConfigError: if checkpoint and configuration differ in having a critic.
        """
        if ("critic" in state) != (self.critic is not None):
            holds = "a critic, which it does not use" if self.critic is None else "no critic"
            raise ConfigError(
                "ppo.estimator",
                got=f"{self._section.estimator}, but the checkpoints hold {holds}",
                allowed="the estimator that the run's checkpoints were written with, or another name for "
                "the run",
            )
        for one in self._trained:
            load_tensors(one.model, state[one.name], one.name)
        for one in self._trained:
            load_optimizer(one.model, one.optimizer, state[f"{one.name}_optimizer"])
        if self.average is not None:
            # A run that begins to average later begins with the weights that it has.
            self.average.load(state.get(_AVERAGE))


def load(
    path: str,
    section: PpoSection,
    *,
    critic_path: str | None = None,
    seed: int = 0,
    group: Group | None = None,
) -> ActorCritic:
    """Load the policy, and the critic if the section's estimator needs one.

    Args:
        path: the SFT model.
        section: device, dtype, learning rates and adapters.
        critic_path: the reward model that the critic starts from; None: a fresh critic.
        seed: the seed of the run, from which adapters are initialised.
        group: the ranks that train together; None: only this process.

    Raises:
        ModelLoadError: if a model cannot be loaded, its architecture cannot be trained, or the two have
            different tokenizers: the critic reads the policy's token ids.
        ConfigError: if `[ppo.lora]` names layers that the model does not have.
    """
    group = group or Group.single()
    is_single = group.size == 1
    # Several ranks hold rows in the memory of the host until they are divided.
    exact = _exact(section, on_cpu=not is_single)
    reader = loader(group)
    policy = load_causal_lm(path, exact, load=reader)
    check_vocabulary(path, policy, load_tokenizer(path))
    if is_single:
        check_unembedding(policy)
    critic, reward = None, None
    if section.has_critic:
        if critic_path:
            _check_tokenizers(critic_path, path)
            reward = _initial_reward_model(critic_path, exact, reader)
            if reward.is_encoder:
                raise ModelLoadError(
                    f"ppo.critic_init = 'reward_model', but the reward model {critic_path!r} is an encoder, "
                    "which reads no value before the end of an answer. Use critic_init = 'policy'"
                )
        critic = _fresh_critic(policy, exact) if reward is None else Critic(reward.body, reward.head)
    bodies = [policy] if critic is None else [policy, critic.body]
    adapter = None
    if section.lora.rank:
        for number, model in enumerate(bodies):
            _adapt(model, section, path, seed=seed, number=number)
        adapter = Adapter(adapters.fingerprint(path), adapters.config(policy))
    for model in bodies:
        compiling.prepare_blocks(model, section, field="ppo")
    models = ActorCritic(policy, critic, section, adapter=adapter, group=group)
    if not is_single:
        models.check_architecture(reward, critic_path or "")
    return models


def initial_path(config: RunConfig) -> str:
    """Return the folder or hub id of the policy that a run starts from."""
    return config.policy.path or str(config.folder.sft_model)


def _exact(section: PpoSection, *, on_cpu: bool) -> PpoSection:
    """Return the section to load models with; a frozen base may be kept in the dtype that it computes in."""
    changes = {} if section.lora.rank else {"dtype": "float32"}
    return section.model_copy(update=changes | ({"device": "cpu"} if on_cpu else {}))


def _adapt(model: PreTrainedModel, section: PpoSection, path: str, *, seed: int, number: int) -> None:
    """Add adapters; `number` is 0 for the policy and 1 for the critic."""
    drawn = seeds.derive(seed, "lora", number)
    adapters.add(model, section.lora, base=path, field="ppo.lora", seed=drawn)


def _fresh_critic(policy: PreTrainedModel, section: PpoSection) -> Critic:
    frozen = section.lora.rank > 0
    # Rows of divided weights cannot be copied by `deepcopy`.
    own = {
        id(one): one if frozen else nn.Parameter(one.detach().clone(), requires_grad=one.requires_grad)
        for one in nn.Module.parameters(policy.base_model)
    }
    body = copy.deepcopy(policy.base_model, dict(own))
    assert isinstance(body, PreTrainedModel)
    width = next(iter(output_layer(policy).parameters())).shape[1]
    return Critic(body, ScalarHead(width, std=0.0).to(policy.device))


def _check_tokenizers(critic_path: str, path: str) -> None:
    ours, theirs = (tokenizer_fingerprint(load_tokenizer(one)) for one in (path, critic_path))
    if ours != theirs:
        raise ModelLoadError(
            f"ppo.critic_init = 'reward_model', but the reward model {critic_path!r} has the tokenizer "
            f"{theirs[:12]} and the policy {path!r} has {ours[:12]}: the critic reads the policy's ids. "
            "Use critic_init = 'policy', or a reward model trained from this policy"
        )


def _initial_reward_model(path: str, section: PpoSection, load: Loader) -> RewardModel:
    if load is not load_pretrained:
        return load_divided_reward_model(path, section, load)
    return load_reward_model(path, section)


def with_tensors(policy: PreTrainedModel, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a copy of the policy with the weights of a checkpoint; frozen weights are shared.

    Raises:
        CorruptCheckpoint: if names or shapes do not match.
    """
    frozen = (parameter for parameter in nn.Module.parameters(policy) if not parameter.requires_grad)
    found = copy.deepcopy(policy, {id(parameter): parameter for parameter in frozen})
    load_tensors(found, tensors, "policy")
    return found


def _trained(name: str, model: nn.Module, learning_rate: float, rate_key: str) -> _Trained:
    adam = optim.adamw(optim.learning(model), learning_rate=learning_rate, weight_decay=0.0)
    return _Trained(name, model, adam, learning_rate, rate_key)
