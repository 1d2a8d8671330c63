"""Which documents train, which validate, which go."""
