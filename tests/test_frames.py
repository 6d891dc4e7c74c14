"""Frames are read without a snapshot: on every Python, with every torch."""

import gc
import sys

import pytest

from memlab.ownership import frames


def waits(one, captured):
    two = object()
    yield (lambda: captured), two, one


@pytest.fixture
def generator():
    return waits(object(), object())


def names(frame):
    return [name for name, _ in frames.slots(frame)]


def test_a_suspended_frame_is_read_and_left_as_it_was(generator):
    _, two, one = next(generator)
    frame = generator.gi_frame
    before = sorted(map(id, gc.get_referents(frame)))
    found = dict(frames.slots(frame))
    assert (found["one"], found["two"]) == (id(one), id(two))
    assert sorted(map(id, gc.get_referents(frame))) == before


def test_a_frame_that_waits_to_start_has_its_arguments(generator):
    frame = generator.gi_frame
    assert set(names(frame)) >= {"one"} and "two" not in names(frame)


def test_generators_are_found_by_their_frames_where_these_hold_the_locals(generator):
    next(generator)
    found = frames.generators_of([generator, [generator], object()])
    assert (sys.version_info < (3, 11)) == frames.LIES_BETWEEN
    assert found == ({id(generator.gi_frame): generator} if frames.LIES_BETWEEN else {})
    generator.close()
    assert frames.generators_of([generator]) == {}


def test_a_class_body_and_a_module_keep_their_namespace():
    """Their ``f_locals`` is no snapshot: emptying it would empty the class, the module."""

    class Body:
        one = 1
        found = tuple(frames.slots(sys._getframe()))
        two = one

    assert (Body.one, Body.two, Body.found) == (1, 1, ())
