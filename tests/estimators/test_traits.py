"""What an estimator says of itself: its treatment of the KL."""

import pytest
from pyro.infer import TraceGraph_ELBO, TraceMeanField_ELBO

from pyro_vi import estimators
from pyro_vi.estimators.traits import kl_treatment

every_estimator = pytest.mark.parametrize("name", estimators.TABLE)


@every_estimator
def test_kl_treatment_is_that_of_the_table(name):
    assert kl_treatment(estimators.get(name)) == estimators.TABLE[name].kl


def test_a_subclass_treats_the_kl_as_its_parent():
    class Mine(TraceMeanField_ELBO):
        pass

    assert kl_treatment(Mine()) == "analytic"
    assert kl_treatment(TraceGraph_ELBO()) == "sampled"
