"""Questions about methods -> answers by rule, from the records: who differs from whom, by how much, and how surely."""
