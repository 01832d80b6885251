"""From records to the answer: pure functions."""
