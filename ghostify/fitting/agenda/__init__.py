"""What is fitted, to what, and in which order: all that two recorded networks tell before either is run."""
