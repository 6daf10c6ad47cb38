"""The tree of settings: types, defaults, ranges, and the descriptions that become the comments of `config.yaml`.

Settings of components stand beside them (`components`); `rules` says which contradict each other or have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jepaworld.config.components import CUSTOM, Choice, ComponentSettings
from jepaworld.config.fields import JsonDict, NonEmpty, PositiveInt, Section, section, setting
from jepaworld.config.planning import DynamicsLossesConfig, EvaluationConfig, PlanningConfig

JepaMetric = Literal[
    "val_loss_jepa",
    "val_prediction_loss",
    "val_auxiliary_loss",
    "train_loss_jepa",
    "train_prediction_loss",
    "train_auxiliary_loss",
    "latest",
]
DecoderMetric = Literal["val_loss_jepa_decoder", "train_loss_jepa_decoder"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$")]


def _only_integers(value: Any) -> Any:
    """Refuse True and 3.0, which equal the integers that a Literal lists."""
    if type(value) is not int:
        raise ValueError("input should be an integer")
    return value


class CollectionConfig(Section):
    """How episodes are collected."""

    policy: str = setting(
        "smooth_random",
        "Who acts: random (uniform, independent), smooth_random (uniform, correlated over time), or an import path "
        "module:attribute of a callable(observation) -> action, of a factory class, or of a Stable-Baselines3 "
        "algorithm class such as stable_baselines3:PPO.",
    )
    policy_path: str | None = setting(
        None, "Saved Stable-Baselines3 model (.zip) for such a class. It is unpickled: load only files that you trust."
    )
    policy_kwargs: JsonDict = setting({}, "Keyword arguments for a policy that is a class.")
    smoothness: float = setting(
        0.9, "Correlation of neighbouring actions of smooth_random; Discrete: chance of a repetition.", ge=0.0, lt=1.0
    )
    num_workers: int = setting(2, "Processes that collect in parallel.", ge=1, le=256)
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = setting(
        None, "Seed of the episodes and their split, that several training seeds can share; null takes seed."
    )
    frame_source: str = setting(
        "auto",
        "Frames are those of render(), or the observation's picture (of several: observation.KEY). auto: observations "
        "if they are uint8 images, else render() if there is one.",
        pattern=r"^(auto|render|observation(\.\S+)?)$",
    )


class EncoderParams(ComponentSettings):
    """Parameters of each encoder type; only those of `encoder_type` are used."""

    kind = "encoder"
    custom: JsonDict = CUSTOM


class ActionEncoderParams(ComponentSettings):
    """Parameters of each action encoder type; only those of `action_encoder_type` are used."""

    kind = "action_encoder"
    custom: JsonDict = CUSTOM


class JepaModelConfig(ComponentSettings):
    """Target encoder and predictor; the settings of all predictors share the prefix `predictor_`."""

    kind = "predictor"
    ema_decay: float = setting(
        0.99, "The target encoder becomes ema_decay * target + (1 - ema_decay) * online.", ge=0.0, le=1.0
    )
    target_encoder_mode: Literal["default", "vjepa2", "none"] = setting(
        "vjepa2",
        "Who encodes what. default: the target encoder gives predictor input and target, the online encoder "
        "is trained by the auxiliary loss alone. vjepa2: the online encoder gives the predictor input, the target "
        "encoder the target. none: the online encoder gives both. See docs/modes_and_losses.md.",
    )
    target_gradient: bool = setting(
        False, "Let the prediction loss train the target too; needs mode none and a loss against collapse."
    )
    prediction_loss: Literal["mse", "l1", "cosine"] = setting(
        "mse", "Distance between prediction and target: mean squared, mean absolute, or 1 minus the cosine."
    )
    prediction_weight: float = setting(
        1.0, "Weight of the prediction loss; 0 where dynamics_losses.rollout_weight alone trains the predictor.", ge=0.0
    )
    projector: Literal["none", "mlp", "layer_norm"] = setting(
        "none",
        "What follows encoder and predictor. mlp: one hidden layer with batch norm for each of them. layer_norm: one "
        "layer norm for both.",
    )
    projector_hidden_dim: int = setting(2048, "Hidden width of each projector mlp.", ge=1)
    predictor_type: Annotated[str, Choice("predictor")] = setting("mlp", "Architecture of the predictor.")
    predictor_custom: JsonDict = CUSTOM


class AuxiliaryLossParams(ComponentSettings):
    """Parameters of each auxiliary loss; only those of `auxiliary_loss.type` are used."""

    kind = "auxiliary_loss"
    custom: JsonDict = CUSTOM


class AuxiliaryLossConfig(Section):
    """The loss that keeps the online encoder's embeddings from collapsing."""

    type: Annotated[str, Choice("auxiliary_loss")] = setting(
        "vicreg", "Which loss. none is for the experiment that shows collapse."
    )
    statistics: Literal["pooled", "per_step"] = setting(
        "pooled",
        "Which embeddings the batch statistics are taken over: pooled (all time steps of all windows together) or "
        "per_step (each time step by itself, then averaged, as PLDM and LeWM do).",
    )
    weight: float = setting(0.1, "Weight of the auxiliary loss: total = prediction loss + weight * auxiliary.", ge=0.0)
    params: AuxiliaryLossParams = section(AuxiliaryLossParams, "Parameters of each auxiliary loss.")


