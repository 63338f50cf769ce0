import dataclasses
import itertools
import math

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lq.config.schedule import Phase, Position, QATSchedule

FLOAT, OBSERVE, BN, OFF, BOTH = "float", "observe", "bn frozen", "observers off", "observers off, bn frozen"


def names(schedule, epochs, **totals):
    per_epoch = totals.get("steps_per_epoch", 0)
    return [schedule.phase(Position(e, round(e * per_epoch), **totals)).name for e in epochs]


TABLE = [
    # The tutorial's own course: BatchNorm frozen after epoch 2, observers off after epoch 3, of 8.
    (QATSchedule(), 8, [OBSERVE, OBSERVE, OBSERVE, BN, BOTH, BOTH, BOTH, BOTH]),
    (QATSchedule(0, 3, 4), 8, [OBSERVE, OBSERVE, OBSERVE, BN, BOTH, BOTH, BOTH, BOTH]),
    (QATSchedule(start=4), 12, [FLOAT] * 4 + [OBSERVE] * 3 + [BN] + [BOTH] * 4),
    (QATSchedule(start=0.5, freeze_bn="never", observer_off="never"), 4, [FLOAT] * 2 + [OBSERVE] * 2),
    (QATSchedule(start="50%", freeze_bn=0.75, observer_off="never"), 4, [FLOAT, FLOAT, OBSERVE, BN]),
    (QATSchedule(freeze_bn="never", observer_off=2), 4, [OBSERVE, OBSERVE, OFF, OFF]),
    (QATSchedule(freeze_bn=0, observer_off="1 epochs"), 3, [BN, BOTH, BOTH]),
    (QATSchedule("20 steps", "30 steps", "40 steps"), 5, [FLOAT, FLOAT, OBSERVE, BN, BOTH]),
]


@pytest.mark.parametrize(("schedule", "epochs", "expected"), TABLE)
def test_truth_table(schedule, epochs, expected):
    schedule.check(epochs, steps_per_epoch=10)
    assert names(schedule, range(epochs), total_epochs=epochs, steps_per_epoch=10) == expected


@pytest.mark.parametrize(("schedule", "epochs", "expected"), TABLE)
def test_the_table_holds_for_a_training_limited_by_steps(schedule, epochs, expected):
    assert names(schedule, range(epochs), total_steps=10 * epochs, steps_per_epoch=10) == expected


def test_an_endless_training_needs_epochs_or_steps_and_no_lr():
    schedule = QATSchedule(start=1, freeze_bn="20 steps", observer_off=3, lr=None)
    assert schedule.check() == ()
    assert names(schedule, range(4), steps_per_epoch=10) == [FLOAT, OBSERVE, BN, BOTH]


@pytest.mark.parametrize(
    ("phase", "name", "index"),
    [
        (Phase(False, False, False), FLOAT, 0),
        (Phase(True, True, False), OBSERVE, 1),
        (Phase(True, True, True), BN, 2),
        (Phase(True, False, False), OFF, 3),
        (Phase(True, False, True), BOTH, 4),
    ],
)
def test_phase_names(phase, name, index):
    assert (phase.name, phase.index) == (name, index)


def test_lr_is_a_cosine_from_start_to_end():
    schedule = QATSchedule(start=2, lr=0.1, lr_final=0.5)

    def at(epoch):
        return schedule.phase(Position(epoch, 0, total_epochs=10)).lr_scale

    assert at(1.99) is None
    assert at(2) == pytest.approx(0.1)
    assert at(4) == pytest.approx(0.1 * (0.5 + 0.5 * (1 + math.cos(math.pi / 4)) / 2))
    assert at(6) == pytest.approx(0.075)
    assert at(10) == at(11) == pytest.approx(0.05)


def test_learned_scales_follow_the_learning_rate():
    schedule = QATSchedule(start=2, lr=0.1, lr_final=0.5, scale_lr=0.01)

    def at(schedule, epoch):
        return schedule.phase(Position(epoch, 0, total_epochs=10)).scale_lr

    assert at(schedule, 1.99) is None
    assert [at(schedule, epoch) for epoch in (2, 6, 10)] == pytest.approx([0.01, 0.0075, 0.005])
    assert at(dataclasses.replace(schedule, scale_lr=None), 6) is None
    assert at(dataclasses.replace(schedule, lr=None), 6) == 0.01
    assert QATSchedule(start=2, observer_off="3 epochs", freeze_bn=4, lr=None).phase(Position(2, 0)).scale_lr == 0.003


