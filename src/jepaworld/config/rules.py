"""Which settings contradict each other, and which have no effect beside others.

Components bring rules about their own settings, see `components`.
"""

from __future__ import annotations

from collections.abc import Iterator

from jepaworld.config import components
from jepaworld.config.components import KINDS, model_parts, value_at
from jepaworld.config.schema import Settings

# What only a model with such a part looks at; of `jepa_model` see `_of_missing_parts`.
OF_PARTS = {
    "encoder": ("encoder_type", "encoder_params", "image_normalization", "predictor_output_dim"),
    "action_encoder": ("action_encoder_type", "action_encoder_params", "action_scaling", "action_emb_dim"),
    "auxiliary_loss": ("dynamics_losses", "auxiliary_loss"),
}
COLLECTED = ("dataset_dir", "collection", "num_episodes_data_collection", "max_steps_per_episode_data_collection")


def contradictions(config: Settings) -> Iterator[str]:
    """A sentence for each pair of settings that cannot stand together, with what is possible.

    Raises:
        ConfigError: a class from outside is not trusted, cannot be imported, or does not take its settings.
    """
    for kind in _kinds(config):
        for chosen in components.chosen(kind, config):
            rules = getattr(chosen.settings, "contradictions", None)
            yield from rules(config, chosen.prefix) if rules else ()
    for rules in (_of_data, _of_the_losses, _of_the_model, _of_the_decoder, _of_planning):
        yield from (sentence for wrong, sentence in rules(config) if wrong)


def _kinds(config: Settings) -> list[str]:
    """The kinds of components that are in use."""
    return [kind for kind in KINDS if kind in ("model", "planner", *model_parts(config))]


# Each rule: whether it is broken, and the sentence that says so.
Checks = Iterator[tuple[bool, str]]


def _of_data(config: Settings) -> Checks:
    longest, block = config.max_steps_per_episode_data_collection, config.frame_skipping
    yield (
        longest < block,
        f"max_steps_per_episode_data_collection is {longest}: it must be at least frame_skipping = {block}.",
    )
    held_out = config.early_stopping.validation_split + config.evaluation_split
    yield held_out >= 1.0, f"early_stopping.validation_split + evaluation_split is {held_out:g}: it must be below 1."
    policy = config.collection.policy
    yield (
        config.collection.policy_path is not None and ":" not in policy,
        f"collection.policy_path is set but collection.policy is {policy}: it must be the algorithm's class, such as "
        "stable_baselines3:PPO.",
    )


def _of_the_losses(config: Settings) -> Checks:
    if "auxiliary_loss" not in model_parts(config):
        return
    jepa, losses = config.jepa_model, config.dynamics_losses
    mode, transitions, context = jepa.target_encoder_mode, config.num_transitions, jepa.predictor_context_length
    yield (
        jepa.target_gradient and mode != "none",
        f"jepa_model.target_gradient is true but jepa_model.target_encoder_mode is {mode}, whose target encoder has no "
        "gradient: it must be none.",
    )
    needed = losses.rollout_steps + context - 1  # a window holds what steps begin with and are compared with
    yield (
        losses.rollout_weight > 0 and needed > transitions,
        f"dynamics_losses.rollout_steps is {losses.rollout_steps} and jepa_model.predictor_context_length is {context} "
        f"but num_transitions is {transitions}: raise num_transitions to {needed}.",
    )
    for key in ("temporal_similarity_weight", "time_variance_weight", "inverse_dynamics_weight"):
        weight = getattr(losses, key)
        yield (
            weight > 0 and mode == "vjepa2" and transitions < 2,
            f"dynamics_losses.{key} is {weight:g} but num_transitions is 1: it must be at least 2, since in "
            "target_encoder_mode vjepa2 the online encoder does not see the last frame.",
        )
    yield (
        not jepa.prediction_weight and not losses.rollout_weight,
        "jepa_model.prediction_weight and dynamics_losses.rollout_weight are 0: nothing trains the predictor.",
    )


def _of_the_model(config: Settings) -> Checks:
    output_dim, latent_dim, options = config.predictor_output_dim, config.latent_dim, config.training_options
    yield (
        output_dim not in (None, latent_dim),
        f"predictor_output_dim is {output_dim}: it must be latent_dim = {latent_dim}.",
    )
    yield (
        config.image_normalization == "imagenet" and config.input_channels == 1,
        "image_normalization is imagenet but input_channels is 1: it must be 3.",
    )
    metric, parts = config.early_stopping.metric_jepa, model_parts(config)
    yield (
        bool(parts) and "auxiliary_loss" not in parts and metric.endswith("auxiliary_loss"),
        f"early_stopping.metric_jepa is {metric} but model_type is {config.model_type}, which has no auxiliary loss.",
    )
    yield _without_validation(config, "early_stopping.metric_jepa")
    yield (
        options.skip_jepa_training_if_loaded and config.load_model_path is None,
        "training_options.skip_jepa_training_if_loaded is true but load_model_path is null: it must name a model.",
    )


def _of_the_decoder(config: Settings) -> Checks:
    decoder, side, patch = config.jepa_decoder_training, config.image_size, config.decoder_patch_size
    width, heads, parts = config.decoder_dim, config.decoder_heads, model_parts(config)
    if decoder.enabled or "decoder" in parts:
        yield side % patch != 0, does_not_divide("decoder_patch_size", patch, side)
        yield width % heads != 0, f"decoder_dim is {width}: it must be a multiple of decoder_heads = {heads}."
    if decoder.enabled:
        no_target = "auxiliary_loss" in parts and config.jepa_model.target_encoder_mode == "none"
        yield (
            decoder.embedding_source == "target" and no_target,
            "jepa_decoder_training.embedding_source is target but jepa_model.target_encoder_mode is none, which has no "
            "target encoder: it must be online.",
        )
        yield _without_validation(config, "jepa_decoder_training.early_stopping.metric")


