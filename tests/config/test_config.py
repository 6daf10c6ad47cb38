"""Settings: names and defaults, strict loading, overrides, contradictions, and the YAML that is written."""

from __future__ import annotations

import copy
import itertools
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from jepaworld.config import components
from jepaworld.config.components import Choice, values
from jepaworld.config.fields import Section
from jepaworld.config.loading import Config, _say_renamed, load_config, parse_yaml, to_commented_yaml
from jepaworld.errors import ConfigError

ROOT = Path(__file__).parents[2]


def leaves(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting (not section) by its dotted path."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def value_at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


# --- names and defaults ---------------------------------------------------------------------------

SPECIFIED = """
encoder_type encoder_params.vit encoder_params.cnn encoder_params.mlp latent_dim action_emb_dim
predictor_output_dim jepa_model.predictor_hidden_dim jepa_model.predictor_dropout_rate
jepa_model.ema_decay jepa_model.target_encoder_mode learning_rate_jepa batch_size num_epochs
early_stopping.metric_jepa early_stopping.checkpoint_path_jepa
training_options.skip_jepa_training_if_loaded auxiliary_loss.type auxiliary_loss.weight
auxiliary_loss.params.vicreg.sim_coeff auxiliary_loss.params.vicreg.std_coeff
auxiliary_loss.params.vicreg.cov_coeff auxiliary_loss.params.barlow_twins.lambda_param
auxiliary_loss.params.dino.center_ema_decay decoder_dim decoder_depth decoder_heads decoder_mlp_dim
decoder_patch_size jepa_decoder_training.enabled jepa_decoder_training.num_epochs
jepa_decoder_training.learning_rate jepa_decoder_training.batch_size
jepa_decoder_training.embedding_source jepa_decoder_training.checkpoint_path
jepa_decoder_training.validation_plot_dir jepa_decoder_training.early_stopping.metric
jepa_decoder_training.early_stopping.patience jepa_decoder_training.early_stopping.delta
"""


@pytest.mark.parametrize("key", SPECIFIED.split())
def test_every_specified_key_exists(key: str) -> None:
    value_at(Config(), key)


def test_defaults_that_the_specification_names() -> None:
    config = Config()
    assert config.auxiliary_loss.params.vicreg.sim_coeff == 0.0
    assert config.early_stopping.metric_jepa == "val_loss_jepa"
    assert config.jepa_decoder_training.early_stopping.metric == "val_loss_jepa_decoder"


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("encoder_type", ["vit", "cnn", "mlp"]),
        ("jepa_model.target_encoder_mode", ["default", "vjepa2", "none"]),
        ("auxiliary_loss.type", ["vicreg", "barlow_twins", "dino"]),
        ("jepa_decoder_training.embedding_source", ["online", "target"]),
        ("jepa_decoder_training.enabled", [True, False]),
        ("early_stopping.metric_jepa", ["val_loss_jepa"]),
        ("jepa_decoder_training.early_stopping.metric", ["val_loss_jepa_decoder"]),
    ],
)
def test_specified_choices_are_accepted(key: str, choices: list[Any]) -> None:
    for choice in choices:
        assert value_at(load_config(None, [f"{key}={yaml.safe_dump(choice)}"]), key) == choice


def test_config_yaml_holds_the_defaults_and_their_comments() -> None:
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert text == to_commented_yaml(), "write config.yaml anew with jepaworld.config.loading.to_commented_yaml()"
    assert load_config(ROOT / "config.yaml") == Config()


def test_nothing_given_means_defaults(tmp_path: Path) -> None:
    assert load_config() == Config()
    assert load(tmp_path, "") == Config()
    assert load(tmp_path, "# only a comment\n") == Config()


def test_settings_cannot_be_changed_afterwards() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.batch_size = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.jepa_model.ema_decay = 0.5  # type: ignore[misc]


