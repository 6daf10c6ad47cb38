"""Collisions and painting of the two rooms against independent computations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from jepaworld.envs import two_room_world as world
from jepaworld.envs.disc import paint_discs
from jepaworld.envs.two_room_world import Geometry

TOLERANCE = 1e-9


def random_case(rng, count, speed):
    """Walls, free starts and displacements; many start on a face or a corner, many move along an axis."""
    wall = np.stack([rng.uniform(*world.WALL_X_LIMITS, count), rng.uniform(*world.DOOR_Y_LIMITS, count)], axis=1)
    wall = np.where(rng.random((count, 1)) < 0.5, np.floor(wall), wall).astype(np.float32)
    geometry = Geometry.of(wall)
    start = world.draw_positions(rng.random((count, 4)), geometry).astype(np.float64)
    face_x = np.where(start[:, 0] < geometry.centre, geometry.left, geometry.right)
    face_y = np.where(rng.random(count) < 0.5, geometry.door_low, geometry.door_high)
    start[:, 0] = np.where(rng.random(count) < 0.3, face_x, start[:, 0])
    start[:, 1] = np.where(rng.random(count) < 0.3, face_y, start[:, 1])
    assert geometry.is_free(start).all()
    angle = np.where(rng.random(count) < 0.3, rng.integers(0, 8, count) * np.pi / 4, rng.uniform(0, 2 * np.pi, count))
    length = speed * np.where(rng.random(count) < 0.2, 1e-4, rng.random(count))
    displacement = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    displacement[np.abs(displacement) < 1e-15 * speed] = 0
    # A third aims at a corner: of the door, or between wall and border, where two contacts fall together.
    corner_y = np.choose(
        rng.integers(0, 4, count), [geometry.door_low, geometry.door_high, np.float64(4.5), np.float64(59.5)]
    )
    at_corner = (np.stack([face_x, corner_y], axis=1) - start) * rng.uniform(1, 1 + speed, (count, 1))
    displacement = np.where(rng.random((count, 1)) < 0.33, at_corner, displacement)
    return wall, geometry, start, displacement


def exact_penetration(a, b, wall):
    """How far the segment a-b goes into the wall's two blocks or out of the arena, in exact arithmetic.

    Written from the picture, not from the code under test: the blocks are [x - 2, x + 2] above and below the
    door of 12 px, and the agent is a square of side 5.
    """
    half = Fraction(5, 2)
    a, b = [Fraction(float(v)) for v in a], [Fraction(float(v)) for v in b]
    x, y = (Fraction(float(v)) for v in wall)
    worst = max(max(2 + half - p, p - (62 - half)) for point in (a, b) for p in point)
    for top, bottom in ((-1000, y - 6), (y + 6, 1000)):
        faces = ((x - 2 - half, x + 2 + half), (top - half, bottom + half))
        low, high = Fraction(0), Fraction(1)  # the part of the segment that is inside the grown block
        for start, end, (near, far) in zip(a, b, faces, strict=True):
            if start == end:
                if not near < start < far:
                    low, high = Fraction(1), Fraction(0)
                continue
            times = sorted(((near - start) / (end - start), (far - start) / (end - start)))
            low, high = max(low, times[0]), min(high, times[1])
        if low < high:
            middle = [s + (e - s) * (low + high) / 2 for s, e in zip(a, b, strict=True)]
            depth = min(min(p - near, far - p) for p, (near, far) in zip(middle, faces, strict=True))
            worst = max(worst, depth)
    return float(worst)


@pytest.mark.parametrize("speed", [0.5, 2.5, 20.0, 1000.0])
def test_no_part_of_any_path_is_inside_a_wall(speed):
    rng = np.random.default_rng(int(speed * 10))
    wall, geometry, start, displacement = random_case(rng, 1500, speed)
    contact, end = world.move(start, displacement, geometry)
    for leg in zip(start, contact, wall, strict=True):
        assert exact_penetration(*leg) < TOLERANCE, leg
    for leg in zip(contact, end, wall, strict=True):
        assert exact_penetration(*leg) < TOLERANCE, leg
    # What was stopped lies on a face to the last bit, and nothing lies behind one.
    faces_x = np.stack([geometry.left, geometry.right, np.full(1500, 4.5), np.full(1500, 59.5)], axis=1)
    faces_y = np.stack([geometry.door_low, geometry.door_high, np.full(1500, 4.5), np.full(1500, 59.5)], axis=1)
    on_face = (contact[:, :1] == faces_x).any(axis=1) | (contact[:, 1:] == faces_y).any(axis=1)
    stopped = np.abs(contact - start - displacement).max(axis=1) > TOLERANCE
    assert on_face[stopped].all()
    assert stopped.any()
    assert geometry.is_free(contact).all()
    assert geometry.is_free(end).all()


@pytest.mark.parametrize("speed", [2.5, 1000.0, 1e12])
def test_agent_changes_sides_only_through_the_door(speed):
    rng = np.random.default_rng(3)
    crossings = 0
    for _ in range(20):
        wall, geometry, start, displacement = random_case(rng, 5000, speed)
        contact, end = world.move(start, displacement, geometry)
        assert geometry.is_free(end.astype(np.float32).astype(np.float64)).all()
        for a, b in ((start, contact), (contact, end)):
            side_a, side_b = a[:, 0] < geometry.centre, b[:, 0] < geometry.centre
            crossed = side_a != side_b
            t = (geometry.centre - a[:, 0])[crossed] / (b - a)[crossed, 0]
            y = a[crossed, 1] + t * (b - a)[crossed, 1]
            assert (np.abs(y - wall[crossed, 1]) <= 6 - 2.5 + TOLERANCE).all()
            crossings += crossed.sum()
    assert crossings > 50


def test_a_free_move_is_exact_and_a_blocked_one_ends_on_the_face():
    geometry = Geometry.of(np.array([[32, 32]] * 4, np.float32))
    start = np.array([[10, 10], [10, 10], [10, 10], [10, 32]], np.float64)
    displacement = np.array([[3, 4], [40, 0], [-40, 0], [40, 0]], np.float64)
    _, end = world.move(start, displacement, geometry)
    # Faces: 32 - 2 - 2.5 and 2 + 2.5; the last one goes through the door.
    np.testing.assert_array_equal(end, [[13, 14], [27.5, 10], [4.5, 10], [50, 32]])


def test_the_motion_that_is_left_slides_along_the_surface():
    geometry = Geometry.of(np.array([[32, 32]] * 4, np.float32))
    start = np.array([[17.5, 10], [32, 32], [27.5, 10], [10, 50]], np.float64)
    displacement = np.array([[20, 4], [2, 7], [5, 3], [30, 30]], np.float64)
    contact, end = world.move(start, displacement, geometry)
    # 1: contact with the wall half way. 2: the door's lower edge (y = 35.5) half way. 3: starts on the wall.
    # 4: the lower border (y = 59.5) at x = 19.5; 20.5 of motion is left, of which the wall leaves 8.
    np.testing.assert_allclose(contact, [[27.5, 12], [33, 35.5], [27.5, 10], [19.5, 59.5]], atol=1e-12)
    np.testing.assert_allclose(end, [[27.5, 14], [34, 35.5], [27.5, 13], [27.5, 59.5]], atol=1e-12)


def test_a_corner_stops_only_what_enters_it():
    geometry = Geometry.of(np.array([[32, 32]] * 4, np.float32))
    corner = np.array([27.5, 28.5])  # of the upper block, grown by the radius
    start = np.stack([corner, corner, corner - 5, corner + np.array([-5, 5])])
    displacement = np.array([[4, 0], [0, -4], [10, 10], [10, -10]], np.float64)
    _, end = world.move(start, displacement, geometry)
    # 1, 2: along both faces the way is free. 3: from above it only grazes the corner. 4: from below it
    # enters the block there, so it is stopped in x and slides on upwards.
    np.testing.assert_allclose(end, [[31.5, 28.5], [27.5, 24.5], [32.5, 33.5], [27.5, 23.5]], atol=1e-12)


def test_fast_agents_pass_the_door_when_they_aim_at_it():
    geometry = Geometry.of(np.array([[32, 20]], np.float32))
    _, end = world.move(np.array([[10.0, 22.0]]), np.array([[1000.0, 0.0]]), geometry)
    np.testing.assert_array_equal(end, [[59.5, 22]])


def test_positions_are_drawn_uniformly_from_free_space():
    rng = np.random.default_rng(0)
    count = 40_000
    geometry = Geometry.of(np.tile(np.array([[24, 40]], np.float32), (count, 1)))
    position = world.draw_positions(rng.random((count, 4)), geometry)
    assert geometry.is_free(position.astype(np.float64)).all()
    left, door, right = (19.5 - 4.5) * 55, 9 * 7, (59.5 - 28.5) * 55
    x = position[:, 0]
    for share, area in (((x < 19.5).mean(), left), ((x > 28.5).mean(), right)):
        assert share == pytest.approx(area / (left + door + right), abs=0.01)
    assert 0 < ((x > 19.5) & (x < 28.5)).mean() < 0.1


@pytest.mark.parametrize("on_left", [True, False])
def test_positions_stay_on_the_side_asked_for(on_left):
    draws = np.random.default_rng(1).random((5000, 4))
    draws[:2500, 1:3] = [0.0, np.nextafter(1, 0)]  # as far into the door as the draw can go
    geometry = Geometry.of(np.tile(np.array([[24, 40]], np.float32), (5000, 1)))
    position = world.draw_positions(draws, geometry, np.full(5000, on_left))
    assert ((position[:, 0] < 24) == on_left).all()


def test_walls_are_drawn_over_the_whole_range():
    walls = world.draw_walls(np.random.default_rng(0).random((20_000, 2)))
    assert set(walls[:, 0]) == set(range(20, 45))
    assert set(walls[:, 1]) == set(range(10, 55))


@pytest.mark.parametrize("speed", [2.5, 1000.0])
def test_a_move_is_stopped_where_it_must_be_and_nowhere_else(speed):
    rng = np.random.default_rng(7)
    wall, geometry, start, displacement = random_case(rng, 800, speed)
    contact, _ = world.move(start, displacement, geometry)
    # Faces are float32 numbers, up to 4e-6 px before the wall: by so much a way past a corner may be missed.
    nudges = 1e-5 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])

    def nudged(a, b, w):
        return max(exact_penetration(a + nudge, b + nudge, w) for nudge in nudges)

    free = np.array([nudged(a, a + d, w) <= 0 for a, d, w in zip(start, displacement, wall, strict=True)])
    np.testing.assert_allclose(contact[free], (start + displacement)[free], atol=TOLERANCE)
    assert free.sum() > 50
    ahead = displacement / np.maximum(np.abs(displacement).max(axis=1, keepdims=True), 1e-300) * 1e-3
    short = np.abs(start + displacement - contact).max(axis=1) > 1e-3
    for a, d, w in zip(contact[short], ahead[short], wall[short], strict=True):
        assert nudged(a, a + d, w) > 0, (a, d, w)


# --- painting ------------------------------------------------------------------------------------------


def test_the_disc_is_where_the_state_says_to_a_tenth_of_a_pixel():
    rng = np.random.default_rng(0)
    states = rng.uniform(10, 24, (500, 2)).astype(np.float32)
    empty = world.paint_walls(np.tile(np.array([[32, 32]], np.float32), (500, 1)))
    frames = empty.copy()
    paint_discs(frames, states)
    weight = (frames.astype(float) - empty).sum(axis=1)  # (N, 64, 64)
    centres = np.arange(64) + 0.5
    total = weight.sum(axis=(1, 2))
    x, y = (
        (weight.sum(axis=1) * centres).sum(axis=1) / total,
        (weight.sum(axis=2) * centres).sum(axis=1) / total,
    )
    assert np.abs(np.stack([x, y], axis=1) - states).max() < 0.1
    brightest = frames.max(axis=(2, 3))
    assert (brightest == brightest[0]).all()  # the full colour, wherever it is


def test_a_shift_by_a_whole_pixel_shifts_the_picture():
    empty = np.zeros((2, 3, 64, 64), np.uint8)
    paint_discs(empty, [[20.3, 30.7], [21.3, 32.7]])
    np.testing.assert_array_equal(np.roll(empty[0], (2, 1), axis=(1, 2)), empty[1])


def test_agents_outside_the_picture_are_painted_as_far_as_they_show():
    frames = np.zeros((3, 3, 64, 64), np.uint8)
    paint_discs(frames, [[-1.0, 30.0], [200.0, -500.0], [63.5, 63.5]])
    assert frames[0, 0, :, 2:].max() == 0 < frames[0, 0, 30, 0]
    assert not frames[1].any()
    assert frames[2, 0, 63, 63] == 255


def test_walls_are_painted_where_they_stop_the_agent():
    frame = world.paint_walls(np.array([[30, 20]], np.float32))[0]
    wall = (frame == frame[:, :1, :1]).all(axis=0)
    expected = np.zeros((64, 64), bool)
    expected[:2] = expected[-2:] = expected[:, :2] = expected[:, -2:] = True
    expected[:, 28:32] = True
    expected[14:26, 28:32] = False
    np.testing.assert_array_equal(wall, expected)


def test_a_wall_between_pixels_is_painted_by_area():
    frame = world.paint_walls(np.array([[30.5, 20]], np.float32))[0, 2].astype(int)
    floor, wall = frame[50, 10], frame[0, 0]
    assert frame[50, 29] == wall
    assert frame[50, 28] == frame[50, 32] == pytest.approx((floor + wall) / 2, abs=1)


def test_the_agent_stands_out_in_grey():
    frame = world.paint_walls(np.array([[32, 32]], np.float32))
    luma = np.array([0.299, 0.587, 0.114])
    floor, wall = luma @ frame[0, :, 10, 10], luma @ frame[0, :, 0, 0]
    paint_discs(frame, [[10.5, 10.5]])
    agent = luma @ frame[0, :, 10, 10]
    assert floor < 20 < wall - 60 < agent - 120


# --- the fast path of moves that meet nothing


def one_by_one(start, displacement, wall):
    moved = [
        world.move(start[lane : lane + 1], displacement[lane : lane + 1], Geometry.of(wall[lane : lane + 1]))
        for lane in range(len(wall))
    ]
    return tuple(np.concatenate(part) for part in zip(*moved, strict=True))


@pytest.mark.parametrize("speed", [0.5, 2.5, 20.0, 1000.0])
def test_lanes_move_alone_as_they_do_among_others(speed):
    wall, geometry, start, displacement = random_case(np.random.default_rng(11), 1500, speed)
    together = world.move(start, displacement, geometry)
    for moved, alone in zip(together, one_by_one(start, displacement, wall), strict=True):
        np.testing.assert_array_equal(moved, alone)
    order = np.random.default_rng(12).permutation(len(wall))
    shuffled = world.move(start[order], displacement[order], Geometry.of(wall[order]))
    np.testing.assert_array_equal(shuffled[1], together[1][order])
    meeting = geometry.may_meet(start, start + displacement)
    assert meeting.any() and (speed == 1000.0 or not meeting.all()), "both paths were taken"


@pytest.mark.parametrize("speed", [0.5, 2.5, 20.0])
def test_what_is_cleared_meets_nothing(speed):
    """Against exact arithmetic, and against the computation that the others get."""
    wall, geometry, start, displacement = random_case(np.random.default_rng(13), 3000, speed)
    end = start + displacement
    cleared = np.flatnonzero(~geometry.may_meet(start, end))
    assert len(cleared) > 300
    for lane in cleared[:600]:
        assert exact_penetration(start[lane], end[lane], wall[lane]) <= 0
    obstacles = geometry.of_lanes(cleared)
    swept, blocked, left = world.straight(start[cleared], displacement[cleared], obstacles)
    np.testing.assert_array_equal(swept, end[cleared])
    assert not blocked.any() and not left.any()


def test_few_are_swept_that_meet_nothing():
    """The fast path is worth nothing if it clears too little."""
    _, geometry, start, displacement = random_case(np.random.default_rng(14), 5000, 2.5)
    inside = ((start > world.LOW + 3) & (start < world.HIGH - 3)).all(axis=1)
    away = np.abs(start[:, 0] - geometry.centre) > 3 + geometry.centre - geometry.left
    moving = np.linalg.norm(displacement, axis=1) <= 2.5
    chosen = inside & away & moving
    assert chosen.sum() > 500
    assert not geometry.may_meet(start, start + displacement)[chosen].any()


def test_the_geometry_of_some_lanes():
    wall, geometry, _, _ = random_case(np.random.default_rng(15), 6, 1.0)
    chosen = np.array([4, 1])
    some, expected = geometry.of_lanes(chosen), Geometry.of(wall[chosen])
    for name in ("left", "right", "door_low", "door_high", "centre"):
        np.testing.assert_array_equal(getattr(some, name), getattr(expected, name))
