"""Which settings contradict each other, and which have no effect beside others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepaworld.config.schema import Config


def contradictions(config: Config) -> Iterator[str]:
    """A sentence for each pair of settings that cannot stand together, with what to change."""
    size = config.image_size
    if config.predictor_output_dim not in (None, config.latent_dim):
        yield (
            f"predictor_output_dim is {config.predictor_output_dim} but latent_dim is {config.latent_dim}: the "
            "predictor must return an embedding. Remove predictor_output_dim or set both to the same value."
        )
    if config.max_steps_per_episode_data_collection < config.frame_skipping:
        yield (
            f"max_steps_per_episode_data_collection is {config.max_steps_per_episode_data_collection}, less than one "
            f"action block of frame_skipping = {config.frame_skipping} steps. Raise it or lower frame_skipping."
        )
    held_out = config.early_stopping.validation_split + config.evaluation_split
    if held_out >= 1.0:
        yield (
            f"early_stopping.validation_split + evaluation_split is {held_out:g}: nothing is left to train on. "
            "Keep their sum below 1."
        )
    yield from _encoder_contradictions(config, size)
    decoder = config.jepa_decoder_training
    if decoder.enabled:
        if size % config.decoder_patch_size:
            yield (
                f"decoder_patch_size is {config.decoder_patch_size}, which does not divide image_size = {size}. "
                f"Possible: {_divisors(size)}."
            )
        if config.decoder_dim % config.decoder_heads:
            yield (f"decoder_dim is {config.decoder_dim}, not a multiple of decoder_heads = {config.decoder_heads}.")
        if decoder.embedding_source == "target" and config.jepa_model.target_encoder_mode == "none":
            yield (
                "jepa_decoder_training.embedding_source is target but jepa_model.target_encoder_mode is none, which "
                "has no target encoder. Set embedding_source to online."
            )
    if config.early_stopping.validation_split == 0.0:
        metrics = {"early_stopping.metric_jepa": config.early_stopping.metric_jepa}
        if decoder.enabled:
            metrics["jepa_decoder_training.early_stopping.metric"] = decoder.early_stopping.metric
        for key, metric in metrics.items():
            if metric.startswith("val_"):
                yield (
                    f"{key} is {metric} but early_stopping.validation_split is 0: there is no validation. Set {key} "
                    f"to {metric.replace('val_', 'train_', 1)} or keep a validation split."
                )
    if config.training_options.skip_jepa_training_if_loaded and config.load_model_path is None:
        yield (
            "training_options.skip_jepa_training_if_loaded is true but load_model_path is null: there is no model to "
            "skip the training of. Set load_model_path to a run folder or a checkpoint."
        )
    yield from _planning_contradictions(config)
    if config.collection.policy_path is not None and ":" not in config.collection.policy:
        yield (
            f"collection.policy_path is set but collection.policy is {config.collection.policy}. Set collection.policy "
            "to the algorithm's class, for example stable_baselines3:PPO."
        )


def _planning_contradictions(config: Config) -> Iterator[str]:
    """Of the losses on dynamics, of planning, and of its evaluation."""
    jepa, losses, planning = config.jepa_model, config.dynamics_losses, config.planning
    if jepa.target_gradient and jepa.target_encoder_mode != "none":
        yield (
            f"jepa_model.target_gradient is true but jepa_model.target_encoder_mode is {jepa.target_encoder_mode}, "
            "whose target encoder has no gradient. Set target_encoder_mode to none or target_gradient to false."
        )
    needed = losses.rollout_steps + jepa.predictor_context_length - 1
    if losses.rollout_weight and needed > config.num_transitions:
        yield (
            f"dynamics_losses.rollout_steps is {losses.rollout_steps} and jepa_model.predictor_context_length is "
            f"{jepa.predictor_context_length}, but num_transitions is {config.num_transitions}: a window must hold the "
            f"frames that imagined steps begin with and are compared with. Raise num_transitions to {needed} or lower "
            "rollout_steps."
        )
    for key in ("temporal_similarity_weight", "inverse_dynamics_weight"):
        if getattr(losses, key) and jepa.target_encoder_mode == "vjepa2" and config.num_transitions < 2:
            yield (
                f"dynamics_losses.{key} is {getattr(losses, key):g} but num_transitions is 1: in "
                "target_encoder_mode vjepa2 the online encoder sees only the first frame of a pair. Raise it to 2."
            )
    if planning.context is not None and planning.context > jepa.predictor_context_length:
        yield (
            f"planning.context is {planning.context}, but jepa_model.predictor_context_length is "
            f"{jepa.predictor_context_length}: the predictor uses no more. Lower planning.context, or leave it null."
        )
    with_elites = planning.planner in ("auto", "cem", "icem", "categorical_cem")
    if with_elites and planning.num_elites > planning.num_samples:
        yield (
            f"planning.num_elites is {planning.num_elites}, more than planning.num_samples = {planning.num_samples}. "
            "Lower num_elites."
        )
    if planning.replan_every > planning.horizon:
        yield (
            f"planning.replan_every is {planning.replan_every}, more than planning.horizon = {planning.horizon}: a "
            "plan has no more steps to play. Lower replan_every."
        )


def _encoder_contradictions(config: Config, size: int) -> Iterator[str]:
    vit, cnn = config.encoder_params.vit, config.encoder_params.cnn
    if config.encoder_type == "vit":
        if size % vit.patch_size:
            yield (
                f"encoder_params.vit.patch_size is {vit.patch_size}, which does not divide image_size = {size}. "
                f"Possible: {_divisors(size)}."
            )
        if vit.dim % vit.heads:
            yield f"encoder_params.vit.dim is {vit.dim}, not a multiple of encoder_params.vit.heads = {vit.heads}."
    if config.encoder_type == "cnn":
        for key in ("num_filters", "kernel_size", "stride", "padding"):
            value = getattr(cnn, key)
            if isinstance(value, list) and len(value) != cnn.num_layers:
                yield (
                    f"encoder_params.cnn.{key} is {value}: {len(value)} entries, but encoder_params.cnn.num_layers is "
                    f"{cnn.num_layers}. Give one entry per layer, or a single number for all."
                )
                return
        side = size
        layers = zip(
            *(per_layer(getattr(cnn, k), cnn.num_layers) for k in ("kernel_size", "stride", "padding")), strict=True
        )
        for layer, (kernel, stride, padding) in enumerate(layers, start=1):
            if side + 2 * padding < kernel:
                yield (
                    f"encoder_params.cnn.kernel_size of layer {layer} is {kernel}, but what reaches it is only "
                    f"{side} pixels wide (image_size = {size}). Use fewer layers, smaller strides or more padding."
                )
                return
            side = (side + 2 * padding - kernel) // stride + 1


def without_effect(config: Config) -> Iterator[str]:
    """A sentence for each setting that was changed from its default and has no effect in the chosen mode."""
    default = type(config)()

    def changed(*keys: str) -> list[str]:
        return [key for key in keys if getattr(config, key) != getattr(default, key)]

    mode, kind = config.jepa_model.target_encoder_mode, config.auxiliary_loss.type
    if mode == "none" and config.jepa_model.ema_decay != default.jepa_model.ema_decay:
        yield "jepa_model.ema_decay has no effect: target_encoder_mode none has no target encoder."
    if kind == "none" and config.auxiliary_loss.weight != default.auxiliary_loss.weight:
        yield "auxiliary_loss.weight has no effect: auxiliary_loss.type is none."
    if mode == "default" and (kind == "none" or config.auxiliary_loss.weight == 0.0):
        yield (
            "the online encoder is not trained at all: in target_encoder_mode default the prediction loss does not "
            "reach it, and there is no auxiliary loss."
        )
    stopping = config.early_stopping
    if stopping.metric_jepa == "latest":
        for key in ("patience", "delta"):
            if getattr(stopping, key) != getattr(default.early_stopping, key):
                yield f"early_stopping.{key} has no effect: early_stopping.metric_jepa is latest."
    losses = config.dynamics_losses
    for weight, key in (
        ("rollout_weight", "rollout_steps"),
        ("inverse_dynamics_weight", "inverse_dynamics_hidden_dim"),
    ):
        if not getattr(losses, weight) and getattr(losses, key) != getattr(default.dynamics_losses, key):
            yield f"dynamics_losses.{key} has no effect: dynamics_losses.{weight} is 0."
    if kind == "vicreg" and config.auxiliary_loss.params.vicreg.sim_coeff:
        yield (
            "auxiliary_loss.params.vicreg.sim_coeff has no effect in training: the invariance term belongs to the "
            "two-view forward(x, y), while training regularises each embedding by itself."
        )
    for section, switch, used in (
        ("auxiliary_loss.params", "auxiliary_loss.type", kind),
        ("encoder_params", "encoder_type", config.encoder_type),
    ):
        parameters, defaults = config, default
        for part in section.split("."):
            parameters, defaults = getattr(parameters, part), getattr(defaults, part)
        for name in type(parameters).model_fields:
            if name != used and getattr(parameters, name) != getattr(defaults, name):
                yield f"{section}.{name} has no effect: {switch} is {used}."
    if config.load_dataset_path is not None:
        for key in changed(
            "dataset_dir", "collection", "num_episodes_data_collection", "max_steps_per_episode_data_collection"
        ):
            yield f"{key} has no effect: load_dataset_path names a dataset, so that nothing is collected."
    elif config.collection.policy != "smooth_random" and config.collection.smoothness != default.collection.smoothness:
        yield f"collection.smoothness has no effect: collection.policy is {config.collection.policy}."
    if config.data_location == "device":
        for key in changed("data_buffer_megabytes"):
            yield f"{key} has no effect: data_location is device."
    decoder = config.jepa_decoder_training
    if not decoder.enabled:
        keys = [key for key in type(config).model_fields if key.startswith("decoder_")]
        for key in changed(*keys):
            yield f"{key} has no effect: jepa_decoder_training.enabled is false."
    own_rates = config.learning_rate_jepa is not None and (decoder.learning_rate is not None or not decoder.enabled)
    if own_rates and changed("learning_rate"):
        yield "learning_rate has no effect: every phase sets its own."


def per_layer(value: int | list[int], num_layers: int) -> list[int]:
    """A setting that is one number for all layers or a list with one number each, as that list."""
    return value if isinstance(value, list) else [value] * num_layers


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
