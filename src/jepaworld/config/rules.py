"""Which settings contradict each other, and which have no effect beside others.

Components bring rules about their own settings, see `components`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jepaworld.config import components
from jepaworld.config.components import KINDS, value_at
from jepaworld.config.schema import Settings

# What only a JEPA looks at, not a model from outside.
OF_A_JEPA = ("encoder_type", "encoder_params", "action_encoder_type", "action_encoder_params", "action_emb_dim")
OF_A_JEPA += ("predictor_output_dim", "jepa_model", "dynamics_losses", "auxiliary_loss")


def contradictions(config: Settings) -> Iterator[str]:
    """A sentence for each pair of settings that cannot stand together, with what is possible.

    Raises:
        ConfigError: a class from outside is not trusted, cannot be imported, or does not take its settings.
    """
    for kind in _kinds(config):
        for chosen in components.chosen(kind, config):
            rules = getattr(chosen.settings, "contradictions", None)
            yield from rules(config, chosen.prefix) if rules else ()
    yield from _of_data(config)
    yield from _of_the_jepa(config)
    yield from _of_the_decoder(config)
    yield from _of_planning(config)


def _kinds(config: Settings) -> list[str]:
    """The kinds of components that are in use: a model from outside has parts of its own."""
    return list(KINDS) if config.model_type == "jepa" else ["model", "planner"]


def _of_data(config: Settings) -> Iterator[str]:
    longest, block = config.max_steps_per_episode_data_collection, config.frame_skipping
    if longest < block:
        yield f"max_steps_per_episode_data_collection is {longest}: it must be at least frame_skipping = {block}."
    held_out = config.early_stopping.validation_split + config.evaluation_split
    if held_out >= 1.0:
        yield f"early_stopping.validation_split + evaluation_split is {held_out:g}: it must be below 1."
    collection = config.collection
    if collection.policy_path is not None and ":" not in collection.policy:
        yield (
            f"collection.policy_path is set but collection.policy is {collection.policy}: it must be the algorithm's "
            "class, such as stable_baselines3:PPO."
        )


def _of_the_jepa(config: Settings) -> Iterator[str]:
    jepa, losses = config.jepa_model, config.dynamics_losses
    mode, transitions, context = jepa.target_encoder_mode, config.num_transitions, jepa.predictor_context_length
    if config.predictor_output_dim not in (None, config.latent_dim):
        yield f"predictor_output_dim is {config.predictor_output_dim}: it must be latent_dim = {config.latent_dim}."
    if jepa.target_gradient and mode != "none":
        yield (
            f"jepa_model.target_gradient is true but jepa_model.target_encoder_mode is {mode}, whose target encoder "
            "has no gradient: set it to none."
        )
    needed = losses.rollout_steps + context - 1
    if losses.rollout_weight and needed > transitions:
        yield (
            f"dynamics_losses.rollout_steps is {losses.rollout_steps} and jepa_model.predictor_context_length is "
            f"{context}, but num_transitions is {transitions}: raise num_transitions to {needed}, so that a window "
            "holds what imagined steps begin with and are compared with."
        )
    for key in ("temporal_similarity_weight", "inverse_dynamics_weight"):
        if getattr(losses, key) and mode == "vjepa2" and transitions < 2:
            yield (
                f"dynamics_losses.{key} is {getattr(losses, key):g} but num_transitions is 1: in target_encoder_mode "
                "vjepa2 the online encoder sees only the first frame of a pair; raise it to 2."
            )
    stopping = config.early_stopping
    if stopping.validation_split == 0.0:
        yield from _without_validation("early_stopping.metric_jepa", stopping.metric_jepa)
    if config.training_options.skip_jepa_training_if_loaded and config.load_model_path is None:
        yield (
            "training_options.skip_jepa_training_if_loaded is true but load_model_path is null: it must name the model "
            "that is not trained."
        )


def _of_the_decoder(config: Settings) -> Iterator[str]:
    decoder = config.jepa_decoder_training
    if not decoder.enabled:
        return
    if config.image_size % config.decoder_patch_size:
        yield does_not_divide("decoder_patch_size", config.decoder_patch_size, config.image_size)
    if config.decoder_dim % config.decoder_heads:
        yield f"decoder_dim is {config.decoder_dim}: it must be a multiple of decoder_heads = {config.decoder_heads}."
    if decoder.embedding_source == "target" and config.jepa_model.target_encoder_mode == "none":
        yield (
            "jepa_decoder_training.embedding_source is target but jepa_model.target_encoder_mode is none, which has no "
            "target encoder: set embedding_source to online."
        )
    if config.early_stopping.validation_split == 0.0:
        yield from _without_validation("jepa_decoder_training.early_stopping.metric", decoder.early_stopping.metric)


def _without_validation(key: str, metric: str) -> Iterator[str]:
    if metric.startswith("val_"):
        yield (
            f"{key} is {metric} but early_stopping.validation_split is 0: set {key} to "
            f"{metric.replace('val_', 'train_', 1)}, or keep a validation split."
        )


def _of_planning(config: Settings) -> Iterator[str]:
    planning, context = config.planning, config.jepa_model.predictor_context_length
    if planning.context is not None and planning.context > context and config.model_type == "jepa":
        yield f"planning.context is {planning.context}: at most jepa_model.predictor_context_length is {context}."
    if planning.replan_every > planning.horizon:
        yield f"planning.replan_every is {planning.replan_every}: at most planning.horizon = {planning.horizon}."


def does_not_divide(key: str, value: int, size: int) -> str:
    """That a patch size does not fit the image size."""
    possible = ", ".join(str(side) for side in range(1, size + 1) if size % side == 0)
    return f"{key} is {value}: it must divide image_size = {size} ({possible})."


# --- no effect -----------------------------------------------------------------------------------------------------


def without_effect(config: Settings, default: Settings) -> Iterator[str]:
    """A sentence for each setting that is not at its default and has no effect beside the others."""

    def unused(reason: str, *keys: str) -> Iterator[str]:
        for key in keys:
            if value_at(config, key) != value_at(default, key):
                yield f"{key} has no effect: {reason}."

    if config.model_type != "jepa":
        yield from unused(f"model_type is {config.model_type}", *OF_A_JEPA)
    else:
        yield from _of_a_jepa_without_effect(config, unused)
    for kind in _kinds(config):
        reason = f"{KINDS[kind].switch} is {value_at(config, KINDS[kind].switch)}"
        yield from unused(reason, *_unused_settings(config, kind))
        for chosen in components.chosen(kind, config):
            notices = getattr(chosen.settings, "notices", None)
            yield from notices(config, chosen.prefix) if notices else ()
    if config.early_stopping.metric_jepa == "latest":
        yield from unused("early_stopping.metric_jepa is latest", "early_stopping.patience", "early_stopping.delta")
    if config.load_dataset_path is not None:
        collected = ("dataset_dir", "collection", "num_episodes_data_collection")
        reason = "load_dataset_path names a dataset, so that nothing is collected"
        yield from unused(reason, *collected, "max_steps_per_episode_data_collection")
    elif config.collection.policy != "smooth_random":
        yield from unused(f"collection.policy is {config.collection.policy}", "collection.smoothness")
    if config.data_location == "device":
        yield from unused("data_location is device", "data_buffer_megabytes")
    decoder = config.jepa_decoder_training
    if not decoder.enabled:
        keys = [key for key in type(config).model_fields if key.startswith("decoder_")]
        yield from unused("jepa_decoder_training.enabled is false", *keys)
    if config.learning_rate_jepa is not None and (decoder.learning_rate is not None or not decoder.enabled):
        yield from unused("every phase sets its own", "learning_rate")


def _of_a_jepa_without_effect(config: Settings, unused: Any) -> Iterator[str]:
    mode, auxiliary, losses = config.jepa_model.target_encoder_mode, config.auxiliary_loss, config.dynamics_losses
    if mode == "none":
        yield from unused("target_encoder_mode none has no target encoder", "jepa_model.ema_decay")
    if auxiliary.type == "none":
        yield from unused("auxiliary_loss.type is none", "auxiliary_loss.weight")
    if mode == "default" and (auxiliary.type == "none" or auxiliary.weight == 0.0):
        yield (
            "the online encoder is not trained at all: in target_encoder_mode default the prediction loss does not "
            "reach it, and there is no auxiliary loss."
        )
    if not losses.rollout_weight:
        yield from unused("dynamics_losses.rollout_weight is 0", "dynamics_losses.rollout_steps")
    if not losses.inverse_dynamics_weight:
        yield from unused("dynamics_losses.inverse_dynamics_weight is 0", "dynamics_losses.inverse_dynamics_hidden_dim")


def _taken(config: Settings, kind: str) -> set[str]:
    """The settings that the chosen component of a kind takes, or any that "auto" may choose."""
    return {name for chosen in components.chosen(kind, config) for name in dict(chosen.settings)}


def _unused_settings(config: Settings, kind: str) -> Iterator[str]:
    """The settings of components of a kind that the chosen one does not take."""
    where, chosen = KINDS[kind], components.chosen(kind, config)
    outside = ":" in chosen[0].name
    if not outside:
        yield where.custom
    if not where.flat:
        section = value_at(config, where.section)
        names = [name for name in components.registered(kind) if hasattr(section, name)]
        yield from (f"{where.section}.{name}" for name in names if name not in [one.name for one in chosen])
        return
    section = value_at(config, where.section)
    every = {name for cls in components.registered(kind).values() for name in components.taken(cls, section)}
    yield from (f"{where.section}.{where.prefix}{name}" for name in sorted(every - _taken(config, kind)))
