"""Hydra configuration: groups of facts with their sources; no code here."""
