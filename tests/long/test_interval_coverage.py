"""How often intervals over chips and samples cover the truth, in simulated populations.

`-s` prints every cell: chips, samples, the rate and its spread, coverage, how often the interval
ends below the truth and begins above it, and its mean width.
"""

import itertools

import numpy as np
import pytest

from tests.crossed_chips import Coverage, Population, measure_coverage, rate_coverage

pytestmark = pytest.mark.long

CHIPS = (3, 5, 10)
LEAST = 0.93
REPLICATIONS = 2000  # a standard error of 0.005


def _line(*what: object, covered: Coverage) -> str:
    cell = " | ".join(map(str, what))
    return (
        f"| {cell} | {covered.rate:.3f} | {covered.below:.3f} | {covered.above:.3f} "
        f"| {covered.width:.4f} |"
    )


@pytest.mark.parametrize("difficulty", [0.0, 2.0], ids=["independent", "shared"])
@pytest.mark.parametrize("samples", [1000, 100])
def test_rates_of_chips_are_covered(difficulty: float, samples: int) -> None:
    """Rates that are logit-normal over chips; with `shared`, samples differ in difficulty too.

    At a spread of 0 all chips are alike, and intervals cover more than 0.95: with as few chips
    nothing tells that they are. A spread of 1 is beyond what three to ten chips can show.
    """
    lines, least, beyond = [], {}, {}
    for number, (rate, spread, chips) in enumerate(
        itertools.product((0.001, 0.05, 0.2, 0.5), (0.0, 0.25, 0.5, 1.0), CHIPS)
    ):
        covered = rate_coverage(
            Population(rate=rate, spread=spread, difficulty=difficulty),
            chips=chips,
            samples=samples,
            replications=REPLICATIONS,
            seed=number,
        )
        lines.append(_line(chips, samples, rate, spread, difficulty, covered=covered))
        cells = least if spread < 1 else beyond
        cells[lines[-1]] = covered.rate
    print("", *lines, sep="\n")
    assert {line: rate for line, rate in least.items() if rate < LEAST} == {}
    assert min(beyond.values()) > 0.89


def test_failure_table_covers_as_the_interval_does() -> None:
    population = Population(rate=0.05, spread=0.5, difficulty=2.0)
    settings = {"chips": 3, "samples": 100, "replications": 2000, "seed": 0}
    through = rate_coverage(population, **settings, through_table=True)
    assert through == rate_coverage(population, **settings)
    assert through.rate > LEAST


@pytest.mark.parametrize(
    ("chips", "samples", "population"),
    [
        (1, 200, Population(rate=0.2, spread=0.0, slope=1.0)),
        (1, 400, Population(rate=0.02, spread=0.0, slope=1.0)),
        (3, 200, Population(rate=0.2, spread=0.5, slope=1.0)),
        (3, 200, Population(rate=0.2, spread=0.5, slope=1.0, slope_spread=0.5)),
        (3, 200, Population(rate=0.05, spread=0.5, difficulty=2.0, slope=1.0, slope_spread=0.5)),
        (5, 200, Population(rate=0.2, spread=0.5, slope=1.0, slope_spread=0.5)),
        (10, 200, Population(rate=0.2, spread=0.5, difficulty=2.0, slope=1.0, slope_spread=0.5)),
    ],
)
def test_predictors_of_chips_are_covered(chips: int, samples: int, population: Population) -> None:
    """AUROC, average precision and a paired difference of AUROCs."""
    found = measure_coverage(
        population, chips=chips, samples=samples, replications=REPLICATIONS, resamples=200, seed=0
    )
    fields = np.array([population.rate, population.spread, population.difficulty])
    for name, covered in found.items():
        print(_line(name, chips, samples, *fields, population.slope_spread, covered=covered))
    assert {name: one.rate for name, one in found.items() if one.rate < LEAST} == {}
