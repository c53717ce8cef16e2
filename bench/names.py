"""The names of files in the folder of a net or a claim: without imports, for commands that must start quickly."""

NET, RECORD, REFUSAL, JOURNAL = "net.safetensors", "record.json", "refusal.json", "journal"
OUTCOMES, PROPOSALS, PAIRS = "outcomes.npz", "proposals.npz", "pairs.npz"  # beside a record, after its own name
