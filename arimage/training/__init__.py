"""Training: one loop (:mod:`arimage.training.loop`), and one file for each thing that is trained."""