def test_default_lr_falls_from_one_percent_to_one_percent_of_that():
    schedule = QATSchedule()
    first, last = (schedule.phase(Position(0, s, total_steps=100)).lr_scale for s in (0, 100))
    assert (first, last) == (pytest.approx(1e-2), pytest.approx(1e-4))


def test_lr_none_leaves_the_learning_rate_alone():
    assert QATSchedule(lr=None).phase(Position(5, 0, total_epochs=10)).lr_scale is None


POINTS = st.one_of(
    st.integers(0, 12),
    st.floats(0, 1),
    st.integers(0, 120).map("{} steps".format),
    st.integers(0, 100).map("{}%".format),
)
SHARES = st.floats(0.001, 1)


@st.composite
def schedules(draw):
    later = st.one_of(st.none(), st.just("never"), POINTS)
    try:
        schedule = QATSchedule(draw(POINTS), draw(later), draw(later), draw(SHARES), draw(SHARES))
        schedule.check(10, 90, 10)
    except ValueError:
        assume(False)
    return schedule


def position(step):
    return Position(step / 10, step, total_epochs=10, total_steps=90, steps_per_epoch=10)


@given(schedules())
def test_every_course_only_goes_forward(schedule):
    course = [schedule.phase(position(step)) for step in range(90)]
    started = [phase for phase in course if phase.fake_quant]
    assert started, "a checked schedule starts"
    assert course == [p for p in course if not p.fake_quant] + started
    assert all(p == Phase(False, False, False) for p in course if not p.fake_quant)
    for before, after in itertools.pairwise(started):
        assert before.freeze_bn <= after.freeze_bn
        assert before.observer >= after.observer
        assert before.lr_scale >= after.lr_scale
    assert started[0].observer, "observers see at least the first batch"
    lowest, highest = schedule.lr * schedule.lr_final, schedule.lr
    assert all(lowest * (1 - 1e-9) <= p.lr_scale <= highest * (1 + 1e-9) for p in started)  # float64 rounding


