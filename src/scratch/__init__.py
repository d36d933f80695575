"""The code of the book Deep Learning From Scratch, one module per chapter."""
