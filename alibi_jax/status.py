"""Exit statuses of the command line."""

FAILED = 1  # a run that could not go on: a full disk, a damaged checkpoint, an error nobody foresaw
REFUSED = 2  # bad input, before any work
DIVERGED = 3  # a loss or gradient that is not finite; the same command would meet it again
GAVE_UP = 4  # `supervise`: as many restarts as its patience, and no new checkpoint
HELD = 5  # another run is at work in the folder; the same command can go on once that one has ended
INTERRUPTED = 75  # stopped on request with everything saved; the same command goes on
KILLED = 130  # stopped at once
