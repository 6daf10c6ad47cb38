"""Measurements on trained models: collapse diagnostics, linear probes, imagination error."""

from jepaworld.evaluation.collapse import CollapseDiagnostics, collapse_diagnostics
from jepaworld.evaluation.encoding import encode_frames, evaluation_mode, gather_rows, sample_rows
from jepaworld.evaluation.imagination import ImaginationResult, StateError, imagination_error, imagine
from jepaworld.evaluation.probes import (
    LinearProbe,
    ProbeResult,
    bootstrap_r2,
    fit_linear_probe,
    mean_r2,
    probe_states,
    r2_score,
)

__all__ = [
    "CollapseDiagnostics",
    "ImaginationResult",
    "LinearProbe",
    "ProbeResult",
    "StateError",
    "bootstrap_r2",
    "collapse_diagnostics",
    "encode_frames",
    "evaluation_mode",
    "fit_linear_probe",
    "gather_rows",
    "imagination_error",
    "imagine",
    "mean_r2",
    "probe_states",
    "r2_score",
    "sample_rows",
]
