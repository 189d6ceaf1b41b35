"""``python -m arimage`` is the command ``arimage``."""

from arimage.cli.main import run

run()
