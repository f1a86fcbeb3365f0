"""How an attempt is observed: events, the log, metrics, Kubeflow Trainer, time and progress."""
