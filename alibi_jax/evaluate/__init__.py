"""How far a model reads: nats of every token, statistics, sweeps, reports."""
