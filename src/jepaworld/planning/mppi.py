"""Model-predictive path integral control. Shapes: B environments, S candidate plans, P plan steps, A block numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from jepaworld.config.components import component
from jepaworld.config.fields import setting
from jepaworld.planning.cem import MIN_STD, RETURNED, GaussianPlanner, Returned, SmoothSettings
from jepaworld.planning.planner import IterationSettings, Plan, Scorer


class MPPISettings(SmoothSettings, IterationSettings):
    """Of `MPPI`."""

    min_std: float = MIN_STD
    returned: Returned = RETURNED
    temperature: float = setting(
        0.1, "Softness of mppi, relative to the spread of the candidates' costs; small follows the best.", gt=0.0
    )


@component("planner", "mppi")
class MPPI(GaussianPlanner[MPPISettings]):
    """Model-predictive path integral control (MPPI, arXiv 1707.02342).

    The new mean is the average of all candidates with weights softmax(-(cost - lowest cost) / (temperature * spread)).
    Differs from the paper in: the temperature is relative to the spread of the candidates' costs in this environment
    and iteration, so that it need not be tuned to the scale of an embedding; several iterations,
    whose standard deviation follows the weighted candidates down to a floor; noise correlated over environment steps;
    no control cost of its own (see `planning.cost.action_penalty`); and the best plan seen, the last mean among
    them, as the result, unless `returned` is "mean".
    """

    name = "mppi"
    Settings = MPPISettings

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        mean, std, mixing = self._start(num_envs, horizon, warm_start)
        for _ in range(self.settings.num_iterations):
            candidates = self._draw(mean, std, mixing, self.settings.num_samples)
            weights = self.weights(score(candidates))[..., None, None]
            mean = (weights * candidates).sum(dim=1)
            variance = (weights * (candidates - mean.unsqueeze(1)).square()).sum(dim=1)
            std = variance.sqrt().clamp(min=self.settings.min_std)
        return self._returned(score, mean, self.settings.returned)

    def weights(self, costs: Tensor) -> Tensor:
        """Weights (B, S) of candidates, which sum to 1 for each environment, from their costs (B, S).

        The spread is the standard deviation of the costs without outliers: those further above the lowest cost than
        50 times the best eighth of the candidates reaches. Ordinary costs have none. A large penalty on some candidates
        would otherwise make the spread so wide that all others weigh the same; on more than seven of eight it still
        does.
        """
        allowed = costs.isfinite()
        costs = torch.where(allowed.any(dim=1, keepdim=True), costs, 0.0)  # all are forbidden: none is better
        ordered = costs.sort(dim=1).values
        lowest, eighth = ordered[:, :1], allowed.sum(dim=1, keepdim=True).add(6).div(8, rounding_mode="floor")
        ordinary = costs <= lowest + 50.0 * (ordered.gather(1, eighth) - lowest)
        excess = costs - lowest
        number = ordinary.sum(dim=1, keepdim=True)
        mean = torch.where(ordinary, excess, 0.0).sum(dim=1, keepdim=True) / number
        spread = torch.where(ordinary, excess - mean, 0.0).square().sum(dim=1, keepdim=True).div(number).sqrt()
        scale = (self.settings.temperature * spread).clamp(min=torch.finfo(costs.dtype).tiny)
        return torch.softmax(-excess / scale, dim=1)