@given(schedules(), st.integers(0, 90))
def test_resuming_needs_only_the_counters(schedule, step):
    copy = QATSchedule(**dataclasses.asdict(schedule))
    for earlier in range(step):
        schedule.phase(position(earlier))
    assert schedule.phase(position(step)) == copy.phase(position(step))


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"start": -1}, ValueError, "start=-1 .* 0 or more"),
        ({"start": 1.5}, ValueError, "start=1.5: a float is a share"),
        ({"start": True}, TypeError, r"start=True \(bool\)"),
        ({"start": 1.0}, ValueError, "start=1.0 is the end .* epoch one write 1"),
        ({"start": "never"}, ValueError, "start='never'"),
        ({"freeze_bn": "3 weeks"}, ValueError, "freeze_bn='3 weeks'.*Or 'never'"),
        ({"start": 2, "freeze_bn": 1}, ValueError, "freeze_bn=1 with start=2: it lies before"),
        ({"start": 0.5, "observer_off": "30%"}, ValueError, "observer_off='30%' with start=0.5"),
        ({"observer_off": 0}, ValueError, "observer_off=0 with start=0: observers would never see a batch"),
        ({"lr": 0}, ValueError, r"lr=0 trains nothing; write a share in \(0, 1\]"),
        ({"lr": 10}, ValueError, r"lr=10 is outside \[0, 1\].*e.g. lr=0.01"),
        ({"lr": "1e-2"}, TypeError, r"lr='1e-2' \(str\) is not a number"),
        ({"lr": True}, TypeError, "lr=True"),
        ({"lr_final": -0.1}, ValueError, "lr_final=-0.1"),
        ({"lr_final": None}, TypeError, "lr_final=None"),
        ({"scale_lr": 3}, ValueError, r"scale_lr=3 is outside \[0, 1\].*e.g. scale_lr=0.003"),
        ({"scale_lr": "fast"}, TypeError, r"scale_lr='fast' \(str\) is not a number; write e.g. scale_lr=0.003"),
    ],
)
def test_impossible_values_are_refused_with_the_fix(kwargs, error, text):
    with pytest.raises(error, match=text):
        QATSchedule(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "length", "text"),
    [
        ({"start": 10}, {"total_epochs": 10}, "start=10, but the training ends after 10 epochs: nothing"),
        ({"start": "90 steps"}, {"total_epochs": 9, "steps_per_epoch": 10}, "ends after 9 epochs"),
        ({"start": 3}, {"total_epochs": 9, "total_steps": 30, "steps_per_epoch": 10}, "9 epochs or 30 steps"),
        ({"start": 0}, {"total_epochs": 0}, "ends after 0 epochs"),
        ({}, {}, "freeze_bn=None, observer_off=None, lr=0.01: .* needs its end. Set max_epochs"),
        ({"freeze_bn": 3, "observer_off": 4}, {}, "^lr=0.01: a share"),
        ({"start": 0.1, "freeze_bn": 3, "observer_off": 4, "lr": None}, {}, "^start=0.1: a share"),
        ({"start": 2}, {"total_steps": 100}, "start=2 cannot be compared .* 100 steps.*unit of the limit"),
        ({"start": 2, "freeze_bn": "19 steps"}, {"total_epochs": 9, "steps_per_epoch": 10}, "'19 steps' w"),
        ({"start": 5, "observer_off": 0.4}, {"total_epochs": 10}, "0.4 with start=5: it lies before"),
        ({"start": 5, "observer_off": 0.5}, {"total_epochs": 10}, "observers would never see a batch"),
        ({"start": 0.105, "observer_off": 0.108}, {"total_steps": 90}, "observers would never see a batch"),
        ({"start": 0.999}, {"total_steps": 90}, "start=0.999, but the training ends after 90 steps"),
    ],
)
def test_check_refuses_what_the_length_makes_impossible(kwargs, length, text):
    with pytest.raises(ValueError, match=text):
        QATSchedule(**kwargs).check(**length)


def test_phase_refuses_a_position_without_the_end_it_needs():
    with pytest.raises(ValueError, match="needs its end"):
        QATSchedule().phase(Position(1, 10))


def test_check_remarks_on_points_that_never_come():
    assert QATSchedule(freeze_bn="never", observer_off=1.0).check(4) == ()
    assert QATSchedule(freeze_bn=4, observer_off="31 steps").check(4, 30) == (
        "freeze_bn=4 is never reached: the training ends after 4 epochs or 30 steps.",
        "observer_off='31 steps' is never reached: the training ends after 4 epochs or 30 steps.",
    )


def test_check_compares_only_what_can_be_compared():
    assert QATSchedule(start="20 steps", freeze_bn=1, observer_off=2, lr=None).check() == ()
    assert QATSchedule(start="8 steps", freeze_bn=2).check(4, 10) == (), "epochs may have 4, 4, 1 and 1 steps"
    assert QATSchedule(start="8 steps", freeze_bn=2).check(4, 10, epochs=(4, 4, 1, 1)) == ()
    with pytest.raises(ValueError, match="freeze_bn=2 with start='9 steps': it lies before"):
        QATSchedule(start="9 steps", freeze_bn=2).check(4, 10, epochs=(4, 4, 1, 1))
    with pytest.raises(ValueError, match="observer_off='7 steps' with start=2: it lies before"):
        QATSchedule(start=2, observer_off="7 steps").check(4, 10, epochs=(4, 4, 1, 1))
    QATSchedule(start="8 steps", freeze_bn=9).check(4, 10, epochs=(4, 4, 1, 1))


def test_check_says_what_shows_only_in_training():
    (note,) = QATSchedule(start="20 steps").check(4, counted_later=True)
    assert "start='20 steps': whether that is before the end of the training, after 4 epochs" in note
    assert QATSchedule(start=2).check(4, counted_later=True) == ()
    assert QATSchedule(start="20 steps").check(None, 40, counted_later=True) == ()


