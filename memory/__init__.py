"""Durable conversation memory: a log of turns, its table, and LlamaIndex's view of it. Knows no Lambda and no HTTP."""
