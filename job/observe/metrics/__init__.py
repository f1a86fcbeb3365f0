"""Metrics of a run for Prometheus: one table of all series, served while the run goes on, pushed when it ends.

    table      every series: name, type, labels, help
    recorder   events, steps and requests -> series; reads what is known only at the moment of a scrape
    exporter   /metrics and /healthz, and the push of the outcome

The only importer of prometheus_client. Nothing here ends a run: a port in use or a dead gateway is a warning.
"""

from job.observe.metrics.exporter import push, serving
from job.observe.metrics.recorder import Metrics

__all__ = ["Metrics", "push", "serving"]
