"""Planners on costs whose optimum is known."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from jepaworld.config.planning import PlanningConfig
from jepaworld.errors import ConfigError, PlanningError
from jepaworld.planning import CEM, ICEM, MPPI, CategoricalCEM, GradientPlanner, PlanSpace, RandomShooting, make_planner
from jepaworld.planning.discrete import draw_categorical
from jepaworld.planning.planner import elites_of

BOX = Box(low=torch.tensor([-1.0, 0.0]).numpy(), high=torch.tensor([3.0, 0.5]).numpy())
SPACE = PlanSpace.of(BOX, 2)  # blocks of 2 steps of 2 entries
HORIZON = 3
INSIDE = torch.tensor([[0.3, 0.1], [2.0, 0.4], [-0.5, 0.25]])
BEYOND = torch.tensor([[5.0, 0.1], [-4.0, 0.4], [1.0, 0.8]])
SEARCHES = {
    "cem": CEM(SPACE, CEM.Settings(num_samples=200, num_iterations=25, min_std=0.005)),
    "icem": ICEM(SPACE, ICEM.Settings(num_samples=200, num_iterations=25, min_std=0.005)),
    "mppi": MPPI(SPACE, MPPI.Settings(num_samples=200, num_iterations=60, min_std=0.005, temperature=1.0)),
    "gradient": GradientPlanner(SPACE, GradientPlanner.Settings(num_iterations=120, num_samples=4, learning_rate=0.05)),
}


def _quadratic(optima: torch.Tensor):
    """A cost for each environment, least at `optima` (B, 2) in every environment step."""

    def cost(candidates: torch.Tensor) -> torch.Tensor:
        assert candidates.dtype == torch.float32
        return (candidates.unflatten(-1, (2, 2)) - optima[:, None, None, None]).square().mean(dim=(2, 3, 4))

    return cost


@pytest.mark.parametrize("optima", [INSIDE, BEYOND], ids=["inside", "at the bounds"])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_optimum_is_found_in_every_environment(name, optima) -> None:
    plan = SEARCHES[name].plan(_quadratic(optima), 3, HORIZON)
    expected = torch.maximum(torch.minimum(optima, SPACE.high[:2]), SPACE.low[:2])
    found = plan.actions.unflatten(-1, (2, 2))
    assert plan.actions.shape == (3, HORIZON, 4)
    near = 0.1 if name == "icem" else 0.04  # its red noise seldom moves one step alone
    torch.testing.assert_close(found, expected[:, None, None].expand_as(found), atol=near, rtol=0.0)
    torch.testing.assert_close(plan.cost, _quadratic(optima)(plan.actions.unsqueeze(1))[:, 0])
    for block in SPACE.split(plan.actions).reshape(-1, 2):
        assert BOX.contains(block)


def test_random_shooting_is_the_best_of_its_draws() -> None:
    asked = []

    def cost(candidates):
        asked.append(candidates)
        return _quadratic(INSIDE)(candidates)

    plan = RandomShooting(SPACE, RandomShooting.Settings(num_samples=50)).plan(cost, 3, HORIZON)
    assert [len(one[0]) for one in asked] == [50]
    torch.testing.assert_close(plan.cost, _quadratic(INSIDE)(asked[0]).min(dim=1).values)
    torch.testing.assert_close(plan.cost, _quadratic(INSIDE)(plan.actions.unsqueeze(1))[:, 0])
    better = RandomShooting(SPACE, RandomShooting.Settings(num_samples=5000)).plan(cost, 3, HORIZON)
    assert bool((better.cost < plan.cost).all())


def test_unbounded_actions_leave_the_unit_interval() -> None:
    space = PlanSpace.of(Box(-float("inf"), float("inf"), (1,)))
    for planner in (CEM, ICEM, MPPI):
        search = planner(space, planner.Settings(num_samples=300, num_iterations=30, initial_std=3.0, min_std=0.01))
        plan = search.plan(lambda candidates: (candidates - 7.0).square().mean(dim=(2, 3)), 2, 2)
        torch.testing.assert_close(plan.actions, torch.full((2, 2, 1), 7.0), atol=0.1, rtol=0.0)


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient", "random_shooting", "categorical_cem"])
def test_plans_follow_from_the_seed(name) -> None:
    space = PlanSpace.of(Discrete(5), 2) if name == "categorical_cem" else SPACE
    settings = PlanningConfig(planner=name, num_samples=30, num_elites=5, num_iterations=3)

    def cost(candidates):
        # Not so easy that every seed finds the same plan.
        return (candidates.float() * 3.7).sin().sum(dim=(2, 3)) + candidates.float().sum(dim=(2, 3)).cos()

    def play(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed + 7)  # the global generator has no say
        torch.rand(seed + 1)
        planner = make_planner(settings, space, 0 if seed == 1 else seed)
        first = planner.plan(cost, 3, 4)
        return [first.actions, planner.plan(cost, 3, 4, planner.shift(first, 1)).actions]

    a, b, other = play(0), play(1), play(2)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, other, strict=True))


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI, GradientPlanner, RandomShooting])
def test_a_warm_start_is_never_made_worse(planner) -> None:
    optimum = _quadratic(INSIDE)
    good = CEM(SPACE, CEM.Settings(num_iterations=30, min_std=0.001)).plan(optimum, 3, HORIZON)
    kwargs = {} if planner is RandomShooting else {"num_iterations": 1}
    if planner in (CEM, ICEM):
        kwargs["num_elites"] = 2
    warm = planner(SPACE, planner.Settings(num_samples=3, **kwargs))
    center_cost = optimum(SPACE.to_real(good.center).unsqueeze(1))[:, 0]
    assert bool((warm.plan(optimum, 3, HORIZON, good).cost <= center_cost + 1e-7).all())
    cold = planner(SPACE, planner.Settings(num_samples=3, **kwargs)).plan(optimum, 3, HORIZON)
    assert bool((cold.cost > center_cost + 1e-3).all())


def test_a_plan_is_shifted_by_what_was_played() -> None:
    planner = CEM(SPACE)
    plan = planner.plan(_quadratic(INSIDE), 3, 5)
    shifted = planner.shift(plan, 2)
    torch.testing.assert_close(shifted.center[:, :3], plan.center[:, 2:])
    torch.testing.assert_close(shifted.center[:, 3:], torch.zeros(3, 2, 4))
    torch.testing.assert_close(planner.shift(plan, 5).center, torch.zeros(3, 5, 4))


@pytest.mark.parametrize("kind", [CEM, ICEM, MPPI])
def test_the_mean_of_the_last_iteration_is_returned_where_it_is_asked_for(kind) -> None:
    """Candidates seldom hit a far corner of many numbers, and the mean of the last iteration is not the best seen."""
    space = PlanSpace.of(Box(-1, 1, (2,)))

    def cost(candidates):
        return (candidates - 0.9).square().sum(dim=(2, 3)).sqrt()

    plans = {}
    for returned in ("best", "mean"):
        planner = kind(space, kind.Settings(num_samples=40, num_iterations=2, returned=returned), seed=3)
        plans[returned] = planner.plan(cost, num_envs=3, horizon=4)
    best, mean = plans["best"], plans["mean"]
    torch.testing.assert_close(mean.actions, space.to_real(mean.center))
    torch.testing.assert_close(mean.cost, cost(mean.actions.unsqueeze(1))[:, 0])
    assert torch.equal(best.center, mean.center) and (best.cost <= mean.cost).all()
    assert not torch.equal(best.actions, mean.actions)


def test_a_mean_that_is_forbidden_is_not_returned() -> None:
    """Everything but the middle is allowed, which is where the mean of two equal halves lies."""

    def cost(candidates):
        size = candidates.abs().amin(dim=(2, 3))
        return torch.where(size > 0.2, size, torch.inf)

    planner = CEM(PlanSpace.of(Box(-1, 1, (1,))), CEM.Settings(num_iterations=1, returned="mean"), seed=0)
    plan = planner.plan(cost, num_envs=4, horizon=1)
    assert plan.cost.isfinite().all() and (plan.actions.abs() > 0.2).all()
    assert torch.equal(plan.cost, cost(plan.actions.unsqueeze(1))[:, 0])
    assert (plan.center.abs() < 0.2).any()


def test_icem_keeps_elites_within_and_across_searches() -> None:
    sizes = []

    def cost(candidates):
        sizes.append(candidates.shape[1])
        return _quadratic(INSIDE)(candidates)

    planner = ICEM(SPACE, ICEM.Settings(num_samples=100, num_iterations=4, num_elites=30, kept_elites=0.1))
    plan = planner.plan(cost, 3, HORIZON)
    assert sizes == [100, 80, 64, 60, 1]  # fewer and fewer, but twice the elites; the last mean
    assert plan.elites is not None and plan.elites.shape == (3, 3, HORIZON, 4)
    costs = _quadratic(INSIDE)(SPACE.to_real(plan.elites))
    assert bool((costs.diff(dim=1) >= 0).all())
    shifted = planner.shift(plan, 1)
    assert shifted.elites is not None
    torch.testing.assert_close(shifted.elites[:, :, :-1], plan.elites[:, :, 1:])
    assert not torch.equal(shifted.elites[:, 0, -1], shifted.elites[:, 1, -1])
    assert bool((shifted.elites.abs() <= 1).all())
    sizes.clear()
    planner.plan(cost, 3, HORIZON, shifted)
    assert sizes == [3, 100, 80, 64, 60, 1]


def test_icem_without_kept_elites_keeps_none() -> None:
    planner = ICEM(SPACE, ICEM.Settings(num_samples=20, num_elites=5, kept_elites=0.0))
    plan = planner.plan(_quadratic(INSIDE), 3, HORIZON)
    assert plan.elites is None and planner.shift(plan, 1).elites is None


def test_mppi_weights_do_not_depend_on_the_scale_of_the_cost() -> None:
    planner = MPPI(SPACE, MPPI.Settings(temperature=0.5))
    costs = torch.tensor([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]])
    spread = costs[0].std(correction=0)
    expected = torch.softmax(-(costs[0] - 1.0) / (0.5 * spread), dim=0)
    weights = planner.weights(costs)
    torch.testing.assert_close(weights[0], expected)
    torch.testing.assert_close(weights[1], torch.full((3,), 1 / 3))
    torch.testing.assert_close(planner.weights(1e-6 * costs + 3e-6)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_planner_leaves_a_bound_that_it_began_at() -> None:
    planner = GradientPlanner(SPACE, GradientPlanner.Settings(num_samples=1, num_iterations=100, learning_rate=0.05))
    start = planner.plan(_quadratic(torch.tensor([[9.0, 9.0]])), 1, HORIZON)
    assert bool((start.center == 1.0).all())
    plan = planner.plan(_quadratic(INSIDE[:1]), 1, HORIZON, start)
    torch.testing.assert_close(plan.actions[..., :2], INSIDE[:1].expand(1, HORIZON, 2), atol=0.04, rtol=0.0)


def test_the_gradient_planner_makes_at_most_32_starts() -> None:
    sizes = []

    def cost(candidates):
        sizes.append(candidates.shape[1])
        return _quadratic(INSIDE)(candidates)

    make_planner(PlanningConfig(planner="gradient", num_samples=40, num_iterations=2), SPACE).plan(cost, 3, HORIZON)
    assert set(sizes) == {32}


def test_the_last_step_of_the_gradient_planner_counts() -> None:
    planner = GradientPlanner(SPACE, GradientPlanner.Settings(num_samples=1, num_iterations=1, learning_rate=0.01))
    start = SPACE.to_real(torch.zeros(3, 1, HORIZON, 4))
    assert bool((planner.plan(_quadratic(INSIDE), 3, HORIZON).cost < _quadratic(INSIDE)(start)[:, 0]).all())


@pytest.mark.parametrize(
    "cost",
    [
        lambda c: c.detach().sum((2, 3)),
        lambda c: torch.zeros(2, c.shape[1]),
        lambda c: c.detach().sum((2, 3)) * torch.ones((), requires_grad=True),
    ],
)
def test_the_gradient_planner_says_that_no_gradient_comes(cost) -> None:
    with pytest.raises(PlanningError, match="no gradient comes back"):
        GradientPlanner(SPACE).plan(cost, 2, HORIZON)


def test_categorical_cem_finds_the_plan() -> None:
    space = PlanSpace.of(Discrete(6, start=10), 2)
    target = torch.randint(10, 16, (3, 4, 2))

    def cost(candidates):
        assert candidates.dtype == torch.int64 and candidates.min() >= 10 and candidates.max() < 16
        return (candidates != target[:, None]).float().mean(dim=(2, 3))

    planner = make_planner(PlanningConfig(num_samples=200, num_iterations=10), space)
    assert isinstance(planner, CategoricalCEM)
    plan = planner.plan(cost, 3, 4)
    assert torch.equal(plan.actions, target) and plan.cost.tolist() == [0.0] * 3
    assert plan.center.shape == (3, 4, 2, 6)
    torch.testing.assert_close(plan.center.sum(dim=-1), torch.ones(3, 4, 2))
    assert plan.center.min() >= 0.1 / 6 - 1e-6  # no action dies out
    shifted = planner.shift(plan, 3)
    torch.testing.assert_close(shifted.center[:, :1], plan.center[:, 3:])
    torch.testing.assert_close(shifted.center[:, 1:], torch.full((3, 3, 2, 6), 1 / 6))
    again = CategoricalCEM(space, CategoricalCEM.Settings(num_samples=2, num_elites=1, num_iterations=1)).plan(
        cost, 3, 4, plan
    )
    assert again.cost.tolist() == [0.0] * 3  # the most probable plan is a candidate


def test_categorical_draws_have_their_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2]).expand(2, 1, 1, 4)
    drawn = draw_categorical(probabilities, 20000, [torch.Generator().manual_seed(n) for n in range(2)])
    assert drawn.shape == (2, 20000, 1, 1)
    frequencies = torch.bincount(drawn.flatten(), minlength=4) / 40000
    torch.testing.assert_close(frequencies, probabilities[0, 0, 0], atol=0.01, rtol=0.0)
    assert frequencies[1] == 0


def test_random_shooting_draws_every_discrete_action() -> None:
    space = PlanSpace.of(Discrete(3, start=4), 2)
    seen = []
    RandomShooting(space, RandomShooting.Settings(num_samples=100)).plan(
        lambda c: (seen.append(c), c.float().sum((2, 3)))[1], 2, 3
    )
    assert seen[0].unique().tolist() == [4, 5, 6]


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient"])
def test_planners_of_continuous_actions_refuse_discrete_ones(name) -> None:
    with pytest.raises(ConfigError, match=rf"planning\.planner is {name}.*categorical_cem.*Discrete\(3\)"):
        make_planner(PlanningConfig(planner=name), PlanSpace.of(Discrete(3)))


def test_categorical_cem_refuses_continuous_actions() -> None:
    with pytest.raises(ConfigError, match=r"planning\.planner is categorical_cem.*cem.*Box"):
        make_planner(PlanningConfig(planner="categorical_cem"), SPACE)


@pytest.mark.parametrize("planner", [CEM, ICEM, CategoricalCEM])
def test_more_elites_than_candidates_are_refused(planner) -> None:
    space = PlanSpace.of(Discrete(3)) if planner is CategoricalCEM else SPACE
    with pytest.raises(ConfigError, match=r"planning\.num_elites is 8"):
        planner(space, planner.Settings(num_samples=7, num_elites=8))


# --- forbidden candidates and costs that are no numbers

ALL = ["cem", "icem", "mppi", "gradient", "random_shooting", "categorical_cem"]


def _search(name: str, **settings):
    space = PlanSpace.of(Discrete(5), 2) if name == "categorical_cem" else SPACE
    return make_planner(PlanningConfig(planner=name, **{"num_samples": 40, "num_elites": 20} | settings), space)


def _spoilt(bad: float, where):
    """A cost that is `bad` for the candidates that `where` says."""

    def cost(candidates):
        # The slope is that of the sum, so that no candidate of the gradient planner stands still.
        return torch.where(where(candidates), bad, candidates.float().mean(dim=(2, 3)))

    return cost


@pytest.mark.parametrize("name", ALL)
def test_forbidden_candidates_are_never_chosen_while_there_are_others(name) -> None:
    """All but every seventh are forbidden, fewer than there are elites; the cost alone would choose the forbidden."""
    asked = []

    def cost(candidates):
        number = torch.arange(candidates.shape[1])
        forbidden = (number % 7 != 3) if candidates.shape[1] > 1 else number < 0
        costs = candidates.float().mean(dim=(2, 3))
        asked.append(torch.where(forbidden, float("inf"), costs))
        return asked[-1]

    plan = _search(name).plan(cost, 3, HORIZON)
    lowest = torch.cat([costs.detach() for costs in asked], dim=1).min(dim=1).values
    assert bool(plan.cost.isfinite().all())
    torch.testing.assert_close(plan.cost, lowest)


@pytest.mark.parametrize("name", ["cem", "icem", "mppi"])
def test_a_search_converges_beside_what_is_forbidden_or_penalised(name) -> None:
    """The optimum lies at a wall: beyond it, costs are infinite, or finite and huge."""
    for penalty in (float("inf"), 1e6):
        optima = torch.tensor([[1.9, 0.25]] * 2)

        def cost(candidates, optima=optima, penalty=penalty):
            beyond = (candidates.unflatten(-1, (2, 2))[..., 0] > 2.0).any(dim=(2, 3))
            return torch.where(beyond, penalty, _quadratic(optima)(candidates))

        planner = make_planner(
            PlanningConfig(planner=name, num_samples=200, num_iterations=15, min_std=0.02, noise_exponent=0.0), SPACE
        )
        plan = planner.plan(cost, 2, HORIZON)
        free = planner.plan(_quadratic(optima), 2, HORIZON)
        assert bool((plan.cost < free.cost + 0.02).all()), (name, penalty, plan.cost, free.cost)


def test_a_forbidden_start_of_the_gradient_planner_stays_where_it_is() -> None:
    def cost(candidates):
        away = candidates.square().mean(dim=(2, 3))
        return away / (candidates[:, :, 0, 0] < 1.0)  # infinite beyond, as is its slope

    plan = GradientPlanner(SPACE, GradientPlanner.Settings(num_samples=16, num_iterations=40)).plan(cost, 2, HORIZON)
    assert bool((plan.cost < 0.02).all())


def test_elites_are_the_allowed_ones_in_turn() -> None:
    inf = float("inf")
    candidates = torch.arange(5.0).expand(3, 5)[..., None, None]
    costs = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0], [inf, 2.0, inf, 1.0, inf], [inf] * 5])
    elites, values = elites_of(candidates, costs, 3)
    assert elites[0, :, 0, 0].tolist() == [4, 3, 2] and elites[1, :, 0, 0].tolist() == [3, 1, 3]
    assert values[1].tolist() == [1, 2, 1]
    assert len(set(elites[2, :, 0, 0].tolist())) == 3 and bool(values[2].isinf().all())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("penalty", [1e3, 1e9, float("inf")])
def test_mppi_weighs_the_others_as_if_those_with_a_penalty_were_not_there(share, penalty) -> None:
    planner, costs = MPPI(SPACE), torch.randn(4, 200) + 10.0
    count = int(share * 200)
    spoilt = torch.cat([torch.full((4, count), penalty), costs[:, count:]], dim=1)
    weights = planner.weights(spoilt)
    torch.testing.assert_close(weights[:, count:], planner.weights(costs[:, count:]), rtol=1e-3, atol=1e-5)
    assert bool((weights[:, :count] == 0).all())


def test_the_spread_of_ordinary_costs_is_their_standard_deviation() -> None:
    planner = MPPI(SPACE, MPPI.Settings(temperature=0.3))
    for costs in (torch.randn(5, 64), torch.rand(5, 64)):
        expected = torch.softmax(-costs / (0.3 * costs.std(dim=1, correction=0, keepdim=True)), dim=1)
        torch.testing.assert_close(planner.weights(costs), expected)


@pytest.mark.parametrize("name", ALL)
def test_an_environment_whose_candidates_are_all_forbidden_is_named(name) -> None:
    def cost(candidates):
        return torch.where(torch.arange(3)[:, None] == 1, float("inf"), candidates.float().mean(dim=(2, 3)))

    with pytest.raises(PlanningError, match=r"\[1\].*forbidden"):
        _search(name).plan(cost, 3, HORIZON)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
@pytest.mark.parametrize("name", ALL)
def test_a_cost_that_is_no_number_is_an_error(name, bad) -> None:
    cost = _spoilt(bad, lambda candidates: torch.arange(candidates.shape[1]) == 1)
    with pytest.raises(PlanningError, match="NaN"):
        _search(name, num_iterations=1).plan(cost, 3, HORIZON)


# --- random numbers


@pytest.mark.parametrize("name", ALL)
def test_a_plan_does_not_depend_on_the_environments_beside_it(name) -> None:
    """Each environment has random numbers from the seed and its own number."""
    targets = torch.tensor([0.3, 2.1, -0.4, 1.0])

    def play(numbers):
        planner = _search(name, num_iterations=3)
        planner.number_environments(numbers)

        def cost(candidates):
            rough = (candidates.float() * 3.7).sin().sum(dim=(2, 3))
            return rough + (candidates.float() - targets[numbers][:, None, None, None]).square().sum(dim=(2, 3))

        first = planner.plan(cost, len(numbers), HORIZON)
        return planner.plan(cost, len(numbers), HORIZON, planner.shift(first, 1)).actions

    together = play([0, 1, 2, 3])
    for numbers in ([2], [3, 1], [1, 2, 3, 0]):
        torch.testing.assert_close(play(numbers), together[numbers])
    assert not torch.equal(_drawn(name, [0]), _drawn(name, [1]))


def _drawn(name: str, numbers: list[int]) -> torch.Tensor:
    """The candidates of a search's second iteration or, if there is none, the first."""
    planner, seen = _search(name, num_iterations=2), []
    planner.number_environments(numbers)
    planner.plan(lambda c: (seen.append(c.detach()), c.float().sum((2, 3)))[1], len(numbers), HORIZON)
    return seen[0]


