"""Typed settings: one frozen tree of sections, loaded strictly from YAML with dotted overrides.

The comments of `config.yaml` are generated from the descriptions here (`to_commented_yaml`), so the file and the
defaults cannot drift apart. Derived values are never written back into the configuration.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from jepaworld.errors import ConfigError

Activation = Literal["relu", "gelu", "silu", "elu", "leaky_relu", "tanh"]
JepaMetric = Literal[
    "val_loss_jepa",
    "val_prediction_loss",
    "val_auxiliary_loss",
    "train_loss_jepa",
    "train_prediction_loss",
    "train_auxiliary_loss",
]
DecoderMetric = Literal["val_loss_jepa_decoder", "train_loss_jepa_decoder"]
PositiveInt = Annotated[int, Field(ge=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$")]


def _setting(default: Any, description: str, *, unit: str = "", **constraints: Any) -> Any:
    """A field whose description, unit and range become its comment in `config.yaml`."""
    text = description if not unit else f"{description} Unit: {unit}."
    if isinstance(default, (dict, list)):
        return Field(default_factory=lambda: default.copy(), description=text, **constraints)
    return Field(default=default, description=text, **constraints)


def _section(kind: type[Section], description: str) -> Any:
    return Field(default_factory=kind, description=description)


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CollectionConfig(Section):
    """How episodes are collected."""

    policy: str = _setting(
        "smooth_random",
        "Who acts: random (uniform, independent), smooth_random (uniform, correlated over time), or an import path "
        "module:attribute of a callable(observation) -> action, of a factory class, or of a Stable-Baselines3 "
        "algorithm class such as stable_baselines3:PPO.",
    )
    policy_path: str | None = _setting(
        None,
        "Saved Stable-Baselines3 model (.zip), for a policy that is such an algorithm class. It is unpickled by "
        "that library: load only files that you trust.",
    )
    policy_kwargs: dict[str, Any] = _setting({}, "Keyword arguments for a policy that is a class.")
    smoothness: float = _setting(
        0.9,
        "Correlation of neighbouring actions of smooth_random; for discrete actions the probability that the "
        "action is repeated.",
        ge=0.0,
        lt=1.0,
    )
    num_workers: int = _setting(2, "Processes that collect in parallel.", ge=1, le=256)
    frame_source: Literal["auto", "observation", "render"] = _setting(
        "auto",
        "Where frames come from: the environment's image observation, or its render(). auto: the observation "
        "if it is an image.",
    )


class VitConfig(Section):
    """Vision Transformer encoder."""

    patch_size: int = _setting(8, "Side of a square patch; must divide image_size.", unit="pixels", ge=1)
    dim: int = _setting(128, "Width of the tokens; must be a multiple of heads.", ge=1)
    depth: int = _setting(4, "Number of Transformer blocks.", ge=1)
    heads: int = _setting(4, "Attention heads.", ge=1)
    mlp_dim: int = _setting(256, "Hidden width of the blocks' MLPs.", ge=1)
    pool: Literal["cls", "mean"] = _setting("mean", "What becomes the embedding: a class token or the mean token.")
    dropout: float = _setting(0.0, "Dropout inside the blocks.", ge=0.0, lt=1.0)
    emb_dropout: float = _setting(0.0, "Dropout after the position embedding.", ge=0.0, lt=1.0)


class CnnConfig(Section):
    """Convolutional encoder. A list has one entry per layer; a single number holds for all layers."""

    num_layers: int = _setting(3, "Number of convolutions.", ge=1)
    num_filters: PositiveInt | list[PositiveInt] = _setting([32, 64, 64], "Output channels of each convolution.")
    kernel_size: PositiveInt | list[PositiveInt] = _setting([4, 3, 3], "Kernel sizes.", unit="pixels")
    stride: PositiveInt | list[PositiveInt] = _setting([4, 2, 2], "Strides.", unit="pixels")
    padding: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] = _setting(
        [0, 1, 1], "Zero padding on each side.", unit="pixels"
    )
    activation: Activation = _setting("relu", "Activation after each layer but the last.")
    norm: Literal["none", "batch", "layer"] = _setting(
        "none", "Normalisation of each convolution's output: batch (BatchNorm) or layer (GroupNorm with one group)."
    )
    hidden_dim: PositiveInt | None = _setting(
        256, "Width of a hidden linear layer with LayerNorm before the embedding; null for none."
    )


class MlpConfig(Section):
    """Multi-layer perceptron on the flattened pixels."""

    num_layers: int = _setting(2, "Number of hidden layers.", ge=1)
    hidden_dim: int = _setting(512, "Width of each hidden layer.", ge=1)
    activation: Activation = _setting("relu", "Activation after each hidden layer.")


class EncoderParams(Section):
    """Parameters of each encoder type; only those of `encoder_type` are used."""

    vit: VitConfig = _section(VitConfig, "Used when encoder_type is vit.")
    cnn: CnnConfig = _section(CnnConfig, "Used when encoder_type is cnn.")
    mlp: MlpConfig = _section(MlpConfig, "Used when encoder_type is mlp.")


class JepaModelConfig(Section):
    """Predictor and target encoder."""

    predictor_hidden_dim: int = _setting(256, "Hidden width of the predictor MLP.", ge=1)
    predictor_num_layers: int = _setting(2, "Hidden layers of the predictor MLP.", ge=1)
    predictor_dropout_rate: float = _setting(0.0, "Dropout after each hidden layer of the predictor.", ge=0.0, lt=1.0)
    ema_decay: float = _setting(
        0.99,
        "Decay of the target encoder: target = ema_decay * target + (1 - ema_decay) * online after each step.",
        ge=0.0,
        le=1.0,
    )
    target_encoder_mode: Literal["default", "vjepa2", "none"] = _setting(
        "vjepa2",
        "Who encodes what. default: the target encoder gives predictor input and target, the online encoder "
        "is trained by the auxiliary loss alone. vjepa2: the online encoder gives the predictor input, the target "
        "encoder the target. none: the online encoder gives both. See docs/modes_and_losses.md.",
    )


class VicregConfig(Section):
    """VICReg (arXiv 2105.04906)."""

    sim_coeff: float = _setting(
        0.0, "Weight of the invariance term; used only by the two-view forward(x, y), not during JEPA training.", ge=0.0
    )
    std_coeff: float = _setting(10.0, "Weight of the variance term.", ge=0.0)
    cov_coeff: float = _setting(1.0, "Weight of the covariance term.", ge=0.0)


class BarlowTwinsConfig(Section):
    """Barlow Twins (arXiv 2103.03230)."""

    lambda_param: float = _setting(0.005, "Weight of the redundancy reduction term.", ge=0.0)


class DinoConfig(Section):
    """The centring of DINO (arXiv 2104.14294)."""

    center_ema_decay: float = _setting(0.9, "Decay of the running centre.", ge=0.0, le=1.0)


class AuxiliaryLossParams(Section):
    """Parameters of each auxiliary loss; only those of `auxiliary_loss.type` are used."""

    vicreg: VicregConfig = _section(VicregConfig, "Used when auxiliary_loss.type is vicreg.")
    barlow_twins: BarlowTwinsConfig = _section(BarlowTwinsConfig, "Used when auxiliary_loss.type is barlow_twins.")
    dino: DinoConfig = _section(DinoConfig, "Used when auxiliary_loss.type is dino.")


class AuxiliaryLossConfig(Section):
    """The loss that keeps the online encoder's embeddings from collapsing."""

    type: Literal["vicreg", "barlow_twins", "dino", "none"] = _setting(
        "vicreg", "Which loss. none is for the experiment that shows collapse."
    )
    weight: float = _setting(0.1, "Weight of the auxiliary loss: total = prediction loss + weight * auxiliary.", ge=0.0)
    params: AuxiliaryLossParams = _section(AuxiliaryLossParams, "Parameters of each auxiliary loss.")