def test_configurations_share_no_mutable_default() -> None:
    first = Config()
    first.environment_kwargs["changed"] = 1
    assert isinstance(first.encoder_params.cnn.stride, list)
    first.encoder_params.cnn.stride.append(7)
    assert Config().environment_kwargs == {}
    assert Config().encoder_params.cnn.stride == [4, 2, 2]


# --- strictness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("batchsize: 3", "batchsize", "batch_size"),
        ("jepa_model: {ema_decoy: 0.9}", "jepa_model.ema_decoy", "jepa_model.ema_decay"),
        ("encoder_params: {cnn: {norms: x}}", "encoder_params.cnn.norms", "encoder_params.cnn.norm"),
        ("ema_decay: 0.9", "ema_decay", "jepa_model.ema_decay"),
        (
            "jepa_decoder_training: {early_stopping: {patient: 3}}",
            "jepa_decoder_training.early_stopping.patient",
            "jepa_decoder_training.early_stopping.patience",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert f"{key}: unknown" in str(caught.value)
    assert f"Did you mean {nearest}?" in str(caught.value)


def test_a_key_like_no_other_has_no_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zzzzqqq: unknown") as caught:
        load(tmp_path, "zzzzqqq: 3")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("batch_size: 16.0", "batch_size"),
        ("batch_size: true", "batch_size"),
        ("batch_size: '16'", "batch_size"),
        ("batch_size: null", "batch_size"),
        ("batch_size: [16]", "batch_size"),
        ("num_transitions: 1e1", "num_transitions"),
        ("learning_rate: true", "learning_rate"),
        ("learning_rate: fast", "learning_rate"),
        ("learning_rate: .nan", "learning_rate"),
        ("learning_rate: .inf", "learning_rate"),
        ("environment_name: 3", "environment_name"),
        ("verify_checksums: 1", "verify_checksums"),
        ("verify_checksums: 'yes'", "verify_checksums"),
        ("environment_kwargs: [1]", "environment_kwargs"),
        ("jepa_model: 3", "jepa_model"),
        ("encoder_params: {cnn: {num_filters: [8, 1.5, 8]}}", "encoder_params.cnn.num_filters"),
        ("encoder_params: {cnn: {num_filters: [8, true, 8]}}", "encoder_params.cnn.num_filters"),
        ("encoder_params: {cnn: {hidden_dim: wide}}", "encoder_params.cnn.hidden_dim"),
        ("learning_rate_jepa: false", "learning_rate_jepa"),
        ("input_channels: '3'", "input_channels"),
    ],
)
def test_a_wrong_type_is_refused_with_the_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{key}: ")
    assert "Allowed:" in str(caught.value)
    assert "\n" not in str(caught.value), "one sentence per setting"


OUTSIDE = """
image_size=7 image_size=1025 input_channels=2 frame_skipping=0 batch_size=1 latent_dim=0 learning_rate=0
learning_rate=-1e-3 learning_rate_jepa=0 weight_decay=-1 gradient_clip_norm=0 warmup_steps=-1 seed=-1
seed=4294967296 num_epochs=0 jepa_model.ema_decay=1.01 jepa_model.ema_decay=-0.1
jepa_model.target_encoder_mode=vjepa jepa_model.predictor_dropout_rate=1 auxiliary_loss.type=simclr
auxiliary_loss.weight=-0.1 auxiliary_loss.params.dino.center_ema_decay=2
auxiliary_loss.params.vicreg.std_coeff=-1 auxiliary_loss.params.barlow_twins.lambda_param=-1
encoder_type=resnet encoder_params.cnn.activation=swish encoder_params.cnn.padding=-1
encoder_params.cnn.stride=0 encoder_params.vit.dropout=1.0 early_stopping.validation_split=1.0
early_stopping.patience=0 early_stopping.delta=-1 early_stopping.metric_jepa=val_accuracy
early_stopping.checkpoint_path_jepa=../jepa.safetensors early_stopping.checkpoint_path_jepa=jepa.pt
jepa_decoder_training.embedding_source=both jepa_decoder_training.validation_plot_dir=../plots
jepa_decoder_training.checkpoint_path=/tmp/x.safetensors device=tpu device=cuda:x mixed_precision=fp16
collection.smoothness=1.0 dataset_dir=''
"""


