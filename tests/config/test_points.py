import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lq.config.points import Point, Position


@pytest.mark.parametrize(
    ("raw", "point"),
    [
        (0, Point(0, "epochs")),
        (3, Point(3, "epochs")),
        (1, Point(1, "epochs")),
        (1.0, Point(1, "fraction")),
        (0.25, Point(0.25, "fraction")),
        ("3 epochs", Point(3, "epochs")),
        ("1 epoch", Point(1, "epochs")),
        ("2.5 epochs", Point(2.5, "epochs")),
        ("500 steps", Point(500, "steps")),
        (" 1 Step ", Point(1, "steps")),
        ("30%", Point(0.3, "fraction")),
        ("12.5 %", Point(0.125, "fraction")),
    ],
)
def test_parse_reads_every_form(raw, point):
    assert Point.parse("start", raw) == point


@pytest.mark.parametrize(
    ("raw", "error", "text"),
    [
        (True, TypeError, r"start=True \(bool\) is not a point"),
        (None, TypeError, r"start=None \(NoneType\)"),
        ([3], TypeError, r"start=\[3\] \(list\)"),
        (-1, ValueError, "start=-1 .* must be 0 or more"),
        (-0.5, ValueError, "must be 0 or more"),
        (math.nan, ValueError, "must be 0 or more"),
        (2.0, ValueError, r"share of the training, in \[0, 1\].*start='2 epochs'"),
        (math.inf, ValueError, "start=inf: a float is a share of the training"),
        ("3", ValueError, "start='3' .* name the unit"),
        ("-3 epochs", ValueError, "name the unit"),
        ("3 days", ValueError, "'3 epochs', '500 steps'"),
        ("120%", ValueError, "at most 100%"),
        ("never", ValueError, "start='never' is not a point"),
    ],
)
def test_parse_refuses_with_the_fix(raw, error, text):
    with pytest.raises(error, match=text):
        Point.parse("start", raw)


def test_never_only_where_it_is_allowed_and_is_never_reached():
    point = Point.parse("observer_off", "never", never=True)
    assert not point.reached(Position(10**9, 10**9, total_epochs=1))
    with pytest.raises(ValueError, match="Or 'never'"):
        Point.parse("observer_off", "newer", never=True)


@pytest.mark.parametrize(
    ("raw", "last_before", "first_after"),
    [
        (3, Position(2.99, 299), Position(3, 300)),
        ("2.5 epochs", Position(2.49, 0), Position(2.5, 0)),
        ("500 steps", Position(9, 499), Position(0, 500)),
        (0.5, Position(4.9, 490, total_epochs=10), Position(5, 500, total_epochs=10)),
        (0.5, Position(0, 49, total_steps=100), Position(0, 50, total_steps=100)),
        ("30%", Position(2.9, 0, total_epochs=10), Position(3, 0, total_epochs=10)),
    ],
)
def test_reached_from_its_first_step_on(raw, last_before, first_after):
    point = Point.parse("start", raw)
    assert not point.reached(last_before)
    assert point.reached(first_after)


def test_a_share_is_reached_in_spite_of_rounding():
    share = 0.1 + 0.2  # 0.30000000000000004, which 3 / 10 would miss
    assert Point.parse("start", share).reached(Position(3, 0, total_epochs=10))


def test_a_share_of_an_endless_training_is_refused():
    with pytest.raises(ValueError, match="50% of the training needs a training that ends: set max_epochs"):
        Point.parse("start", 0.5).reached(Position(3, 300))


def test_fraction_is_the_nearest_limit():
    assert Position(2, 80, total_epochs=10, total_steps=100).fraction == 0.8
    assert Position(9, 80, total_epochs=10, total_steps=100).fraction == 0.9
    assert Position(2, 80).fraction is None
    assert Position(12, 0, total_epochs=10).fraction == 1.0
    assert Position(0, 0, total_epochs=0).fraction == 1.0


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"epoch": -1, "step": 0}, "epoch=-1 is not a position"),
        ({"epoch": 0, "step": -1}, "step=-1"),
        ({"epoch": 0, "step": 0, "total_epochs": -1}, "total_epochs=-1 .* or None if it is unlimited"),
        ({"epoch": 0, "step": 0, "steps_per_epoch": math.inf}, "steps_per_epoch=inf .* or None"),
        ({"epoch": math.nan, "step": 0}, "epoch=nan"),
    ],
)
def test_position_refuses_impossible_numbers(kwargs, text):
    with pytest.raises(ValueError, match=text):
        Position(**kwargs)


@pytest.mark.parametrize(
    ("raw", "length", "share"),
    [
        (2, {"total_epochs": 10}, 0.2),
        ("50 steps", {"total_epochs": 10, "steps_per_epoch": 50}, 0.1),
        (2, {"total_steps": 400, "steps_per_epoch": 50}, 0.25),
        (2, {"total_epochs": 10, "total_steps": 200, "steps_per_epoch": 50}, 0.5),
        (20, {"total_epochs": 10}, 1.0),
        (0, {"total_steps": 10}, 0.0),
        (2, {"total_steps": 400}, None),
        ("50 steps", {"total_epochs": 10}, None),
        (0.3, {}, 0.3),
    ],
)
def test_fraction_of_converts_the_units(raw, length, share):
    assert Point.parse("start", raw).fraction_of(Position(0, 0, **length)) == share


@pytest.mark.parametrize(
    ("raw", "length", "step"),
    [
        (2, {"total_epochs": 10, "steps_per_epoch": 50}, 100),
        ("30 steps", {"total_steps": 90}, 30),
        (0.105, {"total_steps": 90}, 10),
        (0.1, {"total_steps": 90}, 9),
        (0.5, {"total_epochs": 10, "total_steps": 90, "steps_per_epoch": 5}, 25),
        (0.5, {"total_epochs": 10}, None),
        (2, {"total_steps": 90}, None),
    ],
)
def test_first_step(raw, length, step):
    point = Point.parse("start", raw)
    assert point.first_step(Position(0, 0, **length)) == step
    if step is not None:
        per_epoch = length.get("steps_per_epoch", 1)
        assert point.reached(Position(step / per_epoch, step, **length))
        assert not point.reached(Position((step - 1) / per_epoch, step - 1, **length))


@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 50), st.integers(0, 50))
def test_converted_points_are_reached_together(epochs, per_epoch, total, at):
    """A point in epochs, the same in steps and the same as a share agree at every epoch boundary."""
    position = Position(at, at * per_epoch, total_epochs=total, steps_per_epoch=per_epoch)
    in_epochs = Point(epochs, "epochs")
    assert Point(epochs * per_epoch, "steps").reached(position) == in_epochs.reached(position)
    if epochs <= total:
        share = in_epochs.fraction_of(position)
        assert Point(share, "fraction").reached(position) == in_epochs.reached(position)