class EarlyStoppingConfig(Section):
    """Validation split and early stopping of the JEPA phase."""

    validation_split: float = _setting(
        0.1, "Share of the episodes kept for validation; at least one episode if above 0.", ge=0.0, lt=1.0
    )
    metric_jepa: JepaMetric = _setting("val_loss_jepa", "The metric, lower is better, that picks the best checkpoint.")
    patience: int = _setting(10, "Stop after so many epochs without an improvement.", unit="epochs", ge=1)
    delta: float = _setting(0.0, "Smallest decrease of the metric that counts as an improvement.", ge=0.0)
    checkpoint_path_jepa: FileName = _setting(
        "best_jepa.safetensors", "File name of the best JEPA, inside the run's folder checkpoints/."
    )


class TrainingOptions(Section):
    """What the training phases do with a loaded model."""

    skip_jepa_training_if_loaded: bool = _setting(
        False, "With load_model_path: take the loaded JEPA as it is and go on with the decoder."
    )


class DecoderEarlyStoppingConfig(Section):
    """Early stopping of the decoder phase."""

    metric: DecoderMetric = _setting(
        "val_loss_jepa_decoder", "The metric, lower is better, that picks the best checkpoint."
    )
    patience: int = _setting(10, "Stop after so many epochs without an improvement.", unit="epochs", ge=1)
    delta: float = _setting(0.0, "Smallest decrease of the metric that counts as an improvement.", ge=0.0)


