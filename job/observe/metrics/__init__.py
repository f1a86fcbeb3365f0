"""Metrics of a run for Prometheus: served while the run goes on, and its outcome pushed when it ends.

    table      every series: name, type, labels, help
    recorder   events, steps and requests -> series
    live       the series that are read at the moment of a scrape
    exporter   the server, and the push of the outcome

Only this package imports prometheus_client. Nothing here ends a run: a port in use or a dead gateway is a warning.
"""

from job.observe.metrics.exporter import push, serving
from job.observe.metrics.recorder import Metrics

__all__ = ["Metrics", "push", "serving"]