@pytest.mark.parametrize("override", OUTSIDE.split())
def test_values_outside_their_range_are_refused(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(f"{key}: ")
    assert "Allowed:" in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "batchsize: 3\nlatent_dim: 0\njepa_model: {ema_decay: 2}")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    "text",
    [
        "batch_size: 8\nlatent_dim: 4\nbatch_size: 9",
        "jepa_model:\n  ema_decay: 0.9\n  ema_decay: 0.8",
        "environment_kwargs: {a: {b: 1, b: 2}}",
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("2.5e-4", 2.5e-4), ("5e+0", 5.0), ("3", 3.0), ("0.1", 0.1)],
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, text: str, value: float) -> None:
    read = load(tmp_path, f"learning_rate: {text}").learning_rate
    assert read == value
    assert isinstance(read, float)
    assert load_config(None, [f"learning_rate={text}"]).learning_rate == value


@pytest.mark.parametrize("text", ["- a\n- b", "just text", "3"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="key: value"):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["a: [1", "\ta: 1", "a: !!python/object/apply:os.getcwd []", "a: 1\n---\nb: 2"])
def test_what_is_no_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"settings\.yaml: not valid YAML"):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"environment_name: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize("text", ["1: 2", "null: 3"])
def test_keys_that_are_no_text_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, text)


def test_a_list_as_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, "[a, b]: 3")


@pytest.mark.parametrize("value", ["true", "3.0"])
def test_input_channels_is_an_integer(value: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [f"input_channels={value}"])


# --- overrides ------------------------------------------------------------------------------------


def test_overrides_reach_every_depth_and_the_last_one_wins(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "batch_size: 8\nauxiliary_loss: {weight: 0.5}",
        "batch_size=16",
        "batch_size=32",
        "auxiliary_loss.params.vicreg.cov_coeff=2",
        "jepa_decoder_training.early_stopping.patience=3",
        "encoder_params.cnn.stride=[2, 2, 2]",
        "load_dataset_path=data/x",
        "environment_kwargs={a: 1}",
        "environment_kwargs.b.c=[true, null]",
    )
    assert config.batch_size == 32
    assert config.auxiliary_loss.weight == 0.5
    assert config.auxiliary_loss.params.vicreg.cov_coeff == 2.0
    assert config.jepa_decoder_training.early_stopping.patience == 3
    assert config.encoder_params.cnn.stride == [2, 2, 2]
    assert config.load_dataset_path == "data/x"
    assert config.environment_kwargs == {"a": 1, "b": {"c": [True, None]}}


def test_an_override_into_an_empty_section_of_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "jepa_model:\n", "jepa_model.ema_decay=0.5").jepa_model.ema_decay == 0.5


def test_an_equals_sign_in_the_value_is_kept() -> None:
    assert load_config(None, ["environment_name=a=b"]).environment_name == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("batch_size.x=3", "not a section"),
        ("batchsize=3", "batchsize: unknown"),
        ("batch_size=", "batch_size: None"),
        ("batch_size=[1", "batch_size: the value"),
        ("environment_kwargs={a: 1, a: 2}", "given twice"),
    ],
)
def test_bad_overrides_are_explained(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, "batch_size: 8", override)


def test_the_other_name_of_the_predictors_width(tmp_path: Path) -> None:
    assert load(tmp_path, "jepa_predictor_hidden_dim: 48").jepa_model.predictor_hidden_dim == 48
    same = load(tmp_path, "jepa_predictor_hidden_dim: 48\njepa_model: {predictor_hidden_dim: 48}")
    assert same.jepa_model.predictor_hidden_dim == 48
    assert load_config(None, ["jepa_predictor_hidden_dim=48"]).jepa_model.predictor_hidden_dim == 48
    with pytest.raises(ConfigError, match=r"jepa_predictor_hidden_dim is 48 but .* is 64"):
        load(tmp_path, "jepa_predictor_hidden_dim: 48\njepa_model: {predictor_hidden_dim: 64}")


