"""Which public environments work, found by `check-env`: prints the table of docs/environments.md.

Usage:
    pip install minigrid gymnasium-robotics highway-env
    python benchmarks/environments.py
    python benchmarks/environments.py CartPole-v1 minigrid:MiniGrid-FourRooms-v0
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

PUBLIC = (
    "CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1",
    "LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3", "Reacher-v5", "Pusher-v5", "HalfCheetah-v5", "Ant-v5",
    "ALE/Pong-v5", "ALE/Breakout-v5", "gym_pusht/PushT-v0", "minigrid:MiniGrid-FourRooms-v0",
    "minigrid:MiniGrid-DoorKey-8x8-v0", "gymnasium_robotics:FetchReach-v4", "gymnasium_robotics:PointMaze_UMaze-v3",
    "gymnasium_robotics:AdroitHandDoor-v1", "highway_env:highway-v0", "highway_env:parking-v0",
)  # fmt: skip
_EXAMINE = """
import json, sys
from jepaworld.envs.conformance import check_env
report = check_env(sys.argv[1])
print("\\n" + json.dumps([report.usable, [[f.name, f.level, f.text] for f in report.findings]]))
"""


def examine(name: str) -> list[str]:
    """A row about an environment, looked at in a process of its own: some end it."""
    done = subprocess.run([sys.executable, "-c", _EXAMINE, name], capture_output=True, text=True, check=False)
    if done.returncode:
        return [name, "", "no", "", "", (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]]
    usable, findings = json.loads(done.stdout.splitlines()[-1])
    texts = {finding: text for finding, _, text in findings}
    entry = texts.get("exists", "").removeprefix("made from ").partition(".")[0]
    package = metadata.packages_distributions().get(entry, [""])[0]
    found = f"{package} {metadata.version(package)}" if package else ""
    frames = texts.get("frames", "").partition(" from ")[2].partition(";")[0].rstrip(".")
    remarks = [
        f"{finding}: {text.rpartition('; but ')[2]}"  # without the list of all state variables
        for finding, level, text in findings
        if level != "ok" and finding != "speed"
    ]
    planning = texts.get("planning", "").partition(". ")[0].rstrip(".")
    row = [f"`{name}`", found, "yes" if usable else "no", frames, planning, " ".join(remarks)]
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in row]


def main(names: list[str]) -> None:
    """Print the table."""
    print(
        "| Environment | Version | Usable | Frames | Planning | What `check-env` remarks |\n|---|---|---|---|---|---|"
    )
    for name in names:
        print(f"| {' | '.join(examine(name))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(PUBLIC))
