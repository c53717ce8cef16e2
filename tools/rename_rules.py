"""Give published records and claims the identity of their rules as it is today, without sparsities and seeds.

    python -m tools.rename_rules leaderboard claims --protocols leaderboard/protocols

Records of schema 5 and later hold their rules; for older ones, the rules are sought in the built-in protocols and the
TOML files of --protocols. Nothing else changes in a record but its own hash, which the ledger then follows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from prunebench.bench.files import canonical_json, sha256_of, write_bytes, write_json
from prunebench.bench.protocol import PROTOCOLS, identity, load
from prunebench.bench.record import load_record


def before(rules: dict[str, Any]) -> str:
    """The identity that `rules` had when it covered sparsities and seeds."""
    return sha256_of(canonical_json(rules))


def renamed(record: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    """The JSON of a record under today's identity. `known`: today's identity of rules by their former one."""
    rules = record.get("rules")
    names = known if rules is None else {before(rules): identity(rules)}
    old = record["protocol"]["sha256"]
    facts = record | {"protocol": record["protocol"] | {"sha256": names.get(old, old)}}
    return facts | {"sha256": sha256_of(canonical_json({key: facts[key] for key in facts if key != "sha256"}))}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rename_rules", description=__doc__.splitlines()[0])
    parser.add_argument("board", type=Path, help="a folder with records and a ledger")
    parser.add_argument("claims", type=Path, help="a folder of claims")
    parser.add_argument("--protocols", type=Path, required=True, help="a folder of protocols as TOML files")
    asked = parser.parse_args(arguments)
    rules = [*PROTOCOLS.values(), *(load(path) for path in sorted(asked.protocols.glob("*.toml")))]
    known = {before(one.model_dump(mode="json")): one.sha256 for one in rules}
    records: dict[str, str] = {}
    for path in sorted((asked.board / "records").rglob("*.json")):
        old = json.loads(path.read_bytes())
        if "refused" in old:
            continue
        new = renamed(old, known)
        known |= {old["protocol"]["sha256"]: new["protocol"]["sha256"]}
        records[old["sha256"]] = new["sha256"]
        write_json(path, new)
        load_record(path)
    ledger = json.loads((asked.board / "ledger.json").read_bytes())
    for entry in ledger["entries"]:
        entry["record"] = records.get(entry["record"], entry["record"])
    ledger["entries"].sort(key=lambda entry: entry["record"])
    write_json(asked.board / "ledger.json", ledger)
    for path in sorted(asked.claims.rglob("CLAIM.toml")):
        text = path.read_bytes()
        for old_name, new_name in known.items():
            text = text.replace(old_name.encode(), new_name.encode())
        write_bytes(path, text)
    print(f"{sum(old != new for old, new in records.items())} of {len(records)} records renamed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