def _without_validation(config: Settings, key: str) -> tuple[bool, str]:
    metric = value_at(config, key)
    return config.early_stopping.validation_split == 0.0 and metric.startswith("val_"), (
        f"{key} is {metric} but early_stopping.validation_split is 0: set {key} to "
        f"{metric.replace('val_', 'train_', 1)}, or keep a validation split."
    )


def _of_planning(config: Settings) -> Checks:
    planning, longest = config.planning, config.jepa_model.predictor_context_length
    yield (
        "predictor" in model_parts(config) and (planning.context or 1) > longest,
        f"planning.context is {planning.context}: at most jepa_model.predictor_context_length is {longest}.",
    )
    yield (
        planning.replan_every > planning.horizon,
        f"planning.replan_every is {planning.replan_every}: at most planning.horizon = {planning.horizon}.",
    )


def does_not_divide(key: str, value: int, size: int) -> str:
    """That a patch size does not fit the image size."""
    possible = ", ".join(str(side) for side in range(1, size + 1) if size % side == 0)
    return f"{key} is {value}: it must divide image_size = {size} ({possible})."


# --- no effect -----------------------------------------------------------------------------------------------------


def without_effect(config: Settings, default: Settings) -> Iterator[str]:
    """A sentence for each setting that is not at its default and has no effect beside the others."""
    for without, reason, *keys in _unused(config):
        changed = [key for key in keys if without and value_at(config, key) != value_at(default, key)]
        yield from (f"{key} has no effect: {reason}." for key in changed)
    for kind in _kinds(config):
        for chosen in components.chosen(kind, config):
            notices = getattr(chosen.settings, "notices", None)
            yield from notices(config, chosen.prefix) if notices else ()
    no_loss = config.auxiliary_loss.type == "none" or not config.auxiliary_loss.weight
    if no_loss and config.model_type == "jepa" and config.jepa_model.target_encoder_mode == "default":
        yield (
            "the online encoder is not trained at all: in target_encoder_mode default the prediction loss does not "
            "reach it, and there is no auxiliary loss."
        )


def _unused(config: Settings) -> Iterator[tuple]:
    """Each: whether it is the case, that as a reason, and the settings that have no effect then."""
    parts, losses, decoder = model_parts(config), config.dynamics_losses, config.jepa_decoder_training
    policy, loaded = config.collection.policy, config.load_dataset_path is not None
    yield True, f"model_type is {config.model_type}", *_of_missing_parts(config)
    jepa = "auxiliary_loss" in parts
    no_target = jepa and config.jepa_model.target_encoder_mode == "none"
    no_mlp = bool(parts) and config.jepa_model.projector != "mlp"
    yield no_mlp, f"jepa_model.projector is {config.jepa_model.projector}", "jepa_model.projector_hidden_dim"
    yield no_target, "target_encoder_mode none has no target encoder", "jepa_model.ema_decay"
    no_auxiliary = jepa and config.auxiliary_loss.type == "none"
    yield no_auxiliary, "auxiliary_loss.type is none", "auxiliary_loss.weight"
    for weight, key in ("rollout_weight", "rollout_steps"), ("inverse_dynamics_weight", "inverse_dynamics_hidden_dim"):
        off = jepa and not getattr(losses, weight)
        yield off, f"dynamics_losses.{weight} is 0", f"dynamics_losses.{key}"
    for kind in _kinds(config):
        yield True, f"{KINDS[kind].switch} is {value_at(config, KINDS[kind].switch)}", *_of_others(config, kind)
    latest = config.early_stopping.metric_jepa == "latest"
    yield latest, "early_stopping.metric_jepa is latest", "early_stopping.patience", "early_stopping.delta"
    yield loaded, "load_dataset_path names a dataset, so that nothing is collected", *COLLECTED
    yield not loaded and policy != "smooth_random", f"collection.policy is {policy}", "collection.smoothness"
    yield config.data_location == "device", "data_location is device", "data_buffer_megabytes"
    keys = [key for key in type(config).model_fields if key.startswith("decoder_")]
    no_decoder = not decoder.enabled and "decoder" not in parts
    yield no_decoder, "jepa_decoder_training.enabled is false", *keys
    own_rates = config.learning_rate_jepa is not None and (decoder.learning_rate is not None or not decoder.enabled)
    yield own_rates, "every phase sets its own", "learning_rate"


def _of_missing_parts(config: Settings) -> Iterator[str]:
    """The settings of the parts that the model does not have."""
    parts = model_parts(config)
    for part, keys in OF_PARTS.items():
        yield from keys if part not in parts else ()
    for name in type(config.jepa_model).model_fields:
        part = {"predictor": "predictor", "projector": "encoder"}.get(name.partition("_")[0], "auxiliary_loss")
        if part not in parts:
            yield f"jepa_model.{name}"


def _of_others(config: Settings, kind: str) -> Iterator[str]:
    """The settings of components of a kind that the chosen one, or any that "auto" may choose, does not take."""
    where, chosen, section = KINDS[kind], components.chosen(kind, config), value_at(config, KINDS[kind].section)
    if ":" not in chosen[0].name:
        yield where.custom
    every, own = components.registered(kind), [one.name for one in chosen]
    if not where.flat:
        yield from (f"{where.section}.{name}" for name in every if hasattr(section, name) and name not in own)
        return
    names = {name for cls in every.values() for name in components.taken(cls, section)}
    names -= {name for one in chosen for name in dict(one.settings)}
    yield from (f"{where.section}.{where.prefix}{name}" for name in sorted(names))
