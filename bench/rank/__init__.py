"""What a rank runs: the only room, with the sessions, that imports torch."""