def test_only_a_start_that_is_not_to_be_expected_is_doubtful():
    assert QATSchedule(start="7 steps").check(4, None, 2, counted_later=True) == ()
    (note,) = QATSchedule(start="9 steps").check(4, None, 2, counted_later=True)
    assert note.startswith("start='9 steps': whether")
    assert QATSchedule(start=1, freeze_bn="30 steps").check(4, None, 2, counted_later=True) == ()
    with pytest.raises(ValueError, match=r"start='9 steps', but the training ends after 4 epochs or 8 steps: nothing"):
        QATSchedule(start="9 steps").check(4, 8, 2, counted_later=True)


def test_the_end_is_told_in_both_units():
    with pytest.raises(ValueError, match=r"the training ends after 3 epochs \(3 steps\): nothing"):
        QATSchedule(start="5 steps").check(3, steps_per_epoch=1)


@pytest.mark.parametrize(
    ("start", "at", "began"),
    [
        (0, Position(0, 0, 4), (0, 0)),
        ("3 steps", Position(0.75, 3, 4), (0.75, 3)),
        ("3 steps", Position(1.5, 6, 4), (0.75, 3)),  # seen late
        ("3 steps", Position(0.5, 4, 4), (0.375, 3)),  # two steps a batch
        ("3 steps", Position(0, 3, 4), (0, 3)),  # a stream without a length
        (2, Position(2, 9, None, 20), (2, 9)),
        (2, Position(2, 0, 4), (2, 0)),
        ("3 steps", Position(0.5, 2, 4), None),
        (0.25, Position(1, 4, 4), (1, 4)),
        (0.25, Position(0.75, 3, 4), None),
    ],
)
def test_where_qat_began(start, at, began):
    schedule = QATSchedule(start=start)
    assert schedule.began(at) == began
    if began is not None and at.fraction == at.share(*began):
        assert schedule.phase(at, schedule.began(at)).lr_scale == schedule.lr


def test_a_start_that_is_known_does_not_depend_on_the_steps_of_an_epoch():
    schedule = QATSchedule(start="3 steps")
    began = schedule.began(Position(0.75, 3, 4))
    phases = {schedule.phase(Position(2, 8, 4, steps_per_epoch=steps), began) for steps in (4.0, 1.0, None)}
    assert len(phases) == 1


def test_a_share_begins_where_it_was_wanted_and_not_with_the_step_behind_it():
    schedule, at = QATSchedule(start=0.3), Position(1.25, 5, 4)
    assert schedule.phase(at, schedule.began(at)) == schedule.phase(at)


def test_what_has_begun_stays_on_in_a_longer_training():
    schedule, longer = QATSchedule(start=0.5, calibration=32), Position(2.5, 10, 40)
    began = schedule.began(Position(2, 8, 4))
    assert schedule.phase(longer) == Phase(fake_quant=False, observer=False, freeze_bn=False)
    phase = schedule.phase(longer, began)
    assert phase.fake_quant
    assert not phase.observer, "they were calibrated"
    assert schedule.phase(Position(2, 8, 40), began).lr_scale == schedule.lr
    assert not schedule.phase(Position(2, 8, 40), began).freeze_bn
    assert schedule.phase(Position(2 + 38 * 3 / 8, 65, 40), began).freeze_bn


class Host:
    """Takes a schedule the way a callback does."""

    def __init__(self, schedule: QATSchedule = QATSchedule()) -> None:  # noqa: B008
        self.schedule = schedule


def parse(**init_args):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Host, "host")
    text = yaml.safe_dump({"host": {"schedule": init_args}})
    config = parser.parse_object(yaml.safe_load(text))
    again = parser.parse_string(parser.dump(config, skip_unset=False))
    assert again == config
    return QATSchedule(**again.host.schedule.as_dict())


@pytest.mark.parametrize(
    "schedule",
    [
        QATSchedule(),
        QATSchedule(start=1, freeze_bn=3, observer_off=4, lr=0.02, lr_final=0.5),
        QATSchedule(start=0.5, freeze_bn="3 epochs", observer_off=1.0, lr=None),
        QATSchedule(start="20 steps", freeze_bn="never", observer_off="75%"),
    ],
)
def test_yaml_round_trip_keeps_values_and_their_types(schedule):
    parsed = parse(**dataclasses.asdict(schedule))
    assert parsed == schedule
    assert [type(v) for v in dataclasses.astuple(parsed)] == [type(v) for v in dataclasses.astuple(schedule)]
