"""The data set: which pictures, in which buckets, with which captions, in which order. Torch-free."""