class EarlyStoppingConfig(Section):
    """Validation split and early stopping of the JEPA phase."""

    validation_split: float = setting(
        0.1, "Share of the episodes kept for validation; at least one episode if above 0.", ge=0.0, lt=1.0
    )
    metric_jepa: JepaMetric = setting(
        "val_loss_jepa",
        "The metric, lower is better, that picks the best checkpoint. latest: the last epoch is the best, and nothing "
        "stops the training early; losses of models that grow their embeddings rise while the models get better.",
    )
    patience: int = setting(10, "Stop after so many epochs without an improvement.", unit="epochs", ge=1)
    delta: float = setting(0.0, "Smallest decrease of the metric that counts as an improvement.", ge=0.0)
    checkpoint_path_jepa: FileName = setting(
        "best_jepa.safetensors", "File name of the best JEPA, inside the run's folder checkpoints/."
    )


class TrainingOptions(Section):
    """What the training phases do with a loaded model."""

    skip_jepa_training_if_loaded: bool = setting(
        False, "With load_model_path: take the loaded JEPA as it is and go on with the decoder."
    )


class DecoderEarlyStoppingConfig(Section):
    """Early stopping of the decoder phase."""

    metric: DecoderMetric = setting(
        "val_loss_jepa_decoder", "The metric, lower is better, that picks the best checkpoint."
    )
    patience: int = setting(10, "Stop after so many epochs without an improvement.", unit="epochs", ge=1)
    delta: float = setting(0.0, "Smallest decrease of the metric that counts as an improvement.", ge=0.0)


