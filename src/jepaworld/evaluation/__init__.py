"""Measurements on trained models: collapse diagnostics, probes, imagination error."""

from jepaworld.evaluation.encoding import encode_frames, evaluation_mode, sample_rows
from jepaworld.evaluation.imagination import ImaginationResult, StateError, imagination_error, imagine
from jepaworld.evaluation.linear_probe import LinearProbe, fit_linear_probe
from jepaworld.evaluation.mlp_probe import MLPProbe, fit_mlp_probe
from jepaworld.evaluation.probes import MLPReading, ProbeResult, mean_r2, probe_states
from jepaworld.evaluation.scores import bootstrap_r2, r2_score
from jepaworld.evaluation.state_probes import StateProbe, choose_state_probes
from jepaworld.losses.collapse import CollapseDiagnostics, collapse_diagnostics

__all__ = [
    "CollapseDiagnostics",
    "ImaginationResult",
    "LinearProbe",
    "MLPProbe",
    "MLPReading",
    "ProbeResult",
    "StateError",
    "StateProbe",
    "bootstrap_r2",
    "choose_state_probes",
    "collapse_diagnostics",
    "encode_frames",
    "evaluation_mode",
    "fit_linear_probe",
    "fit_mlp_probe",
    "imagination_error",
    "imagine",
    "mean_r2",
    "probe_states",
    "r2_score",
    "sample_rows",
]
