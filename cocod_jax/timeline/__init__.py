r"""A clock of N workers: when each computes, when they exchange, and who waits.

No model is trained here. Local steps take the seconds that :class:`Compute` draws,
an exchange takes what you measured or what a :class:`Link` gives, and an algorithm
says after which step it sends and before which step it needs what arrives:

* An exchange starts when its last worker has sent and the link is free, and takes all
  of its time from there on. There is one link for all workers, or, for gossip, one
  for each. Exchanges run in the order in which they are sent.
* A worker takes its steps one after the other, and waits only for an exchange that it
  needs.
* An exchange that is in flight may slow the steps beside it down (``busy``).

For constant times these rules give :math:`\max(d \, T_c, T_m) + (k - d) \, T_c` for a
round of period k and delay d, and :math:`k \max(T_c, l + (T_m - l) / k)` for a streamed
one, where l is the latency of a message. They leave out the merge, and networks on
which one exchange slows the next.
"""

from cocod_jax.timeline._algorithms import SSGD as SSGD
from cocod_jax.timeline._algorithms import Algorithm as Algorithm
from cocod_jax.timeline._algorithms import CoCoDSGD as CoCoDSGD
from cocod_jax.timeline._algorithms import Gossip as Gossip
from cocod_jax.timeline._algorithms import LocalSGD as LocalSGD
from cocod_jax.timeline._algorithms import PipeSGD as PipeSGD
from cocod_jax.timeline._algorithms import Streamed as Streamed
from cocod_jax.timeline._algorithms import Streaming as Streaming
from cocod_jax.timeline._algorithms import Transfer as Transfer
from cocod_jax.timeline._simulate import simulate as simulate
from cocod_jax.timeline._timeline import Timeline as Timeline
from cocod_jax.timeline._timeline import gantt as gantt
from cocod_jax.timeline._times import Compute as Compute
from cocod_jax.timeline._times import Link as Link
