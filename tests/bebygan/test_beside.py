import threading
from collections.abc import Iterator

import pytest

from bebygan.beside import consume_beside


def test_items_are_computed_here_and_consumed_in_order_by_another_thread() -> None:
    seen: list[tuple[int, threading.Thread]] = []
    makers = []

    def items() -> Iterator[int]:
        for number in range(5):
            makers.append(threading.current_thread())
            yield number

    consume_beside(items(), lambda given: seen.extend((each, threading.current_thread()) for each in given))
    assert [number for number, _ in seen] == list(range(5))
    assert {thread for _, thread in seen}.isdisjoint(makers)
    assert set(makers) == {threading.current_thread()}


def test_computing_is_never_more_than_two_items_ahead() -> None:
    consumed, ahead = [0], []

    def items() -> Iterator[int]:
        for number in range(50):
            ahead.append(number - consumed[0])
            yield number

    def consume(given: Iterator[int]) -> None:
        for _ in given:
            consumed[0] += 1

    consume_beside(items(), consume)
    assert max(ahead) <= 2


def test_the_next_item_is_computed_while_one_is_consumed() -> None:
    started, second = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert started.wait(10)
        second.set()
        yield 2

    def consume(given: Iterator[int]) -> None:
        for _ in given:
            started.set()
            assert second.wait(10)

    consume_beside(items(), consume)


def test_an_error_of_the_consumer_ends_the_computing() -> None:
    computed = []

    def items() -> Iterator[int]:
        for number in range(100):
            computed.append(number)
            yield number

    def consume(given: Iterator[int]) -> None:
        next(given)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        consume_beside(items(), consume)
    assert len(computed) <= 3


def test_an_error_of_the_computing_ends_the_consumer() -> None:
    ended = []

    def items() -> Iterator[int]:
        yield 1
        raise MemoryError

    def consume(given: Iterator[int]) -> None:
        ended.append(list(given))

    with pytest.raises(MemoryError):
        consume_beside(items(), consume)
    assert ended == [[1]]
