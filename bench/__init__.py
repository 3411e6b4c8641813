"""What a turn costs, here and in other stores of conversations on DynamoDB: `make bench` and `make cost`.

- `python -m bench`: calls, capacity units and bytes of single turns of one long conversation, and what two racing
  writers lose. Every store is a program of `bench/peers/`, in an environment of its own from a locked requirements
  file, with its own table on one engine (dynoxide), and takes each turn with new objects: nothing of the turn before is
  left in the process but clients. Units are those that the engine reports for each request.
- `python -m bench.overhead`: the time that a turn of the chat function adds to the agent's run alone.
- `python -m bench.cost`: what a month of turns costs in dollars, worked out at once; `docs/COST.md` explains it.

Nothing here is a test: the first two print what they measured, and take some minutes. Another store is one more file in
`bench/peers/`, one more requirements file, and one more line in `bench/__main__.py`.
"""
