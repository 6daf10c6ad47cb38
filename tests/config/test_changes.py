"""Which settings may change after training: whatever shapes data, split, model or what was trained may not."""

from __future__ import annotations

import pytest

from jepaworld.config.changes import DECODE, EVALUATION, PLANNING, require_equal, unseen
from jepaworld.config.loading import load_config
from jepaworld.errors import ConfigError

MACHINE = {"device=cpu", "execution=eager"}
LATER = {"planning.horizon=3", "evaluation.num_episodes=7"}
DECODER = {"jepa_decoder_training.num_epochs=3", "decoder_depth=2"}
# One for each way to spoil a comparison: held-out episodes, data, model, losses, optimisation, what is kept as best.
TRAINED = {
    "evaluation_split=0.3",
    "early_stopping.validation_split=0.2",
    "early_stopping.patience=2",
    "collection.seed=4",
    "environment_name=CartPole-v1",
    "frame_skipping=2",
    "image_size=32",
    "num_transitions=7",
    "encoder_type=mlp",
    "latent_dim=8",
    "jepa_model.ema_decay=0.5",
    "auxiliary_loss.weight=3",
    "seed=9",
    "batch_size=7",
    "num_epochs=2",
}
OTHERS = {"learning_rate=0.5", "mixed_precision=off", "logging.log_every_steps=3", "checkpoint_every_steps=2"}
LOGS = {"logging.log_every_steps=3", "checkpoint_every_steps=2"}
ALLOWED = {
    EVALUATION: LATER | {"device=cpu", "mixed_precision=off"},
    PLANNING: {"planning.horizon=3", "mixed_precision=off"},
    DECODE: DECODER | MACHINE | {"mixed_precision=off", "logging.log_every_steps=3"},
    unseen("jepa", load_config()): LATER | DECODER | MACHINE | LOGS,
    unseen("decoder", load_config()): LATER | MACHINE | LOGS,
}


@pytest.mark.parametrize("table", list(ALLOWED), ids=["evaluate", "policy", "decode", "resume jepa", "resume decoder"])
def test_who_may_change_what(table: tuple[str, ...]) -> None:
    trained = load_config("two_room", ["data_location=device"])
    for override in TRAINED | LATER | DECODER | MACHINE | OTHERS:
        changed = trained.with_overrides([override])
        assert changed != trained, override
        if override in ALLOWED[table]:
            require_equal(trained, changed, table, "")
        else:
            with pytest.raises(ConfigError, match=override.partition("=")[0]):
                require_equal(trained, changed, table, "")
