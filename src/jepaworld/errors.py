"""Errors that a user can cause.

Each message names the setting or file, the value seen and what to do. Commands print the message without a
traceback and end with exit code 2 (`cli.py`); from Python they are ordinary exceptions.
"""


class JepaworldError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(JepaworldError):
    """A setting is unknown, has a wrong type or value, or contradicts another one."""


class EnvironmentNotUsableError(JepaworldError):
    """An environment does not exist, lacks an installed extra, cannot render, or has an unsupported space."""


class EnvironmentFailedError(EnvironmentNotUsableError):
    """An environment raised while it was played; the message says where, a note has the traceback.

    Attributes:
        call: What was called: "reset", "step", "render" or the name of another method.
    """

    call: str = ""


class DatasetError(JepaworldError):
    """A dataset folder is missing, truncated, altered, of another schema version or of another environment."""


class CheckpointError(JepaworldError):
    """A checkpoint is missing, damaged, or belongs to another architecture."""


class StorageError(JepaworldError, OSError):
    """A file or folder cannot be written: permissions, or no space left."""


class PlanningError(JepaworldError):
    """A plan or an evaluation is not possible: cost, goal, horizon, or an environment that cannot be restored."""


class NonFiniteLossError(JepaworldError, FloatingPointError):
    """A loss term became NaN or infinite; the message has the step, the term and the last good checkpoint."""
