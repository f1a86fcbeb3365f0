"""The names of the files of a finished run, and what each holds."""

MODEL, LABELS, CARD = "model/model.keras", "model/labels.json", "model/README.md"
THRESHOLD = "model/threshold.json"
SAVED_MODEL = "model/saved_model"
REPORT, PAGE, PREDICTIONS = "report/report.json", "report/index.html", "report/predictions.csv"
HISTORY = "logs/history.json"

FILES = {
    MODEL: "the classifier, from pixels 0..255 to logits, float32; plain Keras loads it",
    f"{SAVED_MODEL}/": "the same from encoded images or arrays to probabilities, label and logits, for servers",
    LABELS: "the class names in order",
    THRESHOLD: "with another threshold than 0.5: the probability above which the second class is the answer",
    CARD: "the model card: results, how it was trained, code to use it",
    PAGE: "the report for people: one file without scripts, for screen, phone and paper",
    REPORT: "the report for programs: outcome, splits, history, calibration, durations, settings, versions",
    PREDICTIONS: "for each test image: index, name, label, predicted class and its probability, as CSV",
    HISTORY: "the result of each epoch",
    "logs/": "the same as TensorBoard event files, with learning rate and speed: `tensorboard --logdir <run>/logs`",
}
"""A name that ends with / is a folder."""
