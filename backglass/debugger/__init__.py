"""A training step recorded op by op, to be stepped through, verified and compared."""