class DecoderTrainingConfig(Section):
    """Training of the state decoder on frozen embeddings, after the JEPA."""

    enabled: bool = setting(True, "Train the state decoder after the JEPA.")
    num_epochs: int = setting(2, "Longest training.", unit="epochs", ge=1)
    steps_per_epoch: PositiveInt | None = setting(
        None, "Training steps in an epoch; null, or more than there are batches, means all frames once.", unit="steps"
    )
    learning_rate: float | None = setting(2e-3, "Peak learning rate; null takes learning_rate.", gt=0.0)
    batch_size: int = setting(64, "Frames per step.", unit="frames", ge=1)
    embedding_source: Literal["online", "target"] = setting(
        "online", "Which encoder's embeddings are decoded; target needs a mode that has a target encoder."
    )
    checkpoint_path: FileName = setting(
        "best_jepa_decoder.safetensors", "File name of the best decoder, inside the run's folder checkpoints/."
    )
    validation_plot_dir: str = setting(
        "validation_plots", "Folder in the run for reconstructions.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )
    early_stopping: DecoderEarlyStoppingConfig = section(DecoderEarlyStoppingConfig, "When the decoder phase stops.")


class LoggingConfig(Section):
    """Where metrics go beside metrics.jsonl, which is always written."""

    log_every_steps: int = setting(20, "Read the losses from the device and log them so often.", unit="steps", ge=1)
    tensorboard: bool = setting(True, "Write TensorBoard event files into the run.")
    wandb_project: str | None = setting(
        None, "Weights & Biases project to log to; null for none. Needs the extra wandb."
    )


class Settings(Section):
    """All settings of a run, without the rules between them."""

    environment_name: str = setting(
        "jepaworld/TwoRoom-v0", "Gymnasium id, or module:id to import a module that registers it.", min_length=1
    )
    environment_kwargs: JsonDict = setting({}, "Keyword arguments for gymnasium.make.")
    image_size: int = setting(64, "Side of the square frames that the model sees.", unit="pixels", ge=8, le=1024)
    input_channels: Annotated[Literal[1, 3], BeforeValidator(_only_integers)] = setting(
        3, "1 for greyscale (luma), 3 for RGB."
    )
    frame_skipping: int = setting(
        1, "Environment steps between frames; their actions are one block.", unit="environment steps", ge=1, le=1000
    )
    num_episodes_data_collection: int = setting(600, "Episodes to collect.", unit="episodes", ge=1)
    max_steps_per_episode_data_collection: int = setting(
        90, "Longest episode; at least frame_skipping.", unit="environment steps", ge=1
    )
    dataset_dir: str = setting(
        "datasets/two_room", "Folder that collect writes; with equal settings continued or reused.", min_length=1
    )
    load_dataset_path: NonEmpty | None = setting(
        None, "Existing dataset folder to train on instead of dataset_dir; nothing is collected then."
    )
    collection: CollectionConfig = section(CollectionConfig, "How episodes are collected.")

    num_transitions: int = setting(
        1, "Transitions in a training window; 1 is the pair (s_t, s_t+1).", unit="transitions", ge=1
    )
    evaluation_split: float = setting(
        0.1,
        "Share of the episodes that no training phase sees, for the report; one or more if above 0.",
        ge=0.0,
        lt=1.0,
    )
    data_location: Literal["auto", "device", "disk"] = setting(
        "auto",
        "Where training data lie: device (all frames in the device's memory) or disk (read in groups of "
        "episodes that fit into data_buffer_megabytes). auto: device if they fit into half of its free memory.",
    )
    data_buffer_megabytes: int = setting(
        1024, "Memory for frames read from disk; more of it mixes more episodes in a batch.", unit="MiB", ge=1
    )
    verify_checksums: bool = setting(True, "Compare every file of the dataset with its checksum before training.")

    model_type: Annotated[str, Choice("model")] = setting(
        "jepa",
        "The world model: a JEPA, or a pixel baseline from its parts and a decoder by the settings decoder_... For a "
        "class from outside the settings from encoder_type to auxiliary_loss do nothing.",
    )
    model_params: JsonDict = setting({}, "Settings of a model from outside.")
    encoder_type: Annotated[str, Choice("encoder")] = setting("cnn", "Architecture of the online and target encoder.")
    encoder_params: EncoderParams = section(EncoderParams, "Parameters of each encoder type.")
    image_normalization: Literal["unit", "centered", "imagenet"] = setting(
        "unit",
        "Pixels as the encoder takes them: from 0 to 1, from -1 to 1, or by ImageNet's mean and standard deviation.",
    )
    latent_dim: int = setting(64, "Size of the embeddings.", ge=1)
    action_encoder_type: Annotated[str, Choice("action_encoder")] = setting(
        "auto", "What embeds actions. auto: linear for Box, table for Discrete actions."
    )
    action_encoder_params: ActionEncoderParams = section(ActionEncoderParams, "Parameters of each action encoder type.")
    action_scaling: Literal["bounds", "statistics"] = setting(
        "bounds",
        "Box actions as encoder and inverse dynamics take them: by their bounds to [-1, 1], or by mean and standard "
        "deviation of the training episodes.",
    )
    action_emb_dim: int = setting(32, "Size of the action embedding that the predictor takes.", ge=1)
    predictor_output_dim: PositiveInt | None = setting(
        None, "Size of the predictor's output; null means latent_dim, and nothing else is possible."
    )
    jepa_model: JepaModelConfig = section(JepaModelConfig, "Predictor and target encoder.")
    dynamics_losses: DynamicsLossesConfig = section(
        DynamicsLossesConfig, "Losses on dynamics that make embeddings fit for planning; off by default."
    )
    auxiliary_loss: AuxiliaryLossConfig = section(
        AuxiliaryLossConfig, "The loss that keeps the online encoder's embeddings from collapsing."
    )

    seed: int = setting(0, "Seed of collection, splits, initialisation, sampling and dropout.", ge=0, lt=2**32)
    device: str = setting(
        "auto", "auto: the first of cuda, mps, cpu that is there.", pattern=r"^(auto|cpu|cuda(:[0-9]+)?|mps)$"
    )
    mixed_precision: Literal["auto", "bf16", "off"] = setting(
        "auto", "bf16 autocast of the forward pass. auto: where the device has it; on processors not with attention."
    )
    execution: Literal["auto", "eager", "graph"] = setting(
        "auto", "Training steps kernel by kernel, or as one CUDA graph. auto: graph on CUDA, for built-in components."
    )
    num_epochs: int = setting(10, "Longest JEPA training.", unit="epochs", ge=1)
    steps_per_epoch: PositiveInt | None = setting(
        None, "Training steps in an epoch; null, or more than there are batches, means all windows once.", unit="steps"
    )
    batch_size: int = setting(256, "Windows per step.", unit="windows", ge=2)
    learning_rate: float = setting(1e-3, "Peak learning rate of each phase that sets none of its own.", gt=0.0)
    learning_rate_jepa: float | None = setting(
        None, "Peak learning rate of the online encoder and predictor; null takes learning_rate.", gt=0.0
    )
    weight_decay: float = setting(1e-5, "Weight decay of AdamW, in all phases.", ge=0.0)
    learning_rate_schedule: Literal["constant", "cosine"] = setting(
        "cosine", "What follows the warm-up: a constant rate, or a cosine to zero over num_epochs."
    )
    warmup_steps: int = setting(100, "Steps of linear warm-up from zero; 0 for none.", unit="steps", ge=0)
    gradient_clip_norm: float | None = setting(1.0, "Clip gradients to this L2 norm; null for no clipping.", gt=0.0)
    early_stopping: EarlyStoppingConfig = section(
        EarlyStoppingConfig, "Validation split and early stopping of the JEPA phase."
    )
    load_model_path: NonEmpty | None = setting(
        None, "Run folder or JEPA checkpoint (.safetensors) whose weights training starts from."
    )
    training_options: TrainingOptions = section(TrainingOptions, "What happens after a model was loaded.")
    checkpoint_every_steps: int = setting(
        500, "Save the resume state so often, besides at the end of each epoch.", unit="steps", ge=1
    )

    decoder_dim: int = setting(128, "Width of the state decoder's tokens; a multiple of decoder_heads.", ge=1)
    decoder_depth: int = setting(1, "Transformer blocks of the state decoder.", ge=1)
    decoder_heads: int = setting(4, "Attention heads of the state decoder.", ge=1)
    decoder_mlp_dim: int = setting(512, "Hidden width of the state decoder's MLPs.", ge=1)
    decoder_memory_tokens: int = setting(
        16, "Tokens that an embedding is unfolded into for the queries to attend to.", ge=1
    )
    decoder_dropout: float = setting(0.0, "Dropout inside the state decoder's blocks.", ge=0.0, lt=1.0)
    decoder_patch_size: int = setting(
        16, "Side of the square that each learned query paints; must divide image_size.", unit="pixels", ge=1
    )
    jepa_decoder_training: DecoderTrainingConfig = section(
        DecoderTrainingConfig, "Training of the state decoder on frozen embeddings, after the JEPA."
    )

    planning: PlanningConfig = section(PlanningConfig, "How a trained model plans; no influence on training.")
    evaluation: EvaluationConfig = section(
        EvaluationConfig, "How planning success is measured; no influence on training."
    )

    logging: LoggingConfig = section(LoggingConfig, "Where metrics go beside metrics.jsonl.")

    @property
    def dataset_seed(self) -> int:
        """Seed of the episodes and of their split: `collection.seed`, or `seed` where that is null."""
        return self.seed if self.collection.seed is None else self.collection.seed

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain nested dictionaries."""
        return self.model_dump(mode="json")
