"""The one table of tolerances, of the tests and of what a GPU computes (benchmarks/gpu)."""

# Largest absolute error allowed, by what is compared. Measured errors are a third of these or less; never loosen to pass.
TOLERANCE = {
    "attention": 2e-6,  # float32 outputs against float64
    "skipping": 1e-6,  # what the reach at its default tolerance changes, float32
    "attention gradient": 2e-5,  # of a sum of squares, float32 against float64
    "attention bfloat16": 2e-2,
    "attention float16": 2.5e-3,  # an eighth of it, as its spacing is
    "attention of huge scores": 1.8e-3,  # scores near 3,000 are themselves sums rounded to 2e-4 and more
    "logits": 2e-5,  # float32, one layer order of sums against another
    "loss": 1e-5,  # nats
    "sharded loss": 2e-5,  # nats, after a few updates on a mesh against one device
    # a training step and scores of a small model, on one device beside `reference` in float32 on another
    "step loss float32": 2e-5,  # nats
    "step loss bfloat16": 2e-3,
    "step grad_norm float32": 2e-5,  # relative
    "step grad_norm bfloat16": 5e-3,
    "step update float32": 1e-4,  # of all parameters, relative, root mean square
    "step update bfloat16": 1e-1,
    "step nats float32": 5e-5,  # of a token
    "step nats bfloat16": 8e-2,
    "position": 2e-6,
    "paper": 1e-5,  # log-probabilities against an independent float64 model
    "peer": 2.5e-5,  # log-probabilities against another library's model
    "imported": 1e-4,  # log-probabilities of an imported model against its family's own code
}
