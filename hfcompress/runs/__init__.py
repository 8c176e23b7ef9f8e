"""A recipe carried out: each stage once, in folders that a kill cannot damage, with a lock and a comparison."""
