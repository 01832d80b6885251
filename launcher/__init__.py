"""Decides what runs where, keeps the run folder, judges and reports; never imports torch or deep_ep."""
