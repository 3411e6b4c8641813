"""Long proofs: what is tried for minutes, against real engines and real processes, and what came of it."""
