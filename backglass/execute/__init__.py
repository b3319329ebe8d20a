"""What a program's lines do: execute at once (Eager) or as a bound list (Run)."""
