"""One step ahead: what is asked for early is let go in time, and an error comes in its turn."""

import weakref

import pytest

from seer.data.loading.device_prefetch import one_ahead


class Thing:
    pass


def test_each_is_asked_for_while_the_one_before_it_is_still_to_come_and_an_error_waits_for_its_turn():
    asked: list[int] = []

    def get() -> int:
        asked.append(len(asked))
        if len(asked) == 4:
            raise OSError("the fourth")
        return asked[-1]

    stream = one_ahead(get)
    assert [next(stream) for _ in range(3)] == [0, 1, 2] and len(asked) == 4
    with pytest.raises(OSError, match="the fourth"):
        next(stream)


def test_it_ends_where_there_is_no_more():
    things = iter([1, 2])
    assert list(one_ahead(lambda: next(things, None))) == [1, 2]


def test_what_was_let_go_is_held_by_nobody_when_the_next_is_asked_for():
    """On a GPU it is a lease on memory that the reader writes again."""
    made: list[weakref.ref] = []
    held: list[int] = []

    def get() -> Thing:
        held.append(sum(one() is not None for one in made))
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    for thing in one_ahead(get):
        del thing
        if len(made) == 6:
            break
    assert max(held) == 1  # the one that is ahead
