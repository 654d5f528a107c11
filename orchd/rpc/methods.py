"""The whole method table: importing the modules fills it."""

from orchd.rpc import (
    discover,
    methods_adapters,
    methods_base_add,
    methods_bases,
    methods_data,
    methods_dataset_jobs,
    methods_environment,
    methods_exchange,
    methods_jobs,
    methods_leaks,
    methods_network,
    methods_node,
    methods_planning,
    methods_registry,
    methods_runs,
    methods_scan,
    methods_search,
    methods_serving,
    methods_training,
    methods_trust,
)
from orchd.rpc.table import METHODS as TABLE

MODULES = (
    discover,
    methods_adapters,
    methods_base_add,
    methods_bases,
    methods_data,
    methods_dataset_jobs,
    methods_environment,
    methods_exchange,
    methods_jobs,
    methods_leaks,
    methods_network,
    methods_node,
    methods_planning,
    methods_registry,
    methods_runs,
    methods_scan,
    methods_search,
    methods_serving,
    methods_training,
    methods_trust,
)
__all__ = ["MODULES", "TABLE"]
