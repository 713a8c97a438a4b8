import numpy as np
import torch as th
from hypothesis import given, strategies as st
from scipy.special import betaln

from sb3_trpo.numerics.beta_function import log_beta_function, mean_logs

SIZES = st.lists(st.floats(1e-2, 1e3), min_size=2, max_size=2)


@given(SIZES)
def test_the_logarithm_is_scipys(sizes):
    alpha, beta = th.tensor(sizes, dtype=th.float64)
    np.testing.assert_allclose(float(log_beta_function(alpha, beta)), betaln(*sizes), rtol=1e-10, atol=1e-10)


@given(SIZES)
def test_the_means_of_logarithms_are_its_gradient(sizes):
    arguments = th.tensor(sizes, dtype=th.float64, requires_grad=True)
    (gradient,) = th.autograd.grad(log_beta_function(*arguments), arguments)
    th.testing.assert_close(th.stack(mean_logs(*arguments)), gradient)
