"""Settings of planning: losses on dynamics, how plans are searched, how success is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jepaworld.config.components import Choice, ComponentSettings
from jepaworld.config.fields import JsonDict, NonEmpty, PositiveInt, Section, section, setting


class DynamicsLossesConfig(Section):
    """Losses on dynamics that make embeddings fit for planning; off by default. See docs/planning.md."""

    temporal_similarity_weight: float = setting(
        0.0, "Weight of the mean squared step from frame to frame, so that distance grows with time.", ge=0.0
    )
    time_variance_weight: float = setting(
        0.0, "Weight of a hinge that wants each embedding dimension to vary by 1 within a window.", ge=0.0
    )
    inverse_dynamics_weight: float = setting(
        0.0, "Weight of reading the action from the embeddings around it, which keeps what it moves.", ge=0.0
    )
    inverse_dynamics_hidden_dim: int = setting(256, "Hidden width of the inverse-dynamics head.", ge=1)
    rollout_weight: float = setting(
        0.0, "Weight of the prediction loss of rollout_steps imagined steps, trained through all.", ge=0.0
    )
    rollout_steps: int = setting(
        4, "Imagined steps; num_transitions must hold them after the context.", unit="transitions", ge=2
    )


class PlanningCostConfig(Section):
    """What a plan is judged by."""

    metric: Literal["l2", "l1", "cosine"] = setting(
        "l2", "Distance between imagined and goal embedding: l2 is the mean squared, l1 the mean absolute difference."
    )
    path: Literal["mean", "sum", "discounted", "last"] = setting(
        "mean", "Steps that count: mean or sum over all, a sum discounted towards the end, or the last alone."
    )
    discount: float = setting(0.9, "Weight of a step relative to the one before it, with path discounted.", gt=0.0)
    last_weight: float = setting(0.0, "Weight of the last step's distance, added to that of the path.", ge=0.0)
    action_penalty: float = setting(
        0.0, "Weight of the mean squared action, each bounded entry scaled to [-1, 1].", ge=0.0
    )


class PlanningConfig(ComponentSettings):
    """How a trained model plans; no influence on training. The settings of the planners share this section."""

    kind = "planner"
    planner: Annotated[str, Choice("planner")] = setting(
        "auto", "How plans are searched. auto: cem, for discrete actions categorical_cem. See docs/planning.md."
    )
    horizon: int = setting(12, "Steps of a plan.", unit="action blocks", ge=1)
    replan_every: int = setting(1, "Steps of a plan that are played before the next one is made.", ge=1)
    custom: JsonDict = setting({}, "Settings of a planner from outside.")
    warm_start: bool = setting(True, "Begin from the rest of the previous plan.")
    context: PositiveInt | None = setting(
        None, "Latest frames that the model sees; null means as many as its predictor uses.", unit="frames"
    )
    memory_megabytes: int = setting(
        2048, "Memory for imagined plans, as estimated; the rest is imagined in turn.", unit="MiB", ge=1
    )
    max_candidates: PositiveInt | None = setting(
        None, "Beside memory_megabytes, a limit on the candidate plans that are imagined at once; null for none."
    )
    cost: PlanningCostConfig = section(PlanningCostConfig, "What a plan is judged by.")


class SuccessCondition(Section):
    """A state variable that must be near its value at the goal."""

    variable: NonEmpty = setting("state", "Name of the state variable, as `jepaworld inspect` lists it.")
    indices: list[Annotated[int, Field(ge=0)]] | None = setting(None, "Entries that count; null for all.")
    distance: float = setting(1.0, "Largest Euclidean distance that counts as reached, in the variable's unit.", gt=0.0)
    period: float | None = setting(
        None, "Period of an angle, such as 6.283185: differences are taken the short way round.", gt=0.0
    )


class RestCondition(Section):
    """A velocity that must be small where an agent is to be at rest."""

    variable: NonEmpty = setting("velocity", "Name of the state variable, as `jepaworld inspect` lists it.")
    indices: list[Annotated[int, Field(ge=0)]] | None = setting(None, "Entries that count; null for all.")
    limit: float = setting(0.1, "Largest Euclidean norm that counts as rest, in the variable's unit.", ge=0.0)


class EvaluationConfig(Section):
    """How planning success is measured; no influence on training."""

    num_episodes: int = setting(200, "Episodes to play.", unit="episodes", ge=1)
    max_steps: int = setting(200, "Steps in which the goal must be reached.", unit="environment steps", ge=1)
    goals: Literal["auto", "recorded", "environment"] = setting(
        "auto",
        "Where starts and goals come from. recorded: start and goal, goal_steps later, of a held-out episode. "
        "environment: both as the environment draws them, which needs an environment that shows its goal. auto: "
        "environment if it can, else recorded.",
    )
    split: Literal["evaluation", "validation"] = setting(
        "evaluation", "Held-out episodes of recorded goals. Tune on validation, publish on evaluation."
    )
    goal_steps: int = setting(25, "With goals recorded: steps from start to goal.", unit="environment steps", ge=1)
    restore: Literal["auto", "state", "replay"] = setting(
        "auto",
        "How a recorded start is brought about: by setting the environment's state, or by replaying the episode's seed "
        "and actions. auto: state if the environment can, else replay.",
    )
    history: bool = setting(
        True,
        "Hand a model whose predictor looks back the recorded frames and actions before a recorded start; false: its "
        "first plan sees the start alone.",
    )
    success: list[SuccessCondition] | None = setting(
        None, "Conditions that must all hold; null: the environment's own success (info success or is_success)."
    )
    rest: list[RestCondition] | None = setting(
        None, "Velocities that are small at rest, all of them; success at the end and at rest is then told too."
    )
    ignored_variables: list[NonEmpty] = setting(
        [], "State variables that need not be as recorded at a restored start, such as a clock."
    )
    reset_options: list[JsonDict] = setting(
        [], "With goals environment: options for its reset, taken in turn; success is reported for each apart too."
    )
    num_envs: int = setting(50, "Environments that are played side by side, in one process.", ge=1)
    planner_seeds: int = setting(
        1,
        "Streams of the planner's random numbers that the tasks are played with; with several, the spread is told.",
        ge=1,
    )
    seed: int = setting(0, "Seed of starts, goals, planners and the random policy.", ge=0, lt=2**31)
