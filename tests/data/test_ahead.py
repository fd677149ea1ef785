"""Batches that a thread makes ready: in order, with the errors of their turn, and it ends when it is told to."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from kosmos_data.ahead import Ahead


def test_items_come_prepared_and_in_order() -> None:
    ahead = Ahead(([number] for number in itertools.count()), lambda item: item.append("ready"))
    assert [next(ahead) for _ in range(5)] == [[number, "ready"] for number in range(5)]
    ahead.close()
    assert not ahead._thread.is_alive()
    assert list(ahead) == []


def test_an_error_is_raised_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("corpus: too many bad samples")

    def refuse(item: int) -> None:
        if item == 9:
            raise ValueError("9 is refused")

    ahead = Ahead(items(), refuse)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="too many bad samples"):
        next(ahead)
    ahead.close()
    with pytest.raises(ValueError, match="9 is refused"):
        next(Ahead(iter([9]), refuse))


def test_only_one_item_is_made_in_advance() -> None:
    """What is read and not trained on is lost work: not more than the item in the queue and the one in hand."""
    made: list[int] = []
    ahead = Ahead(iter(range(100)), made.append)
    next(ahead)
    time.sleep(0.3)
    assert len(made) <= 3
    ahead.close()


def test_it_is_made_in_another_thread() -> None:
    names: list[str] = []
    ahead = Ahead(iter(range(3)), lambda item: names.append(threading.current_thread().name))
    next(ahead)
    ahead.close()
    assert set(names) == {"kosmos-ahead"}