@pytest.mark.parametrize("override", ["jepa_predictor_hidden_dim=48", "jepa_model.predictor_hidden_dim=48"])
def test_an_override_wins_over_the_file_whichever_name_is_used(tmp_path: Path, override: str) -> None:
    for text in ("jepa_predictor_hidden_dim: 64", "jepa_model: {predictor_hidden_dim: 64}"):
        assert load(tmp_path, text, override).jepa_model.predictor_hidden_dim == 48


# --- contradictions -------------------------------------------------------------------------------

CNN2 = "encoder_params.cnn.num_layers=2"


@pytest.mark.parametrize(
    ("overrides", "mentioned"),
    [
        (["predictor_output_dim=32"], ["predictor_output_dim is 32", "latent_dim = 64"]),
        (
            ["frame_skipping=20", "max_steps_per_episode_data_collection=19"],
            ["max_steps_per_episode_data_collection is 19", "frame_skipping = 20"],
        ),
        (
            ["evaluation_split=0.6", "early_stopping.validation_split=0.4"],
            ["early_stopping.validation_split + evaluation_split is 1"],
        ),
        (
            ["encoder_type=vit", "encoder_params.vit.patch_size=10"],
            ["encoder_params.vit.patch_size is 10", "8, 16"],
        ),
        (["encoder_type=vit", "encoder_params.vit.heads=3"], ["encoder_params.vit.dim is 128", "heads = 3"]),
        ([CNN2], ["encoder_params.cnn.num_filters is [32, 64, 64]", "num_layers = 2"]),
        ([CNN2, "encoder_params.cnn.num_filters=8"], ["encoder_params.cnn.kernel_size is [4, 3, 3]"]),
        (
            [CNN2, "encoder_params.cnn.num_filters=8", "encoder_params.cnn.kernel_size=3"],
            ["encoder_params.cnn.stride is [4, 2, 2]"],
        ),
        (["encoder_params.cnn.padding=[0, 1]"], ["encoder_params.cnn.padding is [0, 1]"]),
        (
            ["image_size=8", "encoder_params.cnn.padding=0"],
            ["encoder_params.cnn.kernel_size of layer 2 is 3", "image_size = 8"],
        ),
        (["decoder_patch_size=12"], ["decoder_patch_size is 12", "image_size = 64", "8, 16"]),
        (["decoder_heads=5"], ["decoder_dim is 128", "decoder_heads = 5"]),
        (
            ["jepa_decoder_training.embedding_source=target", "jepa_model.target_encoder_mode=none"],
            ["jepa_decoder_training.embedding_source is target", "target_encoder_mode is none"],
        ),
        (
            ["early_stopping.validation_split=0"],
            ["early_stopping.metric_jepa is val_loss_jepa", "validation_split is 0", "train_loss_jepa"],
        ),
        (
            ["early_stopping.validation_split=0", "early_stopping.metric_jepa=train_loss_jepa"],
            [
                "jepa_decoder_training.early_stopping.metric is val_loss_jepa_decoder",
                "train_loss_jepa_decoder",
            ],
        ),
        (
            ["training_options.skip_jepa_training_if_loaded=true"],
            ["training_options.skip_jepa_training_if_loaded", "load_model_path is null"],
        ),
        (["collection.policy_path=x.zip"], ["collection.policy_path", "collection.policy is smooth_random"]),
        (["jepa_model.target_gradient=true"], ["jepa_model.target_gradient is true", "target_encoder_mode is vjepa2"]),
        (
            ["dynamics_losses.rollout_weight=1", "dynamics_losses.rollout_steps=4", "num_transitions=3"],
            ["dynamics_losses.rollout_steps is 4", "num_transitions is 3"],
        ),
        (["dynamics_losses.temporal_similarity_weight=1"], ["temporal_similarity_weight is 1", "num_transitions is 1"]),
        (["dynamics_losses.inverse_dynamics_weight=2"], ["inverse_dynamics_weight is 2", "num_transitions is 1"]),
        (
            ["dynamics_losses.rollout_weight=1", "num_transitions=4", "jepa_model.predictor_context_length=2"],
            ["jepa_model.predictor_context_length is 2", "num_transitions to 5"],
        ),
        (["planning.context=2"], ["planning.context is 2", "predictor_context_length is 1"]),
        (["planning.num_elites=200"], ["planning.num_elites is 200", "planning.num_samples = 150"]),
        (["planning.replan_every=13"], ["planning.replan_every is 13", "planning.horizon = 12"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], mentioned: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    for words in mentioned:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["predictor_output_dim=64"],
        ["frame_skipping=90"],
        ["encoder_params.vit.patch_size=10"],  # of an encoder that is not used
        ["encoder_type=mlp", CNN2],
        ["decoder_patch_size=12", "jepa_decoder_training.enabled=false"],
        ["decoder_heads=5", "jepa_decoder_training.enabled=false"],
        [
            "early_stopping.validation_split=0",
            "early_stopping.metric_jepa=train_prediction_loss",
            "jepa_decoder_training.enabled=false",
        ],
        ["jepa_decoder_training.embedding_source=target", "jepa_model.target_encoder_mode=default"],
        ["training_options.skip_jepa_training_if_loaded=true", "load_model_path=x.safetensors"],
        ["collection.policy_path=x.zip", "collection.policy=stable_baselines3:PPO"],
        ["jepa_model.target_gradient=true", "jepa_model.target_encoder_mode=none"],
        ["dynamics_losses.rollout_weight=1", "dynamics_losses.rollout_steps=4", "num_transitions=4"],
        ["dynamics_losses.temporal_similarity_weight=1", "jepa_model.target_encoder_mode=none"],
        ["dynamics_losses.inverse_dynamics_weight=1", "jepa_model.target_encoder_mode=default"],
        ["dynamics_losses.inverse_dynamics_weight=1", "num_transitions=2"],
        ["planning.num_elites=150", "planning.replan_every=12"],
        ["planning.planner=mppi", "planning.num_samples=10"],
        ["planning.context=2", "jepa_model.predictor_context_length=3"],
    ],
)
def test_settings_that_only_look_contradictory_are_accepted(overrides: list[str]) -> None:
    load_config(None, overrides)


def test_contradictions_are_found_in_python_too() -> None:
    with pytest.raises(ConfigError, match="predictor_output_dim"):
        Config(predictor_output_dim=3)


# --- notices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["jepa_model.target_encoder_mode=none", "jepa_model.ema_decay=0.5"], "jepa_model.ema_decay"),
        (["auxiliary_loss.type=none", "auxiliary_loss.weight=3"], "auxiliary_loss.weight"),
        (["dynamics_losses.rollout_steps=3"], "dynamics_losses.rollout_steps"),
        (["early_stopping.metric_jepa=latest", "early_stopping.patience=3"], "early_stopping.patience"),
        (["dynamics_losses.inverse_dynamics_hidden_dim=3"], "dynamics_losses.inverse_dynamics_hidden_dim"),
        (["auxiliary_loss.params.vicreg.sim_coeff=1"], "auxiliary_loss.params.vicreg.sim_coeff"),
        (["auxiliary_loss.params.dino.center_ema_decay=0.5"], "auxiliary_loss.params.dino"),
        (
            ["auxiliary_loss.type=dino", "auxiliary_loss.params.vicreg.std_coeff=1"],
            "auxiliary_loss.params.vicreg",
        ),
        (["encoder_params.vit.depth=2"], "encoder_params.vit"),
        (["encoder_params.mlp.num_layers=3"], "encoder_params.mlp"),
        (["encoder_type=vit", "encoder_params.cnn.norm=batch"], "encoder_params.cnn"),
        (
            ["learning_rate=1e-4", "learning_rate_jepa=1e-3", "jepa_decoder_training.learning_rate=1e-3"],
            "learning_rate",
        ),
    ],
)
def test_settings_without_effect_are_said_once(overrides: list[str], key: str) -> None:
    notices = load_config(None, overrides).notices()
    assert len(notices) == 1
    assert notices[0].startswith(f"{key} has no effect")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["jepa_model.target_encoder_mode=none"],
        ["auxiliary_loss.type=none"],
        ["auxiliary_loss.type=dino", "auxiliary_loss.params.dino.center_ema_decay=0.5"],
        ["encoder_type=vit", "encoder_params.vit.depth=2"],
        ["learning_rate=1e-4", "learning_rate_jepa=1e-3", "jepa_decoder_training.learning_rate=null"],
    ],
)
def test_settings_with_effect_are_not_mentioned(overrides: list[str]) -> None:
    assert load_config(None, overrides).notices() == []


