"""From an experiment file to a browsable result. Each stage is `python -m pipeline.<stage>`; stages meet in files."""
