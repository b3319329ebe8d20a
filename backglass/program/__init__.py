"""A training step as data: record, validate, transform, print."""
