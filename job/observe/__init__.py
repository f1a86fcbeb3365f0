"""What is told of an attempt: events, the log, metrics, Kubeflow Trainer, time and progress."""
