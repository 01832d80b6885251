"""From records to the answer."""
