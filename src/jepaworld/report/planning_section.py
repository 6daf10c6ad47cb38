"""The section on planning: success beside the baselines, times, and what it looks like."""

from __future__ import annotations

from html import escape

from jepaworld.evaluation.results import PlanningResults, PlanningVideo
from jepaworld.report.figures import AGENT_NAMES, success_chart
from jepaworld.report.headline import duration, number, share_with_interval
from jepaworld.report.markup import absent, chart_row, prose, table
from jepaworld.utils.pictures import animation_uri


def planning_section(found: PlanningResults) -> str:
    """The section's HTML, the videos in it."""
    facts = f"Solved at the start and left out: {found.excluded_solved} · seed {found.seed} · {found.created}"
    if found.duration_seconds is not None:
        facts += f" · {duration(found.duration_seconds)}"
    return (
        f"<p>{prose(found.protocol.rstrip('.'))}. Intervals are Wilson's, at 95\N{NO-BREAK SPACE}%.</p>"
        + absent(facts)
        + _success_table(found)
        + chart_row([success_chart(found)])
        + _videos(found)
    )


def _success_table(found: PlanningResults) -> str:
    header = ["", "goals", "reached at any time", "at the goal at the end", "episodes", "median steps", "s per episode"]
    header.append("s per plan")
    rows, absences = [], []
    for agent in found.agents:
        name = AGENT_NAMES.get(agent.name, agent.name)
        if agent.missing is not None:
            absences.append(f"No {name}: {agent.missing}.")
            continue
        for row in ("all", *found.groups):
            if row not in agent.any or row not in agent.end:
                continue
            entry = ["", row, *(share_with_interval(rates[row]) for rates in (agent.any, agent.end))]
            entry.append(str(agent.any[row].episodes))
            if row == "all":
                entry[0] = name
                values = (agent.median_steps_to_success, agent.seconds_per_episode, agent.seconds_per_plan)
                entry += ["" if value is None else number(value) for value in values]
            else:
                entry += ["", "", ""]
            rows.append(entry)
    labels = [f"{AGENT_NAMES.get(a.name, a.name)}: {a.label}" for a in found.agents if a.missing is None]
    return (
        table(header, rows, numeric_from=2)
        + absent(" · ".join(labels) + ". Median steps: environment steps until the goal was first reached, of those "
                 "that reached it.")
        + "".join(map(absent, absences))
    )  # fmt: skip


def _videos(found: PlanningResults) -> str:
    planner = found.agent("planner")
    if planner is None or planner.missing is not None:
        return ""
    if not found.videos:
        return absent("This evaluation wrote no videos.")
    count = planner.any["all"]
    failed, shown = count.episodes - count.successes, sum(not video.success for video in found.videos)
    if failed:
        text = f"{failed} of {count.episodes} goals were not reached; failures shown here: {shown}."
    else:
        text = "Every goal was reached, so that there are no failures to show."
    panels = "".join(_video(found, video) for video in found.videos)
    return (
        f"<h3>What it looks like</h3><p>Episodes drawn by seed, and failures beside them. {text}</p>"
        f'<div class="videos">{panels}</div>'
    )


def _video(found: PlanningResults, video: PlanningVideo) -> str:
    path = found.folder / video.file
    caption = prose(video.caption)
    if path.is_file():
        picture = f'<img src="{animation_uri(path.read_bytes())}" alt="{escape(video.caption, quote=True)}">'
    else:
        picture = absent(f"{video.file} is missing.")
    badge = '<span class="badge good">reached</span>' if video.success else '<span class="badge bad">not reached</span>'
    return f'<figure class="panel strip">{picture}<figcaption>{badge} {caption}</figcaption></figure>'
