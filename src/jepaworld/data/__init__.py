"""Datasets: collecting episodes, storing them, sampling windows from them."""
