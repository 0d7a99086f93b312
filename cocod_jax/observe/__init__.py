"""What a run reports, and how to look at it."""

from cocod_jax.observe import page as page
from cocod_jax.observe._alarms import DriftAlarm as DriftAlarm
from cocod_jax.observe._summary import Summary as Summary
from cocod_jax.observe._summary import summary as summary
