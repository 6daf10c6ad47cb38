"""Measurements on trained models: collapse diagnostics, probes, imagination error."""

from jepaworld.evaluation.encoding import encode_frames, sample_rows
from jepaworld.evaluation.imagination import imagination_error, imagine
from jepaworld.evaluation.probes import StateProbe, choose_state_probes, mean_r2, probe_states
from jepaworld.evaluation.regression import fit_linear_probe, fit_mlp_probe
from jepaworld.evaluation.results import Imagination, Probe, Results
from jepaworld.losses.collapse import CollapseDiagnostics, collapse_diagnostics, judge_collapse

__all__ = [
    "CollapseDiagnostics",
    "Imagination",
    "Probe",
    "Results",
    "StateProbe",
    "choose_state_probes",
    "collapse_diagnostics",
    "encode_frames",
    "fit_linear_probe",
    "fit_mlp_probe",
    "imagination_error",
    "imagine",
    "judge_collapse",
    "mean_r2",
    "probe_states",
    "sample_rows",
]