# --- the written file -----------------------------------------------------------------------------

TEXTS = [
    "data/x",
    "null",
    "on",
    "a: b # c",
    " spaces ",
    "Füße",
    'it\'s "quoted"',
    "1:30",
    "2020-01-01",
    "~",
    "10",
]


def another(annotation: Any, metadata: list[Any], default: Any, rng: random.Random) -> Any:
    """A random value of a setting's type within its range."""
    low = next((c.ge if hasattr(c, "ge") else c.gt for c in metadata if hasattr(c, "ge") or hasattr(c, "gt")), None)
    origin = get_origin(annotation)
    if choices := [c for c in metadata if isinstance(c, Choice)]:
        return rng.choice(values(choices[0].kind))
    if origin is Annotated:
        base, *constraints = get_args(annotation)
        return another(base, [m for c in constraints for m in getattr(c, "metadata", [])], default, rng)
    if origin is Literal:
        return rng.choice(get_args(annotation))
    if origin in (Union, UnionType):
        return another(rng.choice(get_args(annotation)), metadata, default, rng)
    if origin is list:
        return [another(get_args(annotation)[0], metadata, 2, rng) for _ in range(3)]
    if origin is dict:
        return {rng.choice(TEXTS): rng.choice([1, 2.5, "1", None, True, [1, "x"], {"y": "no"}]) for _ in range(3)}
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {
            name: another(field.annotation, field.metadata, field.default, rng)
            for name, field in annotation.model_fields.items()
            if rng.random() < 0.7
        }
    if annotation is bool:
        return rng.random() < 0.5
    if annotation is int:
        return int(low or 0) + rng.randrange(16)
    if annotation is float:
        return rng.choice([rng.random() * 0.9, 1e-7 + rng.random() * 1e-5, (low or 0) + 0.5])
    if annotation is str:
        patterns = [c.pattern for c in metadata if getattr(c, "pattern", None)]
        if not patterns:
            return rng.choice(TEXTS)
        choices = [
            "x-1.safetensors",
            "1.5.safetensors",
            "cpu",
            "cuda:3",
            "mps",
            "1.50",
            "no",
            "render",
            "observation.a",
        ]
        return rng.choice([choice for choice in choices if re.match(patterns[0], choice)])
    assert annotation is type(None), annotation
    return None


