r"""The theory of CoCoD-SGD as functions: bounds, step size, the periods it allows.

The setting is plain SGD with a constant learning rate: no momentum, no weight decay.
Worker i minimises :math:`f_i`, all together :math:`f = \sum_i p_i f_i` with
:math:`p_i = M_i / M`, where :math:`M_i` is the worker's batch and :math:`M` the sum
over workers; :math:`\hat x = \sum_i p_i x_i` is the consensus. Lemma 2, Theorem 1 and
Corollary 1 come from the paper's supplement, for the delay d = k; what is said of other
delays and of streamed rounds is derived here. Each function says which one it is.

References:
  Shen et al., `Faster Distributed Deep Net Training: Computation and Communication
  Decoupled SGD <https://arxiv.org/abs/1906.12043>`_, IJCAI 2019, and its supplement.
"""

from cocod_jax.theory._bounds import Problem as Problem
from cocod_jax.theory._bounds import deviation_bound as deviation_bound
from cocod_jax.theory._bounds import expected_deviation as expected_deviation
from cocod_jax.theory._bounds import gradient_bound as gradient_bound
from cocod_jax.theory._bounds import largest_period as largest_period
from cocod_jax.theory._speedup import SpeedupConditions as SpeedupConditions
from cocod_jax.theory._speedup import exchanges as exchanges
from cocod_jax.theory._speedup import speedup_bound as speedup_bound
from cocod_jax.theory._speedup import speedup_conditions as speedup_conditions
from cocod_jax.theory._speedup import speedup_learning_rate as speedup_learning_rate
from cocod_jax.theory._speedup import speedup_period as speedup_period
