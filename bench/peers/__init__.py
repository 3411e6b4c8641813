"""The measured stores, a program each: `python -m bench.peers.<name> --endpoint ... --table ... --turns 100`."""