def random_config(rng: random.Random) -> Config:
    """Half of all settings at random; those that contradict others stay as they are."""
    raw: dict[str, Any] = {}
    for key, field in leaves():
        if rng.random() < 0.5:
            continue
        candidate = copy.deepcopy(raw)
        *parents, leaf = key.split(".")
        node = candidate
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = another(field.annotation, field.metadata, field.default, rng)
        try:
            Config.model_validate(candidate)
        except ConfigError:
            continue
        raw = candidate
    return Config.model_validate(raw)


@pytest.mark.parametrize("seed", range(20))
def test_written_configurations_are_read_back_equal(tmp_path: Path, seed: int) -> None:
    config = random_config(random.Random(seed))
    assert config != Config()
    assert load(tmp_path, to_commented_yaml(config)) == config
    assert Config.model_validate(config.to_dict()) == config


def test_random_configurations_change_every_setting() -> None:
    """So that the round trip above is one of every setting."""
    rng, default = random.Random(7), Config()
    unchanged = {key for key, _ in leaves()}
    for _ in range(80):
        config = random_config(rng)
        unchanged = {key for key in unchanged if value_at(config, key) == value_at(default, key)}
    # These need another setting to go with them; the contradictions above cover them.
    assert unchanged <= {
        "predictor_output_dim",
        "model_type",
        "jepa_model.predictor_type",
        "collection.policy_path",
        "encoder_params.cnn.num_layers",
        "image_size",
        "planning.num_samples",
        "planning.context",
        "training_options.skip_jepa_training_if_loaded",
    }


