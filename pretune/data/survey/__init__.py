"""Survey of a person's own folders, before there is a study: how files pair, how large they are, what masks mean.

`pretune init` writes a study from it. Headers of images and all values of masks are read, of a sample where there are
many; nothing is written.
"""
