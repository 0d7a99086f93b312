"""Exchanges: how workers average, and what travels. One exchange, one file."""

from cocod_jax.exchanges._base import Exchange as Exchange
from cocod_jax.exchanges.finite import finite as finite
from cocod_jax.exchanges.gossip import gossip as gossip
from cocod_jax.exchanges.mean import mean as mean
from cocod_jax.exchanges.narrow import narrow as narrow
from cocod_jax.exchanges.nothing import nothing as nothing
from cocod_jax.exchanges.top_k import top_k as top_k
from cocod_jax.exchanges.within import within as within