def test_a_cost_of_another_shape_is_an_error() -> None:
    with pytest.raises(PlanningError, match=r"has shape \(3,\): expected \(3, 150\)"):
        CEM(SPACE).plan(lambda candidates: candidates.sum(dim=(1, 2, 3)), 3, HORIZON)


def test_auto_takes_what_fits_the_actions() -> None:
    assert type(make_planner(PlanningConfig(), SPACE)) is CEM
    assert type(make_planner(PlanningConfig(), PlanSpace.of(Discrete(3)))) is CategoricalCEM


def test_settings_reach_the_planners() -> None:
    settings = PlanningConfig(
        num_samples=31,
        num_iterations=7,
        num_elites=9,
        initial_std=0.5,
        min_std=0.2,
        noise_smoothness=0.3,
        noise_exponent=1.5,
        kept_elites=0.4,
        temperature=0.7,
        learning_rate=0.03,
    )
    expected = {
        "cem": ["num_samples", "num_iterations", "num_elites", "initial_std", "min_std", "noise_smoothness"],
        "icem": [
            "num_samples",
            "num_iterations",
            "num_elites",
            "initial_std",
            "min_std",
            "noise_exponent",
            "kept_elites",
        ],
        "mppi": ["num_samples", "num_iterations", "initial_std", "min_std", "noise_smoothness", "temperature"],
        "gradient": ["num_samples", "num_iterations", "initial_std", "noise_smoothness", "learning_rate"],
        "random_shooting": ["num_samples", "initial_std", "noise_smoothness"],
    }
    for name, keys in expected.items():
        planner = make_planner(settings.model_copy(update={"planner": name}), SPACE)
        assert planner.name == name
        for key in keys:
            assert getattr(planner.settings, key) == getattr(settings, key), (name, key)
