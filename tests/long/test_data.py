"""Every image of CIFAR-10 and CIFAR-100."""

import numpy as np
import pytest

from jaxcurv.data import Normalisation, read
from tests.jaxcurv.data.test_data import REAL, load_real

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("name", "num_classes", "index", "label", "first_class", "mean"), REAL)
def test_all_of_real_cifar(
    name: str, num_classes: int, index: int, label: int, first_class: str, mean: tuple
) -> None:
    dataset = load_real(name)
    train, test = read(dataset.train), read(dataset.test)
    for arrays in (train, test):
        np.testing.assert_array_equal(np.sort(arrays.indices), np.arange(len(arrays)))
        assert set(np.bincount(arrays.labels)) == {len(arrays) // num_classes}
    np.testing.assert_allclose(Normalisation.of(train.images).mean, mean, atol=5e-6)