class DecoderTrainingConfig(Section):
    """Training of the state decoder on frozen embeddings, after the JEPA."""

    enabled: bool = _setting(True, "Train the state decoder after the JEPA.")
    num_epochs: int = _setting(8, "Longest training.", unit="epochs", ge=1)
    steps_per_epoch: PositiveInt | None = _setting(
        None, "Training steps in an epoch; null, or more than there are batches, means all frames once.", unit="steps"
    )
    learning_rate: float | None = _setting(None, "Peak learning rate; null takes learning_rate.", gt=0.0)
    batch_size: int = _setting(128, "Frames per step.", unit="frames", ge=1)
    embedding_source: Literal["online", "target"] = _setting(
        "online", "Which encoder's embeddings are decoded; target needs a mode that has a target encoder."
    )
    checkpoint_path: FileName = _setting(
        "best_jepa_decoder.safetensors", "File name of the best decoder, inside the run's folder checkpoints/."
    )
    validation_plot_dir: str = _setting(
        "validation_plots",
        "Folder inside the run for the pictures of validation reconstructions.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    early_stopping: DecoderEarlyStoppingConfig = _section(DecoderEarlyStoppingConfig, "When the decoder phase stops.")


class LoggingConfig(Section):
    """Where metrics go beside metrics.jsonl, which is always written."""

    log_every_steps: int = _setting(20, "Read the losses from the device and log them so often.", unit="steps", ge=1)
    tensorboard: bool = _setting(True, "Write TensorBoard event files into the run.")
    wandb_project: str | None = _setting(
        None, "Weights & Biases project to log to; null for none. Needs the extra wandb."
    )


class Config(Section):
    """All settings of a run. `config.yaml` shows each with its comment."""

    environment_name: str = _setting(
        "jepaworld/TwoRoom-v0", "Gymnasium id, or module:id to import a module that registers it.", min_length=1
    )
    environment_kwargs: dict[str, Any] = _setting({}, "Keyword arguments for gymnasium.make.")
    image_size: int = _setting(64, "Side of the square frames that the model sees.", unit="pixels", ge=8, le=1024)
    input_channels: Literal[1, 3] = _setting(3, "1 for greyscale (luma), 3 for RGB.")
    frame_skipping: int = _setting(
        1,
        "Environment steps from one stored frame to the next; the actions between them are kept as one block.",
        unit="environment steps",
        ge=1,
        le=1000,
    )
    num_episodes_data_collection: int = _setting(600, "Episodes to collect.", unit="episodes", ge=1)
    max_steps_per_episode_data_collection: int = _setting(
        90, "Longest episode; at least frame_skipping.", unit="environment steps", ge=1
    )
    dataset_dir: str = _setting(
        "datasets/two_room",
        "Folder of the dataset that collect writes. An unfinished one with the same settings is "
        "continued, a finished one is reused.",
        min_length=1,
    )
    load_dataset_path: str | None = _setting(
        None, "Existing dataset folder to train on instead of dataset_dir; nothing is collected then."
    )
    collection: CollectionConfig = _section(CollectionConfig, "How episodes are collected.")

    num_transitions: int = _setting(
        1,
        "Transitions in a training window: a window has one frame more. 1 is the pair (s_t, s_t+1).",
        unit="transitions",
        ge=1,
    )
    evaluation_split: float = _setting(
        0.1,
        "Share of the episodes that no training phase sees, neither for gradients nor for early stopping; the "
        "report measures on them. At least one episode if above 0.",
        ge=0.0,
        lt=1.0,
    )
    data_location: Literal["auto", "device", "disk"] = _setting(
        "auto",
        "Where training data lie: device (all frames in the device's memory) or disk (read in groups of "
        "episodes that fit into data_buffer_megabytes). auto: device if they fit into half of its free memory.",
    )
    data_buffer_megabytes: int = _setting(
        1024,
        "Memory for frames that are read from disk; the larger, the more episodes are mixed in a batch.",
        unit="MiB",
        ge=1,
    )
    verify_checksums: bool = _setting(True, "Compare every file of the dataset with its checksum before training.")

    encoder_type: Literal["vit", "cnn", "mlp"] = _setting("cnn", "Architecture of the online and target encoder.")
    encoder_params: EncoderParams = _section(EncoderParams, "Parameters of each encoder type.")
    latent_dim: int = _setting(64, "Size of the embeddings.", ge=1)
    action_emb_dim: int = _setting(32, "Size of the action embedding that the predictor takes.", ge=1)
    predictor_output_dim: PositiveInt | None = _setting(
        None, "Size of the predictor's output; null means latent_dim, and nothing else is possible."
    )
    jepa_model: JepaModelConfig = _section(JepaModelConfig, "Predictor and target encoder.")
    auxiliary_loss: AuxiliaryLossConfig = _section(
        AuxiliaryLossConfig, "The loss that keeps the online encoder's embeddings from collapsing."
    )

    seed: int = _setting(0, "Seed of collection, splits, initialisation, sampling and dropout.", ge=0, lt=2**32)
    device: str = _setting(
        "auto",
        "auto, cpu, cuda, cuda:N or mps. auto takes the first of cuda, mps, cpu that is there.",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?|mps)$",
    )
    mixed_precision: Literal["auto", "bf16", "off"] = _setting(
        "auto", "bf16 autocast of the forward pass. auto: where the device computes in bf16 natively."
    )
    num_epochs: int = _setting(40, "Longest JEPA training.", unit="epochs", ge=1)
    steps_per_epoch: PositiveInt | None = _setting(
        None, "Training steps in an epoch; null, or more than there are batches, means all windows once.", unit="steps"
    )
    batch_size: int = _setting(256, "Windows per step.", unit="windows", ge=2)
    learning_rate: float = _setting(1e-3, "Peak learning rate of each phase that sets none of its own.", gt=0.0)
    learning_rate_jepa: float | None = _setting(
        None, "Peak learning rate of the online encoder and predictor; null takes learning_rate.", gt=0.0
    )
    weight_decay: float = _setting(1e-5, "Weight decay of AdamW, in all phases.", ge=0.0)
    learning_rate_schedule: Literal["constant", "cosine"] = _setting(
        "cosine", "What follows the warm-up: a constant rate, or a cosine to zero over num_epochs."
    )
    warmup_steps: int = _setting(100, "Steps of linear warm-up from zero; 0 for none.", unit="steps", ge=0)
    gradient_clip_norm: float | None = _setting(1.0, "Clip gradients to this L2 norm; null for no clipping.", gt=0.0)
    early_stopping: EarlyStoppingConfig = _section(
        EarlyStoppingConfig, "Validation split and early stopping of the JEPA phase."
    )
    load_model_path: str | None = _setting(
        None, "Run folder or JEPA checkpoint (.safetensors) whose weights training starts from."
    )
    training_options: TrainingOptions = _section(TrainingOptions, "What happens after a model was loaded.")
    checkpoint_every_steps: int = _setting(
        500, "Save the resume state so often, besides at the end of each epoch.", unit="steps", ge=1
    )

    decoder_dim: int = _setting(96, "Width of the state decoder's tokens; a multiple of decoder_heads.", ge=1)
    decoder_depth: int = _setting(2, "Transformer blocks of the state decoder.", ge=1)
    decoder_heads: int = _setting(4, "Attention heads of the state decoder.", ge=1)
    decoder_mlp_dim: int = _setting(192, "Hidden width of the state decoder's MLPs.", ge=1)
    decoder_memory_tokens: int = _setting(
        8, "Tokens that an embedding is unfolded into for the queries to attend to.", ge=1
    )
    decoder_dropout: float = _setting(0.0, "Dropout inside the state decoder's blocks.", ge=0.0, lt=1.0)
    decoder_patch_size: int = _setting(
        8, "Side of the square that each learned query paints; must divide image_size.", unit="pixels", ge=1
    )
    jepa_decoder_training: DecoderTrainingConfig = _section(
        DecoderTrainingConfig, "Training of the state decoder on frozen embeddings, after the JEPA."
    )

    logging: LoggingConfig = _section(LoggingConfig, "Where metrics go beside metrics.jsonl.")

    def model_post_init(self, _context: Any) -> None:
        """Refuse settings that contradict each other."""
        for problem in _contradictions(self):
            raise ConfigError(problem)

    def notices(self) -> list[str]:
        """Settings changed from their defaults that have no effect in the chosen mode, a sentence each."""
        return list(_without_effect(self))

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain nested dictionaries."""
        return self.model_dump(mode="json")


def _contradictions(config: Config) -> Iterator[str]:
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
    if config.collection.policy_path is not None and ":" not in config.collection.policy:
        yield (
            f"collection.policy_path is set but collection.policy is {config.collection.policy}. Set collection.policy "
            "to the algorithm's class, for example stable_baselines3:PPO."
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


def _without_effect(config: Config) -> Iterator[str]:
    default = Config.model_construct(jepa_model=JepaModelConfig(), auxiliary_loss=AuxiliaryLossConfig())
    mode, kind = config.jepa_model.target_encoder_mode, config.auxiliary_loss.type
    if mode == "none" and config.jepa_model.ema_decay != default.jepa_model.ema_decay:
        yield "jepa_model.ema_decay has no effect: target_encoder_mode none has no target encoder."
    if kind == "none" and config.auxiliary_loss.weight != default.auxiliary_loss.weight:
        yield "auxiliary_loss.weight has no effect: auxiliary_loss.type is none."
    if kind == "vicreg" and config.auxiliary_loss.params.vicreg.sim_coeff:
        yield (
            "auxiliary_loss.params.vicreg.sim_coeff has no effect in training: the invariance term belongs to the "
            "two-view forward(x, y), while training regularises each embedding by itself."
        )
    for name in ("vicreg", "barlow_twins", "dino"):
        params = getattr(config.auxiliary_loss.params, name)
        if name != kind and params != type(params)():
            yield f"auxiliary_loss.params.{name} has no effect: auxiliary_loss.type is {kind}."
    for name in ("vit", "cnn", "mlp"):
        params = getattr(config.encoder_params, name)
        if name != config.encoder_type and params != type(params)():
            yield f"encoder_params.{name} has no effect: encoder_type is {config.encoder_type}."
    if (
        config.learning_rate_jepa is not None
        and (config.jepa_decoder_training.learning_rate is not None or not config.jepa_decoder_training.enabled)
        and config.learning_rate != Config.model_fields["learning_rate"].default
    ):
        yield "learning_rate has no effect: every phase sets its own."


def per_layer(value: int | list[int], num_layers: int) -> list[int]:
    """A setting that is one number for all layers or a list with one number each, as that list."""
    return value if isinstance(value, list) else [value] * num_layers


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


# --- loading -------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """YAML with `1e-3` read as a number, and a key given twice refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ConfigError(f"{key}: given twice (line {key_node.start_mark.line + 1}). Keep one of them.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads on, off, yes and no as truth values, so that `mixed_precision: off` would not be the text "off".
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration strictly.

    Args:
        path: YAML file; `None` starts from the defaults.
        overrides: `key.path=value` each, the value in YAML; later ones win.

    Returns:
        The frozen, validated configuration.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown (the nearest known one is named), a
            value has the wrong type or range, or settings contradict each other.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error}). `jepaworld init` writes a config.yaml to start from."
            ) from error
        raw = _parse_yaml(text, str(path))
    for override in overrides:
        _apply_override(raw, override)
    _resolve_alias(raw)
    return _validate(raw)


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        raw = yaml.load(text, Loader=_StrictLoader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected `key: value` lines, found {type(raw).__name__}.")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key.path=value, for example batch_size=128.")
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value {text!r} is not valid YAML: {error}") from error
    *parents, leaf = key.split(".")
    node = raw
    for depth, parent in enumerate(parents, start=1):
        child = node.setdefault(parent, {})
        if child is None:  # an empty section in the file
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {'.'.join(parents[:depth])} is the value {child!r}, not a section.")
        node = child
    node[leaf] = value


