"""Scores of the rows of a file: who answers, how rows are read, and what is kept on the way."""
