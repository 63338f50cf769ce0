"""The files of the projects import what only their environments have."""

collect_ignore_glob = ["of_*.py"]