def _resolve_alias(raw: dict[str, Any]) -> None:
    """Read `jepa_predictor_hidden_dim` as `jepa_model.predictor_hidden_dim`."""
    if "jepa_predictor_hidden_dim" not in raw:
        return
    value = raw.pop("jepa_predictor_hidden_dim")
    section = raw.setdefault("jepa_model", {})
    if isinstance(section, dict):
        other = section.setdefault("predictor_hidden_dim", value)
        if other != value:
            raise ConfigError(
                f"jepa_predictor_hidden_dim is {value!r} but jepa_model.predictor_hidden_dim is {other!r}: they are "
                "two names of one setting. Keep one of them."
            )


def _validate(raw: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None


def _explain(error: ValidationError) -> Iterator[str]:
    unions: set[str] = set()
    known = dict(_leaves(Config))
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            yield f"{key}: unknown setting (value {item['input']!r}).{_nearest(key, known)}"
            continue
        # A union reports each of its members with a suffix such as `.int`; one sentence per setting is enough.
        while path and ".".join(path) not in known:
            path.pop()
        key = ".".join(path) or key
        if key in unions:
            continue
        unions.add(key)
        allowed = _allowed(known[key]) if key in known else ""
        reason = item["msg"][0].lower() + item["msg"][1:]
        yield f"{key}: {item['input']!r} is not possible ({reason}). Allowed: {allowed or 'see config.yaml'}."


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    close = same_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        leaves = {name.rsplit(".", 1)[-1]: name for name in known}
        close = [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)]
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{hint} `jepaworld init` writes a file with every setting."


