"""Environments: built-in worlds, frames from any Gymnasium environment, and a check of what is usable.

Importing this package registers the built-in environments (`jepaworld/TwoRoom-v0`, `jepaworld/PointMaze-v0`, and
`jepaworld/PushT-v0`, which needs the extra `pusht`). Gymnasium loads no
plug-ins by itself, so before `gymnasium.make("jepaworld/TwoRoom-v0")` import it, or name it in the id:
`gymnasium.make("jepaworld.envs:jepaworld/TwoRoom-v0")`. The commands and `make_env` do so on their own.
"""

from __future__ import annotations

import gymnasium

TWO_ROOM_ID = "jepaworld/TwoRoom-v0"
POINT_MAZE_ID = "jepaworld/PointMaze-v0"
PUSH_T_ID = "jepaworld/PushT-v0"


def register() -> None:
    """Register the built-in environments with Gymnasium; a second call changes nothing."""
    if TWO_ROOM_ID not in gymnasium.registry:
        gymnasium.register(
            id=TWO_ROOM_ID,
            entry_point="jepaworld.envs.two_room:TwoRoomEnv",
            vector_entry_point="jepaworld.envs.two_room:TwoRoomVectorEnv",
            max_episode_steps=200,
        )
    if POINT_MAZE_ID not in gymnasium.registry:
        gymnasium.register(
            id=POINT_MAZE_ID, entry_point="jepaworld.envs.point_maze:PointMazeEnv", max_episode_steps=300
        )
    if PUSH_T_ID not in gymnasium.registry:
        gymnasium.register(id=PUSH_T_ID, entry_point="jepaworld.envs.push_t:make_push_t", max_episode_steps=300)


register()
