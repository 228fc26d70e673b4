"""What people read after a search: figures, pages, and the comparison of optimizers as a table."""