def _leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting and section below `section` by its full dotted path."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _leaves(field.annotation, f"{prefix}{name}.")


def _allowed(field: FieldInfo) -> str:
    """What a setting takes, in words: its type, choices and range."""
    words = _type_in_words(field.annotation)
    symbols = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{word} {getattr(constraint, attribute):g}"
        for constraint in field.metadata
        for attribute, word in symbols.items()
        if getattr(constraint, attribute, None) is not None
    ]
    patterns = [constraint.pattern for constraint in field.metadata if getattr(constraint, "pattern", None)]
    if patterns:
        words = "file name ending in .safetensors" if ".safetensors" in patterns[0] else f"text like {patterns[0]}"
    return ", ".join([words, *limits])


def _type_in_words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *constraints = get_args(annotation)
        limits = [f" of at least {c.ge}" for f in constraints for c in f.metadata if hasattr(c, "ge")]
        return _type_in_words(base) + "".join(limits)
    if origin is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(_type_in_words(member) for member in get_args(annotation))
    if origin is list:
        return f"list of {_type_in_words(get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    names = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, "section")


# --- writing -------------------------------------------------------------------------------------------------------


def to_commented_yaml(config: Config | None = None) -> str:
    """The configuration as YAML in which a comment before each setting says what it does, its unit and its range."""
    header = (
        "# Every setting of jepaworld. Each may be left out: the values that stand here in a new file are the\n"
        "# defaults. On the command line and in Python a setting is overridden as key.path=value.\n"
    )
    return header + "".join(_yaml_lines(config or Config(), indent=""))


def _yaml_lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        description = field.description or ""
        if isinstance(value, Section):
            yield f"\n{_comment(description, indent)}{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{_comment(f'{description} Allowed: {_allowed(field)}.', indent)}{indent}{name}: {_scalar(value)}\n"


def _comment(text: str, indent: str) -> str:
    width = 110 - len(indent) - 2
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "".join(f"{indent}# {entry}\n" for entry in [*lines, line])


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").rstrip("\n")
