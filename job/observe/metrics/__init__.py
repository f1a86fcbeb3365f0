"""Metrics of a run for Prometheus: served while the run goes on, and its outcome pushed when it ends.

Only this package imports prometheus_client. Nothing here ends a run: a port in use or a dead gateway is a warning.
"""

from job.observe.metrics.exporter import push, serving
from job.observe.metrics.recorder import Metrics

__all__ = ["Metrics", "push", "serving"]
