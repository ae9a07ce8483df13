"""Figures of Press, Smith, Lewis 2022 (arXiv 2108.12409), to stand beside ours. None of these is ours."""

# WikiText-103 validation perplexity, non-overlapping, trained at 512 tokens (figure 1, tables 2-5 and appendix)
TRAINED_AT_512 = {
    "sinusoidal": {512: 20.05, 1012: 43.54, 1512: 76.23, 3512: 178.97, 7512: 293.02, 15_512: 406.01},
    "rotary": {512: 20.07, 1012: 21.37, 1512: 25.99, 3512: 35.54, 7512: 51.12, 15_512: 79.25},
    "t5": {512: 19.65, 1012: 18.79, 1512: 18.91, 3512: 22.91, 7512: 39.29},  # 12,512: 64.94, then out of memory
    "alibi": {512: 19.73, 1012: 18.73, 1512: 18.52, 3512: 18.40, 7512: 18.33, 15_512: 18.31},
}

# the same text, ALiBi by training length and validation length (figure 4, tables 2-5)
ALIBI_BY_TRAIN_LENGTH = {
    64: {64: 28.46},
    128: {128: 23.98},
    256: {256: 21.29},
    512: {512: 19.73, 1024: 18.81, 1536: 18.50, 2048: 18.48, 3072: 18.40},
    1024: {1024: 18.66, 1536: 18.20, 2048: 18.05, 3072: 17.96},
    1536: {1536: 18.12, 2048: 17.90, 3072: 17.72},
    2048: {2048: 17.91, 3072: 17.64},
    3072: {3072: 17.60},
}
SINUSOIDAL_AT_ITS_LENGTH = {
    64: 28.03,
    128: 23.81,
    256: 21.45,
    512: 20.05,
    1024: 19.34,
    1536: 19.05,
    2048: 18.87,
    3072: 18.67,
}

# the same models by protocol, sliding with stride 1 (tables 13-15; sinusoidal past 512: 204 to 360) and non-overlapping
PROTOCOLS = {
    "ALiBi 512, sliding": {512: 17.98, 1024: 17.92, 1536: 18.2, 2048: 18.28, 3072: 18.3},
    "ALiBi 512, non-overlapping": ALIBI_BY_TRAIN_LENGTH[512],
    "ALiBi 1024, sliding": {1024: 17.46, 1536: 17.47, 2048: 17.62, 3072: 17.92},
    "ALiBi 3072, sliding": {3072: 16.96},
    "T5 bias 512, sliding": {512: 17.92, 1024: 18.51, 1536: 20.36, 2048: 22.62, 3072: 30.77},
    "sinusoidal 512, sliding": {512: 18.35},
}

# training, thousand tokens a second, and memory, GB, on one V100 (table 1)
SPEED = {
    "sinusoidal": {512: 28.5, 1024: 26.0, 3072: 15.3},
    "rotary": {512: 20.0, 1024: 17.7, 3072: 11.5},
    "t5": {512: 14.4, 1024: 13.0, 3072: 4.3},
    "alibi": {512: 28.3, 1024: 25.8, 3072: 15.5},
}
MEMORY = {
    "sinusoidal": {512: 15.3, 1024: 19.2, 3072: 15.1},
    "rotary": {512: 17.8, 1024: 22.8, 3072: 17.8},
    "t5": {512: 16.9, 1024: 20.9, 3072: 15.9},
    "alibi": {512: 15.3, 1024: 19.3, 3072: 15.2},
}

# Toronto BookCorpus validation perplexity at 512, 1,024 and 3,072 tokens; sinusoidal trained at each length
BOOKS = {
    "alibi, trained at 512": {512: 14.29, 1024: 13.64, 3072: 13.55},
    "alibi, trained at 3,072": {3072: 13.15},
    "sinusoidal, trained at each length": {512: 14.80, 1024: 14.73, 3072: 14.46},
}