@pytest.mark.parametrize("text", ["1e3", "-1E5", "12e4"])
def test_texts_that_look_like_numbers_are_read_back_as_texts(tmp_path: Path, text: str) -> None:
    config = Config(dataset_dir=text)
    assert load(tmp_path, to_commented_yaml(config)) == config


@pytest.mark.parametrize("text", ["a\nb", "a\n\nb\n", "\t", "'", '"', "- x", "{x}", "%", "@x", "&a", "*a", "!t", "|"])
def test_any_text_is_read_back(tmp_path: Path, text: str) -> None:
    config = Config(dataset_dir=text, environment_kwargs={text: text})
    assert load(tmp_path, to_commented_yaml(config)) == config


def test_every_setting_is_written_below_a_comment_of_its_own() -> None:
    lines = to_commented_yaml().splitlines()
    found = []
    for before, line in itertools.pairwise(lines):
        if line and not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), line
            found.append(line.split(":")[0].strip())
    sections = {"collection", "encoder_params", "jepa_model", "auxiliary_loss", "early_stopping", "logging"}
    assert sections <= set(found)
    assert {key.rsplit(".", 1)[-1] for key, _ in leaves()} <= set(found)
    assert max(len(line) for line in lines) <= 110
    raw = parse_yaml(to_commented_yaml(), "test")
    for key, _ in leaves():
        value_at(raw, key)


def test_every_setting_has_a_description() -> None:
    def check(section: type[Section]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                check(field.annotation)

    check(Config)


def test_tiny_config_merges_sections(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(jepa_model={"ema_decay": 0.5})
    assert config.jepa_model.ema_decay == 0.5
    assert config.jepa_model.predictor_hidden_dim == 16
    assert config.notices() == [] or all("has no effect" in notice for notice in config.notices())


# --- recipes and components ------------------------------------------------------------------------


def test_a_folder_with_the_name_of_a_recipe_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two_room").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("two_room") == load_config(ROOT / "configs" / "two_room.yaml")


def test_a_constructor_with_the_parameter_settings_is_given_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(Section):
        width: int = 3

    class Outside:
        Settings = Wide
        forward = None

        def __init__(self, settings: Wide, latent_dim: int) -> None:
            self.settings, self.latent_dim = settings, latent_dim

    monkeypatch.setenv("JEPAWORLD_TRUST", "1")
    monkeypatch.setitem(sys.modules, "outside", SimpleNamespace(Outside=Outside))
    config = load_config(None, ["encoder_type=outside:Outside", "encoder_params.custom.width=5"])
    made = components.make("encoder", config, latent_dim=config.latent_dim, unknown=0)
    assert made.settings == Wide(width=5) and made.latent_dim == 64


@pytest.mark.parametrize("by_override", [True, False])
def test_an_old_name_is_pointed_out_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, by_override: bool) -> None:
    _say_renamed.cache_clear()
    path, old = tmp_path / "config.yaml", "plannable: {temporal_similarity_weight: 2}\nnum_transitions: 4\n"
    path.write_text("num_transitions: 4\n" if by_override else old)
    overrides = ["plannable.temporal_similarity_weight=2"] if by_override else []
    for _ in range(2):
        assert load_config(path, overrides, trust=True).dynamics_losses.temporal_similarity_weight == 2.0
    assert len(caplog.messages) == 1 and "dynamics_losses" in caplog.messages[0]
