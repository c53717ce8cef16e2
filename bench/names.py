"""The names of files in the folder of a net: without imports, for commands that must start quickly."""

NET, RECORD, REFUSAL, JOURNAL = "net.safetensors", "record.json", "refusal.json", "journal"
