"""Measurements on trained models: collapse diagnostics, probes, imagination error."""

from jepaworld.evaluation.encoding import encode_frames, evaluation_mode, sample_rows
from jepaworld.evaluation.imagination import Windows, choose_windows, imagination_error, imagine
from jepaworld.evaluation.linear_probe import LinearProbe, fit_linear_probe
from jepaworld.evaluation.mlp_probe import MLPProbe, fit_mlp_probe
from jepaworld.evaluation.probes import mean_r2, probe_states
from jepaworld.evaluation.results import Imagination, MLPReading, Probe, Results, StateError
from jepaworld.evaluation.scores import bootstrap_r2, r2_score
from jepaworld.evaluation.state_probes import StateProbe, choose_state_probes
from jepaworld.losses.collapse import CollapseDiagnostics, collapse_diagnostics, judge_collapse

__all__ = [
    "CollapseDiagnostics",
    "Imagination",
    "LinearProbe",
    "MLPProbe",
    "MLPReading",
    "Probe",
    "Results",
    "StateError",
    "StateProbe",
    "Windows",
    "bootstrap_r2",
    "choose_state_probes",
    "choose_windows",
    "collapse_diagnostics",
    "encode_frames",
    "evaluation_mode",
    "fit_linear_probe",
    "fit_mlp_probe",
    "imagination_error",
    "imagine",
    "judge_collapse",
    "mean_r2",
    "probe_states",
    "r2_score",
    "sample_rows",
]
