"""A learned model of the system: an ensemble, imagination in it, its critics and experts."""
