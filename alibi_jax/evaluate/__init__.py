"""How far a model reads: nats of every token, records, statistics, sweeps, reports."""
