import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.overlap import Rule, count_overlap


def test_counts_equal_a_sum_of_booleans():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(40, 3, 4, 5)).astype(np.float32)
    maps[3, 0, 0, 0] = np.nan
    rules = {
        "high": Rule("above", 0.5),
        "low": Rule("below", -0.5),
        "all": Rule("at_least", -np.inf),
    }
    counts, n = count_overlap(iter(maps), rules)
    assert n == 40
    np.testing.assert_array_equal(counts["high"], (maps > 0.5).sum(axis=0))
    np.testing.assert_array_equal(counts["low"], (maps < -0.5).sum(axis=0))
    assert counts["all"][0, 0, 0] == 39
    assert counts["all"].max() == 40


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [("above", [0, 0, 1]), ("below", [1, 0, 0]), ("at_least", [0, 1, 1])],
)
def test_the_threshold_itself_passes_at_least_only(comparison, expected):
    counts, _ = count_overlap([np.array([4.9, 5, 5.1])], {"x": Rule(comparison, 5)})
    np.testing.assert_array_equal(counts["x"], expected)


def test_maps_are_taken_one_at_a_time():
    alive = []

    class Volume(np.ndarray):
        def __del__(self):
            alive.remove(id(self))

    def maps():
        for _ in range(5):
            volume = np.ones((2, 2)).view(Volume)
            alive.append(id(volume))
            assert len(alive) <= 2
            yield volume

    # Results of comparisons are volumes of the same class; only the maps are counted.
    class Plain(Rule):
        def passed(self, values):
            return np.asarray(values).view(np.ndarray) > 0

    counts, _ = count_overlap(maps(), {"x": Plain("above", 0)})
    assert counts["x"].max() == 5


def test_nothing_or_other_shapes_are_refused():
    with pytest.raises(ValidationError):
        count_overlap([], {"x": Rule("above", 0)})
    with pytest.raises(ValidationError):
        count_overlap([np.zeros(2), np.zeros(3)], {"x": Rule("above", 0)})
