"""Nothing: a shim under test needs no torch, and the real one takes seconds to import."""
