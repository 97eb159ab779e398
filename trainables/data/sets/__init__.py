"""Every data set: its files, where they come from, and one table of all."""
