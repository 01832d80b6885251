"""Empty: a shim under test does not need torch, and the real one takes seconds to import."""
