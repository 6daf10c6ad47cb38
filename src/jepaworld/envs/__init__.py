"""Environments: built-in worlds, frames from any Gymnasium environment, and a check of what is usable.

`import jepaworld` registers the built-in environments: `jepaworld/TwoRoom-v0`, `jepaworld/PointMaze-v0`,
`jepaworld/PushT-v0` (needs the extra `pusht`) and `jepaworld/Cube-v0` (needs the extra `ogbench`). Gymnasium loads no
plug-ins by itself: without that import, name the package in the id,
`gymnasium.make("jepaworld.envs:jepaworld/TwoRoom-v0")`.
"""

from __future__ import annotations

from typing import Any

import gymnasium

TWO_ROOM_ID = "jepaworld/TwoRoom-v0"
POINT_MAZE_ID = "jepaworld/PointMaze-v0"
PUSH_T_ID = "jepaworld/PushT-v0"
CUBE_ID = "jepaworld/Cube-v0"


_BUILT_IN: dict[str, dict[str, Any]] = {
    TWO_ROOM_ID: {
        "entry_point": "jepaworld.envs.two_room:TwoRoomEnv",
        "vector_entry_point": "jepaworld.envs.two_room:TwoRoomVectorEnv",
        "max_episode_steps": 200,
    },
    POINT_MAZE_ID: {"entry_point": "jepaworld.envs.point_maze:PointMazeEnv", "max_episode_steps": 300},
    PUSH_T_ID: {"entry_point": "jepaworld.envs.push_t:make_push_t", "max_episode_steps": 300},
    CUBE_ID: {"entry_point": "jepaworld.envs.cube:CubeEnv", "max_episode_steps": 200},
}


def register() -> None:
    """Register the built-in environments with Gymnasium; a second call changes nothing."""
    for name, settings in _BUILT_IN.items():
        if name not in gymnasium.registry:
            gymnasium.register(id=name, **settings)
