"""Work in threads comes back in order, is bounded, and leaves the threads of the model alone."""

import threading

import pytest
import torch

from clipkal.data.threads import in_threads, one_thread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items():
    first = threading.Event()

    def work(i: int) -> int:
        if i == 0:
            assert first.wait(30)  # the first item is the last to be done
        if i == 4:
            first.set()
        return i * i

    assert list(in_threads(work, range(5), threads=2, ahead=5)) == [0, 1, 4, 9, 16]


def test_no_more_items_are_taken_than_may_wait():
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield i

    results = in_threads(lambda i: i, items(), threads=2, ahead=6)
    for seen in range(1, 20):
        next(results)
        assert len(taken) == seen + 5
    results.close()
    assert len(taken) == 24


def test_an_error_is_raised_in_its_place_and_ends_the_threads():
    def work(i: int) -> float:
        return 1 / (3 - i)

    results = in_threads(work, range(100), threads=2, ahead=10)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not [t for t in threading.enumerate() if t.name.startswith("clipkal")]


def test_each_thread_works_alone_and_the_caller_keeps_its_own(two_threads):
    seen = list(in_threads(lambda _: torch.get_num_threads(), range(8), threads=2, ahead=4))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_one_thread_holds_for_the_block_and_for_the_calling_thread_only(two_threads):
    others = []
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert others == [2]
    assert torch.get_num_threads() == 2
